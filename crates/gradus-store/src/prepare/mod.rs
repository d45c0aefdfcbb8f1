//! From a corpus to a folder of token shards, on this machine or in a bucket (see `uploaded`).
//!
//! A folder is written under `<prepared>.partial` and put in place as a whole (see `atomic`), its manifest last; a
//! lock beside it keeps two processes apart. Preparing again finds by the manifest that nothing changed and returns.
//! Memory is bounded whatever the size of the corpus, and the same corpus and settings give the same bytes on any
//! number of threads.

mod cargo_sources;
mod corpus;
mod cut;
mod inputs;
mod json_lines;
mod objects;
mod pipeline;
mod reader;
mod rows;
mod sample;
mod settings;
mod shards;
mod token_files;
mod unpack;
mod uploaded;

pub use objects::OpenBucket;
pub use settings::PrepareSettings;

use crate::atomic::{recover_folder, write_folder_atomically};
use crate::bucket::{Address, Bucket};
use crate::dataset::Dataset;
use crate::digest::digest_bytes;
use crate::index::INDEX_FILE;
use crate::manifest::{FORMAT, Manifest, SOURCES, Split, SplitManifest, TokenType};
use crate::tokenizer::{Tokenizer, train};
use cargo_sources::ChosenSource;
use corpus::Corpus;
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk::write_atomically;
use gradus_host::processors;
use inputs::{Format, Found, InputFile, Source};
use pipeline::Writers;
use shards::SplitWriter;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreparePhase {
    /// Looking for the input, and whether it was prepared already.
    Finding,
    /// Another process is preparing the same folder.
    Waiting,
    /// Training the tokenizer.
    Tokenizer,
    /// Turning text into tokens, or checking those that are given.
    Encoding,
    /// Making sure that all of it is on disk.
    Finishing,
    /// Writing it to a bucket.
    Uploading,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrepareProgress {
    /// What is being done.
    pub phase: PreparePhase,
    /// Bytes of the input that are done.
    pub done_bytes: u64,
    /// Bytes of the input, 0 where that is not known yet.
    pub total_bytes: u64,
}

/// Prepared data.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Where they are: a folder of this machine, or the address of one in a bucket.
    pub folder: PathBuf,
    /// What they are.
    pub manifest: Manifest,
    /// Whether anything had to be done.
    pub changed: bool,
}

type Observer<'a> = &'a mut dyn FnMut(PrepareProgress);

/// Prepares what `settings` name, unless it was done already. Blocks, with a thread for each processor; tells
/// `observer` how far it is. While another process prepares the same folder, waits for it.
///
/// # Errors
/// `Invalid` for a setting or an input to mend (missing or empty input, a broken JSON line, a damaged token file or
/// tokenizer, a corpus too small for one sequence); `Denied` for what must not be read or written; `Exhausted` for a
/// full disk; `Unavailable` when an input became shorter while it was read. What was prepared before stays as it was.
pub fn prepare(settings: &PrepareSettings, observer: Observer) -> Result<Prepared> {
    prepare_with_threads(settings, &no_bucket, processors::available(), observer)
}

/// As [`prepare()`], where inputs may lie in buckets and what is prepared may go to one; `open` opens them. What is
/// prepared into a bucket is built in a folder of this machine's temporary one first.
///
/// # Errors
/// As of [`prepare()`]; `Corrupt` when an object was changed while it was read; what buckets say.
pub fn prepare_with_buckets(
    settings: &PrepareSettings,
    open: OpenBucket,
    observer: Observer,
) -> Result<Prepared> {
    prepare_with_threads(settings, open, processors::available(), observer)
}

fn no_bucket(address: &Address) -> Result<Bucket> {
    Err(Error::invalid(format!(
        "{address} lies in a bucket, and only files of this machine can be used here"
    )))
}

fn prepare_with_threads(
    settings: &PrepareSettings,
    open: OpenBucket,
    threads: usize,
    observer: Observer,
) -> Result<Prepared> {
    settings.validate()?;
    if settings.prepared.is_empty() {
        return Err(Error::invalid("data.prepared is empty: name the folder to prepare into"));
    }
    let folder = match place(&settings.prepared)? {
        Address::File(folder) => folder,
        address => return uploaded::prepare(settings, &address, open, threads, observer),
    };
    if folder.exists() && !folder.is_dir() {
        return Err(Error::invalid(format!("{} is no folder (data.prepared)", folder.display())));
    }
    phase(observer, PreparePhase::Finding);
    let request = Request::find(settings, open)?;
    if let Some(manifest) = request.done_in(&folder) {
        return Ok(Prepared { folder, manifest, changed: false });
    }
    let _lock = lock(&folder, observer)?;
    recover_folder(&folder)?;
    // Whoever held the lock may have prepared the same.
    if let Some(manifest) = request.done_in(&folder) {
        return Ok(Prepared { folder, manifest, changed: false });
    }
    check_replaceable(&folder)?;
    write_folder_atomically(&folder, |partial| {
        build(settings, &request, threads, partial, observer)?;
        phase(observer, PreparePhase::Finishing);
        Ok(())
    })?;
    Ok(Prepared { manifest: Manifest::read(&folder)?, folder, changed: true })
}

