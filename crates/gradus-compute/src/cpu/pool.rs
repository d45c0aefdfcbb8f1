//! Worker threads for the operations of one device.
//!
//! What: [`Pool::run`] calls a job once with each index `0..threads`, on that many threads, the caller's among them.
//! How: the job's address and a growing generation number stand under a mutex; workers spin on the generation for a
//! moment, then sleep on a condition variable. There is no queue and no stealing: index `i` always does part `i`, so
//! the same work falls to the same part on every run and sums keep their order.
//! Invariant: `run` returns, or panics, only when no worker touches the job any more.

use gradus_error::{IoContext, Result};
#[cfg(loom)]
use loom::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

/// Looks at the generation before a thread sleeps: about 20 microseconds, the time of a short operation between two
/// parallel ones.
const SPINS: u32 = if cfg!(loom) { 1 } else { 1000 };

/// Part `index` of `len` things cut into `parts` runs of whole `granule`s, as even as granules allow.
pub fn part(len: usize, granule: usize, parts: usize, index: usize) -> Range<usize> {
    let granules = len.div_ceil(granule);
    let edge = |index: usize| (granules * index / parts * granule).min(len);
    edge(index)..edge(index + 1)
}

/// A job whose lifetime is kept by [`Pool::run`] alone.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: the job is Sync, and run keeps it alive while workers hold the address.
unsafe impl Send for Job {}

#[derive(Default)]
struct State {
    job: Option<Job>,
    closing: bool,
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Grows with each job, under the mutex.
    generation: AtomicU64,
    /// Workers still at the current job.
    busy: AtomicUsize,
    start: Condvar,
    done: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock cannot leave the state half changed: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads that wait for work; dropping the pool ends and joins them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    spins: u32,
}

impl Pool {
    /// A pool of `threads`, of which `threads - 1` are started. Only if they fit the processors do they spin.
    ///
    /// # Errors
    /// `Unavailable` when the system starts no more threads.
    pub fn new(threads: usize) -> Result<Self> {
        let fit = threads <= gradus_host::processors::available();
        Self::with_spins(threads, if fit { SPINS } else { 0 })
    }

    /// A pool whose threads look so many times before they sleep.
    fn with_spins(threads: usize, spins: u32) -> Result<Self> {
        let mut pool = Self { shared: Arc::new(Shared::default()), workers: Vec::new(), spins };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || work(&shared, index, spins))
                .context(|| format!("cannot start compute thread {index} of {threads}"))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job` with each index below [`Pool::threads`] and waits for all.
    ///
    /// # Panics
    /// With the panic of the job, if it panics on any thread.
    pub fn run(&mut self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        self.begin(job);
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        let foreign = self.finish();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = foreign {
            resume_unwind(panic);
        }
    }

    fn begin(&self, job: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes; finish() waits until no worker uses the address.
        let job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(job) };
        let mut state = self.shared.lock();
        state.job = Some(Job(job));
        self.shared.busy.store(self.workers.len(), Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
        drop(state);
        self.shared.start.notify_all();
    }

    fn finish(&self) -> Option<Box<dyn Any + Send>> {
        let busy = || self.shared.busy.load(Ordering::Acquire) > 0;
        spin_while(self.spins, busy);
        let mut state = self.shared.lock();
        while busy() {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
        state.panic.take()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.generation.fetch_add(1, Ordering::Release);
        self.shared.start.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

fn spin_while(spins: u32, condition: impl Fn() -> bool) {
    let mut left = spins;
    while left > 0 && condition() {
        #[cfg(not(loom))]
        std::hint::spin_loop();
        #[cfg(loom)]
        loom::hint::spin_loop();
        left -= 1;
    }
}

/// Waits for a generation other than `seen` and returns its job, or `None` at the end.
fn next_job(shared: &Shared, seen: &mut u64, spins: u32) -> Option<Job> {
    let unchanged = |seen: u64| shared.generation.load(Ordering::Acquire) == seen;
    spin_while(spins, || unchanged(*seen));
    let mut state = shared.lock();
    while unchanged(*seen) && !state.closing {
        state = shared.start.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    *seen = shared.generation.load(Ordering::Acquire);
    if state.closing { None } else { state.job }
}

fn work(shared: &Shared, index: usize, spins: u32) {
    let mut seen = 0;
    while let Some(job) = next_job(shared, &mut seen, spins) {
        // SAFETY: run() keeps the job alive until this worker has counted itself out below.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*job.0)(index) }));
        if let Err(panic) = outcome {
            shared.lock().panic = Some(panic);
        }
        if shared.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Under the lock, so that the caller cannot have looked before and sleep after.
            let _state = shared.lock();
            shared.done.notify_one();
        }
    }
}

/// Every order in which threads can meet here, within bounds (Norris and Demsky 2013): `cargo x model`.
#[cfg(all(test, loom))]
mod models {
    use super::*;

    /// The pool as it runs, spinning or not.
    fn explore(threads: usize, preemptions: usize, body: impl Fn(Pool) + Sync + Send + Clone + 'static) {
        for spins in [0, SPINS] {
            let body = body.clone();
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(preemptions);
            builder.check(move || body(Pool::with_spins(threads, spins).unwrap()));
        }
    }

    /// Numbers that are not atomic: that each is touched by one thread after the other is what is checked.
    #[derive(Default)]
    struct Cells([loom::cell::UnsafeCell<u32>; 2]);

    // SAFETY: index i counts in cell i only, and nobody reads while a job runs; loom finds it if that were not so.
    unsafe impl Sync for Cells {}

    impl Cells {
        fn count(&self, index: usize) {
            // SAFETY: as above.
            self.0[index].with_mut(|cell| unsafe { *cell += 1 });
        }

        fn counts(&self) -> [u32; 2] {
            // SAFETY: as above.
            [0, 1].map(|index: usize| self.0[index].with(|cell| unsafe { *cell }))
        }
    }

    #[test]
    fn each_job_runs_once_on_each_index_and_is_seen_when_run_returns() {
        explore(2, 3, |mut pool| {
            let cells = Cells::default();
            for round in 1..=2 {
                pool.run(&|index| cells.count(index));
                assert_eq!(cells.counts(), [round; 2]);
            }
        });
    }

    #[test]
    fn three_threads_end_their_job_and_their_pool() {
        explore(3, 2, |mut pool| {
            let count = AtomicUsize::new(0);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 3);
        });
    }

    #[test]
    fn a_pool_that_was_never_used_ends() {
        explore(3, 2, drop);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once_in_whole_granules() {
        for (len, granule, parts) in [(0, 4, 3), (1, 4, 3), (100, 16, 3), (64, 16, 4), (7, 1, 7), (5, 1, 8)] {
            let ranges: Vec<_> = (0..parts).map(|index| part(len, granule, parts, index)).collect();
            assert_eq!((ranges[0].start, ranges[parts - 1].end), (0, len));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(ranges.iter().all(|range| range.start % granule == 0 || range.start == len));
        }
    }

    #[test]
    fn every_index_runs_once_per_job() {
        let mut pool = Pool::new(3).unwrap();
        let counts: [AtomicUsize; 3] = Default::default();
        for _ in 0..1000 {
            pool.run(&|index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1000));
    }

    #[test]
    fn a_panic_of_any_thread_surfaces_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).unwrap();
        for culprit in 0..3 {
            let outcome =
                catch_unwind(AssertUnwindSafe(|| pool.run(&|index| assert_ne!(index, culprit, "planted"))));
            assert!(outcome.is_err(), "{culprit}");
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 3);
    }
}
