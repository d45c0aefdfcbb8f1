//! What a device can do.

use crate::loss::CrossEntropyPart;
use crate::muon::{Muon, NewtonSchulz};
use crate::rounding::Rounding;
use gradus_error::Result;
use gradus_memory::{HeapRange, RawRange, SharedHeap, Span};
use serde::{Deserialize, Serialize};

/// A target that counts in no loss, or a token whose row another rank holds.
pub const IGNORED: u32 = u32::MAX;

/// The arithmetic of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Operands and sums in f32.
    F32,
    /// Operands rounded to bf16 (to nearest, ties to even), sums in f32. What operations hand on has the format that the caller
    /// names; all else is f32.
    #[default]
    Bf16,
}

/// How elements are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Four bytes each.
    #[default]
    F32,
    /// Two bytes each, two in the place of one f32: what multiplies in bf16 reads half as much.
    Bf16,
}

impl Format {
    /// Elements that lie in the place of one f32.
    pub const fn each(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    /// Elements of f32 whose place `len` elements take.
    pub const fn places(self, len: usize) -> usize {
        len.div_ceil(self.each())
    }
}

/// A matrix whose rows follow each other, and how it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Its place.
    pub span: Span,
    /// How its elements are kept there.
    pub format: Format,
}

impl Matrix {
    /// Elements `first..first + len`; in bf16 `first` is even.
    ///
    /// # Panics
    /// If they are not inside the matrix, or begin in the middle of a place.
    pub fn part(self, first: usize, len: usize) -> Self {
        let each = self.format.each();
        assert!(first.is_multiple_of(each), "element {first} begins in the middle of a place");
        Self { span: self.span.part(first / each, self.format.places(len)), ..self }
    }
}

impl From<Span> for Matrix {
    fn from(span: Span) -> Self {
        Self { span, format: Format::F32 }
    }
}

/// The weight of a linear layer, `[N, K]`.
#[derive(Debug, Clone, Copy)]
pub enum Weight {
    /// As it is.
    Rows(Matrix),
    /// As [`Device::prepare`] left it there, for the same use and shape.
    Prepared(Span),
}

impl<M: Into<Matrix>> From<M> for Weight {
    fn from(matrix: M) -> Self {
        Self::Rows(matrix.into())
    }
}

/// What a weight is multiplied for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A layer's output, whose epilogue takes columns together that are `apart` from each other: half the outputs for
    /// [`Epilogue::Swiglu`], half the head for [`Epilogue::Rope`], else 0.
    Forward {
        /// Columns from one to the other.
        apart: usize,
    },
    /// The gradient of its input.
    Backward,
}

/// Rows of a matrix that may be columns of a wider one: row `i` begins `i * stride` elements after the start of the span.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// From the first element of the first row to the last element of the last.
    pub span: Span,
    /// Elements from one row to the next: an even number in bf16.
    pub stride: usize,
    /// How elements are kept.
    pub format: Format,
}

impl Rows {
    /// Columns `first..first + width` of a matrix of `rows` rows and `stride` columns that fills `whole`.
    ///
    /// # Panics
    /// If those columns are not inside the matrix; in bf16, if a row or the columns begin in the middle of a place.
    pub fn columns(whole: impl Into<Matrix>, rows: usize, stride: usize, first: usize, width: usize) -> Self {
        let whole = whole.into();
        assert!(rows > 0 && first + width <= stride, "columns must lie inside their matrix");
        assert!(
            rows == 1 || stride.is_multiple_of(whole.format.each()),
            "rows of {stride} begin in the middle of a place"
        );
        let part = whole.part(first, (rows - 1) * stride + width);
        Self { span: part.span, stride, format: part.format }
    }
}

/// Looking up tokens, and positions where they are learned.
#[derive(Debug, Clone, Copy)]
pub struct Embedding<'a> {
    /// One row of the table for each output row, or [`IGNORED`] where the table has no such row: where ranks share out the
    /// vocabulary, all but one add nothing to a row, and the sum over the ranks is the row.
    pub tokens: &'a [u32],
    /// One row of the position table for each output row; unused without one.
    pub positions: &'a [u32],
    /// `C`.
    pub width: usize,
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Subtract the mean, divide by the standard deviation, weight and bias (Ba et al. 2016).
    Layer,
    /// Divide by the root of the mean square, weight (Zhang and Sennrich 2019).
    Rms,
}

/// A normalisation of rows.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub epsilon: f32,
    /// `C`: elements per row.
    pub width: usize,
}

