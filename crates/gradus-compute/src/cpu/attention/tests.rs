//! Attention on emulated tiles, against the reference: the same text runs on the hardware's.

use super::*;
use crate::cpu::amx::Tiles;
use crate::cpu::features::{Family, Handed, Kernels};
use crate::cpu::memory::Elements;
use crate::device::{Device, Format, Matrix, Precision, Rows};
use crate::reference::Reference;
use gradus_host::random::Stream;
use gradus_memory::Span;

fn training(batch: usize, len: usize, heads: usize, kv_heads: usize, head_size: usize) -> Attention<'static> {
    let (query_len, key_len, key_rows, scale, documents) = (len, len, len, 0.35, None);
    Attention { batch, query_len, key_len, key_rows, heads, kv_heads, head_size, scale, documents }
}

fn bf16_bits(values: &[f32]) -> Vec<f32> {
    let bits = |x: Option<&f32>| x.map_or(0, |x| u32::from(half::bf16::from_f32(*x).to_bits()));
    values.chunks(2).map(|pair| f32::from_bits(bits(pair.first()) | bits(pair.get(1)) << 16)).collect()
}

/// A tensor in its format.
#[derive(Clone)]
struct Tensor {
    places: Vec<f32>,
    stride: usize,
    format: Format,
}

impl Tensor {
    fn new(values: &[f32], stride: usize, format: Format) -> Self {
        let places = if format == Format::Bf16 { bf16_bits(values) } else { values.to_vec() };
        Self { places, stride, format }
    }

    fn uniform(stream: &mut Stream, rows: usize, stride: usize, format: Format) -> Self {
        let values: Vec<f32> = (0..rows * stride).map(|_| (stream.next_f64() * 4.0 - 2.0) as f32).collect();
        Self::new(&values, stride, format)
    }

    fn like(other: &Self) -> Self {
        Self { places: vec![f32::NAN; other.places.len()], ..*other }
    }

    fn rows(&mut self) -> HeadRows {
        HeadRows { elements: Elements::of_mut(&mut self.places), stride: self.stride, format: self.format }
    }

    fn put(&self, device: &Reference) -> (Rows, Matrix) {
        let span = device.allocate(self.places.len()).unwrap();
        device.write(span, &self.places);
        (Rows { span, stride: self.stride, format: self.format }, Matrix { span, format: self.format })
    }

    fn take(&mut self, device: &Reference, span: Span) {
        device.read(span, &mut self.places);
    }

    fn numbers(&self) -> Vec<f32> {
        match self.format {
            Format::F32 => self.places.clone(),
            Format::Bf16 => {
                let halves = self.places.iter().map(|place| place.to_bits());
                halves.flat_map(|x| [f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000)]).collect()
            }
        }
    }
}

/// Queries, keys, values, output, its gradient, and the gradients of the first three.
struct Tensors {
    read: [Tensor; 4],
    out: Tensor,
    sums: Vec<f32>,
    gradients: [Tensor; 3],
}

impl Tensors {
    fn new(shape: Attention, format: Format) -> Self {
        let mut stream = Stream::new(7, 8);
        let (width, kv) = (shape.heads * shape.head_size, shape.kv_heads * shape.head_size);
        // Rows of bf16 begin with a place.
        let (width, kv) = (width.next_multiple_of(2), kv.next_multiple_of(2));
        let (queries, keys) = (shape.batch * shape.query_len, shape.batch * shape.key_rows);
        let read = [(queries, width), (keys, kv), (keys, kv), (queries, shape.heads * shape.head_size)]
            .map(|(rows, width)| Tensor::uniform(&mut stream, rows, width, format));
        let (out, sums) =
            (Tensor::like(&read[3]), vec![f32::NAN; shape.batch * shape.heads * shape.query_len]);
        let gradients = [0, 1, 2].map(|i| Tensor::like(&read[i]));
        Self { read, out, sums, gradients }
    }

    fn results(&self) -> Vec<Vec<f32>> {
        let mut results = vec![self.out.numbers(), self.sums.clone()];
        results.extend(self.gradients.iter().map(Tensor::numbers));
        results
    }

    /// By the reference; gradients only where that is what the shape is for.
    fn right(mut self, shape: Attention, backward: bool) -> Vec<Vec<f32>> {
        let device = Reference::new(Precision::F32, 1 << 22).unwrap();
        let [(q, _), (k, _), (v, _), (_, d_out)] = self.read.each_ref().map(|tensor| tensor.put(&device));
        let ((_, out), sums) = (self.out.put(&device), device.allocate(self.sums.len()).unwrap());
        device.attention_forward(shape, q, k, v, out, sums);
        self.out.take(&device, out.span);
        device.read(sums, &mut self.sums);
        if backward {
            let [(d_q, _), (d_k, _), (d_v, _)] = self.gradients.each_ref().map(|tensor| tensor.put(&device));
            device.attention_backward(shape, q, k, v, out, sums, d_out, d_q, d_k, d_v);
            for (tensor, rows) in self.gradients.iter_mut().zip([d_q, d_k, d_v]) {
                tensor.take(&device, rows.span);
            }
        }
        self.results()
    }
}

