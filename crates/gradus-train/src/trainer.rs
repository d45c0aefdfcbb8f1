//! The loop: batches, gradients, their sum over the ranks, the vote, the update; now and then an evaluation and a
//! checkpoint.

use crate::batches::{self, BatchBuffer, DocumentRule};
use crate::calibration::{self, CALIBRATION_STEPS};
use crate::checkpoint::{self, TrainingState};
use crate::conditions;
use crate::evaluate::Evaluation;
use crate::events::{EvaluationRecord, Event, Observer, RunDescription, StepRecord};
use crate::learner::{FirstWeights, Learner, LearnerSettings, Microbatches, StepResult};
use crate::links;
use crate::mesh::Mesh;
use crate::sample::{SampleSettings, Sampler};
use crate::schedule;
use crate::settings::{CheckpointSettings, OptimizerSettings, ParallelSettings, TrainSettings};
use gradus_collective::Communicator;
use gradus_collective::algorithm::Nodes;
use gradus_compute::Device;
use gradus_error::{Error, Result};
use gradus_host::{Clock, processors};
use gradus_model::{Batch, ModelConfig, Transformer};
use gradus_store::{Dataset, Split, TokenSplit, Tokenizer};
use std::path::{Path, PathBuf};
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
    /// The ranks.
    pub communicator: Communicator,
    /// Which of them share a host.
    pub nodes: Nodes,
    /// What to learn from.
    pub dataset: Dataset,
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
    split: &'a TokenSplit,
    buffer: &'a mut BatchBuffer,
    rule: DocumentRule,
    seed: u64,
    step: u64,
    count: usize,
    /// Sequences of a microbatch, and of the whole step.
    sizes: (usize, usize),
}

impl Microbatches for StepBatches<'_> {
    fn count(&self) -> usize {
        self.count
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        let positions = batches::positions(self.step, index, self.sizes.0, self.sizes.1);
        let samples = batches::shuffled(self.seed, self.split.samples(), positions);
        self.buffer.load(self.split, samples, self.rule)?;
        Ok(self.buffer.batch())
    }
}

/// Times of one step on this rank, seconds.
#[derive(Clone, Copy)]
struct StepTimes {
    step_s: f64,
    waited_s: f64,
    elapsed_s: f64,
    /// Steps that `elapsed_s` covers, with the evaluations and checkpoints among them.
    steps: usize,
}

/// A run under way, on one rank.
pub struct Trainer {
    learner: Learner,
    dataset: Dataset,
    tokenizer: Option<Tokenizer>,
    sampler: Option<Sampler>,
    buffer: BatchBuffer,
    documents: DocumentRule,
    settings: RunSettings,
    clock: Arc<dyn Clock>,
    state: TrainingState,
    sequence: usize,
    peak_flops_per_s: f64,
}

