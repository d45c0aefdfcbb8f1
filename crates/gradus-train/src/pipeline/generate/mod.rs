//! Generators of schedules, one file each: pure functions of shape and rank.

mod gpipe;
mod interleaved;
mod one_forward_one_backward;
mod zero_bubble;

use super::schedule::{Action, ActionKind, Schedule, Shape};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// All forward passes, then all backward passes.
    #[serde(rename = "gpipe")]
    GPipe,
    /// Forward and backward passes in turn as soon as that is possible, which bounds the memory.
    #[default]
    #[serde(rename = "1f1b")]
    OneForwardOneBackward,
    /// The same with several stages for each rank: less waiting, more messages.
    Interleaved,
    /// Backward passes in two halves, of which the second, that nobody waits for, fills the gaps.
    ZeroBubble,
}

/// What a generator makes for a rank: its actions, and how many microbatches are in flight at most.
type Lane = (Vec<Action>, usize);

impl Kind {
    /// All of them, the simplest first.
    pub const ALL: [Self; 4] =
        [Self::GPipe, Self::OneForwardOneBackward, Self::Interleaved, Self::ZeroBubble];

    /// As settings write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GPipe => "gpipe",
            Self::OneForwardOneBackward => "1f1b",
            Self::Interleaved => "interleaved",
            Self::ZeroBubble => "zero-bubble",
        }
    }

    /// The kind that settings write so.
    ///
    /// # Errors
    /// `Invalid`, naming all there are.
    pub fn named(name: &str) -> Result<Self> {
        let unknown = || {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid(format!("{name:?} is no schedule of a pipeline: choose one of {names}"))
        };
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(unknown)
    }

    /// The schedule of this kind, for any number of microbatches.
    ///
    /// # Errors
    /// `Invalid`, naming the setting, for shapes that the kind has no schedule for.
    pub fn generate(self, shape: Shape) -> Result<Schedule> {
        shape.check()?;
        self.check_chunks(shape.chunks_per_rank)?;
        let lane: fn(Shape, usize) -> Lane = match self {
            Self::GPipe => gpipe::lane,
            Self::OneForwardOneBackward => one_forward_one_backward::lane,
            Self::Interleaved => interleaved::lane,
            Self::ZeroBubble => zero_bubble::lane,
        };
        let (actions, most_in_flight) = (0..shape.ranks).map(|rank| lane(shape, rank)).unzip();
        Ok(Schedule { shape, most_in_flight, actions })
    }

    fn check_chunks(self, chunks: usize) -> Result<()> {
        match (self, chunks) {
            (Self::Interleaved, 1) => Err(Error::invalid(
                "parallel.stages_per_rank is 1: parallel.schedule \"interleaved\" needs 2 or more; with one, 1f1b is the same \
                 and takes less memory",
            )),
            (Self::Interleaved, _) | (_, 1) => Ok(()),
            (_, chunks) => Err(Error::invalid(format!(
                "parallel.stages_per_rank is {chunks}: parallel.schedule \"{self}\" has one stage for each rank; choose \
                 \"interleaved\" for more"
            ))),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `count` forward passes, of which the first `ahead` come before the first backward pass; the others take turns with
/// backward passes, which end the list. `forward` and `backward` add the pass of a number to it.
fn in_turns(
    count: usize,
    ahead: usize,
    forward: impl Fn(usize, &mut Vec<Action>),
    backward: impl Fn(usize, &mut Vec<Action>),
) -> Vec<Action> {
    let mut actions = Vec::with_capacity(3 * count);
    (0..count.min(ahead)).for_each(|index| forward(index, &mut actions));
    for index in 0..count {
        if index + ahead < count {
            forward(index + ahead, &mut actions);
        }
        backward(index, &mut actions);
    }
    actions
}

/// Adds the pass of `kind` of a microbatch in the only chunk.
fn pass(kind: ActionKind) -> impl Fn(usize, &mut Vec<Action>) {
    move |microbatch, actions| actions.push(Action::new(kind, microbatch, 0))
}
