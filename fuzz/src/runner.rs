//! Runs targets on stable: first inputs, then altered ones, until time is up.
//!
//! Each target runs in a process of its own, be it the only one or a single input, so that whatever an input does (a panic, a signal, memory without bound, a
//! loop without end) is a finding of that target and ends no other.

use crate::mutate::mutate;
use crate::place::{self, Place};
use crate::{Target, files, find, targets};
use gradus_host::random::{self, Stream};
use gradus_host::{Clock, RealClock};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// The most memory that an input may cost beyond what was there before: some hundred times the longest input.
pub const MOST_MEMORY: usize = 64 << 20;

/// Tells a process that it is to run a target itself, and where to work.
const WITHIN: &str = "--within";

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
#[derive(Debug)]
pub struct Asked {
    /// One target, or all.
    pub target: Option<String>,
    /// How long, for all targets together.
    pub seconds: u64,
    /// Where chance begins.
    pub seed: Option<u64>,
    /// An input to run alone.
    pub replay: Option<PathBuf>,
    /// How many seconds longer than asked for a target may take before it is said to hang.
    pub grace: u64,
    /// Where to work, and to keep what is found.
    pub root: PathBuf,
    /// Given to the process that runs a target: where it works.
    place: Option<PathBuf>,
}

impl Default for Asked {
    fn default() -> Self {
        let root = place::usual();
        Self { target: None, seconds: 10, seed: None, replay: None, grace: 60, root, place: None }
    }
}

impl Asked {
    /// Reads the command line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut words = words;
        while let Some(flag) = words.next() {
            let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || value.parse().map_err(|_| format!("{flag} {value}: give a number"));
            match flag.as_str() {
                "--target" => asked.target = Some(value),
                "--seconds" => asked.seconds = number()?,
                "--seed" => asked.seed = Some(number()?),
                "--replay" => asked.replay = Some(value.into()),
                "--grace" => asked.grace = number()?,
                "--root" => asked.root = value.into(),
                WITHIN => asked.place = Some(value.into()),
                _ => {
                    return Err(format!(
                        "{flag}: give --seconds N, --seed N, --target NAME, --replay FILE, --grace N, --root FOLDER"
                    ));
                }
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
        let chosen = self.chosen()?;
        if let Some(place) = &self.place {
            return self.run_here(&chosen[0], place, seed, memory);
        }
        let place = Place::take(&self.root).map_err(|error| format!("{}: {error}", self.root.display()))?;
        let each = (self.seconds / chosen.len() as u64).max(1);
        let mut well = true;
        for (name, ..) in &chosen {
            well &= self.run_apart(name, &place.folder().join(name), each, seed)?;
        }
        place.leave();
        Ok(well)
    }

    /// The target that is named, or all.
    fn chosen(&self) -> Result<Vec<Target>, String> {
        let Some(name) = &self.target else { return Ok(targets()) };
        let names = || targets().iter().map(|target| target.0).collect::<Vec<_>>().join(", ");
        let target = find(name).ok_or_else(|| format!("{name} is no target: choose of {}", names()))?;
        Ok(vec![target])
    }

    /// Runs a target in this process.
    fn run_here(&self, target: &Target, place: &Path, seed: u64, memory: &Counting) -> Result<bool, String> {
        files::work_in(place.join("files"));
        let Some(file) = &self.replay else {
            return Ok(alter(target, Duration::from_secs(self.seconds), seed, place, memory));
        };
        let data = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(harmless(target, &data, memory).is_some())
    }

    /// Runs a target in a process of its own.
    fn run_apart(&self, name: &str, place: &Path, seconds: u64, seed: u64) -> Result<bool, String> {
        fs::create_dir(place).map_err(|error| format!("{}: {error}", place.display()))?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["--target", name, "--seconds", &seconds.to_string(), "--seed", &seed.to_string()]);
        command.arg(WITHIN).arg(place);
        command.args(self.replay.iter().flat_map(|file| ["--replay".as_ref(), file.as_os_str()]));
        let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        let asked = if self.replay.is_some() { 0 } else { seconds };
        let Err(how) = ends_well(child, Duration::from_secs(asked + self.grace)) else { return Ok(true) };
        let kept = match &self.replay {
            Some(file) => Some(file.clone()),
            None => place::keep_finding(&self.root, name, place).map_err(|error| error.to_string())?,
        };
        match kept {
            Some(file) => println!("{name}: {how} on {}", file.display()),
            None => println!("{name}: {how} before its first input"),
        }
        Ok(false)
    }
}

/// Waits for a target's process; how it ended, if not well.
fn ends_well(mut child: Child, limit: Duration) -> Result<(), String> {
    let clock = RealClock::new();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if clock.now() < limit => clock.sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("HANGS".to_owned());
            }
        }
    };
    if status.success() { Ok(()) } else { Err(format!("FAILED ({status})")) }
}

/// Runs a target on its first inputs and on altered ones until time is up; whether none did harm.
fn alter(target: &Target, time: Duration, seed: u64, place: &Path, memory: &Counting) -> bool {
    let (name, _, seeds) = target;
    let clock = RealClock::new();
    // Kept where it is found if this process ends.
    let current = File::create(place::current(place)).expect("an input can be kept");
    let noted = |data: &[u8]| {
        current.set_len(0).and_then(|()| current.write_all_at(data, 0)).expect("an input can be kept");
        harmless(target, data, memory)
    };
    let mut corpus = seeds();
    if !corpus.iter().all(|data| noted(data) == Some(true)) {
        println!("{name}: does not take what it comes with");
        return false;
    }
    corpus.extend(stored(name));
    let mut well = corpus.iter().all(|data| noted(data).is_some());
    let mut chance = Stream::new(seed, 0);
    let mut runs = 0;
    while well && clock.now() < time {
        well = noted(&mutate(&corpus, &mut chance)).is_some();
        runs += 1;
    }
    println!("{name}: {runs} inputs from seed {seed}{}", if well { "" } else { ", the last one does harm" });
    well
}

/// Inputs that were kept in `corpus/NAME`.
fn stored(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read(entry.path()).ok()).collect()
}

/// Whether an input is taken; `None` when it does harm.
fn harmless(target: &Target, data: &[u8], memory: &Counting) -> Option<bool> {
    let before = memory.begin();
    let ended = catch_unwind(AssertUnwindSafe(|| target.1(data)));
    let cost = memory.peak() - before;
    if cost > MOST_MEMORY {
        println!("{}: an input of {} bytes took {cost} bytes of memory", target.0, data.len());
        return None;
    }
    ended.ok()
}
