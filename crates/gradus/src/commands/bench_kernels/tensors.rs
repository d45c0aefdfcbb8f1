//! The tensors of an operation: how many, how long, how kept, and from which numbers.
//!
//! They are made in the order in which [`Operation::tensors`] names them, and numbered so; the peer does the same.

use super::inputs;
use super::operation::{After, Heads, Operation};
use anyhow::Result;
use gradus_compute::{CpuDevice, Device, Format, Linear, Matrix, Precision, Use, Weight};
use gradus_memory::Span;
use gradus_model::logits_rows;

/// From which numbers a tensor starts.
#[derive(Debug, Clone, Copy)]
enum First {
    /// Spread over `[-scale, scale)`.
    Spread(f32),
    /// All zero, anew before each check; also what is only written.
    Zero,
}

/// Weights are about as large as trained ones, so that sums are of the size that they have in a model.
const WEIGHT: First = First::Spread(0.05);
const ACTIVATION: First = First::Spread(1.0);
const LOGITS: First = First::Spread(3.0);
/// Norms' weights and small things that need not be realistic.
const SMALL: First = First::Spread(0.5);

/// A tensor to be made.
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    len: usize,
    first: First,
    format: Format,
}

impl Tensor {
    fn kept(self, format: Format) -> Self {
        Self { format, ..self }
    }
}

/// In f32.
fn tensor(len: usize, first: First) -> Tensor {
    Tensor { len, first, format: Format::F32 }
}

/// An operation's tensors on a device.
#[derive(Debug)]
pub struct Prepared {
    tensors: Vec<(Matrix, Tensor)>,
    /// A layer's weight, tensor 1, as a step in bf16 prepares it for each use.
    weights: Vec<(Linear, Use, Span)>,
    /// Tokens or targets.
    pub tokens: Vec<u32>,
    /// The place of each row in its sequence.
    pub positions: Vec<u32>,
}

impl Prepared {
    fn new(device: &CpuDevice, operation: &Operation) -> Result<Self> {
        let allocate = |tensor: Tensor| {
            let span = device.allocate(tensor.format.places(tensor.len))?;
            Ok((Matrix { span, format: tensor.format }, tensor))
        };
        let tensors = operation.tensors().into_iter().map(allocate).collect::<Result<_>>()?;
        let (rows, vocabulary, sequence) = operation.tokens();
        let tokens = inputs::tokens(rows, 99, vocabulary);
        let positions = (0..rows).map(|row| (row % sequence) as u32).collect();
        let prepare =
            |(shape, usage)| Ok((shape, usage, device.allocate(device.prepared_len(shape, usage))?));
        let uses = if device.precision() == Precision::Bf16 { operation.uses() } else { Vec::new() };
        let weights = uses.into_iter().map(prepare).collect::<Result<_>>()?;
        Ok(Self { tensors, weights, tokens, positions })
    }

    /// The weight of a layer, for one of its uses.
    pub fn weight(&self, forward: bool) -> Weight {
        let wanted = |(_, usage, _): &&(Linear, Use, Span)| (*usage != Use::Backward) == forward;
        self.weights.iter().find(wanted).map_or(self.matrix(1).into(), |(.., span)| Weight::Prepared(*span))
    }

    /// Gives every tensor its first numbers again.
    pub fn reset(&self, device: &CpuDevice) {
        let round = device.precision() == Precision::Bf16;
        for (number, (matrix, tensor)) in self.tensors.iter().enumerate() {
            match tensor.first {
                First::Zero => device.fill(matrix.span, 0.0),
                First::Spread(scale) => {
                    let values = inputs::values(tensor.len, number as u32 + 1, scale, round);
                    write(device, *matrix, &values);
                }
            }
        }
        for (shape, usage, place) in &self.weights {
            device.prepare(*shape, *usage, self.single(1).into(), *place);
        }
    }

    /// A tensor that is f32.
    pub fn single(&self, tensor: usize) -> Span {
        assert_eq!(self.tensors[tensor].0.format, Format::F32, "tensor {tensor} is kept in bf16");
        self.tensors[tensor].0.span
    }

    /// A tensor in its format.
    pub fn matrix(&self, tensor: usize) -> Matrix {
        self.tensors[tensor].0
    }

