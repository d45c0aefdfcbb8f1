//! Where a pass touches what is not its own: the model names the places, whoever trains it fills them.
//!
//! A pass visits [units](Unit) one after the other. Weights may be kept elsewhere and be brought for each visit (ZeRO-3), gradients
//! may have to go where they are not for long (ZeRO-2), and what is final may be on its way to other ranks while the pass goes
//! on. A seam does not fail: whoever fills it keeps its first failure for the end of the pass, and lets the pass run out.

use crate::parameters::Unit;
use gradus_memory::Span;

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
    /// That of a tensor in the range.
    pub fn of(self, tensor: Span) -> Span {
        self.place.part(tensor.start - self.first, tensor.len)
    }
}
