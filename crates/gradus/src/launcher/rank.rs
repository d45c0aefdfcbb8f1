//! One rank: a process that leads its own group, dies with the launcher, and is gone when it is dropped.

use super::last_word::{Ear, LAST_WORD_FD, LastWord};
use super::lines::Lines;
use super::{Ending, Launch, Meeting, RENDEZVOUS_FD};
use gradus_error::{IoContext, Result};
use gradus_fabric::{COORDINATOR, SECRET};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

/// Read at once from a rank's pipe: the usual capacity of one.
const CHUNK_BYTES: usize = 1 << 16;

/// A pipe never holds more than this unless its owner is privileged (pipe(7), `pipe-max-size`).
const LARGEST_PIPE_BYTES: usize = 1 << 20;

/// A rank that has been started.
#[derive(Debug)]
pub struct Rank {
    /// Its number.
    pub number: usize,
    /// Its pipes that are still open.
    pub outputs: Vec<Output>,
    child: Child,
    ear: Ear,
    /// Readable once the process has ended; `None` once that has been taken note of.
    pidfd: Option<OwnedFd>,
}

/// The reading end of a rank's stdout or stderr.
#[derive(Debug)]
pub struct Output {
    pipe: OutputPipe,
    lines: Lines,
}

#[derive(Debug)]
enum OutputPipe {
    Stdout(ChildStdout),
    Stderr(ChildStderr),
}

impl Rank {
    /// Starts rank `number`; rank 0 inherits the meeting's listener.
    ///
    /// # Errors
    /// `Invalid` if the program is not there; else the system's failure to start it.
    pub(super) fn start(launch: &Launch, number: usize, meeting: &Meeting, clear: bool) -> Result<Self> {
        let mut command = command(launch, number, meeting);
        let (ear, mouth) = Ear::open()?;
        command.env(LAST_WORD_FD, mouth.as_raw_fd().to_string());
        let rendezvous = (number == 0).then(|| meeting.listener.as_raw_fd());
        let inherited = [Some(mouth.as_raw_fd()), rendezvous];
        match rendezvous {
            Some(descriptor) => command.env(RENDEZVOUS_FD, descriptor.to_string()),
            None => command.env_remove(RENDEZVOUS_FD).stdout(Stdio::piped()).stderr(Stdio::piped()),
        };
        let launcher = rustix::process::getpid();
        let prepare = move || prepare_child(launcher, inherited);
        // SAFETY: between fork and exec only the forking thread exists, so the closure may do nothing that takes a
        // lock or allocates: it makes a few system calls on plain integers, and turns an error number into an error
        // without allocating.
        unsafe { command.pre_exec(prepare) };
        let describe = || format!("cannot start rank {number}: {}", launch.program.display());
        let child = command.spawn().context(describe)?;
        Self::watch(number, child, ear, clear)
    }

    /// Takes hold of a child that has just been started.
    fn watch(number: usize, child: Child, ear: Ear, clear: bool) -> Result<Self> {
        let mut rank = Self { number, outputs: Vec::new(), child, ear, pidfd: None };
        let describe = || format!("cannot watch rank {number}");
        // On failure the rank is dropped here, which must find it alive.
        rank.pidfd = Some(pidfd_open(rank.pid(), PidfdFlags::empty()).context(describe)?);
        let stdout = rank.child.stdout.take().map(OutputPipe::Stdout);
        let stderr = rank.child.stderr.take().map(OutputPipe::Stderr);
        for pipe in [stdout, stderr].into_iter().flatten() {
            ioctl_fionbio(pipe.as_fd(), true).context(describe)?;
            rank.outputs.push(Output { pipe, lines: Lines::new(number, clear) });
        }
        Ok(rank)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What to wait on for its end; `None` once it has been reaped.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(OwnedFd::as_fd)
    }

    /// Whether its end has not been taken note of.
    pub fn is_running(&self) -> bool {
        self.pidfd.is_some()
    }

    /// Sends `signal` to the rank and to whatever it has started, unless it has been reaped.
    pub fn signal(&self, signal: Signal) {
        if self.is_running() {
            // The only failure is that nobody is left, which is what signals are for here.
            let _ = kill_process_group(self.pid(), signal);
        }
    }

