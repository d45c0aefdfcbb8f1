//! Saving and resuming: model and training state, as a sealed folder that is whole or absent.
//!
//! A checkpoint is a Hugging Face folder with three more files: `training_state.safetensors` (moments, by tensor
//! name, f32), `training_state.json` (everything else that a step depends on) and `checksums.json` (of all the rest).
//! The weights in `model.safetensors` are the f32 masters themselves.

use crate::conditions;
use crate::optimizer::{Moments, Optimizer};
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_memory::{Span, Tensor};
use gradus_model::Transformer;
use gradus_model::hugging_face::{self, SpecialTokens};
use gradus_store::{Tokenizer, atomic};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;
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

/// Writes the folder that Hugging Face tools open.
///
/// # Errors
/// The system's; on a full disk `Exhausted`. What stood at `folder` before stays.
pub fn export(folder: &Path, model: &Transformer, tokenizer: Option<&Tokenizer>) -> Result<()> {
    atomic::write_folder_atomically(folder, |partial| write_model(partial, model, tokenizer))
        .map_err(|error| error.within(format!("saving the model to {}", folder.display())))
}

fn write_model(folder: &Path, model: &Transformer, tokenizer: Option<&Tokenizer>) -> Result<()> {
    let end = tokenizer.map(Tokenizer::end_of_text);
    let special = SpecialTokens { bos: end, eos: end };
    let read = |span| model.get(span);
    hugging_face::write_model_folder(
        folder,
        model.config(),
        model.parameters(),
        &read,
        special,
        SHARD_BYTES,
    )?;
    tokenizer.map_or(Ok(()), |tokenizer| tokenizer.copy_into(folder))
}

/// Saves everything that the next step depends on.
///
/// # Errors
/// The system's; on a full disk `Exhausted`. Older checkpoints stay.
pub fn save(
    folder: &Path,
    model: &Transformer,
    tokenizer: Option<&Tokenizer>,
    optimizer: &Optimizer,
    state: &TrainingState,
) -> Result<()> {
    atomic::write_folder_atomically(folder, |partial| {
        write_model(partial, model, tokenizer)?;
        write_moments(&partial.join(MOMENTS_FILE), model, optimizer)?;
        let text = serde_json::to_string_pretty(state).expect("plain data has a JSON form");
        let path = partial.join(STATE_FILE);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        atomic::seal(partial)
    })
    .map_err(|error| error.within(format!("saving a checkpoint to {}", folder.display())))
}

/// A tensor of moments that is read from the device when it is written out.
struct Moment<'a> {
    model: &'a Transformer,
    tensor: &'a Tensor,
    /// Where it lies.
    span: Span,
}

impl View for Moment<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut values = vec![0.0; self.tensor.len()];
        self.model.device().read(self.span, &mut values);
        values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.tensor.len() * size_of::<f32>()
    }
}

fn moment_name(moment: usize, tensor: &Tensor) -> String {
    format!("moment{}.{}", moment + 1, tensor.name)
}

/// All moments of every tensor, by name.
fn moments<'a>(model: &'a Transformer, optimizer: &Optimizer) -> Result<Vec<(String, Moment<'a>)>> {
    let mut all = Vec::new();
    for tensor in model.parameters().layout.tensors() {
        for (index, found) in optimizer.moments(tensor).iter().enumerate() {
            let name = moment_name(index, tensor);
            match found.as_slice() {
                [] if index > 0 => {}
                [Moments { range, place }] if *range == tensor.span() => {
                    all.push((name, Moment { model, tensor, span: *place }));
                }
                _ => return Err(Error::internal(format!("{name} is not whole on this rank"))),
            }
        }
    }
    Ok(all)
}

fn write_moments(path: &Path, model: &Transformer, optimizer: &Optimizer) -> Result<()> {
    safetensors::serialize_to_file(moments(model, optimizer)?, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => {
            Error::io(format!("cannot write {}", path.display()), error)
        }
        other => Error::internal(format!("cannot lay out {}", path.display())).with_source(other),
    })
}

/// What stands in a file of moments.
#[cfg(feature = "fuzzing")]
pub(crate) fn moments_as_bytes(model: &Transformer, optimizer: &Optimizer) -> Result<Vec<u8>> {
    safetensors::serialize(moments(model, optimizer)?, None)
        .map_err(|error| Error::internal("cannot lay out moments").with_source(error))
}

/// Puts weights and moments back in place and returns the rest.
///
/// # Errors
/// `Corrupt`, naming the file, where a checksum does not match; `Invalid` where the checkpoint is of another model.
pub fn load(folder: &Path, model: &Transformer, optimizer: &mut Optimizer) -> Result<TrainingState> {
    let within = |error: Error| match error.kind() {
        Kind::Corrupt => error.within(format!(
            "cannot resume from {} (remove that folder to go on from the checkpoint before it)",
            folder.display()
        )),
        _ => error.within(format!("resuming from {}", folder.display())),
    };
    load_parts(folder, model, optimizer).map_err(within)
}

fn load_parts(folder: &Path, model: &Transformer, optimizer: &mut Optimizer) -> Result<TrainingState> {
    atomic::verify_sealed(folder)?;
    let saved = hugging_face::read_config(folder)?;
    if saved != *model.config() {
        return Err(Error::invalid(format!(
            "the checkpoint's model is \"{}\", the settings' is \"{}\": give the settings that the run began with",
            saved.summary(),
            model.config().summary()
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
    conditions::check_kind(&state.conditions, optimizer.kind())?;
    let put = &mut |span, values: &[f32]| model.put(span, values);
    hugging_face::read_weights(folder, model.config(), model.parameters(), put)?;
    read_moments(&folder.join(MOMENTS_FILE), model, optimizer)?;
    optimizer.resume(state.updates);
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

fn read_moments(path: &Path, model: &Transformer, optimizer: &Optimizer) -> Result<()> {
    let bytes = fs::read(path).context(|| format!("cannot read {}", path.display()))?;
    put_moments(path, &bytes, model, optimizer)
}

/// Puts moments in place that stand in a file; `path` is only named in messages.
pub(crate) fn put_moments(
    path: &Path,
    bytes: &[u8],
    model: &Transformer,
    optimizer: &Optimizer,
) -> Result<()> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| Error::corrupt(format!("{} is damaged", path.display())).with_source(error))?;
    let moments = moments(model, optimizer)?;
    let expected: BTreeSet<&str> = moments.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(extra) = file.names().into_iter().find(|name| !expected.contains(name)) {
        return Err(Error::corrupt(format!(
            "{} holds {extra}, which is no moment of this model",
            path.display()
        )));
    }
    for (name, moment) in &moments {
        let within = |reason: &str| format!("{}: {name} {reason}", path.display());
        let view =
            file.tensor(name).map_err(|error| Error::corrupt(within("is missing")).with_source(error))?;
        let (dtype, shape) = (view.dtype(), view.shape());
        if dtype != Dtype::F32 || shape != moment.tensor.shape {
            let expected = format!("is {dtype:?} {shape:?}, expected F32 {:?}", moment.tensor.shape);
            return Err(Error::corrupt(within(&expected)));
        }
        let words = view.data().chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
        let values: Vec<f32> = words.map(f32::from_le_bytes).collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::corrupt(within("is not finite")));
        }
        model.device().write(moment.span, &values);
    }
    Ok(())
}
