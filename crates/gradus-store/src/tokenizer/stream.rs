//! Decoding token by token, as text appears.

use super::Tokenizer;
use gradus_error::Result;

/// Tokens that a decoder other than byte-level may hold back before it gives what it has: more than a character takes.
const HELD_TOKENS: usize = 16;

/// Turns tokens into text as they come, and gives out whole characters only.
///
/// All that it gave, [`StreamDecoder::finish`] included, is what [`Tokenizer::decode`] gives for all tokens.
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes of a character that is not whole yet (byte-level).
    bytes: Vec<u8>,
    /// Tokens not given out yet, after some that were, which the decoder needs to see (others).
    window: Vec<u32>,
    given: usize,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, bytes: Vec::new(), window: Vec::new(), given: 0 }
    }

    /// The text that `token` completes; empty while a character is not whole.
    ///
    /// # Errors
    /// `Invalid` when the tokenizer cannot decode the token.
    pub fn push(&mut self, token: u32) -> Result<String> {
        match self.tokenizer.bytes_of_token(token) {
            Some(bytes) => {
                self.bytes.extend_from_slice(bytes);
                Ok(take_whole_characters(&mut self.bytes))
            }
            None if self.tokenizer.is_byte_level() => Ok(String::new()),
            None => self.push_to_window(token),
        }
    }

    /// What is left when no token follows: a character that never became whole shows as U+FFFD.
    ///
    /// # Errors
    /// `Invalid` when the tokenizer cannot decode what is left.
    pub fn finish(&mut self) -> Result<String> {
        let mut rest = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        if self.given < self.window.len() {
            rest.push_str(&self.window_text()?);
        }
        self.window.clear();
        self.given = 0;
        Ok(rest)
    }

    fn push_to_window(&mut self, token: u32) -> Result<String> {
        self.window.push(token);
        let text = self.window_text()?;
        let waits = text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER);
        if waits && self.window.len() - self.given < HELD_TOKENS {
            return Ok(String::new());
        }
        self.window.drain(..self.given);
        self.given = self.window.len();
        Ok(text)
    }

    /// The text of the tokens not given out yet, as it reads after those before.
    fn window_text(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.window[..self.given])?;
        let all = self.tokenizer.decode(&self.window)?;
        Ok(all.strip_prefix(before.as_str()).unwrap_or_default().to_owned())
    }
}

/// Takes whole characters off the front; bytes that can be no part of a character become U+FFFD.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(whole) => {
                text.push_str(whole);
                bytes.clear();
                return text;
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
                let Some(wrong) = error.error_len() else {
                    bytes.drain(..valid);
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..valid + wrong);
            }
        }
    }
}
