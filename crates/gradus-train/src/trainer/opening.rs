//! How a run is opened: what its parts must fit, what it takes memory for, where it goes on.

use super::{Parts, RunSettings, Trainer};
use crate::batches::{BatchBuffer, DocumentRule, Loaded};
use crate::checkpoint::{self, TrainingState};
use crate::conditions::{self, Conditions};
use crate::cuts::{self, Work};
use crate::learner::{Learner, LearnerSettings};
use crate::links;
use crate::mesh::Mesh;
use crate::plan;
use crate::sample::Sampler;
use crate::settings::TrainSettings;
use crate::stragglers::{Rule, Stragglers};
use gradus_collective::Communicator;
use gradus_compute::Device;
use gradus_error::{Error, Result};
use gradus_model::ModelConfig;
use gradus_store::{DataSummary, Tokenizer};
use std::ops::Range;
use std::path::Path;

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
            measure_on,
            memory_bytes,
            mut communicator,
            nodes,
            hosts,
            data,
            tokens,
            held_out,
            tokenizer,
            clock,
            ..
        } = parts;
        let mesh = Mesh::from_settings(&settings.parallel, communicator.world_size())?;
        settings.train.check(mesh.data_ranks())?;
        let sequence = sequence_length(&settings.train, &config, &data)?;
        let documents = DocumentRule::new(end_of_text(&settings.train, &data)?);
        let mut own = learner_settings(&settings, &mesh, sequence)?;
        warn_of_waiting(&communicator, &mesh, own.microbatches);
        let mut peak = [parts.peak_flops_per_s];
        communicator.all_reduce(&mut peak)?;
        let links = links::settle(&mut communicator, &nodes, &settings)?;
        let work = Work { config: &config, rows: own.rows, sequence };
        own.stages = cuts::settle(&mut communicator, &settings, work, measure_on, clock.as_ref())?;
        check_memory(&settings, &config, (&mesh, sequence), &own.stages, (device.as_ref(), memory_bytes))?;
        let chosen = links.into_iter().chain(cuts::condition(&own.stages)).collect();
        let described = device.describe();
        let mut learner = Learner::new(config, &device, communicator, own)?;
        if settings.resume.is_none() {
            let begun = learner.begin_with(&first);
            begun.inspect_err(|error| learner.communicator().give_up(error))?;
        }
        let sampler = sampler(&mut learner, tokenizer.as_ref(), &settings)?;
        let sums = way_of_sums(&mut learner);
        let conditions = conditions::of_run(&settings, (&mesh, &sums, chosen), &described, &data.digest);
        let state = first_state(&settings, conditions);
        let mut trainer = Self {
            learner,
            data,
            tokens,
            held_out,
            evaluations: 0,
            tokenizer,
            sampler,
            loaded: Loaded::default(),
            buffer: BatchBuffer::new(sequence),
            documents,
            settings,
            clock,
            state,
            sequence,
            peak_flops_per_s: peak[0],
            stragglers: Stragglers::new(mesh.world_size(), Rule::default()),
            hosts,
        };
        trainer.begin()?;
        Ok(trainer)
    }

    /// Goes on from a checkpoint, if asked to; then all ranks find out whether they can begin.
    fn begin(&mut self) -> Result<()> {
        if let Some(folder) = self.settings.resume.clone() {
            let resumed = self.resume(&folder);
            self.tell_of_failure(resumed)?;
        }
        let finite = self.check_weights();
        self.tell_of_failure(finite)?;
        let common = self.check_common_start();
        self.tell_of_failure(common)?;
        let begun = self.begin_reading();
        self.tell_of_failure(begun)
    }

    /// From here on data may come that the run will ask for.
    fn begin_reading(&mut self) -> Result<()> {
        self.tokens.begin(self.state.step * self.settings.train.global_batch as u64)?;
        self.held_out.as_mut().map_or(Ok(()), |held_out| held_out.begin(0))
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
}

/// What the learner takes memory for.
fn learner_settings(settings: &RunSettings, mesh: &Mesh, sequence: usize) -> Result<LearnerSettings> {
    let shares = settings.parallel.shares(mesh);
    let sequences = settings.train.microbatch_sequences(shares);
    mesh.check_microbatch(sequences, sequence)?;
    Ok(LearnerSettings {
        optimizer: settings.optimizer.clone(),
        parallel: settings.parallel.clone(),
        // Not decided yet.
        stages: Vec::new(),
        rows: sequences * sequence,
        microbatches: settings.train.microbatches(shares),
        recompute: settings.train.recompute,
        bucket_bytes: settings.train.bucket_bytes,
    })
}

/// Whether the run fits into the memory of its ranks, by the arithmetic of [`plan`].
fn check_memory(
    settings: &RunSettings,
    config: &ModelConfig,
    (mesh, sequence): (&Mesh, usize),
    stages: &[Range<usize>],
    (device, memory_bytes): (&dyn Device, u64),
) -> Result<()> {
    let train = TrainSettings { sequence_length: sequence, ..settings.train.clone() };
    let work = plan::Work { model: config.clone(), train, optimizer: settings.optimizer.clone() };
    let split = plan::Split::new(&work, &settings.parallel, mesh.world_size())?.with_stages(stages.to_vec());
    let prepared = |shape, usage| device.prepared_len(shape, usage);
    plan::check_memory(&split, memory_bytes, &prepared).map(|_| ())
}

/// Rank 0 says what is possible but slow.
fn warn_of_waiting(communicator: &Communicator, mesh: &Mesh, microbatches: usize) {
    let warning = mesh.warning(microbatches.div_ceil(mesh.data_ranks()));
    if let Some(warning) = warning.filter(|_| communicator.rank() == 0) {
        tracing::warn!("{warning}");
    }
}

/// How gradients are summed, as far as the order of sums depends on it.
fn way_of_sums(learner: &mut Learner) -> String {
    let in_place = if learner.shares_gradients() { ", in place" } else { "" };
    format!("{}{in_place}", learner.communicator().transport_name())
}

fn first_state(settings: &RunSettings, conditions: Conditions) -> TrainingState {
    TrainingState {
        format: TrainingState::FORMAT,
        step: 0,
        updates: 0,
        total_steps: settings.train.steps,
        tokens: 0,
        skipped: 0,
        conditions,
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
fn sequence_length(train: &TrainSettings, model: &ModelConfig, data: &DataSummary) -> Result<usize> {
    let context = model.context;
    let sequence = if train.sequence_length > 0 { train.sequence_length } else { context };
    if sequence > context {
        return Err(Error::invalid(format!(
            "train.sequence_length is {sequence}, longer than model.context ({context})"
        )));
    }
    if data.sequence_length != sequence {
        return Err(Error::invalid(format!(
            "the data are packed into sequences of {} tokens, the run asks for {sequence}: prepare them again",
            data.sequence_length
        )));
    }
    if data.train.samples == 0 {
        return Err(Error::invalid("the training split holds no whole sequence: give more text"));
    }
    Ok(sequence)
}

/// The token after which attention must not look back, where documents are kept apart.
fn end_of_text(train: &TrainSettings, data: &DataSummary) -> Result<Option<u32>> {
    if train.cross_documents {
        return Ok(None);
    }
    let known = data.end_of_text.ok_or_else(|| {
        Error::invalid(
            "train.cross_documents is false, but the data name no end-of-text token: set it to true",
        )
    })?;
    Ok(Some(known))
}
