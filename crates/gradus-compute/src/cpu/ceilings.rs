//! What a host's processors and memory can do at best, measured: what operations are held against.
//!
//! What: operations per second of each unit that multiplies, on registers alone; bytes per second of plain streams over
//! memory. How: every thread runs the same short loop on registers or buffers of its own, all begin together, and the
//! fastest of several runs counts, since a ceiling that a neighbour on the machine lowered is none.
//! Invariant: nothing is allocated or touched for the first time while the clock runs.

use super::amx;
use super::features::Family;
use super::memory::Scratch;
use super::simd::{Operation, Simd};
use gradus_error::Result;
use gradus_host::{Clock, RealClock};
use std::sync::Barrier;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// f32 multiply-adds on the widest vectors.
    F32,
    /// Dot products of bf16 pairs on vectors (AVX512-BF16, `vdpbf16ps`).
    Bf16Dot,
    /// Tile products of bf16 (AMX, `tdpbf16ps`).
    Bf16Tile,
}

impl Unit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16Dot, Self::Bf16Tile];

    /// What a person calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32 multiply-adds",
            Self::Bf16Dot => "bf16 dot products",
            Self::Bf16Tile => "bf16 tiles",
        }
    }

    /// Whether this processor has it.
    pub fn supported(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::F32 => {
                is_x86_feature_detected!("avx512f")
                    || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Dot => is_x86_feature_detected!("avx512bf16"),
            Self::Bf16Tile => amx::detect(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// What flows through memory, one pass over a thread's buffers after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// `sum += a`: one buffer read.
    Read,
    /// `a = 0`: one buffer written.
    Write,
    /// `a *= s`: one buffer read and written in place.
    Update,
    /// `b = a`.
    Copy,
    /// `c = a + s * b` (McCalpin's STREAM).
    Triad,
}

impl Stream {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Update, Self::Copy, Self::Triad];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Update => "update",
            Self::Copy => "copy",
            Self::Triad => "triad",
        }
    }

    /// The stream of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.name() == name)
    }

    /// Buffers that a pass touches.
    const fn buffers(self) -> usize {
        match self {
            Self::Read | Self::Write | Self::Update => 1,
            Self::Copy => 2,
            Self::Triad => 3,
        }
    }

    /// Elements that a pass moves for each element of a buffer, as the program sees it: a line that is fetched only to
    /// be overwritten counts once.
    const fn moved(self) -> usize {
        match self {
            Self::Read | Self::Write => 1,
            Self::Update | Self::Copy => 2,
            Self::Triad => 3,
        }
    }
}

/// Measures; keeps its buffers from one measurement to the next.
pub struct Ceilings {
    /// One for each thread.
    memory: Vec<Scratch>,
    elements: usize,
}

/// Runs shorter than this say more of the clock than of the machine.
const SHORTEST_S: f64 = 0.000_2;
/// How long a measurement goes on, and how many runs it has at least.
const LONG_ENOUGH_S: f64 = 0.015;
const LEAST_RUNS: usize = 3;
const MOST_RUNS: usize = 200;
/// Elements of a cache line.
const LINE: usize = 16;

impl Ceilings {
    /// For `threads` threads, and streams over up to `bytes` in all; all memory is touched here.
    ///
    /// # Errors
    /// `Exhausted` when the system refuses the memory.
    pub fn new(threads: usize, bytes: usize) -> Result<Self> {
        let threads = threads.max(1);
        let elements = (bytes / 4 / threads).next_multiple_of(LINE) + 3 * LINE;
        let mut memory = (0..threads).map(|_| Scratch::new(elements)).collect::<Result<Vec<_>>>()?;
        for scratch in &mut memory {
            scratch.at_least(elements).fill(1.0);
        }
        Ok(Self { memory, elements })
    }

    /// Operations per second of all threads together on registers; `None` where the processor lacks the unit. About
    /// 15 ms.
    pub fn registers(&mut self, unit: Unit) -> Option<f64> {
        if !unit.supported() {
            return None;
        }
        // Some 50 us; the best of many such runs is the machine's own pace.
        let rounds = 10_000;
        Some(self.best(|_| chain(unit, rounds)))
    }

    /// Bytes per second of all threads together, streaming over `bytes` in all (at least a line for each buffer and
    /// thread, at most what [`Ceilings::new`] was told). About 15 ms, and longer beyond the caches.
    pub fn stream(&mut self, stream: Stream, bytes: usize) -> f64 {
        let each = bytes / 4 / self.memory.len() / stream.buffers();
        let each = (each / LINE * LINE).clamp(LINE, self.elements / stream.buffers() / LINE * LINE);
        // Enough passes for a run that the clock can tell, at the pace of the first cache.
        let passes = ((SHORTEST_S * 100e9) as usize / (4 * each * stream.moved())).max(1);
        let family = Family::widest();
        self.best(|memory| {
            for _ in 0..passes {
                family.run(Pass { stream, memory, each });
            }
            (4 * each * stream.moved() * passes) as f64
        })
    }

