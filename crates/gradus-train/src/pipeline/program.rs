//! What one rank does in a step, in order: computations, and the messages around them.

use super::message::Message;
use super::schedule::{Action, ActionKind};

/// Whose the slots are that hold a microbatch's activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Each chunk has slots of its own, numbered on their own.
    Chunk,
    /// All chunks of a rank share slots, each of which must then be large enough for any of them. That takes fewer, for
    /// chunks need most at different times.
    Rank,
}

/// One thing that a rank does. A computation's slot is one of its chunk, a message's one of the chunk that holds the stage
/// which this rank sends from or receives for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// Starts to receive into `slot`, without waiting: the computation that needs the message does. Activations take the
    /// slot: what was sent from it must have left it first.
    Receive {
        /// What is received.
        message: Message,
        /// Where to.
        slot: usize,
    },
    /// Computes, once what it needs has come. The first stage's forward pass takes the slot.
    Compute {
        /// What is computed.
        action: Action,
        /// Where the microbatch's activations lie.
        slot: usize,
    },
    /// Starts to send from `slot`, without waiting: whoever uses that memory next does.
    Send {
        /// What is sent.
        message: Message,
        /// Where from.
        slot: usize,
    },
    /// Hands a message from one chunk of this rank to another, where there is no other rank. Activations take the slot.
    Pass {
        /// What is handed on.
        message: Message,
        /// Slot of the chunk that made it.
        from: usize,
        /// Slot of the chunk that needs it.
        to: usize,
    },
}

/// What one rank does in a step.
///
/// The messages between any two ranks stand in the same order in the programs of both, whichever way they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// In order.
    pub instructions: Vec<Instruction>,
    /// How many slots each chunk needs; a single number where chunks share them.
    pub slots: Vec<usize>,
    /// Slots that are taken at once, at most, over all chunks.
    pub most_slots: usize,
}

impl Program {
    /// Whether backward passes come in two halves.
    pub fn splits_backward(&self) -> bool {
        self.computations().any(|action| action.kind == ActionKind::BackwardWeight)
    }

    /// Its computations, in order.
    pub fn computations(&self) -> impl Iterator<Item = Action> {
        self.instructions.iter().filter_map(|instruction| match instruction {
            Instruction::Compute { action, .. } => Some(*action),
            _ => None,
        })
    }
}