/// The shape of `out[M, N] = x[M, K] * w[N, K]^T`.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// `M`.
    pub rows: usize,
    /// `K`.
    pub inputs: usize,
    /// `N`.
    pub outputs: usize,
}

/// Rotary positions (Su et al. 2021) in the half-split convention of Hugging Face's Llama: element `i` of a head turns
/// with element `i + D/2`, by `position * theta^(-2i/D)`.
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// One position for each row.
    pub positions: &'a [u32],
    /// Heads side by side in a row, from its first element.
    pub heads: usize,
    /// `D`.
    pub head_size: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// Turn back: the gradient's way.
    pub inverse: bool,
}

/// What a linear layer's output goes through on its way to memory, while it is in registers or the first cache.
#[derive(Debug, Clone, Copy, Default)]
pub enum Epilogue<'a> {
    /// Nothing: `out` is the layer's output.
    #[default]
    None,
    /// `activated[M, N] = gelu(out)`, of `out` as it is kept.
    Gelu {
        /// As [`Device::gelu_forward`] gives it.
        activated: Matrix,
    },
    /// `activated[M, N / 2] = silu(gate) * up`, of `out` as it is kept: gate first in each row.
    Swiglu {
        /// As [`Device::swiglu_forward`] gives it.
        activated: Matrix,
    },
    /// The first heads of each row of `out` are turned: before they are rounded, where the device's kernels can bring both halves
    /// of a head into one tile (on the CPU: halves of whole vectors), else after, and rounded again.
    Rope(Rope<'a>),
}

/// What the gradient of a linear layer's input goes on through: the function that made the input.
#[derive(Debug, Clone, Copy, Default)]
pub enum Through {
    /// Nothing: `d_x` is the input's gradient.
    #[default]
    None,
    /// The input was `gelu(x)`: `d_x[M, K]` is the gradient of `x`.
    Gelu {
        /// What went into the function.
        x: Matrix,
    },
    /// The input was `silu(gate) * up`: `d_x[M, 2K]` is the gradient of both, gate first in each row.
    Swiglu {
        /// What went into the function.
        gate_up: Matrix,
    },
}

/// Causal attention. Query `i` of `query_len` stands at position `key_len - query_len + i` and sees keys up to there
/// (its own document's only, where `documents` is given).
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `B`: sequences, one after another in the rows of queries and of keys.
    pub batch: usize,
    /// `T` of the queries.
    pub query_len: usize,
    /// Keys of each sequence, at least `query_len`.
    pub key_len: usize,
    /// Rows from one sequence's keys to the next one's (a cache holds more rows than are in use).
    pub key_rows: usize,
    /// `H`.
    pub heads: usize,
    /// `K`, a divisor of `H`; query head `h` reads key-value head `h / (H / K)`.
    pub kv_heads: usize,
    /// `D`.
    pub head_size: usize,
    /// Factor of the scores, usually `1 / sqrt(D)`.
    pub scale: f32,
    /// For each of `B * T` rows a number that only rows of the same document share and that never falls within a
    /// sequence; `None` lets attention cross documents. Requires `query_len == key_len`.
    pub documents: Option<&'a [u32]>,
}

/// The loss of a vocabulary's logits.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy<'a> {
    /// The right token for each row, or [`IGNORED`].
    pub targets: &'a [u32],
    /// `V` as tokens know it: logits from there on are padding and take no part.
    pub vocabulary: usize,
    /// Logits per row, padding included.
    pub width: usize,
}

/// One update by AdamW (Loshchilov and Hutter 2019, algorithm 2, with torch's order of operations).
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Step size now.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Updates made, this one included: from 1.
    pub update: u64,
    /// Factor of the gradient: one over the targets of the step, times clipping.
    pub gradient_scale: f32,
    /// How a parameter in bf16 is rounded.
    pub rounding: Rounding,
}

/// A device: memory, and operations on ranges of it.
///
/// An operation reads and writes only the ranges that it is given; an output overlaps an input only where the
/// operation says "in place". Wrong sizes and overlaps are bugs of the caller and panic. Operations may be
/// asynchronous, in order; [`Device::read`], [`Device::raw`] and every method that returns a number wait for what was
/// asked before. "Adds to" means that the gradient is summed into what is there.
pub trait Device: Send + Sync {
    /// Name, kernels and threads, as shown to a person and recorded with a run.
    fn describe(&self) -> String;
    /// The arithmetic of matrix products.
    fn precision(&self) -> Precision;

