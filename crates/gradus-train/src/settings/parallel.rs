//! The `[parallel]` section: over which axes the ranks split the work, and how.

use crate::mesh::Mesh;
use crate::pipeline::Kind;
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// As many ranks as an axis may have: far more than a job starts, and few enough that products stay within 64 bits.
const LONGEST_AXIS: usize = 1 << 15;

/// When sharding ranks hand each other the gradients that they have computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Accumulate {
    /// After each microbatch, so that a rank keeps the gradients of its own shard only.
    #[default]
    Scatter,
    /// After a step's last microbatch: more memory, and fewer bytes sent.
    Full,
}

/// What gradients are sent and summed in over `dp` and `fsdp`; they are added up and kept in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum GradientFormat {
    /// As they are.
    #[default]
    F32,
    /// Rounded to the upper half: half the bytes.
    Bf16,
}

/// Over which axes the ranks split the work, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelSettings {
    /// Ranks that replicate the rest of the mesh and share out the microbatches; 0: what the other axes leave.
    pub dp: usize,
    /// Ranks that share out the microbatches too, and each keep a shard of the state.
    pub fsdp: usize,
    /// Ranks that the layers are cut among.
    pub pp: usize,
    /// Ranks that each layer is cut among.
    pub tp: usize,
    /// What is sharded over `fsdp`: 1 the optimizer's moments, 2 gradients too, 3 parameters too.
    pub zero: u8,
    /// `scatter` or `full`.
    pub accumulate: Accumulate,
    /// `f32` or `bf16`.
    pub gradients: GradientFormat,
    /// `gpipe`, `1f1b`, `interleaved` or `zero-bubble`.
    pub schedule: Kind,
    /// Chunks of layers that each rank of a pipeline holds; more than one with `interleaved`.
    pub stages_per_rank: usize,
}

impl Default for ParallelSettings {
    fn default() -> Self {
        Self {
            dp: 0,
            fsdp: 1,
            pp: 1,
            tp: 1,
            zero: 3,
            accumulate: Accumulate::default(),
            gradients: GradientFormat::default(),
            schedule: Kind::default(),
            stages_per_rank: 1,
        }
    }
}

impl ParallelSettings {
    /// The same without what makes no difference: how shards are kept where there are none, in which order a pipeline works
    /// where there is none, and what follows from the number of ranks.
    pub fn as_far_as_it_counts(&self) -> Self {
        let none = Self::default();
        let (zero, accumulate) =
            if self.fsdp > 1 { (self.zero, self.accumulate) } else { (none.zero, none.accumulate) };
        let schedule = if self.pp > 1 { self.schedule } else { none.schedule };
        Self { dp: none.dp, zero, accumulate, schedule, ..self.clone() }
    }

    /// Whether a rank keeps the gradients of its shard only.
    pub fn shards_gradients(&self) -> bool {
        self.fsdp > 1 && self.zero >= 2 && self.accumulate == Accumulate::Scatter
    }

    /// Whether a rank keeps the parameters of its shard only.
    pub fn shards_parameters(&self) -> bool {
        self.fsdp > 1 && self.zero >= 3
    }

    /// Chunks of layers that the model is cut into: one per stage.
    pub fn stages(&self) -> usize {
        self.pp * self.stages_per_rank
    }

    /// In which order a rank computes: without a pipeline forward and backward in turn, whatever the schedule.
    pub fn order(&self) -> Kind {
        if self.pp > 1 { self.schedule } else { Kind::OneForwardOneBackward }
    }

    /// Into how many microbatches a step's batch is to be cut at least, where it is as large: one for each data rank, and in
    /// a pipeline four for each of its ranks, so that at most a fifth of a rank's time is spent waiting.
    pub fn shares(&self, mesh: &Mesh) -> usize {
        mesh.data_ranks() * if mesh.pp > 1 { 4 * mesh.pp } else { 1 }
    }

    /// Whether the settings are possible for some model and some ranks.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self) -> Result<()> {
        for (key, size) in [("fsdp", self.fsdp), ("pp", self.pp), ("tp", self.tp)] {
            check_size(key, size, 1)?;
        }
        check_size("dp", self.dp, 0)?;
        check_size("stages_per_rank", self.stages_per_rank, 1)?;
        if !(1..=3).contains(&self.zero) {
            return Err(Error::invalid(format!(
                "parallel.zero is {}: choose 1 (moments are sharded), 2 (gradients too) or 3 (parameters too); sharding is \
                 off with parallel.fsdp 1",
                self.zero
            )));
        }
        if self.schedule == Kind::ZeroBubble && self.pp > 1 && self.shards_gradients() {
            return Err(Error::invalid(
                "parallel.schedule \"zero-bubble\" makes the gradients of a block in two passes, so they cannot be scattered with \
                 each microbatch: give parallel.accumulate \"full\", parallel.zero 1, or another schedule",
            ));
        }
        self.check_schedule()
    }

    fn check_schedule(&self) -> Result<()> {
        let (chunks, schedule) = (self.stages_per_rank, self.schedule.name());
        let mend = match (self.schedule == Kind::Interleaved, chunks) {
            (true, 1) => "interleaving needs at least 2 chunks per rank: give parallel.stages_per_rank 2",
            (false, 2..) => "only parallel.schedule \"interleaved\" has more than 1: choose it, or 1",
            (true, _) if self.pp == 1 => "there is nothing to interleave with parallel.pp 1: give at least 2",
            _ => return Ok(()),
        };
        Err(Error::invalid(format!(
            "parallel.schedule is \"{schedule}\" and parallel.stages_per_rank is {chunks}: {mend}"
        )))
    }
}

fn check_size(key: &str, size: usize, least: usize) -> Result<()> {
    if (least..=LONGEST_AXIS).contains(&size) {
        return Ok(());
    }
    Err(Error::invalid(format!("parallel.{key} is {size}: it must be from {least} to {LONGEST_AXIS}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_refused() {
        let good = ParallelSettings::default();
        good.check().unwrap();
        let interleaved = |pp, stages_per_rank| ParallelSettings {
            pp,
            stages_per_rank,
            schedule: Kind::Interleaved,
            ..good.clone()
        };
        interleaved(2, 3).check().unwrap();
        let bad = [
            ParallelSettings { fsdp: 0, ..good.clone() },
            ParallelSettings { pp: 0, ..good.clone() },
            ParallelSettings { tp: usize::MAX, ..good.clone() },
            ParallelSettings { dp: usize::MAX, ..good.clone() },
            ParallelSettings { zero: 0, ..good.clone() },
            ParallelSettings { zero: 4, ..good.clone() },
            ParallelSettings { pp: 2, stages_per_rank: 2, ..good.clone() },
            ParallelSettings { stages_per_rank: 0, ..good.clone() },
            interleaved(2, 1),
            interleaved(1, 2),
        ];
        for settings in bad {
            assert!(settings.check().is_err(), "{settings:?}");
        }
    }

    #[test]
    fn nothing_is_sharded_by_one_rank() {
        let of = |fsdp, zero| {
            let settings = ParallelSettings { fsdp, zero, ..Default::default() };
            [settings.shards_gradients(), settings.shards_parameters()]
        };
        assert_eq!(
            [of(1, 3), of(2, 1), of(2, 2), of(2, 3)],
            [[false; 2], [false; 2], [true, false], [true; 2]]
        );
        let full = ParallelSettings { fsdp: 2, accumulate: Accumulate::Full, ..Default::default() };
        assert_eq!([full.shards_gradients(), full.shards_parameters()], [false, true]);
    }
}
