//! What members and their coordinator say to each other.
//!
//! Nothing is said once and relied upon: a heartbeat carries all that a member knows, the answer all that it lacks. So
//! messages may be lost, repeated and overtake each other. Every reply carries the coordinator's term and the
//! incarnation that it speaks to, so that what was meant for another time or another process is not believed.

use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Members of one page of a table: a page of the longest names fits in a frame.
pub(crate) const PAGE: usize = 64;

/// Characters of a name, host or address.
const LONGEST_NAME: usize = 128;

/// Members of one group: as many as can be connected to one coordinator at once.
pub(crate) const LARGEST_GROUP: u32 = 8192;

/// An hour.
const LONGEST_WINDOW_MS: u64 = 3_600_000;

/// The number of a state of a group's members. Every change has a greater one, in all groups of a coordinator and over
/// all its restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before any.
    pub const NONE: Self = Self(0);

    /// The one after it.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who a member is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Unique within its group, and the same again when it returns.
    pub name: String,
    /// Which life of that name: a later one is greater.
    pub incarnation: u64,
    /// The node it lies on, as a person calls it (its host, if it has no name of its own), and by which ranks of one node are
    /// kept together.
    pub host: String,
    /// Where other members reach it; what it means is their affair.
    pub address: String,
}

/// What a group needs to come into being. All its members say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSettings {
    /// Members without which it does not act.
    pub min_size: u32,
    /// Members beyond which others wait in reserve.
    pub max_size: u32,
    /// How long those present wait for others once they are enough, milliseconds.
    pub join_window_ms: u64,
}

impl GroupSettings {
    /// A group of a fixed number of members.
    pub fn fixed(size: u32) -> Self {
        Self { min_size: size, max_size: size, join_window_ms: 0 }
    }

    /// Whether such a group can be.
    ///
    /// # Errors
    /// `Invalid`, naming the value.
    pub fn check(&self) -> Result<()> {
        let Self { min_size, max_size, join_window_ms } = self;
        if !(1..=*max_size).contains(min_size) || *max_size > LARGEST_GROUP {
            return Err(Error::invalid(format!(
                "a group of {min_size} to {max_size} members: give 1 <= min_size <= max_size <= {LARGEST_GROUP}"
            )));
        }
        if *join_window_ms > LONGEST_WINDOW_MS {
            return Err(Error::invalid(format!("join_window_ms is {join_window_ms}: give at most an hour")));
        }
        Ok(())
    }
}

/// Who belongs to an epoch, by rank.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Which state of the group this is.
    pub epoch: Epoch,
    /// The members; their place is their rank.
    pub members: Vec<Identity>,
}

impl Table {
    /// The rank of this life of a name.
    pub fn rank_of(&self, name: &str, incarnation: u64) -> Option<usize> {
        self.members.iter().position(|member| member.name == name && member.incarnation == incarnation)
    }
}

/// How far a member has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// The newest table it holds in full.
    pub known: Epoch,
    /// The newest that it has acknowledged: it acts in no older one any more.
    pub acknowledged: Epoch,
    /// Whether it was told that all have acknowledged that one.
    pub active: bool,
    /// The newest that is of no use to it: it was aborted, or the member itself found it broken.
    pub broken: Epoch,
}

/// What a member says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct Request {
    /// The group it speaks of.
    pub group: String,
    /// The greatest term that it has heard of.
    pub term: u64,
    /// What it wants.
    pub wish: Wish,
}

/// What a member wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Wish {
    /// To belong to the group; said again until a table comes.
    Join {
        /// Who it is.
        identity: Identity,
        /// What kind of group.
        settings: GroupSettings,
        /// Its `failure_detection`, milliseconds: all must have the coordinator's.
        failure_detection_ms: u64,
        /// When it says so, nanoseconds by its own clock.
        sent: u64,
    },
    /// To go on belonging.
    Stay {
        /// Its name.
        name: String,
        /// Which life of it.
        incarnation: u64,
        /// When it says so, nanoseconds by its own clock.
        sent: u64,
        /// How far it has come.
        standing: Standing,
    },
    /// To belong no more; it acts no more.
    Leave {
        /// Its name.
        name: String,
        /// Which life of it.
        incarnation: u64,
    },
}

impl Wish {
    /// The life of the member that wants it.
    pub fn incarnation(&self) -> u64 {
        match self {
            Self::Join { identity, .. } => identity.incarnation,
            Self::Stay { incarnation, .. } | Self::Leave { incarnation, .. } => *incarnation,
        }
    }
}

