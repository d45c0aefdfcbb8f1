//! Training a byte-level BPE, and the two files in which it is kept.

use super::Tokenizer;
use super::byte_level::{ALPHABET, each_word, spell};
use gradus_error::{Error, Result};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Trainer};

/// The token that ends each document of a tokenizer trained here: GPT-2's.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The least vocabulary: a token for each byte, and the end of text.
pub const LEAST_VOCABULARY: usize = 257;

/// Trains a byte-level BPE on `texts`, as GPT-2's (no space added in front, 256 bytes always known), whose vocabulary
/// has at most `vocabulary` tokens, the end of text included; fewer when the texts offer no more pairs.
/// `model_max_length` is told to those who open the folder with other tools. The same texts give the same tokenizer.
///
/// # Errors
/// `Invalid` for a vocabulary below [`LEAST_VOCABULARY`].
pub fn train(texts: &[String], vocabulary: usize, model_max_length: usize) -> Result<Tokenizer> {
    if vocabulary < LEAST_VOCABULARY {
        return Err(Error::invalid(format!(
            "a byte-level vocabulary has at least {LEAST_VOCABULARY} tokens, {vocabulary} is too small (data.vocabulary)"
        )));
    }
    let json = train_json(texts, vocabulary)
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

fn train_json(texts: &[String], vocabulary: usize) -> tokenizers::Result<String> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ALPHABET.iter().copied().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    trainer.feed(texts.iter(), |text| Ok(spelled_words(text)))?;
    let mut model = BPE::default();
    let special = trainer.train(&mut model)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.add_special_tokens(special)?;
    // Offsets are not trimmed after encoding, as in GPT-2's published file.
    tokenizer
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(ByteLevel::new(true, false, true)))
        .with_decoder(Some(ByteLevel::new(true, true, true)));
    tokenizer.to_string(true)
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
        let tokenizer = train(&texts(), 280, 64).unwrap();
        assert_eq!(tokenizer.vocabulary(), 280);
        assert_eq!(tokenizer.end_of_text_name(), END_OF_TEXT);
        let empty = train(&[], 280, 64).unwrap();
        assert_eq!(empty.vocabulary(), LEAST_VOCABULARY);
        assert_eq!(*train(&[], 256, 64).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn the_same_texts_give_the_same_tokenizer() {
        let json = || train(&texts(), 290, 64).unwrap().json().to_vec();
        assert_eq!(json(), json());
    }
}
