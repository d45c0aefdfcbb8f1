//! GPT-2's byte-level encoding, without the general machinery's cost per character.
//!
//! What: text is cut into words, each byte of a word becomes a character of a 256-letter alphabet, and the word is
//! encoded by byte pairs (Radford et al. 2019, section 2.2). How: words are found with a regular expression that needs
//! no look-ahead, and a word that was seen before is looked up. Why: `tokenizers` keeps an alignment for every
//! character of its input, which training has no use for. Invariant: the tokens are those that `tokenizers` gives for
//! the pre-tokenizer `ByteLevel { add_prefix_space: false, use_regex: true }`; a test compares the two.

use regex::Regex;
use std::collections::HashMap;
use std::sync::LazyLock;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

/// GPT-2's pattern without its look-ahead `\s+(?!\S)`, whose effect [`each_word`] has.
static WORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
        .expect("the pattern is valid")
});

/// The character that stands for each byte: printable Latin-1 stands for itself, the rest is counted up from U+0100
/// (`bytes_to_unicode` of GPT-2's `encoder.py`).
pub(crate) static ALPHABET: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| {
        let own = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        next += u32::from(!own);
        let code = if own { byte as u32 } else { next - 1 };
        char::from_u32(code).expect("below the surrogates")
    })
});

static BYTE_OF: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| (0..=255u8).map(|byte| (ALPHABET[usize::from(byte)], byte)).collect());

/// The words of `text`, in order; together they are the text.
pub(crate) fn each_word<'t>(text: &'t str, mut visit: impl FnMut(&'t str)) {
    let mut start = 0;
    while let Some(found) = WORD.find_at(text, start) {
        let mut end = found.end();
        // A run of spaces before a word leaves its last one to the word, or stands apart from it.
        let last = found.as_str().chars().next_back().filter(|last| last.is_whitespace());
        if let Some(last) = last.filter(|last| end < text.len() && found.len() > last.len_utf8()) {
            end -= last.len_utf8();
        }
        visit(&text[start..end]);
        start = end;
    }
}

/// Appends the alphabet's characters for the bytes of `word`.
pub(crate) fn spell(word: &str, letters: &mut String) {
    letters.extend(word.bytes().map(|byte| ALPHABET[usize::from(byte)]));
}

/// The bytes that a token stands for; characters outside the alphabet stand for their UTF-8, as in `tokenizers`.
pub(crate) fn bytes_of(token: &str) -> Vec<u8> {
    let known: Option<Vec<u8>> = token.chars().map(|letter| BYTE_OF.get(&letter).copied()).collect();
    known.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Words that a cache holds before it starts anew: some megabytes for each thread.
const CACHED_WORDS: usize = 1 << 16;
/// Longest word that is kept, in bytes.
const CACHED_WORD_BYTES: usize = 64;

/// Encodes words and remembers them.
#[derive(Default)]
pub(crate) struct WordCache {
    words: HashMap<Box<str>, Box<[u32]>>,
    letters: String,
}

impl WordCache {
    /// Appends the tokens of `text`.
    pub(crate) fn encode(&mut self, bpe: &BPE, text: &str, tokens: &mut Vec<u32>) -> tokenizers::Result<()> {
        let mut result = Ok(());
        each_word(text, |word| {
            if result.is_ok() {
                result = self.encode_word(bpe, word, tokens);
            }
        });
        result
    }

    fn encode_word(&mut self, bpe: &BPE, word: &str, tokens: &mut Vec<u32>) -> tokenizers::Result<()> {
        if let Some(known) = self.words.get(word) {
            tokens.extend_from_slice(known);
            return Ok(());
        }
        self.letters.clear();
        spell(word, &mut self.letters);
        let start = tokens.len();
        tokens.extend(bpe.tokenize(&self.letters)?.iter().map(|token| token.id));
        if word.len() <= CACHED_WORD_BYTES {
            if self.words.len() == CACHED_WORDS {
                self.words.clear();
            }
            self.words.insert(word.into(), tokens[start..].into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        each_word(text, |word| {
            let mut letters = String::new();
            spell(word, &mut letters);
            words.push(letters);
        });
        words
    }

    fn expected(text: &str) -> Vec<String> {
        let mut pretokenized = PreTokenizedString::from(text);
        ByteLevel::new(false, true, true).pre_tokenize(&mut pretokenized).unwrap();
        let splits = pretokenized.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(word, _, _)| word.to_owned()).filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn words_are_those_of_gpt2() {
        for text in [
            "",
            " ",
            "a",
            "  a",
            "\n\n  fn x() {\n\t}\n",
            "it's  we'll 12ab\u{a0}\u{3000} é Ⓐ Ⅷ ½ 你好\r\n",
            "a  ",
        ] {
            assert_eq!(words(text), expected(text), "{text:?}");
        }
    }

    #[test]
    fn the_alphabet_has_a_letter_for_each_byte() {
        for byte in 0..=255 {
            assert_eq!(bytes_of(&ALPHABET[usize::from(byte)].to_string()), [byte]);
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_the_words_of_gpt2(text in "(\\PC|[ \n\t'a-z0-9\u{a0}\u{85}\u{301}]){0,40}") {
            prop_assert_eq!(words(&text), expected(&text));
        }
    }
}
