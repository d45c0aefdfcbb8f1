//! Model folders as Hugging Face's tools read and write them: `config.json`, `generation_config.json` and
//! `model.safetensors` (or shards of it with an index).
//!
//! A folder of GPT-2, Llama or Qwen2 is read into the flat layout, and written from it so that transformers opens it as
//! it is. What belongs where is data, in [`mapping`]. A field of `config.json` that would change the arithmetic is
//! honoured or refused by name; weights must fit the configuration tensor by tensor. Nothing that a file says leads out
//! of its folder, to an allocation beyond the file's own size, or to a panic. Tokenizer files are not looked at.
//!
//! With 16-bit weights values are widened exactly; what is written is always F32.

mod config_file;
mod config_writer;
mod fields;
mod mapping;
mod shard;
#[cfg(test)]
mod tests;
mod weights_file;
mod weights_writer;

pub use mapping::{Mapped, mapping};
pub use weights_file::read_weights;
pub use weights_writer::write_weights;

use crate::config::ModelConfig;
use crate::parameters::Parameters;
use gradus_error::{Error, IoContext, Result};
use gradus_memory::Span;
use std::path::Path;
use weights_file::Weights;

/// The tokens that begin and end a text; `None` is written as null.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
}

/// A model read whole into host memory.
#[derive(Debug, Clone)]
pub struct HostModel {
    /// Kind and sizes.
    pub config: ModelConfig,
    /// Which tensor lies where in `values`.
    pub parameters: Parameters,
    /// The layout's elements; gaps and padding are zero.
    pub values: Vec<f32>,
}

/// Reads the configuration of the model in `folder`.
///
/// # Errors
/// `Invalid`, naming file and key: no folder, no `config.json`, a type of model or a field that is not supported, sizes
/// that do not go together.
pub fn read_config(folder: &Path) -> Result<ModelConfig> {
    check_folder(folder)?;
    config_file::read(folder)
}

/// Reads the model in `folder` into host memory; [`read_weights`] reads one piece by piece.
///
/// # Errors
/// As [`read_config`] and [`read_weights`].
pub fn read_model(folder: &Path) -> Result<HostModel> {
    let config = read_config(folder)?;
    let parameters = Parameters::new(&config);
    let weights = Weights::open(folder, &config)?;
    let mapping = mapping(&config, &parameters);
    // Checked first: only then do the files themselves vouch for the size of what is allocated next.
    weights.check(&mapping)?;
    let mut values = vec![0.0; parameters.layout.len()];
    weights.read(&mapping, &mut |span, read| values[span.start..span.end()].copy_from_slice(read))?;
    Ok(HostModel { config, parameters, values })
}

/// Writes a folder that [`read_model`] and transformers open; `folder` is made where it does not exist.
///
/// The configuration is written last, so that a folder with `config.json` has its weights. To have it appear whole or
/// not at all, write into a new folder and rename it. `read` and `max_shard_bytes` are [`write_weights`]'s.
///
/// # Errors
/// `Invalid` for a special token beyond the vocabulary; else as [`write_weights`].
pub fn write_model_folder(
    folder: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    read: &dyn Fn(Span) -> Vec<f32>,
    tokens: SpecialTokens,
    max_shard_bytes: usize,
) -> Result<()> {
    for (name, token) in [("bos", tokens.bos), ("eos", tokens.eos)] {
        if token.is_some_and(|token| token as usize >= config.vocabulary) {
            let vocabulary = config.vocabulary;
            return Err(Error::invalid(format!(
                "the {name} token {token:?} is beyond a vocabulary of {vocabulary}"
            )));
        }
    }
    std::fs::create_dir_all(folder).context(|| format!("cannot make the folder {}", folder.display()))?;
    write_weights(folder, config, parameters, read, max_shard_bytes)?;
    config_writer::write(folder, config, tokens)
}

fn check_folder(folder: &Path) -> Result<()> {
    let shown = folder.display();
    if !folder.exists() {
        return Err(Error::invalid(format!("{shown} does not exist: give the folder of a downloaded model")));
    }
    if !folder.is_dir() {
        return Err(Error::invalid(format!("{shown} is no folder: give the folder that config.json is in")));
    }
    if !folder.join("config.json").exists() {
        return Err(Error::invalid(format!(
            "{shown} has no config.json: it is no Hugging Face model folder, nor a run with a checkpoint"
        )));
    }
    Ok(())
}
