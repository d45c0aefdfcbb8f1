//! Embedding and loss of a vocabulary that tensor ranks may share out.
//!
//! Each rank looks up the tokens of its own part of the vocabulary, in all rows, and has the logits of that part; a row's
//! loss takes two exchanges of a few numbers (Shoeybi et al. 2019, section 3).

use crate::parameters::Unit;
use crate::pass::Pass;
use crate::passes::chunks;
use crate::seams::{Combine, Gradients};
use crate::transformer::Transformer;
use crate::workspace::Workspace;
use gradus_compute::{CrossEntropy, CrossEntropyPart, Embedding, IGNORED};
use gradus_memory::Span;

/// Tokens that are translated at once: 16 KiB of stack.
const TOKENS_CHUNK: usize = 4096;

impl Transformer {
    /// Own rows of the embedding.
    pub(crate) fn embed(&self, pass: Pass, workspace: &Workspace, tokens: &[u32]) {
        let width = self.local.width;
        let x = workspace.input(0, pass.own_rows(), width);
        let table = self.weights.table(self.parameters.embedding);
        // One rank's summand has the positions.
        let positions = self.parameters.positions.filter(|_| pass.share.rank == 0);
        let positions = positions.map(|table| self.weights.table(table));
        let partial = pass.room(x, workspace.partial);
        self.look_up(pass, tokens, |first, shape| {
            let out = partial.part(first * width, shape.tokens.len() * width);
            self.device.embedding_forward(shape, table, positions, out);
        });
        pass.sum_into(partial, x);
    }

    /// The gradient of the embedding; of the table of a tied head only, it is there already.
    pub(crate) fn backward_embedding(
        &self,
        pass: Pass,
        workspace: &Workspace,
        tokens: &[u32],
        gradients: Gradients,
    ) {
        if self.part.embedding {
            let width = self.local.width;
            let place = |unit, table: Span| self.place(pass, gradients, unit).of(table);
            let d_positions = self.parameters.positions.map(|table| place(Unit::Positions, table));
            let d_table = place(Unit::Embedding, self.parameters.embedding);
            let d_own = workspace.residual(0).part(0, pass.own_rows() * width);
            let d_embedded = pass.gathered(d_own, workspace.partial);
            self.look_up(pass, tokens, |first, shape| {
                let d_out = d_embedded.part(first * width, shape.tokens.len() * width);
                self.device.embedding_backward(shape, d_out, d_table, d_positions);
            });
        }
        if self.parameters.positions.is_some() {
            self.finished(pass, Unit::Positions);
        }
        if self.part.has_table(self.config()) {
            self.finished(pass, Unit::Embedding);
        }
    }

    /// Hands on what to look up for the rows from the first given on, until it was all: tokens as numbers of this rank's part
    /// of the vocabulary.
    fn look_up(&self, pass: Pass, tokens: &[u32], mut hand_on: impl FnMut(usize, Embedding)) {
        let (width, positions) = (self.local.width, pass.positions);
        if pass.share.is_all() {
            return hand_on(0, Embedding { tokens, positions, width });
        }
        let (own, mut local) = (self.part.vocabulary(self.config()), [IGNORED; TOKENS_CHUNK]);
        for (first, len) in chunks(0, tokens.len(), TOKENS_CHUNK) {
            let here = |token: u32| own.contains(&(token as usize)).then(|| token - own.start as u32);
            let pairs = local.iter_mut().zip(&tokens[first..first + len]);
            pairs.for_each(|(local, token)| *local = here(*token).unwrap_or(IGNORED));
            let positions = &positions[first..first + len];
            hand_on(first, Embedding { tokens: &local[..len], positions, width });
        }
    }

    /// Losses of some rows, and the gradient of their logits in place of these, if it is asked for.
    pub(crate) fn losses(
        &self,
        pass: Pass,
        workspace: &Workspace,
        targets: &[u32],
        logits: Span,
        losses: Span,
        gradient: bool,
    ) {
        let (vocabulary, width) = (self.config().vocabulary, self.local.padded_vocabulary());
        if pass.share.is_all() {
            let shape = CrossEntropy { targets, vocabulary, width };
            return self.device.cross_entropy(shape, logits, losses, gradient);
        }
        let (first, tokens) = (self.part.vocabulary(self.config()).start, self.local.vocabulary);
        let shape = CrossEntropyPart { targets, vocabulary, first, tokens, width, gradient };
        let rows = targets.len();
        let (maxima, sums) = (workspace.exchanged.part(0, rows), workspace.exchanged.part(rows, 2 * rows));
        self.device.cross_entropy_maxima(shape, logits, maxima);
        pass.seams.combine(maxima, Combine::Max);
        self.device.cross_entropy_sums(shape, logits, maxima, sums);
        pass.seams.combine(sums, Combine::Sum);
        self.device.cross_entropy_losses(shape, maxima, sums, logits, losses);
    }
}
