//! What the papers say about their schedules' waiting, for stages that are all alike and transfers that take no time.

use super::generate::Kind;
use super::schedule::Shape;
use super::simulate::StageCosts;

impl Kind {
    /// The part of a step in which ranks wait, by the [source](Kind::source)'s formula; `stage` are the costs of one stage.
    ///
    /// Exact here but for interleaved stages where microbatches are no multiple of ranks, and for `zero-bubble` where the
    /// weights' half of a backward pass takes longer than the other passes.
    pub fn expected_bubble(self, shape: Shape, stage: StageCosts) -> f64 {
        let StageCosts { forward, backward_input, backward_weight, .. } = stage;
        let whole = forward + backward_input + backward_weight;
        let each = match self {
            Self::GPipe | Self::OneForwardOneBackward | Self::Interleaved => whole,
            Self::ZeroBubble => (forward + backward_input - backward_weight).max(0.0),
        };
        let waiting = (shape.ranks - 1) as f64 * each;
        let working = (shape.microbatches * shape.chunks_per_rank) as f64 * whole;
        if working > 0.0 { waiting / (waiting + working) } else { 0.0 }
    }

    /// The formula in letters: `p` ranks, `m` microbatches, `v` stages for each rank, a forward pass `F` and the halves `I` and
    /// `W` of a backward pass.
    pub fn formula(self) -> &'static str {
        match self {
            Self::GPipe | Self::OneForwardOneBackward => "(p-1) / (m+p-1)",
            Self::Interleaved => "(p-1) / (v m + p-1)",
            Self::ZeroBubble => "(p-1)(F+I-W) / (m(F+I+W) + (p-1)(F+I-W))",
        }
    }

    /// Where the schedule and its formula come from. Papers often give what is waited as a part of what is computed; here it is
    /// a part of the whole step.
    pub fn source(self) -> &'static str {
        match self {
            Self::GPipe => "Huang et al. 2019, GPipe, section 2.3",
            Self::OneForwardOneBackward => "Narayanan et al. 2021, Megatron-LM, section 2.2.1",
            Self::Interleaved => "Narayanan et al. 2021, Megatron-LM, section 2.2.2",
            Self::ZeroBubble => {
                "Qi et al. 2023, Zero Bubble Pipeline Parallelism, sections 2.1 and 2.3 (ZB-H1)"
            }
        }
    }
}
