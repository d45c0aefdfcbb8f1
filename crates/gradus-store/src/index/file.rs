//! An index as a file: Parquet, one row for each sample, so that DuckDB or pandas open it as well.
//!
//! Objects, format and version are JSON in the file's metadata, under [`METADATA_KEY`]. Samples of one size have no rows:
//! where they are is arithmetic, and stands with their object. The file may come from anywhere: all that is read is held
//! against the sizes of the objects, and nothing is sized by what the file merely says.

mod ends;
mod read;

pub(crate) use ends::TAIL_BYTES;

use super::table::{Fixed, Place, Table};
use super::{Format, Index};
use crate::blocks::ObjectInfo;
use ::parquet::basic::{Compression, LogicalType, Repetition, Type, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::types::Type as SchemaType;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The file's name, where it lies beside the data.
pub const INDEX_FILE: &str = "gradus-index.parquet";

/// Where in the file's metadata the objects are.
const METADATA_KEY: &str = "gradus.index";

/// The version that is written and read.
const VERSION: u32 = 1;

/// Rows of a row group.
const GROUP_ROWS: u64 = 1 << 20;

/// Most bytes of a column of a row group: eight for a row, and twice that for pages of many distinct texts.
const GROUP_BYTES: u64 = 24 * GROUP_ROWS;

/// What the file's metadata say.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    format: Format,
    objects: Vec<ObjectEntry>,
}

#[derive(Serialize, Deserialize)]
struct ObjectEntry {
    address: String,
    bytes: u64,
    etag: String,
    samples: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fixed: Option<Fixed>,
}

/// The columns that are read back, in the order in which they are written.
const COLUMNS: [(&str, Type); 8] = [
    ("object", Type::INT32),
    ("unit_start", Type::INT64),
    ("unit_end", Type::INT64),
    ("unit_bytes", Type::INT64),
    ("decoding", Type::BYTE_ARRAY),
    ("offset", Type::INT64),
    ("length", Type::INT64),
    ("crc32c", Type::INT32),
];

/// The columns, and two more for those who look at the file: the object's address, and the sample's name.
fn schema() -> Result<Arc<SchemaType>, ParquetError> {
    let mut fields = Vec::new();
    for (name, kind) in COLUMNS.into_iter().chain([("address", Type::BYTE_ARRAY), ("key", Type::BYTE_ARRAY)])
    {
        let optional = matches!(name, "crc32c" | "key");
        let logical = match kind {
            Type::BYTE_ARRAY => Some(LogicalType::String),
            _ if name == "crc32c" => Some(LogicalType::integer(32, false)),
            _ => None,
        };
        let builder = SchemaType::primitive_type_builder(name, kind)
            .with_repetition(if optional { Repetition::OPTIONAL } else { Repetition::REQUIRED })
            .with_logical_type(logical);
        fields.push(Arc::new(builder.build()?));
    }
    Ok(Arc::new(SchemaType::group_type_builder("gradus_index").with_fields(fields).build()?))
}

