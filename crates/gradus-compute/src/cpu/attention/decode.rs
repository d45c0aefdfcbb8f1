//! Attention of a few queries over many keys: decoding. Keys and values are streamed once, unpacked; all is kept in f32.

use super::{HeadRows, Item, LOWEST, Pieces, pieces_len};
use crate::cpu::math::exp2;
use crate::cpu::memory::Elements;
use crate::cpu::simd::{Operation, Simd};
use crate::device::Attention;
use std::ops::Range;

/// Queries up to which this is used.
pub const FEW_QUERIES: usize = 4;
/// Keys in a block: their scores stay in registers' reach, their vectors in the first cache for the group's heads.
const KEYS: usize = 64;

/// Attention of one item.
pub struct Decode<'a> {
    /// Which item.
    pub item: Item<'a>,
    /// Queries.
    pub q: HeadRows,
    /// Keys.
    pub k: HeadRows,
    /// Values.
    pub v: HeadRows,
    /// `[B * T, H * D]`.
    pub out: Elements,
    /// `[B, H, T]`.
    pub log_sum_exp: Elements,
    /// At least [`decode_scratch`] elements.
    pub scratch: &'a mut [f32],
}

fn scratch_lens(shape: Attention) -> [usize; 3] {
    let vectors = shape.heads / shape.kv_heads * shape.query_len;
    [KEYS, 2 * vectors, shape.query_len]
}

/// Elements of scratch that an item needs.
pub fn decode_scratch(shape: Attention) -> usize {
    pieces_len(&scratch_lens(shape))
}

/// One query of one head: the sums stand in the output until they are divided.
#[derive(Clone, Copy)]
struct Query {
    head: usize,
    index: usize,
}

impl Operation for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let item = self.item;
        let mut pieces = Pieces(std::mem::take(&mut self.scratch));
        let [scores, running, first] = scratch_lens(item.shape).map(|len| pieces.take(len));
        item.first_keys(first);
        let vectors = item.heads().len() * item.shape.query_len;
        let (most, total) = running.split_at_mut(vectors);
        most.fill(LOWEST);
        total.fill(0.0);
        let query = |i: usize| Query {
            head: item.heads().start + i / item.shape.query_len,
            index: i % item.shape.query_len,
        };
        for i in 0..vectors {
            // SAFETY: the query's head of the output is this item's own.
            unsafe { self.sums(query(i)) }.fill(0.0);
        }
        for start in (0..item.shape.key_len).step_by(KEYS) {
            for i in 0..vectors {
                let seen = first[query(i).index] as usize..item.last_key(query(i).index) + 1;
                let keys = start.max(seen.start)..(start + KEYS).min(seen.end);
                if !keys.is_empty() {
                    self.keys(s, query(i), keys, scores, &mut most[i], &mut total[i]);
                }
            }
        }
        for i in 0..vectors {
            let Query { head, index } = query(i);
            // SAFETY: as above, and the query's own log-sum-exp.
            unsafe {
                self.sums(query(i)).iter_mut().for_each(|x| *x /= total[i]);
                let sum = (most[i] + total[i].log2()) * std::f32::consts::LN_2;
                *self.log_sum_exp.at(item.sums_at(head) + index) = sum;
            }
        }
    }
}

impl Decode<'_> {
    /// The query's head of the output.
    ///
    /// # Safety
    /// One slice at a time.
    #[inline(always)]
    unsafe fn sums<'b>(&self, query: Query) -> &'b mut [f32] {
        let Item { shape, .. } = self.item;
        let row = self.item.query_row() + query.index;
        // SAFETY: this item alone writes its heads.
        unsafe { self.out.slice_mut((row * shape.heads + query.head) * shape.head_size, shape.head_size) }
    }

    /// One block of keys for one query.
    #[inline(always)]
    fn keys<S: Simd>(
        &self,
        s: S,
        query: Query,
        keys: Range<usize>,
        scores: &mut [f32],
        most: &mut f32,
        total: &mut f32,
    ) {
        let size = self.item.shape.head_size;
        let q = self.q.at(self.item.query_row() + query.index, query.head, size);
        let scores = &mut scores[..keys.len()];
        for (key, score) in keys.clone().zip(scores.iter_mut()) {
            let k = self.k.at(self.item.key_row() + key, self.item.kv_head, size);
            let mut sum = s.splat(0.0);
            for at in (0..size).step_by(S::LANES) {
                let count = S::LANES.min(size - at);
                // SAFETY: inside the query's and the key's vector.
                sum =
                    unsafe { s.mul_add(s.load_up_to(q.add(at), count), s.load_up_to(k.add(at), count), sum) };
            }
            *score = s.sum(sum) * self.item.scale_log2();
        }
        let highest = scores.iter().fold(*most, |most, score| if *score > most { *score } else { most });
        let factor = (*most - highest).exp2();
        *most = highest;
        *total = *total * factor + soften(s, scores, highest);
        // SAFETY: no other slice of it is alive.
        let sums = unsafe { self.sums(query) };
        for at in (0..size).step_by(S::LANES) {
            let count = S::LANES.min(size - at);
            // SAFETY: inside the query's sums and the keys' values.
            unsafe {
                let to = sums.as_mut_ptr().add(at);
                let mut sum = s.mul(s.load_up_to(to, count), s.splat(factor));
                for (key, p) in keys.clone().zip(scores.iter()) {
                    let v = self.v.at(self.item.key_row() + key, self.item.kv_head, size);
                    sum = s.mul_add(s.splat(*p), s.load_up_to(v.add(at), count), sum);
                }
                s.store_up_to(to, count, sum);
            }
        }
    }
}

/// Scores become powers of two, and their sum is returned.
#[inline(always)]
fn soften<S: Simd>(s: S, scores: &mut [f32], highest: f32) -> f32 {
    let mut sum = s.splat(0.0);
    for chunk in scores.chunks_mut(S::LANES) {
        // SAFETY: a chunk of at most LANES elements; the power of the other lanes is zero.
        unsafe {
            let x = s.load_first(chunk.as_ptr(), chunk.len(), s.splat(f32::NEG_INFINITY));
            let p = exp2(s, s.sub(x, s.splat(highest)));
            sum = s.add(sum, p);
            s.store_first(chunk.as_mut_ptr(), chunk.len(), p);
        }
    }
    s.sum(sum)
}
