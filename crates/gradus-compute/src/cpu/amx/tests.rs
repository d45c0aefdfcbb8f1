//! The driver of tiles, on emulated registers: packing, tiles and ends are those of the hardware's kernel.

use super::*;
use crate::cpu::cells::Cells;
use crate::cpu::features::{Family, Kernels};
use crate::cpu::gemm::{Ending, Operand, Product, SCRATCH, Single, Then, Vectors};
use crate::cpu::memory::Elements;
use crate::device::Format;
use gradus_host::random::Stream;

fn rounded(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(half::bf16::from_f32(*x).to_f32())).collect()
}

fn uniform(stream: &mut Stream, len: usize) -> Vec<f32> {
    (0..len).map(|_| (stream.next_f64() * 2.0 - 1.0) as f32).collect()
}

/// One product, with operands along or across the depth.
struct Case {
    rows: usize,
    columns: usize,
    depth: usize,
    left_along: bool,
    right_along: bool,
    accumulate: bool,
}

struct Run<'a> {
    product: Product<'a>,
    scratch: &'a mut [f32],
}

impl Operation for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the case below made the product of slices of its sizes.
        unsafe { self.product.run(Tiles::emulated(s), 1, 0, self.scratch) };
    }
}

impl Case {
    fn operand(values: &[f32], lines: usize, depth: usize, along: bool) -> Operand {
        if along { Operand::along(values.as_ptr(), depth) } else { Operand::across(values.as_ptr(), lines) }
    }

    /// Element (`line`, `depth`) of an operand.
    fn at(
        values: &[f64],
        (line, lines): (usize, usize),
        (depth, depths): (usize, usize),
        along: bool,
    ) -> f64 {
        if along { values[line * depths + depth] } else { values[depth * lines + line] }
    }

    fn check(&self, family: Family, scratch: &mut [f32], stream: &mut Stream) {
        let Case { rows, columns, depth, .. } = *self;
        let (left, right) = (uniform(stream, rows * depth), uniform(stream, columns * depth));
        let (bias, before) = (uniform(stream, columns), uniform(stream, rows * columns));
        let (mut target, mut sums) = (before.clone(), vec![0.0f32; rows]);
        let operands = [
            Self::operand(&left, rows, depth, self.left_along),
            Self::operand(&right, columns, depth, self.right_along),
        ];
        let product = Product {
            bias: bias.as_ptr(),
            accumulate: self.accumulate,
            left_sums: if self.left_along { std::ptr::null_mut() } else { sums.as_mut_ptr() },
            ..Product::of([rows, columns, depth], operands, target.as_mut_ptr())
        };
        family.run(Run { product, scratch });
        let (a, b) = (rounded(&left), rounded(&right));
        for row in 0..rows {
            for column in 0..columns {
                let sum: f64 = (0..depth)
                    .map(|k| {
                        Self::at(&a, (row, rows), (k, depth), self.left_along)
                            * Self::at(&b, (column, columns), (k, depth), self.right_along)
                    })
                    .sum();
                let start = if self.accumulate { before[row * columns + column] } else { 0.0 };
                let right = sum + f64::from(bias[column]) + f64::from(start);
                let got = f64::from(target[row * columns + column]);
                // Products of bf16 are exact in f32; sums of `depth` of them lose half a unit in the last place each.
                let allowed = f64::from(f32::EPSILON) * (4 + depth) as f64;
                assert!((got - right).abs() <= allowed, "{rows} x {columns} x {depth} at {row}, {column}");
            }
        }
        if !self.left_along {
            for (row, sum) in sums.iter().enumerate() {
                let right: f64 = (0..depth).map(|k| f64::from(left[k * rows + row])).sum();
                assert!((f64::from(*sum) - right).abs() < 1e-4, "the sum of a line is not rounded to bf16");
            }
        }
    }
}

#[test]
fn products_on_emulated_tiles_equal_those_of_rounded_operands() {
    let mut stream = Stream::new(5, 6);
    let mut scratch = vec![0.0; SCRATCH];
    let mut shapes = vec![[1, 1, 1], [32, 32, 32], [33, 31, 33], [64, 64, 64], [40, 70, 800], [230, 40, 65]];
    shapes.extend((0..20).map(|_| [0; 3].map(|_: usize| 1 + stream.next_below(130) as usize)));
    for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.supported()) {
        let family = Family::of(kernels).unwrap();
        for [rows, columns, depth] in shapes.iter().copied() {
            for (left_along, right_along, accumulate) in
                [(true, true, false), (true, false, true), (false, false, true), (false, true, false)]
            {
                let case = Case { rows, columns, depth, left_along, right_along, accumulate };
                case.check(family, &mut scratch, &mut stream);
            }
        }
    }
}

