//! Attention of many shapes, forward and backward.

use crate::devices::{all_f32, compare, cpu, kernels, put, reference, uniform};
use gradus_compute::{Attention, CpuDevice, Device, Format, Precision, Rows};
use gradus_memory::Span;

const NONE: Attention = Attention {
    batch: 1,
    query_len: 1,
    key_len: 1,
    key_rows: 1,
    heads: 1,
    kv_heads: 1,
    head_size: 8,
    scale: 0.35,
    documents: None,
};

fn training(batch: usize, len: usize, heads: usize, kv_heads: usize, head_size: usize) -> Attention<'static> {
    Attention { batch, query_len: len, key_len: len, key_rows: len, heads, kv_heads, head_size, ..NONE }
}

/// Queries, keys and values as columns of one matrix, as a fused projection leaves them.
fn fused(shape: Attention, whole: Span) -> [Rows; 3] {
    let rows = shape.batch * shape.query_len;
    let (q, kv) = (shape.heads * shape.head_size, shape.kv_heads * shape.head_size);
    let columns = |first, width| Rows::columns(whole, rows, q + 2 * kv, first, width);
    [columns(0, q), columns(q, kv), columns(q + kv, kv)]
}

fn backward_script(shape: Attention, device: &dyn Device) -> Vec<Vec<f32>> {
    let rows = shape.batch * shape.query_len;
    let width = (shape.heads + 2 * shape.kv_heads) * shape.head_size;
    let values: Vec<f32> = uniform(1, rows * width).iter().map(|x| 2.0 * x).collect();
    let out_len = rows * shape.heads * shape.head_size;
    let (whole, d_out) = (put(device, &values), put(device, &uniform(2, out_len)));
    let (out, sums) = (device.allocate(out_len).unwrap(), device.allocate(rows * shape.heads).unwrap());
    let gradient = put(device, &vec![f32::NAN; rows * width]);
    let ([q, k, v], [d_q, d_k, d_v]) = (fused(shape, whole), fused(shape, gradient));
    device.attention_forward(shape, q, k, v, out.into(), sums);
    device.attention_backward(shape, q, k, v, out.into(), sums, d_out.into(), d_q, d_k, d_v);
    [out, sums, gradient].map(|span| crate::devices::get(device, span)).to_vec()
}

/// Sums of at most a few hundred products of numbers of size 2 and 1, in f32; probabilities right to 3e-7 of their
/// size, times scores' error of a few units in the last place of 10.
const ABSOLUTE: f32 = 2e-5;

fn check(devices: &[CpuDevice], shape: Attention) {
    compare(&format!("{shape:?}"), devices, ABSOLUTE, 1e-5, |device| backward_script(shape, device));
}

/// Each operand of a product has a relative error of at most 2^-9 once it is rounded to bf16, as have the probabilities that
/// are made of such products; a result is some products deep, and most errors cancel. By tensor, in the Euclidean norm.
const ROUNDED: f64 = 1.0 / 128.0;

/// Devices that round the operands of products, against the reference in f32.
fn check_rounded(shape: Attention) {
    let right = backward_script(shape, &reference(Precision::F32));
    for kernels in kernels() {
        let device = cpu(kernels, Precision::Bf16, 2);
        for (tensor, (got, right)) in backward_script(shape, &device).iter().zip(&right).enumerate() {
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = norm(&mut got.iter().zip(right).map(|(a, b)| f64::from(a - b)));
            let size = norm(&mut right.iter().map(|x| f64::from(*x)));
            assert!(off <= ROUNDED * size + 1e-6, "{tensor} of {shape:?} on {kernels:?}: {off} of {size}");
        }
    }
}

