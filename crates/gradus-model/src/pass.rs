//! What all blocks of one pass share, and the operations that each is made of.

use crate::config::{Family, ModelConfig};
use crate::parameters::{LinearTensors, NormTensors};
use crate::part::Share;
use crate::seams::{Place, Seams};
use crate::weights::Weights;
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
    /// Of rows and of layers.
    pub share: Share,
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
    pub fn matrix(&self, whole: Matrix, width: usize) -> Matrix {
        whole.part(0, self.rows() * width)
    }

    /// The same of one in f32.
    pub fn single(&self, span: Span, width: usize) -> Span {
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

    /// Of own rows, which `out` has with the others' afterwards.
    pub fn norm_forward(&self, tensors: NormTensors, x: Span, out: Matrix, statistics: Span) {
        let (weight, bias) =
            (self.weights.vector(tensors.weight), tensors.bias.map(|bias| self.weights.vector(bias)));
        self.device.norm_forward(self.norm(), x, weight, bias, self.own_of(out), statistics);
        self.gather(out);
    }

    /// Of own rows, from this rank's summand of all rows of `d_out`.
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
            self.summed(d_out),
            d_residual,
            d_x,
            d_weight,
            d_bias,
        );
    }

    pub fn linear_forward(
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
        self.seams.between_operations();
    }

    pub fn linear_backward_input(
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

    pub fn linear_backward_weight(
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
    pub fn turn(&self, inverse: bool) -> Option<Rope<'_>> {
        (self.config.family == Family::Llama).then_some(Rope {
            positions: self.positions,
            heads: self.config.heads + self.config.kv_heads,
            head_size: self.config.head_size,
            theta: self.config.rope_theta,
            inverse,
        })
    }

    /// Turns the gradients of queries and keys back.
    pub fn turn_back(&self, d_qkv: Matrix) {
        if let Some(turn) = self.turn(true) {
            let width = turn.heads * turn.head_size;
            self.device.rope(turn, Rows::columns(d_qkv, self.rows(), self.config.qkv_width(), 0, width));
        }
    }

    /// What the feed-forward part's first layer goes on through.
    pub fn activation(&self, activated: Matrix) -> Epilogue<'_> {
        match self.config.family {
            Family::Gpt2 => Epilogue::Gelu { activated },
            Family::Llama => Epilogue::Swiglu { activated },
        }
    }

    /// The way back through the same.
    pub fn through_activation(&self, up: Matrix) -> Through {
        match self.config.family {
            Family::Gpt2 => Through::Gelu { x: up },
            Family::Llama => Through::Swiglu { gate_up: up },
        }
    }

    /// Queries, keys and values as columns of `qkv`.
    pub fn split(&self, qkv: Matrix) -> [Rows; 3] {
        let (queries, keys) = (self.config.query_width(), self.config.kv_width());
        let columns = |first, width| Rows::columns(qkv, self.rows(), self.config.qkv_width(), first, width);
        [columns(0, queries), columns(queries, keys), columns(queries + keys, keys)]
    }

    pub fn attention(&self, key_len: usize, key_rows: usize) -> Attention<'_> {
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
