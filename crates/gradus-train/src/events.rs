//! What a run tells the outside while it goes on: plain structs. Only the binary knows progress bars, files and
//! metrics systems; it watches through an [`Observer`].

use crate::exposed::Exposed;
use crate::mesh::Mesh;
use crate::reading::{DataRecord, DataWaits};
use gradus_store::MixtureProgress;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is known before the first step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunDescription {
    /// Ranks.
    pub world_size: usize,
    /// How they split the work.
    #[serde(default)]
    pub mesh: Mesh,
    /// Device of rank 0: kernels, threads, precision.
    pub device: String,
    /// How gradients travel: `alone`, `shared memory` or `TCP`.
    pub transport: String,
    /// Trainable elements, padding of the vocabulary not counted.
    pub parameters: usize,
    /// One line that names family and sizes.
    pub model: String,
    /// Tokens of one global step.
    pub tokens_per_step: usize,
    /// Tokens in the training split.
    pub train_tokens: u64,
    /// Tokens in the held-out split.
    pub held_out_tokens: u64,
    /// Mean bytes of text per token in the held-out split; 0 where unknown.
    pub bytes_per_token: f64,
    /// Matrix product peak of all ranks together, FLOP/s, measured at the start.
    pub peak_flops_per_s: f64,
    /// Step after which the run continues: 0 for a fresh one.
    pub resumed_from: u64,
    /// The datasets that are mixed, and how far the run is with each; empty where it reads one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureProgress>,
}

/// One optimizer step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Steps of the whole run; 0 until calibration has decided.
    pub total_steps: u64,
    /// Mean loss over the step's target tokens, nats.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate used.
    pub learning_rate: f64,
    /// Training tokens seen since the start of the run.
    pub tokens: u64,
    /// Tokens per second of all ranks, over this step.
    pub tokens_per_s: f64,
    /// FLOP/s of the model over the measured peak, 0 to 1.
    pub mfu: f64,
    /// Wall time of the step, seconds.
    pub step_s: f64,
    /// Time in which this rank's compute waited for others, seconds.
    pub exposed_communication_s: f64,
    /// The same by the axis that was waited for.
    #[serde(default)]
    pub exposed_by_axis_s: Exposed,
    /// Time in which this rank waited for data, seconds.
    #[serde(default)]
    pub data_wait_s: f64,
    /// The same by what was waited for.
    #[serde(default)]
    pub data_wait_by_cause_s: DataWaits,
    /// Memory held by this rank, bytes.
    pub memory_bytes: u64,
    /// Wall time since training began, seconds.
    pub elapsed_s: f64,
    /// Estimated wall time left, seconds; 0 while unknown.
    pub left_s: f64,
    /// Whether the step was skipped because its gradient was not finite.
    pub skipped: bool,
}

/// The held-out loss after a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Steps done.
    pub step: u64,
    /// Mean loss over the held-out targets that were evaluated, nats per token.
    pub loss: f64,
    /// The same per byte of text; 0 where the bytes are unknown.
    pub nats_per_byte: f64,
    /// Targets evaluated.
    pub targets: u64,
}

/// Ranks that the others wait for, step after step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Straggling {
    /// Steps done.
    pub step: u64,
    /// Who is waited for.
    pub ranks: Vec<usize>,
    /// What these ranks have in common of their places, such as `pp 1, dp 1`; empty where it is nothing.
    pub place: String,
    /// Their hosts, each once; empty where nobody knows.
    pub hosts: Vec<String>,
    /// Who waits.
    pub waiting: Vec<usize>,
    /// How much longer the slowest of them works in a step than the others, as a part of the step.
    pub lag: f64,
    /// The same in seconds.
    pub lag_s: f64,
}

/// Something that happened, on rank 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Before the first step.
    Started(RunDescription),
    /// The duration became a number of steps.
    Calibrated {
        /// Steps of the whole run.
        total_steps: u64,
    },
    /// After each step.
    Step(StepRecord),
    /// Some ranks are waited for.
    Straggling(Straggling),
    /// After each evaluation.
    Evaluation(EvaluationRecord),
    /// What was read so far: at each evaluation and at the end, unless data are local files.
    Data(DataRecord),
    /// Text that the model wrote.
    Sample {
        /// Steps done.
        step: u64,
        /// What it was given.
        prompt: String,
        /// What it wrote.
        text: String,
    },
    /// A checkpoint stands.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// The run is over.
    Finished {
        /// Steps done.
        step: u64,
        /// The folder that Hugging Face tools open; empty when interrupted.
        model: PathBuf,
        /// Whether a signal ended it before its last step.
        interrupted: bool,
    },
}

/// Whoever wants to know what happens in a run.
pub trait Observer {
    /// Called on rank 0, in order, from the training thread: be quick.
    fn observe(&mut self, event: &Event);
}
