//! Where objects are: `s3://BUCKET/KEY`, `file:///PATH`, or a plain path.
//!
//! Keys and paths are written as they are, without escapes: `%20` in an address is three characters of the key.
//! Invariant: what `Display` prints of an address parses to the same address.

use gradus_error::{Error, IoContext, Result};
use std::fmt;
use std::path::{Path, PathBuf};

/// Longest key that S3 has, in bytes.
const LONGEST_KEY: usize = 1024;

/// An address of an object, or of the folder of some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// In a bucket of an S3-compatible store.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The key, or what the keys of a folder begin with, without slashes at its ends; empty: the whole bucket.
        key: String,
    },
    /// A file or folder of this machine, absolute.
    File(PathBuf),
}

impl Address {
    /// Reads an address. A plain path is a file's; a relative one begins at the current folder.
    ///
    /// # Errors
    /// `Invalid` with what would do, for another scheme, an impossible bucket or key, or a `file://` that is not absolute.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() || text.contains('\0') {
            return Err(Error::invalid(format!("`{}` is no address: {FORMS}", text.escape_debug())));
        }
        match text.split_once("://") {
            Some(("s3", rest)) => s3(text, rest),
            Some(("file", rest)) => file(text, rest),
            Some((scheme, _)) if is_scheme(scheme) => {
                Err(Error::invalid(format!("`{text}`: {scheme}:// is not known here: {FORMS}")))
            }
            _ if text.starts_with("s3:") || text.starts_with("file:") => {
                Err(Error::invalid(format!("`{text}` lacks a slash: {FORMS}")))
            }
            _ => {
                let path =
                    std::path::absolute(text).context(|| format!("cannot find the folder of {text}"))?;
                Ok(Self::File(path))
            }
        }
    }

    /// Whether it is in a bucket.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::S3 { .. })
    }

    /// The address of what is called `name` below this one; of itself, where `name` is empty.
    pub fn join(&self, name: &str) -> Self {
        match self {
            _ if name.is_empty() => self.clone(),
            Self::S3 { bucket, key } if key.is_empty() => {
                Self::S3 { bucket: bucket.clone(), key: name.to_owned() }
            }
            Self::S3 { bucket, key } => Self::S3 { bucket: bucket.clone(), key: format!("{key}/{name}") },
            Self::File(path) => Self::File(path.join(name)),
        }
    }

    /// The folder that it is in, and its name there; `None` for a whole bucket, and for a path that ends in no name.
    pub fn parent(&self) -> Option<(Self, String)> {
        match self {
            Self::S3 { key, .. } if key.is_empty() => None,
            Self::S3 { bucket, key } => {
                let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
                Some((Self::S3 { bucket: bucket.clone(), key: folder.to_owned() }, name.to_owned()))
            }
            Self::File(path) => {
                let name = path.file_name()?.to_str()?.to_owned();
                Some((Self::File(path.parent()?.to_owned()), name))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, key } if key.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// What an address may look like.
const FORMS: &str = "give s3://BUCKET/KEY, file:///PATH or a path";

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
}

fn s3(text: &str, rest: &str) -> Result<Address> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    let letters = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    if !(3..=255).contains(&bucket.len()) || !bucket.chars().all(letters) {
        return Err(Error::invalid(format!(
            "`{text}`: `{bucket}` is no bucket's name, which has 3 or more letters, digits, dashes and dots: {FORMS}"
        )));
    }
    let key = key.strip_suffix('/').unwrap_or(key);
    check_key(key).map_err(|error| error.within(text))?;
    Ok(Address::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
}

fn file(text: &str, rest: &str) -> Result<Address> {
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(Error::invalid(format!(
            "`{text}` is not absolute: write file:///{rest}, or the path alone"
        )));
    }
    Ok(Address::File(Path::new(path).to_owned()))
}

/// Whether a key can be asked for; an empty one names the folder itself.
///
/// # Errors
/// `Invalid` for keys that clients and servers do not agree on (empty parts, `.`, `..`, control characters), and for those
/// longer than S3 has any.
pub(super) fn check_key(key: &str) -> Result<()> {
    let bad =
        |why: &str| Error::invalid(format!("the key `{}` {why}: rename the object", key.escape_debug()));
    if key.len() > LONGEST_KEY {
        return Err(bad("is longer than 1024 bytes"));
    }
    if key.chars().any(char::is_control) {
        return Err(bad("has control characters"));
    }
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    if !key.is_empty() && key.split('/').any(odd) {
        return Err(bad("has parts that are empty, `.` or `..`, which not every store tells apart"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn s3(bucket: &str, key: &str) -> Address {
        Address::S3 { bucket: bucket.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(Address::parse("s3://data").unwrap(), s3("data", ""));
        assert_eq!(Address::parse("s3://data/").unwrap(), s3("data", ""));
        assert_eq!(Address::parse("s3://data/a b/ü%+.txt").unwrap(), s3("data", "a b/ü%+.txt"));
        assert_eq!(Address::parse("file:///a/b c").unwrap(), Address::File("/a/b c".into()));
        assert_eq!(Address::parse("file://localhost/a").unwrap(), Address::File("/a".into()));
        assert_eq!(Address::parse("/a/b").unwrap(), Address::File("/a/b".into()));
        assert_eq!(Address::parse("a").unwrap(), Address::File(std::env::current_dir().unwrap().join("a")));
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("s3://data/{}", "a".repeat(1025));
        for text in [
            "",
            "a\0b",
            "s3://",
            "s3:///key",
            "s3://ab/key",
            "s3://buck et/key",
            "s3:/bucket/key",
            "s3://data/a//b",
            "s3://data/../b",
            "s3://data/a\nb",
            "gs://bucket/key",
            "https://host/bucket",
            "file://a/b",
            "file:/a",
            &long,
        ] {
            assert_eq!(Address::parse(text).unwrap_err().kind(), &Kind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_name_is_joined_and_parted() {
        let folder = Address::parse("s3://data/a").unwrap();
        assert_eq!(folder.join("b/c").to_string(), "s3://data/a/b/c");
        assert_eq!(folder.join("b/c").parent(), Some((s3("data", "a/b"), "c".to_owned())));
        assert_eq!(s3("data", "a").parent(), Some((s3("data", ""), "a".to_owned())));
        assert_eq!(s3("data", "").parent(), None);
        assert_eq!(Address::parse("/").unwrap().parent(), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_printed_reads_the_same(text in "(s3://|file://|)\\PC{0,40}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(Address::parse(&address.to_string()).unwrap(), address);
            }
        }
    }
}
