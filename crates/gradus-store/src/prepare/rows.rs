//! The rows of a Parquet file's column of text, one after another: each is a document.
//!
//! Only that column is read, a row group at a time. Positions count the bytes of the texts alone, laid end to end.

use super::inputs::InputFile;
use super::objects::Opened;
use crate::index::TextFile;
use gradus_error::Result;

/// Reads rows forwards.
pub(crate) struct Rows {
    file: Opened,
    column: TextFile,
    /// The next row group to read.
    group: usize,
    /// Texts of the last one, and where each of them ends.
    texts: Vec<u8>,
    ends: Vec<usize>,
    /// The next text of these.
    next: usize,
    position: u64,
    /// Where the texts that are used end.
    used_bytes: u64,
}

impl Rows {
    /// The rows whose texts are among the first `used_bytes`.
    ///
    /// # Errors
    /// `Invalid` when the file has no such column of text; `Corrupt` when it is damaged.
    pub(crate) fn open(file: &InputFile, text_field: &str, used_bytes: u64) -> Result<Self> {
        let opened = file.open()?;
        let read_at = |offset, len| opened.read_at(offset, len);
        let column = TextFile::open(&file.path.display().to_string(), file.bytes, text_field, &read_at)
            .map_err(|error| error.within("data.text_field"))?;
        let (texts, ends) = (Vec::new(), Vec::new());
        Ok(Self { file: opened, column, group: 0, texts, ends, next: 0, position: 0, used_bytes })
    }

    /// The text of the next row that is used.
    pub(crate) fn next_row(&mut self) -> Result<Option<&[u8]>> {
        while self.next == self.ends.len() {
            if self.group == self.column.groups() {
                return Ok(None);
            }
            self.read_group()?;
        }
        let start = if self.next == 0 { 0 } else { self.ends[self.next - 1] };
        let end = self.ends[self.next];
        let after = self.position + (end - start) as u64;
        if after > self.used_bytes {
            return Ok(None);
        }
        self.position = after;
        self.next += 1;
        Ok(Some(&self.texts[start..end]))
    }

    /// Bytes of the texts so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn read_group(&mut self) -> Result<()> {
        self.texts.clear();
        self.ends.clear();
        self.next = 0;
        let Self { file, texts, ends, .. } = self;
        let read_at = |offset, len| file.read_at(offset, len);
        self.column.read_group(self.group, &read_at, &mut |text| {
            texts.extend_from_slice(text);
            ends.push(texts.len());
        })?;
        self.group += 1;
        Ok(())
    }
}

/// Bytes of all texts of a file, as far as they are at most `limit`.
pub(crate) fn size(file: &InputFile, text_field: &str, limit: u64) -> Result<(u64, bool)> {
    let mut rows = Rows::open(file, text_field, limit)?;
    while rows.next_row()?.is_some() {}
    let whole = rows.next == rows.ends.len() && rows.group == rows.column.groups();
    Ok((rows.position, whole))
}
