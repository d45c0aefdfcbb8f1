//! An index, read from a file that may come from anywhere.

use super::ends::Ends;
use super::{COLUMNS, GROUP_BYTES, GROUP_ROWS, Header, METADATA_KEY, ObjectEntry, VERSION};
use crate::blocks::ObjectInfo;
use crate::index::column::read_values;
use crate::index::decode::{Decoding, MOST_UNIT_BYTES, ParquetCodec};
use crate::index::objects::Objects;
use crate::index::parquet::{ReadAt, range_of, read_metadata};
use crate::index::table::{Place, Table};
use crate::index::{Index, MOST_SAMPLE_BYTES};
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use ::parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use ::parquet::schema::types::SchemaDescriptor;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use serde::Deserialize;
use std::os::unix::fs::FileExt;
use std::path::Path;

impl Index {
    /// Reads an index from a file. Blocks.
    ///
    /// # Errors
    /// `Invalid` when there is none, or it is of another version; `Corrupt` when it contradicts itself.
    pub fn read(path: &Path) -> Result<Self> {
        let describe = || format!("cannot read the index {}", path.display());
        let file = disk::open_regular(path).context(describe)?;
        let size = file.metadata().context(describe)?.len();
        let read_at = |offset, len| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset).context(describe)?;
            Ok(bytes)
        };
        read(&path.display().to_string(), size, &read_at, &read_at)
    }

    /// Reads an index that is an object. Blocks.
    ///
    /// # Errors
    /// As of [`Index::read`], and the store's.
    pub fn read_object(objects: &dyn Objects, object: &ObjectInfo) -> Result<Self> {
        Self::read_ended(objects, object, None)
    }

    /// As [`Index::read_object`], where the object's last bytes may be known already.
    pub(crate) fn read_ended(
        objects: &dyn Objects,
        object: &ObjectInfo,
        tail: Option<Vec<u8>>,
    ) -> Result<Self> {
        let ends = Ends::new(objects, object, tail)?;
        let (end, next) = (|at, len| ends.read_end(at, len), |at, len| ends.read_next(at, len));
        read(&object.address, object.bytes, &end, &next)
    }
}

/// Reads an index whose end and whose rows come each in its own way.
fn read(name: &str, size: u64, read_end: &ReadAt, read_rows: &ReadAt) -> Result<Index> {
    let metadata = read_metadata(name, size, read_end)?;
    let header = header_of(&metadata).map_err(|error| error.within(name))?;
    let damaged = |why: String| Error::corrupt(format!("{name}: {why}; index the dataset again"));
    check_sums(&header).map_err(damaged)?;
    let mut building = Building::new(&header).map_err(damaged)?;
    for (number, group) in metadata.row_groups().iter().enumerate().filter(|(_, group)| group.num_rows() != 0)
    {
        let rows = read_group(group, size, read_rows);
        let rows = rows.map_err(|error| error.within(format!("{name}, row group {number}")))?;
        building.add(&rows).map_err(|why| damaged(format!("row group {number}: {why}")))?;
    }
    let tables = building.finish().map_err(damaged)?;
    let keys = tables.iter().map(|_| Vec::new()).collect();
    let object =
        |entry: ObjectEntry| ObjectInfo { address: entry.address, bytes: entry.bytes, etag: entry.etag };
    Ok(Index::new(header.format, header.objects.into_iter().map(object).collect(), tables, keys))
}

/// All that is counted of the dataset as a whole has a number.
fn check_sums(header: &Header) -> Result<(), String> {
    let sum = |of: fn(&ObjectEntry) -> u64| {
        header.objects.iter().try_fold(0u64, |sum, object| sum.checked_add(of(object)))
    };
    match sum(|object| object.samples).and(sum(|object| object.bytes)) {
        Some(_) => Ok(()),
        None => Err("it has more samples or bytes than can be counted".to_owned()),
    }
}

fn header_of(metadata: &ParquetMetaData) -> Result<Header> {
    let all = metadata.file_metadata().key_value_metadata();
    let text =
        all.and_then(|all| all.iter().find(|one| one.key == METADATA_KEY)).and_then(|one| one.value.as_ref());
    let Some(text) = text else {
        return Err(Error::invalid(
            "this Parquet file is no index of a dataset (gradus dataset index makes one)",
        ));
    };
    let damaged = |error| Error::corrupt("its description of the dataset is damaged").with_source(error);
    let version: Version = serde_json::from_str(text).map_err(damaged)?;
    if version.version != VERSION {
        let version = version.version;
        return Err(Error::invalid(format!(
            "the index is of version {version}, {VERSION} is known: index the dataset again"
        )));
    }
    check_schema(metadata.file_metadata().schema_descr())?;
    serde_json::from_str(text).map_err(damaged)
}

