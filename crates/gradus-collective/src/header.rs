//! What stands before every message: enough to tell that both ranks are at the same place of the same collective.

use gradus_error::{Error, Result};
use std::fmt;

/// Bytes of a header: a cache line, so that what follows it in a ring in shared memory is aligned as the ring is.
pub(crate) const HEADER_BYTES: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"GrdC");

/// Which collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(crate) enum Operation {
    AllReduce = 1,
    Broadcast = 2,
    Barrier = 3,
}

/// What elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub(crate) enum Element {
    F32 = 1,
    F64 = 2,
    Byte = 3,
}

impl Element {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Byte => 1,
        }
    }
}

/// A collective, as all ranks must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Collective {
    pub(crate) sequence: u64,
    pub(crate) operation: Operation,
    pub(crate) element: Element,
    /// The root of a broadcast, 0 otherwise.
    pub(crate) root: u32,
    /// Elements in all.
    pub(crate) len: u64,
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elements = match self.element {
            Element::F32 => "f32",
            Element::F64 => "f64",
            Element::Byte => "bytes",
        };
        let Self { sequence, len, root, .. } = self;
        match self.operation {
            Operation::AllReduce => write!(f, "all-reduce number {sequence} of {len} {elements}"),
            Operation::Broadcast => {
                write!(f, "broadcast number {sequence} of {len} {elements} from rank {root}")
            }
            Operation::Barrier => write!(f, "barrier number {sequence}"),
        }
    }
}

/// One message of a collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) collective: Collective,
    /// Its place among those from this sender to this receiver.
    pub(crate) message: u32,
    /// Bytes that follow.
    pub(crate) bytes: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let Self { collective: c, message, bytes } = self;
        let mut out = [0; HEADER_BYTES];
        let words = [MAGIC, c.operation as u32, c.element as u32, c.root, *message];
        for (slot, word) in out.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        for (slot, word) in out[24..].chunks_exact_mut(8).zip([c.sequence, c.len, *bytes]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// `Corrupt` when it is none.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let u32_at =
            |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("all fields lie inside"));
        let u64_at =
            |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("all fields lie inside"));
        let corrupt =
            |what: &str| Error::corrupt(format!("a message begins with no header of ours ({what})"));
        if u32_at(0) != MAGIC || bytes[20..24] != [0; 4] || bytes[48..] != [0; 16] {
            return Err(corrupt("its mark is missing"));
        }
        let operation = [Operation::AllReduce, Operation::Broadcast, Operation::Barrier];
        let element = [Element::F32, Element::F64, Element::Byte];
        let operation =
            operation.into_iter().find(|o| *o as u32 == u32_at(4)).ok_or_else(|| corrupt("operation"))?;
        let element =
            element.into_iter().find(|e| *e as u32 == u32_at(8)).ok_or_else(|| corrupt("element"))?;
        let collective =
            Collective { sequence: u64_at(24), operation, element, root: u32_at(12), len: u64_at(32) };
        Ok(Self { collective, message: u32_at(16), bytes: u64_at(40) })
    }

    /// Holds a header that came from `peer` against the one that `rank` expects.
    ///
    /// # Errors
    /// `Invalid` naming both ranks and what each is doing.
    pub(crate) fn expect(&self, expected: &Self, rank: usize, peer: usize) -> Result<()> {
        if self == expected {
            return Ok(());
        }
        let (theirs, ours) = (self.collective, expected.collective);
        let detail = if theirs == ours {
            format!(
                ", message {} of {} bytes against message {} of {} bytes",
                self.message, self.bytes, expected.message, expected.bytes
            )
        } else {
            String::new()
        };
        Err(Error::invalid(format!(
            "rank {peer} is at {theirs} while rank {rank} is at {ours}{detail}: all ranks must start the same \
             collectives, with the same lengths, in the same order"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn header() -> Header {
        let (operation, element) = (Operation::Broadcast, Element::F64);
        let collective = Collective { sequence: 1 << 40, operation, element, root: 3, len: 1 << 50 };
        Header { collective, message: 7, bytes: u64::MAX }
    }

    #[test]
    fn a_header_survives_the_wire() {
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
    }

    #[test]
    fn any_difference_names_both_sides() {
        let ours = header();
        ours.expect(&ours, 0, 1).unwrap();
        let mut theirs = ours;
        theirs.collective.len = 12;
        let error = theirs.expect(&ours, 4, 5).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(
            ["rank 4", "rank 5", "of 12 f64", "1099511627776"].iter().all(|part| text.contains(part)),
            "{text}"
        );
        assert!(Header { message: 8, ..ours }.expect(&ours, 0, 1).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_or_read_but_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES), marked in any::<bool>()
        ) {
            if marked {
                let sound = header().encode();
                bytes[..4].copy_from_slice(&sound[..4]);
                bytes[20..24].fill(0);
                bytes[48..].fill(0);
                bytes[4..12].iter_mut().for_each(|byte| *byte &= 3);
            }
            let bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.expect(&header, 0, 1).is_ok());
            }
        }
    }
}
