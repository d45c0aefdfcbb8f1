//! Orthogonal updates.

use crate::devices::{all_f32, compare, cpu, get, kernels, put, reference, uniform};
use gradus_compute::{CpuDevice, Device, Muon, NewtonSchulz, Precision, Rounding};
use gradus_host::random::Stream;

const ITERATIONS: usize = 5;

/// What f32 may be off by: measured at most 4e-6.
const F32: f32 = 2e-5;

/// What bf16 may be off by: a sum in another order rounds an operand to its neighbour now and then, 2^-8 away, and the
/// polynomial's slope near 1 makes more of it. Measured at most 1.1e-2.
const BF16: f32 = 3e-2;

fn shape(rows: usize, columns: usize) -> NewtonSchulz {
    NewtonSchulz { rows, columns, iterations: ITERATIONS }
}

fn orthogonal(device: &dyn Device, shape: NewtonSchulz, matrix: &[f32]) -> Vec<f32> {
    let (from, to) = (put(device, matrix), device.allocate(shape.len()).unwrap());
    device.orthogonalise(shape, from, to);
    assert_eq!(get(device, from), matrix, "what is read stays");
    get(device, to)
}

/// A matrix whose singular values lie within a factor of three or so of each other: an eye, wide or tall, and noise.
fn well_conditioned(purpose: u64, shape: NewtonSchulz) -> Vec<f32> {
    let NewtonSchulz { rows, columns, .. } = shape;
    let noise = 0.5 / (rows.max(columns) as f32).sqrt();
    let mut matrix: Vec<f32> = uniform(purpose, shape.len()).iter().map(|x| noise * x).collect();
    (0..rows.min(columns)).for_each(|i| matrix[i * columns + i] += 1.0);
    matrix
}

/// Every size from 1 to 130 as number of rows and as number of columns, with others that are drawn.
fn sampled_shapes() -> Vec<NewtonSchulz> {
    let mut stream = Stream::new(5, 6);
    let mut drawn = || 1 + stream.next_below(130) as usize;
    let mut shapes = vec![shape(1, 1), shape(1, 130), shape(130, 1), shape(16, 16), shape(64, 64)];
    shapes.extend((1..=130).map(|side| shape(side, drawn())));
    shapes.extend((1..=130).map(|side| shape(drawn(), side)));
    shapes
}

/// Families on one thread, and the best of them on three.
fn devices(precision: Precision) -> Vec<CpuDevice> {
    let mut devices: Vec<_> = kernels().into_iter().map(|kernels| cpu(kernels, precision, 1)).collect();
    devices.push(cpu(*kernels().last().unwrap(), precision, 3));
    devices
}

/// Norm of a matrix.
fn norm(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|x| x * x).sum::<f32>().sqrt()
}

/// `relative`: the norm of what a matrix is off by, over the matrix's.
fn check(shapes: &[NewtonSchulz], precision: Precision, relative: f32) {
    let (oracle, devices) = (reference(precision), devices(precision));
    for (number, shape) in shapes.iter().enumerate() {
        let matrix = well_conditioned(number as u64, *shape);
        let right = orthogonal(&oracle, *shape, &matrix);
        for device in &devices {
            let got = orthogonal(device, *shape, &matrix);
            let off = norm(got.iter().zip(&right).map(|(got, right)| got - right));
            assert!(
                off <= relative * norm(right.iter().copied()),
                "{shape:?}, {}: off by {off}",
                device.describe()
            );
        }
    }
}

#[test]
fn sampled_shapes_in_f32() {
    check(&sampled_shapes(), Precision::F32, F32);
}

#[test]
fn sampled_shapes_in_bf16() {
    check(&sampled_shapes(), Precision::Bf16, BF16);
}

#[test]
fn shapes_that_are_shared_out_among_threads() {
    let shapes = [shape(300, 200), shape(192, 576), shape(511, 33)];
    check(&shapes, Precision::F32, F32);
    check(&shapes, Precision::Bf16, BF16);
}

