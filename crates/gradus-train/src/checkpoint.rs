//! Saving and resuming: model and training state, as a sealed folder that is whole or absent.
//!
//! A checkpoint is a Hugging Face folder with three more files: `training_state.safetensors` (moments, by tensor
//! name, f32), `training_state.json` (everything else that a step depends on) and `checksums.json` (of all the rest).
//! The weights in `model.safetensors` are the f32 masters themselves.

pub(crate) mod moments;

use crate::axis::Failure;
use crate::conditions;
use crate::learner::Learner;
use crate::stage::Quantity;
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_memory::Span;
use gradus_model::hugging_face::{self, SpecialTokens};
use gradus_model::{ModelConfig, Parameters, Transformer};
use gradus_store::{Tokenizer, atomic};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const STATE_FILE: &str = "training_state.json";
const MOMENTS_FILE: &str = "training_state.safetensors";
const FORMAT: u32 = 1;
/// Larger models are saved in shards of this many bytes, as Hugging Face tools do.
const SHARD_BYTES: usize = 5_000_000_000;

/// What a step depends on besides weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Version of this file.
    pub format: u32,
    /// Steps done.
    pub step: u64,
    /// Updates made: steps that were not skipped.
    pub updates: u64,
    /// Steps of the whole run; 0 while not decided.
    pub total_steps: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Steps skipped in a row just before.
    pub skipped: u64,
    /// What must be the same for the same bits: by name, as text.
    pub conditions: Vec<(String, String)>,
}

/// Where checkpoints of a run stand.
pub fn folder_of(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step:08}"))
}

