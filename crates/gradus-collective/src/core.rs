//! What the communicators of one transport share: the executor behind them, and whether it has failed.

use crate::algorithm::Nodes;
use crate::choose::Links;
use crate::collective::Collective;
use crate::executor::{Call, Executor};
use crate::flight::{FlightLog, Recorder};
use crate::group::Group;
use crate::memory::{Buffer, Memory};
use crate::operation::Ready;
use crate::select::{Neighbourhood, Way, choice, may_use_registered, way};
use crate::shape::Shape;
use crate::tuner::Choice;
use gradus_error::{Error, Kind, Result};
use gradus_fabric::{Interest, Location, Transport};
use gradus_host::{Clock, Ticks, processors};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Shapes whose plans are kept. A training run has one for each bucket and a few for control values.
const WAYS: usize = 256;

/// A wait is cut into naps of this length, so that time in which this process did not run is not counted as waiting.
const LONGEST_NAP: Duration = Duration::from_millis(500);

/// How often memory that is not ready is asked after: it is no transport's business to wake us for it.
const READY_NAP: Duration = Duration::from_micros(50);

pub(crate) struct Core {
    pub(crate) executor: Executor,
    ways: BTreeMap<Shape, Way>,
    /// The one that was asked for last: most often the next one too.
    last: Option<(Shape, Way)>,
    links: Links,
    /// How groups lie over nodes, as far as they were asked for, and how often links became known.
    layouts: Vec<Nodes>,
    learnt: u64,
    /// Processors of this host, should its ranks have to share them: asking the system takes a while.
    shared_processors: usize,
    failure: Option<(Kind, String)>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Where the flight record goes.
    pub(crate) flight_folder: Option<PathBuf>,
    /// Set by somebody who wants the flight record now.
    pub(crate) flight_wanted: Option<Arc<AtomicBool>>,
    pub(crate) stall_limit: Duration,
    pub(crate) operations: u64,
    waited: Duration,
    /// What was waited for collectives that were over at once.
    waited_ticks: Ticks,
}

impl Core {
    pub(crate) fn new(transport: Box<dyn Transport>, stall_limit: Duration, clock: Arc<dyn Clock>) -> Self {
        let ranks = transport.world_size();
        Self {
            shared_processors: processors::available().min(ranks.saturating_sub(1)).max(1),
            executor: Executor::new(transport, Recorder::new(Arc::clone(&clock))),
            flight_folder: None,
            flight_wanted: None,
            ways: BTreeMap::new(),
            last: None,
            links: Links::default(),
            layouts: Vec::new(),
            learnt: 0,
            failure: None,
            clock,
            stall_limit,
            operations: 0,
            waited: Duration::ZERO,
            waited_ticks: Ticks::NONE,
        }
    }

    /// Starts a collective of a group; its ticket. It may be over then, if it is to be waited for (`eager`).
    ///
    /// # Safety
    /// As for [`Executor::start`].
    ///
    /// # Errors
    /// `Invalid` when it fits neither the group nor its memory: nothing has happened then. Otherwise those of
    /// [`Core::progress`].
    pub(crate) unsafe fn start(
        &mut self,
        group: &mut Group,
        what: &Collective,
        memory: Memory,
        ready: Option<Ready>,
        eager: bool,
    ) -> Result<u64> {
        self.check_failure()?;
        let mut shape = what.shape(group.rank, group.ranks.len(), &memory)?;
        shape.registered = self.is_registered(&shape, &memory);
        shape.layout = self.layout(group);
        let with = what.message_peer();
        let sequence = match with {
            Some(peer) => group.next_message(peer, what.sends()),
            None => group.next_collective(),
        };
        let identity = what.identity(group, sequence, memory.element(), &shape);
        let way = self.way(shape);
        let call = Call { identity, ranks: &group.ranks, rank: group.rank, with };
        self.operations += 1;
        // SAFETY: passed on to our caller.
        let started = unsafe {
            match way {
                Way::Streams(prepared) => {
                    Ok((self.executor.start(&call, memory, prepared, ready), Ticks::NONE))
                }
                Way::Meeting(agenda) => self.executor.meet(&call, memory, agenda, ready, eager),
            }
        };
        let (ticket, took) = started.map_err(|error| self.fail_in_flight(error))?;
        self.waited_ticks += took;
        self.progress()?;
        Ok(ticket)
    }

    /// Whether peers may reach all of a collective's memory, where that makes a difference.
    fn is_registered(&mut self, shape: &Shape, memory: &Memory) -> bool {
        if !may_use_registered(shape) {
            return false;
        }
        let Some(neighbours) = self.executor.neighbours() else { return false };
        let is_in = |buffer: &Buffer| {
            let location = neighbours.locate(buffer.start, buffer.len * buffer.element.bytes());
            matches!(location, Location::Registered(_))
        };
        match memory {
            Memory::InPlace(buffer) => is_in(buffer),
            Memory::Apart { input, output } => is_in(input) && is_in(output),
        }
    }

