//! ZeRO-3's weights (Rajbhandari et al. 2020, section 5.3): a rank keeps its shard of each unit, and a unit is gathered just
//! before a pass reads it.
//!
//! The order of visits of a whole step is known before it begins. So the unit that is visited next is on its way while this
//! one computes, and of the units that are here the one whose next visit is farthest makes room (Belady 1966); a unit that
//! is visited twice in a row, as the last block is, is gathered once.

use crate::axis::{AxisRanks, Failure};
use crate::sharding::Sharding;
use gradus_collective::{Buffer, Collective, Handle, Memory};
use gradus_compute::Device;
use gradus_error::Result;
use gradus_memory::Span;
use gradus_model::{Parameters, Places, Unit};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Weights of which each rank keeps a shard.
pub(crate) struct Gathering {
    ranks: AxisRanks,
    device: Arc<dyn Device>,
    units: Vec<Unit>,
    /// Of each unit: its place's length, how it is gathered, and where this rank's shard of it lies.
    shards: Vec<(usize, Collective, Span)>,
    slots: RefCell<Vec<Slot>>,
    /// Units in the order of this step's visits, and how many of them have begun.
    visits: RefCell<Vec<usize>>,
    begun: Cell<usize>,
    failure: Failure,
}

/// Room for one unit.
struct Slot {
    place: Span,
    /// Which unit is here, or on its way.
    unit: Option<usize>,
    arriving: Option<Handle>,
    in_use: bool,
}

/// Units that a part needs here at once: those of one visit, and the one that comes next.
pub(crate) fn slots(parameters: &Parameters) -> usize {
    let has = |unit| !parameters.unit(unit).is_empty();
    let two_at_once =
        has(Unit::Embedding) && (has(Unit::Positions) || parameters.head == parameters.embedding);
    2 + usize::from(two_at_once)
}

/// How the weights of a unit come together, each rank's part of its place to its own.
pub(crate) fn gather(sharding: &Sharding, places: &Places, unit: usize) -> Collective {
    let (range, cuts) = (sharding.units()[unit], sharding.cuts(unit));
    let place = |cut: usize| places.of(range.start + cut);
    Collective::all_gather()
        .with_counts(cuts.windows(2).map(|cut| place(cut[1]) - place(cut[0])).collect::<Vec<_>>())
}

/// Elements of f32 in whose place a unit that is here lies: the largest does.
pub(crate) fn slot_len(parameters: &Parameters, places: &Places) -> usize {
    parameters.units().iter().map(|(_, range)| places.range(*range).len).max().unwrap_or(0)
}

/// Elements of f32 in whose place a rank's shard of a unit lies.
pub(crate) fn shard_len(sharding: &Sharding, places: &Places, unit: usize, rank: usize) -> usize {
    places.range(sharding.own(unit, rank)).len
}

