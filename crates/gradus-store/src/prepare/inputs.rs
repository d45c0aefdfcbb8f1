//! Finding the input: from what was written in `data.input` to a list of files.

use super::cargo_sources::CargoSources;
use super::settings::PrepareSettings;
use crate::dataset::modified_ns;
use crate::digest::digest_file;
use crate::manifest::{InputStamp, Inputs};
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What begins the name of a `Cargo.lock` whose packages' sources are meant.
const CARGO_SCHEME: &str = "cargo:";

/// A file with a zero byte among its first 8,000 is not text (as git decides).
const TEXT_PROBE_BYTES: u64 = 8000;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document.
    Text,
    /// One document a line.
    JsonLines,
    /// Tokens as they are.
    Tokens,
}

/// A file to read.
#[derive(Debug, Clone)]
pub(crate) struct InputFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) modified_ns: u64,
    pub(crate) format: Format,
}

impl InputFile {
    /// The absolute path of an existing file, and what it holds by its name.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let describe = || format!("cannot read {} (data.input)", path.display());
        let metadata = disk::open_regular(path).and_then(|file| file.metadata()).context(describe)?;
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => Format::JsonLines,
            Some("bin") => Format::Tokens,
            Some(packed) if PACKED.contains(&packed) => {
                return Err(Error::invalid(format!(
                    "{} is packed ({packed}), which cannot be read yet: unpack it first",
                    path.display()
                )));
            }
            _ => Format::Text,
        };
        let path = path.canonicalize().context(describe)?;
        Ok(Self { path, bytes: metadata.len(), modified_ns: modified_ns(&metadata), format })
    }
}

/// Endings of files that are no text whatever they hold: training on their bytes would be a silent mistake.
const PACKED: [&str; 8] = ["gz", "zst", "xz", "bz2", "zip", "tar", "parquet", "tgz"];

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
pub(crate) fn find(settings: &PrepareSettings) -> Result<Found> {
    let mut sources = Vec::new();
    let mut known = HashSet::new();
    for input in &settings.input {
        if let Some(lock) = input.strip_prefix(CARGO_SCHEME) {
            sources.push(Source::Cargo(CargoSources::new(Path::new(lock))?));
            continue;
        }
        let mut files = files_of(input)?;
        // A file that two entries name is read once.
        files.retain(|file| known.insert(file.path.clone()));
        sources.push(Source::Files(files));
    }
    let stamp = stamp(&sources)?;
    Ok(Found { sources, stamp })
}

fn files_of(input: &str) -> Result<Vec<InputFile>> {
    let path = Path::new(input);
    if path.is_dir() {
        return files_in_folder(path);
    }
    if path.exists() || !input.contains(['*', '?', '[']) {
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

fn is_text(path: &Path) -> Result<bool> {
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
    InputStamp { path, bytes: file.bytes, modified_ns: file.modified_ns, sha256: String::new() }
}

/// The packages that a `Cargo.lock` names never change: its content says all.
fn stamp_of_lock(cargo: &CargoSources) -> Result<InputStamp> {
    let file = InputFile::new(&cargo.lock)?;
    let path = format!("{CARGO_SCHEME}{}", file.path.display());
    Ok(InputStamp { path, bytes: file.bytes, modified_ns: 0, sha256: digest_file(&file.path)? })
}