/// The checkpoints of a run by growing step; what a killed process left half-written is not among them.
pub fn list(run: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()?;
            Some((step, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Removes all but the newest `keep` checkpoints.
///
/// # Errors
/// The system's failure to remove one.
pub fn prune(run: &Path, keep: usize) -> Result<()> {
    let found = list(run);
    for (_, path) in &found[..found.len().saturating_sub(keep.max(1))] {
        fs::remove_dir_all(path)
            .context(|| format!("cannot remove the old checkpoint {}", path.display()))?;
    }
    Ok(())
}

/// Writes the folder that Hugging Face tools open, on rank 0; the others are in [`Learner::serve`] meanwhile.
///
/// # Errors
/// The system's; on a full disk `Exhausted`; the communicator's. What stood at `folder` before stays.
pub(crate) fn export_learned(
    folder: &Path,
    learner: &mut Learner,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let collector = Collector::new(learner);
    collector
        .conclude(atomic::write_folder_atomically(folder, |partial| {
            write_model(partial, &collector, tokenizer)
        }))
        .map_err(|error| error.within(format!("saving the model to {}", folder.display())))
}

/// Writes such a folder of a whole model.
///
/// # Errors
/// The system's; on a full disk `Exhausted`. What stood at `folder` before stays.
pub fn export(folder: &Path, model: &Transformer, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let read = |span| model.get(span);
    atomic::write_folder_atomically(folder, |partial| write_folder(partial, model.config(), &read, tokenizer))
        .map_err(|error| error.within(format!("saving the model to {}", folder.display())))
}

fn write_model(folder: &Path, from: &Collector, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let read = |span| from.read(Quantity::Weights, span);
    write_folder(folder, &from.config(), &read, tokenizer)
}

fn write_folder(
    folder: &Path,
    config: &ModelConfig,
    read: &dyn Fn(Span) -> Vec<f32>,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    let end = tokenizer.map(Tokenizer::end_of_text);
    let special = SpecialTokens { bos: end, eos: end };
    hugging_face::write_model_folder(folder, config, &Parameters::new(config), read, special, SHARD_BYTES)?;
    tokenizer.map_or(Ok(()), |tokenizer| tokenizer.copy_into(folder))
}

/// Saves everything that the next step depends on, on rank 0; the others are in [`Learner::serve`] meanwhile.
///
/// # Errors
/// The system's; on a full disk `Exhausted`; the communicator's. Older checkpoints stay.
pub fn save(
    folder: &Path,
    learner: &mut Learner,
    tokenizer: Option<&Tokenizer>,
    state: &TrainingState,
) -> Result<()> {
    let kind = learner.optimizer_kind();
    let collector = Collector::new(learner);
    let written = atomic::write_folder_atomically(folder, |partial| {
        write_model(partial, &collector, tokenizer)?;
        let whole = Parameters::new(&collector.config()).layout;
        let read = |moment, span| collector.read(Quantity::Moment(moment), span);
        moments::write(&partial.join(MOMENTS_FILE), &whole, kind, &read)?;
        let text = serde_json::to_string_pretty(state).expect("plain data has a JSON form");
        let path = partial.join(STATE_FILE);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        collector.failure.take()?;
        atomic::seal(partial)
    });
    collector
        .conclude(written)
        .map_err(|error| error.within(format!("saving a checkpoint to {}", folder.display())))
}

/// Brings tensors together for a writer that cannot fail: what has failed is told at the end.
struct Collector<'a> {
    learner: RefCell<&'a mut Learner>,
    failure: Failure,
}

impl<'a> Collector<'a> {
    fn new(learner: &'a mut Learner) -> Self {
        Self { learner: RefCell::new(learner), failure: Failure::default() }
    }

    fn config(&self) -> ModelConfig {
        self.learner.borrow().config().clone()
    }

    fn read(&self, what: Quantity, span: Span) -> Vec<f32> {
        let collected = self.failure.guard(|| self.learner.borrow_mut().collect(what, span));
        collected.unwrap_or_else(|| vec![0.0; span.len])
    }

    /// Lets the other ranks go on; what was written, or the first failure.
    fn conclude(&self, written: Result<()>) -> Result<()> {
        let ended = self.learner.borrow_mut().end_service();
        written.and(self.failure.take()).and(ended)
    }
}

/// Puts weights and moments back in place and returns the rest; every rank calls it.
///
/// # Errors
/// `Corrupt`, naming the file, where a checksum does not match; `Invalid` where the checkpoint is of another model.
pub fn load(folder: &Path, learner: &mut Learner) -> Result<TrainingState> {
    let within = |error: Error| match error.kind() {
        Kind::Corrupt => error.within(format!(
            "cannot resume from {} (remove that folder to go on from the checkpoint before it)",
            folder.display()
        )),
        _ => error.within(format!("resuming from {}", folder.display())),
    };
    load_parts(folder, learner).map_err(within)
}

fn load_parts(folder: &Path, learner: &mut Learner) -> Result<TrainingState> {
    atomic::verify_sealed(folder)?;
    let saved = hugging_face::read_config(folder)?;
    if saved != *learner.config() {
        return Err(Error::invalid(format!(
            "the checkpoint's model is \"{}\", the settings' is \"{}\": give the settings that the run began with",
            saved.summary(),
            learner.config().summary()
        )));
    }
    let state = read_state(folder)?;
    if folder_of(Path::new(""), state.step).file_name() != folder.file_name() {
        return Err(Error::corrupt(format!(
            "{} speaks of step {}, which is not what its folder is named after",
            folder.join(STATE_FILE).display(),
            state.step
        )));
    }
    let kind = learner.optimizer_kind();
    conditions::check_kind(&state.conditions, kind)?;
    learner.read_weights(folder)?;
    let whole = Parameters::new(learner.config()).layout;
    let put = &mut |moment, span, values: &[f32]| learner.put(Quantity::Moment(moment), span, values);
    moments::read(&folder.join(MOMENTS_FILE), &whole, kind, put)?;
    learner.resume(state.updates);
    Ok(state)
}

/// The plain part of a checkpoint.
///
/// # Errors
/// `Corrupt` where it cannot be read.
pub fn read_state(folder: &Path) -> Result<TrainingState> {
    let path = folder.join(STATE_FILE);
    let bytes = fs::read(&path).context(|| format!("cannot read {}", path.display()))?;
    parse_state(&path, &bytes)
}

/// As [`read_state`], from what stands in the file; `path` is only named in messages.
pub(crate) fn parse_state(path: &Path, bytes: &[u8]) -> Result<TrainingState> {
    let state: TrainingState = serde_json::from_slice(bytes)
        .map_err(|error| Error::corrupt(format!("{} is damaged", path.display())).with_source(error))?;
    if state.format != FORMAT {
        return Err(Error::invalid(format!(
            "{} has format {}, this version of Gradus reads {FORMAT}",
            path.display(),
            state.format
        )));
    }
    Ok(state)
}

impl TrainingState {
    /// The version that this code writes.
    pub const FORMAT: u32 = FORMAT;
}
