//! `gradus generate`: text from a model, as it is written.

use super::{open_device, read_weights};
use crate::run_folder::model_folder;
use anyhow::Result;
use gradus_compute::Precision;
use gradus_error::{Error, Kind};
use gradus_host::disk;
use gradus_model::sampling::SamplingSettings;
use gradus_model::{Ending, Generator, Request, Transformer, hugging_face};
use gradus_store::{StreamDecoder, Tokenizer};
use std::io::{StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct GenerateArguments {
    /// A run's folder, or any Hugging Face folder of the GPT-2, Llama or Qwen2 family.
    #[arg(long)]
    pub model: PathBuf,
    /// What to write on from; without it the model starts a document.
    #[arg(default_value = "")]
    pub prompt: String,
    /// Tokens to write at most.
    #[arg(long, default_value_t = 200)]
    pub max_tokens: usize,
    /// Factor of randomness; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f32,
    /// Draw from the likeliest so many tokens; 0: from all.
    #[arg(long, default_value_t = 40)]
    pub top_k: usize,
    /// Draw from the likeliest tokens that together have this probability; 1: from all.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// The same seed writes the same text.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads; 0: all processors.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Arithmetic of matrix products: f32 or bf16.
    #[arg(long, default_value = "f32", value_parser = super::parse_precision)]
    pub precision: Precision,
    /// Also write the prompt's and the text's tokens to this file, as JSON.
    #[arg(long)]
    pub tokens_out: Option<PathBuf>,
}

/// A model from a folder, on this host's device.
///
/// # Errors
/// What is wrong with the folder, by file and tensor.
pub fn load(folder: &Path, threads: usize, precision: Precision) -> Result<Transformer> {
    let config = hugging_face::read_config(folder)?;
    let model = Transformer::for_inference(config, Arc::new(open_device(threads, 1, precision)?))?;
    read_weights(folder, &model)?;
    Ok(model)
}

/// Writes text to stdout as it comes.
///
/// # Errors
/// What is wrong with the folder or the prompt.
pub fn run(arguments: &GenerateArguments) -> Result<()> {
    let folder = model_folder(&arguments.model);
    let model = load(&folder, arguments.threads, arguments.precision)?;
    let tokenizer = Tokenizer::load(&folder)?;
    if tokenizer.vocabulary() > model.config().vocabulary {
        return Err(Error::invalid(format!(
            "the tokenizer in {} has {} tokens, the model only {}: they do not belong together",
            folder.display(),
            tokenizer.vocabulary(),
            model.config().vocabulary
        ))
        .into());
    }
    let mut prompt = tokenizer.encode(&arguments.prompt)?;
    if prompt.is_empty() {
        prompt.push(tokenizer.end_of_text());
    }
    let tokens = write(arguments, &model, &tokenizer, &prompt)?;
    match &arguments.tokens_out {
        Some(path) => save_tokens(path, &prompt, &tokens),
        None => Ok(()),
    }
}

fn write(
    arguments: &GenerateArguments,
    model: &Transformer,
    tokenizer: &Tokenizer,
    prompt: &[u32],
) -> Result<Vec<u32>> {
    let sampling = SamplingSettings {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        seed: arguments.seed,
    };
    let stop = [tokenizer.end_of_text()];
    let request = Request { prompt, max_tokens: arguments.max_tokens, sampling: &sampling, stop: &stop };
    let mut text =
        Text { out: std::io::stdout().lock(), decoder: tokenizer.stream_decoder(), tokens: Vec::new() };
    let mut generator = Generator::new(model, prompt.len().saturating_add(arguments.max_tokens))?;
    // The prompt is shown with the first token: until then something may be wrong with what was asked for.
    let (mut written, mut begun) = (Ok(()), false);
    let ending = generator.generate(model, request, &mut |token| {
        if !std::mem::replace(&mut begun, true) {
            written = text.print(&arguments.prompt);
        }
        if written.is_ok() {
            written = text.push(token);
        }
        written.is_ok()
    })?;
    if !begun {
        written = text.print(&arguments.prompt);
    }
    if ending == Ending::ContextFull {
        tracing::warn!(
            "the text ends here because the model's context of {} tokens is full",
            model.config().context
        );
    }
    match written.and_then(|()| text.end()) {
        // A reader that went away (head, a pager) ended the text.
        Err(error) if *error.kind() != Kind::Closed => Err(error.into()),
        _ => Ok(text.tokens),
    }
}

/// Text on its way to stdout.
struct Text<'a> {
    out: StdoutLock<'static>,
    decoder: StreamDecoder<'a>,
    tokens: Vec<u32>,
}

impl Text<'_> {
    fn push(&mut self, token: u32) -> gradus_error::Result<()> {
        self.tokens.push(token);
        let text = self.decoder.push(token)?;
        self.print(&text)
    }

    fn print(&mut self, text: &str) -> gradus_error::Result<()> {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Error::closed("stdout was closed"),
            _ => Error::io("cannot write to stdout", error),
        })
    }

    fn end(&mut self) -> gradus_error::Result<()> {
        let rest = self.decoder.finish()?;
        self.print(&format!("{rest}\n"))
    }
}

fn save_tokens(path: &Path, prompt: &[u32], tokens: &[u32]) -> Result<()> {
    let text = serde_json::json!({ "prompt_tokens": prompt, "tokens": tokens }).to_string();
    disk::write_atomically(path, |file| {
        file.write_all(text.as_bytes())
            .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
    })?;
    Ok(())
}