impl Request {
    /// Whether every name and number is possible.
    ///
    /// # Errors
    /// `Invalid`, naming what is not.
    pub(crate) fn check(&self) -> Result<()> {
        check_name("group", &self.group)?;
        match &self.wish {
            Wish::Join { identity, settings, .. } => {
                check_name("name", &identity.name)?;
                check_name("host", &identity.host)?;
                check_name("address", &identity.address)?;
                settings.check()
            }
            Wish::Stay { name, .. } | Wish::Leave { name, .. } => check_name("name", name),
        }
    }
}

/// Names are short and plain, so that a page of them has a bounded size and can be shown as it is.
fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    let shown: String = name.chars().take(LONGEST_NAME).collect();
    Err(Error::invalid(format!(
        "{what} {shown:?}: give 1 to {LONGEST_NAME} printable ASCII characters without spaces, quotes and backslashes"
    )))
}

/// What a coordinator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct Reply {
    /// Which life of the coordinator speaks.
    pub term: u64,
    /// Which life of the member is meant.
    pub incarnation: u64,
    /// What is new.
    pub news: News,
}

/// What a coordinator has to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum News {
    /// The sign of life of that moment has arrived.
    Heard {
        /// The moment, as the member gave it.
        sent: u64,
        /// Whether the member may act, in what it has acknowledged, for a lease from then on.
        lease: bool,
    },
    /// A part of a table.
    Page {
        /// The table's epoch.
        epoch: Epoch,
        /// Members of the whole table.
        size: u32,
        /// The rank of the first member here.
        first: u32,
        /// Members, by rank.
        members: Vec<Identity>,
    },
    /// All have acknowledged the epoch: act.
    Go {
        /// Which.
        epoch: Epoch,
    },
    /// The epoch is broken: end what is in flight.
    Abort {
        /// Which.
        epoch: Epoch,
        /// Ranks that are lost; none where a member asked for a new epoch.
        lost: Vec<u32>,
        /// Ranks that have left in good order: they took part in all that they had promised.
        left: Vec<u32>,
    },
    /// This life of the name belongs to the group no more.
    Fenced,
    /// The wish is impossible.
    Refused {
        /// Why, and the mend.
        message: String,
    },
}

/// The pages of a table.
pub(crate) fn pages(table: &Table) -> impl Iterator<Item = News> + '_ {
    table.members.chunks(PAGE).enumerate().map(|(number, members)| News::Page {
        epoch: table.epoch,
        size: table.members.len() as u32,
        first: (number * PAGE) as u32,
        members: members.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn identity(name: &str) -> Identity {
        Identity { name: name.into(), incarnation: u64::MAX, host: name.into(), address: name.into() }
    }

    #[test]
    fn the_largest_page_fits_in_a_frame() {
        let longest = identity(&"x".repeat(LONGEST_NAME));
        let table = Table { epoch: Epoch(u64::MAX), members: vec![longest; 3 * PAGE + 1] };
        let pages: Vec<News> = pages(&table).collect();
        assert_eq!(pages.len(), 4);
        for news in pages {
            frame::encode(&Reply { term: u64::MAX, incarnation: u64::MAX, news }).unwrap();
        }
    }

    #[test]
    fn names_and_sizes_that_cannot_be_are_refused() {
        for name in ["", "a b", "quo\"te", "\u{e9}", "back\\slash", &"x".repeat(129)] {
            let wish = Wish::Leave { name: name.into(), incarnation: 1 };
            let error = Request { group: "g".into(), term: 0, wish }.check().unwrap_err();
            assert_eq!(*error.kind(), Kind::Invalid);
        }
        for (min_size, max_size, join_window_ms) in [(0, 1, 0), (3, 2, 0), (1, u32::MAX, 0), (1, 1, u64::MAX)]
        {
            assert!(GroupSettings { min_size, max_size, join_window_ms }.check().is_err());
        }
        GroupSettings::fixed(1).check().unwrap();
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = frame::decode::<Request>(&bytes) {
                let _ = request.check();
            }
            let _ = frame::decode::<Reply>(&bytes);
        }

        #[test]
        fn almost_messages_never_panic(text in r#"\{"group":"[a-z"\\]{0,3}","term":[0-9-]{1,21},"wish":\{"(join|stay|leave)":[\[{}"a-z:0-9,]{0,20}\}\}"#) {
            if let Ok(request) = frame::decode::<Request>(text.as_bytes()) {
                let _ = request.check();
            }
        }
    }
}
