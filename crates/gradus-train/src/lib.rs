//! The training loop and one file per technique.
//!
//! [`Trainer`] is the loop and [`Learner`] the step, to be read in one sitting; [`batches`] says which sequences a rank
//! learns from in a step, [`DataParallel`] sums gradients while the backward pass goes on, [`Optimizer`] updates the
//! weights, [`schedule`] gives the learning rate, [`checkpoint`] saves and resumes; [`Mesh`] says where a rank stands
//! among the others, and [`Sharding`] what it owns of a layout. Training calls communicators only, never a transport.

pub mod batches;
mod calibration;
pub mod checkpoint;
mod conditions;
mod data_parallel;
mod evaluate;
pub mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gradients;
mod learner;
mod links;
pub mod mesh;
mod optimizer;
pub mod pipeline;
pub mod plan;
mod sample;
pub mod schedule;
mod settings;
pub mod sharding;
pub mod stages;
mod trainer;

pub use data_parallel::{DataParallel, GradientSum};
pub use events::{EvaluationRecord, Event, Observer, RunDescription, StepRecord};
pub use learner::{Learner, LearnerSizes, Microbatches, StepResult};
pub use links::links_of_checkpoint;
pub use mesh::Mesh;
pub use optimizer::{Moments, Optimizer, Piece};
pub use sample::SampleSettings;
pub use settings::{
    Accumulate, Adjustment, CheckpointSettings, GradientFormat, MuonSettings, OptimizerKind,
    OptimizerSettings, ParallelSettings, ScheduleKind, ScheduleName, TrainSettings,
};
pub use sharding::Sharding;
pub use trainer::{Outcome, Parts, RunSettings, Trainer};
