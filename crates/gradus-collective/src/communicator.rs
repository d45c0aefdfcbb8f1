//! Collectives among the ranks of a world, or of a part of it.

mod links;

use crate::collective::Collective;
use crate::core::Core;
use crate::element::{Number, Reduction};
use crate::flight::FlightLog;
use crate::group::{self, Group};
use crate::memory::{Buffer, Memory};
use crate::operation::Ready;
use gradus_error::{Error, Kind, Result};
use gradus_fabric::{Alone, Transport};
use gradus_host::{Clock, RealClock};
use gradus_memory::{RawRange, SharedHeap};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A collective in flight.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the memory of a collective is not free before it was waited for"]
pub struct Handle {
    ticket: u64,
}

/// What a communicator has done so far, together with all others over the same transport.
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

/// A rank's way to compute together with all others of its group.
///
/// ```
/// use gradus_collective::{Collective, Communicator, Reduction};
///
/// let mut world = Communicator::alone(); // or `new`, over a transport
/// let mut sums = [1.5f32, 2.0];
/// world.all_reduce(&mut sums)?;
/// let mut all = vec![0i64; world.world_size()];
/// world.run(&Collective::all_gather(), &[world.rank() as i64], &mut all)?;
/// world.run_in_place(&Collective::all_reduce(Reduction::Max), &mut all)?;
/// assert_eq!((sums, all), ([1.5, 2.0], vec![0]));
/// # Ok::<(), gradus_error::Error>(())
/// ```
///
/// All ranks of a group start the same collectives in the same order; where they do not, the ranks that notice fail with
/// an error that names both sides, and the others with them. Results are bit-identical on all ranks. Bytes move only
/// inside calls: whoever computes while collectives are in flight calls [`Communicator::progress`] now and then.
///
/// # Groups and priorities
///
/// [`Communicator::group`] and [`Communicator::mesh`] make communicators of some of the ranks, over the same transport: a
/// call to any of them moves the bytes of all. There must be one order of all collectives, of all groups, in which every
/// rank starts those that it takes part in; a program that runs alike on all ranks has it by itself. Two ranks that start
/// the collectives of two common groups in different order are told by the first message; a circle over three groups or
/// more, without two such ranks, ends at the stall limit. [`Communicator::at_priority`] makes one of the same ranks whose
/// collectives overtake others: the order in which they are *started* stays one for all. They belong to one thread at a
/// time: a call waits for the one that another thread is in.
///
/// # Failure
///
/// After an error of a started collective nothing is in flight any more, in any group of the transport; the memory of all
/// collectives is free (with undefined content), but for registered memory, which peers may still write (see
/// [`Communicator::heap`]); peers have been told, and every further call fails with the same kind.
/// What is refused before it starts (`Invalid` lengths, roots, types) does no harm on this rank. Dropping a communicator
/// frees the memory of what it had in flight; where others share its transport, they have failed then.
pub struct Communicator {
    core: Arc<Mutex<Core>>,
    group: Group,
}

impl Communicator {
    /// A communicator over a transport. A wait in which not a single byte moves for `stall_limit` fails: it must be
    /// longer than ranks may be apart in their computation.
    pub fn new(transport: Box<dyn Transport>, stall_limit: Duration) -> Self {
        Self::with_clock(transport, stall_limit, Arc::new(RealClock::new()))
    }

    /// As [`Communicator::new`], by another clock: that of a simulated transport.
    pub fn with_clock(transport: Box<dyn Transport>, stall_limit: Duration, clock: Arc<dyn Clock>) -> Self {
        let group = Group::world(transport.rank(), transport.world_size());
        Self { core: Arc::new(Mutex::new(Core::new(transport, stall_limit, clock))), group }
    }