    /// Hands out `len` elements, zero. They are never taken back.
    ///
    /// # Errors
    /// `Exhausted` when the device has no more memory.
    fn allocate(&self, len: usize) -> Result<Span>;
    /// As [`Device::allocate`], in memory that other processes reach through `heap`; and what keeps it there, to be dropped
    /// when nothing of it is needed any more.
    ///
    /// # Errors
    /// `Exhausted` when the device or the heap has no more memory.
    fn allocate_shared(&self, len: usize, heap: &SharedHeap) -> Result<(Span, HeapRange)>;
    /// Elements handed out so far.
    fn allocated(&self) -> usize;
    /// Copies from the host.
    fn write(&self, to: Span, values: &[f32]);
    /// Copies from the host, rounded to bf16 (to nearest, ties to even), to a range in [`Format::Bf16`], which begins with an
    /// even element of its tensor. What an odd number of values leaves of the last place becomes zero.
    fn write_bf16(&self, to: Span, values: &[f32]);
    /// Copies to the host.
    fn read(&self, from: Span, values: &mut [f32]);
    /// Copies to the host from a range in [`Format::Bf16`], which begins with an even element of its tensor.
    fn read_bf16(&self, from: Span, values: &mut [f32]) {
        let mut pairs = vec![0.0; Format::Bf16.places(values.len())];
        self.read(from, &mut pairs);
        for (values, pair) in values.chunks_mut(2).zip(&pairs) {
            let pair = pair.to_bits();
            let halves = [pair << 16, pair & 0xffff_0000];
            values.iter_mut().zip(halves).for_each(|(value, half)| *value = f32::from_bits(half));
        }
    }
    /// The address of a range in host memory, for a collective.
    fn raw(&self, span: Span) -> RawRange;

    /// Sets every element.
    fn fill(&self, span: Span, value: f32);
    /// `out = a + b`; in place where `out` is `a`.
    fn add(&self, a: Span, b: Span, out: Span);
    /// Copies `rows` rows of `width`: from `from` to `to`, each with its stride, both in one format; in bf16 the width is even.
    fn copy_rows(&self, rows: usize, width: usize, from: Rows, to: Rows);
    /// Copies elements into another format, or as they are: f32 is rounded to bf16 to nearest, ties to even. There are as many
    /// as lie in f32; what an odd number of them leaves of the last place in bf16 becomes zero.
    fn convert(&self, from: Matrix, to: Matrix);

    /// `out[M, C] = table[token] + position_table[position]`; without the first where the token is [`IGNORED`], without the
    /// second where there is no position table.
    fn embedding_forward(&self, shape: Embedding, table: Matrix, position_table: Option<Matrix>, out: Span);
    /// Adds to `d_table` and `d_position_table`; to the table nothing of rows whose token is [`IGNORED`].
    fn embedding_backward(
        &self,
        shape: Embedding,
        d_out: Span,
        d_table: Span,
        d_position_table: Option<Span>,
    );

    /// `out[M, C]`, and `statistics[M, 2]` = mean (0 for RMS) and reciprocal deviation of each row.
    fn norm_forward(
        &self,
        shape: Norm,
        x: Span,
        weight: Span,
        bias: Option<Span>,
        out: Matrix,
        statistics: Span,
    );
    /// Sets `d_x` to the gradient, plus `d_residual[M, C]` where given; adds to `d_weight` and `d_bias`. In place where
    /// `d_x` is `d_residual` or, in f32, `d_out`.
    #[allow(clippy::too_many_arguments, reason = "each is a tensor of the operation")]
    fn norm_backward(
        &self,
        shape: Norm,
        x: Span,
        weight: Span,
        statistics: Span,
        d_out: Matrix,
        d_residual: Option<Span>,
        d_x: Span,
        d_weight: Span,
        d_bias: Option<Span>,
    );

    /// Elements of f32 whose place a weight takes that is prepared for a use, whatever the rows of the shape.
    fn prepared_len(&self, shape: Linear, usage: Use) -> usize;
    /// Makes a weight ready for many products: rounded, and laid out as they take it. Good until the weight changes.
    fn prepare(&self, shape: Linear, usage: Use, weight: Matrix, to: Span);

    /// `out = x * w^T`, plus `bias[N]` and `residual[M, N]` where given, through `epilogue`; in place where `out` is
    /// `residual`. A residual is f32, as is its `out`, and goes with no epilogue.
    #[allow(clippy::too_many_arguments, reason = "each is a tensor of the operation")]
    fn linear_forward(
        &self,
        shape: Linear,
        x: Matrix,
        weight: Weight,
        bias: Option<Span>,
        residual: Option<Span>,
        epilogue: Epilogue,
        out: Matrix,
    );
    /// `d_x[M, K] = d_out[M, N] * w[N, K]`, taken on through the function that made `x`.
    fn linear_backward_input(
        &self,
        shape: Linear,
        d_out: Matrix,
        weight: Weight,
        through: Through,
        d_x: Matrix,
    );
    /// Adds `d_out^T * x` to `d_weight[N, K]`, and the column sums of `d_out` to `d_bias[N]`.
    fn linear_backward_weight(
        &self,
        shape: Linear,
        d_out: Matrix,
        x: Matrix,
        d_weight: Span,
        d_bias: Option<Span>,
    );

