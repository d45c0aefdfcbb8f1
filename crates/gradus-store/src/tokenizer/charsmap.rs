//! SentencePiece's table of characters to rewrite (`precompiled_charsmap`), checked before the library reads it.
//!
//! The table is the length of a trie in bytes (u32, little endian), the trie, and text in which a NUL ends each
//! replacement. The trie is a double array in the manner of darts-clone: whoever stands at `base` and reads byte `c` goes to
//! unit `base ^ c`, and on from there if that unit's label is `c`. The library indexes with whatever it finds; so every place
//! that a text can lead it to is visited here once. What SentencePiece writes consists of whole blocks of 256 units, so
//! that a step from within stays within.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gradus_error::{Error, Result};

/// The bytes of a unit of the trie, and of the length before it.
const UNIT_BYTES: usize = size_of::<u32>();

/// Units that the steps from one place can lead to.
const BLOCK: usize = 256;

/// Refuses a table that a text could lead out of.
///
/// # Errors
/// `Corrupt`, naming what is wrong with it.
pub(super) fn check(base64: &str) -> Result<()> {
    let bytes = STANDARD.decode(base64).map_err(|error| damaged("is not base64").with_source(error))?;
    let (trie, replacements) = parts(&bytes)?;
    let replacements = std::str::from_utf8(replacements)
        .map_err(|error| damaged("holds replacements that are not UTF-8").with_source(error))?;
    let units =
        trie.chunks_exact(UNIT_BYTES).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]));
    Walk { units: units.map(Unit).collect(), replacements }.visit_all()
}

fn damaged(how: &str) -> Error {
    Error::corrupt(format!(
        "the normalizer's precompiled_charsmap {how}: take the file from its source again"
    ))
}

/// The trie, and the text behind it.
fn parts(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let cut = || damaged("is shorter than it says");
    let (length, rest) = bytes.split_first_chunk::<UNIT_BYTES>().ok_or_else(cut)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || !length.is_multiple_of(UNIT_BYTES) {
        return Err(damaged("has a trie that is no whole number of units"));
    }
    rest.split_at_checked(length).ok_or_else(cut)
}

/// A unit of the trie; the bits are those of darts-clone.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    /// The byte that leads here; beyond all bytes where this is a value.
    fn label(self) -> u32 {
        self.0 & (1 << 31 | 0xFF)
    }

    fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    /// From this unit's place to where its steps begin.
    fn offset(self) -> usize {
        ((self.0 >> 10) << ((self.0 & 1 << 9) >> 6)) as usize
    }

    /// Where a replacement begins.
    fn value(self) -> usize {
        (self.0 & !(1 << 31)) as usize
    }
}

struct Walk<'t> {
    units: Vec<Unit>,
    replacements: &'t str,
}

