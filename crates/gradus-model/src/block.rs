//! One transformer block: attention and feed-forward, each behind a norm and added to the residual stream.
//!
//! Shapes: `M = B * T` rows; `x[M, C]`, `qkv[M, (H + 2K) D]`, `up[M, F]` or `[M, 2F]`.

use crate::cache::KeyValueCache;
use crate::config::Family;
use crate::parameters::BlockTensors;
use crate::pass::Pass;
use crate::seams::Place;
use crate::workspace::{BlockGradients, BlockSaved};
use gradus_compute::{Epilogue, Matrix, Through};
use gradus_memory::Span;

/// One block in one pass: its weights, its input, and the memory it uses.
pub(crate) struct Block<'a> {
    pub pass: Pass<'a>,
    pub tensors: &'a BlockTensors,
    pub saved: BlockSaved,
}

impl Block<'_> {
    /// Forward: from the residual stream `x` to `out`, own rows of `[M, C]`; with a cache, keys and values go through it.
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
            attention_statistics: pass.own_single(saved.attention_statistics, 2),
            qkv: pass.matrix(saved.qkv, config.qkv_width()),
            attention: pass.matrix(saved.attention, config.query_width()),
            log_sum_exp: pass.single(saved.log_sum_exp, config.heads),
            middle: pass.own_single(saved.middle, config.width),
            feed_forward_statistics: pass.own_single(saved.feed_forward_statistics, 2),
            up: pass.matrix(saved.up, config.up_width()),
            normal: pass.matrix(saved.normal, config.width),
            activated: pass.matrix(saved.activated, config.feed_forward),
            partial: saved.partial,
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
        pass.seams.between_operations();
        let attention = (saved.attention, pass.config.query_width());
        pass.add_product(tensors.attention_out, attention, x, saved.middle, saved.partial);
    }

    fn feed_forward_forward(&self, saved: &BlockSaved, out: Span) {
        let (pass, tensors) = (&self.pass, self.tensors);
        self.up_forward(saved);
        let activated = (saved.activated, pass.config.feed_forward);
        pass.add_product(tensors.down, activated, saved.middle, out, saved.partial);
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
        let (tensors, config, plain) = (self.tensors, pass.config, Through::None);

        let (through, d_out) = (pass.through_activation(saved.up), pass.gathered(slot.out, slot.all_out));
        pass.linear_backward_input(tensors.down, d_out.into(), through, slot.up, config.feed_forward);
        pass.linear_backward_input(tensors.up, slot.up, plain, slot.normal, config.width);
        let d_own = pass.own_of(slot.middle.into()).span;
        let (norm, statistics) = (tensors.feed_forward_norm, saved.feed_forward_statistics);
        pass.norm_backward(norm, saved.middle, statistics, slot.normal, Some(slot.out), d_own, gradients);
        pass.gather(slot.middle.into());

        let (d_attention, d_middle) = (pass.matrix(slot.inner, config.query_width()), slot.middle.into());
        pass.linear_backward_input(tensors.attention_out, d_middle, plain, d_attention, config.query_width());
        self.attention_backward(&saved, d_attention, slot.qkv);
        pass.linear_backward_input(tensors.qkv, slot.qkv, plain, slot.normal, config.width);
        let (norm, statistics) = (tensors.attention_norm, saved.attention_statistics);
        pass.norm_backward(norm, x, statistics, slot.normal, Some(d_own), slot.input, gradients);
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
        let d_out = slot.all_out.into();
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
            out: pass.own_single(slot.out, config.width),
            all_out: pass.single(slot.all_out, config.width),
            input: pass.own_single(slot.input, config.width),
            middle: pass.single(slot.middle, config.width),
            up: pass.matrix(slot.up, config.up_width()),
            qkv: pass.matrix(slot.qkv, config.qkv_width()),
            normal: pass.matrix(slot.normal, config.width),
            inner: slot.inner,
        }
    }
}
