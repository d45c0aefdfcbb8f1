//! What is written to a file: one rank's record, as JSON.

use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The form of the file; another one is refused.
const FORM: u32 = 1;

/// A record of a thousand operations with all their peers is far smaller than this: a larger file is none.
const MOST_BYTES: u64 = 256 << 20;

/// One rank's last operations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlightLog {
    /// The form of this record.
    pub form: u32,
    /// Whose it is, by its number in the transport; so are all ranks below.
    pub rank: usize,
    /// Ranks of the transport.
    pub world_size: usize,
    /// What the communicator has failed with.
    pub failure: Option<String>,
    /// When time zero of the entries was, in microseconds since 1970 by this rank's calendar.
    pub epoch_us: u64,
    /// Older operations that are not in the record any more.
    pub forgotten: u64,
    /// The operations, in the order in which they were started.
    pub operations: Vec<FlightEntry>,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlightEntry {
    /// Which group; 0 for all ranks.
    pub group: u64,
    /// Sender and receiver of a message.
    pub message: Option<[usize; 2]>,
    /// Its place among the collectives of the group, or among the messages of the pair.
    pub sequence: u64,
    /// What it is, for a person.
    pub what: String,
    /// The ranks of its group.
    pub ranks: Vec<usize>,
    /// Its priority; not written if it is the lowest.
    #[serde(default, skip_serializing_if = "is_lowest")]
    pub level: usize,
    /// When it was started, in microseconds.
    pub started_us: u64,
    /// When something first moved.
    pub first_byte_us: Option<u64>,
    /// When it was over.
    pub done_us: Option<u64>,
    /// Bytes sent so far.
    pub bytes_sent: u64,
    /// Bytes received so far.
    pub bytes_received: u64,
    /// What is still to be moved to or from whom; empty once it is over.
    pub peers: Vec<PeerState>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
const fn is_lowest(level: &usize) -> bool {
    *level == 0
}

/// How far an operation is with one peer, in bytes; and in messages, of which some are empty: those count as under way
/// for as long as the operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerState {
    /// The peer.
    pub rank: usize,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes to be sent in all.
    pub to_send: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes to be received in all.
    pub to_receive: u64,
    /// Messages that the peer has yet to send.
    pub awaited: u64,
    /// Messages that have yet to leave for the peer.
    pub leaving: u64,
}

impl PeerState {
    pub(crate) fn new(rank: usize) -> Self {
        Self { rank, sent: 0, to_send: 0, received: 0, to_receive: 0, awaited: 0, leaving: 0 }
    }

    /// Counts in one message.
    pub(crate) fn add(&mut self, sends: bool, moved: u64, all: u64) {
        let (done, total, open) = if sends {
            (&mut self.sent, &mut self.to_send, &mut self.leaving)
        } else {
            (&mut self.received, &mut self.to_receive, &mut self.awaited)
        };
        *done += moved;
        *total += all;
        *open += u64::from(moved < all || all == 0);
    }

    /// Whether anything is left to move.
    pub(crate) fn is_open(&self) -> bool {
        self.awaited + self.leaving > 0
    }
}

impl FlightLog {
    pub(crate) fn new(rank: usize, world_size: usize) -> Self {
        let operations = Vec::new();
        Self { form: FORM, rank, world_size, failure: None, epoch_us: 0, forgotten: 0, operations }
    }

    /// The name of a rank's file in its folder.
    pub fn file_name(rank: usize) -> String {
        format!("flight-rank-{rank}.json")
    }

    /// Writes the record into a folder, which is made if need be; its file.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(Self::file_name(self.rank));
        disk::write_atomically(&path, |file| {
            let text = serde_json::to_vec(self).map_err(|error| {
                Error::internal("a flight record cannot be written as JSON").with_source(error)
            })?;
            file.write_all(&text).context(|| format!("cannot write {}", path.display()))
        })?;
        Ok(path)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// The system's; `Corrupt` when the file is none of ours, too large, or of another form.
    pub fn read(path: &Path) -> Result<Self> {
        let describe = || format!("cannot read {}", path.display());
        let mut bytes = Vec::new();
        let mut file = std::fs::File::open(path).context(describe)?.take(MOST_BYTES);
        file.read_to_end(&mut bytes).context(describe)?;
        Self::parse(&bytes).map_err(|error| error.within(path.display()))
    }

    /// Reads a record from bytes.
    ///
    /// # Errors
    /// `Corrupt` when they are none, or of another form.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let log: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt("this is no flight record").with_source(error))?;
        if log.form != FORM {
            return Err(Error::corrupt(format!("a flight record of form {}, not {FORM}", log.form)));
        }
        Ok(log)
    }
}

/// Reads the records of several ranks.
///
/// # Errors
/// Those of [`FlightLog::read`]; `Invalid` when two files are of one rank.
pub fn read_logs(paths: &[PathBuf]) -> Result<Vec<FlightLog>> {
    let mut logs: Vec<FlightLog> = paths.iter().map(|path| FlightLog::read(path)).collect::<Result<_>>()?;
    logs.sort_by_key(|log| log.rank);
    if let Some(twice) = logs.windows(2).find(|pair| pair[0].rank == pair[1].rank) {
        return Err(Error::invalid(format!(
            "two of these records are of rank {}: give one each",
            twice[0].rank
        )));
    }
    Ok(logs)
}
