//! Devices to compare, numbers to compare them on, and the comparison.

use gradus_compute::cpu::Kernels;
use gradus_compute::{CpuDevice, Device, Format, Matrix, Precision, Reference};
use gradus_host::random::Stream;
use gradus_memory::Span;

/// Room for the tensors of one test.
const CAPACITY: usize = 1 << 26;

/// Kernels that this processor has.
pub fn kernels() -> Vec<Kernels> {
    Kernels::ALL.into_iter().filter(|kernels| kernels.supported()).collect()
}

/// A device of these kernels.
pub fn cpu(kernels: Kernels, precision: Precision, threads: usize) -> CpuDevice {
    CpuDevice::with_kernels(threads, precision, CAPACITY, kernels).unwrap()
}

/// A device for each family, in f32, one thread and two.
pub fn all_f32() -> Vec<CpuDevice> {
    kernels().into_iter().flat_map(|k| [1, 2].map(|threads| cpu(k, Precision::F32, threads))).collect()
}

pub fn reference(precision: Precision) -> Reference {
    Reference::new(precision, CAPACITY).unwrap()
}

/// Fast devices, and the reference.
pub fn with_reference<'a>(
    devices: &'a [CpuDevice],
    oracle: &'a Reference,
) -> impl Iterator<Item = &'a dyn Device> {
    devices.iter().map(|device| device as &dyn Device).chain([oracle as &dyn Device])
}

/// What tells -0 from 0, and keeps what is no number.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Uniform in [-1, 1), the same for the same purpose.
pub fn uniform(purpose: u64, len: usize) -> Vec<f32> {
    let mut stream = Stream::new(17, purpose);
    (0..len).map(|_| (stream.next_f64() * 2.0 - 1.0) as f32).collect()
}

pub fn put(device: &dyn Device, values: &[f32]) -> Span {
    let span = device.allocate(values.len()).unwrap();
    device.write(span, values);
    span
}

pub fn get(device: &dyn Device, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    device.read(span, &mut values);
    values
}

/// Values, rounded, in a matrix of bf16.
pub fn put_halves(device: &dyn Device, values: &[f32]) -> Matrix {
    let span = device.allocate(Format::Bf16.places(values.len())).unwrap();
    device.write_bf16(span, values);
    Matrix { span, format: Format::Bf16 }
}

/// A matrix of a format, of `len` elements.
pub fn room(device: &dyn Device, format: Format, len: usize) -> Matrix {
    Matrix { span: device.allocate(format.places(len)).unwrap(), format }
}

/// The first `len` elements of a matrix.
pub fn get_matrix(device: &dyn Device, matrix: Matrix, len: usize) -> Vec<f32> {
    let values = get(device, matrix.span);
    let widen = |bits: u32| [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)];
    match matrix.format {
        Format::F32 => values,
        Format::Bf16 => values.into_iter().flat_map(|pair| widen(pair.to_bits())).take(len).collect(),
    }
}

/// Asserts that each pair of elements differs by at most `absolute + relative * |right|`, and is finite.
#[track_caller]
pub fn assert_close(what: &str, got: &[f32], right: &[f32], absolute: f32, relative: f32) {
    assert_eq!(got.len(), right.len(), "{what}");
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        let allowed = absolute + relative * right.abs();
        assert!((got - right).abs() <= allowed, "{what}: element {i} is {got}, not {right} +- {allowed}");
    }
}

/// Runs `script` on the reference and on each device, and compares what it returns, tensor by tensor.
#[track_caller]
pub fn compare(
    what: &str,
    devices: &[CpuDevice],
    absolute: f32,
    relative: f32,
    script: impl Fn(&dyn Device) -> Vec<Vec<f32>>,
) {
    let right = script(&reference(Precision::F32));
    for device in devices {
        let got = script(device);
        assert_eq!(got.len(), right.len());
        for (i, (got, right)) in got.iter().zip(&right).enumerate() {
            assert_close(
                &format!("{what}, tensor {i}, {}", device.describe()),
                got,
                right,
                absolute,
                relative,
            );
        }
    }
}