    fn way(&mut self, shape: Shape) -> Way {
        if let Some((_, way)) = self.last.as_ref().filter(|(last, _)| *last == shape) {
            return way.clone();
        }
        if self.ways.len() >= WAYS && !self.ways.contains_key(&shape) {
            self.ways.clear();
        }
        let way = match self.ways.get(&shape) {
            Some(way) => way.clone(),
            None => {
                let way = way(&shape, self.neighbourhood(), &self.links_of(&shape));
                self.ways.insert(shape.clone(), way.clone());
                way
            }
        };
        self.last = Some((shape, way.clone()));
        way
    }

    pub(crate) fn neighbourhood(&mut self) -> Option<Neighbourhood> {
        let shared = self.shared_processors;
        self.executor.neighbours().map(|near| Neighbourhood {
            reads_private: near.reads_private(),
            processors: (!near.spins()).then_some(shared),
        })
    }

    /// Has collectives of a shape on such memory carried out another way, until links are [known](Core::know).
    pub(crate) fn stand_in(&mut self, mut shape: Shape, memory: &Memory, way: Way) {
        shape.registered = self.is_registered(&shape, memory);
        // With others it might be thrown away before it was used.
        self.ways.clear();
        self.ways.insert(shape, way);
        self.last = None;
    }

    /// Which of the layouts a group has.
    pub(crate) fn layout(&mut self, group: &mut Group) -> usize {
        let Some(nodes) = &self.links.nodes else { return 0 };
        if let Some((_, layout)) = group.layout.filter(|(learnt, _)| *learnt == self.learnt) {
            return layout;
        }
        let of_group = nodes.of(&group.ranks);
        let known = self.layouts.iter().position(|layout| *layout == of_group);
        let index = known.unwrap_or(self.layouts.len());
        if known.is_none() {
            self.layouts.push(of_group);
        }
        group.layout = Some((self.learnt, index + 1));
        index + 1
    }

    /// What is known of the links between the ranks of a shape.
    fn links_of(&self, shape: &Shape) -> Links {
        let nodes = shape.layout.checked_sub(1).map(|index| self.layouts[index].clone());
        Links { profile: self.links.profile.clone(), nodes }
    }

    /// Has plans chosen by what is known of links from now on.
    pub(crate) fn know(&mut self, links: Links) {
        self.ways.clear();
        self.layouts.clear();
        self.learnt += 1;
        (self.last, self.links) = (None, links);
    }

    /// The choice for an all-reduce by price, if it is one by price.
    pub(crate) fn choice(&mut self, shape: &Shape) -> Option<Choice> {
        choice(shape, self.neighbourhood(), &self.links_of(shape))
    }

