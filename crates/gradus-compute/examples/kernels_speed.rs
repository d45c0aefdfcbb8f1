//! Prints how fast each operation of the fast device is on this machine, at the shapes of a small GPT (V = 4096,
//! C = 384, L = 6, H = 6, T = 256, batch 8), beside the peak that multiply-adds on registers reach.
//!
//! `cargo run --release -p gradus-compute --example kernels_speed [threads] [f32|bf16] [filter]`; `GRADUS_CPU` forces
//! a family of kernels. Figures are the best of several runs: on a shared machine the others say little.

use gradus_compute::{
    AdamW, Attention, CpuDevice, CrossEntropy, Device, Embedding, Linear, Norm, NormKind, Precision, Rope,
    Rows,
};
use gradus_host::{Clock, RealClock};
use gradus_memory::Span;

/// Rows of the batch.
const M: usize = 2048;
const C: usize = 384;
const V: usize = 4096;
const T: usize = 256;
const LAYERS: f64 = 6.0;

struct Bench<'a> {
    device: &'a CpuDevice,
    filter: String,
    step_ms: f64,
}

impl Bench<'_> {
    /// Best time of several, in seconds.
    fn time(&self, operation: impl Fn()) -> f64 {
        let clock = RealClock::new();
        let (mut best, mut runs) = (f64::INFINITY, 0);
        while runs < 5 || clock.now().as_secs_f64() < 0.3 {
            let start = clock.now();
            operation();
            best = best.min((clock.now() - start).as_secs_f64());
            runs += 1;
        }
        best
    }

    /// An operation that a step carries out `times` times, of `work` operations or bytes each.
    fn row(&mut self, name: &str, times: f64, (work, unit): (f64, &str), operation: impl Fn()) {
        if !name.contains(&self.filter) {
            return;
        }
        let seconds = self.time(operation);
        self.step_ms += times * seconds * 1e3;
        println!("{name:<34} {:>9.3} ms {:>9.1} {unit:<8} x {times:<3}", seconds * 1e3, work / seconds / 1e9);
    }

    fn random(&self, len: usize) -> Span {
        // Spread over [-0.5, 0.5) by multiplying with 2^32 over the golden ratio: made at the speed of memory.
        let values: Vec<f32> =
            (0..len as u32).map(|i| i.wrapping_mul(2_654_435_769) as f32 / 4_294_967_296.0 - 0.5).collect();
        let span = self.device.allocate(len).expect("the example reserves enough");
        self.device.write(span, &values);
        span
    }

    fn linear(&mut self, name: &str, times: f64, inputs: usize, outputs: usize) {
        let shape = Linear { rows: M, inputs, outputs };
        let (x, weight, out) =
            (self.random(M * inputs), self.random(outputs * inputs), self.random(M * outputs));
        let (d_x, d_weight, bias) =
            (self.random(M * inputs), self.random(outputs * inputs), self.random(outputs));
        let work = (2.0 * (M * inputs * outputs) as f64, "GFLOP/s");
        let device = self.device;
        let mut row =
            |way: &str, operation: &dyn Fn()| self.row(&format!("{name} {way}"), times, work, operation);
        row("forward", &|| device.linear_forward(shape, x, weight.into(), Some(bias), None, out));
        row("d_x", &|| device.linear_backward_input(shape, out, weight, d_x, false));
        row("d_weight", &|| device.linear_backward_weight(shape, out, x, d_weight, Some(bias)));
    }

    fn attention(&mut self) {
        let (heads, head_size) = (6, 64);
        let shape = Attention {
            batch: M / T,
            query_len: T,
            key_len: T,
            key_rows: T,
            heads,
            kv_heads: heads,
            head_size,
            scale: 0.125,
            documents: None,
        };
        let (qkv, d_qkv) = (self.random(M * 3 * C), self.random(M * 3 * C));
        let (out, d_out, sums) = (self.random(M * C), self.random(M * C), self.random(M * heads));
        let columns = |whole: Span| [0, 1, 2].map(|i| Rows::columns(whole, M, 3 * C, i * C, C));
        let ([q, k, v], [d_q, d_k, d_v]) = (columns(qkv), columns(d_qkv));
        let device = self.device;
        // Two products of T x T x D forward, five backward, of which causality needs half.
        let product = (M / T * heads * T * T * head_size) as f64;
        let forward = || device.attention_forward(shape, q, k, v, out, sums);
        self.row("attention forward", LAYERS, (2.0 * product, "GFLOP/s"), forward);
        self.row("attention backward", LAYERS, (5.0 * product, "GFLOP/s"), || {
            device.attention_backward(shape, q, k, v, out, sums, d_out, d_q, d_k, d_v);
        });
        let positions: Vec<u32> = (0..M as u32).map(|i| i % T as u32).collect();
        let rope = Rope { positions: &positions, heads, head_size, theta: 10_000.0, inverse: false };
        self.row("rope (not in GPT-2)", 0.0, (8.0 * (M * C) as f64, "GB/s"), || device.rope(rope, q));
    }

    fn rows(&mut self) {
        let device = self.device;
        let bytes = |tensors: usize, len: usize| ((4 * tensors * len) as f64, "GB/s");
        let (x, d_out, d_x, weight) =
            (self.random(M * C), self.random(M * C), self.random(M * C), self.random(C));
        let (statistics, d_weight, d_bias) = (self.random(2 * M), self.random(C), self.random(C));
        let norm = Norm { kind: NormKind::Layer, epsilon: 1e-5, width: C };
        self.row("norm forward", 13.0, bytes(2, M * C), || {
            device.norm_forward(norm, x, weight, Some(weight), d_x, statistics);
        });
        self.row("norm backward", 13.0, bytes(4, M * C), || {
            device.norm_backward(norm, x, weight, statistics, d_out, Some(d_x), d_x, d_weight, Some(d_bias));
        });
        self.row("add (not in a step)", 0.0, bytes(3, M * C), || device.add(x, d_out, d_x));
        let (wide, d_wide) = (self.random(M * 4 * C), self.random(M * 4 * C));
        let out = self.random(M * 4 * C);
        self.row("gelu forward", LAYERS, bytes(2, M * 4 * C), || device.gelu_forward(wide, out));
        self.row("gelu backward", LAYERS, bytes(3, M * 4 * C), || device.gelu_backward(wide, d_wide, out));
        self.row("swiglu forward (not in GPT-2)", 0.0, bytes(3, M * 2 * C), || {
            device.swiglu_forward(M, wide, out.part(0, M * 2 * C));
        });
        let (logits, losses, kept) = (self.random(M * V), self.random(M), self.random(M * V));
        let targets: Vec<u32> = (0..M as u32).collect();
        let loss = CrossEntropy { targets: &targets, vocabulary: V, width: V };
        self.row("cross entropy", 1.0, bytes(2, M * V), || device.cross_entropy(loss, logits, losses, true));
        device.add(logits, kept, logits);
    }

    fn tables(&mut self) {
        let device = self.device;
        let tokens: Vec<u32> = (0..M).map(|i| (i * 997 % V) as u32).collect();
        let positions: Vec<u32> = (0..M).map(|i| (i % T) as u32).collect();
        let shape = Embedding { tokens: &tokens, positions: &positions, width: C };
        let (table, places, out) = (self.random(V * C), self.random(T * C), self.random(M * C));
        let work = ((12 * M * C) as f64, "GB/s");
        self.row("embedding forward", 1.0, work, || {
            device.embedding_forward(shape, table.into(), Some(places.into()), out)
        });
        self.row("embedding backward", 1.0, work, || {
            device.embedding_backward(shape, out, table, Some(places))
        });
        let parameters = V * C + T * C + 6 * 12 * C * C;
        let [p, g, m, v] = std::array::from_fn(|_| self.random(parameters));
        device.fill(v, 1.0);
        self.row("sum of squares", 1.0, ((4 * parameters) as f64, "GB/s"), || {
            device.sum_of_squares(g);
        });
        self.row("fill", 1.0, ((4 * parameters) as f64, "GB/s"), || device.fill(m, 0.0));
        let update = AdamW {
            learning_rate: 1e-9,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            update: 10,
            gradient_scale: 1.0,
        };
        self.row("adamw", 1.0, ((28 * parameters) as f64, "GB/s"), || device.adamw(update, p, g, m, v));
    }
}

