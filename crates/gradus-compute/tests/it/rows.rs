//! Operations on rows and elements.

use crate::devices::{
    all_f32, compare, get, get_matrix, put, put_halves, reference, uniform, with_reference,
};
use crate::rounding::adamw;
use gradus_compute::{
    AdamW, CrossEntropy, Device, Embedding, Format, IGNORED, Matrix, Norm, NormKind, Precision, Rope,
    Rounding, Rows,
};

/// Lengths around the vectors of all families, and one that is shared out among threads.
const LENGTHS: [usize; 12] = [1, 2, 7, 8, 9, 15, 16, 17, 64, 100, 1000, 300_001];

/// Numbers of size 4, so that activations saturate.
fn wide(purpose: u64, len: usize) -> Vec<f32> {
    uniform(purpose, len).iter().map(|x| 4.0 * x).collect()
}

#[test]
fn sums_fills_and_copies_are_exact() {
    let devices = all_f32();
    for len in LENGTHS {
        compare(&format!("{len}"), &devices, 0.0, 0.0, |device| {
            let (a, b) = (put(device, &uniform(1, len)), put(device, &uniform(2, len)));
            let out = device.allocate(len).unwrap();
            device.add(a, b, out);
            device.add(a, b, a);
            device.fill(b, 3.5);
            [a, b, out].map(|span| get(device, span)).to_vec()
        });
    }
    compare("rows", &devices, 0.0, 0.0, |device| {
        let (from, to) = (put(device, &uniform(1, 50 * 30)), put(device, &uniform(2, 50 * 41)));
        device.copy_rows(50, 11, Rows::columns(from, 50, 30, 7, 11), Rows::columns(to, 50, 41, 30, 11));
        let halves =
            [(3, 50 * 30), (4, 50 * 42)].map(|(purpose, len)| put_halves(device, &uniform(purpose, len)));
        let [source, target] =
            [Rows::columns(halves[0], 50, 30, 8, 12), Rows::columns(halves[1], 50, 42, 30, 12)];
        device.copy_rows(50, 12, source, target);
        vec![get(device, to), get_matrix(device, halves[1], 50 * 42)]
    });
}

#[test]
fn activations_and_their_gradients() {
    let devices = all_f32();
    for len in LENGTHS {
        // Exponential right to two units in the last place, then a handful of roundings of numbers up to 4.
        compare(&format!("gelu of {len}"), &devices, 2e-6, 2e-6, |device| {
            let (x, d_out) = (put(device, &wide(1, len)), put(device, &uniform(2, len)));
            let (out, d_x) = (device.allocate(len).unwrap(), device.allocate(len).unwrap());
            device.gelu_forward(len, x.into(), out.into());
            device.gelu_backward(len, x.into(), d_out.into(), d_x.into());
            device.gelu_backward(len, x.into(), d_out.into(), d_out.into());
            [out, d_x, d_out].map(|span| get(device, span)).to_vec()
        });
    }
    for (rows, width) in [(1, 1), (3, 5), (2, 16), (7, 33), (300, 400)] {
        compare(&format!("swiglu of {rows} x {width}"), &devices, 4e-6, 2e-6, |device| {
            let (gate_up, d_out) =
                (put(device, &wide(1, 2 * rows * width)), put(device, &uniform(2, rows * width)));
            let out = device.allocate(rows * width).unwrap();
            let d_gate_up = device.allocate(2 * rows * width).unwrap();
            device.swiglu_forward(rows, width, gate_up.into(), out.into());
            device.swiglu_backward(rows, width, gate_up.into(), d_out.into(), d_gate_up.into());
            device.swiglu_backward(rows, width, gate_up.into(), d_out.into(), gate_up.into());
            [out, d_gate_up, gate_up].map(|span| get(device, span)).to_vec()
        });
    }
}

#[test]
fn activations_far_out_are_their_limits() {
    for device in all_f32() {
        let x = put(&device, &[-50.0, -1e4, 50.0, 1e4, 0.0]);
        let (one, out) = (put(&device, &[1.0; 5]), device.allocate(5).unwrap());
        device.gelu_forward(5, x.into(), out.into());
        assert_eq!(get(&device, out), [0.0, 0.0, 50.0, 1e4, 0.0]);
        device.gelu_backward(5, x.into(), one.into(), out.into());
        assert_eq!(get(&device, out), [0.0, 0.0, 1.0, 1.0, 0.5]);
    }
}

#[test]
fn norms_and_their_gradients() {
    let devices = all_f32();
    for (rows, width) in [(1, 1), (2, 2), (3, 15), (5, 16), (4, 17), (6, 64), (9, 130), (200, 384), (3, 1000)]
    {
        for kind in [NormKind::Layer, NormKind::Rms] {
            // Gradients of the parameters sum 200 rows of numbers of size 2; with a width of 1 or 2 the reciprocal
            // deviation multiplies the error of a difference by up to 300.
            let absolute = if width <= 2 { 2e-3 } else { 5e-5 };
            let shape = Norm { kind, epsilon: 1e-5, width };
            compare(&format!("{shape:?} of {rows}"), &devices, absolute, 1e-5, |device| {
                norm_script(device, shape, rows)
            });
        }
    }
}

