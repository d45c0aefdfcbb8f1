//! The values of one column chunk of a Parquet file, from its bytes alone.
//!
//! Of the file's metadata only three facts are needed: codec, whether values may be missing, and how many there are. So a
//! sample is decoded from the bytes of its unit without reading the end of the file again.

use super::decode::ParquetCodec;
use super::guard::Guarded;
use super::pages::check_pages;
use ::parquet::basic::{Compression, Repetition, Type};
use ::parquet::column::reader::ColumnReaderImpl;
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::properties::ReaderProperties;
use ::parquet::file::serialized_reader::SerializedPageReader;
use ::parquet::schema::types::{ColumnDescPtr, ColumnDescriptor, ColumnPath, Type as SchemaType};
use bytes::Bytes;
use gradus_error::{Error, Result};
use std::sync::Arc;

/// Values decoded at once.
const BATCH_VALUES: usize = 1 << 10;

/// What the format's overhead may add to a column's values: headers, levels, and a dictionary none of whose entries is
/// used.
const SLACK_BYTES: u64 = 64 << 20;

impl ParquetCodec {
    pub(super) fn of(compression: Compression) -> Option<Self> {
        match compression {
            Compression::UNCOMPRESSED => Some(Self::Plain),
            Compression::SNAPPY => Some(Self::Snappy),
            Compression::GZIP(_) => Some(Self::Gzip),
            Compression::LZ4_RAW => Some(Self::Lz4),
            Compression::ZSTD(_) => Some(Self::Zstd),
            _ => None,
        }
    }

    fn compression(self) -> Compression {
        match self {
            Self::Plain => Compression::UNCOMPRESSED,
            Self::Snappy => Compression::SNAPPY,
            Self::Gzip => Compression::GZIP(Default::default()),
            Self::Lz4 => Compression::LZ4_RAW,
            Self::Zstd => Compression::ZSTD(Default::default()),
        }
    }
}

/// Hands `take` each of the `rows` values of a column chunk, an empty one where it is missing. Together they have at most
/// `most_bytes`.
///
/// # Errors
/// `Corrupt` for a chunk that is damaged, or has another number of values, or more bytes; what `take` returns.
pub(super) fn decode_column(
    chunk: Bytes,
    codec: ParquetCodec,
    optional: bool,
    rows: u64,
    most_bytes: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    check_pages(
        &chunk,
        codec,
        most_bytes.saturating_mul(2).saturating_add(SLACK_BYTES).min(u64::from(u32::MAX)),
    )?;
    let mut reader = open_text(chunk, codec, optional, rows).map_err(damaged)?;
    let (mut seen, mut bytes) = (0u64, 0u64);
    let (mut levels, mut values) = (Vec::<i16>::new(), Vec::<ByteArray>::new());
    loop {
        levels.clear();
        values.clear();
        let read = reader.read_records(BATCH_VALUES, optional.then_some(&mut levels), None, &mut values);
        let (records, found, _) = read.map_err(damaged)?;
        seen += records as u64;
        bytes += values.iter().map(|value| value.len() as u64).sum::<u64>();
        if seen > rows || bytes > most_bytes {
            return Err(Error::corrupt(format!(
                "the column has more than its {rows} values of {most_bytes} bytes"
            )));
        }
        if records == 0 {
            break;
        }
        if !optional {
            levels.resize(found, 1);
        }
        let mut present = values.iter();
        for level in &levels {
            let value = if *level > 0 { present.next() } else { None };
            take(value.map_or(&[], |value| value.data()))?;
        }
    }
    if seen != rows {
        return Err(Error::corrupt(format!("the column has {seen} values, {rows} are expected")));
    }
    Ok(())
}

fn open_text(
    chunk: Bytes,
    codec: ParquetCodec,
    optional: bool,
    rows: u64,
) -> Result<ColumnReaderImpl<ByteArrayType>, ParquetError> {
    let repetition = if optional { Repetition::OPTIONAL } else { Repetition::REQUIRED };
    let value =
        SchemaType::primitive_type_builder("value", Type::BYTE_ARRAY).with_repetition(repetition).build()?;
    let descriptor =
        ColumnDescriptor::new(Arc::new(value), i16::from(optional), 0, ColumnPath::from("value"));
    open(chunk, codec, Arc::new(descriptor), rows)
}

/// A reader of a chunk's values.
fn open<T: DataType>(
    chunk: Bytes,
    codec: ParquetCodec,
    descriptor: ColumnDescPtr,
    rows: u64,
) -> Result<ColumnReaderImpl<T>, ParquetError> {
    let metadata = ColumnChunkMetaData::builder(Arc::clone(&descriptor))
        .set_compression(codec.compression())
        .set_num_values(rows as i64)
        .set_total_compressed_size(chunk.len() as i64)
        .set_data_page_offset(0)
        .build()?;
    let properties = ReaderProperties::builder().set_backward_compatible_lz4(false).build();
    let pages = SerializedPageReader::new_with_properties(
        Arc::new(chunk),
        &metadata,
        rows as usize,
        None,
        Arc::new(properties),
    )?;
    let (kind, optional) = (descriptor.physical_type(), descriptor.max_def_level() > 0);
    let pages = Guarded { pages, kind, optional, has_dictionary: false };
    Ok(ColumnReaderImpl::new(descriptor, Box::new(pages)))
}

/// All values of a chunk; with levels, which say where one is missing, if the column is optional. Its pages have at most
/// `most_bytes`, and it has `rows` of them, or fewer.
///
/// # Errors
/// `Corrupt`.
pub(super) fn read_values<T: DataType>(
    chunk: Bytes,
    codec: ParquetCodec,
    descriptor: ColumnDescPtr,
    rows: u64,
    most_bytes: u64,
) -> Result<(Vec<T::T>, Vec<i16>)> {
    check_pages(&chunk, codec, most_bytes)?;
    let optional = descriptor.max_def_level() > 0;
    let mut reader = open::<T>(chunk, codec, descriptor, rows).map_err(damaged)?;
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    let read = reader.read_records(rows as usize, optional.then_some(&mut levels), None, &mut values);
    read.map_err(damaged)?;
    Ok((values, levels))
}

fn damaged(error: ParquetError) -> Error {
    Error::corrupt("the column does not decode").with_source(error)
}
