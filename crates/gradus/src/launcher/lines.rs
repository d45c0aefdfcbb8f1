//! Lines of a rank that has no terminal of its own, each behind the rank's name.

use std::io::Write;

/// A line is cut here and goes on in the next one: a bound on what is kept for a rank that never ends its line.
const LONGEST_BYTES: usize = 8192;

/// Back to the first column, and the line erased: what rank 0 draws there it draws again.
const CLEAR: &str = "\r\x1b[2K";

/// What one stream of a rank has written since its last line feed.
#[derive(Debug)]
pub struct Lines {
    prefix: String,
    pending: Vec<u8>,
}

impl Lines {
    /// No line yet, of rank `number`; with `clear` each one first erases what a terminal shows on its last line.
    pub fn new(number: usize, clear: bool) -> Self {
        Self { prefix: format!("{}[rank {number}] ", if clear { CLEAR } else { "" }), pending: Vec::new() }
    }

    /// Takes `bytes` and writes each line that they end. Bytes that are no UTF-8 become U+FFFD; a failure to write is
    /// ignored, since there is nobody left to tell.
    pub fn feed(&mut self, bytes: &[u8], out: &mut dyn Write) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            while self.pending.len() > LONGEST_BYTES {
                let rest = self.pending.split_off(cut(&self.pending));
                self.flush(out);
                self.pending = rest;
            }
            if piece.ends_with(b"\n") {
                self.flush(out);
            }
        }
    }

    /// Writes what is left of a line that never ended.
    pub fn finish(&mut self, out: &mut dyn Write) {
        if !self.pending.is_empty() {
            self.flush(out);
        }
    }

    fn flush(&mut self, out: &mut dyn Write) {
        let line = String::from_utf8_lossy(&self.pending);
        let line = line.strip_suffix('\n').unwrap_or(&line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        // One write for a whole line, so that ranks' lines do not mix with what others write to the same terminal.
        let _ = out.write_all(format!("{}{line}\n", self.prefix).as_bytes());
        self.pending.clear();
    }
}

/// Where a line that is too long is cut: before the character that would cross the bound.
fn cut(bytes: &[u8]) -> usize {
    let continues = |byte: u8| byte & 0xC0 == 0x80;
    // A character of UTF-8 has at most three bytes after its first.
    (LONGEST_BYTES - 3..=LONGEST_BYTES).rev().find(|at| !continues(bytes[*at])).unwrap_or(LONGEST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(pieces: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::new(3, false), Vec::new());
        pieces.iter().for_each(|piece| lines.feed(piece, &mut out));
        lines.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_joined_named_and_the_last_one_is_not_lost() {
        assert_eq!(
            written(&[b"on", b"e\ntwo\r\n\nthr", b"ee"]),
            "[rank 3] one\n[rank 3] two\n[rank 3] \n[rank 3] three\n"
        );
        assert_eq!(written(&[]), "");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such() {
        assert_eq!(written(&[b"a\xffb\n"]), "[rank 3] a\u{fffd}b\n");
    }

    #[test]
    fn a_terminal_s_last_line_is_cleared_first() {
        let (mut lines, mut out) = (Lines::new(1, true), Vec::new());
        lines.feed(b"x\n", &mut out);
        assert_eq!(out, b"\r\x1b[2K[rank 1] x\n");
    }

    proptest! {
        #[test]
        fn an_endless_line_is_cut_between_characters(step in 1usize..9000, text in "(a|é|語|😀){2000,6000}") {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(step).collect();
            let written = written(&pieces);
            let joined: String = written.lines().map(|line| line.strip_prefix("[rank 3] ").unwrap()).collect();
            prop_assert_eq!(joined, text);
            prop_assert!(written.lines().all(|line| line.len() <= LONGEST_BYTES + "[rank 3] ".len()));
        }
    }
}
