//! Causal attention, one query at a time.

use super::Reference;
use crate::device::{Attention, Matrix, Rows};

/// Closed-up rows of queries, keys and values; of the keys only those in use.
pub(super) struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Inputs {
    pub(super) fn read(device: &Reference, shape: Attention, q: Rows, k: Rows, v: Rows) -> Self {
        let kv_width = shape.kv_heads * shape.head_size;
        let keys = |rows: Rows| {
            let all = device.get_matrix(Matrix { span: rows.span, format: rows.format });
            let row_of = |b: usize, i: usize| (b * shape.key_rows + i) * rows.stride;
            (0..shape.batch)
                .flat_map(|b| (0..shape.key_len).map(move |i| (b, i)))
                .flat_map(|(b, i)| all[row_of(b, i)..][..kv_width].iter().copied())
                .collect()
        };
        let queries = device.get_rows(q, shape.batch * shape.query_len, shape.heads * shape.head_size);
        Self { q: queries, k: keys(k), v: keys(v) }
    }
}

/// Gradients of one attention.
pub(super) struct Gradients {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// Where the vectors of one query and its keys begin.
struct Query<'a> {
    shape: Attention<'a>,
    batch: usize,
    head: usize,
    index: usize,
}

impl Query<'_> {
    fn row(&self) -> usize {
        self.batch * self.shape.query_len + self.index
    }

    fn q(&self) -> usize {
        (self.row() * self.shape.heads + self.head) * self.shape.head_size
    }

    fn kv(&self, key: usize) -> usize {
        let kv_head = self.head / (self.shape.heads / self.shape.kv_heads);
        ((self.batch * self.shape.key_len + key) * self.shape.kv_heads + kv_head) * self.shape.head_size
    }

    fn sees(&self, key: usize) -> bool {
        let same_document = self.shape.documents.is_none_or(|documents| {
            documents[self.batch * self.shape.query_len + key] == documents[self.row()]
        });
        key <= self.shape.key_len - self.shape.query_len + self.index && same_document
    }

    /// Probabilities of all keys (zero where unseen), and the logarithm of the sum of exponentials.
    fn probabilities(&self, inputs: &Inputs) -> (Vec<f64>, f64) {
        let q = &inputs.q[self.q()..][..self.shape.head_size];
        let scores: Vec<f64> = (0..self.shape.key_len)
            .map(|key| match self.sees(key) {
                true => dot(q, &inputs.k[self.kv(key)..]) * f64::from(self.shape.scale),
                false => f64::NEG_INFINITY,
            })
            .collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
        (scores.iter().map(|score| (score - highest).exp() / sum).collect(), highest + sum.ln())
    }
}

fn queries(shape: Attention<'_>) -> impl Iterator<Item = Query<'_>> {
    (0..shape.batch).flat_map(move |batch| {
        (0..shape.heads)
            .flat_map(move |head| (0..shape.query_len).map(move |index| Query { shape, batch, head, index }))
    })
}

pub(super) fn forward(shape: Attention, inputs: &Inputs) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0f32; inputs.q.len()];
    let mut log_sum_exp = Vec::new();
    for query in queries(shape) {
        let (probabilities, lse) = query.probabilities(inputs);
        for i in 0..shape.head_size {
            let weighted = |(key, p): (usize, &f64)| p * f64::from(inputs.v[query.kv(key) + i]);
            out[query.q() + i] = probabilities.iter().enumerate().map(weighted).sum::<f64>() as f32;
        }
        log_sum_exp.push(lse as f32);
    }
    (out, log_sum_exp)
}

pub(super) fn backward(shape: Attention, inputs: &Inputs, d_out: &[f32]) -> Gradients {
    let (mut d_q, mut d_k) = (vec![0.0f64; inputs.q.len()], vec![0.0f64; inputs.k.len()]);
    let mut d_v = vec![0.0f64; inputs.v.len()];
    for query in queries(shape) {
        let (probabilities, _) = query.probabilities(inputs);
        let d_out = &d_out[query.q()..][..shape.head_size];
        let d_p: Vec<f64> = (0..shape.key_len).map(|key| dot(d_out, &inputs.v[query.kv(key)..])).collect();
        let mean: f64 = probabilities.iter().zip(&d_p).map(|(p, d)| p * d).sum();
        for (key, p) in probabilities.iter().enumerate().filter(|(_, p)| **p > 0.0) {
            let d_score = p * (d_p[key] - mean) * f64::from(shape.scale);
            let (q_at, kv_at) = (query.q(), query.kv(key));
            for i in 0..shape.head_size {
                d_q[q_at + i] += d_score * f64::from(inputs.k[kv_at + i]);
                d_k[kv_at + i] += d_score * f64::from(inputs.q[q_at + i]);
                d_v[kv_at + i] += p * f64::from(d_out[i]);
            }
        }
    }
    let narrow = |sums: Vec<f64>| sums.into_iter().map(|sum| sum as f32).collect();
    Gradients { q: narrow(d_q), k: narrow(d_k), v: narrow(d_v) }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
