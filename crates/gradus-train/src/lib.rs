//! The training loop and one file per technique.
//!
//! [`Trainer`] is the loop and [`Learner`] the step, to be read in one sitting; [`batches`] says which sequences a rank
//! learns from in a step, [`DataParallel`] sums gradients while the backward pass goes on, [`Optimizer`] updates the
//! weights, [`schedule`] gives the learning rate, [`checkpoint`] saves and resumes; [`pipeline`] says in which order the
//! ranks of a pipeline compute and what they send each other. Training calls communicators only, never a transport.

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
mod optimizer;
pub mod pipeline;
mod sample;
pub mod schedule;
mod settings;
mod trainer;

pub use data_parallel::{DataParallel, GradientSum};
pub use events::{EvaluationRecord, Event, Observer, RunDescription, StepRecord};
pub use learner::{Learner, LearnerSizes, Microbatches, StepResult};
pub use links::links_of_checkpoint;
pub use optimizer::Optimizer;
pub use sample::SampleSettings;
pub use settings::{
    Adjustment, CheckpointSettings, MuonSettings, OptimizerKind, OptimizerSettings, ScheduleKind,
    TrainSettings,
};
pub use trainer::{Outcome, Parts, RunSettings, Trainer};
