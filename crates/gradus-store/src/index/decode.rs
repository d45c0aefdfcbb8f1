//! From the bytes of a unit, as the store has them, to the bytes of a sample.
//!
//! A unit is decoded as a whole, and its size when decoded is known from the index: more than that is never made, however
//! much a damaged or hostile unit claims. What was decoded is kept within a budget, the least recently used going first,
//! since neighbours share a unit. Samples whose checksum is known are compared with it.

use super::SamplePlace;
use super::column::decode_column;
use crate::blocks::ObjectInfo;
use crate::crc32c::crc32c;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use gradus_error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

/// Largest unit that is decoded: it is in memory as a whole.
pub(super) const MOST_UNIT_BYTES: u64 = 1 << 30;

/// What text is packed by; more than that takes another allocation.
const USUAL_RATIO: usize = 16;

/// How a unit becomes the bytes in which its samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decoding {
    /// It is the sample.
    Raw,
    /// Gzip, one member or several.
    Gzip,
    /// Zstandard, one frame or several.
    Zstd,
    /// The pages of one column of a Parquet row group; its values one after another.
    ParquetColumn {
        /// How pages are compressed.
        codec: ParquetCodec,
        /// Whether values may be missing.
        optional: bool,
        /// Number of values, the missing ones included.
        rows: u32,
    },
}

const CODECS: [(&str, ParquetCodec); 5] = [
    ("plain", ParquetCodec::Plain),
    ("snappy", ParquetCodec::Snappy),
    ("gzip", ParquetCodec::Gzip),
    ("lz4", ParquetCodec::Lz4),
    ("zstd", ParquetCodec::Zstd),
];

impl fmt::Display for Decoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Gzip => f.write_str("gzip"),
            Self::Zstd => f.write_str("zstd"),
            Self::ParquetColumn { codec, optional, rows } => {
                let name = CODECS.iter().find(|(_, known)| known == codec).map_or("", |(name, _)| name);
                write!(f, "parquet:{name}:{}:{rows}", if *optional { "optional" } else { "required" })
            }
        }
    }
}

impl Decoding {
    /// What is written so.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(':');
        let decoding = match words.next()? {
            "raw" => Self::Raw,
            "gzip" => Self::Gzip,
            "zstd" => Self::Zstd,
            "parquet" => {
                let name = words.next()?;
                let codec = CODECS.iter().find(|(known, _)| *known == name)?.1;
                let optional = match words.next()? {
                    "optional" => true,
                    "required" => false,
                    _ => return None,
                };
                Self::ParquetColumn { codec, optional, rows: words.next()?.parse().ok()? }
            }
            _ => return None,
        };
        words.next().is_none().then_some(decoding)
    }
}

/// How the pages of a Parquet column are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParquetCodec {
    /// Not at all.
    Plain,
    /// Snappy.
    Snappy,
    /// Gzip.
    Gzip,
    /// LZ4 without a frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// Decodes units and keeps some of them. One for each reader.
pub struct Decoder {
    budget_bytes: usize,
    held_bytes: usize,
    /// Counts uses.
    now: u64,
    /// By object and place of the unit; with the last use.
    units: BTreeMap<(u32, u64, u64), (u64, Bytes)>,
    /// By last use.
    uses: BTreeMap<u64, (u32, u64, u64)>,
}

