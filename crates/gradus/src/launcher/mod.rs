//! `--nproc-per-node N`: this program, started N times on this host as the ranks of one run.
//!
//! Ranks find each other as under any launcher, by `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, `GROUP_RANK`,
//! `MASTER_ADDR` and `MASTER_PORT` (the names of torchrun). One thing is better than under a foreign one: the rendezvous'
//! listener is bound here, to a port that the system chooses, and handed on to rank 0 as an open descriptor
//! ([`RENDEZVOUS_FD`]), so no port is raced for.
//!
//! Ranks that train are members of a group besides, whose coordinator runs here, in a thread of the launcher's, unless they
//! are told of another.
//!
//! The run's secret is made here, where nobody has set one, and handed on by the environment: on a command line every user
//! of the host could read it.
//!
//! Each rank leads a process group of its own. A terminal's Ctrl-C then reaches the launcher alone, which passes it on
//! exactly once, whoever sent it and however.
//!
//! Invariant: when [`Launch::run`] returns, for whatever reason, no rank is alive; and when the launcher itself is
//! killed, the kernel kills the ranks.

mod coordinator;
pub mod last_word;
mod lines;
mod rank;
mod signals;
mod supervise;
#[cfg(test)]
mod tests;

use crate::exit;
use coordinator::Coordinator;
use gradus_error::{Error, IoContext, Result};
use gradus_fabric::Secret;
use gradus_fabric::membership::Timeouts;
use gradus_host::{RealClock, descriptors};
use signals::Signals;
use std::ffi::OsString;
use std::fmt;
use std::io::IsTerminal;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names the descriptor on which rank 0 inherits the rendezvous' listener, bound to `MASTER_ADDR` and `MASTER_PORT`.
pub const RENDEZVOUS_FD: &str = "GRADUS_RENDEZVOUS_FD";

/// The number of an open descriptor, as an environment variable names it.
fn descriptor_variable(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

/// Time from telling the ranks to stop, because one has failed, to killing them.
const GRACE: Duration = Duration::from_secs(5);

/// More ranks on one host are a slip of the finger.
const MOST_RANKS: usize = 1024;

/// What is to be started, and how often.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program of every rank.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Ranks.
    pub ranks: usize,
    /// Variables on top of those of this process and of the launch's own.
    pub environment: Vec<(OsString, OsString)>,
    /// Time from telling the ranks to stop, because one has failed, to killing them.
    pub grace: Duration,
    /// What group the ranks are members of.
    pub membership: Membership,
}

/// What group ranks are members of.
#[derive(Debug, Clone, Copy)]
pub enum Membership {
    /// Of none.
    Nowhere,
    /// Of one whose coordinator the launcher runs, with these spans.
    Here(Timeouts),
    /// Of one whose coordinator they have been told of: it knows no secret that is made here.
    Elsewhere,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// How a launch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatusSummary {
    /// Every rank ended with 0.
    Done,
    /// Ranks ended with 130, or by the signal that was passed on to them.
    Interrupted,
    /// A second signal killed the ranks.
    Killed,
    /// A rank failed, and the others were stopped.
    Failed {
        /// The rank that failed first.
        rank: usize,
        /// How.
        ending: Ending,
    },
}

impl ExitStatusSummary {
    /// The exit code of a launcher that saw this.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Done => exit::DONE,
            Self::Interrupted => exit::INTERRUPTED,
            Self::Failed { ending: Ending::Code(2), .. } => exit::BAD_INPUT,
            // Killed too: 130 would promise a checkpoint of the last step.
            Self::Killed | Self::Failed { .. } => exit::FAILED,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(9) => f.write_str("was ended by SIGKILL (the kernel sends it when memory runs out)"),
            Self::Signal(number) => match signal_hook::low_level::signal_name(*number) {
                Some(name) => write!(f, "was ended by {name}"),
                None => write!(f, "was ended by signal {number}"),
            },
        }
    }
}

impl fmt::Display for ExitStatusSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("all ranks are done"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Killed => f.write_str(
                "killed by a second signal: the run resumes from its last checkpoint, if it has one",
            ),
            Self::Failed { rank, ending } => write!(f, "rank {rank} {ending}"),
        }
    }
}

