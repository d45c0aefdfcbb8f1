//! Every operation that has a gradient, against differences of its own forward pass: no other implementation is asked, so
//! that a mistake which devices share is found too.
//!
//! What: of an operation `y = f(x, w, ...)` and a cotangent `c`, the slope of `c . f` along a direction `d` of one input is
//! `gradient . d`. How: central differences in f32, summed in f64, along the gradient, where the slope is greatest, and
//! along some random directions. Each case also holds that it would find a gradient a little too large.

use crate::devices::{all_f32, get, reference, uniform, with_reference};
use crate::vocabulary::Split;
use gradus_compute::{
    Attention, CrossEntropy, Device, Embedding, Epilogue, IGNORED, Linear, Matrix, Norm, NormKind, Precision,
    Rope, Rows, Through,
};
use gradus_memory::Span;

/// How far elements are moved, at most. What a central difference leaves out is the square of it over six, 1e-5, times a
/// third derivative.
const SHIFT: f64 = 1.0 / 128.0;

/// Random directions for each input.
const DIRECTIONS: u64 = 4;

/// Of a slope, and of the usual size of slopes along random directions. Third derivatives are a few times as large as first
/// ones: 5e-5. Outputs right to a few units in their last place, 2e-7 of numbers of size 1 to 10, over twice the shift: 1e-5
/// to 1e-4 for one of them; those of many outputs cancel for the most part. The worst here is 7e-5.
const TOLERANCE: f64 = 3e-4;

/// A gradient that is this much too large or small must be found, or the tolerance would hide what it is for.
const FOUND: f64 = 2e-3;

/// The memory of an operation of `N` inputs that it is differentiated by.
struct Tensors<const N: usize> {
    inputs: [Span; N],
    out: Span,
    /// What forward leaves for backward, besides.
    kept: Span,
    d_out: Span,
    /// Of each input; zero before backward.
    gradients: [Span; N],
}

/// The slope along a direction: what differences say, what the gradient says, and how far they may be apart.
struct Slope {
    seen: f64,
    said: f64,
    allowed: f64,
}

impl Slope {
    /// Whether a gradient that is `scale` times as large passes.
    fn passes(&self, scale: f64) -> bool {
        (self.said * scale - self.seen).abs() <= self.allowed
    }
}

/// An operation on one device.
struct Case<'a, const N: usize, F> {
    device: &'a dyn Device,
    tensors: Tensors<N>,
    values: &'a [Vec<f32>; N],
    cotangent: &'a [f32],
    forward: F,
}

