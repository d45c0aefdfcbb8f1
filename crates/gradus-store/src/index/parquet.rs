//! Parquet: a row is a sample, its bytes the text of one column.
//!
//! Of each file, the end and the chunks of that column are read, no other column. A row group's chunk is a unit; its
//! values, laid one after another, are what it decodes to.

use super::MOST_SAMPLE_BYTES;
use super::build::{Described, Work};
use super::column::decode_column;
use super::decode::{Decoding, MOST_UNIT_BYTES, ParquetCodec};
use super::table::Table;
use crate::crc32c::crc32c;
use ::parquet::basic::{ConvertedType, LogicalType, Type};
use ::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use ::parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use gradus_error::{Error, Result};
use std::ops::Range;

/// What a file begins and ends with.
const MAGIC: &[u8; 4] = b"PAR1";

/// Length of the metadata and the magic number, at the end.
const TAIL_BYTES: u64 = 8;

/// Largest metadata that is read.
const METADATA_BYTES: u64 = 256 << 20;

/// Names of columns shown where the one asked for is missing.
const SHOWN_COLUMNS: usize = 20;

/// Reads bytes of a file, from an offset on.
pub(crate) type ReadAt<'a> = dyn Fn(u64, usize) -> Result<Vec<u8>> + 'a;

/// Describes the rows of a file by its column `name`.
pub(super) fn describe(name: &str, work: &Work<'_>) -> Result<Described> {
    let read_at = |offset, len| work.read_at(offset, len);
    let file = TextFile::open(&work.object.address, work.object.bytes, name, &read_at)?;
    let mut table = Table::packed();
    let mut passed = 0;
    for group in 0..file.groups() {
        let (mut samples, mut end): (Vec<(u32, u32)>, u64) = (Vec::new(), 0);
        let decoded = file.read_group(group, &read_at, &mut |value| {
            samples.push((end as u32, value.len() as u32));
            table.crc32c.push(crc32c(value));
            end += value.len() as u64;
        })?;
        let Some((range, decoding)) = decoded else { continue };
        passed += range.end - range.start;
        work.pass(range.end - range.start);
        table.begin_unit(range, end, decoding);
        samples.into_iter().for_each(|(start, bytes)| table.push_packed(start, bytes));
    }
    work.pass(work.object.bytes.saturating_sub(passed));
    Ok(table.into())
}

/// A column of text in a Parquet file.
pub(crate) struct TextFile {
    name: String,
    size: u64,
    column_name: String,
    column: usize,
    metadata: ParquetMetaData,
}

impl TextFile {
    /// The column `column_name` of the file `name` of `size` bytes, of which the end is read.
    ///
    /// # Errors
    /// `Corrupt` for what is no Parquet file, or is cut off; `Invalid` where there is no such column of text.
    pub(crate) fn open(name: &str, size: u64, column_name: &str, read_at: &ReadAt) -> Result<Self> {
        let metadata = read_metadata(name, size, read_at)?;
        let column = find_column(column_name, metadata.file_metadata().schema_descr());
        let column = column.map_err(|error| error.within(name))?;
        Ok(Self { name: name.to_owned(), size, column_name: column_name.to_owned(), column, metadata })
    }

