//! One rank of a run: everything is opened, connected and handed to the trainer.

use super::{environment, first_weights, open_device};
use crate::exit;
use crate::found_data::FoundData;
use crate::gathered::texts;
use crate::logging;
use crate::report;
use crate::run_data::{self, RunData};
use crate::run_folder::{self, RunFolder};
use crate::run_settings::Settings;
use crate::settings::{Resolved, render};
use crate::sinks::{Many, MetricsFile, Progress, TensorBoard};
use anyhow::{Context, Result};
use gradus_collective::algorithm::Nodes;
use gradus_collective::{Collective, Communicator};
use gradus_compute::Device;
use gradus_error::{Error, Kind};
use gradus_fabric::membership::{CoordinatorAddress, GroupSettings};
use gradus_fabric::{
    Launch, NetworkSettings, Order, Seat, Session, SessionSettings, TlsSettings, Transport, World, connect,
    interface_of,
};
use gradus_host::{Clock, RealClock, disk, processors};
use gradus_model::ModelConfig;
use gradus_store::{DataSummary, Tokenizer};
use gradus_train::{FirstWeights, Observer, Outcome, Parts, RunSettings, Trainer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Bytes of what ranks hold against each other, more than a digest or a device's description has.
const LONGEST_TERM: usize = 256;

/// Bytes of a host's name, as Linux has them (HOST_NAME_MAX).
const LONGEST_HOST: usize = 64;

/// Trains as one rank (the only one without a launch); returns the exit code.
///
/// # Errors
/// The run's first failure.
pub fn run(resolved: &Resolved<Settings>, launch: Option<Launch>, resume: bool) -> Result<u8> {
    let settings = &resolved.settings;
    settings.check(launch.as_ref().map_or(1, |launch| launch.world_size))?;
    let network = settings.network_of(launch.as_ref().unwrap_or(&Launch::alone()))?;
    // Ranks meet first: one that never comes is missed now, not after the data are prepared.
    let (_session, mut communicator) = join(settings, &network, launch.as_ref())?;
    let opened = open(resolved, resume, (&network, launch.as_ref()), &mut communicator);
    let opened = opened.inspect_err(|error| communicator.give_up(&as_told(error)))?;
    let Opened {
        folder,
        run,
        nodes,
        hosts,
        config,
        first,
        device,
        measure_on,
        memory_bytes,
        summary,
        data,
        tokenizer,
        mut observer,
        peak_flops_per_s,
        stop,
    } = opened;
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let RunData { train: tokens, held_out, keepers } = data;
    let parts = Parts {
        config,
        first,
        device,
        measure_on,
        memory_bytes,
        communicator,
        nodes,
        hosts,
        data: summary,
        tokens,
        held_out,
        tokenizer,
        clock,
        peak_flops_per_s,
    };
    let outcome = train(parts, run, observer.as_mut(), &stop)?;
    drop(observer);
    drop(keepers);
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
    nodes: Nodes,
    hosts: Vec<String>,
    config: ModelConfig,
    first: FirstWeights,
    device: Arc<dyn Device>,
    measure_on: Option<Arc<dyn Device>>,
    memory_bytes: u64,
    summary: DataSummary,
    data: RunData,
    tokenizer: Option<Tokenizer>,
    observer: Box<dyn Observer>,
    peak_flops_per_s: f64,
    stop: Arc<AtomicBool>,
}

fn open(
    resolved: &Resolved<Settings>,
    resume: bool,
    (network, launch): (&NetworkSettings, Option<&Launch>),
    communicator: &mut Communicator,
) -> Result<Opened> {
    let settings = &resolved.settings;
    let first = communicator.rank() == 0;
    let found = FoundData::find(settings, communicator)?;
    // Others may have more to prepare than we.
    communicator.patient_barrier()?;
    let seats = seats(communicator, &network.node_id)?;
    let sharers = seats[communicator.rank()].sharers(&seats);
    let nodes = Nodes::try_from(Seat::by_node(&seats))?;
    let hosts = hosts(communicator)?;
    let device = open_device(settings.train.threads, sharers, settings.train.precision)?;
    let summary = found.summary(settings)?;
    agree(communicator, "the data", &summary.digest)?;
    agree(communicator, "the kernels", &kernels(&device.describe()))?;
    // Until here a signal simply ends the process: there is nothing to save yet.
    let stop = stop_on_signals()?;
    let (path, folder, checkpoint) = folder(settings, first, resume)?;
    let tokenizer = found.dataset().tokenizer()?;
    let mut place = run_data::Place { communicator, nodes: &nodes, network, launch };
    let data = RunData::open(&found, settings, &mut place)?;
    // All ranks measure at once, as they will compute: a peak that nobody else shares would flatter nobody.
    communicator.patient_barrier()?;
    let peak_flops_per_s = device.peak_flops();
    let config = settings.model_config(found.dataset().vocabulary())?;
    let observer = observers(resolved, first, &path)?;
    let run = settings.run_settings(path, checkpoint)?;
    // The ranks of a host share its memory as they share its processors.
    let memory_bytes = processors::total_memory_bytes().map_or(u64::MAX, |bytes| bytes / sharers as u64);
    let measure_on = match first && settings.parallel.stages() > 1 {
        true => Some(Arc::new(open_device(settings.train.threads, sharers, settings.train.precision)?) as _),
        false => None,
    };
    let (first, device) = (first_weights(settings), Arc::new(device));
    Ok(Opened {
        folder,
        run,
        nodes,
        hosts,
        config,
        first,
        device,
        measure_on,
        memory_bytes,
        summary,
        data,
        tokenizer,
        observer,
        peak_flops_per_s,
        stop,
    })
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

/// Joins the other ranks. The session, if there is one, is to be dropped after the communicator: a rank leaves its group
/// when it has done all that it had promised.
fn join(
    settings: &Settings,
    network: &NetworkSettings,
    launch: Option<&Launch>,
) -> Result<(Option<Session>, Communicator)> {
    let Some(launch) = launch else {
        if !settings.launch.rdzv.is_empty() {
            tracing::warn!(
                "launch.rdzv is for ranks, and no launcher has made this process one: it trains alone"
            );
        }
        return Ok((None, Communicator::alone()));
    };
    let (session, transport) = match Group::of(settings, launch)? {
        Some(group) => {
            let member = member(settings, network, launch, &group)?;
            let patience = Duration::from_secs(settings.network.rendezvous_timeout_s);
            let (session, world) = group.enter(member, patience)?;
            (Some(session), world.transport)
        }
        None => (None, connect(launch, settings.transport()?, network, &terms(settings)?)?),
    };
    show_place(launch, &*transport);
    let mut communicator = Communicator::new(transport, settings.stall_timeout()?);
    record_flight(&mut communicator)?;
    Ok((session, communicator))
}

/// The group that the ranks are members of, and where its coordinator is.
struct Group {
    coordinator: CoordinatorAddress,
    name: String,
    tls: TlsSettings,
    /// Whether a person said where its coordinator is.
    is_foreign: bool,
}

/// The group where the ranks' launcher runs its coordinator, which has no other.
const OWN_GROUP: &str = "train";

impl Group {
    /// The group that a person names, or the launcher's own; none under other launchers.
    fn of(settings: &Settings, launch: &Launch) -> Result<Option<Self>> {
        if let Some(coordinator) = settings.coordinator(&environment)? {
            let name = settings.group(&launch.job_name())?;
            return Ok(Some(Self { coordinator, name, tls: settings.network.tls.clone(), is_foreign: true }));
        }
        Ok(launch.coordinator.clone().map(|place| Self {
            coordinator: CoordinatorAddress::At(place),
            name: OWN_GROUP.to_owned(),
            // It never leaves the host.
            tls: TlsSettings::default(),
            is_foreign: false,
        }))
    }

    /// Becomes a member and waits for the first world, both within `patience`.
    fn enter(&self, member: SessionSettings, patience: Duration) -> Result<(Session, World), Error> {
        let clock = RealClock::new();
        let until = clock.now() + patience;
        let joined = Session::join_within(member, patience);
        let mut session = joined.map_err(|error| match self.is_foreign {
            true => error.within("launch.rdzv"),
            false => error,
        })?;
        let world = session.next_world(until.saturating_sub(clock.now()));
        Ok((session, world.map_err(|error| self.explain(error))?))
    }

    /// A failure to form a world, with what a person may have to mend.
    fn explain(&self, error: Error) -> Error {
        let Self { coordinator, name, .. } = self;
        match error.kind() {
            Kind::Unavailable if self.is_foreign => error.within(format!(
                "no world of {name} at {coordinator} (all ranks are to be given the same --rdzv and --rdzv-id)"
            )),
            Kind::Fenced if self.is_foreign => error.within(format!(
                "another job at {coordinator} is called {name}, too (--rdzv-id), or a clock of this job's hosts is behind"
            )),
            _ => error,
        }
    }
}

fn member(
    settings: &Settings,
    network: &NetworkSettings,
    launch: &Launch,
    group: &Group,
) -> Result<SessionSettings> {
    let world_size = u32::try_from(launch.world_size).context("the world is too large")?;
    Ok(SessionSettings {
        coordinator: group.coordinator.clone(),
        group: group.name.clone(),
        size: GroupSettings::fixed(world_size),
        name: format!("rank-{}", launch.rank),
        order: Order::ByName,
        secret: launch.secret.clone(),
        coordinator_tls: group.tls.clone(),
        transport: settings.transport()?,
        network: network.clone(),
        interfaces: launch.interfaces.clone(),
        fingerprint: terms(settings)?,
    })
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

/// Where ranks leave what they did last, for `gradus flight`: on a failure, and on SIGUSR1.
const FLIGHT_FOLDER: &str = "GRADUS_FLIGHT_DIR";

fn record_flight(communicator: &mut Communicator) -> Result<()> {
    let Some(folder) = std::env::var_os(FLIGHT_FOLDER).filter(|folder| !folder.is_empty()) else {
        return Ok(());
    };
    let wanted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&wanted))
        .context("cannot watch for SIGUSR1")?;
    communicator.record_flight(folder.into(), wanted);
    Ok(())
}

/// The settings that all ranks must share, one a line: all but how this rank was started, its node, its own interfaces and
/// its files of TLS.
fn terms(settings: &Settings) -> Result<String> {
    let network = NetworkSettings {
        interface: String::new(),
        node_id: String::new(),
        rack: String::new(),
        tls: TlsSettings::default(),
        ..settings.network.clone()
    };
    let agreed = Settings { launch: Default::default(), network, ..settings.clone() };
    let mut lines = Vec::new();
    let table = toml::Table::try_from(&agreed).context("cannot write the settings as TOML")?;
    for (section, value) in table {
        let keys = value.as_table().into_iter().flatten();
        lines.extend(keys.map(|(key, value)| format!("{section}.{key} = {value}")));
    }
    Ok(lines.join("\n"))
}

/// Where all ranks compute.
fn seats(communicator: &mut Communicator, node_id: &str) -> Result<Vec<Seat>> {
    let own = Seat::of_this_process(node_id);
    let mut words = vec![0i64; Seat::WORDS * communicator.world_size()];
    communicator.run(&Collective::all_gather(), &own.to_words(), &mut words)?;
    Ok(words.as_chunks().0.iter().map(Seat::from_words).collect())
}

/// What people call the hosts of all ranks.
fn hosts(communicator: &mut Communicator) -> Result<Vec<String>> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(texts(communicator, &name, LONGEST_HOST)?)
}

/// Holds what this rank has against what rank 0 has: with other data or kernels that round differently the ranks would
/// drift apart.
fn agree(communicator: &mut Communicator, what: &str, own: &str) -> Result<()> {
    let mut theirs = [0; LONGEST_TERM];
    let len = own.len().min(LONGEST_TERM);
    theirs[..len].copy_from_slice(&own.as_bytes()[..len]);
    let ours = theirs;
    communicator.broadcast(0, &mut theirs)?;
    if theirs == ours {
        return Ok(());
    }
    let theirs = String::from_utf8_lossy(&theirs);
    Err(Error::invalid(format!(
        "{what} of rank {} are not those of rank 0 ({own} against {}): give all ranks the same",
        communicator.rank(),
        theirs.trim_end_matches('\0')
    ))
    .into())
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
    } else if folder.join("model/tokenizer.json").is_file() {
        logging::say(format_args!(
            "  try       cargo run --release -- generate --model {} \"{prompt}\"",
            folder.display()
        ));
    }
    Ok(())
}