impl Decoder {
    /// One that keeps decoded units of `budget_bytes` altogether. A unit beyond that is decoded for each sample anew.
    pub fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, held_bytes: 0, now: 0, units: BTreeMap::new(), uses: BTreeMap::new() }
    }

    /// Bytes of decoded units that are kept.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The sample, if its unit is decoded already: then no bytes need to be fetched. A sample without bytes always is.
    ///
    /// # Errors
    /// `Corrupt` when the sample is not what it was when it was indexed.
    pub fn held(&mut self, place: &SamplePlace, object: &ObjectInfo) -> Result<Option<Bytes>> {
        if place.len == 0 {
            return Ok(Some(Bytes::new()));
        }
        let key = key_of(place);
        let Some((used, unit)) = self.units.get_mut(&key) else { return Ok(None) };
        self.uses.remove(used);
        self.now += 1;
        *used = self.now;
        self.uses.insert(self.now, key);
        let unit = unit.clone();
        cut(&unit, place, object).map(Some)
    }

    /// The sample, from the bytes of its unit (`place.unit` of `object`).
    ///
    /// # Errors
    /// `Corrupt`, naming object and range, when the unit does not decode to what was indexed.
    pub fn sample(&mut self, place: &SamplePlace, object: &ObjectInfo, unit: Bytes) -> Result<Bytes> {
        if let Some(sample) = self.held(place, object)? {
            return Ok(sample);
        }
        if unit.len() as u64 != place.unit.end - place.unit.start {
            return Err(Error::internal(format!("{} bytes were given for {:?}", unit.len(), place.unit)));
        }
        if place.decoding == Decoding::Raw {
            return cut(&unit, place, object);
        }
        let decoded = decode_unit(place.decoding, unit, place.unit_bytes)
            .map_err(|error| error.within(format!("{} bytes {:?}", object.address, place.unit)))?;
        let decoded = Bytes::from(decoded);
        self.keep(key_of(place), decoded.clone());
        cut(&decoded, place, object)
    }

    fn keep(&mut self, key: (u32, u64, u64), unit: Bytes) {
        if unit.len() > self.budget_bytes {
            return;
        }
        while self.held_bytes + unit.len() > self.budget_bytes {
            let Some((_, oldest)) = self.uses.pop_first() else { break };
            if let Some((_, gone)) = self.units.remove(&oldest) {
                self.held_bytes -= gone.len();
            }
        }
        self.now += 1;
        self.held_bytes += unit.len();
        self.uses.insert(self.now, key);
        self.units.insert(key, (self.now, unit));
    }
}

fn key_of(place: &SamplePlace) -> (u32, u64, u64) {
    (place.object, place.unit.start, place.unit.end)
}

/// The sample within its decoded unit, compared with its checksum.
fn cut(unit: &Bytes, place: &SamplePlace, object: &ObjectInfo) -> Result<Bytes> {
    let sample = unit.slice(place.offset as usize..(place.offset + place.len) as usize);
    match place.crc32c {
        Some(expected) if crc32c(&sample) != expected => Err(Error::corrupt(format!(
            "{}: the sample at byte {} of {:?} is not what was indexed (CRC-32C); index the data again if they changed",
            object.address, place.offset, place.unit
        ))),
        _ => Ok(sample),
    }
}

/// Decodes a unit to exactly `bytes` bytes.
pub(crate) fn decode_unit(decoding: Decoding, unit: Bytes, bytes: u64) -> Result<Vec<u8>> {
    if bytes > MOST_UNIT_BYTES {
        return Err(Error::invalid(format!(
            "{bytes} bytes are more than a unit may have when it is decoded"
        )));
    }
    match decoding {
        Decoding::Raw => Ok(unit.into()),
        Decoding::Gzip => fill(MultiGzDecoder::new(&*unit), unit.len(), bytes),
        Decoding::Zstd => fill(zstd_reader(&*unit)?, unit.len(), bytes),
        Decoding::ParquetColumn { codec, optional, rows } => {
            let mut decoded =
                Vec::with_capacity((bytes as usize).min(unit.len().saturating_mul(USUAL_RATIO)));
            decode_column(unit, codec, optional, u64::from(rows), bytes, &mut |value| {
                decoded.extend_from_slice(value);
                Ok(())
            })?;
            exact(decoded, bytes)
        }
    }
}

/// A decoder of all frames of `reader`.
fn zstd_reader<'a, R: Read>(reader: R) -> Result<zstd::stream::read::Decoder<'a, std::io::BufReader<R>>> {
    zstd::stream::read::Decoder::new(reader)
        .map_err(|error| Error::internal("a Zstandard decoder cannot be made").with_source(error))
}

fn fill(reader: impl Read, packed: usize, bytes: u64) -> Result<Vec<u8>> {
    // What an index says is not believed beyond what little could become: it may come from anywhere.
    let mut decoded = Vec::with_capacity((bytes as usize).min(packed.saturating_mul(USUAL_RATIO)));
    // One byte more, which shows that there is too much.
    reader
        .take(bytes + 1)
        .read_to_end(&mut decoded)
        .map_err(|error| Error::corrupt("the unit does not decode").with_source(error))?;
    exact(decoded, bytes)
}

fn exact(decoded: Vec<u8>, bytes: u64) -> Result<Vec<u8>> {
    if decoded.len() as u64 == bytes {
        return Ok(decoded);
    }
    Err(Error::corrupt(format!("the unit decodes to other than the {bytes} bytes that were indexed")))
}
