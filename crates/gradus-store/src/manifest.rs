//! `manifest.json`: what a prepared folder holds.
//!
//! It is written last, so that a folder with a manifest is a finished one. Everything read from it is checked before it
//! is used: its bytes may come from anywhere.

use crate::prepare::PrepareSettings;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk::{self, write_atomically};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The file's name.
pub const MANIFEST: &str = "manifest.json";

/// The list of the files that `cargo:` chose.
pub(crate) const SOURCES: &str = "sources.json";

/// The format that this version writes and reads.
pub const FORMAT: u32 = 2;

/// Largest manifest that is read; one entry for each shard.
pub(crate) const LIMIT_BYTES: u64 = 64 << 20;

/// The two parts of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is only evaluated on.
    HeldOut,
}

impl Split {
    /// The first part of its shards' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
        }
    }
}

/// How a token is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Two bytes: vocabularies of up to 65,536.
    U16,
    /// Four bytes.
    U32,
}

impl TokenType {
    /// The smaller one that holds every token of a vocabulary.
    pub fn of_vocabulary(vocabulary: usize) -> Self {
        if vocabulary > 1 << 16 { Self::U32 } else { Self::U16 }
    }

    /// Bytes of a token.
    pub fn bytes(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// A file, or part of one, with a multiple of the sequence length plus one tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// A name in the prepared folder, or the absolute path of a token file that is used as it is.
    pub file: String,
    /// Where the tokens begin in the file.
    pub offset_bytes: u64,
    /// Tokens from there on.
    pub tokens: u64,
    /// Documents that begin among all tokens but the last (the last is only a target, and first in the next shard).
    pub documents: u64,
    /// SHA-256 of the tokens' bytes.
    pub sha256: String,
    /// Size of the whole file.
    pub file_bytes: u64,
    /// Modification time of the file when it was digested, nanoseconds since 1970.
    pub modified_ns: u64,
    /// The file in the prepared folder that lists where documents begin; empty for token files used as they are.
    pub document_starts: String,
    /// SHA-256 of that file; empty where there is none.
    pub document_starts_sha256: String,
}

/// One part of the corpus.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Tokens in the samples, one that two samples share counted once.
    pub tokens: u64,
    /// Tokens that the text gave, those included that fill no whole sequence and were left out.
    pub encoded_tokens: u64,
    /// Bytes of text that gave `encoded_tokens`; 0 when it is not known.
    pub text_bytes: u64,
    /// Documents that gave `encoded_tokens`.
    pub documents: u64,
    /// In order.
    pub shards: Vec<Shard>,
}

/// An input file as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputStamp {
    /// Absolute path, or address of an object.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// Modification time, nanoseconds since 1970; 0 where `sha256` says more.
    pub modified_ns: u64,
    /// For a `Cargo.lock`, whose sources cannot change: its digest. Else empty.
    pub sha256: String,
    /// For an object of a bucket: its ETag. Else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub etag: String,
}

/// What the input was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// SHA-256 over the stamps of all inputs.
    pub digest: String,
    /// Number of inputs.
    pub files: u64,
    /// The stamps, unless there are more than [`Inputs::LISTED`].
    pub list: Vec<InputStamp>,
}

impl Inputs {
    /// Most inputs that are listed one by one.
    pub const LISTED: usize = 64;
}

/// What a prepared folder holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of this manifest: 2.
    pub format: u32,
    /// The settings with which it was prepared.
    pub settings: PrepareSettings,
    /// SHA-256 over all that decides the content: inputs, settings, the tokenizer that was given.
    pub request_digest: String,
    /// What was read.
    pub inputs: Inputs,
    /// SHA-256 of `tokenizer.json`; empty when tokens were used as they are and no tokenizer was given.
    pub tokenizer_sha256: String,
    /// SHA-256 of `sources.json`, which lists the sources chosen of a `cargo:` input; empty without one.
    pub sources_sha256: String,
    /// Every token is below.
    pub vocabulary: usize,
    /// The token that parts documents, if it is known.
    pub end_of_text: Option<u32>,
    /// How tokens are stored.
    pub token_type: TokenType,
    /// `T`: a sample is `T + 1` consecutive tokens, consecutive samples share one.
    pub sequence_length: usize,
    /// What is trained on.
    pub train: SplitManifest,
    /// What is only evaluated on.
    pub held_out: SplitManifest,
}

impl Manifest {
    /// The manifest of a folder.
    ///
    /// # Errors
    /// `Invalid` when there is none: prepare the data first. `Corrupt` when it is damaged or of another format.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let describe = || format!("there are no prepared data: cannot read {}", path.display());
        let mut text = Vec::new();
        disk::open_regular(&path)
            .context(describe)?
            .take(LIMIT_BYTES)
            .read_to_end(&mut text)
            .context(describe)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// A manifest from its text; `name` says where that is from.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged or of another format.
    pub(crate) fn parse(text: &[u8], name: &str) -> Result<Self> {
        let damaged = |why: &str| Error::corrupt(format!("{name} {why}; prepare the data again"));
        let manifest: Self =
            serde_json::from_slice(text).map_err(|error| damaged("is damaged").with_source(error))?;
        if manifest.format != FORMAT {
            return Err(damaged("was written by another version"));
        }
        manifest.check().map_err(|why| damaged(&why))?;
        Ok(manifest)
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::internal("the manifest cannot be written as JSON").with_source(error))?;
        let path = folder.join(MANIFEST);
        write_atomically(&path, |writer| {
            writer.write_all(&text).context(|| format!("cannot write {}", path.display()))
        })
    }

    /// One part of the corpus.
    pub fn split(&self, split: Split) -> &SplitManifest {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }

    /// All shards.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.train.shards.iter().chain(&self.held_out.shards)
    }

    fn check(&self) -> Result<(), String> {
        if self.sequence_length == 0 || self.train.shards.is_empty() {
            return Err("holds no sequence".to_owned());
        }
        if self.end_of_text.is_some_and(|token| token as usize >= self.vocabulary) {
            return Err("has an end of text beyond its vocabulary".to_owned());
        }
        for shard in self.shards() {
            let bytes = shard.tokens.checked_mul(self.token_type.bytes());
            let end = bytes.and_then(|bytes| bytes.checked_add(shard.offset_bytes));
            if shard.tokens <= self.sequence_length as u64 || end.is_none_or(|end| end > shard.file_bytes) {
                return Err(format!("contradicts itself about {}", shard.file));
            }
            if !is_plain_name(&shard.document_starts)
                || !(is_plain_name(&shard.file) || is_absolute(&shard.file))
            {
                return Err(format!("names the odd file {}", shard.file));
            }
        }
        Ok(())
    }
}

impl Shard {
    /// The file's path.
    pub fn path(&self, folder: &Path) -> PathBuf {
        // Joining an absolute path gives that path.
        folder.join(&self.file)
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.contains('/') && name != ".." && name != "."
}

fn is_absolute(name: &str) -> bool {
    Path::new(name).is_absolute()
}
