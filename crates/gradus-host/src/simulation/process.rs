//! One life of a node: a machine, its clock, and what it could not take in yet.

use super::clock::LocalClock;
use crate::machine::{ActionOf, EventOf, Machine};
use std::collections::VecDeque;
use std::time::Duration;

/// A running, paused or storing process.
pub(super) struct Process<M: Machine> {
    pub(super) node: usize,
    pub(super) machine: M,
    pub(super) clock: LocalClock,
    pub(super) paused: bool,
    /// Whether another process has taken over its node: it hears nothing and stores nothing any more.
    pub(super) ghost: bool,
    /// Whether it waits for its disk.
    pub(super) storing: bool,
    /// What was asked for behind something that had to be stored first.
    pub(super) unfinished: VecDeque<ActionOf<M>>,
    /// What has happened while it could not take it in.
    pub(super) backlog: VecDeque<EventOf<M>>,
    /// When it will be woken, as planned so far.
    pub(super) wake_at: Option<Duration>,
}

impl<M: Machine> Process<M> {
    pub(super) fn new(node: usize, machine: M, clock: LocalClock) -> Self {
        Self {
            node,
            machine,
            clock,
            paused: false,
            ghost: false,
            storing: false,
            unfinished: VecDeque::new(),
            backlog: VecDeque::new(),
            wake_at: None,
        }
    }

    /// What is to be done next, if the process can go on.
    pub(super) fn next_actions(&mut self, now: Duration) -> Option<VecDeque<ActionOf<M>>> {
        if self.paused || self.storing {
            return None;
        }
        if !self.unfinished.is_empty() {
            return Some(std::mem::take(&mut self.unfinished));
        }
        let event = self.backlog.pop_front()?;
        Some(self.machine.step(event, self.clock.local(now)).into())
    }

    /// The true time at which the machine wants to be woken, never before `soonest`.
    pub(super) fn deadline(&self, soonest: Duration) -> Option<Duration> {
        self.machine.deadline().map(|local| self.clock.true_time(local).max(soonest))
    }
}
