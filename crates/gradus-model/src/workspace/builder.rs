//! What a workspace wants, and from when to when.

use super::{BlockSaved, InnerGradients, Workspace};
use crate::config::ModelConfig;
use crate::liveness::Lifetime;
use crate::part::Part;
use gradus_compute::{Format, Matrix};
use gradus_memory::Span;
use std::ops::RangeInclusive;

/// What a workspace is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Training { recompute: bool, split_backward: bool },
    Inference,
}

/// Numbers of the moments of one microbatch's passes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    pub layers: usize,
    pub split_backward: bool,
}

impl Moments {
    fn forward(self, layer: usize) -> usize {
        layer
    }

    fn head(self) -> usize {
        self.layers
    }

    fn backward(self, layer: usize) -> usize {
        2 * self.layers - layer
    }

    /// When the gradients of a block's weights are made.
    fn backward_weight(self, layer: usize) -> usize {
        self.backward(layer) + if self.split_backward { self.layers } else { 0 }
    }

    fn embedding_backward(self) -> usize {
        self.backward_weight(0) + 1
    }

    /// Whether somebody else's pass may run between these two.
    fn are_apart(self, first: usize, last: usize) -> bool {
        let pass = |moment: usize| {
            usize::from(moment >= self.head()) + usize::from(self.split_backward && moment > self.backward(0))
        };
        pass(first) != pass(last)
    }
}

/// What is wanted for how long.
pub(super) struct Wish {
    pub life: Lifetime,
    /// Whether the passes of other microbatches must leave it alone.
    pub across: bool,
}

/// Hears what is wanted, and later hands out its places in the same order.
pub(super) struct Places {
    pub wanted: Vec<Wish>,
    pub planned: Vec<Span>,
}

impl Places {
    /// Room for so many places.
    fn take(&mut self, len: usize, across: bool, moments: RangeInclusive<usize>) -> Span {
        let number = self.wanted.len();
        self.wanted
            .push(Wish { life: Lifetime { len, first: *moments.start(), last: *moments.end() }, across });
        self.planned.get(number).copied().unwrap_or_default()
    }
}

/// What all blocks share.
#[derive(Clone, Copy)]
struct Scratch {
    normal: Matrix,
    activated: Matrix,
    partial: Span,
}

/// A workspace in the making.
pub(super) struct Builder<'a> {
    /// Sizes of the part.
    pub config: &'a ModelConfig,
    pub part: &'a Part,
    pub rows: usize,
    /// Rows whose logits are made at once.
    pub chunk_rows: usize,
    pub purpose: Purpose,
    /// How what products read is kept.
    pub kept: Format,
    pub moments: Moments,
    pub places: Places,
}

