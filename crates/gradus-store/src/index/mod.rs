//! Datasets as they are, described once: where each sample is, without moving a byte.
//!
//! An [`Index`] lists a dataset's objects and says of every sample in which bytes of which object it is, and how they are
//! decoded. It is made by reading what is needed of the objects once ([`Index::build`]) and kept as a Parquet file that
//! other tools open (`file`). What reads samples needs nothing else: [`Index::sample`] names a *unit*, the bytes to fetch,
//! and a [`Decoder`] turns them into the sample.
//!
//! Invariants: samples are numbered in the order of the objects and of their bytes; every range is within its object and
//! every sample within its decoded unit, also in an index whose file came from anywhere; the same objects give the same
//! index whatever the number of threads.

mod build;
mod column;
mod decode;
mod detect;
mod file;
mod find;
mod guard;
mod json_lines;
mod mosaic;
mod objects;
mod pages;
mod parquet;
mod table;
mod tar;
mod tokens;
mod web_dataset;

pub use decode::{Decoder, Decoding, ParquetCodec};
pub use file::INDEX_FILE;
pub use mosaic::MosaicColumn;
pub use objects::Objects;
pub(crate) use parquet::TextFile;

pub(crate) use decode::decode_unit;
pub(crate) use objects::read_whole;

use crate::blocks::ObjectInfo;
use crate::manifest::{Split, TokenType};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::ops::Range;
use table::Table;

/// Largest sample: its size has 32 bits, and it is in memory as a whole.
pub(crate) const MOST_SAMPLE_BYTES: u64 = 1 << 30;

/// What a dataset is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Format {
    /// Shards of tokens, as [`prepare`](crate::prepare()) writes them.
    Tokens {
        /// The part of them that is described.
        split: Split,
        /// How a token is stored.
        token_type: TokenType,
        /// `T`: a sample is `T + 1` tokens, and neighbours share one.
        sequence_length: u64,
    },
    /// One JSON value a line, plain or packed.
    JsonLines,
    /// A column of text of Parquet files.
    Parquet {
        /// Its name.
        column: String,
    },
    /// Tar files whose entries of one name are a sample.
    WebDataset,
    /// Shards of MosaicML's streaming library.
    Mosaic {
        /// The columns of a sample.
        columns: Vec<MosaicColumn>,
    },
}

impl Format {
    /// What a person calls it.
    pub fn title(&self) -> &'static str {
        match self {
            Self::Tokens { .. } => "prepared tokens",
            Self::JsonLines => "JSON lines",
            Self::Parquet { .. } => "Parquet",
            Self::WebDataset => "WebDataset",
            Self::Mosaic { .. } => "MDS",
        }
    }
}

/// How an index is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSettings {
    /// The column of Parquet files that is the sample.
    pub text_column: String,
    /// The part of prepared tokens that is described.
    pub split: Split,
    /// Whether to read every byte for the samples' checksums where the format can be described without that (MDS); of
    /// other formats they are known anyway. Samples of tokens have none: their manifest has digests.
    pub checksums: bool,
    /// Objects read at a time.
    pub threads: usize,
}

impl Default for IndexSettings {
    fn default() -> Self {
        Self { text_column: "text".to_owned(), split: Split::Train, checksums: false, threads: 4 }
    }
}

/// How far indexing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexProgress {
    /// Objects described.
    pub objects_done: u64,
    /// All objects.
    pub objects: u64,
    /// Bytes read, or passed over.
    pub bytes_done: u64,
    /// Bytes of all objects.
    pub bytes: u64,
}

/// Where a sample is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SamplePlace {
    /// Its object, among those of the index.
    pub object: u32,
    /// The bytes of the object to read; none for a sample without bytes.
    pub unit: Range<u64>,
    /// How they are decoded.
    pub decoding: Decoding,
    /// How many they are then.
    pub unit_bytes: u64,
    /// Where the sample begins among them.
    pub offset: u64,
    /// Size of the sample.
    pub len: u64,
    /// Its CRC-32C, if it is known.
    pub crc32c: Option<u32>,
}

