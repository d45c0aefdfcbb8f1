//! The training loop and one file per technique.
//!
//! [`Trainer`] is the loop and [`Learner`] the step, to be read in one sitting; [`batches`] says which sequences a rank
//! learns from in a step, [`Optimizer`] updates the weights, [`schedule`] gives the learning rate, [`checkpoint`] saves and
//! resumes. How the work is split: [`Mesh`] says where a rank stands among the others, [`stages`] which blocks it has,
//! [`pipeline`] in which order it computes and what it sends, [`Sharding`] what it owns of a layout; `reduction` sums
//! gradients while the backward pass goes on, `gathering` brings sharded weights just before they are read, and
//! [`stragglers`] finds who is waited for. Training calls communicators only, never a transport.

mod axis;
pub mod batches;
mod calibration;
pub mod checkpoint;
mod conditions;
mod cut_matrices;
mod cuts;
mod evaluate;
pub mod events;
mod exposed;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gathering;
mod learner;
mod links;
pub mod mesh;
mod optimizer;
pub mod pipeline;
pub mod plan;
mod reading;
mod reduction;
mod sample;
pub mod schedule;
mod settings;
pub mod sharding;
mod stage;
pub mod stages;
pub mod stragglers;
mod tensor_parallel;
mod trainer;

pub use evaluate::evaluated_samples;
pub use events::{EvaluationRecord, Event, Observer, RunDescription, StepRecord, Straggling};
pub use exposed::Exposed;
pub use learner::{Computed, FirstWeights, Learner, LearnerSettings, Microbatches, Spent, StepResult};
pub use links::links_of_checkpoint;
pub use mesh::Mesh;
pub use optimizer::{Moments, Optimizer, Piece};
pub use reading::{BytesBySource, DataRecord, DataWaits};
pub use sample::SampleSettings;
pub use settings::{
    Accumulate, Adjustment, CheckpointSettings, GradientFormat, MuonSettings, OptimizerKind,
    OptimizerSettings, ParallelSettings, ScheduleKind, TrainSettings,
};
pub use sharding::Sharding;
pub use trainer::{Outcome, Parts, RunSettings, Trainer};
