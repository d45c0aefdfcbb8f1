//! The files of a tokenizer: which there are, and which token ends a text.

use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Hugging Face's file that holds all of a fast tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Hugging Face's file beside it.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// All that are read.
pub(crate) const TOKENIZER_FILES: [&str; 4] =
    [TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, GENERATION_CONFIG];

/// Largest file that is read; the largest published tokenizers have some 30 MB.
const LIMIT_BYTES: u64 = 256 << 20;

/// Tokens that end a text in well-known models, the most telling first.
const WELL_KNOWN: [&str; 4] = ["<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>"];

/// `tokenizer.json` itself, whether its path or its folder is given.
pub(crate) fn locate(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(TOKENIZER) } else { path.to_owned() }
}

/// Reads a file of bounded size.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let describe = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    disk::open_regular(path)
        .context(describe)?
        .take(LIMIT_BYTES + 1)
        .read_to_end(&mut bytes)
        .context(describe)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(Error::invalid(format!("{} has more than {LIMIT_BYTES} bytes", path.display())));
    }
    Ok(bytes)
}

/// A JSON object beside the tokenizer, or nothing when there is no such file.
fn read_object(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let value = serde_json::from_slice(&read(&path)?)
        .map_err(|error| Error::invalid(format!("{} is not JSON", path.display())).with_source(error))?;
    Ok(Some(value))
}

/// What lies beside a `tokenizer.json`.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) config: Option<Value>,
    pub(crate) special: Option<Value>,
    generation: Option<Value>,
}

impl Beside {
    /// Reads what is there.
    pub(crate) fn read(tokenizer: &Path) -> Result<Self> {
        let folder = tokenizer.parent().unwrap_or(Path::new("."));
        Ok(Self {
            config: read_object(folder, TOKENIZER_CONFIG)?,
            special: read_object(folder, SPECIAL_TOKENS_MAP)?,
            generation: read_object(folder, GENERATION_CONFIG)?,
        })
    }

    /// What was read of them before.
    pub(crate) fn of(files: &[(String, Vec<u8>)], culprit: &str) -> Result<Self> {
        let object = |name: &str| -> Result<Option<Value>> {
            let Some((_, text)) = files.iter().find(|(found, _)| found == name) else { return Ok(None) };
            let value = serde_json::from_slice(text);
            value
                .map(Some)
                .map_err(|error| Error::invalid(format!("{culprit}/{name} is not JSON")).with_source(error))
        };
        Ok(Self {
            config: object(TOKENIZER_CONFIG)?,
            special: object(SPECIAL_TOKENS_MAP)?,
            generation: object(GENERATION_CONFIG)?,
        })
    }

    /// Only a configuration.
    pub(crate) fn config(config: Option<Value>, special: Option<Value>) -> Self {
        Self { config, special, generation: None }
    }

    /// The token that ends a text: what `wanted` names (a token or its number), else what the files say, else a
    /// well-known name.
    pub(crate) fn end_of_text(
        &self,
        wanted: &str,
        inner: &tokenizers::Tokenizer,
        culprit: &str,
    ) -> Result<u32> {
        if !wanted.is_empty() {
            return named(wanted, inner).ok_or_else(|| {
                Error::invalid(format!("{culprit} knows no token `{wanted}` (data.end_of_text)"))
            });
        }
        let of = |value: &Option<Value>| {
            value.as_ref().and_then(eos_token).and_then(|name| inner.token_to_id(&name))
        };
        of(&self.config)
            .or_else(|| of(&self.special))
            .or_else(|| self.generation.as_ref().and_then(eos_id).filter(|id| inner.id_to_token(*id).is_some()))
            .or_else(|| WELL_KNOWN.iter().find_map(|name| inner.token_to_id(name)))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{culprit} does not say which token ends a text, and has none of {}: name it (data.end_of_text)",
                    WELL_KNOWN.join(" ")
                ))
            })
    }
}

fn named(wanted: &str, inner: &tokenizers::Tokenizer) -> Option<u32> {
    // The number comes first: `0` is a token's text in any vocabulary, but no token that ends a text.
    let number = wanted.parse().ok().filter(|id| inner.id_to_token(*id).is_some());
    number.or_else(|| inner.token_to_id(wanted))
}

/// `eos_token`: a string, or an object with its `content`.
fn eos_token(config: &Value) -> Option<String> {
    let token = config.get("eos_token")?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// `eos_token_id`: a number, or a list whose first counts.
fn eos_id(config: &Value) -> Option<u32> {
    let id = config.get("eos_token_id")?;
    id.as_u64().or_else(|| id.get(0)?.as_u64())?.try_into().ok()
}
