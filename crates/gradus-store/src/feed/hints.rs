//! Whether it is worth telling the system which parts of files are read soon.
//!
//! A hint for what lies in the page cache already costs some hundredths of reading it, and is in vain. Whether it was shows in
//! how long it takes: one that makes the system read has to find memory and ask a disk. So hints stop when many in a row
//! did nothing, and go on once a read was slow, which one of a page cache is not.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// So many hints in a row did nothing: the files are in memory.
const ENOUGH: u32 = 64;

/// What a hint takes at most that finds everything in memory: some nanoseconds for each page of 4 KiB.
const QUICK: Pace = Pace { call: Duration::from_micros(5), mebibyte: Duration::from_micros(25) };

/// What a read takes at most that does.
const SWIFT: Pace = Pace { call: Duration::from_micros(50), mebibyte: Duration::from_micros(700) };

/// So long for a call, and for each 2^20 bytes of it.
struct Pace {
    call: Duration,
    mebibyte: Duration,
}

impl Pace {
    fn covers(&self, bytes: u64, took: Duration) -> bool {
        took <= self.call + self.mebibyte.mul_f64(bytes as f64 / (1 << 20) as f64)
    }
}

/// Knows how many hints were in vain. Shared by all who read: that they count past each other does no harm.
#[derive(Debug, Default)]
pub(super) struct Hints {
    in_vain: AtomicU32,
}

impl Hints {
    /// Whether to give one.
    pub fn are_wanted(&self) -> bool {
        self.in_vain.load(Ordering::Relaxed) < ENOUGH
    }

    /// One for so many bytes was given, and took so long.
    pub fn gave(&self, bytes: u64, took: Duration) {
        if QUICK.covers(bytes, took) {
            self.in_vain.fetch_add(1, Ordering::Relaxed);
        } else {
            self.in_vain.store(0, Ordering::Relaxed);
        }
    }

    /// So many bytes were read in so long.
    pub fn read(&self, bytes: u64, took: Duration) {
        if !self.are_wanted() && !SWIFT.covers(bytes, took) {
            self.in_vain.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: u64 = 100 << 10;

    fn given(hints: &Hints, times: u32, micros: u64) {
        (0..times).for_each(|_| hints.gave(SAMPLE, Duration::from_micros(micros)));
    }

    #[test]
    fn hints_stop_when_many_in_a_row_did_nothing_and_go_on_after_a_slow_read() {
        let hints = Hints::default();
        given(&hints, ENOUGH - 1, 2);
        given(&hints, 1, 40);
        assert!(hints.are_wanted(), "one of them made the system read");
        given(&hints, ENOUGH, 2);
        assert!(!hints.are_wanted());
        hints.read(SAMPLE, Duration::from_micros(30));
        assert!(!hints.are_wanted(), "that is what memory takes");
        hints.read(SAMPLE, Duration::from_millis(5));
        assert!(hints.are_wanted());
    }

    #[test]
    fn what_is_quick_depends_on_the_bytes() {
        let hints = Hints::default();
        (0..ENOUGH).for_each(|_| hints.gave(64 << 20, Duration::from_millis(1)));
        assert!(!hints.are_wanted());
        hints.read(64 << 20, Duration::from_millis(40));
        assert!(!hints.are_wanted());
    }
}
