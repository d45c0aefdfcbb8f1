//! Which level of priority moves when.
//!
//! A call serves the levels from the highest down, those that have something in flight, and ends with the first that moves
//! anything: whatever is less urgent waits for a call in which nothing above it can move. While something more urgent is in
//! flight a level moves little at a time, so that what may go on any moment is looked at again soon.
//!
//! *Nobody starves.* After [`MOST_PASSED_OVER`] calls in a row in which some level was left waiting, the next one serves
//! all. So urgent collectives without end take most calls from the others, and not all.
//!
//! *Nobody waits in a circle.* Each level has lanes, signals and slots of its own between every two ranks, and is served
//! again and again by every rank that makes calls, whatever other levels do. So it moves as it would if it were alone, only
//! later, and its oldest collective always gets on. Priorities decide what moves first, never whether anything does.

use super::{Executor, TURN_BYTES};
use gradus_error::Result;
use gradus_fabric::Lane;

/// Calls in a row in which a level that has something in flight may be left waiting.
const MOST_PASSED_OVER: u32 = 7;

/// Bytes that a lane moves in a call while something more urgent is in flight: some ten microseconds.
const BRIEF_BYTES: usize = 64 << 10;

impl Executor {
    /// Moves what can move, each lane of the levels that are served for one turn; whether anything did.
    ///
    /// # Errors
    /// Those of the transport; `Invalid` when a peer is at another collective, `Corrupt` when it sends no header.
    pub(crate) fn progress(&mut self) -> Result<bool> {
        let serves_all = self.passed_over >= MOST_PASSED_OVER;
        let (mut moved, mut left_waiting, mut most) = (false, false, usize::MAX);
        for level in (0..self.levels).rev() {
            if self.flights.at_level(level) == 0 {
                continue;
            }
            left_waiting = moved && !serves_all;
            if left_waiting {
                break;
            }
            moved |= self.advance_level(level, most)?;
            most = BRIEF_BYTES;
        }
        self.passed_over = if left_waiting { self.passed_over + 1 } else { 0 };
        if moved {
            self.record_and_retire();
        }
        Ok(moved)
    }

    /// Moves what can move of a level, `most` bytes on each lane; whether anything did.
    fn advance_level(&mut self, level: usize, most: usize) -> Result<bool> {
        let before = self.moved;
        let local = self.flights.advance_local(level, TURN_BYTES.min(most));
        let met = self.meetings.open > 0
            && self.advance_meetings(level, most).map_err(|error| self.transport.explain_loss(error))?;
        for peer in 0..self.world_size {
            let lane = Lane { peer, level };
            let index = lane.index(self.world_size);
            if !self.outgoing[index].queue.is_empty() {
                self.advance_outgoing(lane, most)?;
            }
            if !self.incoming[index].queue.is_empty() {
                self.advance_incoming(lane, most)?;
            }
        }
        Ok(local || met || self.moved != before)
    }

    /// The lanes of levels that have something in flight.
    pub(super) fn busy_lanes(&self) -> Vec<Lane> {
        let busy = (0..self.levels).filter(|level| self.flights.at_level(*level) > 0);
        busy.flat_map(|level| (0..self.world_size).map(move |peer| Lane { peer, level })).collect()
    }
}
