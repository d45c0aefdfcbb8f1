//! Each operation's call, as a training step makes it.

use super::operation::{After, Before, Heads, Operation};
use super::tensors::Prepared;
use gradus_compute::{
    AdamW, CpuDevice, CrossEntropy, Device, Embedding, Epilogue, Linear, Matrix, Norm, NormKind, Rope,
    Rounding, Rows, Through,
};

impl Operation {
    /// Runs once; `update` counts the optimizer's.
    pub fn run(&self, device: &CpuDevice, tensors: &Prepared, update: u64) {
        match *self {
            Self::LinearForward { rows, inputs, outputs, bias, residual, epilogue, .. } => {
                let (bias, residual) = (bias.then(|| tensors.single(2)), residual.then(|| tensors.single(3)));
                let epilogue = epilogue_of(epilogue, tensors);
                let (shape, x, weight) =
                    (Linear { rows, inputs, outputs }, tensors.matrix(0), tensors.weight(true));
                device.linear_forward(shape, x, weight, bias, residual, epilogue, tensors.matrix(4));
            }
            Self::LinearInput { rows, inputs, outputs, through, .. } => {
                let (d_out, weight, d_x) = (tensors.matrix(0), tensors.weight(false), tensors.matrix(2));
                let (shape, through) =
                    (Linear { rows, inputs, outputs }, through_of(through, tensors.matrix(3)));
                device.linear_backward_input(shape, d_out, weight, through, d_x);
            }
            Self::LinearWeight { rows, inputs, outputs, bias, .. } => {
                let d_bias = bias.then(|| tensors.single(3));
                let (shape, d_out, x) =
                    (Linear { rows, inputs, outputs }, tensors.matrix(0), tensors.matrix(1));
                device.linear_backward_weight(shape, d_out, x, tensors.single(2), d_bias);
            }
            Self::AttentionForward(heads) => {
                let [q, k, v] = heads.split(tensors.matrix(0));
                device.attention_forward(heads.shape(), q, k, v, tensors.matrix(1), tensors.single(2));
            }
            Self::AttentionBackward(heads) => attention_backward(device, tensors, heads),
            Self::RopeBackward(heads) => {
                let width = heads.turned() * heads.head_size;
                let rows = Rows::columns(tensors.matrix(0), heads.rows(), heads.width(), 0, width);
                device.rope(turn(heads, tensors, true), rows);
            }
            Self::NormForward { width, layer, .. } => {
                let [x, weight, statistics] = [0, 1, 4].map(|tensor| tensors.single(tensor));
                let bias = layer.then(|| tensors.single(2));
                device.norm_forward(norm(width, layer), x, weight, bias, tensors.matrix(3), statistics);
            }
            Self::NormBackward { width, layer, residual, .. } => {
                norm_backward(device, tensors, norm(width, layer), residual);
            }
            Self::GeluForward { elements, .. } => {
                device.gelu_forward(elements, tensors.matrix(0), tensors.matrix(1));
            }
            Self::SwigluForward { rows, width, .. } => {
                device.swiglu_forward(rows, width, tensors.matrix(0), tensors.matrix(1));
            }
            Self::CrossEntropy { vocabulary, .. } => {
                let shape = CrossEntropy { targets: &tensors.tokens, vocabulary, width: vocabulary };
                device.cross_entropy(shape, tensors.single(0), tensors.single(1), true);
            }
            Self::Head { rows, width, vocabulary, .. } => {
                head(device, tensors, Linear { rows, inputs: width, outputs: vocabulary });
            }
            Self::EmbeddingForward { width, positions, .. } => {
                let places = positions.then(|| tensors.matrix(1));
                device.embedding_forward(
                    lookup(tensors, width),
                    tensors.matrix(0),
                    places,
                    tensors.single(2),
                );
            }
            Self::EmbeddingBackward { width, positions, .. } => {
                let d_places = positions.then(|| tensors.single(2));
                let (d_out, d_table) = (tensors.single(0), tensors.single(1));
                device.embedding_backward(lookup(tensors, width), d_out, d_table, d_places);
            }
            Self::SumOfSquares { .. } => {
                let sum = device.sum_of_squares(tensors.single(0));
                device.write(tensors.single(1), &[sum as f32]);
            }
            Self::Fill { .. } => device.fill(tensors.single(0), 0.0),
            Self::Adamw { .. } => {
                let [parameter, gradient, moment1, moment2] =
                    [0, 1, 2, 3].map(|tensor| tensors.single(tensor));
                device.adamw(adamw(update), parameter.into(), gradient, moment1, moment2);
            }
        }
    }
}

