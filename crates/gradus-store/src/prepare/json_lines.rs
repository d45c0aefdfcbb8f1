//! Files of one JSON object a line.

use super::corpus::CorpusFile;
use super::unpack::{Stream, open, skip};
use gradus_error::{Error, IoContext, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::io::{BufRead, Read, Take};
use std::path::PathBuf;

/// Longest line that is read: a line is held in memory as a whole.
const LINE_BYTES: u64 = 64 << 20;

/// The lines of a file, blank ones left out.
pub(crate) struct JsonLines {
    reader: Take<Stream>,
    path: PathBuf,
    line: Vec<u8>,
    number: u64,
    is_cut: bool,
}

impl JsonLines {
    /// The lines of what is used of a file.
    pub(crate) fn open(file: &CorpusFile) -> Result<Self> {
        Self::open_at(file, 0)
    }

    /// The lines from byte `start` on; unless that is the first, the rest of the line in which it falls is passed over.
    pub(crate) fn open_at(file: &CorpusFile, start: u64) -> Result<Self> {
        let path = file.file.path.clone();
        let reader = open(&file.file, start)?.take(file.used_bytes.saturating_sub(start));
        let mut lines = Self { reader, path, line: Vec::new(), number: 0, is_cut: file.is_cut() };
        if start > 0 {
            lines.read_line()?;
        }
        Ok(lines)
    }

    /// Goes on to the first line that begins after byte `start` of what is used of the file, unless it is there already.
    pub(crate) fn skip_to(&mut self, start: u64, used_bytes: u64) -> Result<()> {
        let position = used_bytes - self.left_bytes();
        if position < start {
            skip(&mut self.reader, start - position)
                .context(|| format!("cannot read {} (data.input)", self.path.display()))?;
            self.read_line()?;
        }
        Ok(())
    }

    /// The next line that is not blank. A last line that the limit of the corpus cuts is left out.
    pub(crate) fn next_line(&mut self) -> Result<Option<&[u8]>> {
        loop {
            self.read_line()?;
            let ended = self.line.last() == Some(&b'\n');
            if self.line.is_empty() || (self.is_cut && !ended) {
                return Ok(None);
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(&self.line));
            }
        }
    }

    /// Bytes of the line read last.
    pub(crate) fn line_bytes(&self) -> u64 {
        self.line.len() as u64
    }

    /// Bytes of the file not read yet.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.reader.limit()
    }

    /// The text in the line read last.
    ///
    /// # Errors
    /// `Invalid`, naming file and line: it is no JSON object, or has no such field, or that is no string.
    pub(crate) fn text(&self, field: &str) -> Result<String> {
        let place = format!("{}:{}", self.path.display(), self.number);
        // A mark of byte order, which some programs put first, is no JSON.
        let line = self.line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.line);
        let mut deserializer = serde_json::Deserializer::from_slice(line);
        let found = TextField(field)
            .deserialize(&mut deserializer)
            .and_then(|found| deserializer.end().map(|()| found));
        match found {
            Ok(Some(Value::String(text))) => Ok(text),
            Ok(Some(_)) => Err(Error::invalid(format!("{place}: the field `{field}` is not a string"))),
            Ok(None) => Err(Error::invalid(format!("{place}: no field `{field}` (data.text_field)"))),
            Err(error) => Err(Error::invalid(format!("{place}: not a JSON object")).with_source(error)),
        }
    }

    fn read_line(&mut self) -> Result<()> {
        self.line.clear();
        self.number += 1;
        let mut bounded = self.reader.by_ref().take(LINE_BYTES + 1);
        let read = bounded.read_until(b'\n', &mut self.line);
        read.context(|| format!("cannot read {} (data.input)", self.path.display()))?;
        if self.line_bytes() > LINE_BYTES {
            let place = format!("{}:{}", self.path.display(), self.number);
            return Err(Error::invalid(format!("{place}: the line has more than {LINE_BYTES} bytes")));
        }
        Ok(())
    }
}

/// Takes one field of an object and passes over the others.
struct TextField<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for TextField<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextField<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}
