//! Signals to the launcher, as descriptors to wait on.
//!
//! A handler may do next to nothing, so each signal writes a byte to a socket of its own (signal-hook's "self-pipe") and
//! the launcher reads it when it waits for everything else.

use gradus_error::{IoContext, Result};
use rustix::process::Signal;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Stop in good order; ranks are told by this signal.
    End(Signal),
    /// Ctrl-Z: pause until continued.
    Suspend,
}

/// What is listened to: (signal, what it asks for). A closed terminal is told to ranks as SIGTERM.
const HEARD: [(i32, Request); 4] = [
    (SIGINT, Request::End(Signal::INT)),
    (SIGTERM, Request::End(Signal::TERM)),
    (SIGHUP, Request::End(Signal::TERM)),
    (SIGTSTP, Request::Suspend),
];

/// Signals as descriptors; they are no longer heard when it is dropped.
#[derive(Debug)]
pub struct Signals {
    ends: Vec<(Request, UnixStream)>,
    handlers: Vec<SigId>,
}

impl Signals {
    /// From now on signals come here. One that this process was started to ignore (nohup, background) stays ignored.
    ///
    /// # Errors
    /// The system's failure to make sockets or set handlers.
    pub fn register() -> Result<Self> {
        let describe = || "cannot listen to signals".to_owned();
        let ignored = ignored_signals();
        let mut signals = Self { ends: Vec::new(), handlers: Vec::new() };
        for (signal, request) in HEARD {
            if ignored >> (signal - 1) & 1 == 0 {
                let write_end = signals.add(request)?;
                signals
                    .handlers
                    .push(signal_hook::low_level::pipe::register(signal, write_end).context(describe)?);
            }
        }
        Ok(signals)
    }

    /// No signals but those whose bytes are written to what `add` returns.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { ends: Vec::new(), handlers: Vec::new() }
    }

    /// A socket into which each byte asks for `request`.
    pub fn add(&mut self, request: Request) -> Result<UnixStream> {
        let describe = || "cannot make a socket for signals".to_owned();
        let (read_end, write_end) = UnixStream::pair().context(describe)?;
        read_end.set_nonblocking(true).context(describe)?;
        self.ends.push((request, read_end));
        Ok(write_end)
    }

    /// The descriptors to wait on; their index is what [`Signals::take`] wants.
    pub fn descriptors(&self) -> impl Iterator<Item = &UnixStream> {
        self.ends.iter().map(|(_, end)| end)
    }

    /// What the descriptor numbered `index` asks for, and how often since it was last asked.
    pub fn take(&self, index: usize) -> (Request, usize) {
        let (request, mut end) = (self.ends[index].0, &self.ends[index].1);
        let mut bytes = [0; 64];
        loop {
            match end.read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(count) => return (request, count),
                Err(_) => return (request, 0),
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }
}

/// The mask of signals that this process ignores (proc_pid_status(5), `SigIgn`); none where it cannot be read.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Pauses this process as Ctrl-Z does, until it is continued.
pub fn pause_myself() {
    let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_byte_is_a_request_and_is_taken_once() {
        let mut signals = Signals::none();
        let mut end = signals.add(Request::Suspend).unwrap();
        assert_eq!(signals.take(0), (Request::Suspend, 0));
        end.write_all(b"xx").unwrap();
        assert_eq!(signals.take(0), (Request::Suspend, 2));
        assert_eq!(signals.take(0), (Request::Suspend, 0));
    }

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        // Rust's runtime ignores SIGPIPE (13) before main.
        assert_eq!(ignored_signals() >> 12 & 1, 1);
    }
}
