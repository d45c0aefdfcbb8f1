//! Where the bytes of samples were when the walk came to them.

/// Bytes that samples are made of, those read ahead included, by where they were found; as they are stored, so that of a
/// compressed unit the first sample counts all, and the others their own bytes as found in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Brought {
    /// In memory, or on their way there for another sample.
    pub memory: u64,
    /// On the disk of this host: in the cache's folder, or in the files that the data are.
    pub disk: u64,
    /// With another node.
    pub peer: u64,
    /// In the bucket alone.
    pub bucket: u64,
}

impl Brought {
    /// From wherever.
    pub fn total(&self) -> u64 {
        self.memory + self.disk + self.peer + self.bucket
    }
}

impl std::ops::AddAssign for Brought {
    fn add_assign(&mut self, more: Self) {
        self.memory += more.memory;
        self.disk += more.disk;
        self.peer += more.peer;
        self.bucket += more.bucket;
    }
}
