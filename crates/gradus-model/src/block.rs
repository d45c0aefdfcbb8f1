//! One transformer block: attention and feed-forward, each behind a norm and added to the residual stream.
//!
//! Shapes: `M = B * T` rows; `x[M, C]`, `qkv[M, (H + 2K) D]`, `up[M, F]` or `[M, 2F]`.

use crate::cache::KeyValueCache;
use crate::config::{Family, ModelConfig};
use crate::parameters::{BlockTensors, LinearTensors, NormTensors};
use crate::seams::{Place, Seams};
use crate::weights::Weights;
use crate::workspace::{BlockGradients, BlockSaved};
use gradus_compute::{Attention, Device, Epilogue, Linear, Matrix, Norm, NormKind, Rope, Rows, Through};
use gradus_memory::Span;

/// What is the same for all blocks of one pass.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub device: &'a dyn Device,
    pub config: &'a ModelConfig,
    /// All weights.
    pub weights: &'a Weights,
    /// `B`.
    pub batch: usize,
    /// `T`.
    pub sequence: usize,
    /// Position of each row.
    pub positions: &'a [u32],
    /// Document of each row, where attention must not cross.
    pub documents: Option<&'a [u32]>,
    /// Asked and told at seams.
    pub seams: &'a dyn Seams,
}

impl Pass<'_> {
    pub fn rows(&self) -> usize {
        self.batch * self.sequence
    }

    /// The part of a workspace's matrix that this pass's rows take.
    fn matrix(&self, whole: Matrix, width: usize) -> Matrix {
        whole.part(0, self.rows() * width)
    }

    /// The same of one in f32.
    fn single(&self, span: Span, width: usize) -> Span {
        span.part(0, self.rows() * width)
    }

    fn norm(&self) -> Norm {
        let kind = match self.config.family {
            Family::Gpt2 => NormKind::Layer,
            Family::Llama => NormKind::Rms,
        };
        Norm { kind, epsilon: self.config.norm_epsilon, width: self.config.width }
    }

    fn linear(&self, tensors: LinearTensors, inputs: usize) -> Linear {
        Linear { rows: self.rows(), inputs, outputs: tensors.weight.len / inputs }
    }

    pub fn norm_forward(&self, tensors: NormTensors, x: Span, out: Matrix, statistics: Span) {
        let bias = tensors.bias.map(|bias| self.weights.vector(bias));
        self.device.norm_forward(self.norm(), x, self.weights.vector(tensors.weight), bias, out, statistics);
    }

    #[allow(clippy::too_many_arguments, reason = "each is a tensor of the operation")]
    pub fn norm_backward(
        &self,
        tensors: NormTensors,
        x: Span,
        statistics: Span,
        d_out: Matrix,
        d_residual: Option<Span>,
        d_x: Span,
        gradients: Place,
    ) {
        let place = |tensor: Span| gradients.of(tensor);
        let (weight, d_weight) = (self.weights.vector(tensors.weight), place(tensors.weight));
        let d_bias = tensors.bias.map(place);
        self.device.norm_backward(
            self.norm(),
            x,
            weight,
            statistics,
            d_out,
            d_residual,
            d_x,
            d_weight,
            d_bias,
        );
    }

    fn linear_forward(
        &self,
        tensors: LinearTensors,
        x: Matrix,
        inputs: usize,
        residual: Option<Span>,
        epilogue: Epilogue,
        out: Matrix,
    ) {
        let (weight, bias) =
            (self.weights.weight(tensors.weight, true), tensors.bias.map(|bias| self.weights.vector(bias)));
        self.device.linear_forward(self.linear(tensors, inputs), x, weight, bias, residual, epilogue, out);
    }

    fn linear_backward_input(
        &self,
        tensors: LinearTensors,
        d_out: Matrix,
        through: Through,
        d_x: Matrix,
        inputs: usize,
    ) {
        let (shape, weight) = (self.linear(tensors, inputs), self.weights.weight(tensors.weight, false));
        self.device.linear_backward_input(shape, d_out, weight, through, d_x);
        self.seams.between_operations();
    }

    fn linear_backward_weight(
        &self,
        tensors: LinearTensors,
        d_out: Matrix,
        x: Matrix,
        inputs: usize,
        gradients: Place,
    ) {
        let place = |tensor: Span| gradients.of(tensor);
        let (d_weight, d_bias) = (place(tensors.weight), tensors.bias.map(place));
        self.device.linear_backward_weight(self.linear(tensors, inputs), d_out, x, d_weight, d_bias);
        self.seams.between_operations();
    }

    /// How queries and keys turn, forth or back; GPT-2 knows positions from its table, and nothing turns.
    fn turn(&self, inverse: bool) -> Option<Rope<'_>> {
        (self.config.family == Family::Llama).then_some(Rope {
            positions: self.positions,
            heads: self.config.heads + self.config.kv_heads,
            head_size: self.config.head_size,
            theta: self.config.rope_theta,
            inverse,
        })
    }

    /// Turns the gradients of queries and keys back.
    fn turn_back(&self, d_qkv: Matrix) {
        if let Some(turn) = self.turn(true) {
            let width = turn.heads * turn.head_size;
            self.device.rope(turn, Rows::columns(d_qkv, self.rows(), self.config.qkv_width(), 0, width));
        }
    }

    /// What the feed-forward part's first layer goes on through.
    fn activation(&self, activated: Matrix) -> Epilogue<'_> {
        match self.config.family {
            Family::Gpt2 => Epilogue::Gelu { activated },
            Family::Llama => Epilogue::Swiglu { activated },
        }
    }

    /// The way back through the same.
    fn through_activation(&self, up: Matrix) -> Through {
        match self.config.family {
            Family::Gpt2 => Through::Gelu { x: up },
            Family::Llama => Through::Swiglu { gate_up: up },
        }
    }

    /// Queries, keys and values as columns of `qkv`.
    fn split(&self, qkv: Matrix) -> [Rows; 3] {
        let (queries, keys) = (self.config.query_width(), self.config.kv_width());
        let columns = |first, width| Rows::columns(qkv, self.rows(), self.config.qkv_width(), first, width);
        [columns(0, queries), columns(queries, keys), columns(queries + keys, keys)]
    }

    fn attention(&self, key_len: usize, key_rows: usize) -> Attention<'_> {
        Attention {
            batch: self.batch,
            query_len: self.sequence,
            key_len,
            key_rows,
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_size: self.config.head_size,
            scale: 1.0 / (self.config.head_size as f32).sqrt(),
            documents: self.documents,
        }
    }
}

