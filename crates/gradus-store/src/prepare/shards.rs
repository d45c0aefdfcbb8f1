//! Tokens into shards.
//!
//! A split's tokens are one stream, each document followed by the end of text. Sample `i` is the window of `T + 1`
//! tokens from `i * T`: each token but the first is a target once. A shard holds whole windows, so the token that ends
//! one shard begins the next; fewer than `T` tokens at the end of the stream fill no window and are left out.

use crate::dataset::modified_ns;
use crate::manifest::{Shard, Split, SplitManifest, TokenType};
use gradus_error::{IoContext, Result};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1 << 18;

/// Writes the shards of one split.
pub(crate) struct SplitWriter {
    folder: PathBuf,
    split: Split,
    sequence_length: usize,
    token_type: TokenType,
    sequences_per_shard: u64,
    /// Up to `T + 1` tokens of the window that is being filled; its first was written as the last one before it.
    window: Vec<u32>,
    sequences: u64,
    /// Where documents begin in the stream, from the window on.
    starts: VecDeque<u64>,
    shard: Option<OpenShard>,
    manifest: SplitManifest,
}

impl SplitWriter {
    pub(crate) fn new(
        folder: &Path,
        split: Split,
        sequence_length: usize,
        token_type: TokenType,
        shard_tokens: u64,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            split,
            sequence_length,
            token_type,
            sequences_per_shard: (shard_tokens.saturating_sub(1) / sequence_length as u64).max(1),
            window: Vec::new(),
            sequences: 0,
            starts: VecDeque::new(),
            shard: None,
            manifest: SplitManifest::default(),
        }
    }

    /// The next tokens begin a document.
    pub(crate) fn begin_document(&mut self) {
        self.starts.push_back(self.manifest.encoded_tokens);
        self.manifest.documents += 1;
    }

    /// Appends tokens, which stand for `text_bytes` of text.
    ///
    /// # Errors
    /// The system's failure to write (`Exhausted` when the disk is full).
    pub(crate) fn push(&mut self, mut tokens: &[u32], text_bytes: u64) -> Result<()> {
        self.manifest.encoded_tokens += tokens.len() as u64;
        self.manifest.text_bytes += text_bytes;
        while !tokens.is_empty() {
            let room = self.sequence_length + 1 - self.window.len();
            let (now, later) = tokens.split_at(room.min(tokens.len()));
            self.window.extend_from_slice(now);
            tokens = later;
            if self.window.len() > self.sequence_length {
                self.write_window()?;
            }
        }
        Ok(())
    }

    /// Finishes the last shard.
    ///
    /// # Errors
    /// The system's failure to write.
    pub(crate) fn finish(mut self) -> Result<SplitManifest> {
        self.close_shard()?;
        if self.sequences > 0 {
            self.manifest.tokens = self.sequences * self.sequence_length as u64 + 1;
        }
        Ok(self.manifest)
    }

    fn write_window(&mut self) -> Result<()> {
        let begin = self.sequences * self.sequence_length as u64;
        let mut shard = match self.shard.take() {
            Some(shard) => shard,
            None => {
                let name = format!("{}-{:05}", self.split.name(), self.manifest.shards.len());
                let mut shard = OpenShard::create(&self.folder, &name, begin)?;
                shard.write_tokens(&self.window[..1], self.token_type)?;
                shard
            }
        };
        shard.write_tokens(&self.window[1..], self.token_type)?;
        let end = begin + self.sequence_length as u64;
        while let Some(start) = self.starts.pop_front_if(|start| *start < end) {
            shard.write_start(start)?;
        }
        self.sequences += 1;
        self.window.drain(..self.sequence_length);
        let full = shard.tokens > self.sequences_per_shard * self.sequence_length as u64;
        self.shard = Some(shard);
        if full { self.close_shard() } else { Ok(()) }
    }

    fn close_shard(&mut self) -> Result<()> {
        if let Some(shard) = self.shard.take() {
            self.manifest.shards.push(shard.finish(self.token_type)?);
        }
        Ok(())
    }
}

struct OpenShard {
    path: PathBuf,
    name: String,
    file: BufWriter<File>,
    hasher: Sha256,
    starts: BufWriter<File>,
    starts_hasher: Sha256,
    base: u64,
    tokens: u64,
    documents: u64,
    bytes: Vec<u8>,
}

impl OpenShard {
    fn create(folder: &Path, name: &str, base: u64) -> Result<Self> {
        let create = |name: String| {
            let path = folder.join(name);
            let file = File::create(&path).context(|| format!("cannot create {}", path.display()))?;
            Ok(BufWriter::with_capacity(BUFFER_BYTES, file))
        };
        Ok(Self {
            path: folder.join(format!("{name}.bin")),
            name: name.to_owned(),
            file: create(format!("{name}.bin"))?,
            hasher: Sha256::new(),
            starts: create(format!("{name}.documents.json"))?,
            starts_hasher: Sha256::new(),
            base,
            tokens: 0,
            documents: 0,
            bytes: Vec::new(),
        })
    }

    fn write_tokens(&mut self, tokens: &[u32], token_type: TokenType) -> Result<()> {
        self.bytes.clear();
        match token_type {
            // The vocabulary of this type has no more tokens than fit.
            TokenType::U16 => {
                self.bytes.extend(tokens.iter().flat_map(|token| (*token as u16).to_le_bytes()))
            }
            TokenType::U32 => self.bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes())),
        }
        self.hasher.update(&self.bytes);
        self.tokens += tokens.len() as u64;
        self.file.write_all(&self.bytes).context(|| format!("cannot write {}", self.path.display()))
    }

    fn write_start(&mut self, start: u64) -> Result<()> {
        let before = if self.documents == 0 { '[' } else { ',' };
        self.documents += 1;
        self.list(format!("{before}{}", start - self.base).as_bytes())
    }

    fn list(&mut self, text: &[u8]) -> Result<()> {
        self.starts_hasher.update(text);
        self.starts.write_all(text).context(|| self.cannot_list())
    }

    fn cannot_list(&self) -> String {
        format!("cannot write where documents begin in {}", self.path.display())
    }

    fn finish(mut self, token_type: TokenType) -> Result<Shard> {
        let end: &[u8] = if self.documents == 0 { b"[]\n" } else { b"]\n" };
        self.list(end)?;
        self.starts.flush().context(|| self.cannot_list())?;
        let describe = || format!("cannot write {}", self.path.display());
        self.file.flush().context(describe)?;
        let metadata = self.file.get_ref().metadata().context(describe)?;
        Ok(Shard {
            file: format!("{}.bin", self.name),
            offset_bytes: 0,
            tokens: self.tokens,
            documents: self.documents,
            sha256: crate::digest::finish(self.hasher),
            file_bytes: self.tokens * token_type.bytes(),
            modified_ns: modified_ns(&metadata),
            document_starts: format!("{}.documents.json", self.name),
            document_starts_sha256: crate::digest::finish(self.starts_hasher),
        })
    }
}
