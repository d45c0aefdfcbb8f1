//! Causal attention in blocks, forward and backward, never storing all scores (Dao et al. 2022, algorithms 1 and 4).
//!
//! What: one [`Item`] is a sequence and a key-value head, with all the query heads that read it; items are shared out
//! among threads. How: keys, values and queries are packed into the panels of the matrix kernels (see `gemm`), a block
//! of scores is made by these kernels in scratch that stays in the first cache, turned into probabilities in place, and
//! multiplied on. Blocks in which no query sees a key are skipped. Scores are kept in units of log 2, so that
//! probabilities are powers of two. All of this is one text over kernels of vectors and of tiles; where tiles want another
//! order, some products are turned (see `product`).
//! Products multiply as the device's precision says: in f32, or with operands rounded to bf16 (queries, keys, values,
//! output gradients, probabilities and gradients of scores), which are packed in pairs where the processor multiplies pairs.
//! Sums, scores and the softmax are f32 in any case. Tensors may be kept in bf16: then what is written is rounded once, after
//! all of its sum was made in f32 (gradients in scratch), and what is read is packed without rounding.
//! Invariants: an item writes only its own rows and heads; its sums are made in a fixed order.

mod backward;
mod decode;
mod forward;
mod gradient;
mod product;
mod rows;
mod slopes;
#[cfg(test)]
mod tests;

pub use backward::{Backward, backward_scratch};
pub use decode::{Decode, FEW_QUERIES, decode_scratch};
pub use forward::{Forward, forward_scratch};
pub use rows::HeadRows;

use super::gemm::TileKernel;
use super::simd::Simd;
use crate::device::Attention;
use product::run_of;
use std::ops::Range;

/// Queries (forward) or keys (backward) across a block of scores: a multiple of every kernel's panel of columns; at most as
/// many keys (forward) or queries (backward) down it.
const ACROSS: usize = 64;
/// Below every score, and finite, so that differences of two are numbers.
const LOWEST: f32 = -1e30;

/// Work that is compiled for each kernel.
pub trait KernelOperation {
    /// Does it.
    fn run<K: TileKernel>(self, kernel: K);
}

/// A probability, or the like, as products take it.
#[inline(always)]
fn rounded<S: Simd, K: TileKernel>(s: S, x: S::V) -> S::V {
    if K::ROUND { s.round_bf16(x) } else { x }
}

/// A sequence and a key-value head.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// The operation's shape.
    pub shape: Attention<'a>,
    /// Which sequence.
    pub batch: usize,
    /// Which key-value head.
    pub kv_head: usize,
}

impl<'a> Item<'a> {
    /// Item `index` of the `B * K` of an operation.
    pub fn new(shape: Attention<'a>, index: usize) -> Self {
        Self { shape, batch: index / shape.kv_heads, kv_head: index % shape.kv_heads }
    }

    /// Query heads that read this key-value head.
    fn heads(&self) -> Range<usize> {
        let group = self.shape.heads / self.shape.kv_heads;
        self.kv_head * group..(self.kv_head + 1) * group
    }

    /// First of this sequence's query rows.
    fn query_row(&self) -> usize {
        self.batch * self.shape.query_len
    }

    /// First of this sequence's key rows.
    fn key_row(&self) -> usize {
        self.batch * self.shape.key_rows
    }

    /// First element of a head's log-sum-exp.
    fn sums_at(&self, head: usize) -> usize {
        (self.batch * self.shape.heads + head) * self.shape.query_len
    }

    /// Position of query `query` among the keys: the last key that it sees.
    fn last_key(&self, query: usize) -> usize {
        self.shape.key_len - self.shape.query_len + query
    }

    /// For each query the first key that it sees: the first of its document. Whole numbers, exact below 2^24.
    fn first_keys(&self, first: &mut [f32]) {
        first.fill(0.0);
        let Some(documents) = self.shape.documents else { return };
        let documents = &documents[self.query_row()..][..self.shape.query_len];
        for query in 1..self.shape.query_len {
            let same = documents[query] == documents[query - 1];
            first[query] = if same { first[query - 1] } else { query as f32 };
        }
    }

    /// Factor from a product to a score in units of log 2.
    fn scale_log2(&self) -> f32 {
        self.shape.scale * std::f32::consts::LOG2_E
    }
}

/// Takes pieces from the front of the scratch.
struct Pieces<'a>(&'a mut [f32]);

impl<'a> Pieces<'a> {
    fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len.next_multiple_of(16));
        self.0 = rest;
        &mut piece[..len]
    }

    fn take_each<const N: usize>(&mut self, len: usize) -> [&'a mut [f32]; N] {
        std::array::from_fn(|_| self.take(len))
    }
}

/// Elements that [`Pieces::take`] uses for pieces of these lengths.
fn pieces_len(lens: &[usize]) -> usize {
    lens.iter().map(|len| len.next_multiple_of(16)).sum()
}

/// Rows in a block of scores: whole panels of rows, and whole runs of the products over them.
fn down<K: TileKernel>(kernel: K) -> usize {
    let (rows, run) = (kernel.rows(), run_of::<K>());
    let granule = if rows.is_multiple_of(run) { rows } else { rows * run };
    ACROSS / granule * granule
}
