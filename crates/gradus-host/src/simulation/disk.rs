//! A disk that keeps what was synced and may lose the rest.
//!
//! It holds one file, replaced in the steps of [`crate::disk::write_atomically`]: write beside, sync, rename, sync the
//! folder. A process that is killed leaves what it has done so far; a machine that loses power leaves of unsynced bytes
//! a part of any length, and of an unsynced rename either name.

use crate::random::Stream;

/// One step of replacing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new bytes are written beside the old ones.
    Write,
    /// They are made durable.
    Sync,
    /// They take the old ones' name.
    Rename,
    /// The name is made durable.
    SyncFolder,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Write, Self::Sync, Self::Rename, Self::SyncFolder];
}

#[derive(Debug, Clone)]
struct Content {
    bytes: Vec<u8>,
    synced: bool,
}

/// One file on a disk that can lose power.
#[derive(Debug, Clone, Default)]
pub struct SimulatedDisk {
    beside: Option<Content>,
    /// What a reader finds under the file's name.
    named: Option<Content>,
    /// What the name surely stands for after a loss of power.
    durable: Option<Content>,
}

impl SimulatedDisk {
    /// What a reader finds.
    pub fn read(&self) -> Option<&[u8]> {
        self.named.as_ref().map(|content| content.bytes.as_slice())
    }

    /// Takes one step of replacing the file's content by `bytes`.
    pub fn take(&mut self, step: Step, bytes: &[u8]) {
        match step {
            Step::Write => self.beside = Some(Content { bytes: bytes.to_vec(), synced: false }),
            Step::Sync => self.beside.iter_mut().for_each(|content| content.synced = true),
            Step::Rename => self.named = self.beside.take().or(self.named.take()),
            Step::SyncFolder => self.durable = self.named.clone(),
        }
    }

    /// The machine loses power: what was not synced is lost in part, in whole or not at all, as chance has it.
    pub fn lose_power(&mut self, chance: &mut Stream) {
        self.beside = None;
        if chance.next_below(2) == 0 {
            self.named = self.durable.take();
        }
        if let Some(content) = self.named.as_mut().filter(|content| !content.synced) {
            let kept = chance.next_below(content.bytes.len() as u64 + 1);
            content.bytes.truncate(kept as usize);
            content.synced = true;
        }
        self.durable = self.named.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader finds after power was lost behind `done` of `steps`, over many chances.
    fn leftovers(steps: &[Step], done: usize) -> Vec<Vec<u8>> {
        let find = |seed| {
            let mut disk = SimulatedDisk::default();
            Step::ALL.iter().for_each(|step| disk.take(*step, b"old"));
            steps[..done].iter().for_each(|step| disk.take(*step, b"newer"));
            disk.lose_power(&mut Stream::new(seed, 0));
            disk.read().unwrap().to_vec()
        };
        (0..64).map(find).collect()
    }

    #[test]
    fn a_replaced_file_is_the_old_or_the_new_one_whenever_power_is_lost() {
        for done in 0..=4 {
            let found = leftovers(&Step::ALL, done);
            assert!(found.iter().all(|bytes| bytes == b"old" || bytes == b"newer"), "{done}: {found:?}");
            assert_eq!(found.iter().any(|bytes| bytes == b"newer"), done >= 3);
            assert_eq!(found.iter().any(|bytes| bytes == b"old"), done <= 3);
        }
    }

    #[test]
    fn without_the_first_sync_a_file_is_torn() {
        let found = leftovers(&[Step::Write, Step::Rename, Step::SyncFolder], 3);
        assert!(found.iter().any(|bytes| bytes != b"old" && bytes != b"newer"));
    }
}
