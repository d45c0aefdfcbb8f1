//! The loop: batches, gradients, their sum over the ranks, the vote, the update; now and then an evaluation and a
//! checkpoint.

mod opening;
mod reporting;
mod saving;

use crate::batches::{self, BatchBuffer, DocumentRule, Loaded};
use crate::calibration::{self, CALIBRATION_STEPS};
use crate::checkpoint::TrainingState;
use crate::events::{Event, Observer};
use crate::learner::{FirstWeights, Learner, Microbatches, StepResult};
use crate::reading::DataWaits;
use crate::sample::{SampleSettings, Sampler};
use crate::schedule;
use crate::settings::{CheckpointSettings, OptimizerSettings, ParallelSettings, TrainSettings};
use crate::stragglers::Stragglers;
use gradus_collective::Communicator;
use gradus_collective::algorithm::Nodes;
use gradus_compute::Device;
use gradus_error::{Error, Result};
use gradus_host::Clock;
use gradus_model::{Batch, ModelConfig, Transformer};
use gradus_store::{DataSummary, OrderSettings, Tokenizer, Tokens};
use reporting::StepTimes;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Plain settings of a run.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// Length, batches, arithmetic.
    pub train: TrainSettings,
    /// Over which axes the ranks split the work.
    pub parallel: ParallelSettings,
    /// The optimizer and its schedule.
    pub optimizer: OptimizerSettings,
    /// When to save.
    pub checkpoint: CheckpointSettings,
    /// What to let the model write.
    pub sample: SampleSettings,
    /// `train.duration` in seconds; 0 where steps are given.
    pub duration_s: f64,
    /// Of everything random.
    pub seed: u64,
    /// In which order samples come.
    pub order: OrderSettings,
    /// Where checkpoints and the model go.
    pub folder: PathBuf,
    /// A checkpoint to go on from.
    pub resume: Option<PathBuf>,
}

/// What a run is made of.
pub struct Parts {
    /// Kind and sizes of the model.
    pub config: ModelConfig,
    /// What it begins with, where nothing is resumed.
    pub first: FirstWeights,
    /// What this rank computes on.
    pub device: Arc<dyn Device>,
    /// Another like it, on which rank 0 measures what the ends of a model cost, to cut stages by it; dropped afterwards.
    pub measure_on: Option<Arc<dyn Device>>,
    /// Bytes of memory that this rank may take.
    pub memory_bytes: u64,
    /// The ranks.
    pub communicator: Communicator,
    /// Which of them share a host.
    pub nodes: Nodes,
    /// What a person calls the host of each; empty where nobody knows.
    pub hosts: Vec<String>,
    /// What to learn from.
    pub data: DataSummary,
    /// Its samples in the order of the run.
    pub tokens: Box<dyn Tokens>,
    /// What is held out, in the order of evaluations, each of which reads [`crate::evaluated_samples`]; none if nothing is.
    pub held_out: Option<Box<dyn Tokens>>,
    /// Its tokenizer; `None` for data that came as tokens.
    pub tokenizer: Option<Tokenizer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Matrix product peak of this rank, FLOP/s, as measured.
    pub peak_flops_per_s: f64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Steps done.
    pub step: u64,
    /// Whether it was asked to stop before its last step.
    pub interrupted: bool,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// The microbatches of one step of a run.
struct StepBatches<'a> {
    tokens: &'a mut dyn Tokens,
    loaded: &'a mut Loaded,
    rule: DocumentRule,
    step: u64,
    count: usize,
    /// Sequences of a microbatch, and of the whole step.
    sizes: (usize, usize),
    /// `T`.
    sequence: usize,
}

impl Microbatches for StepBatches<'_> {
    fn count(&self) -> usize {
        self.count
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        let positions = batches::positions(self.step, index, self.sizes.0, self.sizes.1);
        let make = || BatchBuffer::new(self.sequence);
        self.loaded.get(index, make, |buffer| buffer.load(self.tokens, positions, self.rule))
    }

    fn tokens(&mut self, index: usize) -> Result<usize> {
        let positions = batches::positions(self.step, index, self.sizes.0, self.sizes.1);
        Ok((positions.end - positions.start) as usize * self.sequence)
    }
}

/// A run under way, on one rank.
pub struct Trainer {
    learner: Learner,
    data: DataSummary,
    tokens: Box<dyn Tokens>,
    held_out: Option<Box<dyn Tokens>>,
    evaluations: u64,
    tokenizer: Option<Tokenizer>,
    sampler: Option<Sampler>,
    loaded: Loaded,
    buffer: BatchBuffer,
    documents: DocumentRule,
    settings: RunSettings,
    clock: Arc<dyn Clock>,
    state: TrainingState,
    sequence: usize,
    peak_flops_per_s: f64,
    stragglers: Stragglers,
    hosts: Vec<String>,
}

