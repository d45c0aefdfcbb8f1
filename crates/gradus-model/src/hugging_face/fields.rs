//! Typed look-up in a JSON object from outside: every failure names the file and the key.

use gradus_error::{Error, IoContext, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The whole of a regular file of at most `limit` bytes.
///
/// # Errors
/// `Invalid` for what is no regular file or too large; the system's failure to read.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let describe = || format!("cannot read {}", path.display());
    let metadata = std::fs::metadata(path).context(describe)?;
    if !metadata.is_file() || metadata.len() > limit {
        let found =
            if metadata.is_file() { format!("{} bytes long", metadata.len()) } else { "no file".into() };
        return Err(Error::invalid(format!(
            "{} is {found}: a file of at most {limit} bytes is wanted here",
            path.display()
        )));
    }
    let mut bytes = Vec::new();
    File::open(path).context(describe)?.take(limit).read_to_end(&mut bytes).context(describe)?;
    Ok(bytes)
}

/// A JSON object and where it stands.
pub(super) struct Fields {
    map: Map<String, Value>,
    place: String,
}

impl Fields {
    /// Reads an object; `place` names it in messages.
    ///
    /// # Errors
    /// `Invalid`, with line and column, for what is no JSON object.
    pub(super) fn parse(bytes: &[u8], place: String) -> Result<Self> {
        match serde_json::from_slice(bytes) {
            Ok(map) => Ok(Self { map, place }),
            Err(error) => Err(Error::invalid(format!("{place} is not a JSON object")).with_source(error)),
        }
    }

    /// The object under `key`, if there is one that is not null.
    ///
    /// # Errors
    /// `Invalid` for a value of another type; so for all methods below.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.given(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Self { map: map.clone(), place: format!("{}: {key}", self.place) }))
            }
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// The value under `key`, if it is there and not null.
    pub(super) fn given(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it with null.
    pub(super) fn names(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A whole number.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.given(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, value, "a whole number"))
    }

    /// A whole number that must be there.
    pub(super) fn needed_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| Error::invalid(format!("{} has no {key}", self.place)))
    }

    /// A positive number that an f32 can hold.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>> {
        let Some(value) = self.given(key) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32);
        let usable = number.filter(|number| number.is_finite() && *number > 0.0);
        usable.map(Some).ok_or_else(|| self.wrong(key, value, "a positive number"))
    }

    /// `true` or `false`, or `default`.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        // Null is no flag: what it means has changed between versions of transformers.
        match self.map.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A text, or `default`.
    pub(super) fn text<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        match self.given(key) {
            None => Ok(default),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }

    /// Refuses a flag that is not `supported`; without the key it is taken to be.
    pub(super) fn only_flag(&self, key: &str, supported: bool) -> Result<()> {
        if self.flag(key, supported)? == supported {
            return Ok(());
        }
        Err(self.wrong(
            key,
            &Value::Bool(!supported),
            &format!("{supported}, which is all that is supported"),
        ))
    }

    /// Refuses a text that is none of `supported`; without the key it is taken to be the first.
    pub(super) fn only_text(&self, key: &str, supported: &[&str]) -> Result<()> {
        let text = self.text(key, supported[0])?;
        if supported.contains(&text) {
            return Ok(());
        }
        let supported = supported.join("\" or \"");
        Err(self.wrong(key, &text.into(), &format!("\"{supported}\", which is all that is supported")))
    }

    /// Refuses every key that is not `known`.
    pub(super) fn only_keys(&self, known: &[&str]) -> Result<()> {
        match self.map.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, value)) => Err(self.wrong(key, value, "absent: it is not supported")),
        }
    }

    /// The failure of a value that is not as `wanted`.
    pub(super) fn wrong(&self, key: &str, found: &Value, wanted: &str) -> Error {
        let mut found = found.to_string();
        if found.len() > 80 {
            found = found.chars().take(77).chain("...".chars()).collect();
        }
        Error::invalid(format!("{}: {key} is {found}: it must be {wanted}", self.place))
    }
}
