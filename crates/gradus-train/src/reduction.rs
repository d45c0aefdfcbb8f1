//! Gradients: summed over the ranks that share out a batch, while the backward pass goes on.
//!
//! With one rank on `fsdp`, buckets of the layout are summed over `dp`, and all ranks have all sums (data parallelism). With
//! more, each unit's gradients are scattered (reduce-scatter: each rank has the sum of its shard), and that shard is summed over
//! `dp` (hybrid sharding). Either gradients are kept whole, and what is scattered is the sum over a rank's microbatches, with the last of
//! them (ZeRO-1); or they are scattered microbatch by microbatch out of memory for the units under way, and added to
//! what a rank keeps, its shard (ZeRO-2; Rajbhandari et al. 2020, section 5.2).
//!
//! Where gradients travel in bf16, they are rounded for each collective, and what came of it is f32 again: see [`staging`].

mod kept;
mod memory;
mod staging;

use memory::Slot;
pub(crate) use memory::{GradientMemory, slots};
pub(crate) use staging::{Staging, StagingSize};

use crate::axis::{AxisRanks, Failure};
use crate::sharding::Sharding;
use gradus_collective::{Collective, Handle, Memory, Reduction as How};
use gradus_compute::Device;
use gradus_error::Result;
use gradus_memory::Span;
use gradus_model::{Gradients, Unit};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

/// Ranges that are being scattered at once where their sums over replicas begin next: the backward passes of two units hide
/// each.
const MOST_SCATTERS: usize = 2;

/// A range of the layout whose gradients travel together.
struct Range {
    span: Span,
    /// How it is scattered, where it is.
    scatter: Option<Collective>,
    /// What this rank has of it then.
    own: Span,
}

/// Something under way.
enum Flight {
    /// A range is being scattered, from a slot or where it is kept; `leads_on` where its sum over replicas begins next.
    Scatter { handle: Handle, range: usize, slot: Option<Slot>, room: Option<usize>, leads_on: bool },
    /// This rank's part of a range is being summed over replicas.
    Sum { handle: Handle, range: usize, room: Option<usize> },
}

/// Sums one stage's gradients over data ranks.
pub(crate) struct Reduction {
    dp: AxisRanks,
    fsdp: AxisRanks,
    device: Arc<dyn Device>,
    units: Vec<(Unit, Span)>,
    ranges: Vec<Range>,
    memory: GradientMemory,
    /// Rooms to travel in, where gradients do not travel as they are.
    staging: Option<Staging>,
    flights: RefCell<VecDeque<Flight>>,
    /// Ranges handed over so far in this step.
    started: Cell<usize>,
    /// Whether this is the step's last backward pass.
    last: Cell<bool>,
    failure: Failure,
}

/// Elements of a bucket of about so many bytes.
fn bucket_len(bytes: usize) -> usize {
    (bytes / size_of::<f32>()).max(1)
}

/// Cuts `len` elements into buckets of `bucket_len`, in order; the last one may be smaller.
fn buckets(len: usize, bucket_len: usize) -> Vec<Span> {
    (0..len).step_by(bucket_len).map(|start| Span::new(start, bucket_len.min(len - start))).collect()
}

impl Reduction {
    /// Sums gradients that lie in `memory` and travel by way of `staging`, if there is one; without shards in buckets of about
    /// `bucket_bytes`.
    pub fn new(
        device: &Arc<dyn Device>,
        units: &[(Unit, Span)],
        sharding: &Sharding,
        (dp, fsdp): (AxisRanks, AxisRanks),
        (memory, staging): (GradientMemory, Option<Staging>),
        bucket_bytes: usize,
    ) -> Self {
        let len = units.last().map_or(0, |(_, span)| span.end());
        let whole = |span| Range { span, scatter: None, own: span };
        let scattered = |(index, (_, span)): (usize, &(Unit, Span))| Range {
            span: *span,
            scatter: Some(Collective::reduce_scatter(How::Sum).with_counts(sharding.counts(index))),
            own: sharding.own(index, fsdp.rank()),
        };
        let ranges: Vec<Range> = match fsdp.size() {
            1 => buckets(len, bucket_len(bucket_bytes)).into_iter().map(whole).collect(),
            _ => units.iter().enumerate().map(scattered).collect(),
        };
        Self {
            dp,
            fsdp,
            device: Arc::clone(device),
            units: units.to_vec(),
            flights: RefCell::new(VecDeque::with_capacity(2 * ranges.len())),
            ranges,
            memory,
            staging,
            started: Cell::new(0),
            last: Cell::new(false),
            failure: Failure::default(),
        }
    }

