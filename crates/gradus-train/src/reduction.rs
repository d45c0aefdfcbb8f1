//! Gradients: summed over the ranks that share out a batch, while the backward pass goes on.
//!
//! With one rank on `fsdp`, buckets of the layout are summed over `dp`, and all ranks have all sums (data parallelism). With
//! more, each unit's gradients are scattered (reduce-scatter: each rank has the sum of its shard), and that shard is summed over
//! `dp` (hybrid sharding). Either gradients are kept whole, and what is scattered is the sum over a rank's microbatches, with the last of
//! them (ZeRO-1); or they are scattered microbatch by microbatch out of memory for the units under way, and added to
//! what a rank keeps, its shard (ZeRO-2; Rajbhandari et al. 2020, section 5.2).

mod kept;
mod memory;

use memory::Slot;
pub(crate) use memory::{GradientMemory, slots};

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
    /// A range is being scattered, from a slot or where it is kept; for the last time in this step or not.
    Scatter { handle: Handle, range: usize, slot: Option<usize>, last: bool },
    /// This rank's part of a range is being summed over replicas.
    Sum { handle: Handle },
}

/// Sums one stage's gradients over data ranks.
pub(crate) struct Reduction {
    dp: AxisRanks,
    fsdp: AxisRanks,
    device: Arc<dyn Device>,
    units: Vec<(Unit, Span)>,
    ranges: Vec<Range>,
    memory: GradientMemory,
    flights: RefCell<VecDeque<Flight>>,
    /// Ranges handed over so far in this step.
    started: Cell<usize>,
    /// Whether this is the step's last backward pass.
    last: Cell<bool>,
    failure: Failure,
}

/// Cuts `len` elements into buckets of about `bucket_len`, in order; the last one may be smaller.
fn buckets(len: usize, bucket_len: usize) -> Vec<Span> {
    let bucket_len = bucket_len.max(1);
    (0..len).step_by(bucket_len).map(|start| Span::new(start, bucket_len.min(len - start))).collect()
}

impl Reduction {
    /// Sums gradients that lie in `memory`; without shards in buckets of about `bucket_bytes`.
    pub fn new(
        device: &Arc<dyn Device>,
        units: &[(Unit, Span)],
        sharding: &Sharding,
        (dp, fsdp): (AxisRanks, AxisRanks),
        memory: GradientMemory,
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
            1 => buckets(len, bucket_bytes / size_of::<f32>()).into_iter().map(whole).collect(),
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
        self.memory.is_shared()
    }

    /// Time that compute has waited for replicas, and for shards.
    pub fn waited_ns(&self) -> [u64; 2] {
        [self.dp.waited_ns(), self.fsdp.waited_ns()]
    }

    /// Before a step: all sums are zero.
    pub fn clear(&self) {
        // Of a step that was given up some may be left; its communicators have failed for good.
        self.flights.borrow_mut().clear();
        self.started.set(0);
        self.memory.clear(self.device.as_ref());
    }

    /// Before a backward pass, which may be the step's last: where it adds its gradients.
    pub fn begin(&self, last: bool) -> Gradients {
        self.last.set(last);
        self.memory.gradients()
    }

    /// Where a pass adds the gradients of a unit, where they are not kept whole.
    pub fn slot(&self, unit: Unit) -> Span {
        let index = self.index(unit);
        loop {
            if let Some(place) = self.memory.take_slot(self.device.as_ref(), index, self.units[index].1.len) {
                return place;
            }
            // The oldest under way makes room.
            if self.failure.guard(|| self.complete_oldest()).is_none() {
                return self.memory.any_slot(self.units[index].1.len);
            }
        }
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
        self.failure.guard(|| {
            match self.memory.slot_of(self.index(unit)) {
                Some(slot) => self.scatter_slot(self.index(unit), slot)?,
                None if self.last.get() => self.start_up_to(range.end())?,
                None => {}
            }
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

    /// Of gradients that are kept whole: starts all ranges that are final.
    fn start_up_to(&self, end: usize) -> Result<()> {
        for index in self.started.get()..self.ranges.len() {
            let Range { span, scatter, .. } = &self.ranges[index];
            if span.end() > end {
                break;
            }
            self.started.set(index + 1);
            match scatter {
                None => self.sum(index)?,
                Some(scatter) => self.scatter(index, scatter, (self.memory.place(*span), None))?,
            }
        }
        Ok(())
    }

    fn scatter_slot(&self, index: usize, Slot { number, place }: Slot) -> Result<()> {
        self.started.set(self.started.get() + 1);
        self.memory.close_slot(number);
        let place = place.part(0, self.ranges[index].span.len);
        let scatter = self.ranges[index].scatter.as_ref().expect("what has slots is scattered");
        self.scatter(index, scatter, (place, Some(number)))
    }

    fn scatter(&self, range: usize, how: &Collective, (place, slot): (Span, Option<usize>)) -> Result<()> {
        let memory = Memory::InPlace(self.device.raw(place).into());
        // SAFETY: the range is final, so nobody touches it until the scatter has been waited for; the learner drops its
        // communicators before the device's memory.
        let handle = unsafe { self.fsdp.start(how, memory) }?;
        self.flights.borrow_mut().push_back(Flight::Scatter { handle, range, slot, last: self.last.get() });
        Ok(())
    }

    /// Starts summing this rank's part of a range over replicas.
    fn sum(&self, range: usize) -> Result<()> {
        let own = self.ranges[range].own;
        if own.is_empty() {
            return Ok(());
        }
        let memory = Memory::InPlace(self.device.raw(self.memory.place(own)).into());
        // SAFETY: as in `scatter`.
        let handle = unsafe { self.dp.start(&Collective::all_reduce(How::Sum), memory) }?;
        self.flights.borrow_mut().push_back(Flight::Sum { handle });
        Ok(())
    }

    /// Takes in what has arrived, in the order in which it was started.
    fn advance(&self) -> Result<()> {
        let is_done = |flight: &Flight| match flight {
            Flight::Scatter { handle, .. } => self.fsdp.is_done(handle),
            Flight::Sum { handle } => self.dp.is_done(handle),
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
            Flight::Sum { handle } => self.dp.wait(handle),
            Flight::Scatter { handle, range, slot, last } => {
                self.fsdp.wait(handle)?;
                let Range { span, own, .. } = self.ranges[range];
                if let Some(slot) = slot {
                    self.memory.add(
                        self.device.as_ref(),
                        slot,
                        Span::new(own.start - span.start, own.len),
                        own,
                    );
                }
                if last && self.dp.size() > 1 { self.sum(range) } else { Ok(()) }
            }
        }
    }
}

#[cfg(test)]
mod tests;