/// A named part of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The extension of its entry, in small letters, or the column.
    pub name: String,
    /// Where it is among the sample's bytes.
    pub range: Range<usize>,
}

/// What sizes samples have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeSummary {
    /// Of all together.
    pub total: u64,
    /// Half of the samples are at most this large.
    pub p50: u64,
    /// 99 of 100 are at most this large.
    pub p99: u64,
    /// The largest.
    pub most: u64,
}

/// A dataset, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    format: Format,
    objects: Vec<ObjectInfo>,
    /// Of each object.
    tables: Vec<Table>,
    /// The first sample of each object, and the number of all.
    first: Vec<u64>,
    /// Names of the samples of each object, right after they were indexed; they are not read back.
    keys: Vec<Vec<String>>,
}

impl Index {
    /// Describes the dataset at `prefix`: finds out what it is and reads what is needed. Blocks.
    ///
    /// # Errors
    /// `Invalid` when there is nothing, nothing that is known, or a mixture; when a file is not as its format wants it,
    /// or holds no sample. `Corrupt`, naming object and byte, for damage. Else what the store says.
    pub fn build(
        objects: &dyn Objects,
        prefix: &str,
        settings: &IndexSettings,
        progress: &(dyn Fn(IndexProgress) + Sync),
    ) -> Result<Self> {
        Self::build_listed(objects, prefix, &objects.list(prefix)?, settings, progress)
    }

    /// As [`Index::build`], for whoever has listed `prefix` already ([`Objects::list`]).
    ///
    /// # Errors
    /// As [`Index::build`].
    pub fn build_listed(
        objects: &dyn Objects,
        prefix: &str,
        listed: &[ObjectInfo],
        settings: &IndexSettings,
        progress: &(dyn Fn(IndexProgress) + Sync),
    ) -> Result<Self> {
        let index = build::build(objects, prefix, listed, settings, progress)?;
        if index.samples() == 0 {
            return Err(Error::invalid(format!(
                "the {} files at {prefix} hold no sample",
                index.format.title()
            )));
        }
        Ok(index)
    }

    /// Several as one: their objects, and so their samples, one after another.
    ///
    /// # Errors
    /// `Invalid` without any, or when two are of other formats.
    pub fn join(parts: Vec<Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let mut joined = parts.next().ok_or_else(|| Error::invalid("there is no dataset to be read"))?;
        for part in parts {
            if part.format != joined.format {
                return Err(Error::invalid(format!(
                    "datasets that are read as one differ: {} and {}",
                    joined.format.title(),
                    part.format.title()
                )));
            }
            let samples = joined.samples();
            joined.first.extend(part.first[1..].iter().map(|first| samples + first));
            joined.objects.extend(part.objects);
            joined.tables.extend(part.tables);
            joined.keys.extend(part.keys);
        }
        Ok(joined)
    }

    fn new(format: Format, objects: Vec<ObjectInfo>, tables: Vec<Table>, keys: Vec<Vec<String>>) -> Self {
        let mut first = vec![0];
        for table in &tables {
            first.push(first[first.len() - 1] + table.samples());
        }
        Self { format, objects, tables, first, keys }
    }

    /// What the dataset is made of.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Its objects, in the order of their samples.
    pub fn objects(&self) -> &[ObjectInfo] {
        &self.objects
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.first[self.objects.len()]
    }