    /// Where the sum of a range of the layout that this rank owns lies.
    pub fn place(&self, own: Span) -> Span {
        self.memory.place(own)
    }

    /// Whether the other ranks reach gradients where they lie.
    pub fn are_shared(&self) -> bool {
        self.staging.as_ref().map_or_else(|| self.memory.is_shared(), Staging::is_shared)
    }

    /// Time that compute has waited for replicas, and for shards.
    pub fn waited_ns(&self) -> [u64; 2] {
        [self.dp.waited_ns(), self.fsdp.waited_ns()]
    }

    /// Before a step: all sums are zero.
    pub fn clear(&self) {
        assert!(self.flights.borrow().is_empty(), "a step waits for all that it starts, or is the last");
        self.staging.iter().for_each(Staging::clear);
        self.started.set(0);
        self.memory.clear(self.device.as_ref());
    }

    /// Before a backward pass, which may be the step's last: where it adds its gradients.
    pub fn begin(&self, last: bool) -> Gradients {
        self.last.set(last);
        self.memory.gradients()
    }

    /// Where a pass adds the gradients of a unit, where they are not kept whole. A pass that has failed runs out in the same
    /// memory as another: nothing is under way from it any more.
    pub fn slot(&self, unit: Unit) -> Span {
        let index = self.index(unit);
        let take = || self.memory.take_slot(self.device.as_ref(), index, self.units[index].1.len);
        loop {
            if let Some(place) = take() {
                return place;
            }
            // The oldest under way makes room.
            if self.failure.guard(|| self.complete_oldest()).is_none() {
                break;
            }
        }
        self.flights.borrow_mut().clear();
        self.memory.let_go();
        take().expect("there is room for all that a pass adds to at once")
    }

    fn index(&self, unit: Unit) -> usize {
        self.units.iter().position(|(known, _)| *known == unit).expect("a part has its own units")
    }

    /// Where the gradients of a unit lie that a pass has finished, if they leave for other ranks now.
    pub fn leaving(&self, unit: Unit, range: Span) -> Option<Span> {
        match self.memory.slot_of(self.index(unit)) {
            Some(slot) => Some(slot.place.part(0, range.len)),
            None => self.last.get().then(|| self.memory.place(range)),
        }
    }

    /// A pass has finished the gradients of a unit, whose range this is.
    pub fn finished(&self, unit: Unit, range: Span) {
        let index = self.index(unit);
        let slot = self.memory.slot_of(index);
        if let Some(slot) = &slot {
            self.memory.close_slot(slot.number);
        }
        self.failure.guard(|| {
            match slot {
                Some(slot) => self.scatter_slot(index, slot)?,
                None if self.last.get() => self.start_up_to(range.end())?,
                None => {}
            }
            self.keep_up()?;
            self.advance()
        });
    }

    /// Moves what is under way.
    pub fn progress(&self) {
        self.failure.guard(|| {
            self.dp.progress()?;
            self.advance()
        });
    }

    /// Ranges handed to the communicator so far in this step.
    #[cfg(test)]
    fn started(&self) -> usize {
        self.started.get()
    }

    /// Waits until all ranks' gradients of this step are summed.
    ///
    /// # Errors
    /// The communicator's, also one that came up during a pass.
    pub fn finish(&self) -> Result<()> {
        self.failure.take()?;
        while !self.flights.borrow().is_empty() {
            self.complete_oldest()?;
        }
        Ok(())
    }

    /// Waits for all scatters, so that all sums over replicas have begun.
    pub fn settle(&self) {
        self.failure.guard(|| {
            while self.flights.borrow().iter().any(|flight| matches!(flight, Flight::Scatter { .. })) {
                self.complete_oldest()?;
            }
            Ok(())
        });
    }

    /// Of gradients that are kept whole: starts all ranges that are final.
    fn start_up_to(&self, end: usize) -> Result<()> {
        for index in self.started.get()..self.ranges.len() {
            let Range { span, scatter, .. } = &self.ranges[index];
            if span.end() > end {
                break;
            }
            self.started.set(index + 1);
            match scatter {
                None => self.sum(index, self.take_room()?)?,
                Some(_) => self.scatter(index, self.memory.place(*span), None)?,
            }
        }
        Ok(())
    }

    fn scatter_slot(&self, index: usize, slot: Slot) -> Result<()> {
        self.started.set(self.started.get() + 1);
        self.scatter(index, slot.place.part(0, self.ranges[index].span.len), Some(slot))
    }

    /// A room, where there are some. It is not left for later where none is free, for all ranks have to start the same in the
    /// same order: the oldest under way makes room.
    fn take_room(&self) -> Result<Option<usize>> {
        let Some(staging) = &self.staging else { return Ok(None) };
        loop {
            if let Some(room) = staging.take() {
                return Ok(Some(room));
            }
            self.complete_oldest()?;
        }
    }

