//! For what readers waited.

use std::time::Duration;

/// What a reader can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A read of the bucket.
    Bucket,
    /// A read of the local disk, and the check of what it gave.
    Disk,
    /// A block that another node sends.
    Peer,
    /// Decompressing, or taking apart a Parquet column.
    Decode,
    /// A place in memory, all of which is in use.
    Memory,
    /// The rank that reads for this node, which alone knows what it waits for itself.
    Keeper,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Bucket, Self::Disk, Self::Peer, Self::Decode, Self::Memory, Self::Keeper];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bucket => "bucket",
            Self::Disk => "disk",
            Self::Peer => "peer",
            Self::Decode => "decode",
            Self::Memory => "memory",
            Self::Keeper => "keeper",
        }
    }
}

/// Time that readers waited, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stalls {
    /// Seconds, in the order of [`Cause::ALL`].
    pub seconds: [f64; Cause::ALL.len()],
    /// How often, in the same order.
    pub times: [u64; Cause::ALL.len()],
}

impl Stalls {
    /// Counts a wait.
    pub(crate) fn add(&mut self, cause: Cause, waited: Duration) {
        let index = cause as usize;
        self.seconds[index] += waited.as_secs_f64();
        self.times[index] += 1;
    }

    /// Counts what a reader waited for one sample.
    pub(super) fn add_all(&mut self, waited: &[Duration]) {
        for (cause, waited) in Cause::ALL.into_iter().zip(waited).filter(|(_, waited)| !waited.is_zero()) {
            self.add(cause, *waited);
        }
    }

    /// Counts what was waited for elsewhere.
    pub(super) fn add_stalls(&mut self, others: &Self) {
        for index in 0..Cause::ALL.len() {
            self.seconds[index] += others.seconds[index];
            self.times[index] += others.times[index];
        }
    }

    /// Seconds for one cause.
    pub fn of(&self, cause: Cause) -> f64 {
        self.seconds[cause as usize]
    }

    /// Seconds, whatever for.
    pub fn total_s(&self) -> f64 {
        self.seconds.iter().sum()
    }

    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let mut since = *self;
        for index in 0..Cause::ALL.len() {
            since.seconds[index] -= before.seconds[index];
            since.times[index] -= before.times[index];
        }
        since
    }
}
