//! Training a byte-level BPE, and the two files in which it is kept.

use super::Tokenizer;
use super::byte_level::{ALPHABET, each_word, spell};
use gradus_error::{Error, Result};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, SplitDelimiterBehavior, Trainer,
};

/// The token that ends each document of a tokenizer trained here: GPT-2's.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The least vocabulary: a token for each byte, and the end of text.
pub const LEAST_VOCABULARY: usize = 257;

/// How text is cut into words before their bytes are paired. A model's family decides: other tools cut as the family's
/// published tokenizers do, whatever `tokenizer.json` says (transformers does so for Qwen2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PreTokenizer {
    /// GPT-2's pattern; bytes are kept as they are.
    #[default]
    Gpt2,
    /// Qwen2's: single digits, line ends after punctuation, and Unicode normalised to NFC first.
    Qwen2,
}

/// Qwen2's pattern, as its published `tokenizer.json` has it.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Trains a byte-level BPE on `texts` (no space added in front, 256 bytes always known), whose vocabulary
/// has at most `vocabulary` tokens, the end of text included; fewer when the texts offer no more pairs.
/// `model_max_length` is told to those who open the folder with other tools. The same texts give the same tokenizer.
///
/// # Errors
/// `Invalid` for a vocabulary below [`LEAST_VOCABULARY`].
pub fn train(
    texts: &[String],
    pre_tokenizer: PreTokenizer,
    vocabulary: usize,
    model_max_length: usize,
) -> Result<Tokenizer> {
    if vocabulary < LEAST_VOCABULARY {
        return Err(Error::invalid(format!(
            "a byte-level vocabulary has at least {LEAST_VOCABULARY} tokens, {vocabulary} is too small (data.vocabulary)"
        )));
    }
    let json = train_json(texts, pre_tokenizer, vocabulary)
        .map_err(|error| Error::internal("training the tokenizer").with_source(error))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": false,
    });
    Tokenizer::from_parts(json.into_bytes(), Some(config), None, "", "the trained tokenizer")
}

fn train_json(texts: &[String], kind: PreTokenizer, vocabulary: usize) -> tokenizers::Result<String> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ALPHABET.iter().copied().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let words = tokenizer_of(BPE::default(), kind)?;
    trainer.feed(texts.iter(), |text| match kind {
        PreTokenizer::Gpt2 => Ok(spelled_words(text)),
        PreTokenizer::Qwen2 => cut_words(&words, text),
    })?;
    let mut model = BPE::default();
    let special = trainer.train(&mut model)?;
    let mut tokenizer = tokenizer_of(model, kind)?;
    tokenizer.add_special_tokens(special)?;
    tokenizer.to_string(true)
}

/// A tokenizer whose parts but the model are known before training.
fn tokenizer_of(model: BPE, kind: PreTokenizer) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    // Offsets are not trimmed after encoding, as in the published files.
    tokenizer
        .with_post_processor(Some(ByteLevel::new(true, false, true)))
        .with_decoder(Some(ByteLevel::new(true, true, true)));
    match kind {
        PreTokenizer::Gpt2 => tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true))),
        PreTokenizer::Qwen2 => {
            let pattern = SplitPattern::Regex(QWEN2_PATTERN.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            let parts = vec![split.into(), ByteLevel::new(false, false, false).into()];
            tokenizer.with_normalizer(Some(NFC))?.with_pre_tokenizer(Some(Sequence::new(parts)))
        }
    };
    Ok(tokenizer)
}

/// The words of `text`, spelled in the byte-level alphabet, by the library's own machinery.
fn cut_words(tokenizer: &tokenizers::Tokenizer, text: &str) -> tokenizers::Result<Vec<String>> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized)?;
    }
    let mut cut = PreTokenizedString::from(normalized);
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut cut)?;
    }
    let words = cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(words.into_iter().map(|(word, _, _)| word.to_owned()).collect())
}

fn spelled_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    each_word(text, |word| {
        let mut letters = String::with_capacity(2 * word.len());
        spell(word, &mut letters);
        words.push(letters);
    });
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    fn texts() -> Vec<String> {
        (0..200).map(|n| format!("fn number_{n}() -> u32 {{ {n} }}\n")).collect()
    }

    #[test]
    fn the_vocabulary_has_all_bytes_and_the_end_of_text() {
        let tokenizer = train(&texts(), PreTokenizer::Gpt2, 280, 64).unwrap();
        assert_eq!(tokenizer.vocabulary(), 280);
        assert_eq!(tokenizer.end_of_text_name(), END_OF_TEXT);
        let empty = train(&[], PreTokenizer::Gpt2, 280, 64).unwrap();
        assert_eq!(empty.vocabulary(), LEAST_VOCABULARY);
        assert_eq!(*train(&[], PreTokenizer::Gpt2, 256, 64).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn qwen2_cuts_single_digits_and_composes_characters() {
        let texts: Vec<String> =
            (0..300).map(|n| format!("let year_{n} = 12{n};\n\n\u{e9}t\u{e9}\n")).collect();
        let tokenizer = train(&texts, PreTokenizer::Qwen2, 300, 64).unwrap();
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        assert_eq!(encode("2026").len(), 4, "no number is one token");
        assert_eq!(encode("e\u{301}"), encode("\u{e9}"));
        assert!(encode(";\n\n").len() < 3, "line ends belong to what they follow");
        assert!(train(&texts, PreTokenizer::Gpt2, 300, 64).unwrap().encode("122").unwrap().len() < 3);
        let again = Tokenizer::from_parts(tokenizer.json().to_vec(), None, None, "", "again").unwrap();
        assert_eq!(again.encode("year_12\u{e9}").unwrap(), encode("year_12\u{e9}"));
    }

    #[test]
    fn the_same_texts_give_the_same_tokenizer() {
        let json = || train(&texts(), PreTokenizer::Gpt2, 290, 64).unwrap().json().to_vec();
        assert_eq!(json(), json());
    }
}