fn norm_script(device: &dyn Device, shape: Norm, rows: usize) -> Vec<Vec<f32>> {
    let len = rows * shape.width;
    let x: Vec<f32> = uniform(1, len).iter().map(|x| 3.0 + 2.0 * x).collect();
    let (x, weight) = (put(device, &x), put(device, &uniform(2, shape.width)));
    let (bias, d_out) = (put(device, &uniform(3, shape.width)), put(device, &uniform(4, len)));
    let (d_weight, d_bias) = (put(device, &uniform(5, shape.width)), put(device, &uniform(6, shape.width)));
    let (d_residual, d_x) = (put(device, &uniform(7, len)), device.allocate(len).unwrap());
    let (out, statistics) = (device.allocate(len).unwrap(), device.allocate(2 * rows).unwrap());
    let plain = device.allocate(len).unwrap();
    device.norm_forward(shape, x, weight, None, plain.into(), statistics);
    device.norm_forward(shape, x, weight, Some(bias), out.into(), statistics);
    device.norm_backward(shape, x, weight, statistics, d_out.into(), None, d_x, d_weight, None);
    let alone = get(device, d_x);
    device.norm_backward(
        shape,
        x,
        weight,
        statistics,
        d_out.into(),
        Some(d_residual),
        d_residual,
        d_weight,
        Some(d_bias),
    );
    let (again, d_bias_too) = (d_out.into(), Some(d_bias));
    device.norm_backward(shape, x, weight, statistics, again, Some(d_x), d_out, d_weight, d_bias_too);
    let mut results =
        [plain, out, statistics, d_residual, d_out, d_weight, d_bias].map(|span| get(device, span)).to_vec();
    results.push(alone);
    results
}

#[test]
fn rotary_positions_turn_and_turn_back() {
    let devices = all_f32();
    let positions: Vec<u32> = (0..90).map(|i| i * 37 % 500).collect();
    for (heads, head_size) in [(1, 2), (3, 6), (2, 32), (2, 34), (4, 64)] {
        for inverse in [false, true] {
            let shape = Rope { positions: &positions, heads, head_size, theta: 10_000.0, inverse };
            // Sine and cosine rounded to f32, then three roundings of numbers of size 1.
            compare(&format!("{heads} {head_size} {inverse}"), &devices, 3e-7, 3e-7, |device| {
                let stride = heads * head_size + 5;
                let x = put(device, &uniform(1, positions.len() * stride));
                device.rope(shape, Rows::columns(x, positions.len(), stride, 3, heads * head_size));
                vec![get(device, x)]
            });
        }
    }
}

#[test]
fn embeddings_and_their_gradients() {
    let devices = all_f32();
    for (rows, width) in [(1, 1), (40, 7), (33, 16), (500, 385)] {
        let tokens: Vec<u32> = (0..rows as u32).map(|i| i * i % 13).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|i| i % 10).collect();
        let shape = Embedding { tokens: &tokens, positions: &positions, width };
        // Up to 50 rows fall on one entry of the table, in the same order as in the reference.
        compare(&format!("{rows} x {width}"), &devices, 0.0, 0.0, |device| {
            let (table, places) =
                (put(device, &uniform(1, 13 * width)), put(device, &uniform(2, 10 * width)));
            let d_out = put(device, &uniform(3, rows * width));
            let (a, b) = (device.allocate(rows * width).unwrap(), device.allocate(rows * width).unwrap());
            device.embedding_forward(shape, table.into(), None, a);
            device.embedding_forward(shape, table.into(), Some(places.into()), b);
            let halves = |purpose: u64, len: usize| {
                let span = device.allocate(Format::Bf16.places(len)).unwrap();
                device.write_bf16(span, &uniform(purpose, len));
                Matrix { span, format: Format::Bf16 }
            };
            let c = device.allocate(rows * width).unwrap();
            let place_halves = halves(2, 10 * width);
            device.embedding_forward(shape, halves(1, 13 * width), Some(place_halves), c);
            device.embedding_backward(shape, d_out, table, Some(places));
            device.embedding_backward(shape, d_out, table, None);
            [a, b, c, table, places].map(|span| get(device, span)).to_vec()
        });
    }
}

