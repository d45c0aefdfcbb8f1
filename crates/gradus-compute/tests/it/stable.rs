//! The same bits on every run, and the same results whatever the threads.

use crate::devices::{assert_close, cpu, get, kernels, put, uniform};
use gradus_compute::{
    Attention, CrossEntropy, Device, Embedding, Epilogue, IGNORED, Linear, Norm, NormKind, Precision, Rows,
    Through,
};

/// A miniature of a training step, large enough that every operation is shared out.
fn step(device: &dyn Device) -> Vec<Vec<f32>> {
    let (batch, len, width, vocabulary) = (3, 100, 48, 160);
    let rows = batch * len;
    let tokens: Vec<u32> = (0..rows).map(|i| (i * 7 % vocabulary) as u32).collect();
    let targets: Vec<u32> =
        (0..rows).map(|i| if i % 9 == 0 { IGNORED } else { (i * 11 % vocabulary) as u32 }).collect();
    let positions: Vec<u32> = (0..rows).map(|i| (i % len) as u32).collect();
    let embedding = Embedding { tokens: &tokens, positions: &positions, width };
    let zeros = |len: usize| device.allocate(len).unwrap();
    let (table, places) =
        (put(device, &uniform(1, vocabulary * width)), put(device, &uniform(2, len * width)));
    let (x, normal, statistics) = (zeros(rows * width), zeros(rows * width), zeros(2 * rows));
    let (weight, qkv_weight) = (put(device, &uniform(3, width)), put(device, &uniform(4, 3 * width * width)));
    device.embedding_forward(embedding, table.into(), Some(places.into()), x);
    let norm = Norm { kind: NormKind::Layer, epsilon: 1e-5, width };
    device.norm_forward(norm, x, weight, Some(weight), normal.into(), statistics);
    let (qkv, d_qkv) = (zeros(rows * 3 * width), zeros(rows * 3 * width));
    let linear = Linear { rows, inputs: width, outputs: 3 * width };
    device.linear_forward(linear, normal.into(), qkv_weight.into(), None, None, Epilogue::None, qkv.into());
    let shape = Attention {
        batch,
        query_len: len,
        key_len: len,
        key_rows: len,
        heads: 3,
        kv_heads: 3,
        head_size: 16,
        scale: 0.25,
        documents: None,
    };
    let columns = |whole| [0, 1, 2].map(|i| Rows::columns(whole, rows, 3 * width, i * width, width));
    let ([q, k, v], [d_q, d_k, d_v]) = (columns(qkv), columns(d_qkv));
    let (out, sums) = (zeros(rows * width), zeros(rows * 3));
    device.attention_forward(shape, q, k, v, out.into(), sums);
    let (active, logits, losses) = (zeros(rows * width), zeros(rows * vocabulary), zeros(rows));
    device.gelu_forward(out.len, out.into(), active.into());
    let head = Linear { rows, inputs: width, outputs: vocabulary };
    device.linear_forward(head, active.into(), table.into(), None, None, Epilogue::None, logits.into());
    device.cross_entropy(
        CrossEntropy { targets: &targets, vocabulary, width: vocabulary },
        logits,
        losses,
        true,
    );
    let (d_table, d_active, d_x) = (zeros(vocabulary * width), zeros(rows * width), zeros(rows * width));
    device.linear_backward_weight(head, logits.into(), active.into(), d_table, None);
    device.linear_backward_input(head, logits.into(), table.into(), Through::None, d_active.into());
    device.gelu_backward(out.len, out.into(), d_active.into(), d_active.into());
    device.attention_backward(shape, q, k, v, out.into(), sums, d_active.into(), d_q, d_k, d_v);
    let (d_weight, d_bias, d_qkv_weight) = (zeros(width), zeros(width), zeros(3 * width * width));
    device.linear_backward_weight(linear, d_qkv.into(), normal.into(), d_qkv_weight, None);
    device.linear_backward_input(linear, d_qkv.into(), qkv_weight.into(), Through::None, d_x.into());
    device.norm_backward(norm, x, weight, statistics, d_x.into(), None, d_x, d_weight, Some(d_bias));
    device.embedding_backward(embedding, d_x, d_table, Some(places));
    let mut results =
        [losses, d_table, places, d_weight, d_bias, d_qkv_weight].map(|span| get(device, span)).to_vec();
    results.push(vec![device.sum_of_squares(d_table) as f32]);
    results
}

fn bits(results: &[Vec<f32>]) -> Vec<Vec<u32>> {
    results.iter().map(|tensor| tensor.iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn runs_repeat_their_bits() {
    for kernels in kernels() {
        for precision in [Precision::F32, Precision::Bf16] {
            for threads in [1, 3] {
                let first = bits(&step(&cpu(kernels, precision, threads)));
                let device = cpu(kernels, precision, threads);
                assert!(
                    first == bits(&step(&device)) && first == bits(&step(&device)),
                    "{}",
                    device.describe()
                );
            }
        }
    }
}

#[test]
fn threads_change_only_rounding() {
    for kernels in kernels() {
        let one = step(&cpu(kernels, Precision::F32, 1));
        for threads in [2, 3, 5] {
            let device = cpu(kernels, Precision::F32, threads);
            for (i, (got, right)) in step(&device).iter().zip(&one).enumerate() {
                // Sums over rows are cut differently: 300 terms below 1.
                assert_close(&format!("tensor {i}, {}", device.describe()), got, right, 1e-5, 1e-5);
            }
        }
    }
}

#[test]
fn kernels_agree_with_the_reference_over_a_step() {
    let right = step(&crate::devices::reference(Precision::F32));
    for kernels in kernels() {
        let device = cpu(kernels, Precision::F32, 2);
        for (i, (got, right)) in step(&device).iter().zip(&right).enumerate() {
            // Errors of one operation grow through the next ones: a few parts in 10^5 of the largest elements.
            let largest = right.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert_close(
                &format!("tensor {i}, {}", device.describe()),
                got,
                right,
                1e-5 * largest.max(1.0),
                1e-4,
            );
        }
    }
}

#[test]
fn a_device_says_what_it_is() {
    for kernels in kernels() {
        let device = cpu(kernels, Precision::Bf16, 2);
        let text = device.describe();
        assert!(text.starts_with("cpu: ") && text.contains("2 threads") && text.ends_with("bf16"), "{text}");
        assert!(device.peak_flops() > 1e6);
    }
}