/// Where `data.prepared` is; a path stays as it was given.
fn place(prepared: &str) -> Result<Address> {
    if prepared.contains("://") {
        return Address::parse(prepared).map_err(|error| error.within("data.prepared"));
    }
    Ok(Address::File(PathBuf::from(prepared)))
}

fn phase(observer: Observer, phase: PreparePhase) {
    observer(PrepareProgress { phase, done_bytes: 0, total_bytes: 0 });
}

/// What is to be prepared.
struct Request {
    found: Found,
    tokenizer: Option<Tokenizer>,
    digest: String,
}

impl Request {
    fn find(settings: &PrepareSettings, open: OpenBucket) -> Result<Self> {
        let found = inputs::find(settings, open)?;
        let path = Path::new(&settings.tokenizer);
        let given = !settings.tokenizer.is_empty();
        let load = || Tokenizer::load_with(path, &settings.end_of_text);
        let tokenizer = given.then(load).transpose().map_err(|error| error.within("data.tokenizer"))?;
        // The end of text is part of it: it may come from a file beside the tokenizer's own.
        let known_by = tokenizer.as_ref().map(|tokenizer| (tokenizer.digest(), tokenizer.end_of_text()));
        let essence = format!("{FORMAT} {} {} {known_by:?}", settings.essence()?, found.stamp.digest);
        Ok(Self { found, tokenizer, digest: digest_bytes(essence.as_bytes()) })
    }

    /// The manifest of a folder that holds just this, whole and undamaged.
    fn done_in(&self, folder: &Path) -> Option<Manifest> {
        match Dataset::open(folder) {
            Ok(dataset) => {
                Some(dataset.manifest().clone()).filter(|manifest| manifest.request_digest == self.digest)
            }
            Err(error) => {
                tracing::debug!("{} is to be prepared: {error}", folder.display());
                None
            }
        }
    }
}

/// Locks `<prepared>.lock`, which stays behind: removing it could part two processes that wait for it. The system ends
/// the lock with the process, however that ends.
fn lock(folder: &Path, observer: Observer) -> Result<File> {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let path = folder.with_file_name(name);
    let describe = || format!("cannot lock {} (data.prepared)", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .context(|| format!("cannot create {} (data.prepared)", parent.display()))?;
    }
    let file = File::options().create(true).append(true).open(&path).context(describe)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => phase(observer, PreparePhase::Waiting),
        Err(TryLockError::Error(error)) => return Err(Error::io(describe(), error)),
    }
    file.lock().context(describe)?;
    Ok(file)
}

/// Refuses to replace a folder that holds anything else than prepared data: it may be someone's home.
fn check_replaceable(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let describe = || format!("cannot list {} (data.prepared)", folder.display());
    for entry in std::fs::read_dir(folder).context(describe)? {
        let name = entry.context(describe)?.file_name();
        if !name.to_str().is_some_and(is_ours) {
            return Err(Error::invalid(format!(
                "{} holds `{}`, which is no prepared data: name another folder, or clear this one (data.prepared)",
                folder.display(),
                name.display()
            )));
        }
    }
    Ok(())
}

fn is_ours(name: &str) -> bool {
    let stem = name.strip_suffix(".partial").unwrap_or(name);
    let shard = ["train-", "held_out-"].iter().any(|start| stem.starts_with(start));
    let other = [
        "manifest.json",
        SOURCES,
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        INDEX_FILE,
        uploaded::CLAIM,
    ];
    (shard && (stem.ends_with(".bin") || stem.ends_with(".documents.json"))) || other.contains(&stem)
}

/// Writes all files of the folder.
fn build(
    settings: &PrepareSettings,
    request: &Request,
    threads: usize,
    folder: &Path,
    observer: Observer,
) -> Result<()> {
    let (files, chosen) = gather(settings, &request.found)?;
    let sources_sha256 = write_sources(folder, &chosen)?;
    let tokens = files.iter().filter(|file| file.format == Format::Tokens).count();
    let mut manifest = match tokens {
        0 => build_from_text(
            settings,
            request,
            Corpus::new(files, settings.limit_bytes, &settings.text_field)?,
            threads,
            folder,
            observer,
        )?,
        all if all == files.len() => build_from_tokens(settings, request, &files, folder, observer)?,
        _ => return Err(Error::invalid("token files (*.bin) and text cannot be one corpus (data.input)")),
    };
    check_size(settings, &manifest)?;
    manifest.sources_sha256 = sources_sha256;
    manifest.write(folder)
}

fn gather(settings: &PrepareSettings, found: &Found) -> Result<(Vec<InputFile>, Vec<ChosenSource>)> {
    let (mut files, mut chosen) = (Vec::new(), Vec::new());
    for source in &found.sources {
        match source {
            Source::Files(given) => files.extend(given.iter().cloned()),
            Source::Cargo(cargo) => {
                let (more, listed) = cargo.choose(settings.seed, settings.limit_bytes)?;
                files.extend(more);
                chosen.extend(listed);
            }
        }
    }
    Ok((files, chosen))
}

