//! Updates of parameters in bf16, rounded at random.

use crate::devices::{all_f32, bits, cpu, get, get_matrix, kernels, put, put_halves, reference, uniform};
use gradus_compute::cpu::Kernels;
use gradus_compute::{AdamW, CpuDevice, Device, Format, Matrix, Muon, NewtonSchulz, Precision, Rounding};
use half::bf16;

/// Lengths around vectors, and one that is shared out among threads.
const LENGTHS: [usize; 9] = [1, 2, 7, 15, 16, 17, 33, 1000, 100_001];

/// An update that takes parameters a little towards zero; what is beside the decay follows from the gradient.
pub fn adamw(update: u64, rounding: Rounding) -> AdamW {
    AdamW {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        update,
        gradient_scale: 0.5,
        rounding,
    }
}

fn muon(shape: NewtonSchulz, update: u64, rounding: Rounding) -> Muon {
    Muon {
        shape,
        learning_rate: 0.02,
        adjustment: 1.5,
        momentum: 0.95,
        nesterov: true,
        weight_decay: 0.1,
        gradient_scale: 1.0,
        update,
        rounding,
    }
}

/// Values that bf16 holds.
fn halves(purpose: u64, len: usize) -> Vec<f32> {
    uniform(purpose, len).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

/// Parameters after some updates by AdamW.
fn updated(
    device: &dyn Device,
    values: &[f32],
    gradient: &[f32],
    updates: u64,
    rounding: Rounding,
) -> Vec<f32> {
    let (parameter, gradient) = (put_halves(device, values), put(device, gradient));
    let [m, v] = [(); 2].map(|()| put(device, &vec![0.0; values.len()]));
    for update in 1..=updates {
        device.adamw(adamw(update, rounding), parameter, gradient, m, v);
    }
    get_matrix(device, parameter, values.len())
}

/// The same in parts that begin at these elements, as ranks hold them.
fn updated_in_parts(
    device: &dyn Device,
    values: &[f32],
    gradient: &[f32],
    rounding: Rounding,
    edges: &[usize],
) -> Vec<f32> {
    let part = |edge: &[usize]| {
        let (range, first) = (edge[0]..edge[1], rounding.first + edge[0] as u64);
        updated(device, &values[range.clone()], &gradient[range], 3, Rounding { first, ..rounding })
    };
    edges.windows(2).flat_map(part).collect()
}

#[test]
fn all_kernels_round_as_the_reference_does() {
    let oracle = reference(Precision::F32);
    for len in LENGTHS {
        // Without a gradient only the decay moves a parameter: one multiplication, the same on every device.
        let (values, zeros) = (uniform(1, len), vec![0.0; len]);
        for first in [0, 6, (1 << 32) - 20, (1 << 32) - 1, (7 << 32) - 50_000] {
            let rounding = Rounding { seed: 11, first };
            let right = bits(&updated(&oracle, &values, &zeros, 3, rounding));
            for device in all_f32() {
                let got = bits(&updated(&device, &values, &zeros, 3, rounding));
                assert!(got == right, "{len} from {first} on, {}", device.describe());
            }
        }
    }
}

#[test]
fn neither_threads_nor_cuts_change_a_bit() {
    let len = 100_002;
    let (values, gradient) = (uniform(1, len), uniform(2, len));
    let rounding = Rounding { seed: 3, first: (1 << 32) - 40_000 };
    for kernels in kernels() {
        let right = bits(&updated(&cpu(kernels, Precision::F32, 1), &values, &gradient, 3, rounding));
        for threads in [1, 2, 3, 5] {
            let device = cpu(kernels, Precision::Bf16, threads);
            for edges in [&[0, len][..], &[0, 2, 34, 50_000, len], &[0, 33_334, 66_668, len - 2, len]] {
                let got = bits(&updated_in_parts(&device, &values, &gradient, rounding, edges));
                assert!(got == right, "{edges:?}, {}", device.describe());
            }
        }
    }
}

#[test]
fn vectors_of_all_widths_come_to_the_same_bits() {
    let (values, gradient) = (uniform(1, 10_001), uniform(2, 10_001));
    let rounding = Rounding { seed: 3, first: 0 };
    // Those of plain Rust round a product before they add to it.
    let fused = kernels().into_iter().filter(|kernels| *kernels != Kernels::Plain);
    let results = fused.map(|k| bits(&updated(&cpu(k, Precision::Bf16, 1), &values, &gradient, 5, rounding)));
    let results: Vec<_> = results.collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn on_average_nothing_is_lost() {
    const SEEDS: usize = 4000;
    // Each decays by a thousandth: by 1/8 to 1/4 of the distance of neighbours, which is 2^-8 to 2^-7 of the value.
    let values = [1.0f32, -1.0, 1.5, 0.75, -0.0078125, 3.0, 100.5, -1e-30];
    let zeros = [0.0; 8];
    for device in [&all_f32()[0] as &dyn Device, &reference(Precision::F32)] {
        let mut sums = [0.0f64; 8];
        for seed in 0..SEEDS as u64 {
            let got = updated(device, &values, &zeros, 1, Rounding { seed, first: 0 });
            sums.iter_mut().zip(got).for_each(|(sum, x)| *sum += f64::from(x));
        }
        for (value, sum) in values.iter().zip(sums) {
            let exact = f64::from(bf16::from_f32(*value).to_f32() * (1.0 - 0.01 * 0.1f32));
            let distance = exact.abs().log2().floor().exp2() / 128.0;
            // A coin between neighbours deviates by at most half their distance; five standard errors.
            let allowed = 5.0 * 0.5 * distance / (SEEDS as f64).sqrt();
            let mean = sum / SEEDS as f64;
            assert!((mean - exact).abs() < allowed, "{value}: {mean} {exact} +- {allowed}");
            let nearest = f64::from(bf16::from_f32(exact as f32).to_f32());
            assert!((nearest - exact).abs() > allowed, "{value}: the nearest would pass, too");
        }
    }
}

/// All numbers of bf16, those that are none and infinite ones too.
fn all_of_bf16() -> Vec<f32> {
    (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect()
}

#[test]
fn what_bf16_holds_never_moves() {
    let (values, zeros) = (all_of_bf16(), vec![0.0; 65_536]);
    for device in all_f32() {
        for seed in 0..5 {
            let (parameter, gradient) = (put_halves(&device, &values), put(&device, &zeros));
            let [m, v] = [(); 2].map(|()| put(&device, &zeros));
            let still = AdamW { learning_rate: 0.0, ..adamw(1, Rounding { seed, first: 0 }) };
            device.adamw(still, parameter, gradient, m, v);
            let got = get_matrix(&device, parameter, values.len());
            let stays = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
            assert!(got.iter().zip(&values).all(stays), "{}", device.describe());
        }
    }
}

#[test]
fn each_seed_and_each_update_draws_anew() {
    let device = &all_f32()[0];
    let (values, zeros) = (vec![1.0; 1000], vec![0.0; 1000]);
    let once = |seed, update, first| {
        let (parameter, gradient) = (put_halves(device, &values), put(device, &zeros));
        let [m, v] = [(); 2].map(|()| put(device, &zeros));
        device.adamw(adamw(update, Rounding { seed, first }), parameter, gradient, m, v);
        bits(&get_matrix(device, parameter, 1000))
    };
    let here = once(1, 1, 0);
    assert!(once(1, 1, 0) == here);
    for (seed, update, first) in [(2, 1, 0), (1, 2, 0), (1, 1, 2), (1, 1, 1 << 32), (1, 1 << 33, 0)] {
        assert!(once(seed, update, first) != here, "{seed} {update} {first}");
    }
}

#[test]
fn in_f32_nothing_is_rounded() {
    for device in all_f32() {
        let run = |seed| {
            let [p, g] = [1, 2].map(|purpose| put(&device, &uniform(purpose, 1001)));
            let [m, v] = [(); 2].map(|()| put(&device, &vec![0.0; 1001]));
            device.adamw(adamw(1, Rounding { seed, first: 0 }), p.into(), g, m, v);
            bits(&get(&device, p))
        };
        assert!(run(0) == run(1), "{}", device.describe());
    }
}

/// A matrix in either format after an update by Muon.
fn orthogonal_step(device: &dyn Device, shape: NewtonSchulz, format: Format, gradient: f32) -> Vec<f32> {
    let values = halves(1, shape.len());
    let parameter = match format {
        Format::F32 => Matrix::from(put(device, &values)),
        Format::Bf16 => put_halves(device, &values),
    };
    let gradients: Vec<f32> = uniform(2, shape.len()).iter().map(|x| gradient * x).collect();
    let (gradients, moment) = (put(device, &gradients), put(device, &vec![0.0; shape.len()]));
    let rounding = Rounding { seed: 4, first: (1 << 32) - 70 };
    device.muon(muon(shape, 1, rounding), parameter, gradients, moment);
    get_matrix(device, parameter, shape.len())
}

#[test]
fn muon_rounds_its_step_to_a_neighbour() {
    for (rows, columns) in [(1, 1), (5, 3), (17, 64), (130, 50)] {
        let shape = NewtonSchulz { rows, columns, iterations: 5 };
        for device in all_f32() {
            let [exact, rounded] =
                [Format::F32, Format::Bf16].map(|format| orthogonal_step(&device, shape, format, 1.0));
            for (exact, rounded) in exact.iter().zip(rounded) {
                let below = f32::from_bits(exact.to_bits() & 0xffff_0000);
                let above = f32::from_bits((exact.to_bits() & 0xffff_0000) + 0x1_0000);
                let neighbour = rounded == below || rounded == above && below != *exact;
                assert!(neighbour, "{rounded} of {exact}, {shape:?}, {}", device.describe());
            }
        }
    }
}

#[test]
fn muon_rounds_as_the_reference_does() {
    let devices: Vec<CpuDevice> =
        kernels().into_iter().flat_map(|k| [1, 3].map(|threads| cpu(k, Precision::Bf16, threads))).collect();
    for (rows, columns) in [(1, 1), (5, 3), (17, 64), (400, 300)] {
        let shape = NewtonSchulz { rows, columns, iterations: 1 };
        // A gradient of zero leaves the decay alone.
        let right = bits(&orthogonal_step(&reference(Precision::Bf16), shape, Format::Bf16, 0.0));
        for device in &devices {
            let got = bits(&orthogonal_step(device, shape, Format::Bf16, 0.0));
            assert!(got == right, "{shape:?}, {}", device.describe());
        }
    }
}
