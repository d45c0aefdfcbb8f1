//! The fast device of host processors.
//!
//! What: [`CpuDevice`] carries out every operation of [`Device`] with the vectors that the processor has (AVX-512 with
//! or without bf16, AVX2, plain Rust; AMX for products of bf16) on a fixed number of threads. How: `device` checks
//! sizes and resolves ranges (`memory`), `engine` cuts the work into parts by index (`pool`), and kernels written once
//! over `simd` do them: `gemm`, `attention`, `norm`, `elementwise`, `loss`, `update`, `newton_schulz`.
//! Invariants: operations are synchronous and one at a time; the same operations give the same bits on every run with
//! the same kernels and threads; after the first step no operation allocates.

mod amx;
mod attention;
pub mod ceilings;
mod cells;
mod device;
mod elementwise;
mod engine;
pub(crate) mod features;
mod gemm;
mod loss;
mod math;
mod memory;
mod newton_schulz;
mod norm;
mod pool;
pub(crate) mod simd;
mod update;

pub use features::{Kernels, VARIABLE};

use crate::device::{Format, Linear, Precision};
use elementwise::RopeTable;
use engine::Engine;
use gradus_error::Result;
use gradus_host::{Clock, RealClock};
use gradus_memory::Arena;
use memory::Scratch;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A host's processors as a device; see the module.
pub struct CpuDevice {
    arena: Arena,
    precision: Precision,
    working: Mutex<Working>,
}

/// What an operation has to itself while it runs.
struct Working {
    engine: Engine,
    /// For all threads of one operation together.
    shared: Scratch,
    rope: RopeTable,
}

impl CpuDevice {
    /// A device of `threads` threads (the caller's is one of them) with room for `capacity` f32 elements, and the
    /// fastest kernels that the processor has, or those that the variable [`VARIABLE`] names.
    ///
    /// # Errors
    /// `Invalid` when the variable names kernels that do not exist or that the processor cannot run; `Exhausted` or
    /// `Unavailable` when the system refuses memory or threads.
    pub fn new(threads: usize, precision: Precision, capacity: usize) -> Result<Self> {
        Self::with_kernels(threads, precision, capacity, Kernels::from_environment()?)
    }

    /// As [`CpuDevice::new`], with these kernels.
    ///
    /// # Errors
    /// As there.
    pub fn with_kernels(
        threads: usize,
        precision: Precision,
        capacity: usize,
        kernels: Kernels,
    ) -> Result<Self> {
        let engine = Engine::new(threads, precision, kernels)?;
        let working = Working { engine, shared: Scratch::new(0)?, rope: RopeTable::default() };
        Ok(Self { arena: Arena::reserve(capacity)?, precision, working: Mutex::new(working) })
    }

    /// Operations per second of this device's matrix products: the best of several of a large one. Takes about 0.2 s.
    pub fn peak_flops(&self) -> f64 {
        let mut working = self.working();
        let Working { engine, shared, .. } = &mut *working;
        // Whole blocks of rows for each thread, one block of the depth, and rows whose addresses do not all fall on
        // one set of the first cache.
        let shape = Linear { rows: 896 * engine.threads(), inputs: 384, outputs: 1152 };
        let (x_len, w_len) = (shape.rows * shape.inputs, shape.outputs * shape.inputs);
        let memory = shared.at_least(x_len + w_len + shape.rows * shape.outputs);
        memory.fill(0.5);
        let (x, rest) = memory.split_at_mut(x_len);
        let (weight, out) = rest.split_at_mut(w_len);
        let product = device::forward_product(
            shape,
            (memory::Elements::of(x), Format::F32),
            (memory::Elements::of(weight), Format::F32),
            memory::Elements::of_mut(out),
        );
        let clock = RealClock::new();
        let mut best = f64::INFINITY;
        while clock.now().as_secs_f64() < 0.2 {
            let start = clock.now();
            // SAFETY: three ranges apart, of these sizes, and nobody else's.
            unsafe { engine.product(product) };
            best = best.min((clock.now() - start).as_secs_f64());
        }
        product.flops() / best
    }

    /// Bytes of scratch that its operations have taken so far, beside what was allocated.
    pub fn scratch_bytes(&self) -> usize {
        let working = self.working();
        4 * (working.engine.scratch_len() + working.shared.len())
    }

    /// The engine and what goes with it; waits for an operation of another thread.
    fn working(&self) -> MutexGuard<'_, Working> {
        // An operation that panicked left numbers half computed, but threads and scratch as they should be.
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