    /// The communicator of a world of one: every collective is over at once.
    pub fn alone() -> Self {
        Self::new(Box::new(Alone), Duration::MAX)
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // A caller that panicked inside has failed the core on its way out: see `Blocking`.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A communicator of some of this one's ranks, which become its ranks 0, 1, 2 and so on in the order given. Exactly
    /// those ranks call this, with the same list; nothing is sent.
    ///
    /// # Errors
    /// `Invalid` when a rank is named twice, or does not exist, or this rank is not named.
    pub fn group(&mut self, ranks: &[usize]) -> Result<Self> {
        Ok(Self { core: Arc::clone(&self.core), group: self.group.of(ranks)? })
    }

    /// A communicator of the same ranks whose collectives go at a priority: 0, the lowest, as those of
    /// [`Communicator::new`], or more. What is more urgent overtakes whatever is in flight below it, between the same ranks
    /// too. Groups and meshes of it inherit the priority. All ranks of the group call this, with the same level, and nothing
    /// is sent; the order in which collectives are started stays one for all levels. Ranks that start a collective at
    /// different levels fail with `Invalid`, naming both sides, once they wait for it.
    ///
    /// # Errors
    /// `Invalid` when the transport has fewer levels: `network.priority_levels` says how many.
    pub fn at_priority(&mut self, level: usize) -> Result<Self> {
        let levels = self.core().executor.levels();
        let known = u8::try_from(level).ok().filter(|_| level < levels).ok_or_else(|| {
            Error::invalid(format!(
                "there is no priority {level}: network.priority_levels is {levels}, so they go from 0 to {}",
                levels - 1
            ))
        })?;
        Ok(Self { core: Arc::clone(&self.core), group: self.group.at_level(known) })
    }

    /// A communicator for each axis of a mesh, in the order of the axes: `[("dp", 2), ("tp", 4)]` makes of eight ranks
    /// groups of two that are four apart, and groups of four neighbours. All ranks call this alike.
    ///
    /// # Errors
    /// `Invalid` when the mesh does not have as many places as there are ranks.
    pub fn mesh<'a>(&mut self, axes: &[(&'a str, usize)]) -> Result<Vec<(&'a str, Self)>> {
        let sizes: Vec<usize> = axes.iter().map(|(_, size)| *size).collect();
        let groups = group::axes(&sizes, self.rank(), self.world_size())?;
        axes.iter().zip(groups).map(|((name, _), ranks)| Ok((*name, self.group(&ranks)?))).collect()
    }

    /// This rank, in its group.
    pub fn rank(&self) -> usize {
        self.group.rank
    }

    /// Ranks of the group.
    pub fn world_size(&self) -> usize {
        self.group.ranks.len()
    }

    /// The transport, as shown to a person.
    pub fn transport_name(&self) -> &'static str {
        self.core().executor.transport().name()
    }

    /// The heap of memory that all ranks reach in place, where they share a host's: an all-reduce whose memory lies in
    /// ranges of it, on every rank, copies nothing. After an error of a started collective peers may still write into such
    /// ranges, until their processes end: leave them alone, and take new ones with the next communicator.
    pub fn heap(&self) -> Option<SharedHeap> {
        self.core().executor.neighbours().map(|neighbours| neighbours.heap().clone())
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        let core = self.core();
        Counters {
            operations: core.operations,
            bytes_sent: core.executor.moved.sent,
            bytes_received: core.executor.moved.received,
            waited_ns: u64::try_from(core.waited().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Starts a collective. Returns after moving what can move at once.
    ///
    /// # Safety
    /// The memory stays valid, an output is touched and an input written by nobody else, until [`Communicator::wait`] for
    /// this handle has returned (`Ok` or not), or any call has returned the error of a started collective, or the
    /// communicator was dropped; after an error registered memory is touched by nobody at all ([`Communicator::heap`]). Buffers are aligned for their elements; input and output share none.
    ///
    /// # Errors
    /// `Invalid` when lengths, types or root do not fit the collective or the group; those of
    /// [`Communicator::progress`].
    pub unsafe fn start(&mut self, what: &Collective, memory: Memory) -> Result<Handle> {
        // SAFETY: passed on to our caller.
        unsafe { self.start_with(what, memory, None) }
    }

    /// As [`Communicator::start`], but the memory is left alone until `ready` has returned true: for an input that a
    /// device is still writing. `ready` is asked inside calls that make progress. Collectives that were started earlier go
    /// on meanwhile, and later ones between other ranks or of other priorities; one that shares a stream with this one
    /// waits behind it.
    ///
    /// # Safety
    /// As for [`Communicator::start`]; but until `ready` has returned true the caller may write the memory.
    ///
    /// # Errors
    /// As for [`Communicator::start`].
    pub unsafe fn start_when(&mut self, ready: Ready, what: &Collective, memory: Memory) -> Result<Handle> {
        // SAFETY: passed on to our caller.
        unsafe { self.start_with(what, memory, Some(ready)) }
    }

    /// # Safety
    /// As for [`Communicator::start_when`].
    unsafe fn start_with(
        &mut self,
        what: &Collective,
        memory: Memory,
        ready: Option<Ready>,
    ) -> Result<Handle> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: passed on to our caller.
        let ticket = unsafe { core.start(&mut self.group, what, memory, ready, false) }?;
        Ok(Handle { ticket })
    }

    /// Starts summing `data` over all ranks, in place.
    ///
    /// # Safety
    /// As for [`Communicator::start`].
    ///
    /// # Errors
    /// Those of [`Communicator::progress`].
    pub unsafe fn start_all_reduce(&mut self, data: RawRange) -> Result<Handle> {
        // SAFETY: passed on to our caller.
        unsafe { self.start(&Collective::all_reduce(Reduction::Sum), Memory::InPlace(data.into())) }
    }

    /// Moves what can move now, without blocking, for a bounded number of bytes. Costs some tens of nanoseconds when
    /// nothing is in flight.
    ///
    /// # Errors
    /// `PeerLost` naming a rank that is gone, `Invalid` when ranks are at different collectives, `Corrupt` when a
    /// stream is damaged; what a peer gave up with; what failed before. Ranks in errors are the transport's.
    pub fn progress(&mut self) -> Result<()> {
        self.core().progress()
    }

    /// Blocks until a collective of this transport is over, moving others meanwhile.
    ///
    /// # Errors
    /// Those of [`Communicator::progress`]; `Unavailable`, naming the ranks that are waited for, when nothing moves for
    /// the stall limit.
    pub fn wait(&mut self, handle: Handle) -> Result<()> {
        self.core().wait(handle.ticket)
    }

    /// Whether a collective is over: [`Communicator::wait`] would not block.
    pub fn is_done(&self, handle: &Handle) -> bool {
        self.core().executor.is_done(handle.ticket)
    }

    /// Carries out a collective with input and output apart. Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::start`] and [`Communicator::wait`].
    pub fn run<T: Number>(&mut self, what: &Collective, input: &[T], output: &mut [T]) -> Result<()> {
        let memory = Memory::Apart { input: Buffer::input(input), output: Buffer::of(output) };
        // SAFETY: both are borrowed for as long as this call, which waits.
        unsafe { self.run_on(what, memory) }
    }

    /// Carries out a collective in one buffer. Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::start`] and [`Communicator::wait`].
    pub fn run_in_place<T: Number>(&mut self, what: &Collective, data: &mut [T]) -> Result<()> {
        // SAFETY: `data` is borrowed for as long as this call, which waits.
        unsafe { self.run_on(what, Memory::InPlace(Buffer::of(data))) }
    }

    /// Sums over all ranks, in place. Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::wait`].
    pub fn all_reduce<T: Number>(&mut self, data: &mut [T]) -> Result<()> {
        self.run_in_place(&Collective::all_reduce(Reduction::Sum), data)
    }

    /// Overwrites `data` by those of `root`, on every rank. Blocks.
    ///
    /// # Errors
    /// `Invalid` when `root` is none of the group; those of [`Communicator::wait`].
    pub fn broadcast<T: Number>(&mut self, root: usize, data: &mut [T]) -> Result<()> {
        self.run_in_place(&Collective::broadcast(root), data)
    }

    /// Sends `data` to a rank that [receives](Communicator::receive) them. Blocks until they have left, which may be
    /// before they were received, or not.
    ///
    /// # Errors
    /// Those of [`Communicator::run`].
    pub fn send<T: Number>(&mut self, to: usize, data: &[T]) -> Result<()> {
        self.run(&Collective::send(to), data, &mut [])
    }

    /// Overwrites `data` by what a rank [sends](Communicator::send). Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::run`].
    pub fn receive<T: Number>(&mut self, from: usize, data: &mut [T]) -> Result<()> {
        self.run_in_place(&Collective::receive(from), data)
    }

    /// Returns once every rank has called it. Blocks.
    ///
    /// # Errors
    /// Those of [`Communicator::wait`].
    pub fn barrier(&mut self) -> Result<()> {
        self.run_in_place(&Collective::barrier(), &mut [0f32])
    }

    /// As [`Communicator::barrier`], but waits for as long as all others live: for ranks that have no part in what
    /// another does alone, such as saving.
    ///
    /// # Errors
    /// Those of [`Communicator::wait`], but that it never gives up.
    pub fn patient_barrier(&mut self) -> Result<()> {
        self.patiently(Self::barrier)
    }

    /// Calls what waits, and lets it wait for as long as all others live.
    pub fn patiently<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> T {
        let limit = std::mem::replace(&mut self.core().stall_limit, Duration::MAX);
        let result = call(self);
        self.core().stall_limit = limit;
        result
    }

    /// Tells all ranks that this one gives up and why; every further call fails. Without this they would only see it
    /// leave.
    pub fn give_up(&mut self, error: &Error) {
        let _ = self.core().fail(Error::new(error.kind().clone(), error.to_string()));
    }

    /// Ends everything in flight, in all groups of this transport and on all their ranks, and with it the transport:
    /// streams that were left in the middle of a message are of no more use. The memory of collectives is free when this
    /// returns, but for registered memory (see [`Communicator::heap`]). Every further call, here and on the peers, fails with `Closed` and says who has cancelled what.
    pub fn cancel(&mut self, reason: &str) {
        let mut core = self.core();
        let what = core.describe();
        let rank = core.executor.transport().rank();
        let _ = core.fail(Error::new(Kind::Closed, format!("rank {rank} has cancelled {what}: {reason}")));
    }

    /// Has the record of the last thousand operations written into a folder, as `flight-rank-N.json`: when a collective
    /// fails, and whenever a call that makes progress finds `wanted` set (it is cleared then; calls that wait look every
    /// half second). The folder is made when it is needed. What keeps the record from being written is not told there.
    pub fn record_flight(&mut self, folder: PathBuf, wanted: Arc<AtomicBool>) {
        let mut core = self.core();
        (core.flight_folder, core.flight_wanted) = (Some(folder), Some(wanted));
    }

    /// The last thousand operations of all groups of this transport, and how far those in flight are.
    pub fn flight(&self) -> FlightLog {
        self.core().record()
    }

    /// Writes what [`Communicator::flight`] returns where [`Communicator::record_flight`] has said; the file, or `None`
    /// where nothing was said.
    ///
    /// # Errors
    /// The system's.
    pub fn dump_flight(&self) -> Result<Option<PathBuf>> {
        self.core().write_record()
    }

    /// # Safety
    /// The memory is valid and otherwise untouched during the call.
    unsafe fn run_on(&mut self, what: &Collective, memory: Memory) -> Result<()> {
        let blocking = Blocking(self);
        let Communicator { core, group } = &mut *blocking.0;
        let mut core = core.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: by the caller's word until we return; should we unwind, `Blocking` lets go of it.
        let ticket = unsafe { core.start(group, what, memory, None, true) }?;
        core.wait(ticket)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let rank = self.group.rank;
        let mut core = self.core();
        if core.executor.is_busy_with(self.group.id) {
            let what = core.describe();
            let left = format!("rank {rank} has left in the middle of {what}");
            // The last one needs no word: its transport says that it has left.
            if Arc::strong_count(&self.core) > 1 {
                let _ = core.fail(Error::new(Kind::Closed, left));
            }
        }
    }
}

/// Lets go of borrowed memory when a blocking call unwinds.
struct Blocking<'a>(&'a mut Communicator);

impl Drop for Blocking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let rank = self.0.rank();
            let _ = self.0.core().fail(Error::internal(format!("rank {rank} has panicked in a collective")));
        }
    }
}