/// Operations per second, in GFLOP/s, of the fastest of many short runs.
#[cfg(target_arch = "x86_64")]
fn best_rate(flops: u64, run: &dyn Fn()) -> f64 {
    let clock = RealClock::new();
    (0..200).fold(0.0, |best: f64, _| {
        let start = clock.now();
        run();
        best.max(flops as f64 / (clock.now() - start).as_secs_f64() / 1e9)
    })
}

/// Multiply-adds on registers only, in GFLOP/s of one thread: twelve at a time, enough to hide their latency.
#[cfg(target_arch = "x86_64")]
fn register_peak() -> f64 {
    const ROUNDS: u64 = 100_000;
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: registers only, all zero, and the processor has the instructions.
        let run = || unsafe {
            std::arch::asm!(
                "vzeroall",
                "2:",
                "vfmadd231ps zmm0, zmm12, zmm13",
                "vfmadd231ps zmm1, zmm12, zmm13",
                "vfmadd231ps zmm2, zmm12, zmm13",
                "vfmadd231ps zmm3, zmm12, zmm13",
                "vfmadd231ps zmm4, zmm12, zmm13",
                "vfmadd231ps zmm5, zmm12, zmm13",
                "vfmadd231ps zmm6, zmm12, zmm13",
                "vfmadd231ps zmm7, zmm12, zmm13",
                "vfmadd231ps zmm8, zmm12, zmm13",
                "vfmadd231ps zmm9, zmm12, zmm13",
                "vfmadd231ps zmm10, zmm12, zmm13",
                "vfmadd231ps zmm11, zmm12, zmm13",
                "dec {rounds}",
                "jnz 2b",
                "vzeroupper",
                rounds = inout(reg) ROUNDS => _,
                out("xmm0") _,
                out("xmm1") _,
                out("xmm2") _,
                out("xmm3") _,
                out("xmm4") _,
                out("xmm5") _,
                out("xmm6") _,
                out("xmm7") _,
                out("xmm8") _,
                out("xmm9") _,
                out("xmm10") _,
                out("xmm11") _,
                out("xmm12") _,
                out("xmm13") _,
                out("xmm14") _,
                out("xmm15") _,
                options(nomem, nostack),
            );
        };
        return best_rate(ROUNDS * 12 * 16 * 2, &run);
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: registers only, all zero, and the processor has the instructions.
        let run = || unsafe {
            std::arch::asm!(
                "vzeroall",
                "2:",
                "vfmadd231ps ymm0, ymm12, ymm13",
                "vfmadd231ps ymm1, ymm12, ymm13",
                "vfmadd231ps ymm2, ymm12, ymm13",
                "vfmadd231ps ymm3, ymm12, ymm13",
                "vfmadd231ps ymm4, ymm12, ymm13",
                "vfmadd231ps ymm5, ymm12, ymm13",
                "vfmadd231ps ymm6, ymm12, ymm13",
                "vfmadd231ps ymm7, ymm12, ymm13",
                "vfmadd231ps ymm8, ymm12, ymm13",
                "vfmadd231ps ymm9, ymm12, ymm13",
                "vfmadd231ps ymm10, ymm12, ymm13",
                "vfmadd231ps ymm11, ymm12, ymm13",
                "dec {rounds}",
                "jnz 2b",
                "vzeroupper",
                rounds = inout(reg) ROUNDS => _,
                out("xmm0") _,
                out("xmm1") _,
                out("xmm2") _,
                out("xmm3") _,
                out("xmm4") _,
                out("xmm5") _,
                out("xmm6") _,
                out("xmm7") _,
                out("xmm8") _,
                out("xmm9") _,
                out("xmm10") _,
                out("xmm11") _,
                out("xmm12") _,
                out("xmm13") _,
                out("xmm14") _,
                out("xmm15") _,
                options(nomem, nostack),
            );
        };
        return best_rate(ROUNDS * 12 * 8 * 2, &run);
    }
    f64::NAN
}

