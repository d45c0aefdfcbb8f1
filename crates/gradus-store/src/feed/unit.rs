//! The bytes of one unit on their way, and there.
//!
//! A unit is what is decoded as a whole: for most formats a sample. Its bytes lie in blocks, each of which is in memory, on
//! disk, or coming from the bucket or a peer; in a local file they are read where they are. What is still to be done is
//! done by the first reader who needs the unit, and what it waited for is counted by cause.
//!
//! Invariant: whoever needs a block that is to be read from disk can read it: nobody waits for another reader's turn.

use super::buffers::Buffer;
use super::stalls::Cause;
use crate::blocks::ObjectInfo;
use crate::bucket::BucketCounters;
use crate::cache::{Fill, Held, Load, Loaded};
use crate::index::{Decoding, decode_unit};
use bytes::Bytes;
use gradus_error::{Error, Kind, Result};
use gradus_host::Clock;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where blocks come from that a node does not have.
pub(crate) trait Origin: Send + Sync {
    /// Begins to fetch blocks that follow one another in one object. Does not wait; ends each fill.
    fn begin(&self, fills: Vec<Fill>);

    /// Reads part of an object. Blocks.
    ///
    /// # Errors
    /// What the store says in the end.
    fn read(&self, object: u32, range: Range<u64>) -> Result<Buffer>;

    /// Says that part of an object will be read soon.
    fn expect(&self, object: u32, range: Range<u64>);

    /// What a reader waits for who reads an object from it.
    fn cause(&self, object: u32) -> Cause;

    /// Whether an object is a file of this host, which is read where it is: nothing keeps it again.
    fn is_near(&self, object: u32) -> bool;

    /// What was asked of it.
    fn counters(&self) -> BucketCounters;
}

/// A block to be read from disk by whoever needs it first.
pub(crate) struct Loading {
    held: Held,
    load: Mutex<Option<Load>>,
}

impl Loading {
    pub fn new(load: Load) -> Self {
        Self { held: load.held(), load: Mutex::new(Some(load)) }
    }

    /// The block, to wait for.
    pub fn held(&self) -> Held {
        self.held.clone()
    }

    /// Reads the block if nobody has yet; a damaged one is fetched from `origin`.
    pub fn carry_out(&self, origin: &dyn Origin) {
        let load = self.load.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Loaded::Damaged(fill)) = load.map(Load::load) {
            origin.begin(vec![fill]);
        }
    }
}

/// One block's part in a unit.
pub(crate) struct Piece {
    pub what: What,
    /// Which of the block's bytes.
    pub range: Range<usize>,
}

/// Where a piece is.
#[derive(Clone)]
pub(crate) enum What {
    /// In memory, or coming from where the cause says.
    Coming(Held, Cause),
    /// On disk.
    OnDisk(Arc<Loading>),
}

/// Where all bytes of a unit are.
pub(crate) enum Whereabouts {
    /// In blocks, in order.
    Pieces(Vec<Piece>),
    /// In a file of this host, or with nobody who was asked ahead of time.
    There,
}

/// Bytes of a unit that are there, in order.
pub(crate) enum Part {
    Block(Held, Range<usize>),
    Read(Buffer),
    Decoded(Vec<u8>),
}

impl Part {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Block(held, range) => &held.bytes()[range.clone()],
            Self::Read(bytes) => bytes,
            Self::Decoded(bytes) => bytes,
        }
    }
}

/// A unit.
pub(crate) struct Unit {
    object: u32,
    range: Range<u64>,
    decoding: Decoding,
    decoded_bytes: u64,
    state: Mutex<State>,
}

enum State {
    Coming(Whereabouts),
    Here(Arc<[Part]>),
    Failed(Kind, String),
}

/// Time that a reader waited for a unit.
pub(crate) type Waited = [Duration; Cause::ALL.len()];

impl Unit {
    pub fn new(
        object: u32,
        range: Range<u64>,
        (decoding, decoded_bytes): (Decoding, u64),
        at: Whereabouts,
    ) -> Self {
        Self { object, range, decoding, decoded_bytes, state: Mutex::new(State::Coming(at)) }
    }

    /// Bytes that are fetched for it.
    pub fn fetched_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The unit's bytes, decoded. Blocks until they are there; `waited` grows by what that took.
    ///
    /// # Errors
    /// What kept them from coming, for all who ask.
    pub fn resolve(
        &self,
        origin: &dyn Origin,
        object: &ObjectInfo,
        clock: &dyn Clock,
        waited: &mut Waited,
    ) -> Result<Arc<[Part]>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match &mut *state {
            State::Here(parts) => return Ok(parts.clone()),
            State::Failed(kind, context) => return Err(Error::new(kind.clone(), context.clone())),
            State::Coming(at) => std::mem::replace(at, Whereabouts::There),
        };
        let parts = self.gather(at, origin, clock, waited).and_then(|parts| {
            self.decoded(parts, clock, waited)
                .map_err(|error| error.within(format!("{} bytes {:?}", object.address, self.range)))
        });
        match parts {
            Ok(parts) => {
                let parts: Arc<[Part]> = parts.into();
                *state = State::Here(parts.clone());
                Ok(parts)
            }
            Err(error) => {
                *state = State::Failed(error.kind().clone(), error.to_string());
                Err(error)
            }
        }
    }

    fn gather(
        &self,
        at: Whereabouts,
        origin: &dyn Origin,
        clock: &dyn Clock,
        waited: &mut Waited,
    ) -> Result<Vec<Part>> {
        let mut timed = |cause: Cause, work: &mut dyn FnMut() -> Result<()>| {
            let begin = clock.now();
            let outcome = work();
            waited[cause as usize] += clock.now().saturating_sub(begin);
            outcome
        };
        let pieces = match at {
            Whereabouts::Pieces(pieces) => pieces,
            Whereabouts::There => {
                let mut read = None;
                timed(origin.cause(self.object), &mut || {
                    read = Some(origin.read(self.object, self.range.clone())?);
                    Ok(())
                })?;
                return Ok(read.map(Part::Read).into_iter().collect());
            }
        };
        let mut parts = Vec::with_capacity(pieces.len());
        for Piece { what, range } in pieces {
            let (held, cause) = match what {
                What::Coming(held, cause) => (held, cause),
                What::OnDisk(loading) => {
                    timed(Cause::Disk, &mut || {
                        loading.carry_out(origin);
                        Ok(())
                    })?;
                    (loading.held(), Cause::Disk)
                }
            };
            match held.try_ready() {
                Some(outcome) => outcome?,
                None => timed(cause, &mut || held.wait())?,
            }
            parts.push(Part::Block(held, range));
        }
        let len: u64 = parts.iter().map(|part| part.bytes().len() as u64).sum();
        if len != self.fetched_bytes() {
            return Err(Error::internal(format!("{len} bytes for a unit in {:?}", self.range)));
        }
        Ok(parts)
    }

    fn decoded(&self, parts: Vec<Part>, clock: &dyn Clock, waited: &mut Waited) -> Result<Vec<Part>> {
        if self.decoding == Decoding::Raw {
            return Ok(parts);
        }
        let begin = clock.now();
        let mut raw = Vec::with_capacity(self.fetched_bytes() as usize);
        parts.iter().for_each(|part| raw.extend_from_slice(part.bytes()));
        // The blocks are let go of before their content doubles.
        drop(parts);
        let decoded = decode_unit(self.decoding, Bytes::from(raw), self.decoded_bytes)?;
        waited[Cause::Decode as usize] += clock.now().saturating_sub(begin);
        Ok(vec![Part::Decoded(decoded)])
    }
}
