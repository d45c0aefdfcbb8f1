//! What happened, as lines for a person and as a digest that two runs can be compared by.

use std::fmt::{self, Write};
use std::time::Duration;

/// How much of a run is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recording {
    /// Nothing: the fastest.
    #[default]
    Nothing,
    /// The digest alone.
    Digest,
    /// The digest, and every line.
    Lines,
}

/// The digest of a run, and its lines where they are kept.
#[derive(Debug, Clone)]
pub struct Trace {
    recording: Recording,
    digest: Digest,
    lines: Vec<String>,
}

impl Trace {
    pub(super) fn new(recording: Recording) -> Self {
        Self { recording, digest: Digest(OFFSET_BASIS), lines: Vec::new() }
    }

    /// 64 bits of every line so far; equal traces have equal ones, and others hardly ever.
    pub fn digest(&self) -> u64 {
        self.digest.0
    }

    /// Every line: virtual time in seconds, node and life, what happened.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    pub(super) fn record(&mut self, at: Duration, node: usize, life: u64, what: fmt::Arguments<'_>) {
        if self.recording == Recording::Nothing {
            return;
        }
        // Writing to a digest or a string cannot fail.
        let _ = writeln!(self.digest, "{:.6} {node}.{life} {what}", at.as_secs_f64());
        if self.recording == Recording::Lines {
            self.lines.push(format!("{:11.6}  node {node} life {life}  {what}", at.as_secs_f64()));
        }
    }
}

const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a of 64 bits (Fowler, Noll, Vo; RFC 9923): for equality among honest traces, not against forgery.
#[derive(Debug, Clone)]
struct Digest(u64);

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = text.bytes().fold(self.0, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(PRIME));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_gives_the_published_vectors() {
        for (text, expected) in
            [("", OFFSET_BASIS), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut digest = Digest(OFFSET_BASIS);
            digest.write_str(text).unwrap();
            assert_eq!(digest.0, expected);
        }
    }

    #[test]
    fn lines_are_kept_only_when_asked_for() {
        for (recording, lines) in [(Recording::Nothing, 0), (Recording::Digest, 0), (Recording::Lines, 1)] {
            let mut trace = Trace::new(recording);
            trace.record(Duration::from_millis(1500), 2, 1, format_args!("wakes"));
            assert_eq!(trace.lines().len(), lines);
            assert_eq!(trace.digest() == OFFSET_BASIS, recording == Recording::Nothing);
        }
    }
}