/// A table cut into parts of rows, as ranks share out a vocabulary: the sum of what each puts out, and the tables.
fn embed_in_parts(device: &dyn Device, shape: Embedding, edges: &[u32]) -> Vec<Vec<f32>> {
    let Embedding { tokens, positions, width } = shape;
    let (sum, mut tables) = (put(device, &vec![0.0; tokens.len() * width]), Vec::new());
    let (table, places) = (uniform(1, 13 * width), put(device, &uniform(2, 10 * width)));
    let d_out = put(device, &uniform(3, tokens.len() * width));
    for (index, edge) in edges.windows(2).enumerate() {
        let part = edge[0] as usize * width..edge[1] as usize * width;
        let here = |token: &u32| (edge[0]..edge[1]).contains(token);
        let local: Vec<u32> =
            tokens.iter().map(|token| if here(token) { token - edge[0] } else { IGNORED }).collect();
        let shape = Embedding { tokens: &local, positions: if index == 0 { positions } else { &[] }, width };
        let (table, out) = (put(device, &table[part]), device.allocate(tokens.len() * width).unwrap());
        let places = (index == 0).then_some(places);
        device.fill(out, f32::NAN);
        device.embedding_forward(shape, table.into(), places.map(Matrix::from), out);
        device.add(sum, out, sum);
        device.embedding_backward(shape, d_out, table, places);
        tables.extend(get(device, table));
    }
    vec![get(device, sum), tables, get(device, places)]
}

#[test]
fn tables_whose_rows_are_shared_out_make_the_whole_embedding() {
    let (oracle, devices) = (reference(Precision::F32), all_f32());
    for (rows, width) in [(1, 1), (40, 7), (33, 16), (500, 385)] {
        let tokens: Vec<u32> = (0..rows as u32).map(|i| i * i % 13).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|i| i % 10).collect();
        let shape = Embedding { tokens: &tokens, positions: &positions, width };
        let whole = embed_in_parts(&oracle, shape, &[0, 13]);
        for device in with_reference(&devices, &oracle) {
            for edges in [&[0, 13][..], &[0, 5, 13], &[0, 1, 1, 12, 13]] {
                let parts = embed_in_parts(device, shape, edges);
                assert!(parts == whole, "{rows} x {width} at {edges:?} on {}", device.describe());
            }
        }
    }
}

#[test]
fn losses_and_their_gradients() {
    let devices = all_f32();
    for (rows, vocabulary, width) in
        [(1, 1, 1), (3, 5, 8), (4, 16, 16), (5, 61, 64), (6, 64, 80), (70, 1000, 1024)]
    {
        let targets: Vec<u32> =
            (0..rows).map(|i| if i % 5 == 3 { IGNORED } else { (i * 31 % vocabulary) as u32 }).collect();
        let shape = CrossEntropy { targets: &targets, vocabulary, width };
        // Loss: exponentials right to two units in the last place, sums of a thousand of them, and a logarithm of
        // size 10.
        compare(&format!("{rows} x {vocabulary} of {width}"), &devices, 4e-6, 2e-6, |device| {
            let logits: Vec<f32> = uniform(1, rows * width).iter().map(|x| 10.0 * x).collect();
            let (a, b) = (put(device, &logits), put(device, &logits));
            let (with, without) = (device.allocate(rows).unwrap(), device.allocate(rows).unwrap());
            device.cross_entropy(shape, a, with, true);
            device.cross_entropy(shape, b, without, false);
            [a, with, without].map(|span| get(device, span)).to_vec()
        });
    }
}

#[test]
fn updates_of_adamw() {
    let devices = all_f32();
    for len in LENGTHS {
        // A step is learning_rate times a number of size 1, right to a few units in the last place.
        compare(&format!("{len}"), &devices, 1e-7, 1e-6, |device| {
            let (p, g) = (put(device, &uniform(1, len)), put(device, &uniform(2, len)));
            let (m, v) = (put(device, &vec![0.0; len]), put(device, &vec![0.0; len]));
            for update in 1..=3 {
                let update = AdamW { gradient_scale: 0.25, ..adamw(update, Rounding::default()) };
                device.adamw(update, p.into(), g, m, v);
            }
            [p, m, v].map(|span| get(device, span)).to_vec()
        });
    }
}

#[test]
fn sums_of_squares_show_what_is_not_finite() {
    let right = reference(Precision::F32);
    for len in [0, 1, 15, 17, 16_384, 16_385, 300_001] {
        let values = uniform(1, len);
        let expected = right.sum_of_squares(put(&right, &values));
        right.sum_of_squares(put(&right, &values));
        for device in all_f32() {
            let got = device.sum_of_squares(put(&device, &values));
            // Squares are exact in f64, and 300,000 additions lose 2^-53 of the sum each.
            assert!((got - expected).abs() <= 1e-10 * expected, "{len}: {got} {expected}");
        }
    }
    for device in all_f32() {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = uniform(1, 100);
            values[77] = poison;
            assert!(!device.sum_of_squares(put(&device, &values)).is_finite());
        }
    }
}
