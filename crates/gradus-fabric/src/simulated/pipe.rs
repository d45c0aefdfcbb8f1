//! The stream from one rank to another.

use std::collections::VecDeque;
use std::time::Duration;

/// Bytes on their way and bytes that have arrived; together with the room for more they are as many as the stream holds.
pub(super) struct Pipe {
    flying: VecDeque<u8>,
    pub(super) arrived: VecDeque<u8>,
    pub(super) room: usize,
    /// When the last of what was sent arrives: nothing overtakes.
    pub(super) last_arrival: Duration,
    /// Whether the sender is gone, and all that it sent has arrived.
    pub(super) ended: bool,
}

impl Pipe {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            flying: VecDeque::new(),
            arrived: VecDeque::new(),
            room: bytes.max(1),
            last_arrival: Duration::ZERO,
            ended: false,
        }
    }

    /// Takes bytes from the front, as many as there is room for; their number.
    pub(super) fn take_in(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room);
        self.flying.extend(&bytes[..count]);
        self.room -= count;
        count
    }

    /// The next bytes on their way arrive.
    pub(super) fn arrive(&mut self, count: usize) {
        self.arrived.extend(self.flying.drain(..count));
    }

    /// Puts something that was planned behind all that was planned before.
    pub(super) fn in_order(&mut self, at: Duration) -> Duration {
        self.last_arrival = self.last_arrival.max(at);
        self.last_arrival
    }
}