impl Trainer {
    /// Takes all memory that the run will need, and resumes if asked to.
    ///
    /// # Errors
    /// `Invalid` for settings that do not go together, naming the key; `Exhausted` where memory does not suffice;
    /// `Corrupt` for a damaged checkpoint.
    pub fn new(parts: Parts, settings: RunSettings) -> Result<Self> {
        let Parts {
            config,
            first,
            device,
            mut communicator,
            nodes,
            dataset,
            tokenizer,
            clock,
            peak_flops_per_s,
        } = parts;
        let world_size = communicator.world_size();
        let mesh = Mesh::from_settings(&settings.parallel, world_size)?;
        settings.train.check(mesh.data_ranks())?;
        let sequence = sequence_length(&settings.train, &config, &dataset)?;
        let end_of_text = end_of_text(&settings.train, &dataset)?;
        let (buffer, documents) = BatchBuffer::new(sequence, end_of_text);
        let mut peak = [peak_flops_per_s];
        communicator.all_reduce(&mut peak)?;
        let links = links::settle(&mut communicator, &nodes, &settings)?;
        let shares = settings.parallel.shares(&mesh);
        let sequences = settings.train.microbatch_sequences(shares);
        mesh.check_microbatch(sequences, sequence)?;
        let own = LearnerSettings {
            optimizer: settings.optimizer.clone(),
            parallel: settings.parallel.clone(),
            rows: sequences * sequence,
            microbatches: settings.train.microbatches(shares),
            recompute: settings.train.recompute,
            bucket_bytes: settings.train.bucket_bytes,
        };
        let described = device.describe();
        let mut learner = Learner::new(config, &device, communicator, own)?;
        if settings.resume.is_none() {
            let begun = learner.begin_with(&first);
            begun.inspect_err(|error| learner.communicator().give_up(error))?;
        }
        let sampler = sampler(&mut learner, tokenizer.as_ref(), &settings)?;
        let transport = learner.communicator().transport_name();
        let sums =
            if learner.shares_gradients() { format!("{transport}, in place") } else { transport.to_owned() };
        let state = TrainingState {
            format: TrainingState::FORMAT,
            step: 0,
            updates: 0,
            total_steps: settings.train.steps,
            tokens: 0,
            skipped: 0,
            conditions: conditions::of_run(
                &settings,
                (world_size, &sums, links),
                &described,
                &dataset.digest(),
            ),
        };
        let mut trainer = Self {
            learner,
            dataset,
            tokenizer,
            sampler,
            buffer,
            documents,
            settings,
            clock,
            state,
            sequence,
            peak_flops_per_s: peak[0],
        };
        if let Some(folder) = trainer.settings.resume.clone() {
            let resumed = trainer.resume(&folder);
            trainer.tell_of_failure(resumed)?;
        }
        let finite = trainer.check_weights();
        trainer.tell_of_failure(finite)?;
        let common = trainer.check_common_start();
        trainer.tell_of_failure(common)?;
        Ok(trainer)
    }

    /// Whether there is anything to learn from: of weights that are not finite no gradient is.
    fn check_weights(&self) -> Result<()> {
        let Some(tensor) = self.learner.not_finite() else { return Ok(()) };
        let origin = match &self.settings.resume {
            Some(folder) => folder.display().to_string(),
            None => "model.from".to_owned(),
        };
        Err(Error::invalid(format!(
            "{tensor} has values that are not finite: begin with other weights ({origin})"
        )))
    }

    /// Whether all ranks stand at the same step with the same weights: folders may differ from host to host.
    fn check_common_start(&mut self) -> Result<()> {
        let own = [self.state.step, self.state.updates, self.state.total_steps];
        let mut first: Vec<u8> = own.iter().flat_map(|number| number.to_le_bytes()).collect();
        let sent = first.clone();
        self.learner.communicator().broadcast(0, &mut first)?;
        if first != sent {
            let rank = self.learner.communicator().rank();
            return Err(Error::invalid(format!(
                "rank {rank} stands at step {}, rank 0 elsewhere: resume all ranks from the same checkpoint",
                self.state.step
            )));
        }
        self.learner.check_agreement()
    }