/// Singular values by Jacobi's rotations of the smaller side's vectors (one-sided; Hestenes 1958), in f64.
fn singular_values(shape: NewtonSchulz, matrix: &[f32]) -> Vec<f64> {
    let NewtonSchulz { rows, columns, .. } = shape;
    let (count, len) = (rows.min(columns), rows.max(columns));
    let at = |i: usize, j: usize| if rows <= columns { i * columns + j } else { j * columns + i };
    let mut vectors: Vec<Vec<f64>> =
        (0..count).map(|i| (0..len).map(|j| f64::from(matrix[at(i, j)])).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for _ in 0..12 {
        for second in 1..count {
            for first in 0..second {
                let (head, tail) = vectors.split_at_mut(second);
                let (a, b) = (&mut head[first], &mut tail[0]);
                let angle = 0.5 * (2.0 * dot(a, b)).atan2(dot(a, a) - dot(b, b));
                let (sin, cos) = angle.sin_cos();
                for (a, b) in a.iter_mut().zip(b.iter_mut()) {
                    (*a, *b) = (cos * *a + sin * *b, cos * *b - sin * *a);
                }
            }
        }
    }
    vectors.iter().map(|vector| dot(vector, vector).sqrt()).collect()
}

#[test]
fn singular_values_come_near_one_whatever_they_were() {
    let sizes = [(1, 1), (1, 77), (77, 1), (2, 3), (17, 17), (40, 100), (100, 41), (33, 34)];
    let shapes = sizes.map(|(rows, columns)| shape(rows, columns));
    for precision in [Precision::F32, Precision::Bf16] {
        for device in devices(precision) {
            for shape in shapes {
                let (wide, even) = (uniform(7, shape.len()), well_conditioned(7, shape));
                let tiny: Vec<f32> = even.iter().map(|x| x * 1e-5).collect();
                // Square noise has singular values as small as one likes: it is the others that must come out right.
                let apart = shape.rows.max(shape.columns) >= 2 * shape.rows.min(shape.columns);
                for matrix in [apart.then_some(wide), Some(even), Some(tiny)].into_iter().flatten() {
                    let values = singular_values(shape, &orthogonal(&device, shape, &matrix));
                    let near = values.iter().all(|value| (0.6..1.3).contains(value));
                    assert!(near, "{shape:?}, {}: {values:?}", device.describe());
                }
            }
        }
    }
}

#[test]
fn singular_values_are_those_of_a_matrix_that_has_them() {
    let found = singular_values(shape(2, 3), &[0.0, 3.0, 0.0, 4.0, 0.0, 0.0]);
    assert!((found[0].max(found[1]) - 4.0).abs() < 1e-12 && (found[0].min(found[1]) - 3.0).abs() < 1e-12);
}

#[test]
fn a_matrix_of_zeros_stays_one() {
    for precision in [Precision::F32, Precision::Bf16] {
        for device in devices(precision) {
            for shape in [shape(1, 9), shape(9, 1), shape(30, 20)] {
                assert_eq!(orthogonal(&device, shape, &vec![0.0; shape.len()]), vec![0.0; shape.len()]);
            }
        }
    }
}

fn updates(device: &dyn Device, shape: NewtonSchulz, nesterov: bool) -> Vec<Vec<f32>> {
    let (parameter, gradient) =
        (put(device, &uniform(1, shape.len())), put(device, &well_conditioned(2, shape)));
    let moment = put(device, &vec![0.0; shape.len()]);
    for gradient_scale in [0.25, -0.5, 1.0] {
        let update = Muon {
            shape,
            learning_rate: 0.02,
            adjustment: 1.5,
            momentum: 0.95,
            nesterov,
            weight_decay: 0.1,
            gradient_scale,
            update: 1,
            rounding: Rounding::default(),
        };
        device.muon(update, parameter.into(), gradient, moment);
    }
    [parameter, moment].map(|span| get(device, span)).to_vec()
}

#[test]
fn updates_of_muon() {
    let devices = all_f32();
    for (rows, columns) in [(1, 1), (5, 3), (17, 64), (130, 50), (200, 200)] {
        for nesterov in [false, true] {
            // A step is 0.03 times an orthogonal matrix.
            compare(&format!("{rows} x {columns}"), &devices, 1e-6, 1e-6, |device| {
                updates(device, shape(rows, columns), nesterov)
            });
        }
    }
}

#[test]
fn neither_runs_nor_threads_change_a_bit() {
    let bits = |device: &CpuDevice| {
        let results = updates(device, shape(190, 300), true);
        results.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    for kernels in kernels() {
        for precision in [Precision::F32, Precision::Bf16] {
            let first = bits(&cpu(kernels, precision, 1));
            for threads in [1, 2, 3, 5] {
                let device = cpu(kernels, precision, threads);
                assert!(bits(&device) == first && bits(&device) == first, "{}", device.describe());
            }
        }
    }
}

#[test]
fn scratch_is_taken_once() {
    let device = cpu(kernels()[0], Precision::F32, 2);
    updates(&device, shape(100, 60), true);
    let taken = device.scratch_bytes();
    updates(&device, shape(60, 100), true);
    updates(&device, shape(33, 7), true);
    assert_eq!(device.scratch_bytes(), taken);
}
