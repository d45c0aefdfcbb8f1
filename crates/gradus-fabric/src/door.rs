//! A thread at a listening socket, which lets in those who know the secret and hands them on, so that strangers hold up
//! nobody inside.

use crate::gate::Gate;
use crate::stream::Stream;
use crate::trust::Trust;
use gradus_error::{Error, IoContext, Result};
use gradus_host::{Clock, RealClock};
use rustix::net::Shutdown;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Arrivals that wait to be taken in; beyond that callers wait outside.
const MOST_ARRIVALS: usize = 1024;

/// How long the gate may wait at a time, and rest when the system refuses it more descriptors.
const ONE_WAIT: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(100);

/// What is made of a proven connection and the first frame that came over it.
pub(crate) type Receive<T> = fn(Stream, &[u8]) -> Option<T>;

/// A thread that lets callers in, so that strangers hold up neither members nor their coordinator.
pub(crate) struct Door<T> {
    arrivals: Receiver<T>,
    bell: UnixStream,
    listener: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Door<T> {
    /// Opens a door at a listening socket for those whom a person calls `whom`. Who has proven itself and said its first
    /// frame is what `receive` makes of the two, and is sent away where that is nothing.
    ///
    /// # Errors
    /// The system's failure to make a socket or a thread.
    pub(crate) fn open(
        listener: TcpListener,
        trust: Trust,
        whom: &'static str,
        receive: Receive<T>,
    ) -> Result<Self> {
        let describe = || format!("cannot open the door for {whom}");
        let (bell, rope) = UnixStream::pair().context(describe)?;
        bell.set_nonblocking(true).context(describe)?;
        rope.set_nonblocking(true).context(describe)?;
        let (sender, arrivals) = sync_channel(MOST_ARRIVALS);
        let gate = OwnedFd::from(listener.try_clone().context(describe)?);
        let thread = std::thread::Builder::new()
            .name("gradus-door".into())
            .spawn(move || let_in(gate, trust, (whom, receive), &sender, rope))
            .context(describe)?;
        Ok(Self { arrivals, bell, listener: listener.into(), thread: Some(thread) })
    }

    /// Those who have come since it was last asked.
    pub(crate) fn arrivals(&mut self) -> Vec<T> {
        let mut rings = [0; 256];
        while matches!(self.bell.read(&mut rings), Ok(count) if count > 0) {}
        self.arrivals.try_iter().collect()
    }
}

impl<T> AsFd for Door<T> {
    /// Readable when somebody has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl<T> Drop for Door<T> {
    fn drop(&mut self) {
        // Who waits at a socket that is shut down is woken and finds it unusable; the bell, which has ended before, says why.
        let _ = rustix::net::shutdown(&self.bell, Shutdown::Both);
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
        self.arrivals = sync_channel(0).1;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets callers in until nobody takes them any more or the bell's other end is closed.
fn let_in<T>(
    listener: OwnedFd,
    trust: Trust,
    (whom, receive): (&str, Receive<T>),
    arrivals: &SyncSender<T>,
    mut rope: UnixStream,
) {
    let clock = RealClock::new();
    let Ok(mut gate) = Gate::new(listener, trust, &clock) else { return };
    let mut complained = false;
    loop {
        let callers = match gate.arrivals(clock.now() + ONE_WAIT) {
            Ok(callers) => callers,
            Err(_) if has_ended(&mut rope) => return,
            Err(error) => {
                complain_once(&mut complained, whom, &error);
                clock.sleep(REST);
                Vec::new()
            }
        };
        if let Some(shortage) = gate.take_shortage() {
            complain_once(&mut complained, whom, &shortage);
        }
        for caller in callers {
            let Some(arrival) = receive(caller.stream, &caller.frame) else { continue };
            if arrivals.send(arrival).is_err() {
                return;
            }
            // A bell that is full rings already.
            let _ = rope.write(&[1]);
        }
        if has_ended(&mut rope) {
            return;
        }
    }
}

/// What goes wrong at a door goes wrong with every caller; a person needs to hear of it once.
fn complain_once(complained: &mut bool, whom: &str, error: &Error) {
    if !std::mem::replace(complained, true) {
        tracing::warn!("{whom} may not come in: {error}");
    }
}

/// Whether the other end of a socket was closed.
fn has_ended(socket: &mut UnixStream) -> bool {
    matches!(socket.read(&mut [0]), Ok(0))
}