/// One block in one pass: its weights, its input, and the memory it uses.
pub(crate) struct Block<'a> {
    pub pass: Pass<'a>,
    pub tensors: &'a BlockTensors,
    pub saved: BlockSaved,
}

impl Block<'_> {
    /// Forward: from the residual stream `x` to `out`, both `[M, C]`; with a cache, keys and values go through it.
    pub fn forward(&self, x: Span, out: Span, cache: Option<(&KeyValueCache, usize)>) {
        let saved = self.sized();
        self.attention_forward(&saved, x, cache);
        self.feed_forward_forward(&saved, out);
    }

    /// Makes again what forward left for backward, from the same input `x`; the block's output is not asked for.
    pub fn forward_again(&self, x: Span) {
        let saved = self.sized();
        self.attention_forward(&saved, x, None);
        self.up_forward(&saved);
    }

    /// The saved matrices, cut to the rows of this pass.
    fn sized(&self) -> BlockSaved {
        let (pass, config, saved) = (&self.pass, self.pass.config, &self.saved);
        BlockSaved {
            attention_statistics: pass.single(saved.attention_statistics, 2),
            qkv: pass.matrix(saved.qkv, config.qkv_width()),
            attention: pass.matrix(saved.attention, config.query_width()),
            log_sum_exp: pass.single(saved.log_sum_exp, config.heads),
            middle: pass.single(saved.middle, config.width),
            feed_forward_statistics: pass.single(saved.feed_forward_statistics, 2),
            up: pass.matrix(saved.up, config.up_width()),
            normal: pass.matrix(saved.normal, config.width),
            activated: pass.matrix(saved.activated, config.feed_forward),
        }
    }

    fn attention_forward(&self, saved: &BlockSaved, x: Span, cache: Option<(&KeyValueCache, usize)>) {
        let (pass, tensors) = (&self.pass, self.tensors);
        self.attention_norm(saved, x);
        let turn = pass.turn(false).map_or(Epilogue::None, Epilogue::Rope);
        pass.linear_forward(tensors.qkv, saved.normal, pass.config.width, None, turn, saved.qkv);
        let [q, mut k, mut v] = pass.split(saved.qkv);
        let mut shape = pass.attention(pass.sequence, pass.sequence);
        if let Some((cache, layer)) = cache {
            let (keys, values) = cache.tail(layer, cache.len() - pass.sequence, pass.sequence);
            pass.device.copy_rows(pass.sequence, pass.config.kv_width(), k, keys);
            pass.device.copy_rows(pass.sequence, pass.config.kv_width(), v, values);
            (k, v) = cache.layer(layer);
            shape = pass.attention(cache.len(), cache.capacity());
        }
        pass.device.attention_forward(shape, q, k, v, saved.attention, saved.log_sum_exp);
        let width = pass.config.query_width();
        let (plain, middle) = (Epilogue::None, saved.middle.into());
        pass.linear_forward(tensors.attention_out, saved.attention, width, Some(x), plain, middle);
    }

    fn feed_forward_forward(&self, saved: &BlockSaved, out: Span) {
        let (pass, tensors) = (&self.pass, self.tensors);
        self.up_forward(saved);
        let (width, residual) = (pass.config.feed_forward, Some(saved.middle));
        pass.linear_forward(tensors.down, saved.activated, width, residual, Epilogue::None, out.into());
    }

    fn up_forward(&self, saved: &BlockSaved) {
        let (pass, tensors) = (&self.pass, self.tensors);
        self.feed_forward_norm(saved);
        let activation = pass.activation(saved.activated);
        pass.linear_forward(tensors.up, saved.normal, pass.config.width, None, activation, saved.up);
    }

    fn attention_norm(&self, saved: &BlockSaved, x: Span) {
        self.pass.norm_forward(self.tensors.attention_norm, x, saved.normal, saved.attention_statistics);
    }

    fn feed_forward_norm(&self, saved: &BlockSaved) {
        let (norm, statistics) = (self.tensors.feed_forward_norm, saved.feed_forward_statistics);
        self.pass.norm_forward(norm, saved.middle, saved.normal, statistics);
    }

    /// Makes again what the activation put out.
    fn activate(&self, saved: &BlockSaved) {
        let (pass, width) = (&self.pass, self.pass.config.feed_forward);
        let rows = pass.rows();
        match pass.config.family {
            Family::Gpt2 => pass.device.gelu_forward(rows * width, saved.up, saved.activated),
            Family::Llama => pass.device.swiglu_forward(rows, width, saved.up, saved.activated),
        }
    }

    /// The gradients of all that this block's linear layers put out, and of its norms' weights; `slot.out` holds the
    /// gradient of the block's output and is kept, `slot.input` becomes that of its input `x`.
    pub fn backward_input(&self, x: Span, slot: &BlockGradients, gradients: Place) {
        let (pass, saved) = (&self.pass, self.sized());
        let slot = self.sized_gradients(slot);
        let inner = |width: usize| pass.matrix(slot.inner, width);
        let (tensors, config, plain) = (self.tensors, pass.config, Through::None);

        let (through, d_out) = (pass.through_activation(saved.up), slot.out.into());
        pass.linear_backward_input(tensors.down, d_out, through, slot.up, config.feed_forward);
        let d_normal = inner(config.width);
        pass.linear_backward_input(tensors.up, slot.up, plain, d_normal, config.width);
        let (norm, statistics) = (tensors.feed_forward_norm, saved.feed_forward_statistics);
        pass.norm_backward(norm, saved.middle, statistics, d_normal, Some(slot.out), slot.middle, gradients);

        let (d_attention, d_middle) = (inner(config.query_width()), slot.middle.into());
        pass.linear_backward_input(tensors.attention_out, d_middle, plain, d_attention, config.query_width());
        self.attention_backward(&saved, d_attention, slot.qkv);
        let d_normal = inner(config.width);
        pass.linear_backward_input(tensors.qkv, slot.qkv, plain, d_normal, config.width);
        let (norm, statistics) = (tensors.attention_norm, saved.attention_statistics);
        pass.norm_backward(norm, x, statistics, d_normal, Some(slot.middle), slot.input, gradients);
    }

    fn attention_backward(&self, saved: &BlockSaved, d_attention: Matrix, d_qkv: Matrix) {
        let pass = &self.pass;
        let [q, k, v] = pass.split(saved.qkv);
        let [d_q, d_k, d_v] = pass.split(d_qkv);
        let shape = pass.attention(pass.sequence, pass.sequence);
        let (out, log_sum_exp) = (saved.attention, saved.log_sum_exp);
        pass.device.attention_backward(shape, q, k, v, out, log_sum_exp, d_attention, d_q, d_k, d_v);
        pass.turn_back(d_qkv);
        pass.seams.between_operations();
    }

    /// Adds the gradients of this block's linear layers, from its input `x` and what [`Block::backward_input`] left in `slot`.
    pub fn backward_weight(&self, x: Span, slot: &BlockGradients, gradients: Place) {
        let (pass, saved, config) = (&self.pass, self.sized(), self.pass.config);
        let slot = self.sized_gradients(slot);
        let tensors = self.tensors;
        self.activate(&saved);
        let d_out = slot.out.into();
        pass.linear_backward_weight(tensors.down, d_out, saved.activated, config.feed_forward, gradients);
        self.feed_forward_norm(&saved);
        pass.linear_backward_weight(tensors.up, slot.up, saved.normal, config.width, gradients);
        let (width, d_middle) = (config.query_width(), slot.middle.into());
        pass.linear_backward_weight(tensors.attention_out, d_middle, saved.attention, width, gradients);
        self.attention_norm(&saved, x);
        pass.linear_backward_weight(tensors.qkv, slot.qkv, saved.normal, config.width, gradients);
    }

    fn sized_gradients(&self, slot: &BlockGradients) -> BlockGradients {
        let (pass, config) = (&self.pass, self.pass.config);
        BlockGradients {
            out: pass.single(slot.out, config.width),
            input: pass.single(slot.input, config.width),
            middle: pass.single(slot.middle, config.width),
            up: pass.matrix(slot.up, config.up_width()),
            qkv: pass.matrix(slot.qkv, config.qkv_width()),
            inner: slot.inner,
        }
    }
}