/// The first that is looked at: all else may differ.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn check_schema(schema: &SchemaDescriptor) -> Result<()> {
    for (at, (name, kind)) in COLUMNS.into_iter().enumerate() {
        let levels = i16::from(name == "crc32c");
        let same = schema.columns().get(at).is_some_and(|column| {
            column.path().parts() == [name.to_owned()]
                && column.physical_type() == kind
                && (column.max_def_level(), column.max_rep_level()) == (levels, 0)
        });
        if !same {
            return Err(Error::corrupt(format!("its column {at} is not `{name}`")));
        }
    }
    Ok(())
}

/// Some rows, by columns.
struct Rows {
    count: usize,
    object: Vec<i32>,
    unit_start: Vec<i64>,
    unit_end: Vec<i64>,
    unit_bytes: Vec<i64>,
    decoding: Vec<ByteArray>,
    offset: Vec<i64>,
    len: Vec<i64>,
    /// None, or of each row.
    crc32c: Vec<i32>,
}

fn read_group(group: &RowGroupMetaData, size: u64, read_at: &ReadAt) -> Result<Rows> {
    let rows = u64::try_from(group.num_rows()).ok().filter(|rows| *rows <= GROUP_ROWS);
    let rows = rows.ok_or_else(|| Error::corrupt(format!("it has {} rows", group.num_rows())))?;
    let file = GroupFile { group, rows, size, read_at };
    let long = |at| file.column::<Int64Type>(at).map(|(values, _)| values);
    // In the order in which they lie in the file.
    let (object, _) = file.column::<Int32Type>(0)?;
    let (unit_start, unit_end, unit_bytes) = (long(1)?, long(2)?, long(3)?);
    let (decoding, _) = file.column::<ByteArrayType>(4)?;
    let (offset, len) = (long(5)?, long(6)?);
    let (crc32c, levels) = file.column::<Int32Type>(7)?;
    if levels.len() as u64 != rows || !(crc32c.is_empty() || crc32c.len() as u64 == rows) {
        return Err(Error::corrupt("some of its samples have checksums and some have none"));
    }
    let count = rows as usize;
    let read = Rows { count, object, unit_start, unit_end, unit_bytes, decoding, offset, len, crc32c };
    let longs = [&read.unit_start, &read.unit_end, &read.unit_bytes, &read.offset, &read.len];
    let counts = longs.iter().map(|column| column.len()).chain([read.object.len(), read.decoding.len()]);
    if counts.into_iter().any(|count| count != read.count) {
        return Err(Error::corrupt("its columns are not of one length"));
    }
    Ok(read)
}

/// A row group and the way to its bytes.
struct GroupFile<'a> {
    group: &'a RowGroupMetaData,
    rows: u64,
    size: u64,
    read_at: &'a ReadAt<'a>,
}

impl GroupFile<'_> {
    fn column<T: DataType>(&self, at: usize) -> Result<(Vec<T::T>, Vec<i16>)> {
        let odd = |why: &str| Error::corrupt(format!("its column {at} {why}"));
        let chunk = self.group.columns().get(at).ok_or_else(|| odd("is missing"))?;
        let range = range_of(chunk).filter(|range| range.end <= self.size);
        let range = range.ok_or_else(|| odd("goes on after the end of the file"))?;
        let codec =
            ParquetCodec::of(chunk.compression()).ok_or_else(|| odd("is compressed in an unknown way"))?;
        let bytes = (self.read_at)(range.start, (range.end - range.start) as usize)?;
        read_values::<T>(bytes.into(), codec, chunk.column_descr_ptr(), self.rows, GROUP_BYTES)
    }
}

/// Tables that are put together from rows, each of which is checked.
struct Building<'a> {
    objects: &'a [ObjectEntry],
    tables: Vec<Table>,
    /// The object whose rows come next, and the last place in it.
    object: usize,
    last: Option<Place>,
}

impl<'a> Building<'a> {
    fn new(header: &'a Header) -> Result<Self, String> {
        let mut tables = Vec::new();
        for object in &header.objects {
            tables.push(match object.fixed {
                None => Table::ranges(),
                Some(fixed) if fixed.is_within(object.bytes) && fixed.samples == object.samples => {
                    Table::fixed(fixed)
                }
                Some(_) => return Err(format!("the samples of {} are not within it", object.address)),
            });
        }
        Ok(Self { objects: &header.objects, tables, object: 0, last: None })
    }

