//! One rank of a run: everything is opened, connected and handed to the trainer.

use super::{open_device, prepare};
use crate::exit;
use crate::logging;
use crate::report;
use crate::run_folder::{self, RunFolder};
use crate::run_settings::Settings;
use crate::settings::{Resolved, render};
use crate::sinks::{Many, MetricsFile, Progress, TensorBoard};
use anyhow::{Context, Result};
use gradus_collective::Communicator;
use gradus_compute::{CpuDevice, Device};
use gradus_error::{Error, Kind};
use gradus_fabric::{Launch, NetworkSettings, TlsSettings, Transport, connect, interface_of};
use gradus_host::{Clock, RealClock, disk};
use gradus_model::{Transformer, hugging_face};
use gradus_store::{Dataset, Tokenizer};
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
    settings.check(launch.as_ref().map_or(1, |launch| launch.world_size))?;
    let prepared = prepare::run(settings)?;
    let dataset = Dataset::open(&prepared.folder)?;
    let local_world_size = launch.as_ref().map_or(1, |launch| launch.local_world_size);
    let device = open_device(settings.train.threads, local_world_size, settings.train.precision)?;
    let terms = terms(settings, &dataset, &device)?;
    let mut communicator = communicator(settings, launch.as_ref(), &terms)?;
    // Until here a signal simply ends the process: there is nothing to save yet.
    let stop = stop_on_signals()?;
    let first = communicator.rank() == 0;
    let opened = open(resolved, first, resume, dataset, device, &mut communicator);
    let opened = opened.inspect_err(|error| communicator.give_up(&as_told(error)))?;
    let Opened { folder, run, model, dataset, tokenizer, mut observer, peak_flops_per_s } = opened;
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let parts = Parts { model, communicator, dataset, tokenizer, clock, peak_flops_per_s };
    let outcome = train(parts, run, observer.as_mut(), &stop)?;
    drop(observer);
    if let Some(folder) = folder {
        conclude(&folder.path, &outcome, &settings.sample.prompt)?;
    }
    Ok(if outcome.interrupted { exit::INTERRUPTED } else { exit::DONE })
}

/// What a rank opens once it knows the others.
struct Opened {
    /// Held by rank 0.
    folder: Option<RunFolder>,
    run: RunSettings,
    model: Transformer,
    dataset: Dataset,
    tokenizer: Option<Tokenizer>,
    observer: Box<dyn Observer>,
    peak_flops_per_s: f64,
}

fn open(
    resolved: &Resolved<Settings>,
    first: bool,
    resume: bool,
    dataset: Dataset,
    device: CpuDevice,
    communicator: &mut Communicator,
) -> Result<Opened> {
    let settings = &resolved.settings;
    let (path, folder, checkpoint) = folder(settings, first, resume)?;
    let tokenizer = dataset.tokenizer()?;
    // All ranks measure at once, as they will compute: a peak that nobody else shares would flatter nobody.
    communicator.patient_barrier()?;
    let peak_flops_per_s = device.peak_flops();
    let model = model(settings, device, dataset.vocabulary())?;
    let observer = observers(resolved, first, &path)?;
    let run = settings.run_settings(path, checkpoint)?;
    Ok(Opened { folder, run, model, dataset, tokenizer, observer, peak_flops_per_s })
}

/// A failure as the other ranks shall hear of it.
fn as_told(error: &anyhow::Error) -> Error {
    let kind = error.downcast_ref::<Error>().map_or(Kind::Unavailable, |error| error.kind().clone());
    Error::new(kind, exit::message(error))
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
    // A write beyond the limit on file sizes shall be an error like a full disk, not the end of the process.
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .context("cannot watch for SIGXFSZ")?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        let describe = || format!("cannot watch for signal {signal}");
        // Registered first, so that it sees the flag as it was before this signal.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(exit::FAILED), Arc::clone(&stop))
            .with_context(describe)?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).with_context(describe)?;
    }
    Ok(stop)
}

fn communicator(settings: &Settings, launch: Option<&Launch>, terms: &str) -> Result<Communicator> {
    let Some(launch) = launch else { return Ok(Communicator::alone()) };
    let transport = connect(launch, settings.transport()?, &settings.network, terms)?;
    show_place(launch, &*transport);
    Ok(Communicator::new(transport, settings.stall_timeout()?))
}

/// Says where this rank is reached: on every rank where hosts differ, else on rank 0 for all.
fn show_place(launch: &Launch, transport: &dyn Transport) {
    let Some(address) = transport.address() else { return };
    if address.ip().is_loopback() && launch.rank != 0 {
        return;
    }
    logging::say(format_args!(
        "  rank {} of {} is reached at {address} ({}), over {}",
        launch.rank,
        launch.world_size,
        interface_of(address.ip()),
        transport.name()
    ));
}

/// What all ranks must agree on, one thing a line: every setting but how this rank was started and its
/// own interfaces and files of TLS, the data, and the
/// kernels, since sums that round differently would let the ranks drift apart.
fn terms(settings: &Settings, dataset: &Dataset, device: &CpuDevice) -> Result<String> {
    let network =
        NetworkSettings { interface: String::new(), tls: TlsSettings::default(), ..settings.network.clone() };
    let agreed = Settings { launch: Default::default(), network, ..settings.clone() };
    let mut lines =
        vec![format!("data {}", dataset.digest()), format!("kernels {}", kernels(&device.describe()))];
    let table = toml::Table::try_from(&agreed).context("cannot write the settings as TOML")?;
    for (section, value) in table {
        let keys = value.as_table().into_iter().flatten();
        lines.extend(keys.map(|(key, value)| format!("{section}.{key} = {value}")));
    }
    Ok(lines.join("\n"))
}

/// A device's description without its threads, in which ranks may differ.
fn kernels(described: &str) -> String {
    let parts = described.split(", ").filter(|part| !part.ends_with("thread") && !part.ends_with("threads"));
    parts.collect::<Vec<_>>().join(", ")
}

/// The run's folder (held, by rank 0), and the checkpoint to resume from. Only rank 0 makes folders.
fn folder(
    settings: &Settings,
    first: bool,
    resume: bool,
) -> Result<(PathBuf, Option<RunFolder>, Option<PathBuf>)> {
    let base = Path::new(&settings.run.dir);
    if !resume {
        let created = first.then(|| run_folder::create(base)).transpose()?;
        let path = created.as_ref().map_or_else(|| base.to_owned(), |folder| folder.path.clone());
        return Ok((path, created, None));
    }
    let (path, checkpoint) = run_folder::latest(base)?;
    let held = first.then(|| run_folder::hold(path.clone())).transpose()?;
    Ok((path, held, Some(checkpoint)))
}

/// The model with its first weights: random ones, or a Hugging Face folder's.
fn model(settings: &Settings, device: CpuDevice, tokens: usize) -> Result<Transformer> {
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
        logging::say(format_args!("interrupted after step {}; go on with --resume", outcome.step));
    } else {
        logging::say(format_args!(
            "  try       cargo run --release -- generate --model {} \"{prompt}\"",
            folder.display()
        ));
    }
    Ok(())
}
