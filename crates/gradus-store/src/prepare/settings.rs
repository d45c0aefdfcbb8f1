//! The settings of data.

use crate::tokenizer::{LEAST_VOCABULARY, PreTokenizer};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Longest sequence that can be asked for.
const LONGEST_SEQUENCE: usize = 1 << 24;

/// Largest vocabulary that can be trained here: training time and memory grow with it.
const LARGEST_VOCABULARY: usize = 1 << 20;

/// Smallest part that can be held out, other than none: one document of a million.
const LEAST_HELD_OUT: f64 = 1e-6;

/// What to prepare, and how: the section `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareSettings {
    /// Where the corpus is: files, folders (searched through for text), globs, and `cargo:PATH/Cargo.lock` for the
    /// Rust sources of the packages named there. `*.jsonl` is one JSON object a line, `*.parquet`
    /// one text a row, `*.bin` is tokens. Lines and texts (`*.txt`) may be packed as `.gz` or `.zst`. Also
    /// `s3://BUCKET/KEY` for an object, a folder of them or a glob.
    pub input: Vec<String>,
    /// The folder to prepare into, or `s3://BUCKET/KEY` for one in a bucket; empty: chosen by the program.
    pub prepared: String,
    /// The field of a JSON line, or the column of Parquet, that holds the text.
    pub text_field: String,
    /// A `tokenizer.json`, or the folder that holds one; empty: a byte-level BPE is trained on the corpus.
    pub tokenizer: String,
    /// How a tokenizer that is trained here cuts text into words: `gpt2`, or `qwen2` (which also normalises Unicode to
    /// NFC), as tools expect of models of these families; empty: `gpt2`.
    pub pre_tokenizer: String,
    /// The token that ends a text, by its text or number; empty: as the tokenizer's files say.
    pub end_of_text: String,
    /// Tokens of a tokenizer that is trained here, the end of text included. For token files without a tokenizer: what
    /// every token is below.
    pub vocabulary: usize,
    /// Bytes of text, from all over the corpus, on which the tokenizer is trained.
    pub tokenizer_sample_bytes: u64,
    /// Bytes of the input that are used, counted unpacked; 0: all.
    pub limit_bytes: u64,
    /// The part that is held out for evaluation, 0 to 0.5. One document of every `1 / held_out` is held out, chosen by
    /// the seed; where there are fewer, the smallest that is this part of the whole; a single document gives its end.
    /// Token files named `val*` are the held-out part; without any, each file gives its end.
    pub held_out: f64,
    /// `T`: tokens that a model sees at once.
    pub sequence_length: usize,
    /// Tokens in a shard, about.
    pub shard_tokens: u64,
    /// Decides which documents are held out, and which sources of `cargo:` are chosen in which order.
    pub seed: u64,
}

impl Default for PrepareSettings {
    fn default() -> Self {
        Self {
            input: Vec::new(),
            prepared: String::new(),
            text_field: "text".to_owned(),
            tokenizer: String::new(),
            pre_tokenizer: String::new(),
            end_of_text: String::new(),
            vocabulary: 2048,
            tokenizer_sample_bytes: 8_000_000,
            limit_bytes: 0,
            held_out: 0.1,
            sequence_length: 0,
            shard_tokens: 100_000_000,
            seed: 0,
        }
    }
}

impl PrepareSettings {
    /// Checks each setting by itself.
    ///
    /// # Errors
    /// `Invalid`, naming the setting and what it may be.
    pub fn validate(&self) -> Result<()> {
        let check = |fine: bool, what: String| if fine { Ok(()) } else { Err(Error::invalid(what)) };
        check(!self.input.is_empty(), "data.input is empty: name files, folders or globs".to_owned())?;
        check(!self.text_field.is_empty(), "data.text_field is empty".to_owned())?;
        check(
            (LEAST_VOCABULARY..=LARGEST_VOCABULARY).contains(&self.vocabulary),
            format!(
                "data.vocabulary is {}: choose {LEAST_VOCABULARY} to {LARGEST_VOCABULARY}",
                self.vocabulary
            ),
        )?;
        check(
            self.held_out == 0.0 || (LEAST_HELD_OUT..=0.5).contains(&self.held_out),
            format!(
                "data.held_out is {}: choose 0 (none), or a part from {LEAST_HELD_OUT} to 0.5",
                self.held_out
            ),
        )?;
        check(
            (1..=LONGEST_SEQUENCE).contains(&self.sequence_length),
            format!("data.sequence_length is {}: choose 1 to {LONGEST_SEQUENCE}", self.sequence_length),
        )?;
        self.pre_tokenizer()?;
        check(self.shard_tokens > 0, "data.shard_tokens is 0".to_owned())
    }

    /// How a tokenizer that is trained here cuts text.
    pub(crate) fn pre_tokenizer(&self) -> Result<PreTokenizer> {
        match self.pre_tokenizer.as_str() {
            "" | "gpt2" => Ok(PreTokenizer::Gpt2),
            "qwen2" => Ok(PreTokenizer::Qwen2),
            other => Err(Error::invalid(format!(
                "data.pre_tokenizer is \"{other}\": choose \"gpt2\" or \"qwen2\""
            ))),
        }
    }

    /// The settings that decide what is prepared from given inputs and a given tokenizer, as text.
    pub(crate) fn essence(&self) -> Result<String> {
        let mut essence = self.clone();
        // Of these, what they name counts, not how it was named.
        essence.input.clear();
        essence.prepared.clear();
        essence.tokenizer.clear();
        serde_json::to_string(&essence)
            .map_err(|error| Error::internal("settings cannot be written").with_source(error))
    }
}
