//! Finding the input: from what was written in `data.input` to a list of files.

use super::cargo_sources::CargoSources;
use super::objects::{Buckets, GLOB, InBucket, OpenBucket};
use super::settings::PrepareSettings;
use crate::bucket::Address;
use crate::dataset::modified_ns;
use crate::digest::digest_file;
use crate::index::INDEX_FILE;
use crate::manifest::{InputStamp, Inputs};
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What begins the name of a `Cargo.lock` whose packages' sources are meant.
const CARGO_SCHEME: &str = "cargo:";

/// A file with a zero byte among its first 8,000 is not text (as git decides).
pub(crate) const TEXT_PROBE_BYTES: u64 = 8000;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document.
    Text,
    /// One document a line.
    JsonLines,
    /// One document a row, in a column of text.
    Parquet,
    /// Tokens as they are.
    Tokens,
}

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Not at all.
    None,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A file to read.
#[derive(Debug, Clone)]
pub(crate) struct InputFile {
    /// Absolute; of an object, its address.
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) modified_ns: u64,
    pub(crate) format: Format,
    pub(crate) packing: Packing,
    /// Where it lies if that is in a bucket.
    pub(crate) object: Option<Arc<InBucket>>,
}

impl InputFile {
    /// The absolute path of an existing file, and what it holds by its name.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let describe = || format!("cannot read {} (data.input)", path.display());
        let metadata = disk::open_regular(path).and_then(|file| file.metadata()).context(describe)?;
        let (format, packing) = kind_of(path)?;
        let path = path.canonicalize().context(describe)?;
        let (bytes, modified_ns) = (metadata.len(), modified_ns(&metadata));
        Ok(Self { path, bytes, modified_ns, format, packing, object: None })
    }
}

/// What a file holds by the end of its name, and how it is packed.
pub(crate) fn kind_of(path: &Path) -> Result<(Format, Packing)> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let packing = match ending {
        "gz" => Packing::Gzip,
        "zst" | "zstd" => Packing::Zstd,
        _ => Packing::None,
    };
    let within = if packing == Packing::None {
        ending
    } else {
        stem.rsplit_once('.').map_or("", |(_, within)| within)
    };
    let format = match within {
        "jsonl" => Format::JsonLines,
        "txt" => Format::Text,
        "bin" if packing == Packing::None => Format::Tokens,
        "parquet" if packing == Packing::None => Format::Parquet,
        _ if packing != Packing::None || PACKED.contains(&ending) => {
            return Err(Error::invalid(format!(
                "{} is packed in a way that cannot be read: .jsonl and .txt can be, packed as .gz or .zst, and .parquet; \
                 unpack it first",
                path.display()
            )));
        }
        _ => Format::Text,
    };
    Ok((format, packing))
}

/// Endings of files that are no text whatever they hold: training on their bytes would be a silent mistake.
const PACKED: [&str; 6] = ["xz", "bz2", "lz4", "zip", "tar", "tgz"];

/// Those of them that pack one file, which may well be a corpus': a folder of one is refused for them, for to pass them over
/// would silently leave out text.
const SQUEEZED: [&str; 3] = ["xz", "bz2", "lz4"];

pub(crate) fn is_squeezed(path: &Path) -> bool {
    path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| SQUEEZED.contains(&ending))
}

/// What one entry of `data.input` came to.
pub(crate) enum Source {
    /// Files.
    Files(Vec<InputFile>),
    /// The sources of a `Cargo.lock`, not looked for yet.
    Cargo(CargoSources),
}

/// The input as found, and the stamp by which it is known again.
pub(crate) struct Found {
    pub(crate) sources: Vec<Source>,
    pub(crate) stamp: Inputs,
}

/// Finds what `data.input` names. Reads names, sizes and times, a little of files found in folders, but no corpus.
pub(crate) fn find(settings: &PrepareSettings, open: OpenBucket) -> Result<Found> {
    let mut sources = Vec::new();
    let mut buckets = Buckets::new(open);
    let mut known = HashSet::new();
    for input in &settings.input {
        if let Some(lock) = input.strip_prefix(CARGO_SCHEME) {
            sources.push(Source::Cargo(CargoSources::new(Path::new(lock))?));
            continue;
        }
        let mut files = files_of(input, &mut buckets)?;
        // A file that two entries name is read once.
        files.retain(|file| known.insert(file.path.clone()));
        sources.push(Source::Files(files));
    }
    let stamp = stamp(&sources)?;
    Ok(Found { sources, stamp })
}

fn files_of(input: &str, buckets: &mut Buckets) -> Result<Vec<InputFile>> {
    if !input.contains("://") {
        return files_at(input);
    }
    match Address::parse(input).map_err(|error| error.within("data.input"))? {
        Address::S3 { bucket, key } => buckets.files(&bucket, &key),
        // It was text, and is still.
        Address::File(path) => files_at(&path.to_string_lossy()),
    }
}