    /// Where a sample is.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn sample(&self, number: u64) -> SamplePlace {
        assert!(number < self.samples(), "sample {number} of {}", self.samples());
        // An object without samples has none: the last that begins at or before this one is meant.
        let object = self.first.partition_point(|first| *first <= number) - 1;
        let (table, index) = (&self.tables[object], number - self.first[object]);
        let place = table.place(index);
        SamplePlace {
            object: object as u32,
            unit: place.unit,
            decoding: place.decoding,
            unit_bytes: place.unit_bytes,
            offset: place.offset,
            len: place.len,
            crc32c: table.crc32c.get(index as usize).copied(),
        }
    }

    /// The samples of an object.
    ///
    /// # Panics
    /// If there is no such object.
    pub fn samples_of(&self, object: u32) -> Range<u64> {
        self.first[object as usize]..self.first[object as usize + 1]
    }

    /// The samples that need any of these bytes of an object; an empty range if none does.
    ///
    /// # Panics
    /// If there is no such object.
    pub fn samples_in(&self, object: u32, raw: Range<u64>) -> Range<u64> {
        let (first, within) = (self.first[object as usize], self.tables[object as usize].samples_in(raw));
        first + within.start..first + within.end
    }

    /// The parts of a sample, found in its bytes: the entries of a tar file, the columns of an MDS sample; of other
    /// formats the sample as a whole.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no such sample.
    pub fn fields(&self, sample: &[u8]) -> Result<Vec<Field>> {
        self.fields_of(sample, sample.len())
    }

    /// The same of a sample of `len` bytes that is read; of most formats no more than its head is.
    ///
    /// # Errors
    /// As of [`Index::fields`]; what `sample` fails with.
    pub fn fields_of(&self, sample: impl Read, len: usize) -> Result<Vec<Field>> {
        let whole = |name: &str| vec![Field { name: name.to_owned(), range: 0..len }];
        match &self.format {
            Format::Tokens { .. } => Ok(whole("tokens")),
            Format::JsonLines => Ok(whole("json")),
            Format::Parquet { column } => Ok(whole(column)),
            Format::WebDataset => web_dataset::fields(sample, len),
            Format::Mosaic { columns } => mosaic::fields(columns, sample, len),
        }
    }

    /// Whether the objects are still what they were when they were described, and no data have come to them.
    ///
    /// # Errors
    /// `Invalid`, naming the first object that is missing from `listed`, has changed, or is new there.
    pub fn check_objects(&self, listed: &[ObjectInfo]) -> Result<()> {
        let by_address = |objects: &mut Vec<&ObjectInfo>| objects.sort_by(|a, b| a.address.cmp(&b.address));
        let find = |objects: &[&ObjectInfo], wanted: &ObjectInfo| {
            objects.binary_search_by(|object| object.address.cmp(&wanted.address))
        };
        let stale = |object: &ObjectInfo, why: &str| {
            let address = &object.address;
            Err(Error::invalid(format!("{address} {why}: index the dataset again (gradus dataset index)")))
        };
        let (mut known, mut there): (Vec<_>, Vec<_>) =
            (self.objects.iter().collect(), listed.iter().collect());
        by_address(&mut known);
        by_address(&mut there);
        for object in &self.objects {
            match find(&there, object).map(|at| there[at]) {
                Ok(same) if same == object => {}
                Ok(_) => return stale(object, "has changed since it was indexed"),
                Err(_) => return stale(object, "is missing since it was indexed"),
            }
        }
        let is_new =
            |object: &&ObjectInfo| detect::is_data(&self.format, object) && find(&known, object).is_err();
        listed.iter().find(is_new).map_or(Ok(()), |object| stale(object, "is not in the index"))
    }

    /// Sizes of the samples.
    pub fn sizes(&self) -> SizeSummary {
        let mut all: Vec<(u64, u64)> = Vec::new();
        for table in &self.tables {
            table.sizes(&mut |bytes, samples| all.push((bytes, samples)));
        }
        all.sort_unstable();
        let total = all
            .iter()
            .fold(0u64, |total, (bytes, samples)| total.saturating_add(bytes.saturating_mul(*samples)));
        let at = |part: f64| {
            let wanted = (self.samples() as f64 * part).ceil() as u64;
            let mut seen = 0;
            let found = all.iter().find(|(_, samples)| {
                seen += samples;
                seen >= wanted
            });
            found.map_or(0, |(bytes, _)| *bytes)
        };
        SizeSummary { total, p50: at(0.5), p99: at(0.99), most: all.last().map_or(0, |(bytes, _)| *bytes) }
    }
}