impl Index {
    /// Writes the index to a file, which is the old one or the new one whatever happens. Blocks.
    ///
    /// # Errors
    /// The system's failure to write; `Exhausted` when the disk is full.
    pub fn write(&self, path: &Path) -> Result<()> {
        let partial = disk::partial_name(path);
        let describe = || format!("cannot write {}", path.display());
        let result = File::create(&partial).context(describe).and_then(|file| {
            let mut writer = BufWriter::new(file);
            self.write_to(&mut writer).map_err(|error| error.within(describe()))?;
            writer
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)
                .context(describe)?
                .sync_all()
                .context(describe)
        });
        if let Err(error) = result {
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
        std::fs::rename(&partial, path).context(describe)?;
        disk::sync_directory(
            path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new(".")),
        )
    }

    /// Writes the index as the bytes of such a file.
    ///
    /// # Errors
    /// What the writer returns.
    pub fn write_to(&self, writer: impl Write + Send) -> Result<()> {
        self.write_parquet(writer).map_err(|error| match error {
            ParquetError::External(source) => match source.downcast::<std::io::Error>() {
                Ok(source) => Error::io("the index cannot be written", *source),
                Err(source) => Error::unavailable("the index cannot be written").with_source(source),
            },
            other => Error::unavailable("the index cannot be written").with_source(other),
        })
    }

    fn write_parquet(&self, writer: impl Write + Send) -> Result<(), ParquetError> {
        let text =
            serde_json::to_string(&self.header()).map_err(|error| ParquetError::External(error.into()))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(Some(vec![KeyValue::new(METADATA_KEY.to_owned(), text)]))
            .build();
        let mut file = SerializedFileWriter::new(writer, schema()?, Arc::new(properties))?;
        for (object, table) in self.tables.iter().enumerate() {
            let samples = if table.as_fixed().is_some() { 0 } else { table.samples() };
            for start in (0..samples).step_by(GROUP_ROWS as usize) {
                let mut group = file.next_row_group()?;
                self.write_group(&mut group, object, start..(start + GROUP_ROWS).min(samples))?;
                group.close()?;
            }
        }
        file.close()?;
        Ok(())
    }

    fn header(&self) -> Header {
        let entry = |(object, table): (&ObjectInfo, &Table)| ObjectEntry {
            address: object.address.clone(),
            bytes: object.bytes,
            etag: object.etag.clone(),
            samples: table.samples(),
            fixed: table.as_fixed(),
        };
        let objects = self.objects.iter().zip(&self.tables).map(entry).collect();
        Header { version: VERSION, format: self.format.clone(), objects }
    }

    fn write_group<W: Write + Send>(
        &self,
        group: &mut SerializedRowGroupWriter<'_, W>,
        object: usize,
        rows: Range<u64>,
    ) -> Result<(), ParquetError> {
        let table = &self.tables[object];
        let count = (rows.end - rows.start) as usize;
        let long =
            |of: fn(&Place) -> u64| rows.clone().map(|row| of(&table.place(row)) as i64).collect::<Vec<_>>();
        let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
        let checksums = table.crc32c.get(rows.start as usize..rows.end as usize).unwrap_or_default();
        let checksums: Vec<i32> = checksums.iter().map(|crc32c| *crc32c as i32).collect();
        let keys = self.keys.get(object).and_then(|keys| keys.get(rows.start as usize..rows.end as usize));
        let keys: Vec<ByteArray> = keys.unwrap_or_default().iter().map(|key| text(key)).collect();
        let decodings: Vec<ByteArray> =
            rows.clone().map(|row| text(&table.place(row).decoding.to_string())).collect();
        put::<Int32Type, W>(group, &vec![object as i32; count], count)?;
        put::<Int64Type, W>(group, &long(|place| place.unit.start), count)?;
        put::<Int64Type, W>(group, &long(|place| place.unit.end), count)?;
        put::<Int64Type, W>(group, &long(|place| place.unit_bytes), count)?;
        put::<ByteArrayType, W>(group, &decodings, count)?;
        put::<Int64Type, W>(group, &long(|place| place.offset), count)?;
        put::<Int64Type, W>(group, &long(|place| place.len), count)?;
        put::<Int32Type, W>(group, &checksums, count)?;
        put::<ByteArrayType, W>(group, &vec![text(&self.objects[object].address); count], count)?;
        put::<ByteArrayType, W>(group, &keys, count)
    }
}

/// Writes a column: all of `rows` values, or none.
fn put<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    rows: usize,
) -> Result<(), ParquetError> {
    let missing = || ParquetError::General("the schema has another column".to_owned());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    let levels = vec![i16::from(!values.is_empty()); rows];
    column.typed::<T>().write_batch(values, Some(&levels), None)?;
    column.close()
}
