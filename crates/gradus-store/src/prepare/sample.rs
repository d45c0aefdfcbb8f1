//! Some text from all over a corpus, for training a tokenizer.

use super::corpus::{Corpus, CorpusFile};
use super::cut::safe_cut;
use super::inputs::{Format, Packing};
use super::json_lines::JsonLines;
use super::rows::Rows;
use super::unpack::{open, skip};
use gradus_error::{IoContext, Kind, Result};
use gradus_host::random::Stream;
use std::io::Read;
use std::ops::Range;

/// Bytes in a row.
const BLOCK_BYTES: u64 = 64 << 10;

/// Names the stream that places the blocks.
const PURPOSE: u64 = 0x0073_616d_706c_6500;

/// About `wanted_bytes` of text: all of a small corpus; of a larger one, blocks at random places, one in each of as many
/// equal parts of it. Held-out documents are among it. JSON lines that are broken are passed over: they are reported,
/// by their number, when the corpus is read.
pub(crate) fn sample(corpus: &Corpus, wanted_bytes: u64, text_field: &str, seed: u64) -> Result<Vec<String>> {
    let total = corpus.bytes();
    let mut ranges = Vec::new();
    if total > wanted_bytes.max(BLOCK_BYTES) {
        let blocks = (wanted_bytes / BLOCK_BYTES).max(1);
        let mut stream = Stream::new(seed, PURPOSE);
        for block in 0..blocks {
            let part = (u128::from(total) * u128::from(block) / u128::from(blocks)) as u64;
            let start = part + stream.next_below(total / blocks - BLOCK_BYTES + 1);
            ranges.push(start..start + BLOCK_BYTES);
        }
    }
    let mut texts = take(corpus, &ranges, text_field)?;
    // A line longer than the distance between blocks may leave them all empty.
    if texts.is_empty() {
        let whole = 0..total.min(wanted_bytes.max(BLOCK_BYTES));
        texts = take(corpus, std::slice::from_ref(&whole), text_field)?;
    }
    Ok(texts)
}

/// The text in ranges of the corpus, its files laid one after another. The ranges are in order and apart, so that each
/// file is gone through once.
fn take(corpus: &Corpus, ranges: &[Range<u64>], text_field: &str) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let mut offset = 0;
    for file in &corpus.files {
        let end = offset + file.used_bytes;
        let meeting = ranges.iter().filter(|range| range.start < end && offset < range.end);
        let within: Vec<Range<u64>> =
            meeting.map(|range| range.start.max(offset) - offset..range.end.min(end) - offset).collect();
        offset = end;
        match file.file.format {
            _ if within.is_empty() => {}
            Format::Text => take_text(file, &within, &mut texts)?,
            Format::Parquet => take_rows(file, &within, text_field, &mut texts)?,
            _ => take_lines(file, &within, text_field, &mut texts)?,
        }
    }
    Ok(texts)
}

/// Blocks of text, so that the words in them are counted by several threads.
fn take_text(file: &CorpusFile, ranges: &[Range<u64>], texts: &mut Vec<String>) -> Result<()> {
    let describe = || format!("cannot read {} (data.input)", file.file.path.display());
    let mut opened = open(&file.file, ranges[0].start)?;
    let mut position = ranges[0].start;
    for range in ranges {
        if file.file.packing == Packing::None {
            opened = open(&file.file, range.start)?;
        } else {
            skip(&mut opened, range.start - position).context(describe)?;
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        opened.read_exact(&mut bytes).context(describe)?;
        position = range.end;
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            let block = &left[..left.len().min(BLOCK_BYTES as usize)];
            let whole = range.end == file.used_bytes && block.len() == left.len();
            let used = if whole { block.len() } else { safe_cut(block) };
            texts.push(valid_text(&block[..used]));
            left = &left[used..];
        }
    }
    Ok(())
}

fn take_lines(
    file: &CorpusFile,
    ranges: &[Range<u64>],
    text_field: &str,
    texts: &mut Vec<String>,
) -> Result<()> {
    let mut open = unless_invalid(JsonLines::open_at(file, ranges[0].start))?;
    for range in ranges {
        if file.file.packing == Packing::None {
            open = unless_invalid(JsonLines::open_at(file, range.start))?;
        }
        let mut left = (range.end - range.start) as usize;
        let Some(lines) = &mut open else { return Ok(()) };
        if unless_invalid(lines.skip_to(range.start, file.used_bytes))?.is_none() {
            return Ok(());
        }
        let position = |lines: &JsonLines| file.used_bytes - lines.left_bytes();
        while left > 0 && position(lines) < range.end && is_there(lines.next_line())? {
            if let Ok(text) = lines.text(text_field) {
                take_part(&text, &mut left, texts);
            }
        }
    }
    Ok(())
}

fn is_there(line: Result<Option<&[u8]>>) -> Result<bool> {
    Ok(unless_invalid(line)?.flatten().is_some())
}

/// Passes over what is wrong with a line; what is wrong with reading it is an error, or the tokenizer would be another.
fn unless_invalid<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if *error.kind() == Kind::Invalid => Ok(None),
        other => other.map(Some),
    }
}

fn take_rows(
    file: &CorpusFile,
    ranges: &[Range<u64>],
    text_field: &str,
    texts: &mut Vec<String>,
) -> Result<()> {
    let mut rows = Rows::open(&file.file, text_field, file.used_bytes)?;
    for range in ranges {
        let mut left = (range.end - range.start) as usize;
        while left > 0 && rows.position() < range.end {
            let wanted = rows.position() >= range.start;
            let Some(row) = rows.next_row()? else { break };
            if wanted {
                take_part(&valid_text(row), &mut left, texts);
            }
        }
    }
    Ok(())
}

/// Takes of a text what is left to be taken.
fn take_part(text: &str, left: &mut usize, texts: &mut Vec<String>) {
    let used = text.floor_char_boundary(*left);
    texts.push(text[..used].to_owned());
    *left -= used.min(*left).max(1);
}

/// What of `bytes` is UTF-8.
fn valid_text(bytes: &[u8]) -> String {
    bytes.utf8_chunks().map(|chunk| chunk.valid()).collect()
}
