//! Waiting for ranks, their lines and signals all at once, and deciding what follows from each.
//!
//! One `poll` waits on a pidfd for each rank, the reading ends of their pipes and the sockets of signals; its only limit
//! is the end of the grace after a failure. Nothing is asked for again and again.

use super::last_word::LastWords;
use super::rank::{Forwarded, Rank};
use super::signals::{Request, Signals, pause_myself};
use super::{Ending, ExitStatusSummary};
use gradus_error::{Error, Result};
use gradus_host::Clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use std::io::Write;
use std::time::Duration;

/// Waits until all `ranks` have ended, as `Launch::run` says.
///
/// # Errors
/// The system's failure to wait; ranks are killed as they are dropped.
pub fn run(
    ranks: Vec<Rank>,
    signals: &Signals,
    grace: Duration,
    clock: &dyn Clock,
    out: &mut dyn Write,
) -> Result<ExitStatusSummary> {
    let mut supervisor = Supervisor {
        ranks,
        signals,
        grace,
        clock,
        out,
        state: State::default(),
        words: LastWords::default(),
    };
    while supervisor.ranks.iter().any(Rank::is_running) {
        supervisor.turn()?;
    }
    for rank in &mut supervisor.ranks {
        rank.drain(supervisor.out);
    }
    supervisor.words.finish(supervisor.out);
    Ok(supervisor.state.summary())
}

/// What has happened so far.
#[derive(Debug, Default)]
struct State {
    first_failure: Option<(usize, Ending)>,
    /// A rank ended with 130, or by the signal that was passed on.
    interrupted: bool,
    /// Signals that asked to end.
    requests: usize,
    /// When ranks that have not stopped are killed.
    deadline: Option<Duration>,
}

impl State {
    fn summary(&self) -> ExitStatusSummary {
        match self.first_failure {
            Some((rank, ending)) => ExitStatusSummary::Failed { rank, ending },
            None if self.requests > 1 && self.interrupted => ExitStatusSummary::Killed,
            None if self.interrupted => ExitStatusSummary::Interrupted,
            None => ExitStatusSummary::Done,
        }
    }

    /// Whether a rank that ended like this was asked to, by us or by whoever interrupted it.
    fn is_interruption(&self, ending: Ending) -> bool {
        match ending {
            Ending::Code(code) => code == i32::from(crate::exit::INTERRUPTED),
            Ending::Signal(2 | 15) => self.requests > 0,
            Ending::Signal(9) => self.requests > 1,
            Ending::Signal(_) => false,
        }
    }
}

struct Supervisor<'a> {
    ranks: Vec<Rank>,
    signals: &'a Signals,
    grace: Duration,
    clock: &'a dyn Clock,
    out: &'a mut dyn Write,
    state: State,
    words: LastWords,
}

/// Something that was waited for.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signal(usize),
    Output(usize, usize),
    End(usize),
}

impl Supervisor<'_> {
    /// Waits for something to happen and acts on it.
    fn turn(&mut self) -> Result<()> {
        let ready = self.wait()?;
        self.forward_lines(&ready);
        for source in &ready {
            if let Source::Signal(index) = source {
                self.on_signal(*index);
            }
        }
        self.on_ends(&ready)?;
        if self.state.deadline.is_some_and(|deadline| self.clock.now() >= deadline) {
            self.state.deadline = None;
            self.tell(Signal::KILL);
        }
        Ok(())
    }

    fn wait(&self) -> Result<Vec<Source>> {
        let (sources, mut descriptors) = self.sources();
        let left = self.state.deadline.map(|deadline| deadline.saturating_sub(self.clock.now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("cannot wait for the ranks", error.into())),
        }
        let ready = sources.iter().zip(&descriptors).filter(|(_, polled)| !polled.revents().is_empty());
        Ok(ready.map(|(source, _)| *source).collect())
    }

    fn sources(&self) -> (Vec<Source>, Vec<PollFd<'_>>) {
        let mut sources = Vec::new();
        let mut descriptors = Vec::new();
        for (index, end) in self.signals.descriptors().enumerate() {
            sources.push(Source::Signal(index));
            descriptors.push(PollFd::new(end, PollFlags::IN));
        }
        for (index, rank) in self.ranks.iter().enumerate() {
            for (which, output) in rank.outputs.iter().enumerate() {
                sources.push(Source::Output(index, which));
                descriptors.push(PollFd::new(output, PollFlags::IN));
            }
            if let Some(pidfd) = rank.pidfd() {
                sources.push(Source::End(index));
                descriptors.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
            }
        }
        (sources, descriptors)
    }

    fn forward_lines(&mut self, ready: &[Source]) {
        // From the last one on, so that removing a pipe leaves the indices of those yet to come as they are.
        for source in ready.iter().rev() {
            if let Source::Output(rank, which) = *source
                && self.ranks[rank].outputs[which].forward(self.out) == Forwarded::End
            {
                self.ranks[rank].outputs.remove(which);
            }
        }
    }

    fn on_signal(&mut self, index: usize) {
        let (request, times) = self.signals.take(index);
        match request {
            _ if times == 0 => {}
            Request::Suspend => self.suspend(),
            Request::End(signal) => {
                let first = self.state.requests == 0;
                self.state.requests += times;
                if first && self.state.first_failure.is_none() {
                    self.tell(signal);
                }
                if self.state.requests > 1 {
                    self.tell(Signal::KILL);
                }
            }
        }
    }

    /// Ctrl-Z: the ranks are in other groups than the terminal's, so they are stopped and continued from here.
    fn suspend(&self) {
        self.tell(Signal::STOP);
        pause_myself();
        self.tell(Signal::CONT);
    }

    fn on_ends(&mut self, ready: &[Source]) -> Result<()> {
        let mut failures = Vec::new();
        for source in ready {
            if let Source::End(index) = *source {
                let ending = self.ranks[index].reap()?;
                let word = self.ranks[index].last_word();
                self.words.take(self.ranks[index].number, word, self.out);
                let interruption = self.state.is_interruption(ending);
                self.state.interrupted |= interruption;
                if ending != Ending::Code(0) && !interruption {
                    failures.push((index, ending));
                }
            }
        }
        // Of several that ended before we looked, one that was ended by a signal is the likelier cause: the others may
        // have failed because they lost it.
        failures.sort_by_key(|(rank, ending)| (matches!(ending, Ending::Code(_)), *rank));
        let Some((rank, ending)) = failures.first().copied() else { return Ok(()) };
        match self.state.first_failure {
            None => {
                self.state.first_failure = Some((rank, ending));
                self.stop_others(rank, ending);
            }
            Some((_, Ending::Code(_))) if self.was_killed_by_others(ending) => {
                self.state.first_failure = Some((rank, ending));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Whether a rank ended by a signal that is not ours: a killed rank's sockets close before the system reports its
    /// end, so that another may have failed for the lack of it and have been seen first.
    fn was_killed_by_others(&self, ending: Ending) -> bool {
        let we_killed = self.state.deadline.is_none();
        matches!(ending, Ending::Signal(signal) if signal != Signal::TERM.as_raw()) && !we_killed
    }

    fn stop_others(&mut self, rank: usize, ending: Ending) {
        let others = self.ranks.iter().filter(|rank| rank.is_running()).count();
        if others > 0 {
            let _ = writeln!(self.out, "gradus: rank {rank} {ending}; stopping the other {others}");
            self.tell(Signal::TERM);
            self.state.deadline = Some(self.clock.now().saturating_add(self.grace));
        }
    }

    fn tell(&self, signal: Signal) {
        self.ranks.iter().for_each(|rank| rank.signal(signal));
    }
}