impl Gathering {
    /// Room for this rank's shards and for the units that are here at once.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn new(
        device: &Arc<dyn Device>,
        parameters: &Parameters,
        (sharding, places): (&Sharding, &Places),
        ranks: AxisRanks,
    ) -> Result<Self> {
        let shard = |(index, (_, range)): (usize, &(Unit, Span))| {
            let own = device.allocate(shard_len(sharding, places, index, ranks.rank()))?;
            Ok((places.range(*range).len, gather(sharding, places, index), own))
        };
        let shards = parameters.units().iter().enumerate().map(shard).collect::<Result<Vec<_>>>()?;
        let largest = slot_len(parameters, places);
        let slot =
            |_| Ok(Slot { place: device.allocate(largest)?, unit: None, arriving: None, in_use: false });
        Ok(Self {
            ranks,
            device: Arc::clone(device),
            units: parameters.units().iter().map(|(unit, _)| *unit).collect(),
            shards,
            slots: RefCell::new((0..slots(parameters)).map(slot).collect::<Result<_>>()?),
            visits: RefCell::default(),
            begun: Cell::new(0),
            failure: Failure::default(),
        })
    }

    /// Where this rank's shard of a unit lies.
    pub fn shard(&self, unit: usize) -> Span {
        self.shards[unit].2
    }

    /// Time that compute has waited for weights.
    pub fn waited_ns(&self) -> u64 {
        self.ranks.waited_ns()
    }

    /// Weights have changed, and these are the next visits: nothing that is here is good any more.
    pub fn expect(&self, visits: impl Iterator<Item = Unit>) {
        let index =
            |unit| self.units.iter().position(|known| *known == unit).expect("a part visits its own units");
        let mut expected = self.visits.borrow_mut();
        expected.clear();
        expected.extend(visits.map(index));
        self.begun.set(0);
        for slot in self.slots.borrow_mut().iter_mut() {
            // Of what was expected and did not come to be used, something may be on its way.
            if let Some(handle) = slot.arriving.take() {
                self.failure.guard(|| self.ranks.wait(handle));
            }
            (slot.unit, slot.in_use) = (None, false);
        }
    }

    /// The weights of the unit that is visited next, once they are here; what follows is on its way then.
    pub fn visit(&self, unit: Unit) -> Span {
        let number = self.begun.get();
        let expected = self.visits.borrow()[number];
        assert_eq!(self.units[expected], unit, "visits come in the order that was announced");
        self.begun.set(number + 1);
        let slot = self.bring(expected);
        let mut slots = self.slots.borrow_mut();
        slots[slot].in_use = true;
        if let Some(handle) = slots[slot].arriving.take() {
            self.failure.guard(|| self.ranks.wait(handle));
        }
        let place = slots[slot].place.part(0, self.shards[expected].0);
        drop(slots);
        self.prefetch();
        place
    }

    /// The unit may make room.
    pub fn release(&self, unit: Unit) {
        let is_it = |slot: &&mut Slot| slot.unit.is_some_and(|index| self.units[index] == unit);
        if let Some(slot) = self.slots.borrow_mut().iter_mut().find(is_it) {
            slot.in_use = false;
        }
    }

    /// Reports what has failed since the last time.
    pub fn finish(&self) -> Result<()> {
        self.failure.take()
    }

    fn prefetch(&self) {
        let next = self.visits.borrow().get(self.begun.get()).copied();
        let has_room = |slots: &[Slot]| slots.iter().any(|slot| !slot.in_use);
        if let Some(unit) = next.filter(|_| has_room(&self.slots.borrow())) {
            self.bring(unit);
        }
    }

    /// The slot in which a unit is, or to which it has begun to come.
    fn bring(&self, unit: usize) -> usize {
        let mut slots = self.slots.borrow_mut();
        if let Some(found) = slots.iter().position(|slot| slot.unit == Some(unit)) {
            return found;
        }
        let free = (0..slots.len()).filter(|index| !slots[*index].in_use);
        let slot = free
            .max_by_key(|index| self.next_visit(slots[*index].unit))
            .expect("a slot is free for the next unit");
        // What is on its way and not wanted before all others: the order of visits does not do that, but it would be unsound.
        if let Some(handle) = slots[slot].arriving.take() {
            self.failure.guard(|| self.ranks.wait(handle));
        }
        slots[slot].unit = Some(unit);
        slots[slot].arriving = self.failure.guard(|| self.start(unit, slots[slot].place));
        slot
    }

    /// How many visits from now a unit is visited next; a slot without one is free for ever.
    fn next_visit(&self, unit: Option<usize>) -> usize {
        let visits = self.visits.borrow();
        let next = unit.and_then(|unit| visits[self.begun.get()..].iter().position(|other| *other == unit));
        next.unwrap_or(usize::MAX)
    }

    fn start(&self, unit: usize, place: Span) -> Result<Handle> {
        let (len, collective, own) = &self.shards[unit];
        let output = self.device.raw(place.part(0, *len)).into();
        let memory = Memory::Apart { input: Buffer::from(self.device.raw(*own)), output };
        // SAFETY: the shard changes between steps only, the slot is nobody else's until the gather has been waited for, which
        // is before it is used; the learner drops its communicators before the device's memory.
        unsafe { self.ranks.start(collective, memory) }
    }
}
