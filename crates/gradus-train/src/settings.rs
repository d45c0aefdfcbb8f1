//! The `[train]`, `[parallel]`, `[optimizer]` and `[checkpoint]` sections: plain data, recorded with the run.

mod muon;
mod parallel;

pub use muon::{Adjustment, MuonSettings, OptimizerKind};
pub use parallel::{Accumulate, GradientFormat, ParallelSettings};

use gradus_compute::{Format, Precision};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a run goes: its length, its batches, its arithmetic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Optimizer steps; 0: from `duration`.
    pub steps: u64,
    /// Wall time, such as `150s`, turned into steps after 20 steps of calibration and recorded; empty: from `steps`.
    pub duration: String,
    /// `T`; 0: the model's context.
    pub sequence_length: usize,
    /// Sequences of one step, over all ranks.
    pub global_batch: usize,
    /// Sequences of one microbatch, the atom that ranks share out; 0: the largest with which the fullest rank has least.
    pub microbatch: usize,
    /// `bf16` (matrix products of bf16 operands, everything else f32) or `f32`.
    pub precision: Precision,
    /// Threads of each rank; 0: the host's processors over its ranks.
    pub threads: usize,
    /// Whether attention may cross from one document to the next within a sequence.
    pub cross_documents: bool,
    /// Whether blocks run forward again before they run backward: less memory, a third more work.
    pub recompute: bool,
    /// Gradients are summed in ranges of about this many bytes.
    pub bucket_bytes: usize,
    /// Whether links are measured at the start, and algorithms chosen by that; otherwise by figures of shared memory.
    pub measure_links: bool,
    /// Steps between evaluations on the held-out split; 0: only at the end.
    pub evaluate_every: u64,
    /// Held-out tokens of one evaluation at most; 0: all.
    pub evaluate_tokens: u64,
    /// Steps in a row that may be skipped because their gradient was not finite; one more ends the run.
    pub most_skipped: u64,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            steps: 0,
            duration: String::new(),
            sequence_length: 0,
            global_batch: 8,
            microbatch: 0,
            precision: Precision::Bf16,
            threads: 0,
            cross_documents: true,
            recompute: false,
            // 1 MiB goes through shared memory in about 0.1 ms: small enough to overlap, large enough to be efficient.
            bucket_bytes: 1 << 20,
            measure_links: false,
            evaluate_every: 0,
            evaluate_tokens: 65_536,
            most_skipped: 10,
        }
    }
}

impl TrainSettings {
    /// Sequences of one microbatch among `world_size` ranks (at least one).
    pub fn microbatch_sequences(&self, world_size: usize) -> usize {
        if self.microbatch > 0 {
            return self.microbatch;
        }
        let world_size = world_size.max(1);
        // No rank can have less than this; single sequences reach it, and so the search ends. It goes on beyond the first
        // sizes only where the batch is not much larger than the world squared.
        let even = self.global_batch.div_ceil(world_size);
        let is_even = |size: &usize| {
            let count = self.global_batch.div_ceil(*size);
            count >= world_size && size * count.div_ceil(world_size) == even
        };
        (1..=even).rev().find(is_even).unwrap_or(1)
    }

    /// Microbatches of one step.
    pub fn microbatches(&self, world_size: usize) -> usize {
        self.global_batch.div_ceil(self.microbatch_sequences(world_size))
    }

    /// Whether the settings are possible for `world_size` ranks.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self, world_size: usize) -> Result<()> {
        if world_size == 0 {
            return Err(no_ranks());
        }
        if (self.steps == 0) == self.duration.is_empty() {
            return Err(Error::invalid("give exactly one of train.steps and train.duration"));
        }
        if self.global_batch == 0 || self.bucket_bytes == 0 {
            return Err(Error::invalid("train.global_batch and train.bucket_bytes must be at least 1"));
        }
        if self.microbatch > self.global_batch {
            return Err(Error::invalid(format!(
                "train.microbatch is {} but train.global_batch is {}: a microbatch is a part of the global batch",
                self.microbatch, self.global_batch
            )));
        }
        let microbatches = self.microbatches(world_size);
        if world_size > microbatches {
            return Err(Error::invalid(format!(
                "{world_size} ranks share {microbatches} microbatches: use at most {microbatches} ranks, a smaller \
                 train.microbatch (now {}), or a larger train.global_batch (now {})",
                self.microbatch_sequences(world_size),
                self.global_batch
            )));
        }
        Ok(())
    }
}

/// What a world of nobody is told.
pub(crate) fn no_ranks() -> Error {
    Error::invalid("a run has at least one rank (launch.nproc_per_node)")
}

/// How the learning rate moves after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Warm up, stay, decay linearly over the last part (warmup-stable-decay; Hu et al. 2024).
    #[default]
    Wsd,
    /// Warm up, then half a cosine (Loshchilov and Hutter 2017).
    Cosine,
    /// Warm up, then stay.
    Constant,
}

