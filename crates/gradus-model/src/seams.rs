//! Where a pass touches what is not its own: the model names the places, whoever trains it fills them.
//!
//! A pass visits [units](Unit) one after the other. Weights may be kept elsewhere and be brought for each visit (ZeRO-3), gradients
//! may have to go where they are not for long (ZeRO-2), and what is final may be on its way to other ranks while the pass goes
//! on. Where ranks share out each layer, they exchange rows in the midst of it: in the same order on all of them. A seam does not fail: whoever fills it keeps its first failure for the end of the pass, and lets the pass run out.

use crate::parameters::Unit;
use gradus_compute::Matrix;
use gradus_memory::Span;

/// What becomes of numbers that all tensor ranks have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// Their sum.
    Sum,
    /// The largest of them.
    Max,
}

/// What a pass asks of whoever runs it. By default nobody is there to ask, and nothing to be done.
pub trait Seams {
    /// Called after each costly operation: ranks that fill their host's cores have no other time to move what is under way.
    fn between_operations(&self) {}

    /// Where the weights of a unit lie, from now until [`Seams::release`]: asked for models that keep none themselves
    /// ([`Transformer::visiting`](crate::Transformer::visiting)).
    ///
    /// # Panics
    /// By default: such a model needs somebody who brings its weights.
    fn weights(&self, unit: Unit) -> Span {
        panic!("nobody brings the weights of {unit:?}")
    }

    /// The weights of a unit are not read any more in this visit.
    fn release(&self, _unit: Unit) {}

    /// Where the gradients of a unit are to be added to, from now until [`Seams::finished`]: asked in passes that were given
    /// [`Gradients::Visited`].
    ///
    /// # Panics
    /// By default: such a pass needs somebody who takes its gradients.
    fn gradients(&self, unit: Unit) -> Span {
        panic!("nobody takes the gradients of {unit:?}")
    }

    /// This pass adds no more to the gradients of a unit, which has this range of the layout. Units finish in its order.
    fn finished(&self, _unit: Unit, _range: Span) {}

    /// Of `all[rows, width]` each tensor rank has its own rows ([`Part::rows`](crate::Part::rows)) in their place: brings it those
    /// of the others. Asked, as all that follows, of parts of several tensor ranks only.
    ///
    /// # Panics
    /// By default: such a pass needs somebody who exchanges.
    fn gather_rows(&self, _all: Matrix, _rows: usize, _width: usize) {
        panic!("nobody brings the other ranks' rows")
    }

    /// Of `partial[rows, width]` each tensor rank has a summand of all rows: its own rows become the sum over the ranks. What
    /// the others' rows are afterwards does not matter.
    ///
    /// # Panics
    /// As [`Seams::gather_rows`].
    fn sum_rows(&self, _partial: Span, _rows: usize, _width: usize) {
        panic!("nobody sums the ranks' rows")
    }

    /// Replaces each of a few numbers by what becomes of all tensor ranks' together, with the same bits on each rank.
    ///
    /// # Panics
    /// As [`Seams::gather_rows`].
    fn combine(&self, _values: Span, _how: Combine) {
        panic!("nobody combines the ranks' numbers")
    }
}

/// For passes that nobody attends to.
impl Seams for () {}

/// Where a pass adds its gradients.
#[derive(Debug, Clone, Copy)]
pub enum Gradients {
    /// Here: the whole layout.
    Kept(Span),
    /// Where [`Seams::gradients`] says, unit by unit.
    Visited,
}

impl From<Span> for Gradients {
    fn from(span: Span) -> Self {
        Self::Kept(span)
    }
}

/// Where the gradients of a range of the layout lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// First element of the range.
    pub first: usize,
    pub place: Span,
}

impl Place {
    /// That of a tensor in the range; one without elements is nowhere.
    pub fn of(self, tensor: Span) -> Span {
        if tensor.is_empty() {
            return tensor;
        }
        self.place.part(tensor.start - self.first, tensor.len)
    }
}
