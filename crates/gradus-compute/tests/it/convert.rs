//! Elements from one format to another: the same bits on every device.

use crate::devices::{all_f32, bits, cpu, get, kernels, put, reference, room, uniform, with_reference};
use gradus_compute::{Device, Format, Matrix, Precision};
use half::bf16;

/// Lengths around vectors and places, none, and one that is shared out among threads.
const LENGTHS: [usize; 13] = [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 65, 1000, 300_001];

/// Numbers that need care: none, infinite, subnormal, ties to either side, those that round beyond the largest.
const EDGES: [u32; 18] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x0000_8000,
    0x0000_8001,
    0x0001_8000,
    0x807f_ffff,
    0x3f80_8000,
    0x3f81_8000,
    0x3f80_8001,
    0x3f80_7fff,
    0xbf81_8000,
    0x7f7f_7fff,
    0x7f7f_8000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xff80_0001,
];

/// Numbers of all kinds.
fn numbers(len: usize) -> Vec<f32> {
    let plain = uniform(1, len).into_iter().enumerate();
    plain.map(|(i, x)| if i % 5 == 4 { f32::from_bits(EDGES[i / 5 % EDGES.len()]) } else { x }).collect()
}

/// The bits of `values` in bf16, there and back, and copied in bf16, by a device; where it writes there were ones before.
fn there_and_back(device: &dyn Device, values: &[f32]) -> [Vec<u32>; 3] {
    let matrix = |format| {
        let matrix: Matrix = room(device, format, values.len());
        device.fill(matrix.span, f32::from_bits(u32::MAX));
        matrix
    };
    let [halves, copied, back] = [Format::Bf16, Format::Bf16, Format::F32].map(matrix);
    device.convert(put(device, values).into(), halves);
    device.convert(halves, copied);
    device.convert(halves, back);
    [halves, copied, back].map(|matrix| bits(&get(device, matrix.span)))
}

#[test]
fn conversions_are_to_nearest_even_and_exact_back() {
    let oracle = reference(Precision::F32);
    let more = kernels().into_iter().map(|kernels| cpu(kernels, Precision::Bf16, 3));
    let devices: Vec<_> = all_f32().into_iter().chain(more).collect();
    for len in LENGTHS {
        let values = numbers(len);
        let rounded: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
        let word = |pair: &[bf16]| {
            u32::from(pair[0].to_bits()) | pair.get(1).map_or(0, |high| u32::from(high.to_bits()) << 16)
        };
        let halves: Vec<u32> = rounded.chunks(2).map(word).collect();
        let back = rounded.iter().map(|x| x.to_f32().to_bits()).collect();
        let right = [halves.clone(), halves, back];
        for device in with_reference(&devices, &oracle) {
            assert!(there_and_back(device, &values) == right, "{len}, {}", device.describe());
        }
    }
}

#[test]
fn elements_in_one_format_are_copied_as_they_are() {
    for device in all_f32() {
        let values = numbers(300_001);
        let (from, to) = (put(&device, &values), device.allocate(values.len()).unwrap());
        device.convert(from.into(), to.into());
        assert!(bits(&get(&device, to)) == bits(&values), "{}", device.describe());
    }
}