impl<const N: usize, F: Fn(&dyn Device, &Tensors<N>)> Case<'_, N, F> {
    /// `c . f` where one input has these values.
    fn value_at(&self, input: usize, values: &[f32]) -> f64 {
        for (index, (span, own)) in self.tensors.inputs.iter().zip(self.values).enumerate() {
            self.device.write(*span, if index == input { values } else { own });
        }
        self.device.fill(self.tensors.out, f32::NAN);
        (self.forward)(self.device, &self.tensors);
        dot(&get(self.device, self.tensors.out), self.cotangent)
    }

    /// Slopes of one input along its gradient and along random directions.
    fn slopes(&self, input: usize, gradient: &[f32]) -> Vec<Slope> {
        let largest = gradient.iter().fold(0.0f32, |most, g| most.max(g.abs()));
        let steepest = gradient.iter().map(|g| g / largest).collect();
        let random = (0..DIRECTIONS).map(|i| uniform(1000 + 100 * input as u64 + i, gradient.len()));
        std::iter::once(steepest)
            .chain(random)
            .map(|direction| self.slope(input, gradient, &direction))
            .collect()
    }

    fn slope(&self, input: usize, gradient: &[f32], direction: &[f32]) -> Slope {
        let moved = |shift: f64| -> Vec<f32> {
            let pairs = self.values[input].iter().zip(direction);
            pairs.map(|(x, d)| (f64::from(*x) + shift * f64::from(*d)) as f32).collect()
        };
        let (before, behind) = (moved(-SHIFT), moved(SHIFT));
        // Elements are moved by what f32 makes of it.
        let way: Vec<f64> = before
            .iter()
            .zip(&behind)
            .map(|(a, b)| (f64::from(*b) - f64::from(*a)) / (2.0 * SHIFT))
            .collect();
        let seen = (self.value_at(input, &behind) - self.value_at(input, &before)) / (2.0 * SHIFT);
        let said: f64 = gradient.iter().zip(&way).map(|(g, w)| f64::from(*g) * w).sum();
        let mean_square = way.iter().map(|w| w * w).sum::<f64>() / way.len() as f64;
        let usual = (dot(gradient, gradient) * mean_square).sqrt();
        Slope { seen, said, allowed: TOLERANCE * (said.abs() + usual) }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Holds an operation's gradients against its differences, on every device: `values` of what it is differentiated by, a
/// `cotangent` for each element that it puts out, and how many elements forward leaves for backward besides.
#[track_caller]
fn check<const N: usize>(
    what: &str,
    values: [Vec<f32>; N],
    cotangent: &[f32],
    kept: usize,
    forward: impl Fn(&dyn Device, &Tensors<N>),
    backward: impl Fn(&dyn Device, &Tensors<N>),
) {
    let (oracle, devices) = (reference(Precision::F32), all_f32());
    for device in with_reference(&devices, &oracle) {
        let zeros = |len: usize| device.allocate(len).unwrap();
        let tensors = Tensors {
            inputs: values.each_ref().map(|values| zeros(values.len())),
            out: zeros(cotangent.len()),
            kept: zeros(kept),
            d_out: zeros(cotangent.len()),
            gradients: values.each_ref().map(|values| zeros(values.len())),
        };
        let case = Case { device, tensors, values: &values, cotangent, forward: &forward };
        let value = case.value_at(0, &values[0]);
        assert!(value.is_finite(), "{what} on {}: {value}", device.describe());
        device.write(case.tensors.d_out, cotangent);
        backward(device, &case.tensors);
        for (input, gradient) in case.tensors.gradients.map(|span| get(device, span)).iter().enumerate() {
            let slopes = case.slopes(input, gradient);
            if let Some(Slope { seen, said, allowed }) = slopes.iter().find(|slope| !slope.passes(1.0)) {
                panic!(
                    "{what}, input {input}, {}: the gradient says {said}, differences {seen}, +- {allowed}",
                    device.describe()
                );
            }
            let found = |scale| slopes.iter().any(|slope| !slope.passes(scale));
            assert!(
                found(1.0 + FOUND) && found(1.0 - FOUND),
                "{what}, input {input}: an error of {FOUND} would not be found"
            );
        }
    }
}

/// Copies a whole span.
fn copy(device: &dyn Device, from: Span, to: Span) {
    let rows = |span| Rows::columns(span, 1, to.len, 0, to.len);
    device.copy_rows(1, to.len, rows(from), rows(to));
}

fn scaled(factor: f32, purpose: u64, len: usize) -> Vec<f32> {
    uniform(purpose, len).iter().map(|x| factor * x).collect()
}

#[test]
fn linear_layers() {
    // Few rows, and more work than one thread does alone.
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 17, 33), (77, 50, 67)] {
        let shape = Linear { rows, inputs, outputs };
        let values = [uniform(1, rows * inputs), uniform(2, outputs * inputs), uniform(3, outputs)];
        check(
            &format!("{shape:?}"),
            values,
            &uniform(4, rows * outputs),
            0,
            |device, t| {
                let [x, weight, bias] = t.inputs;
                let (x, weight, plain) = (x.into(), weight.into(), Epilogue::None);
                device.linear_forward(shape, x, weight, Some(bias), None, plain, t.out.into());
            },
            |device, t| {
                let ([x, weight, _], [d_x, d_weight, d_bias]) = (t.inputs, t.gradients);
                let (d_out, plain) = (t.d_out.into(), Through::None);
                device.linear_backward_input(shape, d_out, weight.into(), plain, d_x.into());
                device.linear_backward_weight(shape, d_out, x.into(), d_weight, Some(d_bias));
            },
        );
    }
}