/// The optimizer and the schedule of its learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerSettings {
    /// `adamw` or `muon`.
    pub kind: OptimizerKind,
    /// Learning rate after warm-up.
    pub learning_rate: f64,
    /// `wsd`, `cosine` or `constant`.
    pub schedule: ScheduleKind,
    /// Steps over which the learning rate rises from zero.
    pub warmup_steps: u64,
    /// Part of all steps over which `wsd` decays, at the end.
    pub decay_fraction: f64,
    /// Learning rate at the last step, as a part of the full one.
    pub final_fraction: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f32,
    /// AdamW's decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled decay of the matrices of linear layers; norms, biases and embeddings have none.
    pub weight_decay: f32,
    /// Largest norm of the gradient of all parameters together; 0: no clipping.
    pub clip_norm: f64,
    /// What matrices and tables are kept in: `f32`, or `bf16`, where each update is rounded at random. Vectors are f32.
    pub masters: Format,
    /// What `muon` adds.
    pub muon: MuonSettings,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::AdamW,
            learning_rate: 3e-3,
            schedule: ScheduleKind::Wsd,
            warmup_steps: 40,
            decay_fraction: 0.3,
            final_fraction: 0.0,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            masters: Format::F32,
            muon: MuonSettings::default(),
        }
    }
}

impl OptimizerSettings {
    /// Whether the settings are possible.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self) -> Result<()> {
        let part = |x: f64| (0.0..=1.0).contains(&x);
        let rules = [
            (
                "learning_rate",
                (self.learning_rate as f32).is_normal() && self.learning_rate > 0.0,
                "greater than 0, and a number that f32 has",
            ),
            ("decay_fraction", part(self.decay_fraction), "from 0 to 1"),
            ("final_fraction", part(self.final_fraction), "from 0 to 1"),
            ("beta1", (0.0..1.0).contains(&self.beta1), "from 0 up to, not including, 1"),
            ("beta2", (0.0..1.0).contains(&self.beta2), "from 0 up to, not including, 1"),
            ("epsilon", self.epsilon.is_finite() && self.epsilon > 0.0, "greater than 0"),
            ("weight_decay", self.weight_decay.is_finite() && self.weight_decay >= 0.0, "0 or greater"),
            ("clip_norm", self.clip_norm.is_finite() && self.clip_norm >= 0.0, "0 (off) or greater"),
        ];
        match rules.into_iter().chain(self.muon.rules()).find(|(_, holds, _)| !holds) {
            Some((key, _, rule)) => Err(Error::invalid(format!("optimizer.{key} must be {rule}"))),
            None => Ok(()),
        }
    }
}

/// When to save, and what to keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSettings {
    /// Steps between checkpoints; 0: only at the end and when interrupted.
    pub every: u64,
    /// Checkpoints to keep, the newest; at least 1.
    pub keep: usize,
    /// Resume even if world size, threads or kernels differ from the run's, which changes the bits from there on.
    pub allow_changes: bool,
}

impl CheckpointSettings {
    /// Whether the settings are possible.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self) -> Result<()> {
        match self.keep {
            0 => Err(Error::invalid("checkpoint.keep is 0: a run keeps at least its newest checkpoint")),
            _ => Ok(()),
        }
    }
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        Self { every: 0, keep: 2, allow_changes: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_world_up_to_the_batch_is_possible_and_as_even_as_can_be() {
        for global_batch in 1..40 {
            for world_size in 1..=global_batch {
                let settings = TrainSettings { global_batch, steps: 1, ..TrainSettings::default() };
                settings.check(world_size).unwrap();
                let (size, count) =
                    (settings.microbatch_sequences(world_size), settings.microbatches(world_size));
                assert!(count >= world_size && size * count.div_ceil(world_size) <= global_batch);
                // No other size gives the fullest rank less than single sequences do, which are the finest.
                assert_eq!(size * count.div_ceil(world_size), global_batch.div_ceil(world_size));
            }
            let alone = TrainSettings { global_batch, ..TrainSettings::default() };
            assert_eq!(alone.microbatch_sequences(1), global_batch);
        }
        let enormous = TrainSettings { global_batch: usize::MAX / 2, ..TrainSettings::default() };
        assert_eq!(
            enormous.microbatch_sequences(1),
            enormous.global_batch,
            "found at once, not by counting down"
        );
        assert!(TrainSettings { steps: 1, ..TrainSettings::default() }.check(0).is_err());
        assert!(TrainSettings { steps: 1, ..TrainSettings::default() }.check(9).is_err());
    }

    #[test]
    fn learning_rates_are_those_that_f32_has() {
        for learning_rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-50] {
            assert!(OptimizerSettings { learning_rate, ..Default::default() }.check().is_err());
        }
        for (momentum, iterations) in [(1.0, 5), (-0.1, 5), (f32::NAN, 5), (0.9, 0), (0.9, 100)] {
            let muon = MuonSettings { momentum, iterations, ..Default::default() };
            assert!(OptimizerSettings { muon, ..Default::default() }.check().is_err());
        }
        OptimizerSettings::default().check().unwrap();
        assert!(CheckpointSettings { keep: 0, ..Default::default() }.check().is_err());
    }
}
