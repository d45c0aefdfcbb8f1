//! Preparing takes the same memory however large the input is.
//!
//! A program of its own, with one test: it counts every allocation of the process.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use gradus_store::{PrepareSettings, prepare};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of the bytes that are held.
struct Counting;

// SAFETY: every call is the system allocator's, with the same arguments; counting touches no memory of its callers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Text of about `bytes` in files of one document (one line of JSON for `jsonl`), with words that go on being new.
fn write(path: &Path, bytes: usize) {
    let json = path.extension().is_some_and(|extension| extension == "jsonl");
    let mut out = BufWriter::new(File::create(path).unwrap());
    let mut written = 0;
    for line in 0u64.. {
        let text = format!("let value_{} = {};", line.wrapping_mul(0x9E37_79B9) % 65_521, line % 997);
        let text = if json { format!("{{\"text\": \"{text}\"}}\n") } else { format!("{text}\n") };
        out.write_all(text.as_bytes()).unwrap();
        written += text.len();
        if written >= bytes {
            return out.flush().unwrap();
        }
    }
}

/// The most bytes that preparing a file held at once, beyond those held before.
fn most_held(home: &Path, name: &str, bytes: usize) -> usize {
    let path = home.join(name);
    write(&path, bytes);
    let settings = PrepareSettings {
        input: vec![path.display().to_string()],
        prepared: home.join(format!("{name}.{bytes}")).display().to_string(),
        sequence_length: 64,
        tokenizer_sample_bytes: 1_000_000,
        vocabulary: 400,
        ..PrepareSettings::default()
    };
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    prepare(&settings, &mut |_| ()).unwrap();
    MOST.load(Relaxed) - before
}

#[test]
fn memory_does_not_grow_with_the_input() {
    let home = tempfile::tempdir().unwrap();
    for name in ["a.txt", "a.jsonl"] {
        let [small, large] = [16 << 20, 64 << 20].map(|bytes| most_held(home.path(), name, bytes));
        println!("{name}: {small} and {large} bytes");
        // Four times the input: what grows with it would show. Queues are seldom equally full, hence the margin.
        assert!(large < small + small / 2, "{name}: {small} bytes held for 16 MiB, {large} for 64 MiB");
        assert!(large < 256 << 20, "{name}: {large}");
    }
}
