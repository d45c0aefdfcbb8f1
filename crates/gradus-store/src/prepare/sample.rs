//! Some text from all over a corpus, for training a tokenizer.

use super::corpus::{Corpus, CorpusFile};
use super::cut::safe_cut;
use super::inputs::Format;
use super::json_lines::JsonLines;
use gradus_error::{IoContext, Result};
use gradus_host::disk;
use gradus_host::random::Stream;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes in a row.
const BLOCK_BYTES: u64 = 64 << 10;

/// Names the stream that places the blocks.
const PURPOSE: u64 = 0x0073_616d_706c_6500;

/// About `wanted_bytes` of text: all of a small corpus; of a larger one, blocks at random places, one in each of as many
/// equal parts of it. Held-out documents are among it. JSON lines that are broken are passed over: they are reported,
/// by their number, when the corpus is read.
pub(crate) fn sample(corpus: &Corpus, wanted_bytes: u64, text_field: &str, seed: u64) -> Result<Vec<String>> {
    let total = corpus.bytes();
    let mut texts = Vec::new();
    if total > wanted_bytes.max(BLOCK_BYTES) {
        let blocks = (wanted_bytes / BLOCK_BYTES).max(1);
        let mut stream = Stream::new(seed, PURPOSE);
        for block in 0..blocks {
            let part = (u128::from(total) * u128::from(block) / u128::from(blocks)) as u64;
            let start = part + stream.next_below(total / blocks - BLOCK_BYTES + 1);
            take(corpus, start..start + BLOCK_BYTES, text_field, &mut texts)?;
        }
    }
    // A line longer than the distance between blocks may leave them all empty.
    if texts.is_empty() {
        take(corpus, 0..total.min(wanted_bytes.max(BLOCK_BYTES)), text_field, &mut texts)?;
    }
    Ok(texts)
}

/// The text in a range of the corpus, its files laid one after another.
fn take(corpus: &Corpus, range: Range<u64>, text_field: &str, texts: &mut Vec<String>) -> Result<()> {
    let mut offset = 0;
    for file in &corpus.files {
        let start = range.start.max(offset);
        let end = range.end.min(offset + file.used_bytes);
        if start < end {
            let within = start - offset..end - offset;
            match file.file.format {
                Format::Text => take_text(file, within, texts)?,
                _ => take_lines(file, within, text_field, texts)?,
            }
        }
        offset += file.used_bytes;
        if offset >= range.end {
            break;
        }
    }
    Ok(())
}

/// Blocks of text, so that the words in them are counted by several threads.
fn take_text(file: &CorpusFile, mut range: Range<u64>, texts: &mut Vec<String>) -> Result<()> {
    let path = &file.file.path;
    let describe = || format!("cannot read {} (data.input)", path.display());
    let opened = disk::open_regular(path).context(describe)?;
    let mut buffer = vec![0; BLOCK_BYTES as usize];
    while range.start < range.end {
        let block = &mut buffer[..(range.end - range.start).min(BLOCK_BYTES) as usize];
        opened.read_exact_at(block, range.start).context(describe)?;
        let whole = range.start + block.len() as u64 == file.used_bytes;
        let used = if whole { block.len() } else { safe_cut(block) };
        texts.push(valid_text(&block[..used]));
        range.start += used as u64;
    }
    Ok(())
}

fn take_lines(file: &CorpusFile, range: Range<u64>, text_field: &str, texts: &mut Vec<String>) -> Result<()> {
    let mut left = (range.end - range.start) as usize;
    let Ok(mut lines) = JsonLines::open_at(file, range.start) else { return Ok(()) };
    let position = |lines: &JsonLines| file.used_bytes - lines.left_bytes();
    while left > 0 && position(&lines) < range.end && matches!(lines.next_line(), Ok(Some(_))) {
        if let Ok(text) = lines.text(text_field) {
            let used = text.floor_char_boundary(left);
            texts.push(text[..used].to_owned());
            left -= used.min(left).max(1);
        }
    }
    Ok(())
}

/// What of `bytes` is UTF-8.
fn valid_text(bytes: &[u8]) -> String {
    bytes.utf8_chunks().map(|chunk| chunk.valid()).collect()
}
