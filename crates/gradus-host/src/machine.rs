//! The seam between a decision and its shell.
//!
//! A [`Machine`] decides and does nothing else: it is told what happened and what time it is, and answers with what is
//! to be done. It owns no clock, socket, file or thread, so that one piece of code runs behind a thin shell in
//! production and under [`crate::simulation`] in tests. Invariant: the same machine, told the same events at the same
//! times, asks for the same actions.

use std::time::Duration;

/// How a machine names those it speaks with: a connection in production, a node in a simulation.
pub type Peer = u64;

/// What a machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<M, C> {
    /// A peer said something.
    Message {
        /// Who.
        from: Peer,
        /// What.
        message: M,
    },
    /// The way to a peer was closed without a word; the peer itself may live.
    Closed {
        /// Which.
        peer: Peer,
    },
    /// The program around the machine asks for something.
    Command(C),
    /// Time has passed, perhaps less than [`Machine::deadline`] asked for.
    Wake,
}

/// What a machine asks of its shell, which does it in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<M, N> {
    /// Say something to a peer; it may be lost.
    Send {
        /// To whom.
        to: Peer,
        /// What.
        message: M,
    },
    /// Put these bytes in the place of those stored before, whole and durable, before anything that follows is done.
    Persist(Vec<u8>),
    /// Tell the program around the machine, and the checker of a simulation, what has come to pass.
    Note(N),
}

/// What is asked for by a machine of type `M`.
pub type ActionOf<M> = Action<<M as Machine>::Outgoing, <M as Machine>::Note>;

/// What a machine of type `M` is told.
pub type EventOf<M> = Event<<M as Machine>::Incoming, <M as Machine>::Command>;

/// A decision: state, event and time in, actions out.
pub trait Machine {
    /// What peers say to it.
    type Incoming;
    /// What it says to peers.
    type Outgoing;
    /// What the program around it may ask for.
    type Command;
    /// What it tells the program around it.
    type Note;

    /// Takes in one event. `now` is the time since some fixed moment and never goes back.
    fn step(&mut self, event: EventOf<Self>, now: Duration) -> Vec<ActionOf<Self>>;

    /// When it wants an [`Event::Wake`] at the latest, as things stand; `None` waits for other events.
    fn deadline(&self) -> Option<Duration>;
}