    /// Number of row groups.
    pub(crate) fn groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    /// Hands the values of a row group to `take`, an empty one where it is missing; where they were, and how they were
    /// decoded, or nothing for a group without rows.
    ///
    /// # Errors
    /// `Corrupt`, naming file and bytes; what `read_at` returns.
    pub(crate) fn read_group(
        &self,
        number: usize,
        read_at: &ReadAt,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<(Range<u64>, Decoding)>> {
        let (range, decoding) = self.chunk(number).map_err(|why| {
            let Self { name, column_name, .. } = self;
            Error::corrupt(format!("{name}: row group {number}, column `{column_name}`: {why}"))
        })?;
        let Decoding::ParquetColumn { codec, optional, rows } = decoding else { return Ok(None) };
        if rows == 0 {
            return Ok(None);
        }
        let bytes = read_at(range.start, (range.end - range.start) as usize)?;
        let most = MOST_UNIT_BYTES.min(MOST_SAMPLE_BYTES);
        let decoded = decode_column(bytes.into(), codec, optional, u64::from(rows), most, &mut |value| {
            take(value);
            Ok(())
        });
        let (name, column) = (&self.name, &self.column_name);
        decoded.map_err(|error| {
            error.within(format!("{name} bytes {range:?} (row group {number}, column `{column}`)"))
        })?;
        Ok(Some((range, decoding)))
    }

    fn chunk(&self, number: usize) -> Result<(Range<u64>, Decoding), String> {
        let group = self.metadata.row_group(number);
        // What is read from a file may have fewer columns than its schema.
        let chunk = group.columns().get(self.column).ok_or("it is missing")?;
        let codec = ParquetCodec::of(chunk.compression())
            .ok_or_else(|| format!("it is compressed by {}, which cannot be read", chunk.compression()))?;
        let rows = u32::try_from(group.num_rows()).map_err(|_| "an impossible number of rows")?;
        let optional = chunk.column_descr().max_def_level() > 0;
        let range = range_of(chunk).filter(|range| range.end <= self.size);
        let range = range.ok_or("it is not within the file, or larger than can be decoded at once")?;
        Ok((range, Decoding::ParquetColumn { codec, optional, rows }))
    }
}

/// Where a chunk is. Older programs leave the place of the dictionary out, or say 0.
pub(super) fn range_of(chunk: &ColumnChunkMetaData) -> Option<Range<u64>> {
    let data = u64::try_from(chunk.data_page_offset()).ok()?;
    let dictionary = chunk.dictionary_page_offset().and_then(|at| u64::try_from(at).ok());
    let start = dictionary.filter(|at| (1..data).contains(at)).unwrap_or(data);
    let bytes = u64::try_from(chunk.compressed_size()).ok()?;
    (bytes <= MOST_UNIT_BYTES).then_some(start..start.checked_add(bytes)?)
}

/// The metadata at the end of the file `name` of `size` bytes, which `read_at` reads.
///
/// # Errors
/// `Corrupt` for what is no Parquet file, or is cut off; what `read_at` returns.
pub(super) fn read_metadata(name: &str, size: u64, read_at: &ReadAt) -> Result<ParquetMetaData> {
    let cut = |why| {
        Error::corrupt(format!(
            "{name} is no Parquet file, or is cut off at byte {size}: {why}; copy it again"
        ))
    };
    if size < TAIL_BYTES + MAGIC.len() as u64 {
        return Err(cut("it is too small"));
    }
    let tail = read_at(size - TAIL_BYTES, TAIL_BYTES as usize)?;
    if &tail[4..] != MAGIC {
        return Err(cut("it does not end as it has to"));
    }
    let bytes = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if bytes > METADATA_BYTES || bytes > size - TAIL_BYTES - MAGIC.len() as u64 {
        return Err(cut("its metadata would be larger than it"));
    }
    let start = size - TAIL_BYTES - bytes;
    let text = read_at(start, bytes as usize)?;
    ParquetMetaDataReader::decode_metadata(&text).map_err(|error| {
        Error::corrupt(format!("{name} at byte {start}: damaged metadata")).with_source(error)
    })
}

/// The place of the column among the leaves of the schema.
fn find_column(name: &str, schema: &SchemaDescriptor) -> Result<usize> {
    let found = schema.columns().iter().position(|column| column.path().parts() == [name.to_owned()]);
    let Some(found) = found else {
        let names: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let more = if names.len() > SHOWN_COLUMNS { ", ..." } else { "" };
        let shown = names[..names.len().min(SHOWN_COLUMNS)].join(", ");
        return Err(Error::invalid(format!(
            "there is no column of text `{name}`; its columns are {shown}{more}"
        )));
    };
    let column = schema.column(found);
    if !is_text(&column) {
        return Err(Error::invalid(format!(
            "the column `{name}` holds no text but {:?}",
            column.physical_type()
        )));
    }
    Ok(found)
}

fn is_text(column: &ColumnDescriptor) -> bool {
    let of_bytes = column.physical_type() == Type::BYTE_ARRAY;
    let flat = column.max_rep_level() == 0 && column.max_def_level() <= 1;
    let logical = match column.logical_type_ref() {
        None => matches!(
            column.converted_type(),
            ConvertedType::NONE
                | ConvertedType::UTF8
                | ConvertedType::JSON
                | ConvertedType::BSON
                | ConvertedType::ENUM
        ),
        Some(logical) => {
            matches!(logical, LogicalType::String | LogicalType::Json | LogicalType::Bson | LogicalType::Enum)
        }
    };
    of_bytes && flat && logical
}
