//! `gradus preflight`: every link between the ranks of a run, measured and judged before anything is trained over it.

mod show;

use super::place_in_the_world;
use super::train::{check_nproc, start_ranks};
use crate::exit;
use crate::launcher::Membership;
use crate::logging;
use crate::run_settings::Settings;
use crate::settings::resolve;
use crate::wording::counted;
use anyhow::Result;
use gradus_collective::preflight::{Limits, Seated, Survey, Verdict, judge, survey};
use gradus_error::{Error, IoContext, Kind};
use gradus_fabric::{Launch, Transport, connect, node_mark};
use gradus_host::{RealClock, disk};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What ranks hold against each other when they meet: a rank that wants to train is not measured with.
const TERMS: &str = "command = preflight";

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct PreflightArguments {
    /// Settings of the run, as TOML; its sections launch and network count.
    pub file: Option<PathBuf>,
    /// Local ranks to start; overrides launch.nproc_per_node.
    #[arg(long)]
    pub nproc_per_node: Option<usize>,
    /// Name of the node that this host's ranks lie on; overrides network.node_id.
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
    /// Write everything that was measured, and the verdict, as JSON; rank 0 does.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report<'a> {
    transport: &'a str,
    limits: Limits,
    survey: &'a Survey,
    verdict: &'a Verdict,
}

/// Measures; returns the exit code.
///
/// # Errors
/// Why ranks could not meet or measure, naming them; `Unavailable` when a link, rank or clock is bad.
pub fn run(arguments: &PreflightArguments, overrides: &[(String, String)]) -> Result<u8> {
    let mut settings = resolve::<Settings>(arguments.file.as_deref(), overrides)?.settings;
    settings.network.node_id = arguments.node_id.clone().unwrap_or(settings.network.node_id);
    settings.network.check()?;
    let launch = place_in_the_world()?;
    check_nproc(arguments.nproc_per_node, launch.as_ref())?;
    match (launch, arguments.nproc_per_node.unwrap_or(settings.launch.nproc_per_node)) {
        (Some(launch), _) if launch.world_size > 1 => measure(&settings, &launch, arguments),
        (None, ranks) if ranks != 1 => {
            settings.network_of(&Launch::local(0, ranks, 0))?;
            start_ranks(ranks, Membership::Nowhere)
        }
        _ => Err(Error::invalid(
            "one rank alone has no links: give --nproc-per-node, or start one rank of several by a launcher",
        )
        .into()),
    }
}

fn measure(settings: &Settings, launch: &Launch, arguments: &PreflightArguments) -> Result<u8> {
    let patience = settings.stall_timeout()?;
    let network = settings.network_of(launch)?;
    let mut transport = connect(launch, settings.transport()?, &network, TERMS)?;
    let own = seat(&*transport, &network.node_id);
    let found = survey(&mut *transport, &own, &RealClock::new(), patience);
    let Some(survey) = found.inspect_err(|error| transport.abort(error))? else { return Ok(exit::DONE) };
    let verdict = judge(&survey, &Limits::default());
    for line in show::table(&survey, &verdict, transport.name()) {
        logging::print(line)?;
    }
    if let Some(path) = &arguments.json {
        let report = Report {
            transport: transport.name(),
            limits: Limits::default(),
            survey: &survey,
            verdict: &verdict,
        };
        write(path, &report)?;
    }
    match verdict.faults.len() as u64 {
        0 => Ok(exit::DONE),
        count => {
            let named =
                format!("the links are not fit for training: {}, named above", counted(count, "fault"));
            Err(Error::new(Kind::Unavailable, named).into())
        }
    }
}

fn seat(transport: &dyn Transport, node_id: &str) -> Seated {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    Seated {
        host_mark: node_mark(node_id),
        host: if node_id.is_empty() { host() } else { node_id.to_owned() },
        address: transport.address().map(|address| address.to_string()).unwrap_or_default(),
    }
}

fn write(path: &Path, report: &Report<'_>) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(report)
        .map_err(|error| Error::internal("a report can be written as JSON").with_source(error))?;
    disk::write_atomically(path, |file| {
        file.write_all(&text).context(|| format!("cannot write {}", path.display()))
    })
}
