//! `gradus coordinator`: the membership of groups, on its own, for runs that outlive any of their launchers.

use super::environment;
use crate::logging;
use crate::settings::{parse_duration, resolve};
use anyhow::Result;
use gradus_error::{Error, IoContext};
use gradus_fabric::membership::{CoordinatorNote, CoordinatorServer, CoordinatorSettings, Engine, Timeouts};
use gradus_fabric::{EtcdAddress, Secret, TlsSettings};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("engine").required(true).args(["state", "rdzv"]))]
pub struct CoordinatorArguments {
    /// Where members find it, HOST:PORT; port 0 takes any that is free. Beyond loopback it wants a secret, in
    /// GRADUS_SECRET or in the file that GRADUS_SECRET_FILE names.
    #[arg(long, default_value = "127.0.0.1:29600")]
    pub listen: String,
    /// The file from which it goes on after a restart; a lock is kept beside it.
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// The etcd in which its state is kept, for any number of coordinators of which one leads:
    /// etcd://HOST:2379[,HOST:2379...]/PREFIX, or etcds:// for TLS.
    #[arg(long)]
    pub rdzv: Option<String>,
    /// Where members reach it, HOST:PORT, when that is not where it listens; with --rdzv.
    #[arg(long)]
    pub advertise: Option<String>,
    /// How long a member may be silent before it is taken for dead; all its members say the same.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub failure_detection: Duration,
}

/// What can follow by its dotted name.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    network: Network,
}

/// The part of a run's section of that name that counts here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    tls: TlsSettings,
}

/// Serves until a signal ends it, in good order: whoever starts it again on the same file goes on, and another that stands by on
/// the same etcd takes over.
///
/// # Errors
/// What is wrong with an argument, the address, the file or etcd, or another coordinator that has taken over.
pub fn run(arguments: &CoordinatorArguments, overrides: &[(String, String)]) -> Result<()> {
    let settings = resolve::<Settings>(None, overrides)?.settings;
    let settings = CoordinatorSettings {
        listen: arguments.listen.clone(),
        engine: arguments.engine(&environment)?,
        timeouts: Timeouts::from(arguments.failure_detection)?,
        secret: Secret::from_environment(&environment)?,
        tls: settings.network.tls,
    };
    if settings.secret.is_empty() {
        tracing::warn!(
            "it has no secret: any user of this host can join, push members out and end it. Give it and its members one, \
             in GRADUS_SECRET or in a file that GRADUS_SECRET_FILE names"
        );
    }
    let stop = stop_signals()?;
    // Each member takes one, and the usual limit is for programs that serve few.
    gradus_host::descriptors::raise_limit();
    let server = CoordinatorServer::open(settings)?;
    logging::print(format_args!("listening on {}", server.address()))?;
    server.run(&stop, report)?;
    Ok(())
}

impl CoordinatorArguments {
    fn engine(&self, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Engine, Error> {
        match (&self.rdzv, &self.state) {
            (Some(rdzv), _) => {
                let address = EtcdAddress::parse(rdzv, lookup).map_err(|error| error.within("--rdzv"))?;
                Ok(Engine::Etcd { address, advertise: self.advertise.clone() })
            }
            (None, Some(_)) if self.advertise.is_some() => Err(Error::invalid(
                "--advertise is for --rdzv: members of a coordinator on a file are told its address",
            )),
            (None, Some(file)) => Ok(Engine::File(file.clone())),
            (None, None) => Err(Error::invalid("give --state FILE, or --rdzv etcd://...")),
        }
    }
}

/// A socket that is readable once the program is to end.
fn stop_signals() -> Result<UnixStream> {
    let describe = || "cannot listen to signals".to_owned();
    let (stop, signals) = UnixStream::pair().context(describe)?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let end = signals.try_clone().context(describe)?;
        signal_hook::low_level::pipe::register(signal, end).context(describe)?;
    }
    Ok(stop)
}

fn report(note: &CoordinatorNote) {
    match note {
        CoordinatorNote::Started { term } => tracing::info!(term, "the coordinator begins its term"),
        CoordinatorNote::Joined { group, member } => {
            tracing::info!(group, member.name, member.host, member.incarnation, "joins");
        }
        CoordinatorNote::Lost { group, member, cause } => {
            tracing::warn!(group, member.name, member.host, member.incarnation, ?cause, "belongs no more");
        }
        CoordinatorNote::Formed { group, table } => {
            tracing::info!(group, epoch = table.epoch.0, members = table.members.len(), "a new epoch");
        }
        CoordinatorNote::Active { group, epoch } => tracing::info!(group, epoch = epoch.0, "all may act"),
        CoordinatorNote::Deposed { term } => tracing::info!(term, "leads no more, and stands by"),
        CoordinatorNote::Superseded { term } => tracing::error!(term, "another coordinator has taken over"),
    }
}