/// Starts `nproc` ranks of `program` on this host and waits for them all: see [`Launch::run`].
///
/// # Errors
/// As [`Launch::run`].
pub fn launch_local(
    program: &Path,
    args: &[OsString],
    nproc: usize,
    environment: &[(OsString, OsString)],
    membership: Membership,
) -> Result<ExitStatusSummary> {
    let launch = Launch {
        program: program.to_owned(),
        arguments: args.to_vec(),
        ranks: nproc,
        environment: environment.to_vec(),
        grace: GRACE,
        membership,
    };
    launch.run()
}

impl Launch {
    /// Starts the ranks and blocks until all have ended.
    ///
    /// Rank 0 has this process' stdout and stderr; each line of the others goes to stderr behind `[rank N] `. When a
    /// rank fails the others are sent SIGTERM, and SIGKILL after the grace. SIGINT, SIGTERM and SIGHUP are passed on
    /// once; a second one kills. SIGTSTP stops the ranks with the launcher.
    ///
    /// Must be called on a thread that lives until it returns, as the main thread does: the kernel kills the ranks when
    /// the *thread* that started them ends.
    ///
    /// # Errors
    /// `Invalid` for no rank or more than 1024, a program that is not there, or a secret that is none; else the system's failure to bind,
    /// start or wait. No rank is left alive.
    pub fn run(&self) -> Result<ExitStatusSummary> {
        // Unlocked: the coordinator's threads log there too.
        let mut stderr = std::io::stderr();
        // Before the first rank, so that no signal finds ranks and nobody to pass it on.
        let signals = Signals::register()?;
        let (ranks, _coordinator) = self.start(stderr.is_terminal())?;
        supervise::run(ranks, &signals, self.grace, &RealClock::new(), &mut stderr)
    }

    /// The ranks, started, and their coordinator, which is to live as long as they. `clear` says that their lines go to a
    /// terminal on which rank 0 may draw.
    fn start(&self, clear: bool) -> Result<(Vec<rank::Rank>, Option<Coordinator>)> {
        if self.ranks == 0 || self.ranks > MOST_RANKS {
            return Err(Error::invalid(format!(
                "{} ranks on one host: choose 1 to {MOST_RANKS}",
                self.ranks
            )));
        }
        check_descriptors(self.ranks)?;
        // Its listener is dropped at the end: once rank 0 has it, its death must close the port.
        let meeting = Meeting::prepare(self.membership)?;
        let ranks = (0..self.ranks).map(|number| rank::Rank::start(self, number, &meeting, clear));
        Ok((ranks.collect::<Result<_>>()?, meeting.coordinator))
    }
}

/// Files that this process holds open for each rank: its pipes, its process, its connections to the coordinator.
const FILES_PER_RANK: usize = 6;

/// And for itself.
const FILES: usize = 32;

/// Whether it may open as many; as far as the system allows, it may from now on.
fn check_descriptors(ranks: usize) -> Result<()> {
    let wanted = FILES + ranks * FILES_PER_RANK;
    if descriptors::limit() < wanted {
        descriptors::raise_limit();
    }
    match descriptors::limit() {
        limit if limit < wanted => Err(Error::exhausted(format!(
            "{ranks} ranks take {wanted} open files, and this process may have {limit}: raise the limit (ulimit -n)"
        ))),
        _ => Ok(()),
    }
}

/// What ranks need to meet.
#[derive(Debug)]
struct Meeting {
    listener: TcpListener,
    port: u16,
    /// Made here; `None` where ranks inherit one from this process' environment, or need none.
    secret: Option<Secret>,
    coordinator: Option<Coordinator>,
}

impl Meeting {
    fn prepare(membership: Membership) -> Result<Self> {
        let describe = || "cannot bind the rendezvous to 127.0.0.1".to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(describe)?;
        let port = listener.local_addr().context(describe)?.port();
        // A wrong one is refused here once, not in every rank.
        let given = Secret::from_environment(&|name| std::env::var(name).ok())?;
        let makes = given.is_empty() && !matches!(membership, Membership::Elsewhere);
        let made = makes.then(Secret::make);
        let coordinator = match membership {
            Membership::Here(timeouts) => {
                Some(Coordinator::start(timeouts, made.as_ref().unwrap_or(&given))?)
            }
            Membership::Nowhere | Membership::Elsewhere => None,
        };
        Ok(Self { listener, port, secret: made, coordinator })
    }
}