    /// The numbers of a tensor.
    pub fn read(&self, device: &CpuDevice, tensor: usize) -> Vec<f32> {
        let (matrix, tensor) = self.tensors[tensor];
        let mut places = vec![0.0; matrix.span.len];
        device.read(matrix.span, &mut places);
        match matrix.format {
            Format::F32 => places,
            Format::Bf16 => places.into_iter().flat_map(pair).take(tensor.len).collect(),
        }
    }
}

fn write(device: &CpuDevice, to: Matrix, values: &[f32]) {
    match to.format {
        Format::F32 => device.write(to.span, values),
        Format::Bf16 => device.write_bf16(to.span, values),
    }
}

/// The two bf16 in the place of an f32, first the one at the lower address.
fn pair(place: f32) -> [f32; 2] {
    let bits = place.to_bits();
    [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
}

impl Operation {
    /// What its weight is prepared for.
    fn uses(&self) -> Vec<(Linear, Use)> {
        match *self {
            Self::LinearForward { rows, inputs, outputs, epilogue, .. } => {
                vec![(Linear { rows, inputs, outputs }, Use::Forward { apart: epilogue.apart(outputs) })]
            }
            Self::LinearInput { rows, inputs, outputs, .. } => {
                vec![(Linear { rows, inputs, outputs }, Use::Backward)]
            }
            Self::Head { rows, width, vocabulary, .. } => {
                let shape = Linear { rows, inputs: width, outputs: vocabulary };
                vec![(shape, Use::Forward { apart: 0 }), (shape, Use::Backward)]
            }
            _ => Vec::new(),
        }
    }

    /// Each tensor, in the order in which [`Operation::run`] takes them.
    fn tensors(&self) -> Vec<Tensor> {
        match *self {
            Self::LinearForward { rows, inputs, outputs, epilogue, x, out, .. } => vec![
                tensor(rows * inputs, ACTIVATION).kept(x),
                tensor(outputs * inputs, WEIGHT),
                tensor(outputs, SMALL),
                tensor(rows * outputs, ACTIVATION),
                tensor(rows * outputs, First::Zero).kept(out),
                tensor(rows * epilogue.activated(outputs), First::Zero).kept(out),
            ],
            Self::LinearInput { rows, inputs, outputs, through, d_out, d_x } => vec![
                tensor(rows * outputs, ACTIVATION).kept(d_out),
                tensor(outputs * inputs, WEIGHT),
                tensor(rows * through.entered(inputs).max(inputs), First::Zero).kept(d_x),
                tensor(rows * through.entered(inputs), LOGITS).kept(d_x),
            ],
            Self::LinearWeight { rows, inputs, outputs, d_out, x, .. } => vec![
                tensor(rows * outputs, ACTIVATION).kept(d_out),
                tensor(rows * inputs, ACTIVATION).kept(x),
                tensor(outputs * inputs, First::Zero),
                tensor(outputs, First::Zero),
            ],
            Self::AttentionForward(heads) | Self::AttentionBackward(heads) => attention(heads),
            Self::RopeBackward(heads) => {
                vec![tensor(heads.rows() * heads.width(), ACTIVATION).kept(heads.kept)]
            }
            Self::NormForward { rows, width, out: kept, .. }
            | Self::NormBackward { rows, width, d_out: kept, .. } => norm(rows, width, kept),
            Self::GeluForward { elements, kept } => {
                vec![tensor(elements, LOGITS).kept(kept), tensor(elements, First::Zero).kept(kept)]
            }
            Self::SwigluForward { rows, width, kept } => vec![
                tensor(2 * rows * width, LOGITS).kept(kept),
                tensor(rows * width, First::Zero).kept(kept),
            ],
            Self::CrossEntropy { rows, vocabulary } => {
                vec![tensor(rows * vocabulary, LOGITS), tensor(rows, First::Zero)]
            }
            Self::Head { rows, width, vocabulary, x } => vec![
                tensor(rows * width, ACTIVATION).kept(x),
                tensor(vocabulary * width, WEIGHT),
                tensor(logits_rows(vocabulary, rows) * vocabulary, First::Zero),
                tensor(rows, First::Zero),
                tensor(rows * width, First::Zero),
                tensor(vocabulary * width, First::Zero),
            ],
            Self::EmbeddingForward { batch, sequence, vocabulary, width, .. } => vec![
                tensor(vocabulary * width, WEIGHT),
                tensor(sequence * width, WEIGHT),
                tensor(batch * sequence * width, First::Zero),
            ],
            Self::EmbeddingBackward { batch, sequence, vocabulary, width, .. } => vec![
                tensor(batch * sequence * width, ACTIVATION),
                tensor(vocabulary * width, First::Zero),
                tensor(sequence * width, First::Zero),
            ],
            Self::SumOfSquares { elements } => vec![tensor(elements, ACTIVATION), tensor(1, First::Zero)],
            Self::Fill { elements } => vec![tensor(elements, ACTIVATION)],
            Self::Adamw { elements } => {
                [WEIGHT, ACTIVATION, First::Zero, First::Zero].map(|first| tensor(elements, first)).into()
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
            Self::RopeBackward(heads) | Self::LinearForward { epilogue: After::Rope(heads), .. } => {
                (heads.rows(), 1, heads.sequence)
            }
            _ => (0, 1, 1),
        }
    }

    /// Takes memory for the tensors, and gives them their first numbers.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn prepare(&self, device: &CpuDevice) -> Result<Prepared> {
        let prepared = Prepared::new(device, self)?;
        self.reset(device, &prepared);
        Ok(prepared)
    }

    /// Gives every tensor its first numbers again; a backward pass also needs what the forward pass leaves.
    pub fn reset(&self, device: &CpuDevice, prepared: &Prepared) {
        prepared.reset(device);
        match *self {
            Self::AttentionBackward(heads) => Self::AttentionForward(heads).run(device, prepared, 1),
            Self::NormBackward { rows, width, layer, d_out, .. } => {
                Self::NormForward { rows, width, layer, out: d_out }.run(device, prepared, 1);
            }
            _ => {}
        }
    }

    /// Names and numbers of the tensors that are compared with the peer's.
    pub fn outputs(&self) -> &'static [(&'static str, usize)] {
        match *self {
            Self::LinearForward { epilogue, .. } if epilogue.activated(2) > 0 => {
                &[("out", 4), ("activated", 5)]
            }
            Self::LinearForward { .. } => &[("out", 4)],
            Self::LinearInput { .. } => &[("d_x", 2)],
            Self::LinearWeight { bias: true, .. } => &[("d_weight", 2), ("d_bias", 3)],
            Self::LinearWeight { .. } => &[("d_weight", 2)],
            Self::AttentionForward(_) => &[("out", 1)],
            Self::AttentionBackward(_) => &[("d_qkv", 4)],
            Self::RopeBackward(_) => &[("d_qkv", 0)],
            Self::NormForward { .. } => &[("out", 3)],
            Self::NormBackward { layer: true, .. } => &[("d_x", 7), ("d_weight", 8), ("d_bias", 9)],
            Self::NormBackward { .. } => &[("d_x", 7), ("d_weight", 8)],
            Self::GeluForward { .. } | Self::SwigluForward { .. } => &[("out", 1)],
            Self::CrossEntropy { .. } => &[("losses", 1), ("d_logits", 0)],
            Self::Head { .. } => &[("losses", 3), ("d_x", 4), ("d_weight", 5)],
            Self::EmbeddingForward { .. } => &[("out", 2)],
            Self::EmbeddingBackward { positions: true, .. } => &[("d_table", 1), ("d_positions", 2)],
            Self::EmbeddingBackward { .. } => &[("d_table", 1)],
            Self::SumOfSquares { .. } => &[("sum", 1)],
            Self::Fill { .. } => &[("x", 0)],
            Self::Adamw { .. } => &[("parameter", 0), ("moment1", 2), ("moment2", 3)],
        }
    }
}

fn attention(heads: Heads) -> Vec<Tensor> {
    let (rows, out) = (heads.rows(), heads.rows() * heads.queries());
    vec![
        tensor(rows * heads.width(), ACTIVATION).kept(heads.kept),
        tensor(out, First::Zero).kept(heads.kept),
        tensor(rows * heads.heads, First::Zero),
        tensor(out, ACTIVATION).kept(heads.kept),
        tensor(rows * heads.width(), First::Zero).kept(heads.kept),
    ]
}

fn norm(rows: usize, width: usize, kept: Format) -> Vec<Tensor> {
    let elements = rows * width;
    vec![
        tensor(elements, ACTIVATION),
        tensor(width, SMALL),
        tensor(width, SMALL),
        tensor(elements, First::Zero).kept(kept),
        tensor(rows * 2, First::Zero),
        tensor(elements, ACTIVATION).kept(kept),
        tensor(elements, ACTIVATION),
        tensor(elements, First::Zero),
        tensor(width, First::Zero),
        tensor(width, First::Zero),
    ]
}
