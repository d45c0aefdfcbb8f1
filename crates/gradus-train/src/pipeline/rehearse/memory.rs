//! What lies in the slots of one rank while its program is rehearsed.

use super::expect;
use crate::pipeline::check::Progress;
use crate::pipeline::message::{Direction, Message};
use crate::pipeline::schedule::{Action, ActionKind};
use gradus_error::{Error, Result};

/// A message that a rank has started: the `index`-th with `peer`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) peer: usize,
    pub(super) index: usize,
}

/// Where something is that a computation needs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Came {
    /// Nobody has asked for it.
    No,
    /// It is there.
    Here,
    /// It comes with a message.
    By(Ticket),
}

/// One microbatch's activations, or none yet.
#[derive(Debug, Clone)]
struct Slot {
    /// Chunk and microbatch.
    holder: Option<(usize, usize)>,
    progress: Progress,
    input: Came,
    gradient: Came,
    /// What is being sent from here, also after the microbatch has ended.
    leaving: Vec<Ticket>,
}

impl Slot {
    fn new(holder: Option<(usize, usize)>) -> Self {
        let (progress, came) = (Progress::Waiting, Came::No);
        Self { holder, progress, input: came, gradient: came, leaving: Vec::new() }
    }

    /// Whether another microbatch may be put here.
    fn is_over(&self) -> bool {
        self.holder.is_none() || self.progress == Progress::Done
    }
}

/// All slots of one rank.
pub(super) struct Memory {
    /// By chunk, unless chunks share, and slot.
    slots: Vec<Vec<Slot>>,
}

impl Memory {
    /// So many slots for each chunk.
    pub(super) fn new(slots: &[usize]) -> Self {
        Self { slots: slots.iter().map(|count| vec![Slot::new(None); *count]).collect() }
    }

    /// What is being sent from a slot.
    pub(super) fn leaving(&mut self, chunk: usize, slot: usize) -> Result<&mut Vec<Ticket>> {
        Ok(&mut self.at(chunk, slot)?.leaving)
    }

    /// Puts `microbatch` where there is none, or one that has ended.
    pub(super) fn begin(&mut self, chunk: usize, slot: usize, microbatch: usize) -> Result<()> {
        let slot = self.at(chunk, slot)?;
        expect(slot.is_over(), "the slot holds another microbatch")?;
        *slot = Slot::new(Some((chunk, microbatch)));
        Ok(())
    }

    /// Notes how `message` comes: activations begin a microbatch, gradients are of one that has gone forward.
    pub(super) fn arrive(&mut self, chunk: usize, slot: usize, message: Message, came: Came) -> Result<()> {
        match message.direction {
            Direction::Activation => {
                self.begin(chunk, slot, message.microbatch)?;
                self.at(chunk, slot)?.input = came;
            }
            Direction::Gradient => {
                let slot = self.of(chunk, slot, message.microbatch)?;
                expect(slot.progress == Progress::Forward, "gradients come between the passes")?;
                slot.gradient = came;
            }
        }
        Ok(())
    }

    /// What a computation that needs `message` waits for, if anything.
    pub(super) fn awaited(&mut self, chunk: usize, slot: usize, message: Message) -> Result<Option<Ticket>> {
        let slot = self.of(chunk, slot, message.microbatch)?;
        let came = if message.direction == Direction::Activation { slot.input } else { slot.gradient };
        match came {
            Came::No => Err(Error::internal(format!("the {message} were not received"))),
            Came::Here => Ok(None),
            Came::By(ticket) => Ok(Some(ticket)),
        }
    }

    /// Takes the microbatch a pass further.
    pub(super) fn compute(&mut self, slot: usize, action: Action) -> Result<()> {
        let Action { kind, microbatch, chunk } = action;
        let slot = self.of(chunk, slot, microbatch)?;
        slot.progress = slot
            .progress
            .after(kind)
            .ok_or_else(|| Error::internal(format!("the {action} comes too early")))?;
        Ok(())
    }

    /// Whether `message` was made and still lies in the slot.
    pub(super) fn check_made(&mut self, chunk: usize, slot: usize, message: Message) -> Result<()> {
        let progress = self.of(chunk, slot, message.microbatch)?.progress;
        let kind = match message.direction {
            Direction::Activation => ActionKind::Forward,
            Direction::Gradient => ActionKind::BackwardInput,
        };
        expect(progress.includes(kind), "that was not made yet")
    }

    fn of(&mut self, chunk: usize, slot: usize, microbatch: usize) -> Result<&mut Slot> {
        let found = self.at(chunk, slot)?;
        expect(found.holder == Some((chunk, microbatch)), "the slot does not hold this microbatch")?;
        Ok(found)
    }

    fn at(&mut self, chunk: usize, slot: usize) -> Result<&mut Slot> {
        let pool = chunk.min(self.slots.len().saturating_sub(1));
        let found = self.slots.get_mut(pool).and_then(|slots| slots.get_mut(slot));
        found.ok_or_else(|| Error::internal("there is no such slot"))
    }
}
