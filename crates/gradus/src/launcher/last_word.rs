//! Why a rank fails: handed to the launcher through a pipe, so that a person reads each reason once, however many ranks
//! fail with it.
//!
//! A rank that failed for a reason of its own says `own`, one that was told of another's failure `told`, on the first
//! line; the reason follows.

use super::descriptor_variable;
use gradus_error::{IoContext, Result};
use rustix::io::ioctl_fionbio;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};

/// Names the descriptor on which a rank inherits the writing end.
pub const LAST_WORD_FD: &str = "GRADUS_LAST_WORD_FD";

/// Bytes that any pipe holds, also one of a user who has so many that the system gives no more than a page (pipe(7)): a rank
/// never waits for the launcher to listen.
const LONGEST_BYTES: usize = 4096;

/// What a rank said last.
#[derive(Debug, PartialEq, Eq)]
pub struct LastWord {
    told: bool,
    text: String,
}

/// The launcher's end.
#[derive(Debug)]
pub struct Ear(PipeReader);

impl Ear {
    /// A pipe: its reading end, and the writing end, which the rank inherits.
    ///
    /// # Errors
    /// The system's failure to make one.
    pub fn open() -> Result<(Self, PipeWriter)> {
        let describe = || "cannot make a pipe for a rank's last word".to_owned();
        let (reader, writer) = pipe().context(describe)?;
        ioctl_fionbio(&reader, true).context(describe)?;
        Ok((Self(reader), writer))
    }

    /// What the rank, which has ended, left here.
    pub fn hear(&mut self) -> Option<LastWord> {
        let mut bytes = vec![0; LONGEST_BYTES];
        // Somebody the rank started may hold the pipe open: what is there now is all that is wanted.
        let count = self.0.read(&mut bytes).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..count]);
        let (manner, text) = text.split_once('\n')?;
        Some(LastWord { told: manner == "told", text: text.to_owned() })
    }
}

/// Leaves a last word with the launcher; whether there was one to take it.
pub fn leave(text: &str, told: bool) -> bool {
    let Some(descriptor) = descriptor_variable(LAST_WORD_FD) else { return false };
    let pipe = OpenOptions::new().write(true).open(format!("/proc/self/fd/{descriptor}"));
    pipe.and_then(|mut pipe| write(&mut pipe, text, told)).is_ok()
}

/// Writes a last word, or as much of it as any pipe holds.
fn write(pipe: &mut impl Write, text: &str, told: bool) -> std::io::Result<()> {
    let manner = if told { "told" } else { "own" };
    let word = format!("{manner}\n{text}");
    pipe.write_all(&word.as_bytes()[..word.floor_char_boundary(LONGEST_BYTES)])
}

/// All last words of a launch, each said once.
#[derive(Debug, Default)]
pub struct LastWords {
    said: BTreeSet<String>,
    /// What ranks were told by others, in case that those did not say it.
    told: Vec<(usize, String)>,
}

impl LastWords {
    /// Takes the word of a rank, and says it unless it has been said.
    pub fn take(&mut self, rank: usize, word: Option<LastWord>, out: &mut dyn Write) {
        match word {
            Some(LastWord { told: false, text }) => self.say(rank, text, out),
            Some(LastWord { told: true, text }) => self.told.push((rank, text)),
            None => {}
        }
    }

    /// Says what only those know who were told: the first of them.
    pub fn finish(&mut self, out: &mut dyn Write) {
        if self.said.is_empty() && !self.told.is_empty() {
            let (rank, text) = self.told.swap_remove(0);
            self.say(rank, text, out);
        }
    }

    fn say(&mut self, rank: usize, text: String, out: &mut dyn Write) {
        if self.said.insert(text.clone()) {
            let _ = writeln!(out, "[rank {rank}] gradus: error: {text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(words: &[(usize, bool, &str)]) -> String {
        let (mut all, mut out) = (LastWords::default(), Vec::new());
        for (rank, told, text) in words {
            all.take(*rank, Some(LastWord { told: *told, text: (*text).to_owned() }), &mut out);
        }
        all.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_reason_is_said_once_and_hearsay_only_if_nobody_says_it() {
        assert_eq!(said(&[(1, false, "x"), (0, false, "x")]), "[rank 1] gradus: error: x\n");
        assert_eq!(said(&[(1, true, "0: x"), (0, false, "x")]), "[rank 0] gradus: error: x\n");
        assert_eq!(said(&[(2, true, "0: x"), (1, true, "0: x")]), "[rank 2] gradus: error: 0: x\n");
        assert_eq!(said(&[(0, false, "x"), (1, false, "y")]).lines().count(), 2);
        assert_eq!(said(&[]), "");
    }

    #[test]
    fn what_is_written_is_heard_and_silence_is_nothing() {
        let (mut ear, mut writer) = Ear::open().unwrap();
        assert_eq!(ear.hear(), None);
        writer.write_all("told\né\nthe rest".as_bytes()).unwrap();
        assert_eq!(ear.hear(), Some(LastWord { told: true, text: "é\nthe rest".to_owned() }));
        drop(writer);
        assert_eq!(ear.hear(), None);
    }

    #[test]
    fn a_long_word_is_cut_to_what_a_pipe_holds_and_no_letter_is() {
        let (mut ear, mut writer) = Ear::open().unwrap();
        // A rank would wait here for a launcher that listens only when the rank has ended.
        ioctl_fionbio(&writer, true).unwrap();
        let text = format!("x{}", "é".repeat(100_000));
        write(&mut writer, &text, false).unwrap();
        let heard = ear.hear().unwrap();
        assert!(text.starts_with(&heard.text) && heard.text.len() > LONGEST_BYTES - "own\né".len());
    }
}
