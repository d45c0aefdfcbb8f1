//! One operation of the device: its sizes as they come over the wire, its tensors, and its call.
//!
//! Tensors are made in the order in which [`Operation::tensors`] names them, and numbered so; the peer does the same.

use super::inputs;
use anyhow::Result;
use gradus_compute::{
    AdamW, Attention, CpuDevice, CrossEntropy, Device, Embedding, Epilogue, Linear, Matrix, Norm, NormKind,
    Precision, Rope, Rows, Through,
};
use gradus_memory::Span;
use gradus_model::logits_rows;
use serde::Deserialize;

/// What to run, and how large; names as in [`gradus_compute`]'s legend.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    LinearForward {
        rows: usize,
        inputs: usize,
        outputs: usize,
        bias: bool,
        residual: bool,
    },
    LinearInput {
        rows: usize,
        inputs: usize,
        outputs: usize,
    },
    LinearWeight {
        rows: usize,
        inputs: usize,
        outputs: usize,
        bias: bool,
    },
    AttentionForward(Heads),
    AttentionBackward(Heads),
    Rope(Heads),
    NormForward {
        rows: usize,
        width: usize,
        layer: bool,
    },
    NormBackward {
        rows: usize,
        width: usize,
        layer: bool,
    },
    GeluForward {
        elements: usize,
    },
    GeluBackward {
        elements: usize,
    },
    SwigluForward {
        rows: usize,
        width: usize,
    },
    SwigluBackward {
        rows: usize,
        width: usize,
    },
    CrossEntropy {
        rows: usize,
        vocabulary: usize,
    },
    /// Logits, loss and both gradients of all rows, in pieces of as many as a model makes at once.
    Head {
        rows: usize,
        width: usize,
        vocabulary: usize,
    },
    EmbeddingForward {
        batch: usize,
        sequence: usize,
        vocabulary: usize,
        width: usize,
        positions: bool,
    },
    EmbeddingBackward {
        batch: usize,
        sequence: usize,
        vocabulary: usize,
        width: usize,
        positions: bool,
    },
    SumOfSquares {
        elements: usize,
    },
    Fill {
        elements: usize,
    },
    Adamw {
        elements: usize,
    },
}

/// Sizes of attention.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    batch: usize,
    sequence: usize,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
}

impl Heads {
    fn rows(self) -> usize {
        self.batch * self.sequence
    }

    /// Elements of a row of queries, keys and values side by side.
    fn width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    fn shape(self) -> Attention<'static> {
        Attention {
            batch: self.batch,
            query_len: self.sequence,
            key_len: self.sequence,
            key_rows: self.sequence,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            scale: 1.0 / (self.head_size as f32).sqrt(),
            documents: None,
        }
    }

    fn split(self, qkv: Span) -> [Rows; 3] {
        let (queries, keys) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let columns = |first, width| Rows::columns(qkv, self.rows(), self.width(), first, width);
        [columns(0, queries), columns(queries, keys), columns(queries + keys, keys)]
    }
}

/// A tensor: its elements, and from which numbers.
#[derive(Debug, Clone, Copy)]
enum First {
    /// Spread over `[-scale, scale)`.
    Spread(f32),
    /// All zero, anew before each check; also what is only written.
    Zero,
}

/// An operation's tensors on a device.
#[derive(Debug)]
pub struct Prepared {
    tensors: Vec<(Span, First)>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
}

impl Prepared {
    fn reset(&self, device: &CpuDevice) {
        let round = device.precision() == Precision::Bf16;
        for (number, (span, first)) in self.tensors.iter().enumerate() {
            match first {
                First::Zero => device.fill(*span, 0.0),
                First::Spread(scale) => {
                    device.write(*span, &inputs::values(span.len, number as u32 + 1, *scale, round));
                }
            }
        }
    }

    fn get(&self, tensor: usize) -> Span {
        self.tensors[tensor].0
    }

    fn all<const N: usize>(&self) -> [Span; N] {
        std::array::from_fn(|tensor| self.get(tensor))
    }
}

/// Weights are about as large as trained ones, so that sums are of the size that they have in a model.
const WEIGHT: First = First::Spread(0.05);
const ACTIVATION: First = First::Spread(1.0);
const LOGITS: First = First::Spread(3.0);
/// Norms' weights and small things that need not be realistic.
const SMALL: First = First::Spread(0.5);