fn epilogue_of(function: After, tensors: &Prepared) -> Epilogue<'_> {
    let activated = tensors.matrix(5);
    match function {
        After::None => Epilogue::None,
        After::Gelu => Epilogue::Gelu { activated },
        After::Swiglu => Epilogue::Swiglu { activated },
        After::Rope(heads) => Epilogue::Rope(turn(heads, tensors, false)),
    }
}

fn through_of(function: Before, before: Matrix) -> Through {
    match function {
        Before::None => Through::None,
        Before::Gelu => Through::Gelu { x: before },
        Before::Swiglu => Through::Swiglu { gate_up: before },
    }
}

fn turn(heads: Heads, tensors: &Prepared, inverse: bool) -> Rope<'_> {
    Rope {
        positions: &tensors.positions,
        heads: heads.turned(),
        head_size: heads.head_size,
        theta: 10_000.0,
        inverse,
    }
}

fn attention_backward(device: &CpuDevice, tensors: &Prepared, heads: Heads) {
    let ([q, k, v], [d_q, d_k, d_v]) = (heads.split(tensors.matrix(0)), heads.split(tensors.matrix(4)));
    let (out, log_sum_exp, d_out) = (tensors.matrix(1), tensors.single(2), tensors.matrix(3));
    device.attention_backward(heads.shape(), q, k, v, out, log_sum_exp, d_out, d_q, d_k, d_v);
}

fn norm_backward(device: &CpuDevice, tensors: &Prepared, shape: Norm, residual: bool) {
    let [x, weight, statistics, d_x, d_weight] = [0, 1, 4, 7, 8].map(|tensor| tensors.single(tensor));
    let d_bias = (shape.kind == NormKind::Layer).then(|| tensors.single(9));
    let (d_out, residual) = (tensors.matrix(5), residual.then(|| tensors.single(6)));
    device.norm_backward(shape, x, weight, statistics, d_out, residual, d_x, d_weight, d_bias);
}

/// As a model does it: piece by piece, so that logits stay in a cache.
fn head(device: &CpuDevice, tensors: &Prepared, whole: Linear) {
    let (x, forward, backward) = (tensors.matrix(0), tensors.weight(true), tensors.weight(false));
    let [logits, losses, d_x, d_weight] = [2, 3, 4, 5].map(|tensor| tensors.single(tensor));
    let (width, vocabulary) = (whole.inputs, whole.outputs);
    let most = logits.len / vocabulary;
    for first in (0..whole.rows).step_by(most) {
        let rows = most.min(whole.rows - first);
        let (shape, logits) = (Linear { rows, ..whole }, logits.part(0, rows * vocabulary));
        let x = x.part(first * width, rows * width);
        device.linear_forward(shape, x, forward, None, None, Epilogue::None, logits.into());
        let targets = &tensors.tokens[first..first + rows];
        let loss = CrossEntropy { targets, vocabulary, width: vocabulary };
        device.cross_entropy(loss, logits, losses.part(first, rows), true);
        let (d_x, d_logits) = (d_x.part(first * width, rows * width), logits.into());
        device.linear_backward_input(shape, d_logits, backward, Through::None, d_x.into());
        device.linear_backward_weight(shape, d_logits, x, d_weight, None);
    }
}

fn norm(width: usize, layer: bool) -> Norm {
    Norm { kind: if layer { NormKind::Layer } else { NormKind::Rms }, epsilon: 1e-5, width }
}

fn lookup(tensors: &Prepared, width: usize) -> Embedding<'_> {
    Embedding { tokens: &tensors.tokens, positions: &tensors.positions, width }
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
        rounding: Rounding::default(),
    }
}
