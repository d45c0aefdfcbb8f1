//! Matrix products of all shapes.

use crate::devices::{assert_close, cpu, get, get_matrix, kernels, put, reference, uniform};
use gradus_compute::{CpuDevice, Device, Epilogue, Format, Linear, Matrix, Precision, Through};
use gradus_host::random::Stream;
use gradus_memory::Span;

/// Largest size of a dim here.
const LARGEST: usize = 130;

/// Room for the operands and results of one shape after another.
struct Tensors<'a> {
    device: &'a dyn Device,
    spans: [Span; 12],
}

impl<'a> Tensors<'a> {
    fn new(device: &'a dyn Device, largest: usize) -> Self {
        // One more than fits: the end of an operand is the end of what was handed out, and no multiple of a cache line.
        Self { device, spans: std::array::from_fn(|_| device.allocate(largest * largest + 1).unwrap()) }
    }

    /// All uses of a linear layer of this shape: forward plain, with bias, with residual, in place; gradients of the input,
    /// of weight and bias; then all of it with every matrix in bf16.
    fn run(&self, shape: Linear) -> Vec<Tensor> {
        let mut results = self.run_single(shape);
        results.extend(self.run_halves(shape));
        results
    }

    fn run_single(&self, shape: Linear) -> Vec<Tensor> {
        let Linear { rows, inputs, outputs } = shape;
        let [x, weight, d_out, bias, out, d_x, d_weight, ..] = self.spans;
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
            let (x, weight) = (x.into(), weight.into());
            self.device.linear_forward(shape, x, weight, bias, residual, Epilogue::None, out.into());
            results.push(get(self.device, out));
        }
        self.device.linear_backward_input(shape, d_out.into(), weight.into(), Through::None, d_x.into());
        results.push(get(self.device, d_x));
        self.device.linear_backward_weight(shape, d_out.into(), x.into(), d_weight, None);
        self.device.linear_backward_weight(shape, d_out.into(), x.into(), d_weight, Some(bias));
        results.extend([get(self.device, d_weight), get(self.device, bias)]);
        results.into_iter().map(|values| (values, Format::F32)).collect()
    }

    fn run_halves(&self, shape: Linear) -> Vec<Tensor> {
        let Linear { rows, inputs, outputs } = shape;
        let [_, _, _, bias, out, _, d_weight, x, weight, d_out, halves, d_x] = self.spans;
        let (x, weight) = (last_half(x, rows * inputs), last_half(weight, outputs * inputs));
        let (d_out, halves) = (last_half(d_out, rows * outputs), last_half(halves, rows * outputs));
        let (bias, d_x) = (last(bias, outputs), last_half(d_x, rows * inputs));
        let (out, d_weight) = (last(out, rows * outputs), last(d_weight, outputs * inputs));
        let lens = [rows * inputs, outputs * inputs, rows * outputs];
        for (i, (matrix, len)) in [x, weight, d_out].into_iter().zip(lens).enumerate() {
            self.device.write_bf16(matrix.span, &uniform(i as u64, len));
        }
        self.device.write(bias, &uniform(3, outputs));
        self.device.write(d_weight, &uniform(4, d_weight.len));
        self.device.linear_forward(shape, x, weight.into(), Some(bias), None, Epilogue::None, out.into());
        self.device.linear_forward(shape, x, weight.into(), Some(bias), None, Epilogue::None, halves);
        self.device.linear_backward_input(shape, d_out, weight.into(), Through::None, d_x);
        self.device.linear_backward_weight(shape, d_out, x, d_weight, Some(bias));
        let halves = [(halves, lens[2]), (d_x, lens[0])]
            .map(|(m, len)| (get_matrix(self.device, m, len), Format::Bf16));
        let single = [out, d_weight, bias].map(|span| (get(self.device, span), Format::F32));
        halves.into_iter().chain(single).collect()
    }
}

/// Values, and how they were kept.
type Tensor = (Vec<f32>, Format);

fn last(span: Span, len: usize) -> Span {
    span.part(span.len - len, len)
}

fn last_half(span: Span, len: usize) -> Matrix {
    Matrix { span: last(span, Format::Bf16.places(len)), format: Format::Bf16 }
}

/// What one rounding to bf16 may make of a difference in the last place of f32.
fn relative(format: Format) -> f32 {
    match format {
        Format::F32 => 4.0 * f32::EPSILON,
        Format::Bf16 => 1.0 / 128.0,
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
            for (use_of, ((got, format), (right, _))) in got.iter().zip(&right).enumerate() {
                // Operands below 1 in size; products of bf16 are exact in f32. A sum of n such terms, made in any
                // order, wanders by about n/4 half units in the last place of 1; four units are for what is added.
                // The weight's gradient is summed twice over.
                let terms = 2 * rows.max(inputs).max(outputs);
                let absolute = f32::EPSILON * (4 + terms) as f32;
                let what =
                    format!("use {use_of} of {rows} x {outputs} x {inputs}, {}", tensors.device.describe());
                assert_close(&what, got, right, absolute, relative(*format));
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
            device.linear_forward(shape, x.into(), weight.into(), None, None, Epilogue::None, out.into());
            assert_eq!(get(&device, out), vec![17.0; 13 * 19]);
            device.linear_backward_weight(shape, out.into(), x.into(), weight, None);
            assert_eq!(get(&device, weight), vec![2.0 + 13.0 * 17.0 / 2.0; 19 * 17]);
            assert!(get(&device, whole.part(30_000 + 19 * 17, 100)).iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn a_layer_without_outputs_has_no_gradient() {
    for precision in [Precision::F32, Precision::Bf16] {
        let oracle = reference(precision);
        let devices = devices(precision);
        for device in devices.iter().map(|device| device as &dyn Device).chain([&oracle as &dyn Device]) {
            let shape = Linear { rows: 7, inputs: 5, outputs: 0 };
            let (weight, out) = (put(device, &[]), put(device, &[]));
            let (x, d_x) = (put(device, &uniform(1, 35)), put(device, &[f32::NAN; 35]));
            device.linear_forward(shape, x.into(), weight.into(), None, None, Epilogue::None, out.into());
            device.linear_backward_weight(shape, out.into(), x.into(), weight, None);
            device.linear_backward_input(shape, out.into(), weight.into(), Through::None, d_x.into());
            assert_eq!(get(device, d_x), [0.0; 35], "{}", device.describe());
        }
    }
}