impl Operation {
    /// Elements and first numbers of each tensor, in the order in which [`Operation::run`] takes them.
    fn tensors(&self) -> Vec<(usize, First)> {
        use First::Zero;
        match *self {
            Self::LinearForward { rows, inputs, outputs, .. } => vec![
                (rows * inputs, ACTIVATION),
                (outputs * inputs, WEIGHT),
                (outputs, SMALL),
                (rows * outputs, ACTIVATION),
                (rows * outputs, Zero),
            ],
            Self::LinearInput { rows, inputs, outputs } => {
                vec![(rows * outputs, ACTIVATION), (outputs * inputs, WEIGHT), (rows * inputs, Zero)]
            }
            Self::LinearWeight { rows, inputs, outputs, .. } => vec![
                (rows * outputs, ACTIVATION),
                (rows * inputs, ACTIVATION),
                (outputs * inputs, Zero),
                (outputs, Zero),
            ],
            Self::AttentionForward(heads) | Self::AttentionBackward(heads) => {
                let out = heads.rows() * heads.heads * heads.head_size;
                vec![
                    (heads.rows() * heads.width(), ACTIVATION),
                    (out, Zero),
                    (heads.rows() * heads.heads, Zero),
                    (out, ACTIVATION),
                    (heads.rows() * heads.width(), Zero),
                ]
            }
            Self::Rope(heads) => vec![(heads.rows() * heads.width(), ACTIVATION)],
            Self::NormForward { rows, width, .. } | Self::NormBackward { rows, width, .. } => vec![
                (rows * width, ACTIVATION),
                (width, SMALL),
                (width, SMALL),
                (rows * width, Zero),
                (rows * 2, Zero),
                (rows * width, ACTIVATION),
                (rows * width, ACTIVATION),
                (rows * width, Zero),
                (width, Zero),
                (width, Zero),
            ],
            Self::GeluForward { elements } => vec![(elements, LOGITS), (elements, Zero)],
            Self::GeluBackward { elements } => {
                vec![(elements, LOGITS), (elements, ACTIVATION), (elements, Zero)]
            }
            Self::SwigluForward { rows, width } => vec![(2 * rows * width, LOGITS), (rows * width, Zero)],
            Self::SwigluBackward { rows, width } => {
                vec![(2 * rows * width, LOGITS), (rows * width, ACTIVATION), (2 * rows * width, Zero)]
            }
            Self::CrossEntropy { rows, vocabulary } => vec![(rows * vocabulary, LOGITS), (rows, Zero)],
            Self::Head { rows, width, vocabulary } => vec![
                (rows * width, ACTIVATION),
                (vocabulary * width, WEIGHT),
                (logits_rows(vocabulary, rows) * vocabulary, Zero),
                (rows, Zero),
                (rows * width, Zero),
                (vocabulary * width, Zero),
            ],
            Self::EmbeddingForward { batch, sequence, vocabulary, width, .. } => vec![
                (vocabulary * width, WEIGHT),
                (sequence * width, WEIGHT),
                (batch * sequence * width, Zero),
            ],
            Self::EmbeddingBackward { batch, sequence, vocabulary, width, .. } => vec![
                (batch * sequence * width, ACTIVATION),
                (vocabulary * width, Zero),
                (sequence * width, Zero),
            ],
            Self::SumOfSquares { elements } => vec![(elements, ACTIVATION), (1, Zero)],
            Self::Fill { elements } => vec![(elements, ACTIVATION)],
            Self::Adamw { elements } => {
                vec![(elements, WEIGHT), (elements, ACTIVATION), (elements, Zero), (elements, Zero)]
            }
        }
    }

    /// Rows whose tokens or targets there are, their vocabulary, and the length of a sequence.
    fn tokens(&self) -> (usize, usize, usize) {
        match *self {
            Self::CrossEntropy { rows, vocabulary } | Self::Head { rows, vocabulary, .. } => {
                (rows, vocabulary, rows)
            }
            Self::EmbeddingForward { batch, sequence, vocabulary, .. }
            | Self::EmbeddingBackward { batch, sequence, vocabulary, .. } => {
                (batch * sequence, vocabulary, sequence)
            }
            Self::Rope(heads) => (heads.rows(), 1, heads.sequence),
            _ => (0, 1, 1),
        }
    }