/// A layer whose output goes through an epilogue: the chain of both is differentiated, by the layer's input, weight and
/// bias. `out` is what comes out of the epilogue; what the layer itself put out is kept.
fn fused(what: &str, shape: Linear, out: usize, epilogue: impl Fn(Span) -> Epilogue<'static>) {
    let Linear { rows, inputs, outputs } = shape;
    let values = [uniform(1, rows * inputs), scaled(0.3, 2, outputs * inputs), uniform(3, outputs)];
    check(
        &format!("{what} of {shape:?}"),
        values,
        &uniform(4, out),
        rows * outputs,
        |device, t| {
            let [x, weight, bias] = t.inputs;
            let (x, weight, bias) = (x.into(), weight.into(), Some(bias));
            device.linear_forward(shape, x, weight, bias, None, epilogue(t.out), t.kept.into());
        },
        |device, t| {
            let ([x, weight, _], [d_x, d_weight, d_bias]) = (t.inputs, t.gradients);
            // The next layer passes its input's gradient on to this layer's output: here that layer is the identity.
            let width = out / rows;
            let next = Linear { rows, inputs: width, outputs: width };
            let identity: Vec<f32> =
                (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let identity = crate::devices::put(device, &identity).into();
            let through = match epilogue(t.out) {
                Epilogue::Gelu { .. } => Through::Gelu { x: t.kept.into() },
                _ => Through::Swiglu { gate_up: t.kept.into() },
            };
            let d_kept: Matrix = device.allocate(rows * outputs).unwrap().into();
            device.linear_backward_input(next, t.d_out.into(), identity, through, d_kept);
            device.linear_backward_input(shape, d_kept, weight.into(), Through::None, d_x.into());
            device.linear_backward_weight(shape, d_kept, x.into(), d_weight, Some(d_bias));
        },
    );
}

#[test]
fn layers_with_activations() {
    for (rows, inputs, outputs) in [(3, 17, 32), (77, 30, 64), (20, 9, 34)] {
        let shape = Linear { rows, inputs, outputs };
        fused("gelu", shape, rows * outputs, |out| Epilogue::Gelu { activated: out.into() });
        fused("swiglu", shape, rows * outputs / 2, |out| Epilogue::Swiglu { activated: out.into() });
    }
}

#[test]
fn layers_with_rotary_positions() {
    let positions: Vec<u32> = (0..77).map(|i| i * 37 % 500).collect();
    let turn = |inverse| Rope { positions: &positions, heads: 2, head_size: 32, theta: 10_000.0, inverse };
    let shape = Linear { rows: 77, inputs: 30, outputs: 96 };
    check(
        "a layer that turns",
        [uniform(1, 77 * 30), uniform(2, 96 * 30), uniform(3, 96)],
        &uniform(4, 77 * 96),
        0,
        |device, t| {
            let [x, weight, bias] = t.inputs;
            let (x, weight, turn) = (x.into(), weight.into(), Epilogue::Rope(turn(false)));
            device.linear_forward(shape, x, weight, Some(bias), None, turn, t.out.into());
        },
        |device, t| {
            let ([x, weight, _], [d_x, d_weight, d_bias]) = (t.inputs, t.gradients);
            device.rope(turn(true), Rows::columns(t.d_out, 77, 96, 0, 64));
            device.linear_backward_input(shape, t.d_out.into(), weight.into(), Through::None, d_x.into());
            device.linear_backward_weight(shape, t.d_out.into(), x.into(), d_weight, Some(d_bias));
        },
    );
}

#[test]
fn norms() {
    for (rows, width) in [(3, 17), (150, 256)] {
        let len = rows * width;
        let x: Vec<f32> = uniform(1, len).iter().map(|x| 0.5 + x).collect();
        let shape = Norm { kind: NormKind::Layer, epsilon: 1e-5, width };
        check(
            &format!("{shape:?} of {rows}"),
            [x.clone(), uniform(2, width), uniform(3, width)],
            &uniform(4, len),
            2 * rows,
            |device, t| {
                let [x, weight, bias] = t.inputs;
                device.norm_forward(shape, x, weight, Some(bias), t.out.into(), t.kept);
            },
            |device, t| {
                let ([x, weight, _], [d_x, d_weight, d_bias]) = (t.inputs, t.gradients);
                let d_out = t.d_out.into();
                device.norm_backward(shape, x, weight, t.kept, d_out, None, d_x, d_weight, Some(d_bias));
            },
        );
        // Beside a residual stream: what is put out is the norm, then the stream itself.
        let shape = Norm { kind: NormKind::Rms, ..shape };
        check(
            &format!("{shape:?} of {rows}"),
            [x, uniform(2, width)],
            &uniform(4, 2 * len),
            2 * rows,
            |device, t| {
                let [x, weight] = t.inputs;
                device.norm_forward(shape, x, weight, None, t.out.part(0, len).into(), t.kept);
                copy(device, x, t.out.part(len, len));
            },
            |device, t| {
                let ([x, weight], [d_x, d_weight]) = (t.inputs, t.gradients);
                let (d_normal, d_stream) = (t.d_out.part(0, len).into(), Some(t.d_out.part(len, len)));
                device.norm_backward(shape, x, weight, t.kept, d_normal, d_stream, d_x, d_weight, None);
            },
        );
    }
}

#[test]
fn activations() {
    for (rows, width) in [(3, 17), (160, 200)] {
        let len = rows * width;
        check(
            &format!("gelu of {len}"),
            [scaled(3.0, 1, len)],
            &uniform(2, len),
            0,
            |device, t| device.gelu_forward(len, t.inputs[0].into(), t.out.into()),
            |device, t| {
                device.gelu_backward(len, t.inputs[0].into(), t.d_out.into(), t.gradients[0].into());
            },
        );
        check(
            &format!("swiglu of {rows} x {width}"),
            [scaled(3.0, 1, 2 * len)],
            &uniform(2, len),
            0,
            |device, t| device.swiglu_forward(rows, width, t.inputs[0].into(), t.out.into()),
            |device, t| {
                let (gate_up, d_out) = (t.inputs[0].into(), t.d_out.into());
                device.swiglu_backward(rows, width, gate_up, d_out, t.gradients[0].into());
            },
        );
    }
}

#[test]
fn rotary_positions() {
    let positions: Vec<u32> = (0..90).map(|i| i * 37 % 500).collect();
    let (rows, width) = (positions.len(), 3 * 34);
    let shape = |inverse| Rope { positions: &positions, heads: 3, head_size: 34, theta: 10_000.0, inverse };
    let all = |span| Rows::columns(span, rows, width, 0, width);
    check(
        "rope",
        [uniform(1, rows * width)],
        &uniform(2, rows * width),
        0,
        |device, t| {
            copy(device, t.inputs[0], t.out);
            device.rope(shape(false), all(t.out));
        },
        |device, t| {
            copy(device, t.d_out, t.gradients[0]);
            device.rope(shape(true), all(t.gradients[0]));
        },
    );
}

#[test]
fn attention() {
    for (len, heads, kv_heads, head_size, apart) in
        [(5, 1, 1, 8, false), (70, 4, 2, 16, false), (70, 4, 2, 16, true), (65, 2, 2, 17, true)]
    {
        let documents: Vec<u32> = (0..2 * len as u32)
            .map(|i| [3, 20, 21, 60].iter().filter(|end| i % len as u32 >= **end).count() as u32)
            .collect();
        let shape = Attention {
            batch: 2,
            query_len: len,
            key_len: len,
            key_rows: len,
            heads,
            kv_heads,
            head_size,
            scale: 0.35,
            documents: apart.then_some(&documents),
        };
        let (q_len, kv_len) = (2 * len * heads * head_size, 2 * len * kv_heads * head_size);
        let rows = |span: Span| Rows::columns(span, 2 * len, span.len / (2 * len), 0, span.len / (2 * len));
        check(
            &format!("{len} {heads} {kv_heads} {head_size}, documents {apart}"),
            [scaled(2.0, 1, q_len), scaled(2.0, 2, kv_len), uniform(3, kv_len)],
            &uniform(4, q_len),
            2 * len * heads,
            |device, t| {
                let [q, k, v] = t.inputs.map(rows);
                device.attention_forward(shape, q, k, v, t.out.into(), t.kept);
            },
            |device, t| {
                let ([q, k, v], [d_q, d_k, d_v]) = (t.inputs.map(rows), t.gradients.map(rows));
                let (out, d_out) = (t.out.into(), t.d_out.into());
                device.attention_backward(shape, q, k, v, out, t.kept, d_out, d_q, d_k, d_v);
            },
        );
    }
}

#[test]
fn embeddings() {
    let tokens: Vec<u32> = (0..60).map(|i| i * i % 13).collect();
    let positions: Vec<u32> = (0..60).map(|i| i % 10).collect();
    let shape = Embedding { tokens: &tokens, positions: &positions, width: 33 };
    check(
        "embedding",
        [uniform(1, 13 * 33), uniform(2, 10 * 33)],
        &uniform(3, 60 * 33),
        0,
        |device, t| {
            let [table, places] = t.inputs;
            device.embedding_forward(shape, table.into(), Some(places.into()), t.out);
        },
        |device, t| device.embedding_backward(shape, t.d_out, t.gradients[0], Some(t.gradients[1])),
    );
}

#[test]
fn losses() {
    for (rows, vocabulary, width) in [(4, 5, 8), (70, 610, 640)] {
        let targets: Vec<u32> =
            (0..rows).map(|i| if i % 5 == 3 { IGNORED } else { (i * 31 % vocabulary) as u32 }).collect();
        let shape = CrossEntropy { targets: &targets, vocabulary, width };
        let run = |device: &dyn Device, logits: Span, t: &Tensors<1>, gradient: bool| {
            copy(device, t.inputs[0], logits);
            device.cross_entropy(shape, logits, t.out, gradient);
        };
        check(
            &format!("loss of {rows} x {vocabulary}"),
            [scaled(3.0, 1, rows * width)],
            // Its gradient is that of the sum.
            &vec![1.0; rows],
            rows * width,
            |device, t| run(device, t.kept, t, false),
            |device, t| run(device, t.gradients[0], t, true),
        );
    }
}

#[test]
fn losses_of_vocabularies_that_are_shared_out() {
    for edges in [&[0, 2, 5][..], &[0, 200, 350, 610]] {
        let (rows, vocabulary) = (7, edges[edges.len() - 1]);
        let targets: Vec<u32> =
            (0..rows).map(|i| if i % 5 == 3 { IGNORED } else { (i * 131 % vocabulary) as u32 }).collect();
        let run = |device: &dyn Device, t: &Tensors<1>, gradient: bool| {
            let split = Split { targets: &targets, edges, padding: 3, gradient };
            split.run(device, &get(device, t.inputs[0]))
        };
        check(
            &format!("loss of {edges:?}"),
            [scaled(3.0, 1, rows * vocabulary)],
            &vec![1.0; rows],
            0,
            |device, t| device.write(t.out, &run(device, t, false)[0]),
            |device, t| device.write(t.gradients[0], &run(device, t, true)[1]),
        );
    }
}

/// What [`check`] says of a gelu whose gradient is changed before it is looked at.
fn planted(change: impl Fn(&mut [f32])) {
    check(
        "planted",
        [scaled(3.0, 1, 200)],
        &uniform(2, 200),
        0,
        |device, t| device.gelu_forward(200, t.inputs[0].into(), t.out.into()),
        |device, t| {
            device.gelu_backward(200, t.inputs[0].into(), t.d_out.into(), t.gradients[0].into());
            let mut gradient = get(device, t.gradients[0]);
            change(&mut gradient);
            device.write(t.gradients[0], &gradient);
        },
    );
}

#[test]
fn a_right_gradient_passes() {
    planted(|_| ());
}

#[test]
#[should_panic(expected = "differences")]
fn a_gradient_a_little_too_large_is_found() {
    planted(|gradient| gradient.iter_mut().for_each(|g| *g *= 1.0 + FOUND as f32));
}

#[test]
#[should_panic(expected = "differences")]
fn one_missing_element_is_found() {
    planted(|gradient| gradient[77] = 0.0);
}

#[test]
#[should_panic(expected = "differences")]
fn two_elements_in_each_others_place_are_found() {
    planted(|gradient| gradient.swap(10, 11));
}
