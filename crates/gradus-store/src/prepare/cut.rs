//! Where a long text may be cut.

use super::inputs::InputFile;
use super::unpack::open;
use gradus_error::{IoContext, Result};
use std::io::Read;

/// Bytes before a wished-for cut among which a good one is looked for.
const WINDOW_BYTES: u64 = 64 << 10;

/// A place to cut `text`, in `1..=text.len()` and as near the end as its kind allows (0 for an empty text).
///
/// The best place is before a line end that follows an ASCII letter or digit: every published splitting of text into
/// words parts there, so both halves give the tokens that the whole would have given. Then a line end after any other
/// visible character, then a space, then the edge of a character; the latter half of the text is searched for each.
pub(crate) fn safe_cut(text: &[u8]) -> usize {
    let places = || (text.len() / 2 + 1..text.len()).rev();
    let visible = |byte: u8| byte.is_ascii_graphic() || byte >= 0x80;
    places()
        .find(|at| text[*at] == b'\n' && text[at - 1].is_ascii_alphanumeric())
        .or_else(|| places().find(|at| text[*at] == b'\n' && visible(text[at - 1])))
        .or_else(|| places().find(|at| text[*at] == b' ' && visible(text[at - 1])))
        .or_else(|| places().find(|at| text[*at] & 0xC0 != 0x80))
        .unwrap_or(text.len())
}

/// A place to part `text` into two documents, at or before `at`: after a line where there is one.
pub(crate) fn parting(text: &[u8], at: usize) -> usize {
    let at = at.min(text.len());
    let start = at.saturating_sub(WINDOW_BYTES as usize);
    let cut = start + safe_cut(&text[start..at]);
    // The line end belongs to the first of the two.
    if text.get(cut) == Some(&b'\n') { cut + 1 } else { cut }
}

/// The same for a file, of which only a window is kept.
pub(crate) fn parting_of_file(file: &InputFile, at: u64) -> Result<u64> {
    let start = at.saturating_sub(WINDOW_BYTES);
    let mut window = vec![0; (at - start) as usize];
    let describe = || format!("cannot read {}", file.path.display());
    open(file, start)?.read_exact(&mut window).context(describe)?;
    Ok(start + parting(&window, window.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_place_wins() {
        assert_eq!(safe_cut(b"aaaaaaaaa bb\ncc;\ndd ee"), 12);
        assert_eq!(safe_cut(b"aaaaaaaa;\ndd ee"), 9);
        assert_eq!(safe_cut(b"aaaaaaaaaa ee"), 10);
        assert_eq!(safe_cut("äää".as_bytes()), 4);
        assert_eq!(safe_cut(b"\x80\x80\x80"), 3);
        assert_eq!(safe_cut(b""), 0);
    }

    #[test]
    fn parting_keeps_lines_whole() {
        let text = b"one\ntwo\nthree\nfour\n";
        assert_eq!(&text[..parting(text, 15)], b"one\ntwo\nthree\n");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, text).unwrap();
        assert_eq!(parting_of_file(&InputFile::new(&path).unwrap(), 15).unwrap(), 14);
    }
}
