//! MDS, the format of MosaicML's streaming library, version 2.
//!
//! `index.json` names the shards, in order. A shard is a count of samples (u32), where each begins and the last ends (u32
//! each, from the start of the shard), its configuration as JSON, and the samples. A sample is the sizes of its columns
//! of no fixed size (u32 each), then the columns. All numbers are little-endian (`streaming/base/format/mds` of the
//! package). A plain shard is described by its table alone; a packed one is decoded as a whole.

use super::build::{Described, Work, each_of};
use super::decode::{Decoding, MOST_UNIT_BYTES, decode_unit};
use super::objects::{Objects, read_whole};
use super::table::Table;
use super::{Field, MOST_SAMPLE_BYTES};
use crate::blocks::ObjectInfo;
use crate::crc32c::crc32c;
use gradus_error::{Error, IoContext, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// The name of the index.
pub(super) const INDEX_JSON: &str = "index.json";

/// Largest index that is read: a million shards.
const INDEX_LIMIT_BYTES: u64 = 1 << 30;

/// Bytes at the head of a shard that are read while the index is: the table of 4,094 samples.
const HEAD_BYTES: u64 = 16 << 10;

/// Most heads that are read before it is known whether they are needed.
const MOST_HEADS: usize = 1024;

/// The version of the format, of the index as a whole and of each shard.
const VERSION: u32 = 2;

/// A column of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MosaicColumn {
    /// Its name.
    pub name: String,
    /// How its values are encoded, such as `str`, `bytes`, `int` or `ndarray:int32:8`.
    pub encoding: String,
    /// Bytes of a value, where all have the same size.
    pub bytes: Option<u32>,
}

#[derive(Deserialize)]
struct IndexJson {
    version: u32,
    shards: Vec<ShardJson>,
}

#[derive(Deserialize)]
struct ShardJson {
    version: u32,
    format: String,
    column_names: Vec<String>,
    column_encodings: Vec<String>,
    column_sizes: Vec<Option<u32>>,
    compression: Option<String>,
    raw_data: FileJson,
    zip_data: Option<FileJson>,
    samples: u32,
}

#[derive(Deserialize)]
struct FileJson {
    basename: String,
    bytes: u64,
}

/// A shard and the object that has it.
struct Shard {
    object: ObjectInfo,
    samples: u32,
    raw_bytes: u64,
    decoding: Decoding,
}

/// The shards of a dataset.
pub(super) struct Shards {
    pub(super) columns: Vec<MosaicColumn>,
    shards: Vec<Shard>,
}

/// The first bytes of some objects that are plain shards by their names, by address.
#[derive(Default)]
pub(super) struct Heads(Mutex<HashMap<String, Vec<u8>>>);

impl Heads {
    fn read(&self, objects: &dyn Objects, listed: &[ObjectInfo], threads: usize) {
        let named: Vec<&ObjectInfo> =
            listed.iter().filter(|object| object.name().ends_with(".mds")).take(MOST_HEADS).collect();
        each_of(named.len(), threads, &|at| {
            let mut head = vec![0; named[at].bytes.min(HEAD_BYTES) as usize];
            // Whoever needs one that could not be read asks again, and finds out why. No more are asked for then: a store that
            // is down takes all of a request's budget to say so.
            let is_read = objects.read_at(named[at], 0, &mut head).is_ok();
            if is_read {
                self.lock().insert(named[at].address.clone(), head);
            }
            is_read
        });
    }

