//! Attention of many shapes, forward and backward.

use crate::devices::{all_f32, compare, cpu, kernels, reference, uniform};
use gradus_compute::{Attention, CpuDevice, Device, Format, Matrix, Precision, Rows};

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

/// Widths of queries and of keys side by side: even, so that in bf16 each begins with a place.
fn widths(shape: Attention) -> (usize, usize) {
    let even = |heads: usize| (heads * shape.head_size).next_multiple_of(2);
    (even(shape.heads), even(shape.kv_heads))
}

/// Queries, keys and values as columns of one matrix, as a fused projection leaves them.
fn fused(shape: Attention, whole: impl Into<Matrix>) -> [Rows; 3] {
    let (whole, (q, kv)) = (whole.into(), widths(shape));
    let columns = |first, heads| {
        let rows = shape.batch * shape.query_len;
        Rows::columns(whole, rows, q + 2 * kv, first, heads * shape.head_size)
    };
    [columns(0, shape.heads), columns(q, shape.kv_heads), columns(q + kv, shape.kv_heads)]
}

fn put_matrix(device: &dyn Device, format: Format, values: &[f32]) -> Matrix {
    let span = device.allocate(format.places(values.len())).unwrap();
    match format {
        Format::F32 => device.write(span, values),
        Format::Bf16 => device.write_bf16(span, values),
    }
    Matrix { span, format }
}

fn get_matrix(device: &dyn Device, matrix: Matrix) -> Vec<f32> {
    let values = crate::devices::get(device, matrix.span);
    let widen = |bits: u32| [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)];
    match matrix.format {
        Format::F32 => values,
        Format::Bf16 => values.iter().flat_map(|pair| widen(pair.to_bits())).collect(),
    }
}

/// Everything but the sums is kept in `format`.
fn script_of(format: Format, shape: Attention, device: &dyn Device) -> Vec<Vec<f32>> {
    let rows = shape.batch * shape.query_len;
    let (q, kv) = widths(shape);
    let values: Vec<f32> = uniform(1, rows * (q + 2 * kv)).iter().map(|x| 2.0 * x).collect();
    let out_len = rows * shape.heads * shape.head_size;
    let (whole, d_out) =
        (put_matrix(device, format, &values), put_matrix(device, format, &uniform(2, out_len)));
    let out = put_matrix(device, format, &vec![f32::NAN; out_len]);
    let sums = device.allocate(rows * shape.heads).unwrap();
    // Marked, so that what is written between the columns, or not written in them, is found.
    let gradient = put_matrix(device, format, &vec![1024.0; rows * (q + 2 * kv)]);
    let ([q, k, v], [d_q, d_k, d_v]) = (fused(shape, whole), fused(shape, gradient));
    device.attention_forward(shape, q, k, v, out, sums);
    device.attention_backward(shape, q, k, v, out, sums, d_out, d_q, d_k, d_v);
    vec![get_matrix(device, out), crate::devices::get(device, sums), get_matrix(device, gradient)]
}

