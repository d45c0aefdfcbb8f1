//! Runs targets on stable: first inputs, then altered ones, until time is up.
//!
//! Each target runs in a process of its own, so that whatever an input does (a panic, a signal, memory without bound, a
//! loop without end) is a finding of that target and ends no other.

use crate::mutate::mutate;
use crate::{Target, files, find, targets};
use gradus_host::random::{self, Stream};
use gradus_host::{Clock, RealClock};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// The most memory that an input may cost beyond what was there before: some hundred times the longest input.
pub const MOST_MEMORY: usize = 64 << 20;

/// How much longer than asked for a target may take before it is said to hang.
const GRACE: Duration = Duration::from_secs(60);

/// Counts what is allocated.
pub struct Counting {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Counting {
    /// Nothing counted yet.
    pub const fn new() -> Self {
        Self { now: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// Begins anew to look for the most; what is allocated now.
    fn begin(&self) -> usize {
        let now = self.now.load(Relaxed);
        self.peak.store(now, Relaxed);
        now
    }

    fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }
}

impl Default for Counting {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every call is the system allocator's; counting touches no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), Relaxed) + layout.size();
        self.peak.fetch_max(now, Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

/// What is asked of this program.
#[derive(Debug, Default)]
pub struct Asked {
    /// One target, or all.
    pub target: Option<String>,
    /// How long, for all targets together.
    pub seconds: u64,
    /// Where chance begins.
    pub seed: Option<u64>,
    /// An input to run alone.
    pub replay: Option<PathBuf>,
}

impl Asked {
    /// Reads the command line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self { seconds: 10, ..Self::default() };
        let mut words = words;
        while let Some(flag) = words.next() {
            let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || value.parse().map_err(|_| format!("{flag} {value}: give a number"));
            match flag.as_str() {
                "--target" => asked.target = Some(value),
                "--seconds" => asked.seconds = number()?,
                "--seed" => asked.seed = Some(number()?),
                "--replay" => asked.replay = Some(value.into()),
                _ => return Err(format!("{flag}: give --seconds N, --seed N, --target NAME, --replay FILE")),
            }
        }
        Ok(asked)
    }

    /// Does it; whether nothing was found.
    ///
    /// # Errors
    /// What is wrong with what was asked, or with the system.
    pub fn run(&self, memory: &Counting) -> Result<bool, String> {
        let seed = self.seed.unwrap_or_else(random::seed_from_system);
        let Some(name) = &self.target else { return self.run_all(seed) };
        let names: Vec<&str> = targets().iter().map(|target| target.0).collect();
        let target =
            find(name).ok_or_else(|| format!("{name} is no target: choose of {}", names.join(", ")))?;
        let well = match &self.replay {
            Some(file) => {
                let data = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
                harmless(&target, &data, memory)
            }
            None => alter(&target, Duration::from_secs(self.seconds), seed, memory),
        };
        files::clean();
        Ok(well)
    }

    /// Each target in a process of its own, one after the other.
    fn run_all(&self, seed: u64) -> Result<bool, String> {
        let all = targets();
        let each = Duration::from_secs((self.seconds / all.len() as u64).max(1));
        let mut well = true;
        for (name, ..) in &all {
            let program = std::env::current_exe().map_err(|error| error.to_string())?;
            let mut command = Command::new(program);
            command.args(["--target", name, "--seconds", &each.as_secs().to_string()]);
            command.args(["--seed", &seed.to_string()]);
            let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
            well &= ends_well(name, child, each + GRACE);
        }
        Ok(well)
    }
}

/// Waits for a target's process.
fn ends_well(name: &str, mut child: Child, limit: Duration) -> bool {
    let clock = RealClock::new();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if clock.now() < limit => clock.sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                println!("{name}: HANGS on {}", current(name).display());
                return false;
            }
        }
    };
    if !status.success() {
        println!("{name}: FAILED ({status}) on {}", current(name).display());
    }
    status.success()
}

/// Where findings go.
fn artifacts(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(name)
}

/// The input that a target is working on, or was when it ended.
fn current(name: &str) -> PathBuf {
    artifacts(name).join("current")
}

/// Runs a target on its first inputs and on altered ones until time is up; whether none did harm.
fn alter(target: &Target, time: Duration, seed: u64, memory: &Counting) -> bool {
    let (name, _, seeds) = target;
    let clock = RealClock::new();
    let mut corpus = seeds();
    corpus.extend(stored(name));
    fs::create_dir_all(artifacts(name)).expect("a folder for findings can be made");
    let mut chance = Stream::new(seed, 0);
    let mut runs = 0;
    let mut well = corpus.iter().all(|data| noted(target, data, memory));
    while well && clock.now() < time {
        well = noted(target, &mutate(&corpus, &mut chance), memory);
        runs += 1;
    }
    println!("{name}: {runs} inputs from seed {seed}{}", if well { "" } else { ", the last one does harm" });
    if well {
        let _ = fs::remove_file(current(name));
    }
    well
}

/// Inputs that were kept in `corpus/NAME`.
fn stored(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read(entry.path()).ok()).collect()
}

/// As [`harmless`], with the input kept where it is found if this process ends.
fn noted(target: &Target, data: &[u8], memory: &Counting) -> bool {
    fs::write(current(target.0), data).expect("an input can be kept");
    harmless(target, data, memory)
}

fn harmless(target: &Target, data: &[u8], memory: &Counting) -> bool {
    let before = memory.begin();
    let ended = catch_unwind(AssertUnwindSafe(|| target.1(data)));
    let cost = memory.peak() - before;
    if cost > MOST_MEMORY {
        println!("{}: an input of {} bytes took {cost} bytes of memory", target.0, data.len());
    }
    ended.is_ok() && cost <= MOST_MEMORY
}
