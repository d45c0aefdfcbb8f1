//! WebDataset: tar archives in which entries of one name, but for the extension, are a sample.
//!
//! A sample's bytes are those of the archive from the header of its first entry to the end of the last one's content, so
//! that one read brings all its fields; [`fields`] finds them in these bytes. Names are cut and entries passed over as
//! the `webdataset` package does (`tariterators.py`): at the first dot of the file's name, folders and files without a
//! dot left out, and so is what is marked as `__meta__`.

use super::build::{Described, Work};
use super::table::Table;
use super::tar::{Entry, Tar};
use super::{Field, MOST_SAMPLE_BYTES};
use gradus_error::{Error, Result};
use std::collections::BTreeSet;
use std::io::Read;

/// Most entries of one sample.
const MOST_FIELDS: usize = 1 << 10;

/// Describes an archive.
pub(super) fn describe(work: &Work<'_>) -> Result<Described> {
    let within = |error: Error| error.within(&work.object.address);
    let mut tar = Tar::new(work.open()?, false);
    let mut samples = Samples { table: Table::ranges(), keys: Vec::new(), open: None };
    while let Some(entry) = tar.next().map_err(within)? {
        let Some((key, extension)) = split_name(&entry.name) else { continue };
        if samples.add(key, extension, &entry).map_err(within)? {
            tar.begin_checksum();
        }
        tar.pass(&entry).map_err(within)?;
        samples.reached(entry.data + entry.bytes, tar.checksum());
    }
    samples.close().map_err(within)?;
    Ok(Described { table: samples.table, keys: samples.keys })
}

/// A sample whose entries are being found.
struct Open {
    key: String,
    extensions: BTreeSet<String>,
    start: u64,
    end: u64,
    crc32c: u32,
}

struct Samples {
    table: Table,
    keys: Vec<String>,
    open: Option<Open>,
}

impl Samples {
    /// Adds an entry. Whether it begins a sample.
    fn add(&mut self, key: &str, extension: String, entry: &Entry) -> Result<bool> {
        if let Some(open) = self.open.as_mut().filter(|open| open.key == key) {
            check_fields(open.extensions.len() + 1, key)?;
            if !open.extensions.insert(extension) {
                let (name, at) = (&entry.name, entry.start);
                return Err(Error::invalid(format!("at byte {at}: the sample `{key}` has `{name}` twice")));
            }
            return Ok(false);
        }
        self.close()?;
        let (start, extensions) = (entry.start, BTreeSet::from([extension]));
        self.open = Some(Open { key: key.to_owned(), extensions, start, end: start, crc32c: 0 });
        Ok(true)
    }

    /// Says that the sample's last entry so far ends at `end`.
    fn reached(&mut self, end: u64, crc32c: u32) {
        if let Some(open) = &mut self.open {
            (open.end, open.crc32c) = (end, crc32c);
        }
    }

    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let bytes = open.end - open.start;
        if bytes > MOST_SAMPLE_BYTES {
            let key = open.key;
            return Err(Error::invalid(format!(
                "at byte {}: the sample `{key}` has {bytes} bytes; {MOST_SAMPLE_BYTES} are the most",
                open.start
            )));
        }
        self.table.push_range(open.start, bytes as u32);
        self.table.crc32c.push(open.crc32c);
        self.keys.push(open.key);
        Ok(())
    }
}

fn check_fields(fields: usize, key: &str) -> Result<()> {
    if fields > MOST_FIELDS {
        return Err(Error::invalid(format!("the sample `{key}` has more than {MOST_FIELDS} entries")));
    }
    Ok(())
}

/// The fields of a sample, found in its bytes.
pub(super) fn fields(sample: impl Read, len: usize) -> Result<Vec<Field>> {
    let mut tar = Tar::new(sample, true);
    let mut fields = Vec::new();
    while let Some(entry) = tar.next()? {
        if let Some((key, name)) = split_name(&entry.name) {
            check_fields(fields.len() + 1, key)?;
            let (start, end) = (entry.data, entry.data + entry.bytes);
            if end > len as u64 {
                return Err(Error::corrupt(format!("`{}` goes on after the sample", entry.name)));
            }
            fields.push(Field { name, range: start as usize..end as usize });
        }
    }
    Ok(fields)
}

/// Key and extension of an entry's name, the latter in small letters; none for what is no field of a sample.
fn split_name(name: &str) -> Option<(&str, String)> {
    let first = name.split('/').next().unwrap_or_default();
    if first.len() >= 4 && first.starts_with("__") && first.ends_with("__") {
        return None;
    }
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + name[file..].find('.')?;
    if dot == file {
        // A file whose name begins with a dot takes its folder's name, if that has none.
        let folder = name[..file].trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if file == 0 || folder.contains('.') {
            return None;
        }
    }
    Some((&name[..dot], name[dot + 1..].to_lowercase()))
}
