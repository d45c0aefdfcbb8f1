//! Text to tokens and back.
//!
//! A [`Tokenizer`] is a `tokenizer.json` as Hugging Face's `tokenizers` reads it, with three promises added: bytes
//! that are not UTF-8 are kept, as single-byte tokens; the text of a special token that occurs *in* a document is
//! encoded as text, so that no document can end itself; and the token that ends a text is always known. Byte-level
//! tokenizers of GPT-2's kind take a faster way (see `byte_level`), all others the library's.

mod byte_level;
mod charsmap;
mod files;
mod fragile;
mod stream;
mod train;

pub use stream::StreamDecoder;
pub use train::{END_OF_TEXT, LEAST_VOCABULARY, PreTokenizer, train};

use crate::digest::digest_bytes;
use byte_level::{ALPHABET, WordCache, bytes_of};
use files::Beside;
pub(crate) use files::{TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_FILES};
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk::write_atomically;
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::{DecoderWrapper, PreTokenizerWrapper};

/// A tokenizer and the token that ends a text.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    config: Option<Value>,
    special: Option<Value>,
    vocabulary: usize,
    end_of_text: u32,
    /// The token of each single byte, where the vocabulary has one.
    byte_tokens: Vec<Option<u32>>,
    /// For byte-level decoders: the bytes of each token; none for special tokens and gaps.
    token_bytes: Option<Vec<Option<Box<[u8]>>>>,
    fast: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, given by its path or its folder, and what lies beside it (`tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`).
    ///
    /// # Errors
    /// `Invalid` when a file is missing, is no tokenizer, or names no token that ends a text (see
    /// [`Tokenizer::load_with`]).
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(path, "")
    }

    /// The same, with the token that ends a text named by `end_of_text` (its text or its number; empty: found).
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn load_with(path: &Path, end_of_text: &str) -> Result<Self> {
        let path = files::locate(path);
        let json = files::read(&path).map_err(|error| error.within("tokenizer"))?;
        Self::build(json, Beside::read(&path)?, end_of_text, &path.display().to_string())
    }

    /// The tokenizer whose files, named as they are in a folder, were read before from `culprit`.
    pub(crate) fn from_files(files: &[(String, Vec<u8>)], end_of_text: &str, culprit: &str) -> Result<Self> {
        let json = files.iter().find(|(name, _)| name == TOKENIZER).map(|(_, json)| json.clone());
        let json = json.ok_or_else(|| Error::invalid(format!("{culprit} has no {TOKENIZER}")))?;
        Self::build(json, Beside::of(files, culprit)?, end_of_text, culprit)
    }

    pub(crate) fn from_parts(
        json: Vec<u8>,
        config: Option<Value>,
        special: Option<Value>,
        end_of_text: &str,
        culprit: &str,
    ) -> Result<Self> {
        Self::build(json, Beside::config(config, special), end_of_text, culprit)
    }

    fn build(json: Vec<u8>, beside: Beside, end_of_text: &str, culprit: &str) -> Result<Self> {
        let invalid = |error| Error::invalid(format!("{culprit} is not a tokenizer.json")).with_source(error);
        fragile::check(&json).map_err(|error| invalid(error.into()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(invalid)?;
        inner.set_encode_special_tokens(true);
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        let end_of_text = beside.end_of_text(end_of_text, &inner, culprit)?;
        let mut tokenizer = Self {
            vocabulary: inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1),
            byte_tokens: byte_tokens(&inner),
            token_bytes: None,
            fast: takes_fast_way(&inner),
            inner,
            json,
            config: beside.config,
            special: beside.special,
            end_of_text,
        };
        tokenizer.token_bytes = tokenizer.collect_token_bytes();
        Ok(tokenizer)
    }

    /// One more than the greatest token: the least vocabulary of a model that this tokenizer fits.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The token that ends a text and parts documents.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// The name of the token that ends a text.
    pub fn end_of_text_name(&self) -> String {
        self.inner.id_to_token(self.end_of_text).unwrap_or_default()
    }

    /// `tokenizer.json` as it was read.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The SHA-256 of `tokenizer.json`.
    pub fn digest(&self) -> String {
        digest_bytes(&self.json)
    }

    /// The tokens of `text`; a special token's text is encoded as text, and none is added.
    ///
    /// # Errors
    /// `Invalid` when the tokenizer has no token for part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_bytes(text.as_bytes())
    }

    /// The tokens of bytes that need not be UTF-8: a byte that is no part of a character is encoded by the token of
    /// that byte (a letter of the byte-level alphabet, or `<0xFF>` and its like), or as U+FFFD where the vocabulary has none.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        self.encoder().encode(bytes, &mut tokens)?;
        Ok(tokens)
    }

    /// An encoder that remembers words: for much text, one for each thread.
    pub fn encoder(&self) -> Encoder<'_> {
        Encoder { tokenizer: self, words: WordCache::default() }
    }

    /// The text of `tokens`: special tokens and numbers beyond the vocabulary have none; bytes that are no UTF-8 show
    /// as U+FFFD.
    ///
    /// # Errors
    /// `Invalid` when the tokenizer's decoder refuses.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        match &self.token_bytes {
            Some(_) => Ok(String::from_utf8_lossy(&self.decode_bytes(tokens)?).into_owned()),
            None => self.inner.decode(tokens, true).map_err(|error| {
                Error::invalid("the tokenizer cannot decode these tokens").with_source(error)
            }),
        }
    }

    /// The bytes of `tokens`. For a byte-level tokenizer they are those that were encoded; for others the UTF-8 of
    /// [`Tokenizer::decode`].
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_bytes(&self, tokens: &[u32]) -> Result<Vec<u8>> {
        if !self.is_byte_level() {
            return Ok(self.decode(tokens)?.into_bytes());
        }
        let pieces = tokens.iter().filter_map(|token| self.bytes_of_token(*token));
        Ok(pieces.flatten().copied().collect())
    }

    /// A decoder that is given one token after another.
    pub fn stream_decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Writes `tokenizer.json` as it was read, `tokenizer_config.json` (made where there was none) and, where there
    /// was one, `special_tokens_map.json` into an existing folder, which Hugging Face tools then open.
    ///
    /// # Errors
    /// The system's failure to write.
    pub fn copy_into(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            write_atomically(&path, |writer| {
                writer.write_all(bytes).context(|| format!("cannot write {}", path.display()))
            })
        };
        write(TOKENIZER, &self.json)?;
        let config = self.config.clone().unwrap_or_else(|| self.default_config());
        write(TOKENIZER_CONFIG, &pretty(&config)?)?;
        match &self.special {
            Some(special) => write("special_tokens_map.json", &pretty(special)?),
            None => Ok(()),
        }
    }

    fn default_config(&self) -> Value {
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end_of_text_name(),
            "bos_token": self.end_of_text_name(),
            "clean_up_tokenization_spaces": false,
        })
    }

    pub(crate) fn is_byte_level(&self) -> bool {
        self.token_bytes.is_some()
    }

    /// The bytes of a token of a byte-level tokenizer; nothing for special tokens, gaps and other tokenizers.
    pub(crate) fn bytes_of_token(&self, token: u32) -> Option<&[u8]> {
        self.token_bytes.as_ref()?.get(token as usize)?.as_deref()
    }

    fn collect_token_bytes(&self) -> Option<Vec<Option<Box<[u8]>>>> {
        if !matches!(self.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return None;
        }
        let added = self.inner.get_added_tokens_decoder();
        let bytes = |id: u32| match added.get(&id) {
            Some(token) if token.special => None,
            Some(token) => Some(token.content.as_bytes().into()),
            None => self.inner.id_to_token(id).map(|token| bytes_of(&token).into()),
        };
        Some((0..self.vocabulary as u32).map(bytes).collect())
    }

    fn bpe(&self) -> Option<&BPE> {
        match self.inner.get_model() {
            ModelWrapper::BPE(bpe) if self.fast => Some(bpe),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer of {} tokens, ended by {}", self.vocabulary, self.end_of_text)
    }
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| Error::internal("JSON cannot be written").with_source(error))
}

