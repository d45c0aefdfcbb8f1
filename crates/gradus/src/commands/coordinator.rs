//! `gradus coordinator`: the membership of groups, on its own, for runs that outlive any of their launchers.

use crate::logging;
use crate::settings::parse_duration;
use anyhow::Result;
use gradus_error::IoContext;
use gradus_fabric::Secret;
use gradus_fabric::membership::{CoordinatorNote, CoordinatorServer, Timeouts};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct CoordinatorArguments {
    /// Where members find it, HOST:PORT; port 0 takes any that is free. Beyond loopback it wants a secret, in
    /// GRADUS_SECRET or in the file that GRADUS_SECRET_FILE names.
    #[arg(long, default_value = "127.0.0.1:29600")]
    pub listen: String,
    /// The file from which it goes on after a restart; a lock is kept beside it.
    #[arg(long)]
    pub state: PathBuf,
    /// How long a member may be silent before it is taken for dead; all its members say the same.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub failure_detection: Duration,
}

/// Serves until a signal ends it, in good order: whoever starts it again on the same file goes on.
///
/// # Errors
/// What is wrong with the address or the file, or another coordinator that has taken over.
pub fn run(arguments: &CoordinatorArguments) -> Result<()> {
    let timeouts = Timeouts::from(arguments.failure_detection)?;
    let secret = Secret::from_environment(&|name| std::env::var(name).ok())?;
    let stop = stop_signals()?;
    let mut server = CoordinatorServer::open(&arguments.listen, &arguments.state, timeouts, &secret)?;
    logging::print(format_args!("listening on {}", server.address()))?;
    server.run(&stop, report)?;
    Ok(())
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
        CoordinatorNote::Superseded { term } => tracing::error!(term, "another coordinator has taken over"),
    }
}
