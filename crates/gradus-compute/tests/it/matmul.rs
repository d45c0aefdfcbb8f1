//! Matrix products of all shapes.

use crate::devices::{assert_close, cpu, get, kernels, put, reference, uniform};
use gradus_compute::{CpuDevice, Device, Format, Linear, Matrix, Precision};
use gradus_host::random::Stream;
use gradus_memory::Span;

/// Largest size of a dim here.
const LARGEST: usize = 130;

/// Room for the operands and results of one shape after another.
struct Tensors<'a> {
    device: &'a dyn Device,
    spans: [Span; 8],
}

impl<'a> Tensors<'a> {
    fn new(device: &'a dyn Device, largest: usize) -> Self {
        // One more than fits: the end of an operand is the end of what was handed out, and no multiple of a cache line.
        Self { device, spans: std::array::from_fn(|_| device.allocate(largest * largest + 1).unwrap()) }
    }

    /// All uses of a linear layer of this shape: forward plain, with bias, with residual, in place, with weights in bf16;
    /// gradients of the input, set and added to; gradients of weight and bias.
    fn run(&self, shape: Linear) -> Vec<Vec<f32>> {
        let Linear { rows, inputs, outputs } = shape;
        let [x, weight, d_out, bias, out, d_x, d_weight, halves] = self.spans;
        let last = |span: Span, len: usize| span.part(span.len - len, len);
        let (x, weight) = (last(x, rows * inputs), last(weight, outputs * inputs));
        let (d_out, bias, out) =
            (last(d_out, rows * outputs), last(bias, outputs), last(out, rows * outputs));
        let (d_x, d_weight) = (last(d_x, rows * inputs), last(d_weight, outputs * inputs));
        for (i, span) in [x, weight, d_out, bias, d_x, d_weight].into_iter().enumerate() {
            self.device.write(span, &uniform(i as u64, span.len));
        }
        let mut results = Vec::new();
        self.device.fill(out, f32::NAN);
        for (bias, residual) in
            [(None, None), (Some(bias), None), (Some(bias), Some(d_out)), (None, Some(out))]
        {
            self.device.linear_forward(shape, x, weight.into(), bias, residual, out);
            results.push(get(self.device, out));
        }
        let halves = Matrix { span: last(halves, Format::Bf16.places(weight.len)), format: Format::Bf16 };
        self.device.write_bf16(halves.span, &uniform(1, weight.len));
        self.device.linear_forward(shape, x, halves, Some(bias), None, out);
        results.push(get(self.device, out));
        self.device.linear_backward_input(shape, d_out, weight, d_x, true);
        results.push(get(self.device, d_x));
        self.device.linear_backward_input(shape, d_out, weight, d_x, false);
        results.push(get(self.device, d_x));
        self.device.linear_backward_weight(shape, d_out, x, d_weight, None);
        self.device.linear_backward_weight(shape, d_out, x, d_weight, Some(bias));
        results.extend([get(self.device, d_weight), get(self.device, bias)]);
        results
    }
}

fn devices(precision: Precision) -> Vec<CpuDevice> {
    let mut devices: Vec<_> = kernels().into_iter().map(|kernels| cpu(kernels, precision, 1)).collect();
    devices.push(cpu(*kernels().last().unwrap(), precision, 3));
    devices
}

fn check(shapes: &[[usize; 3]], precision: Precision, largest: usize) {
    let oracle = reference(precision);
    let right = Tensors::new(&oracle, largest);
    let devices = devices(precision);
    let tensors: Vec<_> = devices.iter().map(|device| Tensors::new(device, largest)).collect();
    for &[rows, outputs, inputs] in shapes {
        let shape = Linear { rows, inputs, outputs };
        let right = right.run(shape);
        for tensors in &tensors {
            let got = tensors.run(shape);
            for (use_of, (got, right)) in got.iter().zip(&right).enumerate() {
                // Operands below 1 in size; products of bf16 are exact in f32. A sum of n such terms, made in any
                // order, wanders by about n/4 half units in the last place of 1; four units are for what is added.
                // The weight's gradient is summed twice over.
                let terms = 2 * rows.max(inputs).max(outputs);
                let absolute = f32::EPSILON * (4 + terms) as f32;
                let what =
                    format!("use {use_of} of {rows} x {outputs} x {inputs}, {}", tensors.device.describe());
                assert_close(&what, got, right, absolute, 4.0 * f32::EPSILON);
            }
        }
    }
}

fn small_shapes() -> Vec<[usize; 3]> {
    let sides = 1..=20;
    sides.clone().flat_map(|m| sides.clone().flat_map(move |n| (1..=20).map(move |k| [m, n, k]))).collect()
}

/// Others up to 130, so drawn that every size of every dim occurs.
fn sampled_shapes(count: usize) -> Vec<[usize; 3]> {
    let mut stream = Stream::new(3, 4);
    let mut shapes = Vec::new();
    for i in 0..count.max(LARGEST) {
        let mut draw = || 1 + stream.next_below(LARGEST as u64) as usize;
        let side = i % LARGEST + 1;
        shapes.extend([[side, draw(), draw()], [draw(), side, draw()], [draw(), draw(), side]]);
    }
    shapes
}

#[test]
fn all_small_shapes_in_f32() {
    check(&small_shapes(), Precision::F32, 20);
}

#[test]
fn all_small_shapes_in_bf16() {
    check(&small_shapes(), Precision::Bf16, 20);
}

#[test]
fn sampled_shapes_in_f32() {
    check(&sampled_shapes(LARGEST), Precision::F32, LARGEST);
}

#[test]
fn sampled_shapes_in_bf16() {
    check(&sampled_shapes(LARGEST), Precision::Bf16, LARGEST);
}

#[test]
fn shapes_beyond_one_block_of_each_dim() {
    let shapes = [[300, 1100, 33], [15, 33, 1700], [450, 40, 800], [1, 1100, 900], [8, 37, 2000]];
    for precision in [Precision::F32, Precision::Bf16] {
        check(&shapes, precision, 1500);
    }
}

#[test]
fn a_residual_of_nan_or_a_foreign_column_stays_out() {
    // What a panel is padded with must not leak: an operand surrounded by NaN gives finite results.
    for kernels in kernels() {
        for precision in [Precision::F32, Precision::Bf16] {
            let device = cpu(kernels, precision, 1);
            let whole = put(&device, &vec![f32::NAN; 100_000]);
            let shape = Linear { rows: 13, inputs: 17, outputs: 19 };
            let (x, weight) = (whole.part(1000, 13 * 17), whole.part(30_000, 19 * 17));
            device.fill(x, 0.5);
            device.fill(weight, 2.0);
            let out = device.allocate(13 * 19).unwrap();
            device.linear_forward(shape, x, weight.into(), None, None, out);
            assert_eq!(get(&device, out), vec![17.0; 13 * 19]);
            device.linear_backward_weight(shape, out, x, weight, None);
            assert_eq!(get(&device, weight), vec![2.0 + 13.0 * 17.0 / 2.0; 19 * 17]);
            assert!(get(&device, whole.part(30_000 + 19 * 17, 100)).iter().all(|x| x.is_nan()));
        }
    }
}