    /// Takes memory for the tensors, and gives them their first numbers.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn prepare(&self, device: &CpuDevice) -> Result<Prepared> {
        let allocate = |(len, first)| Ok((device.allocate(len)?, first));
        let tensors = self.tensors().into_iter().map(allocate).collect::<Result<_>>()?;
        let (rows, vocabulary, sequence) = self.tokens();
        let tokens = inputs::tokens(rows, 99, vocabulary);
        let positions = (0..rows).map(|row| (row % sequence) as u32).collect();
        let prepared = Prepared { tensors, tokens, positions };
        self.reset(device, &prepared);
        Ok(prepared)
    }

    /// Gives every tensor its first numbers again; a backward pass also needs what the forward pass leaves.
    pub fn reset(&self, device: &CpuDevice, prepared: &Prepared) {
        prepared.reset(device);
        match *self {
            Self::AttentionBackward(heads) => Self::AttentionForward(heads).run(device, prepared, 1),
            Self::NormBackward { rows, width, layer } => {
                Self::NormForward { rows, width, layer }.run(device, prepared, 1);
            }
            _ => {}
        }
    }

    /// Names of the tensors that are compared with the peer's.
    pub fn outputs(&self, prepared: &Prepared) -> Vec<(&'static str, Span)> {
        let get = |named: &[(&'static str, usize)]| {
            named.iter().map(|(name, tensor)| (*name, prepared.get(*tensor))).collect()
        };
        match *self {
            Self::LinearForward { .. } => get(&[("out", 4)]),
            Self::LinearInput { .. } => get(&[("d_x", 2)]),
            Self::LinearWeight { bias: true, .. } => get(&[("d_weight", 2), ("d_bias", 3)]),
            Self::LinearWeight { .. } => get(&[("d_weight", 2)]),
            Self::AttentionForward(_) => get(&[("out", 1)]),
            Self::AttentionBackward(_) => get(&[("d_qkv", 4)]),
            Self::Rope(_) => get(&[("x", 0)]),
            Self::NormForward { .. } => get(&[("out", 3)]),
            Self::NormBackward { layer: true, .. } => get(&[("d_x", 7), ("d_weight", 8), ("d_bias", 9)]),
            Self::NormBackward { .. } => get(&[("d_x", 7), ("d_weight", 8)]),
            Self::GeluForward { .. } | Self::SwigluForward { .. } => get(&[("out", 1)]),
            Self::GeluBackward { .. } | Self::SwigluBackward { .. } => get(&[("d_x", 2)]),
            Self::CrossEntropy { .. } => get(&[("losses", 1), ("d_logits", 0)]),
            Self::Head { .. } => get(&[("losses", 3), ("d_x", 4), ("d_weight", 5)]),
            Self::EmbeddingForward { .. } => get(&[("out", 2)]),
            Self::EmbeddingBackward { positions: true, .. } => get(&[("d_table", 1), ("d_positions", 2)]),
            Self::EmbeddingBackward { .. } => get(&[("d_table", 1)]),
            Self::SumOfSquares { .. } => get(&[("sum", 1)]),
            Self::Fill { .. } => get(&[("x", 0)]),
            Self::Adamw { .. } => get(&[("parameter", 0), ("moment1", 2), ("moment2", 3)]),
        }
    }

    /// Runs once; `update` counts the optimizer's.
    pub fn run(&self, device: &CpuDevice, prepared: &Prepared, update: u64) {
        match *self {
            Self::LinearForward { rows, inputs, outputs, bias, residual } => {
                let [x, weight, bias_span, residual_span, out] = prepared.all();
                let (bias, residual) = (bias.then_some(bias_span), residual.then_some(residual_span));
                device.linear_forward(
                    Linear { rows, inputs, outputs },
                    x.into(),
                    weight.into(),
                    bias,
                    residual,
                    Epilogue::None,
                    out.into(),
                );
            }
            Self::LinearInput { rows, inputs, outputs } => {
                let [d_out, weight, d_x] = prepared.all();
                let shape = Linear { rows, inputs, outputs };
                let (d_out, weight) = (d_out.into(), weight.into());
                device.linear_backward_input(shape, d_out, weight, Through::None, d_x.into());
            }
            Self::LinearWeight { rows, inputs, outputs, bias } => {
                let [d_out, x, d_weight, d_bias] = prepared.all();
                let (shape, d_bias) = (Linear { rows, inputs, outputs }, bias.then_some(d_bias));
                device.linear_backward_weight(shape, d_out.into(), x.into(), d_weight, d_bias);
            }
            Self::AttentionForward(heads) => {
                let [qkv, out, log_sum_exp] = prepared.all();
                let [q, k, v] = heads.split(qkv);
                device.attention_forward(heads.shape(), q, k, v, out.into(), log_sum_exp);
            }
            Self::AttentionBackward(heads) => Self::attention_backward(device, prepared, heads),
            Self::Rope(heads) => {
                let [qkv] = prepared.all();
                let turned = heads.heads + heads.kv_heads;
                let (positions, head_size) = (&prepared.positions, heads.head_size);
                let shape = Rope { positions, heads: turned, head_size, theta: 10_000.0, inverse: false };
                device.rope(shape, Rows::columns(qkv, heads.rows(), heads.width(), 0, turned * head_size));
            }
            Self::NormForward { width, layer, .. } => {
                let [x, weight, bias, out, statistics] = prepared.all();
                let bias = layer.then_some(bias);
                device.norm_forward(norm(width, layer), x, weight, bias, out.into(), statistics);
            }
            Self::NormBackward { width, layer, .. } => {
                let [x, weight, _, _, statistics, d_out, d_residual, d_x, d_weight, d_bias] = prepared.all();
                let (shape, d_bias) = (norm(width, layer), layer.then_some(d_bias));
                device.norm_backward(
                    shape,
                    x,
                    weight,
                    statistics,
                    d_out.into(),
                    Some(d_residual),
                    d_x,
                    d_weight,
                    d_bias,
                );
            }
            Self::GeluForward { elements } => {
                let [x, out] = prepared.all().map(Matrix::from);
                device.gelu_forward(elements, x, out);
            }
            Self::GeluBackward { elements } => {
                let [x, d_out, d_x] = prepared.all().map(Matrix::from);
                device.gelu_backward(elements, x, d_out, d_x);
            }
            Self::SwigluForward { rows, width } => {
                let [gate_up, out] = prepared.all().map(Matrix::from);
                device.swiglu_forward(rows, width, gate_up, out);
            }
            Self::SwigluBackward { rows, width } => {
                let [gate_up, d_out, d_gate_up] = prepared.all().map(Matrix::from);
                device.swiglu_backward(rows, width, gate_up, d_out, d_gate_up);
            }
            Self::CrossEntropy { vocabulary, .. } => {
                let shape = CrossEntropy { targets: &prepared.tokens, vocabulary, width: vocabulary };
                device.cross_entropy(shape, prepared.get(0), prepared.get(1), true);
            }
            Self::Head { rows, width, vocabulary } => {
                Self::head(device, prepared, Linear { rows, inputs: width, outputs: vocabulary });
            }
            Self::EmbeddingForward { width, positions, .. } => {
                let [table, places, out] = prepared.all();
                let places = positions.then_some(places.into());
                device.embedding_forward(lookup(prepared, width), table.into(), places, out);
            }
            Self::EmbeddingBackward { width, positions, .. } => {
                let [d_out, d_table, d_places] = prepared.all();
                device.embedding_backward(
                    lookup(prepared, width),
                    d_out,
                    d_table,
                    positions.then_some(d_places),
                );
            }
            Self::SumOfSquares { .. } => {
                let sum = device.sum_of_squares(prepared.get(0));
                device.write(prepared.get(1), &[sum as f32]);
            }
            Self::Fill { .. } => device.fill(prepared.get(0), 0.0),
            Self::Adamw { .. } => {
                let [parameter, gradient, moment1, moment2] = prepared.all();
                device.adamw(adamw(update), parameter, gradient, moment1, moment2);
            }
        }
    }

    fn attention_backward(device: &CpuDevice, prepared: &Prepared, heads: Heads) {
        let [qkv, out, log_sum_exp, d_out, d_qkv] = prepared.all();
        let ([q, k, v], [d_q, d_k, d_v]) = (heads.split(qkv), heads.split(d_qkv));
        device.attention_backward(
            heads.shape(),
            q,
            k,
            v,
            out.into(),
            log_sum_exp,
            d_out.into(),
            d_q,
            d_k,
            d_v,
        );
    }

    /// As a model does it: piece by piece, so that logits stay in a cache.
    fn head(device: &CpuDevice, prepared: &Prepared, whole: Linear) {
        let [x, weight, logits, losses, d_x, d_weight] = prepared.all();
        let (width, vocabulary) = (whole.inputs, whole.outputs);
        let most = logits.len / vocabulary;
        for first in (0..whole.rows).step_by(most) {
            let rows = most.min(whole.rows - first);
            let (shape, logits) = (Linear { rows, ..whole }, logits.part(0, rows * vocabulary));
            let x = x.part(first * width, rows * width);
            let (x, weight, plain) = (x.into(), weight.into(), Epilogue::None);
            device.linear_forward(shape, x, weight, None, None, plain, logits.into());
            let targets = &prepared.tokens[first..first + rows];
            let loss = CrossEntropy { targets, vocabulary, width: vocabulary };
            device.cross_entropy(loss, logits, losses.part(first, rows), true);
            let (d_x, d_logits) = (d_x.part(first * width, rows * width), logits.into());
            device.linear_backward_input(shape, d_logits, weight, Through::None, d_x.into());
            device.linear_backward_weight(shape, d_logits, x, d_weight, None);
        }
    }
}

fn norm(width: usize, layer: bool) -> Norm {
    Norm { kind: if layer { NormKind::Layer } else { NormKind::Rms }, epsilon: 1e-5, width }
}

fn lookup(prepared: &Prepared, width: usize) -> Embedding<'_> {
    Embedding { tokens: &prepared.tokens, positions: &prepared.positions, width }
}

fn adamw(update: u64) -> AdamW {
    AdamW {
        learning_rate: 3e-4,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        update,
        gradient_scale: 1.0,
    }
}