#[test]
fn rounded_operands_change_little_at_odd_lengths_and_sizes() {
    for len in [1, 2, 3, 5, 13, 14, 15, 31, 33, 55, 56, 57, 63, 64, 65, 100, 127, 129, 130, 200] {
        check_rounded(training(2, len, 2, 2, 16));
    }
    for head_size in [1, 2, 3, 8, 15, 17, 24, 33, 48, 64, 80, 128] {
        check_rounded(training(1, 70, 2, 1, head_size));
        check_rounded(training(1, 57, 4, 2, head_size));
    }
    let documents: Vec<u32> =
        (0..230).map(|i| [1, 2, 61, 64, 130].iter().filter(|end| i >= **end).count() as u32).collect();
    check_rounded(Attention { documents: Some(&documents), ..training(1, 230, 2, 1, 16) });
}

#[test]
fn forward_and_backward_at_odd_lengths_and_sizes() {
    let devices = all_f32();
    for len in [1, 2, 3, 5, 7, 13, 14, 15, 31, 33, 55, 56, 57, 63, 64, 65, 100, 127, 129, 130, 200] {
        check(&devices, training(2, len, 2, 2, 16));
    }
    for head_size in [1, 2, 3, 8, 15, 17, 24, 33, 48, 64, 80, 128] {
        check(&devices, training(1, 70, 2, 1, head_size));
    }
}

#[test]
fn query_heads_that_share_keys() {
    let devices = all_f32();
    for (heads, kv_heads) in [(4, 1), (4, 2), (6, 3), (8, 8)] {
        check(&devices, training(2, 75, heads, kv_heads, 16));
    }
}

#[test]
fn documents_do_not_see_each_other() {
    let devices = all_f32();
    let len = 230;
    for ends in [vec![1, 2, 3, 60, 64, 65, 229], vec![130], vec![56, 112, 168]] {
        let number = |position: usize| ends.iter().filter(|end| position >= **end).count() as u32;
        let documents: Vec<u32> =
            (0..2 * len).map(|i| 100 * (i / len) as u32 + 7 * number(i % len)).collect();
        check(&devices, Attention { documents: Some(&documents), ..training(2, len, 2, 1, 16) });
    }
}

#[test]
fn queries_at_the_end_of_a_cache() {
    let devices = all_f32();
    for (query_len, key_len, key_rows) in
        [(1, 1, 4), (1, 77, 80), (3, 130, 130), (4, 65, 70), (5, 66, 70), (70, 200, 256)]
    {
        for (heads, kv_heads, head_size) in [(4, 2, 16), (2, 2, 13)] {
            let shape =
                Attention { batch: 2, query_len, key_len, key_rows, heads, kv_heads, head_size, ..NONE };
            compare(&format!("{shape:?}"), &devices, ABSOLUTE, 1e-5, |device| {
                let (width, kv) = (heads * head_size, kv_heads * head_size);
                let rows = |purpose, rows: usize, width| Rows {
                    span: put(device, &uniform(purpose, rows * width)),
                    stride: width,
                    format: Format::F32,
                };
                let q = rows(1, 2 * query_len, width);
                let (k, v) = (rows(2, 2 * key_rows, kv), rows(3, 2 * key_rows, kv));
                let out = device.allocate(2 * query_len * width).unwrap();
                let sums = device.allocate(2 * query_len * heads).unwrap();
                device.attention_forward(shape, q, k, v, out.into(), sums);
                [out, sums].map(|span| crate::devices::get(device, span)).to_vec()
            });
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let shape = Attention { scale: 40.0, ..training(1, 90, 1, 1, 16) };
    // Scores reach hundreds: their error is a few units in the last place of 1000, and so is the relative error of
    // probabilities.
    compare("large scores", &all_f32(), 2e-3, 2e-3, |device| {
        let mut results = backward_script(shape, device);
        results.truncate(2);
        results
    });
}

#[test]
#[should_panic(expected = "overlap")]
fn gradients_that_overlap_are_a_bug() {
    let shape = training(1, 4, 1, 1, 8);
    let device = &all_f32()[0];
    let whole = device.allocate(4 * 24).unwrap();
    let [q, k, v] = fused(shape, whole);
    let (out, d_out) = (device.allocate(32).unwrap(), device.allocate(32).unwrap());
    let sums = device.allocate(4).unwrap();
    device.attention_backward(shape, q, k, v, out.into(), sums, d_out.into(), q, k, v);
}
