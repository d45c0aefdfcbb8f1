//! What a linear layer's output goes through on its way, and its gradient on its way back: as operations apart would have it.

use crate::devices::{assert_close, cpu, get_matrix, kernels, put, put_halves, reference, room, uniform};
use gradus_compute::{
    CpuDevice, Device, Epilogue, Format, Linear, Matrix, Precision, Rope, Through, Use, Weight,
};

/// Rows, inputs, outputs: around tiles and vectors of all families, odd ones, few rows, more than one block each way, and
/// a depth that no other product has in one block.
const SHAPES: [[usize; 3]; 12] = [
    [1, 9, 64],
    [3, 64, 96],
    [5, 33, 32],
    [14, 64, 64],
    [17, 70, 192],
    [33, 16, 66],
    [40, 130, 128],
    [65, 31, 50],
    [90, 48, 34],
    [100, 384, 160],
    [130, 1000, 128],
    [600, 40, 1280],
];

/// Numbers of size 0.3, so that sums of products are of size 1 and activations bend.
fn inputs(purpose: u64, len: usize) -> Vec<f32> {
    uniform(purpose, len).iter().map(|x| 0.3 * x).collect()
}

fn kept(device: &dyn Device, format: Format, values: &[f32]) -> Matrix {
    match format {
        Format::F32 => put(device, values).into(),
        Format::Bf16 => put_halves(device, values),
    }
}

/// Outputs of all epilogues, and gradients through all functions.
fn script(device: &dyn Device, [rows, inputs_len, outputs]: [usize; 3], format: Format) -> Vec<Vec<f32>> {
    let shape = Linear { rows, inputs: inputs_len, outputs };
    let mut results = Vec::new();
    let len = rows * outputs;
    let x = kept(device, format, &inputs(1, rows * inputs_len));
    let weight = kept(device, format, &inputs(2, outputs * inputs_len));
    let bias = put(device, &inputs(3, outputs));
    let (out, activated) = (room(device, format, len), room(device, format, len));
    let half = Matrix { span: activated.span.part(0, format.places(len / 2)), format };
    let positions: Vec<u32> = (0..rows).map(|row| (row * 7 % 50) as u32).collect();
    let turn =
        |heads, head_size| Rope { positions: &positions, heads, head_size, theta: 100.0, inverse: false };
    let mut forward = |epilogue: Epilogue, second: Option<(Matrix, usize)>| {
        device.linear_forward(shape, x, weight.into(), Some(bias), None, epilogue, out);
        let values = get_matrix(device, out, len);
        let usage = Use::Forward { apart: apart(epilogue, outputs) };
        device.linear_forward(
            shape,
            x,
            prepared(device, shape, usage, format),
            Some(bias),
            None,
            epilogue,
            out,
        );
        // A few rows are multiplied another way unless the weight is prepared.
        if rows > 8 {
            assert_eq!(get_matrix(device, out, len), values, "prepared {usage:?} of {shape:?}");
        }
        results.push(values);
        results.extend(second.map(|(matrix, len)| get_matrix(device, matrix, len)));
    };
    forward(Epilogue::None, None);
    forward(Epilogue::Gelu { activated }, Some((activated, len)));
    if outputs.is_multiple_of(2) {
        forward(Epilogue::Swiglu { activated: half }, Some((half, len / 2)));
        forward(Epilogue::Rope(turn(1, outputs)), None);
    }
    if outputs.is_multiple_of(32) {
        forward(Epilogue::Rope(turn(outputs / 32, 32)), None);
        forward(Epilogue::Rope(turn(outputs / 32 - 1, 32)), None);
    }
    results.extend(gradients(device, shape, format));
    results
}

/// How far apart columns are that an epilogue takes together.
fn apart(epilogue: Epilogue, outputs: usize) -> usize {
    match epilogue {
        Epilogue::None | Epilogue::Gelu { .. } => 0,
        Epilogue::Swiglu { .. } => outputs / 2,
        Epilogue::Rope(turn) => turn.head_size / 2,
    }
}

