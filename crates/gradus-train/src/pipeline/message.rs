//! What stages hand each other.

use super::schedule::{Action, ActionKind, Shape};
use std::fmt;

/// Which way something goes through the stages, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The gradient of an activation, to the stage before.
    Gradient,
    /// What a forward pass ends with, to the stage after: the residual stream.
    Activation,
}

/// What crosses the boundary between two stages for one microbatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// Which way it goes.
    pub direction: Direction,
    /// Its microbatch.
    pub microbatch: usize,
    /// The stage before the boundary; the one after it is the next.
    pub boundary: usize,
}

impl Message {
    /// The stage that makes it.
    pub fn from_stage(self) -> usize {
        self.boundary + usize::from(self.direction == Direction::Gradient)
    }

    /// The stage that needs it.
    pub fn to_stage(self) -> usize {
        self.boundary + usize::from(self.direction == Direction::Activation)
    }

    /// What `action` of `stage` cannot begin without; nothing where a rank has it already.
    pub fn needed_by(shape: Shape, stage: usize, action: Action) -> Option<Self> {
        let Action { kind, microbatch, .. } = action;
        let (direction, boundary) = match kind {
            ActionKind::Forward => (Direction::Activation, stage.checked_sub(1)?),
            kind if kind.makes_gradient() && stage + 1 < shape.stages() => (Direction::Gradient, stage),
            _ => return None,
        };
        Some(Self { direction, microbatch, boundary })
    }

    /// What another stage can begin with once `action` of `stage` is done.
    pub fn made_by(shape: Shape, stage: usize, action: Action) -> Option<Self> {
        let Action { kind, microbatch, .. } = action;
        let (direction, boundary) = match kind {
            ActionKind::Forward if stage + 1 < shape.stages() => (Direction::Activation, stage),
            kind if kind.makes_gradient() => (Direction::Gradient, stage.checked_sub(1)?),
            _ => return None,
        };
        Some(Self { direction, microbatch, boundary })
    }

    /// Whether it goes from one rank to another, and not between two chunks of the only rank.
    pub fn crosses(self, shape: Shape) -> bool {
        shape.rank_of(self.from_stage()) != shape.rank_of(self.to_stage())
    }

    /// A number for each message of `shape`, from 0.
    pub(super) fn index(self, shape: Shape) -> usize {
        (2 * self.boundary + self.direction as usize) * shape.microbatches + self.microbatch
    }

    /// How many messages there are.
    pub(super) fn count(shape: Shape) -> usize {
        2 * (shape.stages() - 1) * shape.microbatches
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.direction {
            Direction::Activation => "activations",
            Direction::Gradient => "gradients",
        };
        let (from, to) = (self.from_stage(), self.to_stage());
        write!(f, "{what} of microbatch {} from stage {from} to stage {to}", self.microbatch)
    }
}