impl Builder<'_> {
    fn take(&mut self, len: usize, format: Format, moments: RangeInclusive<usize>) -> Matrix {
        let across = self.moments.are_apart(*moments.start(), *moments.end());
        Matrix { span: self.places.take(format.places(len), across, moments), format }
    }

    fn matrix(&mut self, width: usize, moments: RangeInclusive<usize>) -> Matrix {
        self.take(self.rows * width, self.kept, moments)
    }

    fn single(&mut self, width: usize, moments: RangeInclusive<usize>) -> Span {
        self.take(self.rows * width, Format::F32, moments).span
    }

    /// The same of own rows of the residual stream, in f32.
    fn own(&mut self, width: usize, moments: RangeInclusive<usize>) -> Span {
        let rows = self.part.share().most(self.rows);
        self.take(rows * width, Format::F32, moments).span
    }

    /// What is made anew in every pass that needs it.
    fn remade(&mut self, width: usize, format: Format) -> Matrix {
        let (len, always) = (format.places(self.rows * width), self.always());
        Matrix { span: self.places.take(len, false, always), format }
    }

    /// From the first moment to the last.
    fn always(&self) -> RangeInclusive<usize> {
        0..=self.moments.embedding_backward()
    }

    /// A workspace whose places are those planned, in the order in which they are asked for.
    pub fn workspace(&mut self) -> Workspace {
        let (config, head) = (self.config, self.moments.head());
        let normal = self.remade(config.width, self.kept);
        let widest = config.width.max(config.query_width()).max(config.feed_forward);
        // In the backward pass it is made again in `InnerGradients::inner`.
        let activated = self.matrix(config.feed_forward, 0..=head.saturating_sub(1));
        let logits = if self.part.head { self.chunk_rows * config.padded_vocabulary() } else { 0 };
        let partial = self.partial();
        let recompute = matches!(self.purpose, Purpose::Training { recompute: true, .. });
        Workspace {
            rows: self.rows,
            share: self.part.share(),
            recompute,
            inputs: self.inputs(),
            saved: self.all_saved(Scratch { normal, activated, partial }),
            residuals: self.residuals(),
            gradients: self.all_gradients(widest),
            normal,
            statistics: self.own(2, head..=head),
            logits: self.take(logits, Format::F32, head..=head).span,
            chunk_rows: self.chunk_rows,
            losses: self.remade(1, Format::F32).span,
            partial,
            exchanged: self.exchanged(),
        }
    }

    /// Needed where ranks share out layers.
    fn partial(&mut self) -> Span {
        let alone = self.part.share().is_all();
        if alone { Span::default() } else { self.remade(self.config.width, Format::F32).span }
    }

    /// Of each row a maximum and two sums, where ranks share out the head.
    fn exchanged(&mut self) -> Span {
        if self.part.share().is_all() || !self.part.head {
            return Span::default();
        }
        let head = self.moments.head();
        self.take(3 * self.chunk_rows, Format::F32, head..=head).span
    }

    fn inputs(&mut self) -> Vec<Span> {
        let (width, moments) = (self.config.width, self.moments);
        if self.purpose == Purpose::Inference {
            // Two inputs take turns: a block reads one and writes the other.
            return (0..2).map(|_| self.own(width, 0..=moments.head())).collect();
        }
        (0..=moments.layers).map(|layer| self.own(width, self.life_of_input(layer))).collect()
    }

    /// What comes from another stage may come at any time, what goes to one leaves at any time.
    fn life_of_input(&self, layer: usize) -> RangeInclusive<usize> {
        let moments = self.moments;
        let (received, sent) =
            (layer == 0 && !self.part.embedding, layer == moments.layers && !self.part.head);
        if received || sent {
            return self.always();
        }
        let last = if layer == moments.layers { moments.head() } else { moments.backward_weight(layer) };
        moments.forward(layer.saturating_sub(1))..=last
    }

    fn all_saved(&mut self, scratch: Scratch) -> Vec<BlockSaved> {
        let moments = self.moments;
        match self.purpose {
            Purpose::Training { recompute: false, .. } => (0..moments.layers)
                .map(|layer| self.saved(scratch, moments.forward(layer)..=moments.backward_weight(layer)))
                .collect(),
            Purpose::Training { .. } => vec![self.saved_for_all(scratch)],
            Purpose::Inference => vec![self.saved(scratch, 0..=moments.head().saturating_sub(1))],
        }
    }

    /// What all blocks take in turn, since each makes it again.
    fn saved_for_all(&mut self, scratch: Scratch) -> BlockSaved {
        let first = self.places.wanted.len();
        let saved = self.saved(scratch, self.always());
        self.places.wanted[first..].iter_mut().for_each(|wish| wish.across = false);
        saved
    }

    fn saved(&mut self, scratch: Scratch, life: RangeInclusive<usize>) -> BlockSaved {
        let (config, Scratch { normal, activated, partial }) = (self.config, scratch);
        BlockSaved {
            attention_statistics: self.own(2, life.clone()),
            qkv: self.matrix(config.qkv_width(), life.clone()),
            attention: self.matrix(config.query_width(), life.clone()),
            log_sum_exp: self.single(config.heads, life.clone()),
            middle: self.own(config.width, life.clone()),
            feed_forward_statistics: self.own(2, life.clone()),
            up: self.matrix(config.up_width(), life),
            normal,
            activated,
            partial,
        }
    }

    fn residuals(&mut self) -> Vec<Span> {
        let (width, head, end) = (self.config.width, self.moments.head(), self.moments.embedding_backward());
        match self.purpose {
            Purpose::Inference => Vec::new(),
            Purpose::Training { split_backward: true, .. } => {
                (0..=self.moments.layers).map(|_| self.own(width, self.always())).collect()
            }
            // One comes from the next stage, one goes to the stage before.
            Purpose::Training { .. } if !(self.part.embedding && self.part.head) => {
                (0..2).map(|_| self.own(width, self.always())).collect()
            }
            Purpose::Training { .. } => {
                let mut two = [head + 1..=end, head + 1..=end];
                two[self.moments.layers % 2] = head..=end;
                two.map(|life| self.own(width, life)).into()
            }
        }
    }

    fn all_gradients(&mut self, widest: usize) -> Vec<InnerGradients> {
        let (moments, head, split) = (self.moments, self.moments.head(), self.moments.split_backward);
        if self.purpose == Purpose::Inference {
            return Vec::new();
        }
        let end = if split { moments.embedding_backward() } else { moments.backward(0) };
        let inner = Matrix {
            span: self.places.take(self.kept.places(self.rows * widest), false, head + 1..=end),
            format: self.kept,
        };
        if !split {
            // At the head the middle holds the gradient of the final norm's output.
            return vec![self.gradients(inner, head..=end, head + 1..=end)];
        }
        let layers = 0..moments.layers;
        let each = layers.map(|layer| {
            let (first, last) = (moments.backward(layer), moments.backward_weight(layer));
            let is_last = layer + 1 == moments.layers;
            self.gradients(inner, if is_last { head } else { first }..=last, first..=last)
        });
        each.collect()
    }

    fn gradients(
        &mut self,
        inner: Matrix,
        middle: RangeInclusive<usize>,
        blocks: RangeInclusive<usize>,
    ) -> InnerGradients {
        let (config, alone) = (self.config, self.part.share().is_all());
        InnerGradients {
            all_out: (!alone).then(|| self.single(config.width, blocks.clone())),
            middle: self.single(config.width, middle),
            up: self.matrix(config.up_width(), blocks.clone()),
            qkv: self.matrix(config.qkv_width(), blocks),
            inner,
        }
    }
}