/// The weight that all of these layers have, prepared from how it is kept.
fn prepared(device: &dyn Device, shape: Linear, usage: Use, format: Format) -> Weight {
    let weight = kept(device, format, &inputs(2, shape.outputs * shape.inputs));
    let place = device.allocate(device.prepared_len(shape, usage)).unwrap();
    device.prepare(shape, usage, weight, place);
    Weight::Prepared(place)
}

fn gradients(device: &dyn Device, shape: Linear, format: Format) -> Vec<Vec<f32>> {
    let Linear { rows, inputs: width, outputs } = shape;
    let (d_out, weight) = (inputs(4, rows * outputs), inputs(2, outputs * width));
    let (d_out, weight) = (kept(device, format, &d_out), kept(device, format, &weight));
    let before = kept(device, format, &uniform(5, 2 * rows * width));
    let first = Matrix { span: before.span.part(0, format.places(rows * width)), format };
    [(Through::None, 1), (Through::Gelu { x: first }, 1), (Through::Swiglu { gate_up: before }, 2)]
        .map(|(through, times)| {
            let len = times * rows * width;
            let d_x = room(device, format, len);
            device.linear_backward_input(shape, d_out, weight.into(), through, d_x);
            let values = get_matrix(device, d_x, len);
            device.linear_backward_input(
                shape,
                d_out,
                prepared(device, shape, Use::Backward, format),
                through,
                d_x,
            );
            assert_eq!(get_matrix(device, d_x, len), values, "a prepared weight of {shape:?}");
            values
        })
        .to_vec()
}

fn devices(precision: Precision) -> Vec<CpuDevice> {
    let threads = |kernels| [1, 3].map(|threads| cpu(kernels, precision, threads));
    kernels().into_iter().flat_map(threads).collect()
}

fn check(precision: Precision, format: Format) {
    for shape in SHAPES {
        let right = script(&reference(precision), shape, format);
        for device in devices(precision) {
            let got = script(&device, shape, format);
            assert_eq!(got.len(), right.len());
            for (i, (got, right)) in got.iter().zip(&right).enumerate() {
                // Sums of up to 1,280 products of size 0.09 wander by a few units in the last place of 4, and functions of
                // them by no more than three times that; a shape whose epilogue cannot be fused rounds before it and
                // after it, which is two half units in the last of bf16's eight places.
                let relative = if format == Format::F32 { 4.0 * f32::EPSILON } else { 1.0 / 64.0 };
                let absolute = if format == Format::F32 { 1e-5 } else { 1e-2 };
                let what = format!("result {i} of {shape:?} in {format:?}, {}", device.describe());
                assert_close(&what, got, right, absolute, relative);
            }
        }
    }
}

#[test]
fn in_f32() {
    check(Precision::F32, Format::F32);
}

#[test]
fn in_bf16() {
    check(Precision::Bf16, Format::Bf16);
}

#[test]
fn products_in_bf16_of_what_is_kept_in_f32() {
    check(Precision::Bf16, Format::F32);
}

#[test]
fn elements_beyond_a_matrix_stay_what_they_were() {
    // An odd number of columns in bf16: the last element of the matrix shares its place with a stranger.
    for kernels in kernels() {
        let device = cpu(kernels, Precision::Bf16, 2);
        let shape = Linear { rows: 7, inputs: 8, outputs: 33 };
        let (x, weight) = (put(&device, &[0.5; 56]).into(), put(&device, &[2.0; 264]).into());
        let around = put_halves(&device, &[3.0; 7 * 33 + 1]);
        device.linear_forward(shape, x, weight, None, None, Epilogue::None, around);
        let got = get_matrix(&device, around, 7 * 33 + 1);
        assert_eq!(got[..7 * 33], [8.0; 7 * 33]);
        assert_eq!(got[7 * 33], 3.0);
    }
}

#[test]
#[should_panic(expected = "a residual is added in f32")]
fn a_residual_with_an_epilogue_is_a_bug() {
    let device = cpu(kernels()[0], Precision::F32, 1);
    let [x, weight, residual, out] = [(); 4].map(|()| device.allocate(16).unwrap());
    let shape = Linear { rows: 4, inputs: 4, outputs: 4 };
    let epilogue = Epilogue::Gelu { activated: weight.into() };
    device.linear_forward(shape, x.into(), weight.into(), None, Some(residual), epilogue, out.into());
}
