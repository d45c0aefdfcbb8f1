//! Collectives among the ranks of a world.

use crate::choose::choose_all_reduce;
use crate::executor::Executor;
use crate::generate::{binomial_broadcast, dissemination_barrier};
use crate::header::{Collective, Element, Operation};
use crate::operation::{Buffer, Prepared};
use gradus_error::{Error, Kind, Result};
use gradus_fabric::{Alone, Transport};
use gradus_host::{Clock, RealClock};
use gradus_memory::RawRange;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Shapes whose plans are kept. A training run has one for each bucket and a few for control values.
const PLANS: usize = 256;

/// A collective in flight.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the memory of a collective is not free before it was waited for"]
pub struct Handle {
    sequence: u64,
}

/// What a communicator has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Collectives started.
    pub operations: u64,
    /// Bytes sent to peers, headers included.
    pub bytes_sent: u64,
    /// Bytes received from peers, headers included.
    pub bytes_received: u64,
    /// Nanoseconds that callers spent inside calls that wait: the exposed communication.
    pub waited_ns: u64,
}

/// What a plan depends on, besides rank and world.
/// A wait is cut into naps of this length, so that time in which this process did not run is not counted as waiting.
const LONGEST_NAP: Duration = Duration::from_millis(500);

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    operation: Operation,
    element: Element,
    root: u32,
    len: usize,
}

/// A rank's way to compute together with all others.
///
/// All ranks start the same collectives in the same order; where they do not, the ranks that notice fail with an error
/// that names both sides, and the others with them. Results are bit-identical on all ranks. Bytes move only inside
/// calls: whoever computes while collectives are in flight calls [`Communicator::progress`] now and then.
///
/// After an error nothing is in flight any more, the memory of all collectives is free (with undefined content), peers
/// have been told, and every further call fails with the same kind. Dropping a communicator frees the memory of what
/// was in flight as well.
pub struct Communicator {
    executor: Executor,
    plans: BTreeMap<Shape, Arc<Prepared>>,
    failure: Option<(Kind, String)>,
    clock: Box<dyn Clock>,
    stall_limit: Duration,
    operations: u64,
    waited: Duration,
}

impl Communicator {
    /// A communicator over a transport. A wait in which not a single byte moves for `stall_limit` fails: it must be
    /// longer than ranks may be apart in their computation.
    pub fn new(transport: Box<dyn Transport>, stall_limit: Duration) -> Self {
        Self {
            executor: Executor::new(transport),
            plans: BTreeMap::new(),
            failure: None,
            clock: Box::new(RealClock::new()),
            stall_limit,
            operations: 0,
            waited: Duration::ZERO,
        }
    }

    /// The communicator of a world of one: every collective is over at once and changes nothing.
    pub fn alone() -> Self {
        Self::new(Box::new(Alone), Duration::MAX)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.executor.transport().rank()
    }

    /// Ranks of the world.
    pub fn world_size(&self) -> usize {
        self.executor.transport().world_size()
    }