    /// The same result; a failure that happened outside of a collective is told to the other ranks.
    fn tell_of_failure<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.learner.communicator().give_up(error);
        }
        result
    }

    fn resume(&mut self, folder: &Path) -> Result<()> {
        let saved = checkpoint::load(folder, &mut self.learner)?;
        if !self.settings.checkpoint.allow_changes {
            conditions::check_unchanged(&saved.conditions, &self.state.conditions)
                .map_err(|error| error.within(format!("resuming from {}", folder.display())))?;
        }
        let conditions = std::mem::take(&mut self.state.conditions);
        let steps = self.settings.train.steps;
        self.state = TrainingState { conditions, ..saved };
        if steps > 0 {
            self.state.total_steps = steps;
        }
        Ok(())
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
            let (start, waited) = (self.clock.now(), self.learner.communicator().counters().waited_ns);
            let (result, learning_rate) = self.step(stop.load(Ordering::Relaxed))?;
            interrupted = result.asked_to_stop;
            let step_s = (self.clock.now() - start).as_secs_f64();
            step_times.push(step_s);
            let waited = self.learner.communicator().counters().waited_ns - waited;
            let times = StepTimes {
                step_s,
                waited_s: waited as f64 * 1e-9,
                elapsed_s: (self.clock.now() - begin).as_secs_f64(),
                steps: step_times.len(),
            };
            self.report_step(observer, &result, learning_rate, times);
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
        let mut microbatches = StepBatches {
            split: self.dataset.split(Split::Train),
            buffer: &mut self.buffer,
            rule: self.documents,
            seed: self.settings.seed,
            step,
            count: train.microbatches(shares),
            sizes: (train.microbatch_sequences(shares), train.global_batch),
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

    /// A run that is over before its learning rate has risen is seldom what somebody wants.
    fn warn_of_long_warmup(&mut self) {
        let (warmup, total) = (self.settings.optimizer.warmup_steps, self.state.total_steps);
        if total > 0 && warmup >= total && self.learner.communicator().rank() == 0 {
            tracing::warn!(
                "the run has {total} steps, all of them warm-up (optimizer.warmup_steps is {warmup}): the learning \
                 rate never reaches optimizer.learning_rate"
            );
        }
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

    fn evaluate_and_save_when_due(&mut self, observer: &mut dyn Observer, interrupted: bool) -> Result<()> {
        let step = self.state.step;
        let last = interrupted || step == self.state.total_steps;
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        if due(self.settings.train.evaluate_every) || (last && !interrupted) {
            self.evaluate(observer)?;
        }
        if due(self.settings.checkpoint.every) || last {
            self.save(observer)?;
        }
        Ok(())
    }

    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let split = self.dataset.split(Split::HeldOut);
        if split.samples() == 0 {
            return Ok(());
        }
        let shares = self.settings.parallel.shares(self.learner.mesh());
        let mut evaluation = Evaluation {
            split,
            buffer: &mut self.buffer,
            batch: self.settings.train.microbatch_sequences(shares),
            sequence: self.sequence,
            rule: self.documents,
            tokens: self.settings.train.evaluate_tokens,
        };
        let sum = self.learner.evaluate(&mut evaluation)?;
        let bytes_per_token = split.bytes_per_token().unwrap_or(0.0);
        observer.observe(&Event::Evaluation(EvaluationRecord {
            step: self.state.step,
            loss: sum.mean(),
            nats_per_byte: if bytes_per_token > 0.0 { sum.mean() / bytes_per_token } else { 0.0 },
            targets: sum.targets,
        }));
        Ok(())
    }

    /// Rank 0 saves, once all ranks have found that they hold the same bits; the others wait for it.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.learner.check_agreement()?;
        if self.learner.communicator().rank() == 0 {
            self.write_checkpoint(observer)?;
        } else {
            self.learner.serve()?;
        }
        self.learner.communicator().patient_barrier()
    }

    fn write_checkpoint(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let folder = checkpoint::folder_of(&self.settings.folder, self.state.step);
        checkpoint::save(&folder, &mut self.learner, self.tokenizer.as_ref(), &self.state)?;
        checkpoint::prune(&self.settings.folder, self.settings.checkpoint.keep)?;
        observer.observe(&Event::Checkpoint { step: self.state.step, path: folder });
        Ok(())
    }

    fn finish(&mut self, observer: &mut dyn Observer, interrupted: bool) -> Result<Outcome> {
        let mut model = PathBuf::new();
        if self.learner.communicator().rank() > 0 && !interrupted {
            self.learner.serve()?;
        } else if !interrupted {
            model = self.settings.folder.join("model");
            checkpoint::export_learned(&model, &mut self.learner, self.tokenizer.as_ref())?;
            self.write_sample(observer)?;
        }
        self.learner.communicator().patient_barrier()?;
        observer.observe(&Event::Finished { step: self.state.step, model, interrupted });
        let checkpoint = checkpoint::folder_of(&self.settings.folder, self.state.step);
        Ok(Outcome { step: self.state.step, interrupted, checkpoint })
    }

    fn write_sample(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if let (Some(sampler), Some(tokenizer)) = (&mut self.sampler, &self.tokenizer) {
            let model = self.learner.whole_model().expect("who samples has the whole model");
            let (prompt, text) = sampler.write(model, tokenizer)?;
            observer.observe(&Event::Sample { step: self.state.step, prompt, text });
        }
        Ok(())
    }

    fn describe(&mut self) -> RunDescription {
        let (train, held_out) = (self.dataset.split(Split::Train), self.dataset.split(Split::HeldOut));
        let transport = self.learner.communicator().transport_name().to_owned();
        RunDescription {
            world_size: self.learner.mesh().world_size(),
            mesh: self.learner.mesh().describe(),
            device: self.learner.device().describe(),
            transport,
            parameters: self.learner.config().parameter_count(),
            model: self.learner.config().summary(),
            tokens_per_step: self.settings.train.global_batch * self.sequence,
            train_tokens: train.tokens(),
            held_out_tokens: held_out.tokens(),
            bytes_per_token: held_out.bytes_per_token().unwrap_or(0.0),
            peak_flops_per_s: self.peak_flops_per_s,
            resumed_from: self.state.step,
        }
    }

    fn report_step(
        &mut self,
        observer: &mut dyn Observer,
        result: &StepResult,
        learning_rate: f64,
        times: StepTimes,
    ) {
        let tokens_per_s = result.loss.targets as f64 / times.step_s;
        let flops = self.learner.config().flops_per_token(self.sequence) * tokens_per_s;
        let left_steps = self.state.total_steps.saturating_sub(self.state.step) as f64;
        let known = self.state.total_steps > 0;
        observer.observe(&Event::Step(StepRecord {
            step: self.state.step,
            total_steps: self.state.total_steps,
            loss: result.loss.mean(),
            gradient_norm: result.gradient_norm,
            learning_rate,
            tokens: self.state.tokens,
            tokens_per_s,
            mfu: if self.peak_flops_per_s > 0.0 { flops / self.peak_flops_per_s } else { 0.0 },
            step_s: times.step_s,
            exposed_communication_s: times.waited_s,
            memory_bytes: processors::resident_bytes().unwrap_or(0),
            elapsed_s: times.elapsed_s,
            left_s: if known { left_steps * times.elapsed_s / times.steps as f64 } else { 0.0 },
            skipped: result.skipped,
        }));
    }

    /// The whole model as it is now, where this rank has it.
    pub fn model(&self) -> Option<&Transformer> {
        self.learner.whole_model()
    }
}