#[cfg(not(target_arch = "x86_64"))]
fn register_peak() -> f64 {
    f64::NAN
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize| arguments.get(i).map_or("", String::as_str);
    let threads = argument(0).parse().unwrap_or(1);
    let precision = if argument(1) == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let device = CpuDevice::new(threads, precision, 1 << 28).expect("a device can be opened");
    let mut bench = Bench { device: &device, filter: argument(2).to_owned(), step_ms: 0.0 };
    println!("{}", device.describe());
    println!("f32 multiply-adds on registers, one thread: {:.1} GFLOP/s", register_peak());
    println!("peak of matrix products: {:.1} GFLOP/s", device.peak_flops() / 1e9);
    bench.linear("linear 384 -> 1152", LAYERS, C, 3 * C);
    bench.linear("linear 384 -> 384", LAYERS, C, C);
    bench.linear("linear 384 -> 1536", LAYERS, C, 4 * C);
    bench.linear("linear 1536 -> 384", LAYERS, 4 * C, C);
    bench.linear("linear 384 -> 4096", 1.0, C, V);
    bench.attention();
    bench.rows();
    bench.tables();
    println!(
        "a training step, by these figures: {:.1} ms, {:.0} tokens/s",
        bench.step_ms,
        M as f64 / bench.step_ms * 1e3
    );
}
