//! Preparing corpora and reading them back, as a caller does.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not know for tests")]

mod bad_input;
mod bucket;
mod cache;
mod cargo;
mod described;
mod feed;
mod index;
mod mixtures;
mod mosaic;
mod neighbours;
mod nodes;
mod packed;
mod peers;
mod prepare_buckets;
mod recovery;
mod round_trip;
mod token_files;

use gradus_store::{Dataset, PrepareSettings, Prepared, Split, prepare};
use std::fmt::Write;
use std::path::Path;

/// Text of `lines` lines.
fn text(lines: usize) -> String {
    let mut text = String::new();
    for line in 0..lines {
        writeln!(text, "fn line_{line}() -> usize {{ {} }} // größer", line * 7).unwrap();
    }
    text
}

/// Settings for a small corpus in `home`, prepared into `home/prepared`.
fn settings(home: &Path, input: &str) -> PrepareSettings {
    PrepareSettings {
        input: vec![home.join(input).display().to_string()],
        prepared: home.join("prepared").display().to_string(),
        vocabulary: 320,
        sequence_length: 8,
        ..PrepareSettings::default()
    }
}

fn prepared(settings: &PrepareSettings) -> Prepared {
    prepare(settings, &mut |_| ()).unwrap()
}

/// All tokens of a split, put together from its samples.
fn tokens(dataset: &Dataset, split: Split) -> Vec<u32> {
    let files = dataset.files(split).unwrap();
    let split = dataset.split(split);
    let mut sample = vec![0; dataset.sequence_length() + 1];
    let mut tokens = Vec::new();
    for index in 0..split.samples() {
        files.read(index, &mut sample).unwrap();
        if let Some(last) = tokens.last() {
            assert_eq!(*last, sample[0], "consecutive samples share one token");
        }
        tokens.extend_from_slice(&sample[usize::from(index > 0)..]);
    }
    assert_eq!(tokens.len() as u64, split.tokens());
    tokens
}