impl Walk<'_> {
    /// Visits every place that a text can lead to, each once: so it ends, whatever circles there are.
    fn visit_all(&self) -> Result<()> {
        let mut seen = vec![false; self.units.len()];
        // The trie has a unit, by its length.
        let mut open = vec![self.units[0].offset()];
        while let Some(base) = open.pop() {
            self.check_block(base)?;
            if !std::mem::replace(&mut seen[base], true) {
                self.follow(base, &mut open)?;
            }
        }
        Ok(())
    }

    fn check_block(&self, base: usize) -> Result<()> {
        match base | (BLOCK - 1) < self.units.len() {
            true => Ok(()),
            false => Err(damaged("has a trie that leads out of itself")),
        }
    }

    /// Takes every step from a place; NUL ends a text.
    fn follow(&self, base: usize, open: &mut Vec<usize>) -> Result<()> {
        for byte in 1..BLOCK {
            let unit = self.units[base ^ byte];
            if unit.label() as usize != byte {
                continue;
            }
            let next = base ^ byte ^ unit.offset();
            self.check_block(next)?;
            if unit.has_leaf() && !self.replacements.is_char_boundary(self.units[next].value()) {
                return Err(damaged("has a replacement that begins within a character or behind all others"));
            }
            open.push(next);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::normalizers::Precompiled;

    /// A unit to which `label` leads and whose steps begin at `offset` from it.
    fn unit(label: u8, has_leaf: bool, offset: u32) -> u32 {
        offset << 10 | u32::from(has_leaf) << 8 | u32::from(label)
    }

    fn value(of: u32) -> u32 {
        1 << 31 | of
    }

    /// A trie of two blocks in which "A" leads to a replacement, and "AB" to another.
    fn trie() -> Vec<u32> {
        let mut units = vec![0; 2 * BLOCK];
        units[0] = unit(0, false, 256);
        let a = 256 ^ usize::from(b'A');
        units[a] = unit(b'A', true, a as u32 ^ 2);
        units[2] = value(0);
        let b = 2 ^ usize::from(b'B');
        units[b] = unit(b'B', true, b as u32 ^ 4);
        units[4] = value(3);
        units
    }

    fn table(units: &[u32], replacements: &str) -> Vec<u8> {
        let length = (units.len() * UNIT_BYTES) as u32;
        let words = std::iter::once(length).chain(units.iter().copied());
        words.flat_map(u32::to_le_bytes).chain(replacements.bytes()).collect()
    }

    fn checked(bytes: &[u8]) -> Result<()> {
        check(&STANDARD.encode(bytes))
    }

    fn is_refused(bytes: &[u8]) -> bool {
        checked(bytes).is_err_and(|error| *error.kind() == Kind::Corrupt)
    }

    /// What the library makes of a table.
    fn read(bytes: &[u8]) -> Precompiled {
        let table = json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(bytes)});
        serde_json::from_str(&table.to_string()).unwrap()
    }

    const REPLACEMENTS: &str = "é\0b\0";

    #[test]
    fn a_whole_table_is_taken_and_is_what_the_library_reads() {
        let table = table(&trie(), REPLACEMENTS);
        checked(&table).unwrap();
        let read = read(&table);
        assert_eq!(read.transform("A"), Some("é"));
        assert_eq!(read.transform("AB"), Some("é"), "the library takes the shortest");
        assert_eq!(read.transform("B"), None);
    }

    #[test]
    fn a_table_whose_length_is_wrong_is_refused() {
        for wrong in ["!", "", "AAA=", "AAAAAA==", "/////w=="] {
            assert_eq!(*check(wrong).unwrap_err().kind(), Kind::Corrupt, "{wrong}");
        }
        let whole = table(&trie(), REPLACEMENTS);
        for length in [0, 3, 2 * BLOCK as u32 * 4 + 2, whole.len() as u32, u32::MAX] {
            assert!(is_refused(&[&length.to_le_bytes(), &whole[4..]].concat()), "{length}");
        }
        assert!(is_refused(&table(&trie()[..BLOCK + 1], REPLACEMENTS)), "half a block");
    }

    #[test]
    fn a_trie_that_leads_out_of_itself_is_refused() {
        let mut units = trie();
        units[0] = unit(0, false, 512);
        assert!(is_refused(&table(&units, REPLACEMENTS)), "at its root");
        let mut units = trie();
        units[2 ^ usize::from(b'B')] = unit(b'B', false, 1 << 9);
        assert!(is_refused(&table(&units, REPLACEMENTS)), "in its depth");
        let mut units = trie();
        units[2 ^ usize::from(b'B')] = unit(b'B', false, (1 << 21) - 1) | 1 << 9;
        assert!(is_refused(&table(&units, REPLACEMENTS)), "by the widest step");
    }

    #[test]
    fn a_replacement_that_is_none_is_refused() {
        for (place, well) in [(0, true), (1, false), (2, true), (5, true), (6, false), (u32::MAX >> 1, false)]
        {
            let mut units = trie();
            units[4] = value(place);
            assert_eq!(checked(&table(&units, REPLACEMENTS)).is_ok(), well, "{place}");
        }
        let mut text = table(&trie(), REPLACEMENTS);
        text.push(0xFF);
        assert!(is_refused(&text), "not UTF-8");
    }

    #[test]
    fn a_trie_that_goes_in_circles_is_walked_to_an_end() {
        let mut units = trie();
        let b = 2 ^ usize::from(b'B');
        units[b] = unit(b'B', false, b as u32 ^ 256);
        checked(&table(&units, REPLACEMENTS)).unwrap();
    }

    proptest! {
        #[test]
        fn what_is_taken_does_no_harm(changes in prop::collection::vec((0..2 * BLOCK, any::<u32>(), 0..5u32), 0..6)) {
            let mut units = trie();
            let labelled: Vec<usize> = vec![0, 2, 4, 256 ^ usize::from(b'A'), 2 ^ usize::from(b'B')];
            for (place, bits, kind) in changes {
                let place = if kind < 3 { labelled[place % labelled.len()] } else { place };
                units[place] ^= bits & [0xFF << 10, 0x3FF, !0, 0x7FF << 8, !0][kind as usize];
            }
            let bytes = table(&units, REPLACEMENTS);
            if checked(&bytes).is_ok() {
                read(&bytes).normalize_string("AB ABBA \u{e9}A\u{301}B");
            }
        }
    }
}
