//! From files to batches of text.
//!
//! Documents are laid one after another into batches of a fixed size, and a batch that is full is handed on. A document
//! that fills a batch is cut (see `cut`), so that no document, however long, is held in memory. Where a batch ends
//! depends on the corpus alone, never on how fast it is read: so the tokens do, too.

use super::corpus::{Corpus, CorpusFile, HeldOut};
use super::cut::{parting, parting_of_file, safe_cut};
use super::inputs::Format;
use super::json_lines::JsonLines;
use super::rows::Rows;
use super::unpack::open;
use crate::manifest::Split;
use gradus_error::{Error, IoContext, Result};
use std::io::Read;
use std::ops::Range;

/// Bytes of text in a batch.
pub(crate) const BATCH_BYTES: usize = 256 << 10;

/// Part of a document, or all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) split: Split,
    pub(crate) starts_document: bool,
    pub(crate) ends_document: bool,
    pub(crate) range: Range<usize>,
}

/// Text to encode.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) text: Vec<u8>,
    pub(crate) pieces: Vec<Piece>,
    /// Bytes of the input that were read for it.
    pub(crate) input_bytes: u64,
}

/// Reads a corpus and hands its batches to `send`, in order.
pub(crate) struct Reader<S> {
    held_out: HeldOut,
    part: f64,
    text_field: String,
    documents: u64,
    batch: Batch,
    open: Option<Piece>,
    send: S,
}