impl Trainer {
    /// The same result; a failure that happened outside of a collective is told to the other ranks.
    fn tell_of_failure<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.learner.communicator().give_up(error);
        }
        result
    }

    /// Trains until the last step, or until `stop` is set on any rank; then saves.
    ///
    /// # Errors
    /// The first failure: of a peer, of the disk, or too many steps without a finite gradient.
    pub fn run(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let outcome = self.run_to_the_end(observer, stop);
        self.tell_of_failure(outcome)
    }

    fn run_to_the_end(&mut self, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        observer.observe(&Event::Started(self.describe()));
        self.write_sample(observer)?;
        self.warn_of_long_warmup();
        self.learner.communicator().patient_barrier()?;
        let begin = self.clock.now();
        let mut step_times = Vec::new();
        let mut interrupted = false;
        while !interrupted && (self.state.total_steps == 0 || self.state.step < self.state.total_steps) {
            let (start, exposed, waits) = (self.clock.now(), self.learner.exposed(), self.tokens.waits());
            let (result, learning_rate) = self.step(stop.load(Ordering::Relaxed))?;
            interrupted = result.asked_to_stop;
            let step_s = (self.clock.now() - start).as_secs_f64();
            step_times.push(step_s);
            let times = StepTimes {
                step_s,
                exposed: self.learner.exposed().since(&exposed),
                data_waits: DataWaits::between(&waits, &self.tokens.waits()),
                elapsed_s: (self.clock.now() - begin).as_secs_f64(),
                steps: step_times.len(),
            };
            self.report_step(observer, &result, learning_rate, times);
            self.report_stragglers(observer, step_s);
            if self.state.total_steps == 0 && step_times.len() >= CALIBRATION_STEPS {
                self.decide_length(&step_times)?;
                observer.observe(&Event::Calibrated { total_steps: self.state.total_steps });
            }
            self.check_skipped()?;
            self.evaluate_and_save_when_due(observer, interrupted)?;
        }
        self.finish(observer, interrupted)
    }

    /// One step, and what it changes in the state.
    fn step(&mut self, stop: bool) -> Result<(StepResult, f64)> {
        self.state.step += 1;
        let (train, step) = (&self.settings.train, self.state.step);
        let learning_rate = schedule::learning_rate(&self.settings.optimizer, step, self.state.total_steps);
        let shares = self.settings.parallel.shares(self.learner.mesh());
        self.loaded.clear();
        let mut microbatches = StepBatches {
            tokens: self.tokens.as_mut(),
            loaded: &mut self.loaded,
            rule: self.documents,
            step,
            count: train.microbatches(shares),
            sizes: (train.microbatch_sequences(shares), train.global_batch),
            sequence: self.sequence,
        };
        let result = self.learner.step(&mut microbatches, learning_rate, stop)?;
        self.state.tokens += result.loss.targets;
        self.state.updates = self.learner.updates();
        self.state.skipped = if result.skipped { self.state.skipped + 1 } else { 0 };
        Ok((result, learning_rate))
    }

    /// Rank 0 turns the duration into steps and tells the others.
    fn decide_length(&mut self, step_times: &[f64]) -> Result<()> {
        let already = self.state.step - step_times.len() as u64;
        let total = already + calibration::total_steps(self.settings.duration_s, step_times);
        let mut bytes = total.max(self.state.step).to_le_bytes();
        self.learner.communicator().broadcast(0, &mut bytes)?;
        self.state.total_steps = u64::from_le_bytes(bytes);
        self.warn_of_long_warmup();
        Ok(())
    }

    /// Too many steps in a row without an update, or a run that ends without a single one, is a failure.
    fn check_skipped(&self) -> Result<()> {
        let over = self.state.step == self.state.total_steps && self.state.updates == 0;
        if self.state.skipped <= self.settings.train.most_skipped && !over {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the gradient was not finite in {} steps in a row, up to step {}: lower optimizer.learning_rate (now {}), \
             lengthen optimizer.warmup_steps, or use train.precision \"f32\"",
            self.state.skipped, self.state.step, self.settings.optimizer.learning_rate
        )))
    }

    /// The whole model as it is now, where this rank has it.
    pub fn model(&self) -> Option<&Transformer> {
        self.learner.whole_model()
    }
}