    /// The transport, as shown to a person.
    pub fn transport_name(&self) -> &'static str {
        self.executor.transport().name()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        let moved = self.executor.moved;
        Counters {
            operations: self.operations,
            bytes_sent: moved.sent,
            bytes_received: moved.received,
            waited_ns: u64::try_from(self.waited.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Starts summing `data` over all ranks, in place. Returns after moving what can move at once.
    ///
    /// # Safety
    /// The elements stay valid, and nobody else touches them, until [`Communicator::wait`] for this handle has returned
    /// (`Ok` or not), or any call has returned an error, or the communicator was dropped.
    ///
    /// # Errors
    /// Those of [`Communicator::progress`].
    pub unsafe fn start_all_reduce(&mut self, data: RawRange) -> Result<Handle> {
        let buffer = Buffer { start: data.start.cast(), bytes: data.len * Element::F32.bytes() };
        let shape = Shape { operation: Operation::AllReduce, element: Element::F32, root: 0, len: data.len };
        // SAFETY: passed on to our caller.
        unsafe { self.start(shape, buffer) }
    }

    /// Moves what can move now, without blocking, for a bounded number of bytes. Costs a few nanoseconds when nothing
    /// is in flight.
    ///
    /// # Errors
    /// `PeerLost` naming a rank that is gone, `Invalid` when ranks are at different collectives, `Corrupt` when a
    /// stream is damaged; what a peer gave up with; what failed before.
    pub fn progress(&mut self) -> Result<()> {
        if self.executor.is_idle() && self.failure.is_none() {
            return Ok(());
        }
        self.check_failure()?;
        match self.executor.progress() {
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Blocks until a collective is over, moving others meanwhile.
    ///
    /// # Errors
    /// Those of [`Communicator::progress`]; `Unavailable`, naming the ranks that are waited for, when nothing moves for
    /// the stall limit.
    pub fn wait(&mut self, handle: Handle) -> Result<()> {
        self.check_failure()?;
        if self.is_done(&handle) {
            return Ok(());
        }
        let start = self.clock.now();
        let result = self.wait_until_done(&handle);
        self.waited += self.clock.now() - start;
        result.map_err(|error| self.fail(error))
    }

    /// Whether a collective is over: [`Communicator::wait`] would not block.
    pub fn is_done(&self, handle: &Handle) -> bool {
        self.executor.is_done(handle.sequence)
    }

    /// Sums over all ranks, in place. Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::wait`].
    pub fn all_reduce(&mut self, data: &mut [f32]) -> Result<()> {
        let buffer = Buffer { start: data.as_mut_ptr().cast(), bytes: size_of_val(data) };
        let shape =
            Shape { operation: Operation::AllReduce, element: Element::F32, root: 0, len: data.len() };
        // SAFETY: `data` is borrowed for as long as this call, which waits.
        unsafe { self.run(shape, buffer) }
    }

    /// Sums over all ranks, in place: for counts, losses, votes. Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::wait`].
    pub fn all_reduce_f64(&mut self, data: &mut [f64]) -> Result<()> {
        let buffer = Buffer { start: data.as_mut_ptr().cast(), bytes: size_of_val(data) };
        let shape =
            Shape { operation: Operation::AllReduce, element: Element::F64, root: 0, len: data.len() };
        // SAFETY: as in `all_reduce`.
        unsafe { self.run(shape, buffer) }
    }

    /// Overwrites `bytes` by those of `root`, on every rank. Blocks.
    ///
    /// # Errors
    /// `Invalid` when `root` is none of the world; those of [`Communicator::wait`].
    pub fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        if root >= self.world_size() {
            return Err(Error::invalid(format!(
                "rank {root} cannot broadcast in a world of {}",
                self.world_size()
            )));
        }
        let buffer = Buffer { start: bytes.as_mut_ptr(), bytes: bytes.len() };
        let (operation, element, len) = (Operation::Broadcast, Element::Byte, bytes.len());
        // SAFETY: as in `all_reduce`.
        unsafe { self.run(Shape { operation, element, root: root as u32, len }, buffer) }
    }

    /// As [`Communicator::barrier`], but waits for as long as all others live: for ranks that have no part in what
    /// another does alone, such as saving.
    ///
    /// # Errors
    /// Those of [`Communicator::wait`], but that it never gives up.
    pub fn patient_barrier(&mut self) -> Result<()> {
        let limit = std::mem::replace(&mut self.stall_limit, Duration::MAX);
        let met = self.barrier();
        self.stall_limit = limit;
        met
    }

    /// Tells all ranks that this one gives up and why; every further call fails. Without this they would only see it
    /// leave.
    pub fn give_up(&mut self, error: &Error) {
        let _ = self.fail(Error::new(error.kind().clone(), error.to_string()));
    }

    /// Returns once every rank has called it. Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::wait`].
    pub fn barrier(&mut self) -> Result<()> {
        let mut token = [0f32];
        let buffer = Buffer { start: token.as_mut_ptr().cast(), bytes: size_of_val(&token) };
        // SAFETY: the token lives as long as this call, which waits.
        unsafe {
            self.run(Shape { operation: Operation::Barrier, element: Element::F32, root: 0, len: 1 }, buffer)
        }
    }

    /// # Safety
    /// The buffer is aligned for its elements, valid and otherwise untouched during the call.
    unsafe fn run(&mut self, shape: Shape, buffer: Buffer) -> Result<()> {
        let blocking = Blocking(self);
        // SAFETY: by the caller's word until we return; should we unwind, `Blocking` lets go of it.
        let handle = unsafe { blocking.0.start(shape, buffer) }?;
        blocking.0.wait(handle)
    }

    /// # Safety
    /// As for [`Communicator::start_all_reduce`].
    unsafe fn start(&mut self, shape: Shape, buffer: Buffer) -> Result<Handle> {
        self.check_failure()?;
        let sequence = self.executor.next_sequence();
        let Shape { operation, element, root, len } = shape;
        let collective = Collective { sequence, operation, element, root, len: len as u64 };
        let prepared = self.plan(shape);
        // SAFETY: passed on to our caller.
        unsafe { self.executor.start(collective, buffer, prepared) };
        self.operations += 1;
        self.progress()?;
        Ok(Handle { sequence })
    }

    fn plan(&mut self, shape: Shape) -> Arc<Prepared> {
        let (rank, world_size) = (self.rank(), self.world_size());
        if self.plans.len() >= PLANS {
            self.plans.clear();
        }
        let Shape { operation, element, root, len } = shape;
        let make = || {
            Arc::new(Prepared::new(match operation {
                Operation::AllReduce => {
                    choose_all_reduce(world_size, len, element.bytes()).steps(rank, world_size, len)
                }
                Operation::Broadcast => binomial_broadcast(rank, world_size, len, root as usize),
                Operation::Barrier => dissemination_barrier(rank, world_size),
            }))
        };
        Arc::clone(self.plans.entry(shape).or_insert_with(make))
    }

    fn wait_until_done(&mut self, handle: &Handle) -> Result<()> {
        let (mut still, mut last_look) = (Duration::ZERO, None);
        loop {
            let moved = self.executor.progress()?;
            if self.is_done(handle) {
                return Ok(());
            }
            if moved {
                (still, last_look) = (Duration::ZERO, None);
                continue;
            }
            let now = self.clock.now();
            let last = last_look.replace(now).unwrap_or(now);
            // A process that was suspended wakes with the clock far ahead, its peers with it: that is no stall.
            still += (now - last).min(LONGEST_NAP * 2);
            let interests = self.executor.interests();
            if interests.is_empty() {
                return Err(Error::internal(format!(
                    "{} waits for nothing and is not over",
                    self.describe()
                )));
            }
            if still >= self.stall_limit {
                return Err(self.stalled(&interests));
            }
            self.executor.wait(&interests, (self.stall_limit - still).min(LONGEST_NAP))?;
        }
    }

    fn describe(&self) -> String {
        self.executor.oldest().map_or_else(|| "nothing".to_owned(), |collective| collective.to_string())
    }

    fn stalled(&self, interests: &[gradus_fabric::Interest]) -> Error {
        let mut peers: Vec<usize> = interests.iter().map(|interest| interest.peer).collect();
        peers.dedup();
        let names: Vec<String> = peers.iter().map(usize::to_string).collect();
        Error::unavailable(format!(
            "{} has not moved for {} s: rank {} waits for rank {}, which lives but takes no part; look at its log, or \
             allow more time (launch.stall_timeout)",
            self.describe(),
            self.stall_limit.as_secs_f32(),
            self.rank(),
            names.join(", ")
        ))
    }

    fn check_failure(&self) -> Result<()> {
        match &self.failure {
            Some((kind, message)) => {
                Err(Error::new(kind.clone(), format!("the communicator has failed before: {message}")))
            }
            None => Ok(()),
        }
    }

    /// Remembers the first failure, tells the peers, lets go of all memory.
    fn fail(&mut self, error: Error) -> Error {
        if self.failure.is_none() {
            self.failure = Some((error.kind().clone(), error.to_string()));
            self.executor.abandon(&error);
        }
        error
    }
}

/// Lets go of borrowed memory when a blocking call unwinds.
struct Blocking<'a>(&'a mut Communicator);

impl Drop for Blocking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ =
                self.0.fail(Error::internal(format!("rank {} has panicked in a collective", self.0.rank())));
        }
    }
}