    pub(crate) fn progress(&mut self) -> Result<()> {
        self.write_if_wanted();
        if self.executor.is_idle() && self.failure.is_none() {
            return Ok(());
        }
        self.check_failure()?;
        match self.executor.progress() {
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail_in_flight(error)),
        }
    }

    pub(crate) fn wait(&mut self, ticket: u64) -> Result<()> {
        self.check_failure()?;
        if self.executor.is_done(ticket) {
            return Ok(());
        }
        let start = self.clock.now();
        let result = self.wait_until_done(ticket);
        self.waited += self.clock.now() - start;
        result.map_err(|error| self.fail_in_flight(error))
    }

    fn wait_until_done(&mut self, ticket: u64) -> Result<()> {
        let (mut still, mut last_look) = (Duration::ZERO, None);
        loop {
            let moved = self.executor.progress()?;
            if self.executor.is_done(ticket) {
                return Ok(());
            }
            if moved {
                (still, last_look) = (Duration::ZERO, None);
                continue;
            }
            self.write_if_wanted();
            let now = self.clock.now();
            let last = last_look.replace(now).unwrap_or(now);
            // A process that was suspended wakes with the clock far ahead, its peers with it: that is no stall.
            still += (now - last).min(LONGEST_NAP * 2);
            let interests = self.executor.interests();
            self.executor.look_for_strangers(&interests, still)?;
            if still >= self.stall_limit {
                return Err(self.stalled(&interests));
            }
            self.nap(&interests, self.stall_limit - still)?;
        }
    }

    fn nap(&mut self, interests: &[Interest], most: Duration) -> Result<()> {
        let awaits_memory = self.executor.awaits_memory();
        match (interests.is_empty(), awaits_memory) {
            (true, false) => {
                Err(Error::internal(format!("{} waits for nothing and is not over", self.describe())))
            }
            (true, true) => {
                self.clock.sleep(READY_NAP.min(most));
                Ok(())
            }
            (false, true) => self.executor.wait(interests, READY_NAP.min(most)),
            (false, false) => self.executor.wait(interests, LONGEST_NAP.min(most)),
        }
    }

    /// Time that callers spent waiting.
    pub(crate) fn waited(&self) -> Duration {
        self.waited + self.executor.duration(self.waited_ticks)
    }

    pub(crate) fn describe(&self) -> String {
        self.executor.oldest().map_or_else(|| "nothing".to_owned(), |identity| identity.to_string())
    }

    fn stalled(&self, interests: &[Interest]) -> Error {
        let seconds = self.stall_limit.as_secs_f32();
        Error::unavailable(match self.awaited(interests) {
            None => format!(
                "nothing has moved for {seconds} s: this rank waits for its own memory to become ready"
            ),
            Some(waits) => format!(
                "nothing has moved for {seconds} s: {waits}, which lives but takes no part; look at its log, or allow \
                 more time (launch.stall_timeout)"
            ),
        })
    }

    /// Whom this rank waits for, as a sentence; `None` when for nobody.
    fn awaited(&self, interests: &[Interest]) -> Option<String> {
        let mut peers: Vec<usize> = interests.iter().map(|interest| interest.lane.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        let names: Vec<String> = peers.iter().map(usize::to_string).collect();
        let rank = self.executor.transport().rank();
        (!names.is_empty()).then(|| format!("rank {rank} waits for rank {}", names.join(", ")))
    }

    pub(crate) fn check_failure(&self) -> Result<()> {
        match &self.failure {
            Some((kind, message)) => {
                Err(Error::new(kind.clone(), format!("the communicator has failed before: {message}")))
            }
            None => Ok(()),
        }
    }

    /// Says what was in flight, unless the error does so itself. Where another rank has given up, it also says whom this
    /// one waited for: who is told of a stall may itself wait for the rank that stands still, which the first to give up
    /// need not know of.
    fn fail_in_flight(&mut self, error: Error) -> Error {
        let error = match (error.kind(), self.executor.oldest()) {
            (Kind::Invalid | Kind::Internal, _) | (_, None) => error,
            (Kind::Unavailable, Some(oldest)) if error.is_told() => {
                let interests = self.executor.interests();
                match self.awaited(&interests) {
                    Some(waits) => error.within(format!("in {oldest}, in which {waits}")),
                    None => error.within(format!("in {oldest}")),
                }
            }
            (_, Some(oldest)) => error.within(format!("in {oldest}")),
        };
        self.fail(error)
    }

    /// Remembers the first failure, tells the peers, lets go of all memory.
    pub(crate) fn fail(&mut self, error: Error) -> Error {
        if self.failure.is_none() {
            self.failure = Some((error.kind().clone(), error.to_string()));
            self.executor.abandon(&error);
            // Whatever keeps the record from being written, the failure is what the caller must hear of.
            let _ = self.write_record();
        }
        error
    }

    /// Writes the flight record, if there is a folder for it; its file.
    pub(crate) fn write_record(&self) -> Result<Option<PathBuf>> {
        self.flight_folder.as_ref().map(|folder| self.record().write(folder)).transpose()
    }

    pub(crate) fn record(&self) -> FlightLog {
        let failure = self.failure.as_ref().map(|(_, message)| message.clone());
        FlightLog { failure, ..self.executor.record() }
    }

    /// Somebody wants to know what goes on: that must not end it.
    fn write_if_wanted(&self) {
        if self.flight_wanted.as_ref().is_some_and(|wanted| wanted.swap(false, Ordering::AcqRel)) {
            let _ = self.write_record();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Reduction;
    use crate::operation::Prepared;
    use gradus_fabric::Alone;
    use gradus_host::RealClock;

    #[test]
    fn a_way_that_stands_in_is_taken_whatever_was_known_before_until_links_are() {
        let mut core = Core::new(Box::new(Alone), Duration::from_secs(1), Arc::new(RealClock::new()));
        let mut data = vec![0.0f32; WAYS + 1];
        let mut of = |len: usize| {
            let memory = Memory::InPlace(Buffer::of(&mut data[..len]));
            (Collective::all_reduce(Reduction::Sum).shape(0, 1, &memory).unwrap(), memory)
        };
        // As many as are kept, of which this one was asked for last.
        (1..=WAYS).for_each(|len| drop(core.way(of(len).0)));
        let (shape, memory) = of(7);
        core.way(shape.clone());
        let prepared = Arc::new(Prepared::new(Vec::new()));
        core.stand_in(shape.clone(), &memory, Way::Streams(Arc::clone(&prepared)));
        let stands_in = |way: Way| matches!(way, Way::Streams(found) if Arc::ptr_eq(&found, &prepared));
        assert!(stands_in(core.way(shape.clone())));
        // Another, for which those that are kept would have to go.
        core.way(of(WAYS + 1).0);
        assert!(stands_in(core.way(shape.clone())));
        core.know(Links::default());
        assert!(!stands_in(core.way(shape)));
    }
}