/// Both passes on emulated tiles; whatever scratch holds before is no number.
struct OnTiles<'a> {
    shape: Attention<'a>,
    tensors: Tensors,
    backward: bool,
}

impl Handed for OnTiles<'_> {
    fn take<S: Simd>(self, s: S) {
        let Self { shape, mut tensors, backward } = self;
        let right = Tensors::new(shape, tensors.out.format).right(shape, backward);
        let [q, k, v, d_out] = tensors.read.each_mut().map(Tensor::rows);
        let (out, log_sum_exp) = (tensors.out.rows(), Elements::of_mut(&mut tensors.sums));
        let [d_q, d_k, d_v] = tensors.gradients.each_mut().map(Tensor::rows);
        let mut scratch = vec![f32::NAN; forward_scratch(shape).max(backward_scratch(shape, true))];
        for item in 0..shape.batch * shape.kv_heads {
            let (item, blocks) = (Item::new(shape, item), 0..Forward::blocks(shape));
            scratch.fill(f32::NAN);
            let scratch = &mut scratch;
            Forward { item, q, k, v, out, log_sum_exp, blocks, scratch }.run(Tiles::emulated(s));
            if backward {
                scratch.fill(f32::NAN);
                Backward { item, q, k, v, out, log_sum_exp, d_out, d_q, d_k, d_v, scratch }
                    .run(Tiles::emulated(s));
            }
        }
        let what = format!("{shape:?} in {:?}, vectors of {}", tensors.out.format, S::LANES);
        for (tensor, (got, right)) in tensors.results().iter().zip(&right).enumerate() {
            compare(&format!("tensor {tensor} of {what}"), got, right);
        }
    }
}

/// What is left where all should cancel: roundings of f32 numbers of tens.
const SMALL: f64 = 1e-5;

/// Operands and probabilities are rounded to bf16, each by at most 2^-9, as are, perhaps, results: in the Euclidean norm most
/// of that cancels. No single element may be off by what one product too many or too few would make.
fn compare(what: &str, got: &[f32], right: &[f32]) {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = || got.iter().zip(right).filter(|(_, right)| !right.is_nan());
    let root = (pairs().count().max(1) as f64).sqrt();
    let size = norm(&mut pairs().map(|(_, right)| f64::from(*right)));
    let off = norm(&mut pairs().map(|(got, right)| f64::from(got - right)));
    assert!(off <= 0.012 * size + SMALL * root, "{what}: {off} of {size}");
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        assert_eq!(got.is_nan(), right.is_nan(), "{what}: element {i}, between the rows or not written");
        let allowed = 0.125 * f64::from(right.abs()).max(size / root) + SMALL;
        let off = f64::from((got - right).abs());
        assert!(right.is_nan() || off <= allowed, "{what}: element {i}: {got}, not {right}");
    }
}

fn check(shape: Attention, backward: bool) {
    for kernels in Kernels::ALL.into_iter().filter(|kernels| kernels.supported()) {
        for format in [Format::F32, Format::Bf16] {
            let tensors = Tensors::new(shape, format);
            Family::of(kernels).unwrap().hand(OnTiles { shape, tensors, backward });
        }
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(s) = crate::cpu::simd::Avx512::<true>::detect() {
        OnTiles { shape, tensors: Tensors::new(shape, Format::Bf16), backward }.take(s);
    }
}

#[test]
fn tiles_at_odd_lengths_and_sizes() {
    for len in [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 130, 200] {
        check(training(2, len, 2, 2, 16), true);
    }
    for head_size in [1, 2, 3, 15, 24, 31, 32, 33, 64, 80, 128] {
        check(training(1, 70, 2, 1, head_size), true);
    }
}

#[test]
fn tiles_of_query_heads_that_share_keys() {
    for (heads, kv_heads) in [(4, 1), (4, 2), (6, 3), (3, 3)] {
        check(training(2, 75, heads, kv_heads, 16), true);
    }
}

#[test]
fn tiles_among_documents() {
    for ends in [vec![1, 2, 3, 60, 61, 64, 65, 229], vec![130], vec![32, 64, 128]] {
        let documents: Vec<u32> =
            (0..230).map(|i| ends.iter().filter(|end| i >= **end).count() as u32).collect();
        check(Attention { documents: Some(&documents), ..training(1, 230, 2, 1, 16) }, true);
    }
}

#[test]
fn tiles_of_queries_at_the_end_of_a_cache() {
    for (query_len, key_len, key_rows) in [(1, 77, 80), (5, 66, 70), (70, 200, 256), (64, 128, 128)] {
        check(Attention { query_len, key_len, key_rows, ..training(2, 0, 4, 2, 16) }, false);
    }
}

#[test]
fn tiles_of_scores_that_grow_and_shrink() {
    // Scores of tens, of which later keys have greater ones: sums so far are scaled again and again.
    check(Attention { scale: 2.0, ..training(1, 200, 1, 1, 16) }, false);
}
