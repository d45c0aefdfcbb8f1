//! The transport of one simulated rank.

use super::wire::{Plans, Wire, Word};
use crate::transport::{Direction, Interest, Lane, Transport};
use gradus_error::{Error, Result};
use gradus_host::simulation::Runner;
use std::collections::VecDeque;
use std::time::Duration;

/// The longest sleep in one call.
const NAP: Duration = Duration::from_secs(1);

/// How long to wait for a last word once a peer's stream has ended, as the real transport does.
const AFTERWORD: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Simulated {
    runner: Runner<Wire>,
    world_size: usize,
    levels: usize,
    /// What a call costs.
    call: Duration,
}

impl Simulated {
    pub(super) fn new(runner: Runner<Wire>, (world_size, levels): (usize, usize), call: Duration) -> Self {
        Self { runner, world_size, levels, call }
    }

    /// Begins a call: time passes, and the rank may have crashed.
    fn begin(&self) -> Result<()> {
        self.runner.spend(self.call);
        self.check()
    }

    fn check(&self) -> Result<()> {
        let rank = self.rank();
        self.runner.act(|wire, plans| wire.check(rank, plans.now()))
    }

    fn assert_lane(&self, Lane { peer, level }: Lane) {
        assert!(peer < self.world_size && peer != self.rank(), "a rank has no stream to itself or to nobody");
        assert!(level < self.levels, "there are as many streams as levels");
    }

    fn is_ready(&self, interest: &Interest) -> bool {
        let (rank, Interest { lane, direction }) = (self.rank(), *interest);
        let Lane { peer, level } = lane;
        self.runner.act(|wire, _| match direction {
            Direction::Send => wire.pipe(rank, lane).room > 0 || wire.has_heard(rank, peer),
            Direction::Receive => {
                let pipe = wire.pipe(peer, Lane { peer: rank, level });
                !pipe.arrived.is_empty() || pipe.ended
            }
            // Ranks are on hosts of their own here.
            Direction::Signal => false,
        })
    }

    /// What was heard of a failure.
    fn news(&self) -> Result<()> {
        let rank = self.rank();
        self.runner.act(|wire, _| wire.failure(rank)).map_or(Ok(()), Err)
    }

    /// The error for a peer whose stream has ended: its last word, if it comes soon, or that it is lost.
    fn explain(&self, peer: usize) -> Error {
        let rank = self.rank();
        let until = self.runner.act(|_, plans| plans.now()) + AFTERWORD;
        loop {
            if let Err(error) = self.check().and_then(|()| self.news()) {
                return error;
            }
            let enough =
                |wire: &mut Wire, plans: &mut Plans| wire.has_heard(rank, peer) || plans.now() >= until;
            if self.runner.act(enough) {
                return Error::peer_lost(
                    peer,
                    format!("rank {peer} has left while rank {rank} still needs it"),
                );
            }
            self.runner.wait(until);
        }
    }
}

impl Transport for Simulated {
    fn rank(&self) -> usize {
        self.runner.number()
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn name(&self) -> &'static str {
        "simulated"
    }

    fn levels(&self) -> usize {
        self.levels
    }

    fn try_send(&mut self, lane: Lane, bytes: &[u8]) -> Result<usize> {
        self.assert_lane(lane);
        self.begin()?;
        let rank = self.rank();
        let send = |wire: &mut Wire, plans: &mut Plans| {
            (!wire.has_heard(rank, lane.peer)).then(|| wire.send(plans, rank, lane, bytes))
        };
        self.runner.act(send).ok_or_else(|| self.explain(lane.peer))
    }

    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        self.assert_lane(lane);
        self.begin()?;
        let Lane { peer, level } = lane;
        let ours = Lane { peer: self.rank(), level };
        // The consumer may ask for the time: it is called while nothing is held.
        let (mut arrived, ended) = self.runner.act(|wire, _| {
            let pipe = wire.pipe(peer, ours);
            (std::mem::take(&mut pipe.arrived), pipe.ended)
        });
        if arrived.is_empty() && ended {
            return Err(self.explain(peer));
        }
        let taken = hand_out(&arrived, consume);
        arrived.drain(..taken);
        self.runner.act(|wire, plans| {
            wire.pipe(peer, ours).arrived = arrived;
            if taken > 0 {
                wire.make_room(plans, peer, ours, taken);
            }
        });
        Ok(taken)
    }

    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        self.begin()?;
        if interests.iter().any(|interest| self.is_ready(interest)) {
            return Ok(());
        }
        self.news()?;
        let until = self.runner.act(|_, plans| plans.now()) + limit.min(NAP);
        self.runner.wait(until);
        self.check()?;
        if interests.iter().any(|interest| self.is_ready(interest)) {
            return Ok(());
        }
        self.news()
    }

    fn abort(&mut self, reason: &Error) {
        let word = Word::GivingUp(reason.kind().clone(), reason.to_string());
        let rank = self.rank();
        self.runner.act(|wire, plans| wire.part(plans, rank, &word));
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let rank = self.rank();
        if std::thread::panicking() {
            self.abort(&Error::internal(format!("rank {rank} has panicked")));
        }
        self.runner.act(|wire, plans| {
            wire.part(plans, rank, &Word::Goodbye);
            wire.leave(plans, rank);
        });
    }
}

/// Offers what has arrived, range by range, until some is left; how many bytes were taken.
fn hand_out(arrived: &VecDeque<u8>, consume: &mut dyn FnMut(*const u8, usize) -> usize) -> usize {
    let mut taken = 0;
    let (first, second) = arrived.as_slices();
    for range in [first, second].into_iter().filter(|range| !range.is_empty()) {
        let count = consume(range.as_ptr(), range.len());
        assert!(count <= range.len(), "a consumer takes no more than it is given");
        taken += count;
        if count < range.len() {
            break;
        }
    }
    taken
}
