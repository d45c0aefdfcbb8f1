//! What carries operations out: threads, their scratch, and the choice of kernels.

use super::amx;
use super::attention::KernelOperation;
use super::features::{Family, Handed, Kernels};
use super::gemm::{Dot, Pairs, Preparation, Product, SCRATCH, Single, TileKernel, Vectors};
use super::memory::Scratch;
use super::pool::{Pool, part};
#[cfg(target_arch = "x86_64")]
use super::simd::Avx512;
use super::simd::{Operation, Simd};
use crate::device::Precision;
use gradus_error::Result;
use std::marker::PhantomData;
use std::ops::Range;

/// Work below this many multiplications or element operations is not worth waking threads for (about 10 us).
const WORTH_SHARING: usize = 200_000;

/// How matrix products are computed.
#[derive(Clone, Copy)]
enum Products {
    /// In f32.
    Single,
    /// In f32, operands rounded to bf16.
    Rounded,
    /// By AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    Pairs(Avx512<true>),
    /// By AMX.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles(amx::Tiles<Avx512<true>, amx::Hardware>),
}

/// How attention, and a few rows, multiply: as the device's other products do.
#[derive(Clone, Copy)]
pub enum Dots {
    /// In f32.
    Single(Family),
    /// In f32, operands rounded to bf16.
    Rounded(Family),
    /// By AVX512-BF16.
    #[cfg(target_arch = "x86_64")]
    Pairs(Avx512<true>),
    /// By AMX; what is no product of blocks, by AVX512-BF16.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles(amx::Tiles<Avx512<true>, amx::Hardware>),
}

impl Dots {
    /// Runs an operation compiled for their vectors, with the instructions that multiply pairs where there are some.
    pub fn enter<O: Operation>(self, operation: O) -> O::Output {
        match self {
            Self::Single(family) | Self::Rounded(family) => family.run(operation),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(s) => s.vectorize(operation),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Tiles(kernel) => kernel.simd().vectorize(operation),
        }
    }

    /// Whether attention's products are turned: see [`super::attention`].
    pub fn turn(self) -> bool {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if matches!(self, Self::Tiles(_)) {
            return true;
        }
        false
    }

    /// Runs an operation compiled for them.
    pub fn run<O: KernelOperation>(self, operation: O) {
        match self {
            Self::Single(family) => family.hand(InVectors::<O, Single<false>>(operation, PhantomData)),
            Self::Rounded(family) => family.hand(InVectors::<O, Single<true>>(operation, PhantomData)),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(s) => operation.run(Vectors::<_, Pairs>::new(s)),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Tiles(kernel) => operation.run(kernel),
        }
    }
}

/// An operation with its way to multiply.
struct InVectors<O, D>(O, PhantomData<D>);

impl<O: KernelOperation, D: Dot> Handed for InVectors<O, D> {
    fn take<S: Simd>(self, s: S) {
        self.0.run(Vectors::<S, D>::new(s));
    }
}

/// Threads and kernels of one device.
pub struct Engine {
    pool: Pool,
    scratch: Vec<Scratch>,
    /// The vectors of the family.
    pub family: Family,
    products: Products,
    precision: Precision,
    /// What a person should know about the choice of kernels.
    note: &'static str,
}

/// The address of the threads' scratch.
struct Each(*mut Scratch);

// SAFETY: thread `index` takes element `index` only.
unsafe impl Sync for Each {}

impl Engine {
    /// Threads and kernels for this precision.
    ///
    /// # Errors
    /// `Invalid` when the processor cannot run the kernels; `Unavailable` or `Exhausted` when the system has no more
    /// threads or memory.
    pub fn new(threads: usize, precision: Precision, kernels: Kernels) -> Result<Self> {
        let family = Family::of(kernels)?;
        let (products, note) = choose(precision, kernels);
        let pool = Pool::new(threads.max(1))?;
        let scratch = (0..pool.threads()).map(|_| Scratch::new(SCRATCH)).collect::<Result<_>>()?;
        Ok(Self { pool, scratch, family, products, precision, note })
    }

