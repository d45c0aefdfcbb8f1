//! The passes of a model, or of a part of one: embedding, blocks, final norm, head and loss, forth and back.

use crate::block::Block;
use crate::cache::KeyValueCache;
use crate::parameters::Unit;
use crate::pass::Pass;
use crate::seams::{Gradients, Place};
use crate::transformer::{Batch, LossSum, Transformer};
use crate::workspace::{BlockGradients, BlockSaved, Workspace};
use gradus_compute::{Epilogue, IGNORED, Linear, Matrix, Through};
use gradus_memory::Span;

/// Losses that are read at once: 16 KiB of stack.
const LOSSES_CHUNK: usize = 4096;

/// Which half of a backward pass: zero-bubble schedules (Qi et al. 2023) part them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backward {
    /// Both, block by block.
    Whole,
    /// The gradient of the input, which the stage before waits for; with it those of head and norms.
    Input,
    /// The gradients of the weights of linear layers and of the embedding, for which nobody waits: after [`Backward::Input`].
    Weight,
}

impl Backward {
    fn makes_input(self) -> bool {
        self != Self::Weight
    }

    fn makes_weight(self) -> bool {
        self != Self::Input
    }
}

impl Transformer {
    /// Whether there is anything of a unit here: a rank may have no part of the vocabulary.
    pub(crate) fn has(&self, unit: Unit) -> bool {
        !self.parameters.unit(unit).is_empty()
    }

    /// Runs something while the weights of these units are here.
    pub(crate) fn visit<T>(&self, pass: Pass, units: &[Unit], run: impl FnOnce() -> T) -> T {
        if !self.weights.visits() {
            return run();
        }
        let units = units.iter().filter(|unit| self.has(**unit));
        for unit in units.clone() {
            self.weights.stand(self.parameters.unit(*unit), Some(pass.seams.weights(*unit)));
        }
        let result = run();
        for unit in units {
            self.weights.stand(self.parameters.unit(*unit), None);
            pass.seams.release(*unit);
        }
        result
    }

