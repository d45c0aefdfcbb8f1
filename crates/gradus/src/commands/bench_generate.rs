//! `gradus bench generate`: greedy text from a model folder, token after token, when told on stdin, so that several
//! programs can take turns on one machine. `cargo x bench generate` speaks this protocol with us and with transformers
//! (python/bench_generate.py).
//!
//! Each line is `{"prompt": [...], "tokens": N}`, and is answered by the tokens with the seconds of the prompt (until its
//! first token is known) and of the rest; or `{"stream_bytes": N}`, answered by the bytes per second that reading so much
//! memory over and over gives on as many threads.

use super::{generate, open_device};
use crate::logging;
use anyhow::{Context, Result};
use gradus_compute::Precision;
use gradus_compute::cpu::ceilings::{Ceilings, Stream};
use gradus_host::{Clock, RealClock};
use gradus_model::sampling::SamplingSettings;
use gradus_model::{Generator, ModelConfig, PRESETS, Request, Transformer};
use gradus_train::checkpoint;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct BenchGenerateArguments {
    /// Hugging Face folder of the model.
    #[arg(long)]
    pub model: PathBuf,
    /// Arithmetic of matrix products: f32 or bf16.
    #[arg(long, default_value = "bf16", value_parser = super::parse_precision)]
    pub precision: Precision,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Write the folder, a preset of this name with random weights, and end.
    #[arg(long)]
    pub write_preset: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Order {
    Write { prompt: Vec<u32>, tokens: usize },
    Stream { stream_bytes: usize },
}

/// Answers until the end of stdin.
///
/// # Errors
/// What is wrong with the folder; a wrong order is answered with its error.
pub fn run(arguments: &BenchGenerateArguments) -> Result<()> {
    if let Some(preset) = &arguments.write_preset {
        return write_preset(preset, arguments);
    }
    let model = generate::load(&arguments.model, arguments.threads, arguments.precision)?;
    let facts = json!({
        "device": model.device().describe(),
        "parameters": model.config().parameter_count(),
        "weight_bytes": model.weight_bytes(),
        "cache_bytes_per_token": 8 * model.config().layers * model.config().kv_width(),
    });
    logging::print(format_args!("ready {facts}"))?;
    for line in std::io::stdin().lines() {
        let line = line.context("cannot read stdin")?;
        let answer = match serde_json::from_str(&line) {
            Ok(Order::Write { prompt, tokens }) => write(&model, &prompt, tokens),
            Ok(Order::Stream { stream_bytes }) => stream(arguments.threads, stream_bytes),
            Err(error) => Err(error.into()),
        };
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        logging::print(format_args!("{answer}"))?;
    }
    Ok(())
}

fn write(model: &Transformer, prompt: &[u32], tokens: usize) -> Result<Value> {
    let mut generator = Generator::new(model, prompt.len() + tokens)?;
    let sampling = SamplingSettings { temperature: 0.0, ..Default::default() };
    let request = Request { prompt, max_tokens: tokens, sampling: &sampling, stop: &[] };
    let (clock, mut written, mut first) = (RealClock::new(), Vec::with_capacity(tokens), None);
    let start = clock.now();
    generator.generate(model, request, &mut |token| {
        first.get_or_insert_with(|| clock.now());
        written.push(token);
        true
    })?;
    let (first, end) = (first.context("no token was asked for")?, clock.now());
    Ok(json!({
        "prompt_s": (first - start).as_secs_f64(),
        "rest_s": (end - first).as_secs_f64(),
        "tokens": written,
    }))
}

fn stream(threads: usize, bytes: usize) -> Result<Value> {
    let rate = Ceilings::new(threads, bytes)?.stream(Stream::Read, bytes);
    Ok(json!({ "bytes_per_s": rate }))
}

fn write_preset(name: &str, arguments: &BenchGenerateArguments) -> Result<()> {
    let found = PRESETS.iter().find(|(preset, _)| *preset == name);
    let config: ModelConfig = found.with_context(|| format!("no preset {name:?}"))?.1.clone();
    let device = open_device(arguments.threads, 1, arguments.precision)?;
    let model = Transformer::new(config, Arc::new(device))?;
    model.initialise(1);
    checkpoint::export(&arguments.model, &model, None)?;
    Ok(())
}
