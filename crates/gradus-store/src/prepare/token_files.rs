//! Token files that others prepared, used as they are.
//!
//! nanoGPT writes little-endian u16 without a header; llm.c puts 256 little-endian i32 in front: a magic number, a
//! version, and the number of tokens (magic 20240520 for u16, 20240801 for u32; `dev/data/data_common.py`). The files
//! stay where they are: the manifest names them by their absolute paths and knows their digests.

use super::inputs::InputFile;
use super::settings::PrepareSettings;
use crate::manifest::{Shard, Split, SplitManifest, TokenType};
use crate::sample_form::decode;
use crate::tokenizer::Tokenizer;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER_BYTES: u64 = 1024;
const MAGIC_U16: u32 = 20_240_520;
const MAGIC_U32: u32 = 20_240_801;

/// Of the header, for both magic numbers.
const VERSION: u32 = 1;

/// Tokens checked at once.
const CHUNK_TOKENS: u64 = 1 << 18;

/// The two parts of a corpus of token files.
pub(crate) struct TokenCorpus {
    pub(crate) token_type: TokenType,
    pub(crate) train: SplitManifest,
    pub(crate) held_out: SplitManifest,
}

/// The part to which a file belongs by its name: `train` or `val` at its start or after a mark such as `_`.
pub(crate) fn split_by_name(path: &Path) -> Option<Split> {
    let stem = path.file_stem()?.to_str()?;
    stem.split(|letter: char| !letter.is_ascii_alphanumeric()).find_map(|word| match word {
        word if word.starts_with("train") => Some(Split::Train),
        word if word.starts_with("val") => Some(Split::HeldOut),
        _ => None,
    })
}

/// Where the tokens of a file lie.
struct TokenFile<'a> {
    file: &'a InputFile,
    token_type: TokenType,
    offset_bytes: u64,
    tokens: u64,
}

/// A run of a file's tokens.
struct Part {
    split: Split,
    offset_bytes: u64,
    tokens: u64,
}

/// Checks every token and digests the files. `progress` is told how many bytes are done.
pub(crate) fn adopt(
    files: &[InputFile],
    settings: &PrepareSettings,
    tokenizer: Option<&Tokenizer>,
    progress: &mut dyn FnMut(u64),
) -> Result<TokenCorpus> {
    let files: Vec<TokenFile> = files.iter().map(TokenFile::open).collect::<Result<_>>()?;
    let token_type = files.first().map_or(TokenType::U16, |file| file.token_type);
    if let Some(other) = files.iter().find(|file| file.token_type != token_type) {
        let name = other.file.path.display();
        return Err(Error::invalid(format!(
            "{name} has tokens of another size than the files before it (data.input)"
        )));
    }
    let named = files.iter().any(|file| split_by_name(&file.file.path) == Some(Split::HeldOut));
    let mut corpus =
        TokenCorpus { token_type, train: SplitManifest::default(), held_out: SplitManifest::default() };
    let mut left =
        if settings.limit_bytes == 0 { u64::MAX } else { settings.limit_bytes / token_type.bytes() };
    let mut done = 0;
    for mut file in files {
        file.tokens = file.tokens.min(left);
        left -= file.tokens;
        for part in file.parts(named, settings) {
            let (shard, bytes) =
                file.check(&part, settings, tokenizer, &mut |bytes| progress(done + bytes))?;
            done += shard.tokens * token_type.bytes();
            let split = if part.split == Split::Train { &mut corpus.train } else { &mut corpus.held_out };
            split.tokens += shard.tokens;
            split.encoded_tokens += shard.tokens;
            split.text_bytes += bytes;
            split.documents += shard.documents;
            split.shards.push(shard);
        }
    }
    Ok(corpus)
}

impl<'a> TokenFile<'a> {
    fn open(file: &'a InputFile) -> Result<Self> {
        let path = file.path.display();
        let describe = || format!("cannot read {} (data.input)", file.path.display());
        let mut header = Vec::new();
        disk::open_regular(&file.path)
            .context(describe)?
            .take(HEADER_BYTES)
            .read_to_end(&mut header)
            .context(describe)?;
        let word = |index: usize| header.as_chunks::<4>().0.get(index).map(|four| u32::from_le_bytes(*four));
        let of = |token_type: TokenType, offset_bytes: u64| {
            let bytes: u64 = file.bytes.saturating_sub(offset_bytes);
            if !bytes.is_multiple_of(token_type.bytes()) {
                let size = token_type.bytes();
                return Err(Error::invalid(format!(
                    "{path}: {bytes} bytes of tokens are no multiple of {size} (data.input)"
                )));
            }
            Ok(Self { file, token_type, offset_bytes, tokens: bytes / token_type.bytes() })
        };
        let token_type = match word(0) {
            Some(MAGIC_U16) => TokenType::U16,
            Some(MAGIC_U32) => TokenType::U32,
            _ => return of(TokenType::U16, 0),
        };
        if header.len() as u64 != HEADER_BYTES {
            return Err(Error::invalid(format!("{path}: it ends within its header (data.input)")));
        }
        if word(1) != Some(VERSION) {
            return Err(Error::invalid(format!(
                "{path}: its header is of version {}, version {VERSION} is known (data.input)",
                word(1).unwrap_or(0)
            )));
        }
        let with_header = of(token_type, HEADER_BYTES)?;
        let said = word(2).map_or(0, u64::from);
        if said != with_header.tokens {
            let tokens = with_header.tokens;
            return Err(Error::invalid(format!(
                "{path}: its header says {said} tokens, it has {tokens} (data.input)"
            )));
        }
        Ok(with_header)
    }