    /// Work per second of the fastest run: `job` does its thread's share and says how much that was.
    fn best(&mut self, job: impl Fn(&mut [f32]) -> f64 + Sync) -> f64 {
        let (_, warm_s) = self.runs(1, &job)[0];
        let count = ((LONG_ENOUGH_S / warm_s.max(1e-6)) as usize).clamp(LEAST_RUNS, MOST_RUNS);
        self.runs(count, &job).into_iter().map(|(work, seconds)| work / seconds).fold(0.0, f64::max)
    }

    /// Work of all threads, and seconds of the slowest, of each of `count` runs that all begin together.
    fn runs(&mut self, count: usize, job: &(impl Fn(&mut [f32]) -> f64 + Sync)) -> Vec<(f64, f64)> {
        let (barrier, elements) = (Barrier::new(self.memory.len()), self.elements);
        let thread = |scratch: &mut Scratch| -> Vec<(f64, f64)> {
            let (memory, clock) = (scratch.at_least(elements), RealClock::new());
            let run = |_| {
                barrier.wait();
                let start = clock.now();
                let work = job(memory);
                (work, (clock.now() - start).as_secs_f64())
            };
            (0..count).map(run).collect()
        };
        let of_threads: Vec<_> = std::thread::scope(|scope| {
            let (first, others) = self.memory.split_first_mut().expect("there is at least one thread");
            let others: Vec<_> = others.iter_mut().map(|scratch| scope.spawn(|| thread(scratch))).collect();
            let own = thread(first);
            let joined = others.into_iter().map(|other| other.join().expect("a run does not panic"));
            std::iter::once(own).chain(joined).collect()
        });
        let together = |run: usize| {
            let of_run = of_threads.iter().map(|thread| thread[run]);
            of_run
                .fold((0.0, 0.0_f64), |(work, slowest), (more, seconds)| (work + more, slowest.max(seconds)))
        };
        (0..count).map(together).collect()
    }
}

/// One pass of a stream over buffers of `each` elements.
struct Pass<'a> {
    stream: Stream,
    memory: &'a mut [f32],
    each: usize,
}

impl Operation for Pass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, rest) = self.memory.split_at_mut(self.each);
        match self.stream {
            Stream::Read => read(s, a),
            Stream::Write => each(s, a.as_mut_ptr(), self.each, |_| s.splat(0.0)),
            Stream::Update => {
                // Opaque, since what is multiplied by one need not be touched.
                let (from, one) = (a.as_mut_ptr(), s.splat(std::hint::black_box(1.0)));
                // SAFETY: inside the buffer, by each's contract.
                each(s, from, self.each, |at| s.mul(unsafe { s.load(from.add(at)) }, one));
            }
            Stream::Copy => {
                let from = a.as_ptr();
                // SAFETY: both buffers have `each` elements.
                each(s, rest[..self.each].as_mut_ptr(), self.each, |at| unsafe { s.load(from.add(at)) });
            }
            Stream::Triad => {
                let (b, c) = rest.split_at_mut(self.each);
                let (a, b, half) = (a.as_ptr(), b.as_ptr(), s.splat(0.5));
                each(s, c[..self.each].as_mut_ptr(), self.each, |at| {
                    // SAFETY: all three buffers have `each` elements.
                    unsafe { s.mul_add(s.load(b.add(at)), half, s.load(a.add(at))) }
                });
            }
        }
    }
}

/// Sets `to[0..len]`, vector by vector; `len` is whole lines, and a line whole vectors.
#[inline(always)]
fn each<S: Simd>(s: S, to: *mut f32, len: usize, value: impl Fn(usize) -> S::V) {
    for line in (0..len).step_by(LINE) {
        for at in (line..line + LINE).step_by(S::LANES) {
            // SAFETY: below `len` elements, which the caller's buffer has.
            unsafe { s.store(to.add(at), value(at)) };
        }
    }
}

/// Sums of a buffer, eight abreast so that additions need not wait for each other.
#[inline(always)]
fn read<S: Simd>(s: S, from: &[f32]) {
    const ABREAST: usize = 8;
    let mut sums = [s.splat(0.0); ABREAST];
    for block in from.chunks_exact(ABREAST * S::LANES) {
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a block holds ABREAST vectors.
            *sum = s.add(*sum, unsafe { s.load(block.as_ptr().add(j * S::LANES)) });
        }
    }
    let total: f32 = sums.into_iter().map(|sum| s.sum(sum)).sum();
    std::hint::black_box(total);
}

/// Instructions of a chain that do not depend on each other: enough to hide their latency.
#[cfg(target_arch = "x86_64")]
const ABREAST: u64 = 12;

