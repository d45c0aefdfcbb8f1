//! The corpus as a list of files, and which of its documents are held out.

use super::cut::parting_of_file;
use super::inputs::{Format, InputFile};
use super::json_lines::JsonLines;
use super::rows::{self, Rows};
use super::unpack;
use crate::manifest::Split;
use gradus_error::{Error, Result};
use gradus_host::random::{Stream, philox};

/// Names the stream that chooses held-out documents.
const PURPOSE: u64 = 0x0068_656c_645f_6f75;

/// A text file and how much of it is used.
#[derive(Debug, Clone)]
pub(crate) struct CorpusFile {
    pub(crate) file: InputFile,
    /// Bytes from its start, unpacked; of Parquet, bytes of the texts of its first rows.
    pub(crate) used_bytes: u64,
    cut: bool,
}

impl CorpusFile {
    /// Whether the file goes on after what is used.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }
}

/// The files of a corpus of text, in order; none is empty.
pub(crate) struct Corpus {
    pub(crate) files: Vec<CorpusFile>,
}

impl Corpus {
    /// The files up to the limit (0: none). A text is cut at a line end; a JSON line or a row is in or out. Packed files are
    /// unpacked once to know their sizes.
    pub(crate) fn new(files: Vec<InputFile>, limit_bytes: u64, text_field: &str) -> Result<Self> {
        let mut left = if limit_bytes == 0 { u64::MAX } else { limit_bytes };
        let mut used = Vec::new();
        for file in files.into_iter().filter(|file| file.bytes > 0) {
            let (used_bytes, whole) = match file.format {
                Format::Parquet => rows::size(&file, text_field, left)?,
                format => match unpack::size(&file, left)? {
                    bytes if bytes <= left => (bytes, true),
                    _ if format == Format::Text && left > 0 => (parting_of_file(&file, left)?, false),
                    _ => (left, false),
                },
            };
            left -= used_bytes;
            if used_bytes > 0 {
                used.push(CorpusFile { file, used_bytes, cut: !whole });
            }
            if !whole {
                break;
            }
        }
        if used.is_empty() {
            return Err(Error::invalid("the corpus is empty: its files have no bytes (data.input)"));
        }
        Ok(Self { files: used })
    }

    /// Bytes of all files, as far as they are used.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.used_bytes).sum()
    }

    /// Sizes of the first documents, `most` at the most; of JSON lines, the size of the line.
    fn first_documents(&self, most: usize, text_field: &str) -> Result<Vec<u64>> {
        let mut sizes = Vec::new();
        for file in &self.files {
            match file.file.format {
                Format::Text => sizes.push(file.used_bytes),
                Format::Parquet => {
                    let mut rows = Rows::open(&file.file, text_field, file.used_bytes)?;
                    while sizes.len() < most
                        && let Some(row) = rows.next_row()?
                    {
                        sizes.push(row.len() as u64);
                    }
                }
                _ => {
                    let mut lines = JsonLines::open(file)?;
                    while sizes.len() < most && lines.next_line()?.is_some() {
                        sizes.push(lines.line_bytes());
                    }
                }
            }
            if sizes.len() >= most {
                break;
            }
        }
        Ok(sizes)
    }
}

/// Which documents are held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldOut {
    /// None.
    None,
    /// The end of the only document.
    Tail,
    /// This one.
    One(u64),
    /// One of every so many, drawn with the key.
    OneOf { every: u64, key: u64 },
}

impl HeldOut {
    /// The rule for a part of a corpus (see `PrepareSettings::held_out`). Reads no more documents than one over the
    /// part.
    pub(crate) fn choose(corpus: &Corpus, part: f64, seed: u64, text_field: &str) -> Result<Self> {
        if part == 0.0 {
            return Ok(Self::None);
        }
        let every = (1.0 / part).round() as u64;
        let sizes = corpus.first_documents(every as usize, text_field)?;
        let wanted = sizes.iter().sum::<u64>() as f64 * part;
        // With fewer documents than `every`, the largest is larger than the wanted part: there is always one.
        let smallest = (0..sizes.len()).filter(|at| sizes[*at] as f64 >= wanted).min_by_key(|at| sizes[*at]);
        Ok(match sizes.len() as u64 {
            0 | 1 => Self::Tail,
            few if few < every => Self::One(smallest.unwrap_or(0) as u64),
            _ => Self::OneOf { every, key: Stream::new(seed, PURPOSE).next_u64() },
        })
    }

    /// Where document `index` belongs. Of a single document that is to give its end, this is where its start belongs.
    pub(crate) fn split_of(self, index: u64) -> Split {
        let held_out = match self {
            Self::None | Self::Tail => false,
            Self::One(chosen) => index == chosen,
            Self::OneOf { every, key } => {
                let draw = philox(key, u128::from(index / every))[0];
                index % every == (u64::from(draw) * every) >> 32
            }
        };
        if held_out { Split::HeldOut } else { Split::Train }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn corpus(folder: &Path, sizes: &[usize], limit_bytes: u64) -> Corpus {
        let mut files = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let path = folder.join(format!("{index}.txt"));
            std::fs::write(&path, "ab cd\n".repeat(size.div_ceil(6)).split_at(*size).0).unwrap();
            files.push(InputFile::new(&path).unwrap());
        }
        Corpus::new(files, limit_bytes, "text").unwrap()
    }

    #[test]
    fn few_documents_give_the_smallest_that_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let choose =
            |sizes: &[usize]| HeldOut::choose(&corpus(folder.path(), sizes, 0), 0.1, 0, "text").unwrap();
        assert_eq!(choose(&[500]), HeldOut::Tail);
        assert_eq!(choose(&[500, 10, 70, 60]), HeldOut::One(2));
        assert_eq!(choose(&[500, 400]), HeldOut::One(1));
    }

    #[test]
    fn many_documents_give_one_of_every_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let rule = HeldOut::choose(&corpus(folder.path(), &[5; 10], 0), 0.1, 3, "text").unwrap();
        let held: Vec<u64> = (0..1000).filter(|index| rule.split_of(*index) == Split::HeldOut).collect();
        assert_eq!(held.len(), 100);
        assert!((0..100).all(|block| held[block as usize] / 10 == block));
        assert!(held.iter().any(|index| index % 10 != held[0] % 10));
    }

    #[test]
    fn a_limit_cuts_the_text_in_which_it_falls_at_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let corpus = corpus(folder.path(), &[60, 60, 60], 80);
        assert_eq!(corpus.files.len(), 2);
        assert_eq!(corpus.files[1].used_bytes, 18);
        assert_eq!(corpus.bytes(), 78);
    }
}
