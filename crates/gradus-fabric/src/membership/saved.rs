//! What a coordinator must not forget, as bytes in a file or in etcd.

use super::message::{Epoch, GroupSettings, Table};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The form of the bytes; a coordinator reads its own only.
const VERSION: u32 = 2;

/// The most that terms and epochs count to: at a million a second the age of the earth is not enough, and there is room
/// above for those to come.
const MOST_COUNTED: u64 = 1 << 62;

/// What outlives a coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    version: u32,
    /// `failure_detection` of the coordinator that wrote it, from which the leases of its members follow, milliseconds.
    pub(super) failure_detection_ms: u64,
    /// The coordinator's lives so far.
    pub(super) term: u64,
    /// The greatest epoch given to any group.
    pub(super) last_epoch: Epoch,
    /// Groups that have members, or had some whose leases still ran.
    pub(super) groups: Vec<SavedGroup>,
}

/// A group, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedGroup {
    pub(super) name: String,
    pub(super) settings: GroupSettings,
    pub(super) table: Table,
}

impl Saved {
    /// The state of a coordinator that has never lived.
    pub(super) fn first() -> Self {
        Self::new(0, 0, Epoch::NONE, Vec::new())
    }

    pub(super) fn new(
        failure_detection_ms: u64,
        term: u64,
        last_epoch: Epoch,
        groups: Vec<SavedGroup>,
    ) -> Self {
        Self { version: VERSION, failure_detection_ms, term, last_epoch, groups }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers are always JSON")
    }

    /// # Errors
    /// `Corrupt` when the bytes are no state, or none that could have been written.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let saved: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt("it holds no state of a coordinator").with_source(error))?;
        if saved.version != VERSION {
            return Err(Error::corrupt(format!("it has version {}, not {VERSION}", saved.version)));
        }
        if saved.term > MOST_COUNTED || saved.last_epoch.0 > MOST_COUNTED {
            return Err(Error::corrupt("it counts terms or epochs that no coordinator lives to see"));
        }
        saved.groups.iter().try_for_each(|group| saved.check(group))?;
        Ok(saved)
    }

    fn check(&self, group: &SavedGroup) -> Result<()> {
        let Table { epoch, members } = &group.table;
        let possible = *epoch <= self.last_epoch && members.len() <= group.settings.max_size as usize;
        match group.settings.check() {
            Ok(()) if possible => Ok(()),
            _ => Err(Error::corrupt(format!("its group {} cannot be", group.name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn example() -> Saved {
        let table = Table { epoch: Epoch(7), members: Vec::new() };
        let group = SavedGroup { name: "g".into(), settings: GroupSettings::fixed(2), table };
        Saved::new(1000, 3, Epoch(7), vec![group])
    }

    #[test]
    fn what_was_saved_is_read_again_and_no_part_of_it_alone() {
        let bytes = example().to_bytes();
        assert_eq!(Saved::from_bytes(&bytes).unwrap(), example());
        for end in 0..bytes.len() {
            assert_eq!(*Saved::from_bytes(&bytes[..end]).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn what_no_coordinator_wrote_is_refused() {
        let impossible: [fn(&mut Saved); 5] = [
            |saved| saved.version = 1,
            |saved| saved.last_epoch = Epoch(6),
            |saved| saved.last_epoch = Epoch(u64::MAX),
            |saved| saved.term = u64::MAX,
            |saved| saved.groups[0].settings.min_size = 0,
        ];
        for change in impossible {
            let mut saved = example();
            change(&mut saved);
            assert_eq!(*Saved::from_bytes(&saved.to_bytes()).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    proptest! {
        #[test]
        fn an_altered_file_never_panics(at in 0..200usize, byte: u8) {
            let mut bytes = example().to_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Saved::from_bytes(&bytes);
        }
    }
}