fn backward_script(shape: Attention, device: &dyn Device) -> Vec<Vec<f32>> {
    script_of(Format::F32, shape, device)
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

/// A result that is kept in bf16 has one more, as has `sum(d_out * out)`, which is made of such a result.
const KEPT: f64 = 1.0 / 256.0;

/// Devices that round, against the reference in f32, which reads the same numbers.
fn check_near(format: Format, precision: Precision, shape: Attention, tolerance: f64) {
    let right = script_of(format, shape, &reference(Precision::F32));
    for kernels in kernels() {
        let device = cpu(kernels, precision, 2);
        for (tensor, (got, right)) in script_of(format, shape, &device).iter().zip(&right).enumerate() {
            let written = |x: &f32| if *x == 1024.0 { 0.0 } else { f64::from(*x) };
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = norm(&mut got.iter().zip(right).map(|(a, b)| f64::from(a - b)));
            let size = norm(&mut right.iter().map(written));
            let what = format!("{tensor} of {shape:?} in {format:?} on {}", device.describe());
            assert!(off <= tolerance * size + 1e-6, "{what}: {off} of {size}");
        }
    }
}

/// Every way to round: of operands, of tensors, of both.
fn check_rounded(shape: Attention) {
    check_near(Format::F32, Precision::Bf16, shape, ROUNDED);
    check_near(Format::Bf16, Precision::Bf16, shape, ROUNDED + KEPT);
    check_near(Format::Bf16, Precision::F32, shape, KEPT);
}

#[test]
fn rounding_changes_little_at_odd_lengths_and_sizes() {
    for len in [1, 2, 3, 5, 7, 13, 14, 15, 31, 33, 55, 56, 57, 63, 64, 65, 100, 127, 129, 130, 200] {
        check_rounded(training(2, len, 2, 2, 16));
    }
    for head_size in [1, 2, 3, 8, 15, 17, 24, 33, 48, 64, 80, 128] {
        check_rounded(training(1, 70, 2, 1, head_size));
        check_rounded(training(1, 57, 4, 2, head_size));
    }
    for (heads, kv_heads) in [(4, 1), (4, 2), (6, 3), (8, 8)] {
        check_rounded(training(2, 75, heads, kv_heads, 16));
    }
}

#[test]
fn rounding_changes_little_among_documents() {
    for ends in [vec![1, 2, 3, 60, 61, 64, 65, 229], vec![130], vec![56, 112, 168]] {
        let documents: Vec<u32> =
            (0..230).map(|i| ends.iter().filter(|end| i >= **end).count() as u32).collect();
        check_rounded(Attention { documents: Some(&documents), ..training(1, 230, 2, 1, 16) });
    }
}

#[test]
fn what_is_kept_in_bf16_repeats_its_bits() {
    let bits = |results: Vec<Vec<f32>>| results.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for kernels in kernels() {
        for precision in [Precision::F32, Precision::Bf16] {
            let run = |threads| {
                let device = cpu(kernels, precision, threads);
                bits(script_of(Format::Bf16, training(3, 150, 4, 2, 24), &device))
            };
            // Threads share out items, which are summed by one thread each.
            assert!(run(1) == run(3) && run(3) == run(3), "{kernels:?} {precision:?}");
        }
    }
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
            // Two results that are rounded may be neighbours: one in 2^7, at most, apart.
            for (format, relative) in [(Format::F32, 1e-5), (Format::Bf16, 1.0 / 128.0)] {
                compare(&format!("{shape:?}"), &devices, ABSOLUTE, relative, |device| {
                    let (width, kv) = (heads * head_size, kv_heads * head_size);
                    let rows = |purpose, rows: usize, width| {
                        let Matrix { span, .. } = put_matrix(device, format, &uniform(purpose, rows * width));
                        Rows { span, stride: width, format }
                    };
                    let q = rows(1, 2 * query_len, width);
                    let (k, v) = (rows(2, 2 * key_rows, kv), rows(3, 2 * key_rows, kv));
                    let out = put_matrix(device, format, &vec![f32::NAN; 2 * query_len * width]);
                    let sums = device.allocate(2 * query_len * heads).unwrap();
                    device.attention_forward(shape, q, k, v, out, sums);
                    vec![get_matrix(device, out), crate::devices::get(device, sums)]
                });
            }
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

#[test]
#[should_panic(expected = "overlap")]
fn gradients_that_overlap_in_bf16_are_a_bug() {
    let shape = training(1, 4, 1, 1, 8);
    let device = &all_f32()[0];
    let matrix = |len| put_matrix(device, Format::Bf16, &vec![0.0; len]);
    let (inputs, gradients, sums) = (matrix(4 * 24), matrix(4 * 24), device.allocate(4).unwrap());
    let ([q, k, v], [d_q, _, d_v]) = (fused(shape, inputs), fused(shape, gradients));
    // The two last elements of the queries' gradient, and all but two of the keys'.
    let d_k = Rows::columns(gradients, 4, 24, 6, 8);
    device.attention_backward(shape, q, k, v, matrix(32), sums, matrix(32), d_q, d_k, d_v);
}

#[test]
#[should_panic(expected = "one format")]
fn tensors_of_two_formats_are_a_bug() {
    let shape = training(1, 4, 1, 1, 8);
    let device = &all_f32()[0];
    let [q, k, v] = fused(shape, put_matrix(device, Format::Bf16, &[0.0; 4 * 24]));
    let (out, sums) = (device.allocate(32).unwrap(), device.allocate(4).unwrap());
    device.attention_forward(shape, q, k, v, out.into(), sums);
}
