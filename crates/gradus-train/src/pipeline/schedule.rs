//! What a schedule is: for every rank, its actions in order.

use gradus_error::{Error, Result};
use std::fmt;

/// How large a pipeline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Ranks of the pipeline.
    pub ranks: usize,
    /// Chunks of layers that each rank holds, every one of them a stage.
    pub chunks_per_rank: usize,
    /// Microbatches of a step.
    pub microbatches: usize,
}

impl Shape {
    /// Stages of the model, over all ranks.
    pub fn stages(self) -> usize {
        self.ranks * self.chunks_per_rank
    }

    /// The stage that `chunk` of `rank` is. Stages go around the ranks (Narayanan et al., "Efficient Large-Scale Language
    /// Model Training on GPU Clusters Using Megatron-LM", 2021, section 2.2).
    pub fn stage(self, rank: usize, chunk: usize) -> usize {
        chunk * self.ranks + rank
    }

    /// The rank that holds `stage`.
    pub fn rank_of(self, stage: usize) -> usize {
        stage % self.ranks
    }

    /// Which of its rank's chunks `stage` is.
    pub fn chunk_of(self, stage: usize) -> usize {
        stage / self.ranks
    }

    /// Whether there is a pipeline of this shape.
    ///
    /// # Errors
    /// `Invalid`, naming the setting, where there is none of something.
    pub fn check(self) -> Result<()> {
        let counts = [
            (self.ranks, "parallel.pp: a pipeline has at least one rank"),
            (self.chunks_per_rank, "parallel.stages_per_rank: a rank holds at least one stage"),
            (self.microbatches, "train.global_batch: a pipeline needs at least one microbatch for each step"),
        ];
        match counts.into_iter().find(|(count, _)| *count == 0) {
            Some((_, rule)) => Err(Error::invalid(rule)),
            None => Ok(()),
        }
    }
}

/// What an action computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActionKind {
    /// The stage's output; of the last stage without head and loss, whose logits are never stored whole.
    Forward,
    /// Gradients of the stage's input and of its weights; of the last stage with head and loss.
    Backward,
    /// The gradient of the stage's input only; of the last stage with head and loss.
    BackwardInput,
    /// The gradients of the stage's weights, after those of its input.
    BackwardWeight,
}

impl ActionKind {
    /// All of them, in the order in which a microbatch meets them.
    pub const ALL: [Self; 4] = [Self::Forward, Self::Backward, Self::BackwardInput, Self::BackwardWeight];

    /// Whether the stage behind can go on with what this leaves: the gradient of the stage's input.
    pub fn makes_gradient(self) -> bool {
        matches!(self, Self::Backward | Self::BackwardInput)
    }

    /// Whether the microbatch's activations are needed no more after this.
    pub fn ends(self) -> bool {
        matches!(self, Self::Backward | Self::BackwardWeight)
    }
}

/// One computation of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Action {
    /// What is computed.
    pub kind: ActionKind,
    /// For which microbatch.
    pub microbatch: usize,
    /// By which of the rank's chunks.
    pub chunk: usize,
}

impl Action {
    /// The action of these parts.
    pub fn new(kind: ActionKind, microbatch: usize, chunk: usize) -> Self {
        Self { kind, microbatch, chunk }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, microbatch, chunk } = self;
        let what = match kind {
            ActionKind::Forward => "forward",
            ActionKind::Backward => "backward",
            ActionKind::BackwardInput => "backward (input)",
            ActionKind::BackwardWeight => "backward (weights)",
        };
        write!(f, "{what} of microbatch {microbatch} in chunk {chunk}")
    }
}

/// The order of a step's actions on every rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Its ranks, chunks and microbatches.
    pub shape: Shape,
    /// For each rank: of how many microbatches, counted for each chunk, it promises to hold activations at once at most.
    pub most_in_flight: Vec<usize>,
    /// For each rank: its actions.
    pub actions: Vec<Vec<Action>>,
}
