//! `gradus plan pipeline`: how long ranks wait under each schedule, and how much they hold meanwhile. Nothing is run.

mod lines;
mod picture;
mod show;

use crate::logging;
use anyhow::Result;
use gradus_error::{Error, IoContext};
use gradus_host::disk::write_atomically;
use gradus_train::pipeline::{self, Costs, Kind, Schedule, Shape, Sharing, StageCosts, Timeline};
use std::path::{Path, PathBuf};

/// More ranks or microbatches are a slip of the finger.
const MOST: usize = 1 << 14;
/// Passes of one schedule that are laid out within a second or two.
const MOST_PASSES: usize = 1 << 22;
/// Stages for each rank when the command line does not say.
const USUAL_STAGES: usize = 2;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct PlanPipelineArguments {
    /// Ranks that share the model's layers.
    #[arg(long)]
    pub ranks: usize,
    /// Microbatches of a step.
    #[arg(long)]
    pub microbatches: usize,
    /// gpipe, 1f1b, interleaved or zero-bubble; all of them if not given.
    #[arg(long, value_parser = |text: &str| Kind::named(text))]
    pub schedule: Option<Kind>,
    /// Stages that each rank has when they are interleaved; 2 if not given.
    #[arg(long)]
    pub stages_per_rank: Option<usize>,
    /// How long a rank's layers take for a microbatch's forward pass, in any unit.
    #[arg(long, default_value_t = 1.0)]
    pub forward: f64,
    /// How long they take for the gradient of their input.
    #[arg(long, default_value_t = 1.0)]
    pub backward_input: f64,
    /// How long they take for the gradients of their weights.
    #[arg(long, default_value_t = 1.0)]
    pub backward_weight: f64,
    /// How long a microbatch is on its way from one rank to the next.
    #[arg(long, default_value_t = 0.0)]
    pub transfer: f64,
    /// Draw the schedules into this file.
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// One schedule, laid out.
struct Case {
    kind: Kind,
    schedule: Schedule,
    timeline: Timeline,
    /// What the paper expects.
    expected_bubble: f64,
    /// For each rank: passes whose activations it holds at once at most.
    peaks: Vec<usize>,
    /// For each rank: what its memory must have room for, counted alike.
    slots: Vec<usize>,
}

/// Prints what schedules take, and draws them.
///
/// # Errors
/// `Invalid`, naming the argument, for pipelines and costs that cannot be; the system's failure to write the drawing.
pub fn run(arguments: &PlanPipelineArguments) -> Result<()> {
    let cases = arguments.cases()?;
    if let Some(path) = &arguments.svg {
        write(path, &picture::draw(&cases)?)?;
    }
    if arguments.json {
        logging::print(serde_json::to_string_pretty(&show::Report::new(arguments, &cases))?)?;
        return Ok(());
    }
    for line in show::table(arguments, &cases) {
        logging::print(line)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    write_atomically(path, |out| {
        out.write_all(text.as_bytes()).context(|| format!("cannot write {}", path.display()))
    })
}

impl PlanPipelineArguments {
    fn cases(&self) -> Result<Vec<Case>, Error> {
        self.check()?;
        match self.schedule {
            Some(kind) => Ok(vec![self.case(kind)?]),
            None => Kind::ALL.into_iter().map(|kind| self.case(kind)).collect(),
        }
    }

    fn case(&self, kind: Kind) -> Result<Case, Error> {
        let shape = self.shape(kind);
        let schedule = kind.generate(shape)?;
        let stage = self.stage(shape);
        let timeline = pipeline::simulate(&schedule, &Costs::uniform(shape, stage))?;
        let peaks = pipeline::check(&schedule)?;
        let programs = pipeline::lower(&schedule, Sharing::Rank)?;
        let slots = programs.iter().map(|program| program.most_slots).collect();
        let expected_bubble = kind.expected_bubble(shape, stage);
        Ok(Case { kind, schedule, timeline, expected_bubble, peaks, slots })
    }

    /// Interleaved stages are several for each rank; with the other schedules a person who asks for several is told.
    fn shape(&self, kind: Kind) -> Shape {
        let chunks_per_rank = match (kind, self.schedule) {
            (Kind::Interleaved, _) => self.stages_per_rank.unwrap_or(USUAL_STAGES),
            (_, None) => 1,
            (_, Some(_)) => self.stages_per_rank.unwrap_or(1),
        };
        Shape { ranks: self.ranks, chunks_per_rank, microbatches: self.microbatches }
    }

    /// A stage is its share of a rank's layers.
    fn stage(&self, shape: Shape) -> StageCosts {
        let share = |cost: f64| cost / shape.chunks_per_rank as f64;
        StageCosts {
            forward: share(self.forward),
            backward_input: share(self.backward_input),
            backward_weight: share(self.backward_weight),
            transfer: self.transfer,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let stages = self.stages_per_rank.unwrap_or(USUAL_STAGES);
        for (name, count) in
            [("ranks", self.ranks), ("microbatches", self.microbatches), ("stages-per-rank", stages)]
        {
            if !(1..=MOST).contains(&count) {
                return Err(Error::invalid(format!("--{name} {count}: choose 1 to {MOST}")));
            }
        }
        // Each at most 2^14, so that the product has room.
        if 3 * self.ranks * self.microbatches * stages > MOST_PASSES {
            return Err(Error::invalid(format!(
                "--ranks {} with --microbatches {}: choose fewer, of all passes at most {MOST_PASSES}",
                self.ranks, self.microbatches
            )));
        }
        self.check_costs()
    }

    fn check_costs(&self) -> Result<(), Error> {
        let costs = [
            ("forward", self.forward),
            ("backward-input", self.backward_input),
            ("backward-weight", self.backward_weight),
            ("transfer", self.transfer),
        ];
        for (name, cost) in costs {
            if !(0.0..=1e12).contains(&cost) {
                return Err(Error::invalid(format!("--{name} {cost}: choose 0 to 1e12")));
            }
        }
        match costs[..3].iter().all(|(_, cost)| *cost == 0.0) {
            true => {
                Err(Error::invalid("--forward 0, --backward-input 0, --backward-weight 0: a pass takes time"))
            }
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: PlanPipelineArguments,
    }

    /// What the command line says.
    pub(super) fn arguments(line: &str) -> PlanPipelineArguments {
        let words = ["gradus"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().arguments
    }

    #[test]
    fn impossible_input_is_named() {
        for (line, culprit) in [
            ("--ranks 0 --microbatches 1", "--ranks 0"),
            ("--ranks 1 --microbatches 0", "--microbatches 0"),
            ("--ranks 18446744073709551615 --microbatches 1", "--ranks"),
            ("--ranks 16384 --microbatches 16384", "--microbatches 16384"),
            ("--ranks 2 --microbatches 2 --stages-per-rank 0", "--stages-per-rank 0"),
            ("--ranks 2 --microbatches 2 --stages-per-rank 1", "stages_per_rank is 1"),
            ("--ranks 2 --microbatches 2 --stages-per-rank 2 --schedule 1f1b", "stages_per_rank is 2"),
            ("--ranks 2 --microbatches 2 --forward NaN", "--forward NaN"),
            ("--ranks 2 --microbatches 2 --transfer=-1", "--transfer -1"),
            ("--ranks 2 --microbatches 2 --forward 0 --backward-input 0 --backward-weight 0", "takes time"),
        ] {
            let error = arguments(line).cases().map(drop).unwrap_err();
            let named = error.to_string().contains(culprit);
            assert!(*error.kind() == gradus_error::Kind::Invalid && named, "{line}: {error}");
        }
        let unknown = ["gradus", "--ranks", "1", "--microbatches", "1", "--schedule", "2f2b"];
        assert!(Line::try_parse_from(unknown).is_err());
    }

    #[test]
    fn interleaving_parts_a_rank_s_time_not_its_transfers() {
        let arguments = arguments("--ranks 2 --microbatches 2 --forward 3 --transfer 1 --stages-per-rank 3");
        let shape = arguments.shape(Kind::Interleaved);
        assert_eq!(shape.chunks_per_rank, 3);
        assert_eq!((arguments.stage(shape).forward, arguments.stage(shape).transfer), (1.0, 1.0));
        assert_eq!(arguments.shape(Kind::GPipe).chunks_per_rank, 1);
    }
}