    /// `out = gelu(x)` of `len` elements, the tanh form (Hendrycks and Gimpel 2016) that GPT-2 calls `gelu_new`.
    fn gelu_forward(&self, len: usize, x: Matrix, out: Matrix);
    /// `d_x = d_out * gelu'(x)` of `len` elements; in place where `d_x` is `d_out`. What [`Through::Gelu`] does in a product.
    fn gelu_backward(&self, len: usize, x: Matrix, d_out: Matrix, d_x: Matrix);
    /// `out[M, F] = silu(gate) * up` for `gate_up[M, 2F]`, gate first in each row (Shazeer 2020).
    fn swiglu_forward(&self, rows: usize, width: usize, gate_up: Matrix, out: Matrix);
    /// `d_gate_up[M, 2F]`; in place where it is `gate_up`. What [`Through::Swiglu`] does in a product.
    fn swiglu_backward(&self, rows: usize, width: usize, gate_up: Matrix, d_out: Matrix, d_gate_up: Matrix);
    /// Turns the heads of each row, in place.
    fn rope(&self, shape: Rope, x: Rows);

    /// `out[B * T, H * D]` and `log_sum_exp[B, H, T]` of the scaled scores. All but these sums share one format.
    fn attention_forward(&self, shape: Attention, q: Rows, k: Rows, v: Rows, out: Matrix, log_sum_exp: Span);
    /// Sets `d_q`, `d_k` and `d_v`. Requires `query_len == key_len == key_rows`, and one format but for the sums.
    #[allow(clippy::too_many_arguments, reason = "each is a tensor of the operation")]
    fn attention_backward(
        &self,
        shape: Attention,
        q: Rows,
        k: Rows,
        v: Rows,
        out: Matrix,
        log_sum_exp: Span,
        d_out: Matrix,
        d_q: Rows,
        d_k: Rows,
        d_v: Rows,
    );

    /// Replaces `logits` by the gradient of the *sum* of losses (zero where ignored or padding), and sets `losses[M]`
    /// (nats; zero where ignored). Without `gradient` the logits' content is undefined afterwards.
    fn cross_entropy(&self, shape: CrossEntropy, logits: Span, losses: Span, gradient: bool);
    /// Sets `maxima[M]` to the largest of each row's logits here (minus infinity where none is, zero where ignored).
    fn cross_entropy_maxima(&self, shape: CrossEntropyPart, logits: Span, maxima: Span);
    /// Of `maxima` over all ranks: sets `sums[0, M]` to the sum of `e^(logit - maximum)` of the logits here, and `sums[1, M]`
    /// to the target's logit, zero where that is not here; both are zero where ignored. With the gradient, logits become
    /// these exponentials, but for padding and ignored rows.
    fn cross_entropy_sums(&self, shape: CrossEntropyPart, logits: Span, maxima: Span, sums: Span);
    /// Of `sums` over all ranks, and what the pass before left of the logits: replaces these by the gradient of the sum of
    /// losses (zero where ignored or padding), if asked for, and sets `losses[M]` as [`Device::cross_entropy`] does.
    fn cross_entropy_losses(
        &self,
        shape: CrossEntropyPart,
        maxima: Span,
        sums: Span,
        logits: Span,
        losses: Span,
    );

    /// Sum of squares in f64, in a fixed order; not finite if an element is not.
    fn sum_of_squares(&self, x: Span) -> f64;
    /// One update of `parameter` and both moments. A parameter in bf16 is updated as its value in f32 and rounded at random:
    /// see [`Rounding`].
    fn adamw(&self, update: AdamW, parameter: Matrix, gradient: Span, moment1: Span, moment2: Span);
    /// Sets `to[M, N]` to what the iteration makes of `from[M, N]`.
    fn orthogonalise(&self, shape: NewtonSchulz, from: Span, to: Span);
    /// One update of `parameter[M, N]` and of its `moment`, the only one. A parameter in bf16 is rounded as by
    /// [`Device::adamw`].
    fn muon(&self, update: Muon, parameter: Matrix, gradient: Span, moment: Span);
}
