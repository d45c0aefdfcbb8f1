//! `gradus logits`: what a model predicts after every token of a text, as a file that other tools compare with.

use super::generate::load;
use crate::run_folder::model_folder;
use anyhow::{Context, Result};
use gradus_compute::Precision;
use gradus_model::Generator;
use safetensors::tensor::{Dtype, TensorView};
use std::path::PathBuf;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct LogitsArguments {
    /// A run's folder, or any Hugging Face folder of the GPT-2, Llama or Qwen2 family.
    #[arg(long)]
    pub model: PathBuf,
    /// Token numbers, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pub tokens: Vec<u32>,
    /// Where to write the tensor `logits` `[T, V]`, f32, as safetensors.
    #[arg(long)]
    pub out: PathBuf,
    /// Arithmetic of matrix products: f32 or bf16.
    #[arg(long, default_value = "f32", value_parser = super::parse_precision)]
    pub precision: Precision,
}

/// Writes the logits.
///
/// # Errors
/// What is wrong with the folder or the tokens.
pub fn run(arguments: &LogitsArguments) -> Result<()> {
    let model = load(&model_folder(&arguments.model), 0, arguments.precision)?;
    let logits = Generator::new(&model, arguments.tokens.len())?.logits(&model, &arguments.tokens)?;
    let bytes: Vec<u8> = logits.into_iter().flat_map(f32::to_le_bytes).collect();
    let shape = vec![arguments.tokens.len(), model.config().vocabulary];
    let view = TensorView::new(Dtype::F32, shape, &bytes).context("cannot lay out the logits")?;
    safetensors::serialize_to_file([("logits", view)], None, &arguments.out)
        .with_context(|| format!("cannot write {}", arguments.out.display()))
}
