//! How the ranks split a step, on the command line: the keys of `[parallel]` with their defaults.

use super::batches::Cut;
use super::shape::Sizes;
use gradus_error::{Error, Result};
use gradus_train::pipeline::Kind;
use gradus_train::{Accumulate, Mesh, ParallelSettings};

/// What the command line says of it.
#[derive(Debug, clap::Args)]
pub struct SplitArguments {
    /// Ranks that replicate; 0: what the other axes leave.
    #[arg(long, default_value_t = 0)]
    dp: usize,
    /// Ranks that shard.
    #[arg(long, default_value_t = 1)]
    fsdp: usize,
    /// Ranks that the layers are cut among.
    #[arg(long, default_value_t = 1)]
    pp: usize,
    /// Ranks that each layer is cut among.
    #[arg(long, default_value_t = 1)]
    tp: usize,
    /// What is sharded over --fsdp: 1 the optimizer's moments, 2 gradients too, 3 parameters too.
    #[arg(long, default_value_t = 3)]
    zero: u8,
    /// scatter or full.
    #[arg(long, default_value = "scatter", value_parser = parse_accumulate)]
    accumulate: Accumulate,
    /// gpipe, 1f1b, interleaved or zero-bubble.
    #[arg(long, default_value = "1f1b", value_parser = |text: &str| Kind::named(text))]
    schedule: Kind,
    /// Chunks of layers of each rank; more than one with interleaved.
    #[arg(long, default_value_t = 1)]
    stages_per_rank: usize,
    /// Sequences of a step, over all ranks; without it 8 for each rank (smollm2: 2).
    #[arg(long)]
    sequences: Option<usize>,
    /// Microbatches that they are cut into, all alike; without it one for each rank.
    #[arg(long)]
    microbatches: Option<usize>,
}

impl SplitArguments {
    /// As the settings of a run would say it.
    pub(super) fn parallel(&self) -> ParallelSettings {
        ParallelSettings {
            dp: self.dp,
            fsdp: self.fsdp,
            pp: self.pp,
            tp: self.tp,
            zero: self.zero,
            accumulate: self.accumulate,
            schedule: self.schedule,
            stages_per_rank: self.stages_per_rank,
            ..Default::default()
        }
    }

    /// How a step of so many ranks is cut.
    ///
    /// # Errors
    /// `Invalid`, naming the arguments, for what cannot be cut evenly, or among ranks that would have nothing to do.
    pub(super) fn cut(&self, sizes: Sizes, ranks: usize) -> Result<Cut> {
        let mesh = Mesh::from_settings(&self.parallel(), ranks)?;
        let microbatches = self.microbatches.unwrap_or(ranks);
        if !microbatches.is_multiple_of(mesh.data_ranks()) {
            return Err(Error::invalid(format!(
                "--microbatches {microbatches} cannot be shared out evenly among dp x fsdp = {} ranks",
                mesh.data_ranks()
            )));
        }
        Cut::new(self.sequences.unwrap_or(ranks * sizes.batch), microbatches)
    }
}

fn parse_accumulate(text: &str) -> Result<Accumulate, String> {
    match text {
        "scatter" => Ok(Accumulate::Scatter),
        "full" => Ok(Accumulate::Full),
        other => Err(format!("{other:?}: choose scatter or full")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Shape;
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        split: SplitArguments,
    }

    fn split(line: &str) -> SplitArguments {
        let words = ["gradus"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().split
    }

    fn cut(line: &str, ranks: usize) -> Result<Cut> {
        split(line).cut(Shape::Gpt.sizes(), ranks)
    }

    #[test]
    fn what_is_not_said_is_as_in_settings() {
        assert_eq!(split("").parallel(), ParallelSettings::default());
        assert_eq!(cut("", 1).unwrap(), Cut { sequences: 8, microbatches: 1 });
        assert_eq!(cut("", 4).unwrap(), Cut { sequences: 32, microbatches: 4 });
    }

    #[test]
    fn every_key_has_its_argument() {
        let line = "--dp 2 --fsdp 3 --pp 4 --tp 5 --zero 1 --accumulate full --schedule interleaved --stages-per-rank 2";
        let expected = ParallelSettings {
            dp: 2,
            fsdp: 3,
            pp: 4,
            tp: 5,
            zero: 1,
            accumulate: Accumulate::Full,
            schedule: Kind::Interleaved,
            stages_per_rank: 2,
            ..Default::default()
        };
        assert_eq!(split(line).parallel(), expected);
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        assert_eq!(
            cut("--pp 2 --sequences 32 --microbatches 8", 4).unwrap(),
            Cut { sequences: 32, microbatches: 8 }
        );
        assert!(cut("--pp 3", 4).is_err());
        assert!(cut("--microbatches 3", 2).is_err());
        assert!(cut("--pp 2 --sequences 8 --microbatches 3", 2).is_err());
        assert!(cut("--schedule interleaved --pp 2", 2).is_err());
    }
}
