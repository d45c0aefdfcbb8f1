//! One file per subcommand.

pub mod bench_dataset;
pub mod bench_generate;
pub mod bench_handover;
pub mod bench_kernels;
pub mod bench_train;
pub mod cache;
pub mod cache_warm;
pub mod coordinator;
pub mod dataset;
pub mod doctor;
pub mod generate;
pub mod logits;
pub mod plan_collective;
pub mod plan_pipeline;
pub mod plan_train;
pub mod preflight;
pub mod prepare;
pub mod rank;
pub mod train;

use crate::run_settings::Settings;
use gradus_compute::{CpuDevice, Precision};
use gradus_error::{Error, Kind, Result};
use gradus_fabric::{Launch, SECRET, Secret};
use gradus_host::processors;
use gradus_model::{Transformer, hugging_face};
use gradus_train::FirstWeights;
use std::path::Path;
use std::sync::Arc;

/// More threads are a slip of the finger.
const MOST_THREADS: usize = 1024;
/// Elements below which no model is worth opening: 64 MiB.
const LEAST_CAPACITY: usize = 1 << 24;

/// Elements of address space that a device reserves: all of the host's memory, for memory is taken only when touched.
fn device_capacity() -> usize {
    let bytes = processors::total_memory_bytes().unwrap_or(64 << 30);
    usize::try_from(bytes / 4).unwrap_or(usize::MAX / 8)
}

/// The host's device with `threads` threads, or its fair share where that is 0.
fn open_device(threads: usize, sharers: usize, precision: Precision) -> Result<CpuDevice> {
    let threads = if threads > 0 { threads } else { processors::share(sharers) };
    if threads > MOST_THREADS {
        return Err(Error::invalid(format!(
            "{threads} threads: choose at most {MOST_THREADS} (train.threads)"
        )));
    }
    let mut capacity = device_capacity();
    loop {
        match CpuDevice::new(threads, precision, capacity) {
            // A batch system may limit address space (ulimit -v): less of it may still be enough.
            Err(error) if *error.kind() == Kind::Exhausted && capacity > LEAST_CAPACITY => capacity /= 2,
            opened => return opened,
        }
    }
}

/// The model of a run with its first weights: random ones, or a Hugging Face folder's.
fn first_model(settings: &Settings, device: CpuDevice, tokens: usize) -> Result<Transformer> {
    let model = Transformer::new(settings.model_config(tokens)?, Arc::new(device))?;
    if settings.model.from.is_empty() {
        model.initialise(settings.run.seed);
    } else {
        read_weights(Path::new(&settings.model.from), &model)?;
    }
    Ok(model)
}

/// What a run begins with: random weights, or a Hugging Face folder's.
fn first_weights(settings: &Settings) -> FirstWeights {
    match settings.model.from.as_str() {
        "" => FirstWeights::Seed(settings.run.seed),
        folder => FirstWeights::Folder(folder.into()),
    }
}

/// Puts a Hugging Face folder's weights into a model of that folder's configuration.
fn read_weights(folder: &Path, model: &Transformer) -> Result<()> {
    let put = &mut |span, values: &[f32]| model.put(span, values);
    hugging_face::read_weights(folder, model.config(), model.parameters(), put)
}

/// A variable of this process' environment.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// This process' place as a launcher left it in the environment, with the run's secret; `None` without a launcher. The
/// secret is then taken out of the environment, so that what this process starts does not inherit it.
fn place_in_the_world() -> Result<Option<Launch>> {
    let Some(launch) = Launch::from_environment(&environment)? else { return Ok(None) };
    let secret = Secret::from_environment(&environment)?;
    // SAFETY: subcommands begin on the main thread, before any of them has started another that could read the
    // environment meanwhile.
    unsafe { std::env::remove_var(SECRET) };
    Ok(Some(Launch { secret, ..launch }))
}

/// Reads a precision off the command line.
fn parse_precision(text: &str) -> Result<Precision, String> {
    match text {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        other => Err(format!("{other:?} is no precision: choose f32 or bf16")),
    }
}