/// A product through an ending into bf16, of operands kept in bf16, by emulated tiles and by vectors.
#[test]
fn tiles_end_as_vectors_do() {
    let (rows, columns, depth) = (70, 128, 45);
    let mut stream = Stream::new(7, 8);
    let mut halves = |len: usize| -> Vec<f32> {
        let pair = |a: f32, b: f32| f32::from_bits(a.to_bits() >> 16 | b.to_bits() & 0xffff_0000);
        uniform(&mut stream, len).into_iter().map(|x| pair(x, 0.7 - x)).collect()
    };
    let (left, right) = (halves(rows * depth), halves(columns * depth));
    let mut scratch = vec![0.0; SCRATCH];
    for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.supported()) {
        let family = Family::of(kernels).unwrap();
        for fold in [0, 64].into_iter().filter(|fold| *fold == 0 || family.lanes_together().is_some()) {
            let mut run = |tiles: bool| {
                let (mut out, mut second) =
                    (vec![0.0f32; rows * columns / 2], vec![0.0f32; rows * columns / 2]);
                let halves = |values: &mut Vec<f32>| Cells::new(Elements::of_mut(values), Format::Bf16);
                let (out_cells, activated) = (halves(&mut out), halves(&mut second));
                let then = if fold == 0 { Then::Gelu { activated } } else { Then::Swiglu { activated } };
                let bias = std::ptr::null();
                let operand = |values: &[f32]| Operand::along(values.as_ptr(), depth).kept(Format::Bf16);
                let operands = [operand(&left), Operand { fold, ..operand(&right) }];
                let product = Product {
                    ending: Some(Ending { out: out_cells, stride: columns, bias, fold, then }),
                    ..Product::of([rows, columns, depth], operands, std::ptr::null_mut())
                };
                match tiles {
                    true => family.run(Run { product, scratch: &mut scratch }),
                    false => family.run(ByVectors { product, scratch: &mut scratch }),
                }
                [out, second].map(|values| values.iter().flat_map(|x| halves_of(*x)).collect::<Vec<f32>>())
            };
            for (got, right) in run(true).iter().flatten().zip(run(false).iter().flatten()) {
                // The same products in another order, then one rounding to bf16, or an activation of what was rounded.
                assert!((got - right).abs() <= 1e-4 + right.abs() / 32.0, "{got} {right}, fold {fold}");
            }
        }
    }
}

fn halves_of(pair: f32) -> [f32; 2] {
    halves(pair.to_bits())
}

struct ByVectors<'a> {
    product: Product<'a>,
    scratch: &'a mut [f32],
}

impl Operation for ByVectors<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the case above made the product of slices of its sizes.
        unsafe { self.product.run(Vectors::<S, Single<true>>::new(s), 1, 0, self.scratch) };
    }
}

#[test]
fn emulated_registers_multiply_as_the_manual_says() {
    // One pair in one row and one column: (1, 2) with (3, 4) gives 1 * 3 + 2 * 4.
    let pair = |low: f32, high: f32| f32::from_bits(low.to_bits() >> 16 | high.to_bits());
    let (mut rows, mut columns) = ([0.0; SIDE * BLOCK], [0.0; SIDE * BLOCK]);
    rows[3 * SIDE + 5] = pair(1.0, 2.0);
    columns[5 * BLOCK + 9] = pair(3.0, 4.0);
    let columns = Units { start: columns.as_ptr(), stride: BLOCK };
    let sides = Sides { blocks: 1, rows: rows.as_ptr(), columns };
    let mut sums = [f32::NAN; BLOCK * BLOCK];
    // SAFETY: one block each.
    unsafe { multiply::<Emulated>(sides, false, sums.as_mut_ptr(), BLOCK) };
    assert_eq!(sums[3 * BLOCK + 9], 11.0);
    assert_eq!(sums.iter().sum::<f32>(), 11.0);
    // SAFETY: as above.
    unsafe { multiply::<Emulated>(sides, true, sums.as_mut_ptr(), BLOCK) };
    assert_eq!(sums[3 * BLOCK + 9], 22.0);
    assert_eq!(sums.iter().sum::<f32>(), 22.0);
}

#[test]
fn the_hardware_agrees_where_it_is() {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    assert_eq!(hardware_agrees(), detect());
    assert_eq!(Kernels::Amx.supported(), detect() && Kernels::Avx512.supported());
}