    fn leave_room(&self, room: Option<usize>) {
        if let (Some(staging), Some(room)) = (&self.staging, room) {
            staging.leave(room);
        }
    }

    /// Gradients as they travel: rounded into a room, or where they lie.
    fn outgoing(&self, place: Span, room: Option<usize>) -> Memory {
        match (&self.staging, room) {
            (Some(staging), Some(room)) => staging.send(self.device.as_ref(), place, room),
            _ => Memory::InPlace(self.device.raw(place).into()),
        }
    }

    /// Brings to its place what has come into this part of a room.
    fn incoming(&self, room: Option<usize>, part: Span, place: Span) {
        if let (Some(staging), Some(room)) = (&self.staging, room) {
            staging.bring(self.device.as_ref(), room, part, place);
        }
    }

    /// Starts scattering a range that lies at `place`, in a slot or where it is kept.
    fn scatter(&self, range: usize, place: Span, slot: Option<Slot>) -> Result<()> {
        let how = self.ranges[range].scatter.as_ref().expect("ranges are scattered where there are shards");
        let room = self.take_room()?;
        let memory = self.outgoing(place, room);
        // SAFETY: the range is final, so nobody touches it until the scatter has been waited for, nor its room; the learner
        // drops its communicators before the device's memory.
        let handle = unsafe { self.fsdp.start(how, memory) }?;
        let leads_on = self.last.get() && self.dp.size() > 1;
        let flight = Flight::Scatter { handle, range, slot, room, leads_on };
        self.flights.borrow_mut().push_back(flight);
        Ok(())
    }

    /// Starts summing this rank's part of a range over replicas, by way of a room that it has.
    fn sum(&self, range: usize, room: Option<usize>) -> Result<()> {
        let own = self.ranges[range].own;
        if own.is_empty() {
            self.leave_room(room);
            return Ok(());
        }
        let memory = self.outgoing(self.memory.place(own), room);
        // SAFETY: as in `scatter`.
        let handle = unsafe { self.dp.start(&Collective::all_reduce(How::Sum), memory) }?;
        self.flights.borrow_mut().push_back(Flight::Sum { handle, range, room });
        Ok(())
    }

    /// Begins the sums over replicas of what was scattered, but for the latest. When that has arrived differs from rank to rank, and there
    /// has to be one order in which all of them start what they take part in: so a sum begins where its pass is, not when.
    fn keep_up(&self) -> Result<()> {
        let leads_on = |flight: &&Flight| matches!(flight, Flight::Scatter { leads_on: true, .. });
        while self.flights.borrow().iter().filter(leads_on).count() > MOST_SCATTERS {
            self.complete_oldest()?;
        }
        Ok(())
    }

    /// Takes in what has arrived, in the order in which it was started, up to what leads on.
    fn advance(&self) -> Result<()> {
        let is_done = |flight: &Flight| match flight {
            Flight::Scatter { handle, leads_on, .. } => !leads_on && self.fsdp.is_done(handle),
            Flight::Sum { handle, .. } => self.dp.is_done(handle),
        };
        while self.flights.borrow().front().is_some_and(is_done) {
            self.complete_oldest()?;
        }
        Ok(())
    }

    /// Waits for the oldest under way, and does what is next with it.
    fn complete_oldest(&self) -> Result<()> {
        let oldest = self.flights.borrow_mut().pop_front();
        match oldest.expect("something is under way") {
            Flight::Sum { handle, range, room } => {
                self.dp.wait(handle)?;
                let own = self.ranges[range].own;
                self.incoming(room, Span::new(0, own.len), self.memory.place(own));
                self.leave_room(room);
                Ok(())
            }
            Flight::Scatter { handle, range, slot, room, leads_on } => {
                self.fsdp.wait(handle)?;
                self.take_in(range, slot, room);
                if leads_on {
                    return self.sum(range, room);
                }
                self.leave_room(room);
                Ok(())
            }
        }
    }

    /// This rank's part of a range that was scattered comes to where it is kept.
    fn take_in(&self, range: usize, slot: Option<Slot>, room: Option<usize>) {
        let Range { span, own, .. } = self.ranges[range];
        let part = Span::new(own.start - span.start, own.len);
        match slot {
            None => self.incoming(room, part, self.memory.place(own)),
            Some(Slot { number, place }) => {
                self.incoming(room, part, place.part(part.start, part.len));
                self.memory.add(self.device.as_ref(), number, part, own);
            }
        }
    }
}

#[cfg(test)]
mod tests;
