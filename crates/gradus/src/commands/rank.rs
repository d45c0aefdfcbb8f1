//! One rank of a run: everything is opened, connected and handed to the trainer.

use super::{open_device, prepare};
use crate::exit;
use crate::report;
use crate::run_folder;
use crate::run_settings::Settings;
use crate::settings::{Resolved, parse_duration, render};
use crate::sinks::{Many, MetricsFile, Progress, TensorBoard};
use anyhow::{Context, Result};
use gradus_collective::Communicator;
use gradus_error::Error;
use gradus_fabric::{Launch, connect};
use gradus_host::{Clock, RealClock, disk};
use gradus_model::{Transformer, hugging_face};
use gradus_store::Dataset;
use gradus_train::{Observer, Outcome, Parts, RunSettings, Trainer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Trains as one rank (the only one without a launch); returns the exit code.
///
/// # Errors
/// The run's first failure.
pub fn run(resolved: &Resolved<Settings>, launch: Option<Launch>, resume: bool) -> Result<u8> {
    let settings = &resolved.settings;
    let stop = stop_on_signals()?;
    let world_size = launch.as_ref().map_or(1, |launch| launch.world_size);
    settings.train.check(world_size)?;
    let prepared = prepare::run(settings)?;
    let communicator = communicator(settings, launch.as_ref())?;
    let first = communicator.rank() == 0;
    let (folder, resume) = folder(settings, first, resume)?;
    let parts = parts(settings, launch.as_ref(), communicator, &prepared.folder)?;
    let mut observer = observers(resolved, first, &folder)?;
    let run = settings.run_settings(folder.clone(), resume)?;
    let outcome = train(parts, run, observer.as_mut(), &stop)?;
    drop(observer);
    if first {
        conclude(&folder, &outcome, &settings.sample.prompt)?;
    }
    Ok(if outcome.interrupted { exit::INTERRUPTED } else { exit::DONE })
}

fn train(
    parts: Parts,
    run: RunSettings,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> gradus_error::Result<Outcome> {
    Trainer::new(parts, run)?.run(observer, stop)
}

/// The first SIGINT or SIGTERM asks the run to stop with a checkpoint, the second ends the process.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let describe = || format!("cannot watch for signal {signal}");
        // Registered first, so that it sees the flag as it was before this signal.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(exit::FAILED), Arc::clone(&stop))
            .with_context(describe)?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).with_context(describe)?;
    }
    Ok(stop)
}

fn communicator(settings: &Settings, launch: Option<&Launch>) -> Result<Communicator> {
    let Some(launch) = launch else { return Ok(Communicator::alone()) };
    let stall = parse_duration(&settings.launch.stall_timeout);
    let stall = stall.map_err(|error| error.within("launch.stall_timeout"))?;
    let transport = connect(launch, settings.transport()?, &settings.fabric, &fingerprint(settings)?)?;
    Ok(Communicator::new(transport, stall))
}

/// What all ranks must agree on: every setting but how this rank was started.
fn fingerprint(settings: &Settings) -> Result<String> {
    let agreed = Settings { launch: Default::default(), ..settings.clone() };
    serde_json::to_string(&agreed).context("cannot write the settings as JSON")
}

/// The run's folder, and the checkpoint to resume from. Only rank 0 makes folders.
fn folder(settings: &Settings, first: bool, resume: bool) -> Result<(PathBuf, Option<PathBuf>)> {
    let base = Path::new(&settings.run.dir);
    if resume {
        let (folder, checkpoint) = run_folder::latest(base)?;
        return Ok((folder, Some(checkpoint)));
    }
    let folder = if first { run_folder::create(base)? } else { base.to_owned() };
    Ok((folder, None))
}

fn parts(
    settings: &Settings,
    launch: Option<&Launch>,
    mut communicator: Communicator,
    data: &Path,
) -> Result<Parts> {
    let dataset = Dataset::open(data)?;
    let tokenizer = dataset.tokenizer()?;
    let local_world_size = launch.map_or(1, |launch| launch.local_world_size);
    let device = open_device(settings.train.threads, local_world_size, settings.train.precision)?;
    // All ranks measure at once, as they will compute: a peak that nobody else shares would flatter nobody.
    communicator.barrier()?;
    let peak_flops_per_s = device.peak_flops();
    let model = model(settings, device, dataset.vocabulary())?;
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    Ok(Parts { model, communicator, dataset, tokenizer, clock, peak_flops_per_s })
}

/// The model with its first weights: random ones, or a Hugging Face folder's.
fn model(settings: &Settings, device: gradus_compute::CpuDevice, tokens: usize) -> Result<Transformer> {
    if settings.model.from.is_empty() {
        let model = Transformer::new(settings.model.complete(tokens)?, Arc::new(device))?;
        model.initialise(settings.run.seed);
        return Ok(model);
    }
    let folder = Path::new(&settings.model.from);
    let config = hugging_face::read_config(folder)?;
    if tokens > config.vocabulary {
        return Err(Error::invalid(format!(
            "the tokenizer has {tokens} tokens, the model in {} {}: give its own with --data.tokenizer {}",
            folder.display(),
            config.vocabulary,
            folder.display()
        ))
        .into());
    }
    let model = Transformer::new(config, Arc::new(device))?;
    let put = &mut |span, values: &[f32]| model.put(span, values);
    hugging_face::read_weights(folder, model.config(), model.parameters(), put)?;
    Ok(model)
}

/// Whoever watches the run: on rank 0 the terminal and the files, elsewhere nobody.
fn observers(resolved: &Resolved<Settings>, first: bool, folder: &Path) -> Result<Box<dyn Observer>> {
    if !first {
        return Ok(Box::new(Many(Vec::new())));
    }
    let text = render(resolved)?;
    disk::write_atomically(&folder.join("settings.toml"), |file| {
        file.write_all(text.as_bytes()).map_err(|error| Error::io("cannot write settings.toml", error))
    })?;
    Ok(Box::new(Many(vec![
        Box::new(MetricsFile::open(&folder.join(report::METRICS))?),
        Box::new(TensorBoard::create(folder)?),
        Box::new(Progress::new(vec![
            ("metrics".into(), folder.join(report::METRICS)),
            ("report".into(), folder.join(report::PAGE)),
        ])),
    ])))
}

/// Writes the report, and says where everything is.
fn conclude(folder: &Path, outcome: &Outcome, prompt: &str) -> Result<()> {
    report::write_report(folder)?;
    if outcome.interrupted {
        eprintln!("interrupted after step {}; go on with --resume", outcome.step);
    } else {
        eprintln!("  try       cargo run --release -- generate --model {} \"{prompt}\"", folder.display());
    }
    Ok(())
}