/// The token of each single byte: a letter of the byte-level alphabet, or a fallback such as `<0x0A>`.
fn byte_tokens(inner: &tokenizers::Tokenizer) -> Vec<Option<u32>> {
    let byte_level =
        (0..=255usize).all(|byte| inner.token_to_id(ALPHABET[byte].encode_utf8(&mut [0; 4])).is_some());
    let token = |byte: usize| {
        if byte_level {
            inner.token_to_id(ALPHABET[byte].encode_utf8(&mut [0; 4]))
        } else {
            inner.token_to_id(&format!("<0x{byte:02X}>"))
        }
    };
    (0..=255).map(token).collect()
}

/// Whether the tokens are those of GPT-2's splitting and a plain BPE, which `byte_level` finds faster.
fn takes_fast_way(inner: &tokenizers::Tokenizer) -> bool {
    let splits_as_gpt2 = matches!(
        inner.get_pre_tokenizer(),
        Some(PreTokenizerWrapper::ByteLevel(level)) if !level.add_prefix_space && level.use_regex
    );
    let plain_model = matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_none_or(|dropout| dropout == 0.0));
    let no_words_added = inner.get_added_tokens_decoder().values().all(|token| token.special);
    splits_as_gpt2 && plain_model && no_words_added && inner.get_normalizer().is_none()
}

/// Encodes with a memory for words.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    words: WordCache,
}

impl Encoder<'_> {
    /// Appends the tokens of `bytes`, as [`Tokenizer::encode_bytes`] finds them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&mut self, bytes: &[u8], tokens: &mut Vec<u32>) -> Result<()> {
        for chunk in bytes.utf8_chunks() {
            self.encode_text(chunk.valid(), tokens)?;
            for byte in chunk.invalid() {
                match self.tokenizer.byte_tokens[usize::from(*byte)] {
                    Some(token) => tokens.push(token),
                    None => self.encode_text("\u{fffd}", tokens)?,
                }
            }
        }
        Ok(())
    }

    fn encode_text(&mut self, text: &str, tokens: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let refused = |error| Error::invalid("the tokenizer cannot encode this text").with_source(error);
        if let Some(bpe) = self.tokenizer.bpe() {
            return self.words.encode(bpe, text, tokens).map_err(refused);
        }
        tokens.extend_from_slice(self.tokenizer.inner.encode_fast(text, false).map_err(refused)?.get_ids());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