/// Twelve of an instruction, over and over, each onto a register of its own; all registers are zero.
#[cfg(target_arch = "x86_64")]
macro_rules! twelve {
    ($instruction:literal, $register:literal, $rounds:expr) => {
        std::arch::asm!(
            "vzeroall",
            "2:",
            concat!($instruction, " ", $register, "0, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "1, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "2, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "3, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "4, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "5, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "6, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "7, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "8, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "9, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "10, ", $register, "12, ", $register, "13"),
            concat!($instruction, " ", $register, "11, ", $register, "12, ", $register, "13"),
            "dec {rounds}",
            "jnz 2b",
            "vzeroupper",
            rounds = inout(reg) $rounds => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nomem, nostack),
        )
    };
}

/// Runs `rounds` of a unit's instructions on registers; operations done. The unit is supported.
#[cfg(target_arch = "x86_64")]
fn chain(unit: Unit, rounds: u64) -> f64 {
    let chained = |lanes: u64, per_lane: u64| (rounds * ABREAST * lanes * per_lane) as f64;
    match unit {
        Unit::F32 if is_x86_feature_detected!("avx512f") => {
            // SAFETY: registers only, and the processor has the instructions.
            unsafe { twelve!("vfmadd231ps", "zmm", rounds) };
            chained(16, 2)
        }
        Unit::F32 => {
            // SAFETY: as above.
            unsafe { twelve!("vfmadd231ps", "ymm", rounds) };
            chained(8, 2)
        }
        Unit::Bf16Dot => {
            // SAFETY: as above.
            unsafe { twelve!("vdpbf16ps", "zmm", rounds) };
            chained(16, 4)
        }
        Unit::Bf16Tile => tile_chain(rounds),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn chain(_: Unit, _: u64) -> f64 {
    0.0
}

/// Products of zero tiles onto the four registers of sums that a kernel has. `rounds` counts vector instructions, of
/// which a tile product takes the time of many: fewer are run.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tile_chain(rounds: u64) -> f64 {
    use super::amx::{Hardware, TileRegisters};
    /// 16 x 16 sums of 16 pairs, a multiplication and an addition each.
    const OPERATIONS: u64 = 16 * 16 * 32 * 2;
    let rounds = rounds / 8;
    Hardware::configure();
    // SAFETY: configured; detect() found AMX, since the unit is supported.
    unsafe {
        Hardware::zero::<4>(&mut ());
        Hardware::zero::<5>(&mut ());
        Hardware::zero::<6>(&mut ());
        Hardware::zero::<7>(&mut ());
        for _ in 0..rounds {
            Hardware::dot::<0, 4, 6>(&mut ());
            Hardware::dot::<1, 4, 7>(&mut ());
            Hardware::dot::<2, 5, 6>(&mut ());
            Hardware::dot::<3, 5, 7>(&mut ());
        }
    }
    Hardware::release();
    (rounds * 4 * OPERATIONS) as f64
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tile_chain(_: u64) -> f64 {
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_this_processor_and_every_stream_has_a_pace() {
        for threads in [1, 2] {
            let mut ceilings = Ceilings::new(threads, 1 << 16).unwrap();
            for unit in Unit::ALL {
                assert_eq!(ceilings.registers(unit).is_some(), unit.supported(), "{unit:?}");
                assert!(
                    ceilings.registers(unit).is_none_or(|rate| rate > 0.0 && rate.is_finite()),
                    "{unit:?}"
                );
            }
            for stream in Stream::ALL {
                for bytes in [0, 1 << 12, 1 << 16, 1 << 20] {
                    let rate = ceilings.stream(stream, bytes);
                    assert!(rate > 0.0 && rate.is_finite(), "{stream:?} {bytes}");
                }
                assert_eq!(Stream::named(stream.name()), Some(stream));
                // A pass that the compiler left out would reach petabytes.
                let rate = ceilings.stream(stream, 1 << 16);
                assert!(rate < 1e13 * threads as f64, "{stream:?} moves {rate:e} bytes per second");
            }
        }
        assert_eq!(Stream::named("quadriad"), None);
    }

    #[test]
    fn passes_compute_what_they_say() {
        let mut memory: Vec<f32> = (0..96).map(|i| i as f32).collect();
        for stream in [Stream::Update, Stream::Read, Stream::Triad] {
            Family::widest().run(Pass { stream, memory: &mut memory, each: 32 });
        }
        assert!((0..32).all(|i| memory[i] == i as f32));
        assert!((0..32).all(|i| memory[64 + i] == i as f32 + 0.5 * (32 + i) as f32));
        Family::widest().run(Pass { stream: Stream::Copy, memory: &mut memory, each: 32 });
        assert!((0..32).all(|i| memory[32 + i] == i as f32));
        Family::widest().run(Pass { stream: Stream::Write, memory: &mut memory, each: 32 });
        assert!(memory[..32].iter().all(|x| *x == 0.0));
    }
}