    /// Kernels, threads and precision.
    pub fn describe(&self) -> String {
        let vectors = match self.family {
            Family::Plain(_) => "plain",
            #[cfg(target_arch = "x86_64")]
            Family::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Family::Avx512(_) => "avx512",
        };
        let products = match self.products {
            Products::Single | Products::Rounded => "",
            #[cfg(target_arch = "x86_64")]
            Products::Pairs(_) => " + avx512_bf16",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Products::Tiles(_) => " + amx_bf16",
        };
        let threads = self.pool.threads();
        let s = if threads == 1 { "" } else { "s" };
        let precision = format!("{:?}", self.precision).to_lowercase();
        format!("cpu: {vectors}{products}, {threads} thread{s}, {precision}{}", self.note)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Elements of scratch of all threads.
    pub fn scratch_len(&self) -> usize {
        self.scratch.iter().map(Scratch::len).sum()
    }

    /// Calls `job(index, scratch)` for each index below `parts`, at most the number of threads, at once.
    pub fn parts(&mut self, parts: usize, job: impl Fn(usize, &mut Scratch) + Sync) {
        if parts <= 1 {
            return job(0, &mut self.scratch[0]);
        }
        let scratch = Each(self.scratch.as_mut_ptr());
        let scratch = &scratch;
        self.pool.run(&|index| {
            if index < parts {
                // SAFETY: there is one scratch for each thread, and each index runs on one thread.
                job(index, unsafe { &mut *scratch.0.add(index) });
            }
        });
    }

    /// Cuts `0..len` into whole granules for the threads, or for one if `len * cost` is too little to share.
    pub fn split(
        &mut self,
        len: usize,
        granule: usize,
        cost: usize,
        job: impl Fn(Range<usize>, &mut Scratch) + Sync,
    ) {
        let parts = self.worth(len.saturating_mul(cost));
        self.parts(parts, |index, scratch| {
            let range = part(len, granule, parts, index);
            if !range.is_empty() {
                job(range, scratch);
            }
        });
    }

    /// Threads for that much work.
    pub fn worth(&self, work: usize) -> usize {
        if work < WORTH_SHARING { 1 } else { self.threads() }
    }

    /// Runs on one part an operation made for it, compiled with the instructions that multiply and round bf16 where there
    /// are some.
    pub fn each<O: Operation<Output = ()>>(
        &mut self,
        len: usize,
        granule: usize,
        cost: usize,
        make: impl Fn(Range<usize>) -> O + Sync,
    ) {
        let dots = self.dots();
        self.split(len, granule, cost, |range, _| dots.enter(make(range)));
    }

    /// How attention, and a few rows, multiply.
    pub fn dots(&self) -> Dots {
        match self.products {
            Products::Single => Dots::Single(self.family),
            Products::Rounded => Dots::Rounded(self.family),
            #[cfg(target_arch = "x86_64")]
            Products::Pairs(s) => Dots::Pairs(s),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Products::Tiles(kernel) => Dots::Tiles(kernel),
        }
    }

    /// Whether operands are rounded to bf16 before they are multiplied as f32.
    pub fn rounds(&self) -> bool {
        self.precision == Precision::Bf16
    }

    /// A matrix product.
    ///
    /// # Safety
    /// It is valid, and nobody else writes its target or operands.
    pub unsafe fn product(&mut self, product: Product<'_>) {
        let threads = self.worth(product.flops() as usize);
        let (products, family) = (self.products, self.family);
        self.parts(threads, |index, scratch| {
            products.hand(family, Share { product, threads, index, scratch });
        });
    }

    /// Elements that the panels of a product's right side take.
    pub fn panels_len(&self, lines: usize, depth: usize) -> usize {
        self.products.hand(self.family, Measure { lines, depth })
    }

    /// Packs them, once for many products.
    ///
    /// # Safety
    /// The preparation is valid, and nobody else writes what it reads and writes.
    pub unsafe fn prepare(&mut self, preparation: Preparation) {
        let (products, family) = (self.products, self.family);
        let panel = products.hand(family, PanelLines);
        self.split(preparation.lines, panel, preparation.depth, |lines, _| {
            products.hand(family, Pack { preparation, lines });
        });
    }
}

/// Work for whichever kernel computes products.
trait KernelJob {
    type Output;
    fn run<K: TileKernel>(self, kernel: K) -> Self::Output;
}

impl Products {
    fn hand<J: KernelJob>(self, family: Family, job: J) -> J::Output {
        match self {
            Self::Single => family.run(InFamily::<J, Single<false>>(job, PhantomData)),
            Self::Rounded => family.run(InFamily::<J, Single<true>>(job, PhantomData)),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(s) => job.run(Vectors::<_, Pairs>::new(s)),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Tiles(kernel) => job.run(kernel),
        }
    }
}

/// The products for a precision, and what to say about them.
fn choose(precision: Precision, kernels: Kernels) -> (Products, &'static str) {
    if precision == Precision::F32 {
        return (Products::Single, "");
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let distrusted = match Avx512::detect().and_then(amx::Tiles::detect) {
        Some(tiles) if kernels == Kernels::Amx && amx::hardware_agrees() => {
            return (Products::Tiles(tiles), "");
        }
        Some(_) if kernels == Kernels::Amx => {
            ", amx left unused: its results differ from what they should be"
        }
        // No such processor is known.
        None if kernels == Kernels::Amx => ", amx left unused: it wants avx512_bf16 beside it",
        _ => "",
    };
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let distrusted = "";
    #[cfg(target_arch = "x86_64")]
    if let (Kernels::Avx512 | Kernels::Amx, Some(s)) = (kernels, Avx512::detect()) {
        return (Products::Pairs(s), distrusted);
    }
    (Products::Rounded, distrusted)
}

/// One thread's share of a product.
struct Share<'a> {
    product: Product<'a>,
    threads: usize,
    index: usize,
    scratch: &'a mut Scratch,
}

impl KernelJob for Share<'_> {
    type Output = ();

    fn run<K: TileKernel>(self, kernel: K) {
        let scratch = self.scratch.at_least(self.product.scratch::<K>());
        // SAFETY: made only in Engine::product, whose caller vouches for the product.
        unsafe { self.product.run(kernel, self.threads, self.index, scratch) };
    }
}

/// How many elements panels take.
struct Measure {
    lines: usize,
    depth: usize,
}

impl KernelJob for Measure {
    type Output = usize;

    fn run<K: TileKernel>(self, kernel: K) -> usize {
        Preparation::len(kernel, self.lines, self.depth)
    }
}

/// How many lines a panel of columns has.
struct PanelLines;

impl KernelJob for PanelLines {
    type Output = usize;

    fn run<K: TileKernel>(self, kernel: K) -> usize {
        kernel.columns()
    }
}

/// Some panels of a preparation.
struct Pack {
    preparation: Preparation,
    lines: Range<usize>,
}

impl KernelJob for Pack {
    type Output = ();

    fn run<K: TileKernel>(self, kernel: K) {
        // SAFETY: made only in Engine::prepare, whose caller vouches for the preparation; parts are whole panels.
        unsafe { self.preparation.run(kernel, self.lines) };
    }
}

/// A job by the vectors of a family.
struct InFamily<J, D>(J, PhantomData<D>);

impl<J: KernelJob, D: super::gemm::Dot> Operation for InFamily<J, D> {
    type Output = J::Output;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> J::Output {
        self.0.run(Vectors::<S, D>::new(s))
    }
}
