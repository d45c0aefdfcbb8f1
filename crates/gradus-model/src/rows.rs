//! Rows that tensor ranks share out, and what takes a rank from its own rows to all and back.
//!
//! Sequence parallelism (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section
//! 4.2.2): the residual stream, its gradient and norms are there for own rows only. What goes into a cut layer is gathered;
//! what comes out of one whose inputs are cut is a summand of all rows, and summed for own rows. A rank that is alone has
//! all rows: nothing is gathered, summed or copied, and products add to the residual stream themselves.

use crate::parameters::LinearTensors;
use crate::pass::Pass;
use gradus_compute::{Epilogue, Matrix, Rows};
use gradus_memory::Span;
use std::ops::Range;

impl Pass<'_> {
    /// The rows of the residual stream that this rank has.
    fn own_range(&self) -> Range<usize> {
        self.share.of(self.rows())
    }

    /// How many those are.
    pub fn own_rows(&self) -> usize {
        self.own_range().len()
    }

    /// The part of a workspace's tensor of own rows that this pass's take.
    pub fn own_single(&self, span: Span, width: usize) -> Span {
        span.part(0, self.own_rows() * width)
    }

    /// Own rows, as wide as the model, in their place among all.
    pub fn own_of(&self, all: Matrix) -> Matrix {
        let (rows, width) = (self.own_range(), self.config.width);
        all.part(rows.start * width, rows.len() * width)
    }

    /// Brings the others' rows to own ones, as wide as the model.
    pub fn gather(&self, all: Matrix) {
        if !self.share.is_all() {
            self.seams.gather_rows(all, self.rows(), self.config.width);
        }
    }

    /// All rows, of which these are own: made in `room` where others have some.
    pub fn gathered(&self, own: Span, room: Span) -> Span {
        if self.share.is_all() {
            return own;
        }
        let all = self.room(own, room);
        self.copy(own, self.own_of(all.into()).span);
        self.gather(all.into());
        all
    }

    /// Where all rows are to be made of which `own` will be own: in `room` where others have some.
    pub fn room(&self, own: Span, room: Span) -> Span {
        if self.share.is_all() { own } else { self.single(room, self.config.width) }
    }

    /// Own rows of the sum over ranks, of which each has a summand of all rows.
    pub fn summed(&self, partial: Matrix) -> Matrix {
        if !self.share.is_all() {
            self.seams.sum_rows(partial.span, self.rows(), self.config.width);
        }
        self.own_of(partial)
    }

    /// The same, put where own rows are kept: where [`Pass::room`] made all of them, if there are no others.
    pub fn sum_into(&self, partial: Span, own: Span) {
        if !self.share.is_all() {
            self.copy(self.summed(partial.into()).span, own);
        }
    }

    /// A layer of cut inputs, added to the residual stream: own rows of `out = residual + x * w^T`, and its bias, of all rows
    /// of `x`; through `room` where other ranks have other inputs.
    pub fn add_product(
        &self,
        tensors: LinearTensors,
        (x, inputs): (Matrix, usize),
        residual: Span,
        out: Span,
        room: Span,
    ) {
        if self.share.is_all() {
            return self.linear_forward(tensors, x, inputs, Some(residual), Epilogue::None, out.into());
        }
        // One rank's summand has the bias.
        let tensors = LinearTensors { bias: tensors.bias.filter(|_| self.share.rank == 0), ..tensors };
        let partial = self.room(out, room).into();
        self.linear_forward(tensors, x, inputs, None, Epilogue::None, partial);
        self.device.add(residual, self.summed(partial).span, out);
    }

    /// Copies own rows, as wide as the model.
    fn copy(&self, from: Span, to: Span) {
        let (rows, width) = (self.own_rows(), self.config.width);
        let [from, to] = [from, to].map(|span| Rows::columns(span, rows, width, 0, width));
        self.device.copy_rows(rows, width, from, to);
    }
}
