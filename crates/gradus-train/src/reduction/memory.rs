//! The memory that gradients lie in: whole, or this rank's shard with room for the units under way.

use super::kept::Kept;
use crate::sharding::Sharding;
use gradus_collective::Communicator;
use gradus_compute::Device;
use gradus_error::Result;
use gradus_memory::Span;
use gradus_model::{Gradients, Parameters};
use std::cell::Cell;

/// Memory for the gradients of one stage.
pub(crate) enum GradientMemory {
    /// All of the layout.
    Kept(Kept),
    /// This rank's shard, and units that a pass adds to or that are being scattered.
    Sharded(Sharded),
}

/// See [`GradientMemory::Sharded`].
pub(crate) struct Sharded {
    /// Each owned range of the layout, and where its sums lie; in the order of the layout.
    own: Vec<(Span, Span)>,
    slots: Vec<Room>,
}

/// Room for one unit.
struct Room {
    place: Span,
    /// Which unit has it, until it is scattered.
    unit: Cell<Option<usize>>,
    scattering: Cell<bool>,
}

/// The room that a unit has.
pub(super) struct Slot {
    pub number: usize,
    /// As long as the unit.
    pub place: Span,
}

/// Units that a part needs room for at once: the one that a pass adds to, the one before, which is being scattered; and a tied
/// head's table, which is begun first and finished last.
pub(crate) fn slots(parameters: &Parameters) -> usize {
    let tied = !parameters.head.is_empty() && parameters.head == parameters.embedding;
    // The table of a part with embedding is added to together with positions.
    let together = parameters.positions.is_some();
    2 + usize::from(tied || together)
}

impl GradientMemory {
    /// Memory for the whole layout, which other ranks reach if all of them can have it so.
    ///
    /// # Errors
    /// `Exhausted` where memory does not suffice; those of the communicator.
    pub fn kept(device: &dyn Device, len: usize, ranks: &mut Communicator) -> Result<Self> {
        Ok(Self::Kept(Kept::new(device, len, ranks)?))
    }

    /// Memory for the whole layout that nobody else reaches.
    ///
    /// # Errors
    /// `Exhausted` where memory does not suffice.
    pub fn private(device: &dyn Device, len: usize) -> Result<Self> {
        Ok(Self::Kept(Kept::private(device, len)?))
    }

    /// Memory for `rank`'s shard.
    ///
    /// # Errors
    /// `Exhausted` where memory does not suffice.
    pub fn sharded(
        device: &dyn Device,
        parameters: &Parameters,
        sharding: &Sharding,
        rank: usize,
    ) -> Result<Self> {
        let own = sharding.owned(rank).into_iter().map(|own| Ok((own, device.allocate(own.len)?)));
        let own = own.collect::<Result<_>>()?;
        let largest = parameters.units().iter().map(|(_, range)| range.len).max().unwrap_or(0);
        let room = |_| {
            let place = device.allocate(largest)?;
            Ok(Room { place, unit: Cell::new(None), scattering: Cell::new(false) })
        };
        let slots = (0..slots(parameters)).map(room).collect::<Result<_>>()?;
        Ok(Self::Sharded(Sharded { own, slots }))
    }

    /// Whether other ranks reach it where it lies.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Kept(kept) if kept.are_shared())
    }

    /// What a pass is told.
    pub fn gradients(&self) -> Gradients {
        match self {
            Self::Kept(kept) => Gradients::Kept(kept.span()),
            Self::Sharded(_) => Gradients::Visited,
        }
    }

    /// Sets all sums to zero.
    pub fn clear(&self, device: &dyn Device) {
        match self {
            Self::Kept(kept) => device.fill(kept.span(), 0.0),
            Self::Sharded(sharded) => {
                sharded.own.iter().for_each(|(_, place)| device.fill(*place, 0.0));
                sharded.slots.iter().for_each(Room::leave);
            }
        }
    }

    /// Where the sums of a range lie that this rank keeps.
    pub fn place(&self, range: Span) -> Span {
        match self {
            Self::Kept(kept) => kept.span().part(range.start, range.len),
            Self::Sharded(Sharded { own, .. }) => {
                let before = own.partition_point(|(known, _)| known.start <= range.start);
                let (known, place) = own[before - 1];
                place.part(range.start - known.start, range.len)
            }
        }
    }

    fn rooms(&self) -> &[Room] {
        match self {
            Self::Kept(_) => &[],
            Self::Sharded(sharded) => &sharded.slots,
        }
    }

    /// Room for a unit: what it has already, or what is free, set to zero; `None` where all is taken.
    pub fn take_slot(&self, device: &dyn Device, unit: usize, len: usize) -> Option<Span> {
        if let Some(slot) = self.slot_of(unit) {
            return Some(slot.place.part(0, len));
        }
        let room = self.rooms().iter().find(|room| room.unit.get().is_none() && !room.scattering.get())?;
        room.unit.set(Some(unit));
        let place = room.place.part(0, len);
        device.fill(place, 0.0);
        Some(place)
    }

    /// The room that a pass adds a unit's gradients in.
    pub(super) fn slot_of(&self, unit: usize) -> Option<Slot> {
        let number = self.rooms().iter().position(|room| room.unit.get() == Some(unit))?;
        Some(Slot { number, place: self.rooms()[number].place })
    }

    /// A pass is done with a unit: its room is free once it is scattered.
    pub(super) fn close_slot(&self, number: usize) {
        let room = &self.rooms()[number];
        room.unit.set(None);
        room.scattering.set(true);
    }

    /// Nothing is being scattered any more: what was is lost.
    pub fn let_go(&self) {
        self.rooms().iter().for_each(|room| room.scattering.set(false));
    }

    /// Adds what has come into this part of a slot to the sums of an owned range; the slot is free then.
    pub fn add(&self, device: &dyn Device, slot: usize, part: Span, own: Span) {
        let room = &self.rooms()[slot];
        if !own.is_empty() {
            let (came, sum) = (room.place.part(part.start, part.len), self.place(own));
            device.add(sum, came, sum);
        }
        room.leave();
    }
}

impl Room {
    fn leave(&self) {
        self.unit.set(None);
        self.scattering.set(false);
    }
}