fn files_at(input: &str) -> Result<Vec<InputFile>> {
    let path = Path::new(input);
    if path.is_dir() {
        return files_in_folder(path);
    }
    if path.exists() || !input.contains(GLOB) {
        return Ok(vec![InputFile::new(path)?]);
    }
    let paths = glob::glob(input).map_err(|error| {
        Error::invalid(format!("`{input}` is not a glob (data.input)")).with_source(error)
    })?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| {
            Error::io(format!("cannot read {} (data.input)", error.path().display()), error.into())
        })?;
        if path.is_file() {
            files.push(InputFile::new(&path)?);
        }
    }
    if files.is_empty() {
        return Err(Error::invalid(format!("no file matches `{input}` (data.input)")));
    }
    Ok(files)
}

/// Text below a folder, by sorted path; of a folder that holds `train*.bin`, its token files instead.
fn files_in_folder(folder: &Path) -> Result<Vec<InputFile>> {
    let mut tokens = Vec::new();
    for path in sorted_entries(folder)? {
        if path.is_file() && path.extension().is_some_and(|extension| extension == "bin") {
            tokens.push(InputFile::new(&path)?);
        }
    }
    if tokens.iter().any(|file| super::token_files::split_by_name(&file.path).is_some()) {
        return Ok(tokens);
    }
    let mut files = Vec::new();
    collect_text(folder, &mut files)?;
    if files.is_empty() {
        return Err(Error::invalid(format!("{} holds no text (data.input)", folder.display())));
    }
    Ok(files)
}

fn collect_text(folder: &Path, files: &mut Vec<InputFile>) -> Result<()> {
    for path in sorted_entries(folder)? {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // A link to a folder may lead back up.
        if hidden || (path.is_symlink() && path.is_dir()) {
            continue;
        }
        if path.is_dir() {
            collect_text(&path, files)?;
        } else if path.is_file() && is_text(&path)? {
            files.push(InputFile::new(&path)?);
        }
    }
    Ok(())
}

/// Whether a file found in a folder is part of a corpus: text, plain or packed. The index of a dataset is none.
fn is_text(path: &Path) -> Result<bool> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match kind_of(path) {
        Ok((format, packing)) if format == Format::Parquet || packing != Packing::None => {
            return Ok(name != INDEX_FILE);
        }
        Err(error) if is_squeezed(path) => return Err(error.within("data.input")),
        _ => {}
    }
    let describe = || format!("cannot read {} (data.input)", path.display());
    let mut start = Vec::new();
    disk::open_regular(path)
        .context(describe)?
        .take(TEXT_PROBE_BYTES)
        .read_to_end(&mut start)
        .context(describe)?;
    let tokens = path.extension().is_some_and(|extension| extension == "bin");
    Ok(!start.is_empty() && !start.contains(&0) && !tokens)
}

/// The paths in a folder, sorted.
pub(crate) fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let describe = || format!("cannot list {} (data.input)", folder.display());
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder).context(describe)? {
        entries.push(entry.context(describe)?.path());
    }
    entries.sort();
    Ok(entries)
}

fn stamp(sources: &[Source]) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    let mut hasher = Sha256::new();
    let mut add = |stamp: InputStamp| {
        let line = [&stamp.path, &stamp.sha256].map(|text| (text.len() as u64).to_le_bytes());
        line.iter().for_each(|length| hasher.update(length));
        hasher.update(&stamp.path);
        hasher.update(&stamp.sha256);
        hasher.update(stamp.bytes.to_le_bytes());
        hasher.update(stamp.modified_ns.to_le_bytes());
        // Only objects have one, and their addresses are no paths: the digest of files is what it was.
        if !stamp.etag.is_empty() {
            hasher.update((stamp.etag.len() as u64).to_le_bytes());
            hasher.update(&stamp.etag);
        }
        inputs.files += 1;
        inputs.list.push(stamp);
        // One more than is listed is enough to know that there are too many.
        inputs.list.truncate(Inputs::LISTED + 1);
    };
    for source in sources {
        match source {
            Source::Files(files) => files.iter().map(stamp_of).for_each(&mut add),
            Source::Cargo(cargo) => add(stamp_of_lock(cargo)?),
        }
    }
    if inputs.list.len() > Inputs::LISTED {
        inputs.list.clear();
    }
    inputs.digest = crate::digest::finish(hasher);
    Ok(inputs)
}

fn stamp_of(file: &InputFile) -> InputStamp {
    let path = file.path.display().to_string();
    let etag = file.object.as_ref().map_or_else(String::new, |object| object.info.etag.clone());
    InputStamp { path, bytes: file.bytes, modified_ns: file.modified_ns, sha256: String::new(), etag }
}

/// The packages that a `Cargo.lock` names never change: its content says all.
fn stamp_of_lock(cargo: &CargoSources) -> Result<InputStamp> {
    let file = InputFile::new(&cargo.lock)?;
    let path = format!("{CARGO_SCHEME}{}", file.path.display());
    Ok(InputStamp {
        path,
        bytes: file.bytes,
        modified_ns: 0,
        sha256: digest_file(&file.path)?,
        etag: String::new(),
    })
}