impl<S: FnMut(Batch) -> Result<()>> Reader<S> {
    pub(crate) fn new(held_out: HeldOut, part: f64, text_field: &str, send: S) -> Self {
        let text_field = text_field.to_owned();
        Self { held_out, part, text_field, documents: 0, batch: Batch::default(), open: None, send }
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// What is wrong with a file, or what `send` returns.
    pub(crate) fn read(mut self, corpus: &Corpus) -> Result<()> {
        for file in &corpus.files {
            match file.file.format {
                Format::Text => self.read_text(file)?,
                Format::JsonLines => self.read_json_lines(file)?,
                Format::Parquet => self.read_rows(file)?,
                Format::Tokens => return Err(Error::internal("tokens are not read as text")),
            }
        }
        (self.send)(self.batch)
    }

    fn read_text(&mut self, file: &CorpusFile) -> Result<()> {
        let path = &file.file.path;
        let describe = || format!("cannot read {} (data.input)", path.display());
        let mut opened = open(&file.file, 0)?;
        let all = file.used_bytes;
        let first = if self.held_out == HeldOut::Tail {
            parting_of_file(&file.file, self.train_part(all))?
        } else {
            all
        };
        let mut buffer = vec![0; BATCH_BYTES.min(all as usize)];
        for (index, bytes) in [first, all - first].into_iter().enumerate().filter(|(_, bytes)| *bytes > 0) {
            self.begin(index == 1);
            let mut left = bytes;
            while left > 0 {
                let wanted = left.min(buffer.len() as u64) as usize;
                let read = opened.read(&mut buffer[..wanted]).context(describe)?;
                if read == 0 {
                    return Err(Error::unavailable(format!(
                        "{} became shorter while it was read",
                        path.display()
                    )));
                }
                self.batch.input_bytes += read as u64;
                self.push(&buffer[..read])?;
                left -= read as u64;
            }
            self.end();
        }
        self.documents += 1;
        Ok(())
    }

    fn read_json_lines(&mut self, file: &CorpusFile) -> Result<()> {
        let mut lines = JsonLines::open(file)?;
        let mut left = lines.left_bytes();
        while lines.next_line()?.is_some() {
            let text = lines.text(&self.text_field)?;
            self.batch.input_bytes += left - lines.left_bytes();
            left = lines.left_bytes();
            self.read_document(text.as_bytes())?;
        }
        self.batch.input_bytes += left;
        Ok(())
    }

    fn read_rows(&mut self, file: &CorpusFile) -> Result<()> {
        let mut rows = Rows::open(&file.file, &self.text_field, file.used_bytes)?;
        while let Some(text) = rows.next_row()? {
            self.batch.input_bytes += text.len() as u64;
            self.read_document(text)?;
        }
        Ok(())
    }

    fn read_document(&mut self, text: &[u8]) -> Result<()> {
        let all = text.len();
        let tail = self.held_out == HeldOut::Tail;
        let first = if tail { parting(text, self.train_part(all as u64) as usize) } else { all };
        for (index, part) in
            [&text[..first], &text[first..]].into_iter().enumerate().filter(|(_, part)| !part.is_empty())
        {
            self.begin(index == 1);
            self.push(part)?;
            self.end();
        }
        self.documents += 1;
        Ok(())
    }

    /// Bytes of a single document that are not held out.
    fn train_part(&self, bytes: u64) -> u64 {
        (bytes as f64 * (1.0 - self.part)) as u64
    }

    fn begin(&mut self, tail: bool) {
        let split = if tail { Split::HeldOut } else { self.held_out.split_of(self.documents) };
        let start = self.batch.text.len();
        self.open = Some(Piece { split, starts_document: true, ends_document: false, range: start..start });
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = BATCH_BYTES - self.batch.text.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.batch.text.extend_from_slice(now);
            bytes = later;
            if self.batch.text.len() == BATCH_BYTES {
                self.hand_on()?;
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some(mut piece) = self.open.take() {
            piece.range.end = self.batch.text.len();
            piece.ends_document = true;
            self.batch.pieces.push(piece);
        }
    }

    /// Hands a full batch on. What the open document has in it is cut if it fills half of it, else it moves on whole.
    fn hand_on(&mut self) -> Result<()> {
        let piece = self.open.as_mut().expect("text is pushed into an open document");
        let start = piece.range.start;
        let filled = BATCH_BYTES - start;
        let cut = if filled > BATCH_BYTES / 2 { safe_cut(&self.batch.text[start..]) } else { 0 };
        let carried = self.batch.text.split_off(start + cut);
        if cut > 0 {
            self.batch.pieces.push(Piece { range: start..start + cut, ..piece.clone() });
            piece.starts_document = false;
        }
        piece.range = 0..0;
        let mut next = Vec::with_capacity(BATCH_BYTES);
        next.extend_from_slice(&carried);
        let full = std::mem::replace(&mut self.batch, Batch { text: next, ..Batch::default() });
        (self.send)(full)
    }
}

#[cfg(test)]
mod tests {
    use super::super::inputs::InputFile;
    use super::*;

    fn batches(texts: &[String], part: f64) -> Vec<Batch> {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let path = folder.path().join(index.to_string());
            std::fs::write(&path, text).unwrap();
            files.push(InputFile::new(&path).unwrap());
        }
        let corpus = Corpus::new(files, 0, "text").unwrap();
        let rule = HeldOut::choose(&corpus, part, 0, "text").unwrap();
        let mut batches = Vec::new();
        let send = |batch| {
            batches.push(batch);
            Ok(())
        };
        Reader::new(rule, part, "text", send).read(&corpus).unwrap();
        batches
    }

    fn joined(batches: &[Batch], split: Split) -> Vec<u8> {
        let pieces = batches.iter().flat_map(|batch| batch.pieces.iter().map(move |piece| (batch, piece)));
        let of_split = pieces.filter(|(_, piece)| piece.split == split);
        of_split.flat_map(|(batch, piece)| batch.text[piece.range.clone()].to_vec()).collect()
    }

    #[test]
    fn a_long_document_is_cut_and_nothing_is_lost() {
        let text: String =
            (0..200_000).map(|n| format!("{n};x{}", if n % 7 == 0 { "\n" } else { " " })).collect();
        let batches = batches(std::slice::from_ref(&text), 0.1);
        assert!(batches.iter().all(|batch| batch.text.len() <= BATCH_BYTES) && batches.len() > 4);
        let train = joined(&batches, Split::Train);
        let held_out = joined(&batches, Split::HeldOut);
        assert_eq!([train.clone(), held_out.clone()].concat(), text.as_bytes());
        assert!(held_out.len().abs_diff(text.len() / 10) < 100 && train.ends_with(b"\n"));
        let pieces = || batches.iter().flat_map(|batch| &batch.pieces);
        assert_eq!(pieces().filter(|piece| piece.starts_document).count(), 2);
        assert_eq!(pieces().filter(|piece| piece.ends_document).count(), 2);
        assert_eq!(batches.iter().map(|batch| batch.input_bytes).sum::<u64>(), text.len() as u64);
    }

    #[test]
    fn short_documents_are_never_cut() {
        let texts: Vec<String> = (0..30).map(|n| format!("{n} ").repeat(10_000 + n * 100)).collect();
        let batches = batches(&texts, 0.0);
        let pieces: Vec<_> = batches.iter().flat_map(|batch| &batch.pieces).collect();
        assert_eq!(pieces.len(), texts.len());
        assert!(pieces.iter().all(|piece| piece.starts_document && piece.ends_document));
        assert_eq!(joined(&batches, Split::Train), texts.concat().into_bytes());
    }
}
