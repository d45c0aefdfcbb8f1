//! AdamW and Muon over pieces of the flat layout: all of it, or what a rank owns.
//!
//! With Muon the matrices of blocks' linear layers are updated one by one (of queries, keys and values, and of gate and
//! up, each is a matrix of its own, though each group is one tensor), everything else by AdamW. Matrices have one moment
//! only: second moments are allocated for the rest. A piece has a matrix whole or not at all; elsewhere it may begin and end
//! anywhere, for AdamW treats every element alike.
//!
//! Weights in bf16 are rounded at random, each element by its number among all of the model's: so they have the same bits
//! whichever rank updates them.

mod parts;

use crate::settings::{OptimizerKind, OptimizerSettings};
use gradus_compute::{AdamW, Device, Format, Matrix, Muon, NewtonSchulz, Rounding};
use gradus_error::Result;
use gradus_memory::{Layout, Span, Tensor};
use parts::{Part, Work};

/// Of the numbers that round weights in bf16: what differs from run to run are first weights and the order of samples.
const ROUNDING_SEED: u64 = 0;

/// A range of the layout, and where its elements lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The range of the layout.
    pub span: Span,
    /// Where its weights lie, in one format.
    pub weights: Matrix,
    /// Where its gradients lie.
    pub gradients: Span,
    /// The number of its first element among all of the model's; the others follow. What is rounded at random asks.
    pub number: u64,
}

impl Piece {
    /// All of a layout, in f32.
    pub fn whole(layout: &Layout, weights: Span, gradients: Span) -> Self {
        Self { span: Span::new(0, layout.len()), weights: weights.into(), gradients, number: 0 }
    }

    /// Whether another begins where this one ends, in the layout and on the device; in bf16 each piece is for itself.
    pub(crate) fn reaches(&self, next: &Self) -> bool {
        self.span.end() == next.span.start
            && [self.weights.format, next.weights.format] == [Format::F32; 2]
            && self.weights.span.end() == next.weights.span.start
            && self.gradients.end() == next.gradients.start
    }

    /// Takes in the next one.
    pub(crate) fn extend(&mut self, next: &Self) {
        self.span.len += next.span.len;
        self.weights.span.len += next.weights.span.len;
        self.gradients.len += next.gradients.len;
    }

    /// What of it is in a range of the layout, if that is all there.
    fn part(&self, span: Span) -> Self {
        let offset = span.start - self.span.start;
        Self {
            span,
            weights: self.weights.part(offset, span.len),
            gradients: self.gradients.part(offset, span.len),
            number: self.number + offset as u64,
        }
    }
}

/// Where moments lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// Whose they are: a range of the layout.
    pub range: Span,
    /// Where on the device.
    pub place: Span,
}

/// A matrix, or what a rank has of one, that Muon updates.
pub(crate) struct MatrixPart<'a> {
    /// Its range of the layout.
    pub span: Span,
    pub rows: usize,
    pub weights: Matrix,
    pub gradients: Span,
    pub moment: Span,
    /// The update of a matrix of so many rows and columns.
    pub update: &'a dyn Fn(usize, usize) -> Muon,
}

/// Moments of the parameters of some pieces, and how to update these.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    parts: Vec<Part>,
    updates: u64,
}

impl Optimizer {
    /// Moments, zero, for `pieces` of a layout, which stand in its order.
    ///
    /// # Errors
    /// `Invalid` for impossible settings; `Exhausted` when the device has no room; `Internal` for pieces that are out of
    /// order or cut a matrix of Muon's.
    pub fn new(
        device: &dyn Device,
        layout: &Layout,
        pieces: &[Piece],
        settings: OptimizerSettings,
    ) -> Result<Self> {
        settings.check()?;
        let mut parts = parts::of_pieces(layout, pieces, settings.kind)?;
        let moment1 = device.allocate(parts::first_moments(pieces))?;
        let moment2 = device.allocate(parts::second_moments(&parts))?;
        parts::place(&mut parts, pieces, moment1, moment2);
        Ok(Self { settings, parts, updates: 0 })
    }