    /// Units whose weights the head takes.
    pub(crate) fn units_of_head(&self) -> &'static [Unit] {
        match (self.part.head, self.config().tied) {
            (false, _) => &[],
            (true, false) => &[Unit::Head],
            (true, true) => &[Unit::Head, Unit::Embedding],
        }
    }

    /// Units that tokens are looked up in.
    pub(crate) fn units_of_embedding(&self) -> &'static [Unit] {
        match (self.part.embedding, self.parameters.positions) {
            (false, _) => &[],
            (true, None) => &[Unit::Embedding],
            (true, Some(_)) => &[Unit::Positions, Unit::Embedding],
        }
    }

    /// Where the gradients of a unit go.
    pub(crate) fn place(&self, pass: Pass, gradients: Gradients, unit: Unit) -> Place {
        match gradients {
            Gradients::Kept(place) => Place { first: 0, place },
            Gradients::Visited if !self.has(unit) => Place { first: 0, place: Span::default() },
            Gradients::Visited => {
                Place { first: self.parameters.unit(unit).start, place: pass.seams.gradients(unit) }
            }
        }
    }

    pub(crate) fn finished(&self, pass: Pass, unit: Unit) {
        if self.has(unit) {
            pass.seams.finished(unit, self.parameters.unit(unit));
        }
    }

    /// Embedding, where this part has it, and blocks.
    pub(crate) fn run_blocks(
        &self,
        pass: Pass,
        workspace: &Workspace,
        tokens: &[u32],
        cache: Option<&KeyValueCache>,
    ) {
        let (rows, width) = (pass.own_rows(), self.local.width);
        if self.part.embedding {
            self.visit(pass, self.units_of_embedding(), || self.embed(pass, workspace, tokens));
        }
        for layer in 0..self.local.layers {
            let (x, out) = (workspace.input(layer, rows, width), workspace.input(layer + 1, rows, width));
            self.visit(pass, &[Unit::Block(layer)], || {
                let block = self.block(pass, *workspace.saved(layer), layer);
                block.forward(x, out, cache.map(|cache| (cache, layer)));
            });
        }
    }

    pub(crate) fn final_norm(&self, pass: Pass, workspace: &Workspace) {
        let width = self.local.width;
        let x = workspace.input(self.local.layers, pass.own_rows(), width);
        let normal = workspace.normal.part(0, pass.rows() * width);
        let statistics = pass.own_single(workspace.statistics, 2);
        pass.norm_forward(self.parameters.final_norm, x, normal, statistics);
    }

    fn block<'a>(&'a self, pass: Pass<'a>, saved: BlockSaved, layer: usize) -> Block<'a> {
        Block { pass, tensors: &self.parameters.blocks[layer], saved }
    }

    fn head_shape(&self, rows: usize) -> Linear {
        Linear { rows, inputs: self.local.width, outputs: self.local.padded_vocabulary() }
    }

    /// Logits of `rows` rows of the final norm's output.
    pub(crate) fn head(&self, normal: Matrix, workspace: &Workspace, rows: usize) -> Span {
        let logits = workspace.logits.part(0, rows * self.local.padded_vocabulary());
        self.device.linear_forward(
            self.head_shape(rows),
            normal,
            self.weights.weight(self.parameters.head, true),
            None,
            None,
            Epilogue::None,
            logits.into(),
        );
        logits
    }

    /// Losses of all rows, chunk by chunk: the logits of a whole batch are never stored. Where the head's gradients go
    /// is given, also those, and that of the final norm's output.
    pub(crate) fn head_loss(
        &self,
        pass: Pass,
        workspace: &Workspace,
        targets: &[u32],
        backward: Option<(BlockGradients, Place)>,
    ) {
        let width = self.local.width;
        for (start, len) in chunks(0, pass.rows(), workspace.chunk_rows) {
            let normal = workspace.normal.part(start * width, len * width);
            let logits = self.head(normal, workspace, len);
            pass.seams.between_operations();
            let (targets, losses) = (&targets[start..start + len], workspace.losses.part(start, len));
            self.losses(pass, workspace, targets, logits, losses, backward.is_some());
            if let Some((slot, place)) = backward {
                let d_normal = slot.middle.part(start * width, len * width);
                let head = self.parameters.head;
                let (shape, weight, d_logits) =
                    (self.head_shape(len), self.weights.weight(head, false), logits.into());
                self.device.linear_backward_input(shape, d_logits, weight, Through::None, d_normal.into());
                pass.seams.between_operations();
                self.device.linear_backward_weight(shape, d_logits, normal, place.of(head), None);
                pass.seams.between_operations();
            }
        }
    }

    pub(crate) fn run_backward(
        &self,
        pass: Pass,
        workspace: &Workspace,
        batch: Batch,
        how: Backward,
        gradients: Gradients,
    ) -> LossSum {
        let mut loss = LossSum::default();
        if self.part.head && how.makes_input() {
            self.visit(pass, self.units_of_head(), || {
                self.backward_head(pass, workspace, batch.targets, gradients);
            });
            loss = self.loss_sum(workspace, batch.targets);
        }
        for layer in (0..self.local.layers).rev() {
            let unit = Unit::Block(layer);
            let place = self.place(pass, gradients, unit);
            self.visit(pass, &[unit], || self.backward_block(pass, workspace, layer, how, place));
            if how.makes_weight() {
                self.finished(pass, unit);
            }
        }
        if how.makes_weight() {
            self.backward_embedding(pass, workspace, batch.tokens, gradients);
        }
        loss
    }

    fn backward_head(&self, pass: Pass, workspace: &Workspace, targets: &[u32], gradients: Gradients) {
        self.final_norm(pass, workspace);
        let slot = workspace.gradients(self.local.layers - 1);
        let table = if self.config().tied { Unit::Embedding } else { Unit::Head };
        self.head_loss(pass, workspace, targets, Some((slot, self.place(pass, gradients, table))));
        let (own, width) = (pass.own_rows(), self.local.width);
        let x = workspace.input(self.local.layers, own, width);
        let (d_normal, d_x) = (slot.middle.part(0, pass.rows() * width), slot.out.part(0, own * width));
        let statistics = pass.own_single(workspace.statistics, 2);
        let place = self.place(pass, gradients, Unit::Head);
        pass.norm_backward(self.parameters.final_norm, x, statistics, d_normal.into(), None, d_x, place);
        self.finished(pass, Unit::Head);
    }

    fn backward_block(&self, pass: Pass, workspace: &Workspace, layer: usize, how: Backward, place: Place) {
        let x = workspace.input(layer, pass.own_rows(), self.local.width);
        let slot = workspace.gradients(layer);
        // What the activation puts out is made again where gradients inside of the block were.
        let saved = BlockSaved { activated: slot.inner, ..*workspace.saved(layer) };
        let block = self.block(pass, saved, layer);
        if workspace.recompute {
            block.forward_again(x);
        }
        if how.makes_input() {
            block.backward_input(x, &slot, place);
        }
        if how.makes_weight() {
            block.backward_weight(x, &slot, place);
        }
    }

    /// Sums the rows' losses in their order, in f64.
    pub(crate) fn loss_sum(&self, workspace: &Workspace, targets: &[u32]) -> LossSum {
        let (mut nats, mut losses) = (0.0, [0.0; LOSSES_CHUNK]);
        for (start, len) in chunks(0, targets.len(), LOSSES_CHUNK) {
            self.device.read(workspace.losses.part(start, len), &mut losses[..len]);
            nats = losses[..len].iter().fold(nats, |sum, loss| sum + f64::from(*loss));
        }
        LossSum { nats, targets: targets.iter().filter(|target| **target != IGNORED).count() as u64 }
    }
}

/// `(start, len)` of consecutive chunks of at most `size` rows from `first` to `end`.
pub(crate) fn chunks(first: usize, end: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (first..end).step_by(size).map(move |start| (start, size.min(end - start)))
}
