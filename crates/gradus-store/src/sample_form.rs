//! How a sample of tokens is stored, and read back.
//!
//! What: `T + 1` consecutive tokens of 2 or 4 bytes, little-endian; the next sample begins with the last token of this
//! one. Invariant: no token that comes out of here is at or beyond the vocabulary.

use crate::manifest::{Manifest, TokenType};
use gradus_error::{Error, Result};

/// The form of all samples of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SampleForm {
    pub(crate) sequence_length: usize,
    pub(crate) token_type: TokenType,
    pub(crate) vocabulary: usize,
}

impl SampleForm {
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let Manifest { sequence_length, token_type, vocabulary, .. } = *manifest;
        Self { sequence_length, token_type, vocabulary }
    }

    /// Tokens of a sample.
    pub(crate) fn tokens(&self) -> usize {
        self.sequence_length + 1
    }

    /// Bytes of a sample.
    pub(crate) fn bytes(&self) -> usize {
        self.tokens() * self.token_type.bytes() as usize
    }

    /// Bytes from a sample's start to that of the next.
    pub(crate) fn stride_bytes(&self) -> u64 {
        self.sequence_length as u64 * self.token_type.bytes()
    }

    /// Tokens of a sample whose bytes are `parts`, one after another; a token may be cut by the end of a part.
    ///
    /// # Errors
    /// `Invalid` when there are not as many bytes as `out` needs; `Corrupt` for a token beyond the vocabulary.
    pub(crate) fn decode<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        out: &mut [u32],
    ) -> Result<()> {
        let expected = out.len() * self.token_type.bytes() as usize;
        let found = decode(parts, self.token_type, out);
        if found != expected {
            return Err(Error::invalid(format!("{found} bytes instead of {expected}")));
        }
        match out.iter().find(|token| **token as usize >= self.vocabulary) {
            None => Ok(()),
            Some(token) => {
                Err(Error::corrupt(format!("token {token} is beyond the vocabulary of {}", self.vocabulary)))
            }
        }
    }
}

/// Tokens from their stored form, whatever they are: as many as there are bytes for, and places. The number of bytes.
pub(crate) fn decode<'a>(
    parts: impl IntoIterator<Item = &'a [u8]>,
    token_type: TokenType,
    out: &mut [u32],
) -> usize {
    match token_type {
        TokenType::U16 => fill(parts, out, |bytes: [u8; 2]| u32::from(u16::from_le_bytes(bytes))),
        TokenType::U32 => fill(parts, out, u32::from_le_bytes),
    }
}

/// Fills `out` from the parts' bytes, `N` a token; the number of bytes that there were.
fn fill<'a, const N: usize>(
    parts: impl IntoIterator<Item = &'a [u8]>,
    out: &mut [u32],
    token: impl Fn([u8; N]) -> u32,
) -> usize {
    let (mut cut, mut cut_len, mut filled, mut found) = ([0; N], 0, 0, 0);
    let mut put = |value| {
        if let Some(place) = out.get_mut(filled) {
            *place = value;
        }
        filled += 1;
    };
    for part in parts {
        found += part.len();
        // What the part before began is completed first.
        let missing = if cut_len == 0 { 0 } else { (N - cut_len).min(part.len()) };
        let (first, part) = part.split_at(missing);
        cut[cut_len..cut_len + missing].copy_from_slice(first);
        cut_len += missing;
        if cut_len == N {
            put(token(cut));
            cut_len = 0;
        }
        let (whole, rest) = part.as_chunks::<N>();
        whole.iter().for_each(|bytes| put(token(*bytes)));
        if !rest.is_empty() {
            cut[..rest.len()].copy_from_slice(rest);
            cut_len = rest.len();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_are_the_same_however_their_bytes_are_cut(
            tokens in prop::collection::vec(0u32..60_000, 1..50), cuts in prop::collection::vec(1usize..9, 0..60), wide: bool,
        ) {
            let token_type = if wide { TokenType::U32 } else { TokenType::U16 };
            let width = token_type.bytes() as usize;
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()[..width].to_vec()).collect();
            let mut parts = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (part, behind) = rest.split_at(cut.min(rest.len()));
                parts.push(part);
                rest = behind;
            }
            parts.push(rest);
            let form = SampleForm { sequence_length: tokens.len() - 1, token_type, vocabulary: 60_000 };
            let mut out = vec![0; tokens.len()];
            form.decode(parts, &mut out).unwrap();
            prop_assert_eq!(out, tokens);
        }
    }

    #[test]
    fn other_lengths_and_tokens_are_refused() {
        let form = SampleForm { sequence_length: 1, token_type: TokenType::U16, vocabulary: 300 };
        let kind = |bytes: &[u8]| form.decode([bytes], &mut [0; 2]).unwrap_err().kind().clone();
        assert_eq!(kind(&[0, 1, 0]), Kind::Invalid);
        assert_eq!(kind(&[0, 1, 0, 1, 0, 1]), Kind::Invalid);
        assert_eq!(kind(&[0, 1, 44, 1]), Kind::Corrupt);
        form.decode([&[0, 1, 43, 1][..]], &mut [0; 2]).unwrap();
    }
}