    /// Elements that [`Optimizer::new`] takes of a device for first and second moments of these ranges of a layout.
    ///
    /// # Errors
    /// `Internal` for ranges that are out of order or cut a matrix of Muon's.
    pub fn moment_elements(layout: &Layout, owned: &[Span], kind: OptimizerKind) -> Result<[usize; 2]> {
        let piece = |span: &Span| Piece { span: *span, weights: (*span).into(), gradients: *span, number: 0 };
        let pieces: Vec<Piece> = owned.iter().map(piece).collect();
        let parts = parts::of_pieces(layout, &pieces, kind)?;
        Ok([parts::first_moments(&pieces), parts::second_moments(&parts)])
    }

    /// Which one it is.
    pub fn kind(&self) -> OptimizerKind {
        self.settings.kind
    }

    /// Where the first and the second moments of a tensor lie, by their order in it; what Muon updates has no second one.
    /// Of a tensor of which all is in one piece they are one range.
    pub fn moments(&self, tensor: &Tensor) -> [Vec<Moments>; 2] {
        let of = |moment: fn(&Part) -> Option<Span>| {
            let found = self.parts.iter().filter_map(|part| {
                let range = part.piece.span.common(&tensor.span());
                let place = moment(part).filter(|_| !range.is_empty())?;
                Some(Moments { range, place: place.part(range.start - part.piece.span.start, range.len) })
            });
            join(found)
        };
        [of(|part| Some(part.moment1)), of(Part::moment2)]
    }

    /// Updates made so far; skipped steps make none.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Goes on after `updates` updates, whose moments the caller has put in place.
    pub fn resume(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Updates the weights of all pieces by their gradients times `gradient_scale`. Whoever keeps copies of weights has to be
    /// told apart: a model is, by asking for its weights before.
    pub fn update(&mut self, device: &dyn Device, learning_rate: f64, gradient_scale: f64) {
        self.update_with(device, learning_rate, gradient_scale, &mut |part| {
            let update = (part.update)(part.rows, part.span.len / part.rows);
            device.muon(update, part.weights, part.gradients, part.moment);
        });
    }

    /// The same, with Muon's matrices left to `matrix`.
    pub(crate) fn update_with(
        &mut self,
        device: &dyn Device,
        learning_rate: f64,
        gradient_scale: f64,
        matrix: &mut dyn FnMut(&MatrixPart),
    ) {
        self.updates += 1;
        let (learning_rate, gradient_scale) = (learning_rate as f32, gradient_scale as f32);
        for part in &self.parts {
            let Piece { span, weights, gradients, number } = part.piece;
            let rounding = Rounding { seed: ROUNDING_SEED, first: number };
            match part.work {
                Work::Elements { decay, moment2 } => {
                    let update = AdamW { rounding, ..self.adamw(decay, learning_rate, gradient_scale) };
                    device.adamw(update, weights, gradients, part.moment1, moment2);
                }
                Work::Matrix { rows } => {
                    let update = |rows, columns| Muon {
                        rounding,
                        ..self.muon(rows, columns, learning_rate, gradient_scale)
                    };
                    let moment = part.moment1;
                    matrix(&MatrixPart { span, rows, weights, gradients, moment, update: &update });
                }
            }
        }
    }

    fn adamw(&self, decay: bool, learning_rate: f32, gradient_scale: f32) -> AdamW {
        AdamW {
            learning_rate,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            epsilon: self.settings.epsilon,
            weight_decay: if decay { self.settings.weight_decay } else { 0.0 },
            update: self.updates,
            gradient_scale,
            rounding: Rounding::default(),
        }
    }

    fn muon(&self, rows: usize, columns: usize, learning_rate: f32, gradient_scale: f32) -> Muon {
        let settings = &self.settings.muon;
        Muon {
            shape: NewtonSchulz { rows, columns, iterations: settings.iterations },
            learning_rate,
            adjustment: settings.adjustment.factor(rows, columns) as f32,
            momentum: settings.momentum,
            nesterov: settings.nesterov,
            weight_decay: self.settings.weight_decay,
            gradient_scale,
            update: self.updates,
            rounding: Rounding::default(),
        }
    }
}

/// Joins neighbours that are neighbours on the device, too.
fn join(moments: impl Iterator<Item = Moments>) -> Vec<Moments> {
    let mut joined: Vec<Moments> = Vec::new();
    for next in moments {
        match joined.last_mut() {
            Some(Moments { range, place })
                if range.end() == next.range.start && place.end() == next.place.start =>
            {
                range.len += next.range.len;
                place.len += next.place.len;
            }
            _ => joined.push(next),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