    /// The file as a whole where a file is named `val*` or none is held out; else its start and its end. Of each, the
    /// tokens that fill whole sequences; nothing if there is none.
    fn parts(&self, held_out_is_named: bool, settings: &PrepareSettings) -> Vec<Part> {
        let named = split_by_name(&self.file.path).unwrap_or(Split::Train);
        let share = if held_out_is_named { 0.0 } else { settings.held_out };
        let held_out = (self.tokens as f64 * share) as u64;
        let first = self.tokens - held_out;
        let end = self.offset_bytes + first * self.token_type.bytes();
        let length = settings.sequence_length as u64;
        let part = |split, offset_bytes, tokens: u64| {
            let sequences = tokens.saturating_sub(1) / length;
            (sequences > 0).then(|| Part { split, offset_bytes, tokens: sequences * length + 1 })
        };
        let parts = [part(named, self.offset_bytes, first), part(Split::HeldOut, end, held_out)];
        parts.into_iter().flatten().collect()
    }

    /// Reads a part; gives its shard and the bytes of text it stands for (0 when that is not known).
    fn check(
        &self,
        part: &Part,
        settings: &PrepareSettings,
        tokenizer: Option<&Tokenizer>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Shard, u64)> {
        let path = &self.file.path;
        let describe = || format!("cannot read {} (data.input)", path.display());
        let opened = disk::open_regular(path).context(describe)?;
        let width = self.token_type.bytes();
        let vocabulary = tokenizer.map_or(settings.vocabulary, Tokenizer::vocabulary);
        let (mut hasher, mut documents, mut text_bytes) = (Sha256::new(), 0, 0);
        let mut done = 0;
        let mut tokens = vec![0; CHUNK_TOKENS.min(part.tokens) as usize];
        let mut bytes = vec![0; tokens.len() * width as usize];
        while done < part.tokens {
            let count = (part.tokens - done).min(CHUNK_TOKENS);
            let (tokens, bytes) = (&mut tokens[..count as usize], &mut bytes[..(count * width) as usize]);
            opened.read_exact_at(bytes, part.offset_bytes + done * width).context(describe)?;
            hasher.update(&*bytes);
            decode([&*bytes], self.token_type, tokens);
            self.check_range(tokens, vocabulary, part.offset_bytes + done * width)?;
            if let Some(tokenizer) = tokenizer {
                documents += tokens.iter().filter(|token| **token == tokenizer.end_of_text()).count() as u64;
                let of = |token: &u32| tokenizer.bytes_of_token(*token).map_or(0, <[u8]>::len) as u64;
                text_bytes += tokens.iter().map(of).sum::<u64>();
            }
            done += count;
            progress(done * width);
        }
        let name = path.to_str().ok_or_else(|| Error::invalid(format!("{} is not UTF-8", path.display())))?;
        let shard = Shard {
            file: name.to_owned(),
            offset_bytes: part.offset_bytes,
            tokens: part.tokens,
            documents,
            sha256: crate::digest::finish(hasher),
            file_bytes: self.file.bytes,
            modified_ns: self.file.modified_ns,
            document_starts: String::new(),
            document_starts_sha256: String::new(),
        };
        Ok((shard, text_bytes))
    }

    fn check_range(&self, tokens: &[u32], vocabulary: usize, offset_bytes: u64) -> Result<()> {
        let Some(at) = tokens.iter().position(|token| *token as usize >= vocabulary) else { return Ok(()) };
        Err(Error::invalid(format!(
            "{}: token {} at byte {} is beyond the vocabulary of {vocabulary}; name the tokenizer with data.tokenizer, or \
             the right data.vocabulary (GPT-2's is 50257)",
            self.file.path.display(),
            tokens[at],
            offset_bytes + at as u64 * self.token_type.bytes()
        )))
    }
}
