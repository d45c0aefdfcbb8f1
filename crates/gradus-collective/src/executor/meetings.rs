//! Collectives among neighbours.

use super::{Call, Executor};
use crate::flights::InFlight;
use crate::memory::{Memory, Regions};
use crate::one_sided::{Agenda, Companion, Meeting, Slots, Surroundings};
use crate::operation::Ready;
use gradus_error::Result;
use gradus_fabric::MOST_LEVELS;
use gradus_host::Ticks;
use std::sync::Arc;

/// Looks for peers that may be about to come, since they last did, before others have their turn: some microseconds.
const EAGER_LOOKS: usize = 256;

/// The first of them, without a pause: most peers come now.
const BRISK_LOOKS: usize = 64;

/// Looks where ranks share processors: each lets another run, whose part of a block takes some tens of microseconds. To
/// sleep costs more: a wake-up across processors takes as long again.
const EAGER_YIELDS: usize = 200;

/// What meetings need of this rank.
#[derive(Default)]
pub(super) struct Meetings {
    /// Those that are not over.
    pub(super) open: usize,
    /// At each level.
    slots: [Slots; MOST_LEVELS],
    /// For bytes on their way out of a peer's private memory.
    bounce: Vec<u64>,
    /// Companions of a meeting that is over, for the next one.
    spare: Vec<Companion>,
    /// For each peer, while meetings go on one after the other, whether an earlier one has it.
    taken: Vec<bool>,
}

impl Executor {
    /// Starts a collective among neighbours; its ticket, and the time that was spent if it is over: one that is to be
    /// waited for anyway may be over when this returns, because `eager` looks for it a while.
    ///
    /// # Safety
    /// As for [`Executor::start`].
    ///
    /// # Errors
    /// Those of [`Executor::progress`].
    pub(crate) unsafe fn meet(
        &mut self,
        call: &Call,
        memory: Memory,
        agenda: Arc<Agenda>,
        ready: Option<Ready>,
        eager: bool,
    ) -> Result<(u64, Ticks)> {
        let (ticket, began) = (self.flights.next, Ticks::now());
        let mut companions = std::mem::take(&mut self.meetings.spare);
        companions.clear();
        self.count_in(call, |rank, past| companions.push(Companion::new(rank, past)));
        let scratch = self.flights.scratch(agenda.scratch_bytes(call.identity.element.bytes()));
        self.flights.unready += usize::from(ready.is_some());
        let regions = Regions::new(memory, scratch);
        let mut meeting = Meeting::new(call.identity, regions, agenda, (companions, call.rank), ready);
        let looked = if eager && self.is_idle() { self.look(&mut meeting) } else { Ok(()) };
        let looked = looked.map_err(|error| self.transport.explain_loss(error));
        let (sent, received) = meeting.exchanged();
        self.moved.sent += sent;
        self.moved.received += received;
        if looked.is_ok() && meeting.is_over() {
            let done = Ticks::now();
            self.recorder.passed(ticket, (began, done), &meeting, call.ranks);
            let (scratch, companions) = meeting.into_parts();
            self.flights.keep(scratch);
            self.meetings.spare = companions;
            self.flights.next += 1;
            return Ok((ticket, done.since(began)));
        }
        self.meetings.open += 1;
        self.push(InFlight::Meeting(meeting), call.ranks);
        looked.map(|()| (ticket, Ticks::NONE))
    }

    /// Goes on with the only collective, for as long as its peers may be about to come.
    fn look(&mut self, meeting: &mut Meeting) -> Result<()> {
        let Self { transport, meetings, .. } = self;
        let level = meeting.identity.level();
        let Some(neighbours) = transport.neighbours(level) else { return Ok(()) };
        let spins = neighbours.spins();
        let looks = if spins { EAGER_LOOKS } else { EAGER_YIELDS };
        let Meetings { slots, bounce, .. } = meetings;
        let mut around = Surroundings { neighbours, slots: &mut slots[level], bounce, most: usize::MAX };
        let mut look = 0;
        while look < looks && !meeting.is_over() {
            if meeting.advance(&mut around)? {
                look = 0;
                continue;
            }
            match (spins, look > BRISK_LOOKS) {
                (true, false) => {}
                (true, true) => std::hint::spin_loop(),
                (false, _) => std::thread::yield_now(),
            }
            look += 1;
        }
        Ok(())
    }

    /// Goes on with collectives of a level among neighbours, each for `most` bytes; whether any came further. One that
    /// shares a peer with an earlier one waits for that: signals between two ranks belong to one collective after the other.
    ///
    /// # Errors
    /// Those of [`Meeting::advance`].
    pub(super) fn advance_meetings(&mut self, level: usize, most: usize) -> Result<bool> {
        let Self { transport, flights, meetings, moved, .. } = self;
        let Some(neighbours) = transport.neighbours(level) else { return Ok(false) };
        let Meetings { open, slots, bounce, taken, .. } = meetings;
        let mut around = Surroundings { neighbours, slots: &mut slots[level], bounce, most };
        let mut came_further = false;
        taken.clear();
        taken.resize(self.pasts.len(), false);
        for meeting in flights.meetings_at(level) {
            if meeting.peers().all(|peer| !taken[peer]) {
                let before = meeting.exchanged();
                came_further |= meeting.advance(&mut around)?;
                let after = meeting.exchanged();
                moved.sent += after.0 - before.0;
                moved.received += after.1 - before.1;
            }
            if meeting.is_over() {
                *open -= 1;
            } else {
                meeting.peers().for_each(|peer| taken[peer] = true);
            }
        }
        Ok(came_further)
    }
}
