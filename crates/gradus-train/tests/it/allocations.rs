//! A step allocates nothing once the first is over.
//!
//! Every thread is counted, for a device has threads of its own; so each count is taken in a process in which one test runs
//! alone. Left out is what goes on around steps (reading samples, events, checkpoints), and collectives of several ranks:
//! what they take depends on how long they wait for each other.

use gradus_collective::Communicator;
use gradus_compute::{CpuDevice, Device, Format, IGNORED, Precision};
use gradus_host::RealClock;
use gradus_model::{Batch, Family, ModelConfig, PRESETS};
use gradus_train::{
    FirstWeights, Learner, LearnerSettings, Microbatches, OptimizerSettings, ParallelSettings, stages,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, OnceLock};

/// Set in the process of a test that runs alone.
const ALONE: &str = "GRADUS_TEST_ALONE";

static COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Where the first of them came from.
static FIRST: OnceLock<Backtrace> = OnceLock::new();

/// The system's allocator, which counts between two marks.
struct Counting;

thread_local! {
    /// Whether this thread is the harness's own, which allocates when it begins to wait for its test.
    static HARNESS: Cell<Option<bool>> = const { Cell::new(None) };
    /// Asking for a backtrace allocates too.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

impl Counting {
    fn count() {
        static BEGUN: AtomicBool = AtomicBool::new(false);
        // A process begins with that thread, and no other allocates before it.
        let harness = HARNESS.get().unwrap_or_else(|| !BEGUN.swap(true, SeqCst));
        HARNESS.set(Some(harness));
        if COUNTING.load(SeqCst) && !harness && !ASKING.replace(true) {
            COUNT.fetch_add(1, SeqCst);
            FIRST.get_or_init(Backtrace::force_capture);
            ASKING.set(false);
        }
    }
}

// SAFETY: every call is the system allocator's, with the same arguments; counting touches no memory of its callers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's word.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: the caller's word.
        unsafe { System.realloc(address, layout, size) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's word.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all threads while `body` runs.
fn allocations(body: impl FnOnce()) -> usize {
    assert_eq!(HARNESS.get(), Some(false), "a harness that runs tests on its own thread must be counted too");
    COUNT.store(0, SeqCst);
    COUNTING.store(true, SeqCst);
    body();
    COUNTING.store(false, SeqCst);
    COUNT.load(SeqCst)
}

/// Runs `body` in a process in which nothing else runs: the test called `name` once more, which then comes by here.
fn alone(name: &str, body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, "1");
    let output = again.output().unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

const SEQUENCE: usize = 24;
const VOCABULARY: usize = 300;
const SEQUENCES: usize = 5;

/// Tokens of two microbatches of one step: a whole one, and a short one whose documents are told apart.
struct Data {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    documents: Vec<u32>,
}

impl Data {
    fn new() -> Self {
        let rows = 0..(SEQUENCES * SEQUENCE) as u32;
        let targets = rows.clone().map(|i| if i % 7 == 0 { IGNORED } else { i * 13 % VOCABULARY as u32 });
        Self {
            tokens: rows.clone().map(|i| i * 11 % VOCABULARY as u32).collect(),
            targets: targets.collect(),
            documents: rows.map(|i| i % SEQUENCE as u32 / 10).collect(),
        }
    }
}

impl Microbatches for &Data {
    fn count(&self) -> usize {
        2
    }

    fn load(&mut self, index: usize) -> gradus_error::Result<Batch<'_>> {
        let batch = SEQUENCES - 2 * index;
        let rows = batch * SEQUENCE;
        Ok(Batch {
            batch,
            sequence: SEQUENCE,
            tokens: &self.tokens[..rows],
            targets: &self.targets[..rows],
            documents: (index == 1).then_some(&self.documents[..rows]),
        })
    }
}

fn model(family: Family) -> ModelConfig {
    let (_, preset) = PRESETS.iter().find(|(_, config)| config.family == family).unwrap();
    let sizes = |heads: usize, kv_heads: usize| ModelConfig {
        vocabulary: VOCABULARY,
        context: SEQUENCE + 8,
        width: 64,
        layers: 2,
        heads,
        kv_heads,
        head_size: 16,
        feed_forward: 160,
        ..preset.clone()
    };
    sizes(4, if family == Family::Gpt2 { 4 } else { 2 })
}

/// A learner on a world of one.
fn learner(family: Family, device: &Arc<CpuDevice>, recompute: bool) -> Learner {
    // Who has little memory has both.
    let masters = if recompute { Format::Bf16 } else { Format::F32 };
    let settings = LearnerSettings {
        optimizer: OptimizerSettings { masters, ..Default::default() },
        parallel: ParallelSettings::default(),
        stages: stages::cut(2, 1, 0.0),
        rows: SEQUENCES * SEQUENCE,
        microbatches: 2,
        recompute,
        bucket_bytes: 1 << 16,
    };
    let device: Arc<dyn Device> = Arc::clone(device) as _;
    let mut learner = Learner::new(model(family), &device, Communicator::alone(), settings).unwrap();
    learner.keep_account(Arc::new(RealClock::new()));
    learner.begin_with(&FirstWeights::Seed(1)).unwrap();
    learner
}

/// A step, and an evaluation.
fn run(learner: &mut Learner, mut data: &Data) {
    let result = learner.step(&mut data, 1e-3, false).unwrap();
    assert!(!result.skipped && result.gradient_norm > 0.0);
    assert!(learner.evaluate(&mut data).unwrap().targets > 0);
}

#[test]
fn a_step_allocates_nothing() {
    alone("allocations::a_step_allocates_nothing", || {
        let data = Data::new();
        for (threads, precision) in
            [(1, Precision::F32), (2, Precision::F32), (1, Precision::Bf16), (2, Precision::Bf16)]
        {
            for (family, recompute) in
                [(Family::Gpt2, false), (Family::Gpt2, true), (Family::Llama, false), (Family::Llama, true)]
            {
                let device = Arc::new(CpuDevice::new(threads, precision, 1 << 22).unwrap());
                let mut learner = learner(family, &device, recompute);
                run(&mut learner, &data);
                let held = [device.allocated(), device.scratch_bytes()];
                let count = allocations(|| (0..3).for_each(|_| run(&mut learner, &data)));
                let what = format!("{family:?}, recompute {recompute}, {}", device.describe());
                assert_eq!(count, 0, "allocations in three steps of {what}; the first:\n{}", first());
                assert_eq!(held, [device.allocated(), device.scratch_bytes()], "memory of {what}");
            }
        }
    });
}

/// Where the first allocation came from.
fn first() -> String {
    FIRST.get().map(Backtrace::to_string).unwrap_or_default()
}

#[test]
fn an_allocation_of_any_thread_is_counted() {
    alone("allocations::an_allocation_of_any_thread_is_counted", || {
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                barrier.wait();
                drop(std::hint::black_box(vec![0u8; 3]));
                barrier.wait();
            });
            // What starting a thread takes is over.
            barrier.wait();
            let count = allocations(|| {
                barrier.wait();
                barrier.wait();
            });
            assert_eq!(count, 1, "{}", first());
        });
        assert_eq!(allocations(|| ()), 0);
    });
}