/// Who writes samples: rank 0, if they are asked for and it has the whole model.
fn sampler(
    learner: &mut Learner,
    tokenizer: Option<&Tokenizer>,
    settings: &RunSettings,
) -> Result<Option<Sampler>> {
    let Some(tokenizer) = tokenizer.filter(|_| settings.sample.tokens > 0) else { return Ok(None) };
    if learner.communicator().rank() > 0 {
        return Ok(None);
    }
    match learner.whole_model() {
        Some(model) => Sampler::new(model, tokenizer, &settings.sample, settings.seed),
        None => {
            tracing::warn!(
                "no rank has the whole model, so none writes samples: `gradus generate` does, from a checkpoint"
            );
            Ok(None)
        }
    }
}

/// `T`: as set, or the model's context, as the data were packed.
fn sequence_length(train: &TrainSettings, model: &ModelConfig, dataset: &Dataset) -> Result<usize> {
    let context = model.context;
    let sequence = if train.sequence_length > 0 { train.sequence_length } else { context };
    if sequence > context {
        return Err(Error::invalid(format!(
            "train.sequence_length is {sequence}, longer than model.context ({context})"
        )));
    }
    if dataset.sequence_length() != sequence {
        return Err(Error::invalid(format!(
            "the data are packed into sequences of {} tokens, the run asks for {sequence}: prepare them again",
            dataset.sequence_length()
        )));
    }
    if dataset.split(Split::Train).samples() == 0 {
        return Err(Error::invalid("the training split holds no whole sequence: give more text"));
    }
    Ok(sequence)
}

/// The token after which attention must not look back, where documents are kept apart.
fn end_of_text(train: &TrainSettings, dataset: &Dataset) -> Result<Option<u32>> {
    if train.cross_documents {
        return Ok(None);
    }
    let known = dataset.end_of_text().ok_or_else(|| {
        Error::invalid(
            "train.cross_documents is false, but the data name no end-of-text token: set it to true",
        )
    })?;
    Ok(Some(known))
}
