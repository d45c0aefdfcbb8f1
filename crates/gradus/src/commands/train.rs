//! `gradus train`: under somebody's launcher one rank; otherwise the launcher of local ranks, or the only rank.

use super::{environment, place_in_the_world, prepare, rank};
use crate::exit;
use crate::launcher::{ExitStatusSummary, Membership, launch_local};
use crate::logging;
use crate::run_settings::Settings;
use crate::settings::{Origin, Resolved, resolve};
use anyhow::{Context, Result};
use gradus_error::Error;
use gradus_fabric::Launch;
use gradus_host::processors;
use std::ffi::OsString;
use std::path::PathBuf;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct TrainArguments {
    /// Settings of the run, as TOML.
    pub file: PathBuf,
    /// Local ranks to start; overrides launch.nproc_per_node.
    #[arg(long)]
    pub nproc_per_node: Option<usize>,
    /// Name of the node that this host's ranks lie on; overrides network.node_id.
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
    /// Where the coordinator of the ranks' group is, the same for all ranks: HOST:PORT of a `gradus coordinator`, or
    /// etcd://HOST:2379/PREFIX where coordinators lead. A rank that dies, stops or is cut off is then found out within
    /// network.failure_detection under any launcher. Overrides launch.rdzv.
    #[arg(long)]
    pub rdzv: Option<String>,
    /// What tells this job from others there, the same for all ranks; without it the launcher's number or name of the job,
    /// else where its ranks meet. Overrides launch.rdzv_id.
    #[arg(long)]
    pub rdzv_id: Option<String>,
    /// Go on from the newest checkpoint of the newest run in run.dir.
    #[arg(long)]
    pub resume: bool,
}

/// Trains; returns the exit code.
///
/// # Errors
/// The run's first failure.
pub fn run(arguments: &TrainArguments, overrides: &[(String, String)]) -> Result<u8> {
    let mut resolved: Resolved<Settings> = resolve(Some(&arguments.file), overrides)?;
    arguments.override_launch(&mut resolved);
    prefer_command_line_length(&mut resolved);
    let launch = place_in_the_world()?;
    check_nproc(arguments.nproc_per_node, launch.as_ref())?;
    match launch {
        Some(launch) => rank::run(&resolved, Some(launch), arguments.resume),
        None if resolved.settings.launch.nproc_per_node == 1 => rank::run(&resolved, None, arguments.resume),
        None => launch_ranks(&resolved.settings),
    }
}

impl TrainArguments {
    fn override_launch(&self, resolved: &mut Resolved<Settings>) {
        let launch = &mut resolved.settings.launch;
        let mut given = Vec::new();
        if let Some(ranks) = self.nproc_per_node {
            launch.nproc_per_node = ranks;
            given.push("launch.nproc_per_node");
        }
        if let Some(place) = &self.rdzv {
            launch.rdzv.clone_from(place);
            given.push("launch.rdzv");
        }
        if let Some(id) = &self.rdzv_id {
            launch.rdzv_id.clone_from(id);
            given.push("launch.rdzv_id");
        }
        if let Some(name) = &self.node_id {
            resolved.settings.network.node_id.clone_from(name);
            given.push("network.node_id");
        }
        resolved.origins.extend(given.into_iter().map(|key| (key.to_owned(), Origin::CommandLine)));
    }
}

/// Ranks that this process should start, where another launcher has made it a rank already, are a mistake.
///
/// # Errors
/// `Invalid`, naming the launcher.
pub(super) fn check_nproc(asked: Option<usize>, launch: Option<&Launch>) -> Result<(), Error> {
    match (asked, launch) {
        (Some(asked), Some(launch)) if asked != launch.local_world_size => Err(Error::invalid(format!(
            "--nproc-per-node is {asked}, but another launcher has started this process as rank {} of {} ({}): leave it \
             out there, or unset those variables here",
            launch.rank, launch.world_size, launch.origin
        ))),
        _ => Ok(()),
    }
}

/// A length given on the command line replaces the other kind of length in the file.
fn prefer_command_line_length(resolved: &mut Resolved<Settings>) {
    let given = |key: &str| resolved.origins.get(key) == Some(&Origin::CommandLine);
    match (given("train.steps"), given("train.duration")) {
        (true, false) => {
            resolved.settings.train.duration.clear();
            resolved.origins.insert("train.duration".into(), Origin::CommandLine);
        }
        (false, true) => {
            resolved.settings.train.steps = 0;
            resolved.origins.insert("train.steps".into(), Origin::CommandLine);
        }
        _ => {}
    }
}

/// Finds what is wrong with the settings and the data once, before there are ranks to say it many times; then starts
/// them.
fn launch_ranks(settings: &Settings) -> Result<u8> {
    let ranks = settings.launch.nproc_per_node;
    settings.check(ranks)?;
    settings.network_of(&Launch::local(0, ranks, 0))?;
    let elsewhere = settings.coordinator(&environment)?.is_some();
    // Launchers of other hosts may be about to prepare the same: rank 0 of them all does it where they share a bucket.
    if !(elsewhere && prepare::is_addressed(settings)) {
        settings.model_config(prepare::vocabulary(settings)?)?;
    }
    let here = Membership::Here(settings.network.timeouts()?);
    start_ranks(ranks, if elsewhere { Membership::Elsewhere } else { here })
}

/// Starts this program again as `ranks` local ranks, with the same arguments; returns their exit code.
///
/// # Errors
/// As [`launch_local`].
pub(super) fn start_ranks(ranks: usize, membership: Membership) -> Result<u8> {
    let cores = processors::available();
    if ranks > cores {
        tracing::warn!("{ranks} ranks share {cores} processors: they will take turns");
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let ended = launch_local(&program, &arguments, ranks, &[], membership)?;
    if !matches!(ended, ExitStatusSummary::Done) {
        logging::say(format_args!("gradus: {ended}"));
    }
    Ok(match ended {
        ExitStatusSummary::Done => exit::DONE,
        other => other.exit_code(),
    })
}