    /// Takes note of its end; to be called once its pidfd is readable. What it has left running is killed: as long as
    /// the rank is not reaped its number, and so its group's, cannot have passed to anyone else.
    ///
    /// # Errors
    /// The system's failure to wait.
    pub fn reap(&mut self) -> Result<Ending> {
        self.signal(Signal::KILL);
        let status = self.child.wait().context(|| format!("cannot wait for rank {}", self.number))?;
        self.pidfd = None;
        Ok(match status.code() {
            Some(code) => Ending::Code(code),
            None => Ending::Signal(status.signal().unwrap_or(0)),
        })
    }

    /// What it said last; to be called once it has ended.
    pub fn last_word(&mut self) -> Option<LastWord> {
        self.ear.hear()
    }

    /// Passes on what is in the pipes of a rank that has ended. They need not be at their end: a process that left the
    /// rank's group may hold them, and is not waited for.
    pub fn drain(&mut self, out: &mut dyn Write) {
        for mut output in self.outputs.drain(..) {
            let chunks = LARGEST_PIPE_BYTES / CHUNK_BYTES;
            let _ = (0..chunks).take_while(|_| output.forward(out) == Forwarded::Some).count();
            output.lines.finish(out);
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// What came of reading a pipe once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// Something, and there may be more.
    Some,
    /// Nothing for now.
    Nothing,
    /// Its end.
    End,
}

impl Output {
    /// Reads once, without blocking, and passes on the lines.
    pub fn forward(&mut self, out: &mut dyn Write) -> Forwarded {
        let mut chunk = [0; CHUNK_BYTES];
        let read = match &mut self.pipe {
            OutputPipe::Stdout(pipe) => pipe.read(&mut chunk),
            OutputPipe::Stderr(pipe) => pipe.read(&mut chunk),
        };
        match read {
            Ok(0) => {
                self.lines.finish(out);
                Forwarded::End
            }
            Ok(count) => {
                self.lines.feed(&chunk[..count], out);
                Forwarded::Some
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Forwarded::Nothing
            }
            Err(_) => Forwarded::End,
        }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl AsFd for OutputPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(pipe) => pipe.as_fd(),
            Self::Stderr(pipe) => pipe.as_fd(),
        }
    }
}

fn command(launch: &Launch, number: usize, meeting: &Meeting) -> Command {
    let mut command = Command::new(&launch.program);
    // Rank 0 stands for the whole run, also towards whoever feeds it.
    let stdin = if number == 0 { Stdio::inherit() } else { Stdio::null() };
    command.args(&launch.arguments).stdin(stdin).process_group(0);
    let (number, world) = (number.to_string(), launch.ranks.to_string());
    command.env("RANK", &number).env("WORLD_SIZE", &world);
    command.env("LOCAL_RANK", &number).env("LOCAL_WORLD_SIZE", &world).env("GROUP_RANK", "0");
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", meeting.port.to_string());
    match &meeting.coordinator {
        Some(coordinator) => command.env(COORDINATOR, coordinator.address().to_string()),
        None => command.env_remove(COORDINATOR),
    };
    if let Some(secret) = &meeting.secret {
        command.env(SECRET, secret.as_value());
    }
    command.envs(launch.environment.iter().map(|(name, value)| (name, value)));
    command
}

/// Runs in the child, between fork and exec.
fn prepare_child(launcher: Pid, inherited: [Option<i32>; 2]) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the launcher died before that call, nobody will send the signal: its children have a new parent by now.
    if rustix::process::getppid() != Some(launcher) {
        return Err(Errno::SRCH.into());
    }
    for descriptor in inherited.into_iter().flatten() {
        // SAFETY: the launcher keeps the listener and the pipe open until this rank is started, so in this copy of its
        // table of descriptors the number names one of them.
        let handed_on = unsafe { BorrowedFd::borrow_raw(descriptor) };
        // Only in this child: the launcher's own copy, and so the other ranks', stays close-on-exec.
        fcntl_setfd(handed_on, FdFlags::empty())?;
    }
    Ok(())
}