/// Writes the list of chosen sources, if there are any; its digest.
fn write_sources(folder: &Path, chosen: &[ChosenSource]) -> Result<String> {
    if chosen.is_empty() {
        return Ok(String::new());
    }
    let text = serde_json::to_vec_pretty(chosen).map_err(|error| {
        Error::internal("the list of sources cannot be written as JSON").with_source(error)
    })?;
    let path = folder.join(SOURCES);
    write_atomically(&path, |writer| {
        writer.write_all(&text).context(|| format!("cannot write {}", path.display()))
    })?;
    Ok(digest_bytes(&text))
}

fn build_from_text(
    settings: &PrepareSettings,
    request: &Request,
    corpus: Corpus,
    threads: usize,
    folder: &Path,
    observer: Observer,
) -> Result<Manifest> {
    let total_bytes = corpus.bytes();
    let trained;
    let tokenizer = match &request.tokenizer {
        Some(tokenizer) => tokenizer,
        None if !settings.end_of_text.is_empty() => {
            return Err(Error::invalid(
                "data.end_of_text: a tokenizer that is trained here has its own; leave it out, or give data.tokenizer",
            ));
        }
        None => {
            observer(PrepareProgress { phase: PreparePhase::Tokenizer, done_bytes: 0, total_bytes });
            let texts = sample::sample(
                &corpus,
                settings.tokenizer_sample_bytes,
                &settings.text_field,
                settings.seed,
            )?;
            let kind = settings.pre_tokenizer()?;
            trained = train(&texts, kind, settings.vocabulary, settings.sequence_length)?;
            &trained
        }
    };
    tokenizer.copy_into(folder)?;
    let token_type = TokenType::of_vocabulary(tokenizer.vocabulary());
    let writer =
        |split| SplitWriter::new(folder, split, settings.sequence_length, token_type, settings.shard_tokens);
    let mut writers = Writers { train: writer(Split::Train), held_out: writer(Split::HeldOut) };
    let mut progress =
        |done_bytes| observer(PrepareProgress { phase: PreparePhase::Encoding, done_bytes, total_bytes });
    progress(0);
    pipeline::encode(&corpus, settings, tokenizer, threads, &mut writers, &mut progress)?;
    let (train, held_out) = (writers.train.finish()?, writers.held_out.finish()?);
    Ok(manifest(settings, request, Some(tokenizer), token_type, train, held_out))
}

fn build_from_tokens(
    settings: &PrepareSettings,
    request: &Request,
    files: &[InputFile],
    folder: &Path,
    observer: Observer,
) -> Result<Manifest> {
    let total_bytes = files.iter().map(|file| file.bytes).sum();
    let mut progress =
        |done_bytes| observer(PrepareProgress { phase: PreparePhase::Encoding, done_bytes, total_bytes });
    progress(0);
    let tokenizer = request.tokenizer.as_ref();
    if tokenizer.is_none() && !settings.end_of_text.is_empty() && numbered_end_of_text(settings).is_none() {
        return Err(Error::invalid(
            "data.end_of_text: without data.tokenizer it is a number below data.vocabulary",
        ));
    }
    let corpus = token_files::adopt(files, settings, tokenizer, &mut progress)?;
    if let Some(tokenizer) = tokenizer {
        tokenizer.copy_into(folder)?;
    }
    Ok(manifest(settings, request, tokenizer, corpus.token_type, corpus.train, corpus.held_out))
}

fn numbered_end_of_text(settings: &PrepareSettings) -> Option<u32> {
    settings.end_of_text.parse().ok().filter(|token| (*token as usize) < settings.vocabulary)
}

fn manifest(
    settings: &PrepareSettings,
    request: &Request,
    tokenizer: Option<&Tokenizer>,
    token_type: TokenType,
    train: SplitManifest,
    held_out: SplitManifest,
) -> Manifest {
    Manifest {
        format: FORMAT,
        settings: settings.clone(),
        request_digest: request.digest.clone(),
        inputs: request.found.stamp.clone(),
        tokenizer_sha256: tokenizer.map(Tokenizer::digest).unwrap_or_default(),
        sources_sha256: String::new(),
        vocabulary: tokenizer.map_or(settings.vocabulary, Tokenizer::vocabulary),
        end_of_text: tokenizer.map(Tokenizer::end_of_text).or_else(|| numbered_end_of_text(settings)),
        token_type,
        sequence_length: settings.sequence_length,
        train,
        held_out,
    }
}

fn check_size(settings: &PrepareSettings, manifest: &Manifest) -> Result<()> {
    let held_out = (settings.held_out > 0.0).then_some(Split::HeldOut);
    for split in [Split::Train].into_iter().chain(held_out) {
        let found = manifest.split(split);
        if found.shards.is_empty() {
            return Err(Error::invalid(format!(
                "the corpus is too small: its {} part has {} tokens ({} bytes of text), and a sequence of {} needs one \
                 more; give more data.input, shorter sequences (data.sequence_length or whichever key gives it: \
                 train.sequence_length, model.context), or another data.held_out",
                split.name(),
                found.encoded_tokens,
                found.text_bytes,
                settings.sequence_length
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