    /// So many bytes from the start of an object, if they are there; nobody asks for them twice.
    fn take(&self, object: &ObjectInfo, bytes: u64) -> Option<Vec<u8>> {
        self.lock().remove(&object.address).filter(|head| head.len() as u64 >= bytes)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shards {
    /// What an index says, held against what is there. Where their tables are wanted, the heads of so many shards at a time are read
    /// meanwhile: a bucket's latency is waited for once instead of twice.
    pub(super) fn read(
        objects: &dyn Objects,
        index: &ObjectInfo,
        listed: &[ObjectInfo],
        heads_at_once: usize,
    ) -> Result<(Self, Heads)> {
        let heads = Heads::default();
        let text = thread::scope(|scope| {
            scope.spawn(|| heads.read(objects, listed, heads_at_once));
            read_whole(objects, index, INDEX_LIMIT_BYTES)
        })?;
        let shards = Self::parse(&text, index, listed).map_err(|error| error.within(&index.address))?;
        Ok((shards, heads))
    }

    fn parse(text: &[u8], index: &ObjectInfo, listed: &[ObjectInfo]) -> Result<Self> {
        let json: IndexJson = serde_json::from_slice(text)
            .map_err(|error| Error::invalid("this is no index of MDS shards").with_source(error))?;
        if json.version != VERSION {
            return Err(Error::invalid(format!("version {} is not known, {VERSION} is", json.version)));
        }
        let folder = index.address.rsplit_once('/').map_or("", |(folder, _)| folder);
        let known: HashMap<&str, &ObjectInfo> =
            listed.iter().map(|object| (object.address.as_str(), object)).collect();
        let mut columns: Option<Vec<MosaicColumn>> = None;
        let mut shards = Vec::new();
        for (number, shard) in json.shards.iter().enumerate() {
            let within = |error: Error| error.within(format!("shard {number}"));
            let its = shard.columns().map_err(within)?;
            if columns.get_or_insert_with(|| its.clone()) != &its {
                return Err(within(Error::invalid("it has other columns than the first shard")));
            }
            shards.push(shard.find(folder, &known).map_err(within)?);
        }
        Ok(Self { columns: columns.unwrap_or_default(), shards })
    }

    /// The objects of the shards, in order.
    pub(super) fn objects(&self) -> Vec<ObjectInfo> {
        self.shards.iter().map(|shard| shard.object.clone()).collect()
    }

    /// Whether their tables describe them all.
    pub(super) fn are_plain(&self) -> bool {
        self.shards.iter().all(|shard| shard.decoding == Decoding::Raw)
    }

    /// Describes a shard. With `checksums`, all of a plain one is read.
    pub(super) fn describe(
        &self,
        number: usize,
        work: &Work<'_>,
        heads: &Heads,
        checksums: bool,
    ) -> Result<Described> {
        let shard = &self.shards[number];
        if shard.decoding == Decoding::Raw {
            shard.describe_plain(work, heads, checksums)
        } else {
            shard.describe_packed(work)
        }
    }
}

impl ShardJson {
    fn columns(&self) -> Result<Vec<MosaicColumn>> {
        if self.version != VERSION || self.format != "mds" {
            let (format, version) = (&self.format, self.version);
            return Err(Error::invalid(format!(
                "its format is {format}, version {version}; mds, version {VERSION}, is known"
            )));
        }
        let count = self.column_names.len();
        if count != self.column_encodings.len() || count != self.column_sizes.len() {
            return Err(Error::invalid("names, encodings and sizes of its columns are not as many"));
        }
        let all = self.column_names.iter().zip(&self.column_encodings).zip(&self.column_sizes);
        let column = |((name, encoding), bytes): ((&String, &String), &Option<u32>)| MosaicColumn {
            name: name.clone(),
            encoding: encoding.clone(),
            // The package takes a size of 0 for none.
            bytes: bytes.filter(|bytes| *bytes > 0),
        };
        Ok(all.map(column).collect())
    }

    /// The object of the shard: the plain one where both are there.
    fn find(&self, folder: &str, known: &HashMap<&str, &ObjectInfo>) -> Result<Shard> {
        let at = |file: &FileJson| known.get(format!("{folder}/{}", file.basename).as_str()).copied();
        let plain = at(&self.raw_data).map(|object| (object, &self.raw_data, Decoding::Raw));
        let packed = self.zip_data.as_ref().and_then(|file| Some((at(file)?, file)));
        let found = match (plain, packed) {
            (Some(plain), _) => plain,
            (None, Some((object, file))) => (object, file, self.decoding()?),
            (None, None) => {
                let name = self.zip_data.as_ref().unwrap_or(&self.raw_data);
                return Err(Error::invalid(format!("{folder}/{} is missing", name.basename)));
            }
        };
        let (object, file, decoding) = found;
        if object.bytes != file.bytes {
            return Err(Error::corrupt(format!(
                "{} has {} bytes, the index says {}: copy it again",
                object.address, object.bytes, file.bytes
            )));
        }
        if decoding != Decoding::Raw && self.raw_data.bytes > MOST_UNIT_BYTES {
            return Err(Error::invalid(format!(
                "{} bytes are too many to be decoded as a whole",
                self.raw_data.bytes
            )));
        }
        Ok(Shard { object: object.clone(), samples: self.samples, raw_bytes: self.raw_data.bytes, decoding })
    }

    fn decoding(&self) -> Result<Decoding> {
        let name = self.compression.as_deref().unwrap_or_default();
        match name.split(':').next().unwrap_or_default() {
            "zstd" => Ok(Decoding::Zstd),
            "gz" => Ok(Decoding::Gzip),
            _ => Err(Error::invalid(format!("its compression `{name}` cannot be read: zstd and gz can"))),
        }
    }
}

impl Shard {
    /// Bytes of the table at the head of a shard.
    fn table_bytes(&self) -> u64 {
        4 * (u64::from(self.samples) + 2)
    }

    fn describe_plain(&self, work: &Work<'_>, heads: &Heads, checksums: bool) -> Result<Described> {
        self.check_room(work)?;
        let head = match heads.take(work.object, self.table_bytes()) {
            Some(head) => head,
            None => work.read_at(0, self.table_bytes() as usize)?,
        };
        let mut table = Table::ranges();
        let ends =
            self.samples_of(&head, work, &mut |start, bytes| table.push_range(u64::from(start), bytes))?;
        if checksums {
            self.checksums(work, ends, &mut table)?;
        } else {
            work.pass(work.object.bytes);
        }
        Ok(table.into())
    }

    fn describe_packed(&self, work: &Work<'_>) -> Result<Described> {
        self.check_room(work)?;
        let mut raw = Vec::new();
        let mut reader = work.open()?.take(work.object.bytes);
        reader.read_to_end(&mut raw).context(|| format!("cannot read {}", work.object.address))?;
        let decoded = decode_unit(self.decoding, raw.into(), self.raw_bytes);
        let decoded = decoded.map_err(|error| error.within(&work.object.address))?;
        let mut table = Table::packed();
        table.begin_unit(0..work.object.bytes, self.raw_bytes, self.decoding);
        let mut checksums = Vec::new();
        self.samples_of(&decoded, work, &mut |start, bytes| {
            table.push_packed(start, bytes);
            checksums.push(crc32c(&decoded[start as usize..][..bytes as usize]));
        })?;
        table.crc32c = checksums;
        Ok(table.into())
    }

    fn check_room(&self, work: &Work<'_>) -> Result<()> {
        if self.table_bytes() > self.raw_bytes {
            return Err(
                work.invalid(format!("{} samples have no room in {} bytes", self.samples, self.raw_bytes))
            );
        }
        Ok(())
    }

    /// Tells where each sample begins and how large it is; gives where the last one ends.
    fn samples_of(&self, head: &[u8], work: &Work<'_>, tell: &mut dyn FnMut(u32, u32)) -> Result<u64> {
        let word = |index: u64| {
            let bytes = &head[index as usize * 4..][..4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        if word(0) != self.samples {
            return Err(
                work.corrupt(0, format!("it has {} samples, the index says {}", word(0), self.samples))
            );
        }
        for index in 1..=u64::from(self.samples) {
            let (start, end) = (word(index), word(index + 1));
            let whole =
                self.table_bytes() <= u64::from(start) && start <= end && u64::from(end) <= self.raw_bytes;
            if !whole || u64::from(end - start) > MOST_SAMPLE_BYTES {
                return Err(work.corrupt(index * 4, format!("sample {} is at {start}..{end}", index - 1)));
            }
            tell(start, end - start);
        }
        Ok(u64::from(word(u64::from(self.samples) + 1)))
    }

    fn checksums(&self, work: &Work<'_>, end: u64, table: &mut Table) -> Result<()> {
        let mut reader = work.open()?.take(end);
        let mut buffer = Vec::new();
        for index in 0..table.samples() {
            let place = table.place(index);
            let describe = || format!("cannot read {}", work.object.address);
            // The table, before the first sample; samples follow one another.
            let gap = place.unit.start - (end - reader.limit());
            std::io::copy(&mut reader.by_ref().take(gap), &mut std::io::sink()).context(describe)?;
            buffer.clear();
            reader.by_ref().take(place.len).read_to_end(&mut buffer).context(describe)?;
            table.crc32c.push(crc32c(&buffer));
        }
        work.pass(work.object.bytes.saturating_sub(end));
        Ok(())
    }
}

/// The fields of a sample of `len` bytes, found in those at its head.
pub(super) fn fields(columns: &[MosaicColumn], mut sample: impl Read, len: usize) -> Result<Vec<Field>> {
    let damaged = || Error::corrupt(format!("{len} bytes are no sample of these columns"));
    let mut head = 0;
    let mut lengths = Vec::new();
    for column in columns {
        lengths.push(match column.bytes {
            Some(bytes) => bytes,
            None => {
                head += 4;
                let mut size = [0; 4];
                sample.read_exact(&mut size).map_err(|error| damaged().with_source(error))?;
                u32::from_le_bytes(size)
            }
        });
    }
    let mut fields = Vec::new();
    let mut start: usize = head;
    for (column, bytes) in columns.iter().zip(lengths) {
        let end = start.checked_add(bytes as usize).filter(|end| *end <= len).ok_or_else(damaged)?;
        fields.push(Field { name: column.name.clone(), range: start..end });
        start = end;
    }
    Ok(fields)
}