    fn add(&mut self, rows: &Rows) -> Result<(), String> {
        let mut decoding: Option<(&[u8], Decoding)> = None;
        for row in 0..rows.count {
            self.begin_next_object();
            if rows.object[row] as usize != self.object || self.object == self.objects.len() {
                return Err(format!("row {row} is of object {}, {} is due", rows.object[row], self.object));
            }
            let text = rows.decoding[row].data();
            let known = match decoding {
                Some((same, known)) if same == text => known,
                _ => {
                    let parsed = std::str::from_utf8(text).ok().and_then(Decoding::parse);
                    parsed.ok_or_else(|| format!("row {row} is decoded in an unknown way"))?
                }
            };
            decoding = Some((text, known));
            let place =
                place_of(rows, row, known).ok_or_else(|| format!("row {row} has an impossible place"))?;
            self.add_place(&place).ok_or_else(|| format!("row {row} is not where it may be"))?;
            if let Some(crc32c) = rows.crc32c.get(row) {
                self.tables[self.object].crc32c.push(*crc32c as u32);
            }
            self.last = Some(place);
        }
        Ok(())
    }

    /// Adds a sample, unless it goes back, or is not within its object.
    fn add_place(&mut self, place: &Place) -> Option<()> {
        let (object, table) = (&self.objects[self.object], &mut self.tables[self.object]);
        let in_order = self.last.as_ref().is_none_or(|last| {
            let same = last.unit == place.unit;
            let packed = last.decoding != Decoding::Raw;
            let agrees = last.unit_bytes == place.unit_bytes && last.decoding == place.decoding;
            let later = last.unit.start <= place.unit.start && last.unit.end <= place.unit.end;
            let kind = packed == (place.decoding != Decoding::Raw);
            kind && later && (!packed || !same || (agrees && last.offset + last.len <= place.offset))
        });
        if !in_order || place.unit.end > object.bytes {
            return None;
        }
        if place.decoding == Decoding::Raw {
            table.push_range(place.unit.start, place.len as u32);
        } else {
            if table.samples() == 0 {
                *table = Table::packed();
            }
            table.begin_unit(place.unit.clone(), place.unit_bytes, place.decoding);
            table.push_packed(place.offset as u32, place.len as u32);
        }
        Some(())
    }

    /// Passes over objects that have all their rows, or need none.
    fn begin_next_object(&mut self) {
        while self
            .objects
            .get(self.object)
            .is_some_and(|object| self.tables[self.object].samples() >= object.samples)
        {
            self.object += 1;
            self.last = None;
        }
    }

    fn finish(mut self) -> Result<Vec<Table>, String> {
        self.begin_next_object();
        if let Some(object) = self.objects.get(self.object) {
            return Err(format!("the samples of {} are not all there", object.address));
        }
        let odd = self
            .tables
            .iter()
            .position(|table| !table.crc32c.is_empty() && table.crc32c.len() as u64 != table.samples());
        match odd {
            Some(object) => {
                Err(format!("some samples of {} have checksums and some none", self.objects[object].address))
            }
            None => Ok(self.tables),
        }
    }
}

/// The place that a row names, if it is one.
fn place_of(rows: &Rows, row: usize, decoding: Decoding) -> Option<Place> {
    let number = |column: &[i64]| u64::try_from(column[row]).ok();
    let unit = number(&rows.unit_start)?..number(&rows.unit_end)?;
    let place = Place {
        unit_bytes: number(&rows.unit_bytes)?,
        decoding,
        offset: number(&rows.offset)?,
        len: number(&rows.len)?,
        unit,
    };
    let raw_bytes = place.unit.end.checked_sub(place.unit.start)?;
    let raw = place.offset == 0 && place.len == raw_bytes && place.unit_bytes == raw_bytes;
    let fits = place.len <= MOST_SAMPLE_BYTES
        && place.offset.checked_add(place.len)? <= place.unit_bytes
        && (decoding == Decoding::Raw) <= raw
        && (decoding == Decoding::Raw || place.unit_bytes <= MOST_UNIT_BYTES);
    fits.then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Format;
    use crate::index::file::VERSION;

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let header = |[samples, bytes]: [u64; 2]| {
            let object = || ObjectEntry {
                address: "s3://b/o".to_owned(),
                bytes,
                etag: "1".to_owned(),
                samples,
                fixed: None,
            };
            Header { version: VERSION, format: Format::JsonLines, objects: vec![object(), object()] }
        };
        let half = u64::MAX / 2;
        assert!(check_sums(&header([half, half])).is_ok());
        assert!(check_sums(&header([half + 1, 1])).is_err());
        assert!(check_sums(&header([1, half + 1])).is_err());
    }
}
