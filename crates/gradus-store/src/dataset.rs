//! Prepared tokens, read.
//!
//! A [`Dataset`] says what was prepared; [`TokenFiles`] are the shards of one part of it in a folder, open for reading. A
//! sample is `T + 1` consecutive tokens of one shard. Opening a folder checks the size of every file and, where a file was
//! touched since it was prepared or the data are small, its SHA-256; so a cut or altered shard is `Corrupt`, not a strange
//! loss. Invariant: no token that is read is at or beyond the vocabulary.

use crate::digest::{digest_bytes, digest_file, digest_part, finish};
use crate::index::{Objects, read_whole};
use crate::manifest::{MANIFEST, Manifest, SOURCES, Shard, Split, SplitManifest, TokenType};
use crate::sample_form::SampleForm;
use crate::tokenizer::{TOKENIZER, TOKENIZER_FILES, Tokenizer};
use gradus_error::{Error, IoContext, Result};
use gradus_host::disk;
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Data up to this size are digested whenever they are opened: a fraction of a second.
const ALWAYS_DIGESTED_BYTES: u64 = 256 << 20;

/// Largest list of document starts that is read: a hundred million documents in one shard.
const DOCUMENT_STARTS_LIMIT_BYTES: u64 = 1 << 30;

/// Largest file beside the shards that is read from a store; manifests and tokenizers have some tens of megabytes at most.
const BESIDE_LIMIT_BYTES: u64 = 256 << 20;

/// Modification time, nanoseconds since 1970.
pub(crate) fn modified_ns(metadata: &Metadata) -> u64 {
    (metadata.mtime() as u64).wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec() as u64)
}

/// Prepared data, found whole.
pub struct Dataset {
    home: Home,
    manifest: Manifest,
    train: TokenSplit,
    held_out: TokenSplit,
}

/// Where prepared data are.
enum Home {
    Folder(PathBuf),
    /// In a store, from which the files of its tokenizer were read.
    Store {
        address: String,
        tokenizer: Vec<(String, Vec<u8>)>,
    },
}

impl Dataset {
    /// Opens a prepared folder.
    ///
    /// # Errors
    /// `Invalid` when there is none; `Corrupt`, naming the file, when the manifest contradicts itself or a file is
    /// missing, cut or altered: prepare again.
    pub fn open(folder: &Path) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let all = manifest.shards().fold(0u64, |sum, shard| sum.saturating_add(shard.file_bytes));
        for shard in manifest.shards() {
            let touched = check_size(folder, shard)?;
            if touched || all <= ALWAYS_DIGESTED_BYTES {
                check_digest(folder, shard, manifest.token_type)?;
            }
        }
        check_beside(folder, &manifest)?;
        Ok(Self {
            home: Home::Folder(folder.to_owned()),
            train: TokenSplit::of(&manifest, Split::Train),
            held_out: TokenSplit::of(&manifest, Split::HeldOut),
            manifest,
        })
    }

    /// Finds what was prepared at an address of a store. Its shards are read by way of an [`Index`](crate::Index); whether
    /// they are what was prepared is theirs to show, by size here and by ETag whenever they are read.
    ///
    /// # Errors
    /// `Invalid` when nothing was prepared there; `Corrupt`, naming the object, when the manifest contradicts itself or the
    /// tokenizer is not what was prepared; what the store says.
    pub fn find(objects: &dyn Objects, address: &str) -> Result<Self> {
        let address = address.trim_end_matches('/');
        let listed = objects.list(address)?;
        let read = |name: &str| -> Result<Option<Vec<u8>>> {
            let wanted = format!("{address}/{name}");
            let found = listed.iter().find(|object| object.address == wanted);
            found.map(|object| read_whole(objects, object, BESIDE_LIMIT_BYTES)).transpose()
        };
        let Some(text) = read(MANIFEST)? else {
            return Err(Error::invalid(format!(
                "there are no prepared data at {address}: it has no {MANIFEST}"
            )));
        };
        let manifest = Manifest::parse(&text, &format!("{address}/{MANIFEST}"))?;
        let mut tokenizer = Vec::new();
        for name in TOKENIZER_FILES {
            tokenizer.extend(read(name)?.map(|bytes| (name.to_owned(), bytes)));
        }
        let found =
            tokenizer.iter().find(|(name, _)| name == TOKENIZER).map(|(_, bytes)| digest_bytes(bytes));
        if found.unwrap_or_default() != manifest.tokenizer_sha256 {
            return Err(Error::corrupt(format!(
                "{address}/{TOKENIZER} is not the one that was prepared; copy the prepared data again"
            )));
        }
        Ok(Self {
            home: Home::Store { address: address.to_owned(), tokenizer },
            train: TokenSplit::of(&manifest, Split::Train),
            held_out: TokenSplit::of(&manifest, Split::HeldOut),
            manifest,
        })
    }

    /// Compares every byte with the digests of the manifest, however large the data are.
    ///
    /// # Errors
    /// `Corrupt`, naming the file; `Invalid` where they are in no folder.
    pub fn verify(&self) -> Result<()> {
        let folder = self.folder()?;
        for shard in self.manifest.shards() {
            check_size(folder, shard)?;
            check_digest(folder, shard, self.manifest.token_type)?;
        }
        check_beside(folder, &self.manifest)
    }

    /// The folder in which it lies.
    ///
    /// # Errors
    /// `Invalid` where it lies in none.
    pub fn folder(&self) -> Result<&Path> {
        match &self.home {
            Home::Folder(folder) => Ok(folder),
            Home::Store { address, .. } => {
                Err(Error::invalid(format!("{address} is no folder of this machine")))
            }
        }
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// One part of it. The held-out part has no samples if none was held out.
    pub fn split(&self, split: Split) -> &TokenSplit {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }

    /// Opens the shards of one part of it.
    ///
    /// # Errors
    /// The system's failure to open one; `Invalid` where they are in no folder.
    pub fn files(&self, split: Split) -> Result<TokenFiles> {
        TokenFiles::open(self.folder()?, &self.manifest, split)
    }

    /// `T`: a sample has one token more.
    pub fn sequence_length(&self) -> usize {
        self.manifest.sequence_length
    }

    /// Every token is below.
    pub fn vocabulary(&self) -> usize {
        self.manifest.vocabulary
    }

    /// The token that parts documents, if it is known.
    pub fn end_of_text(&self) -> Option<u32> {
        self.manifest.end_of_text
    }

    /// Its tokenizer; nothing when tokens were used as they are and no tokenizer was given.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        if self.manifest.tokenizer_sha256.is_empty() {
            return Ok(None);
        }
        let end_of_text = self.manifest.end_of_text.map(|token| token.to_string()).unwrap_or_default();
        match &self.home {
            Home::Folder(folder) => Tokenizer::load_with(folder, &end_of_text),
            Home::Store { address, tokenizer } => Tokenizer::from_files(tokenizer, &end_of_text, address),
        }
        .map(Some)
    }

    /// A digest of the samples: two data sets with the same digest hold the same tokens in the same windows.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new_with_prefix(self.sequence_length().to_le_bytes());
        for split in [Split::Train, Split::HeldOut] {
            hasher.update(split.name());
            self.manifest.split(split).shards.iter().for_each(|shard| hasher.update(&shard.sha256));
        }
        finish(hasher)
    }
}

/// Checks that a shard's file has its size; says whether it was touched since.
fn check_size(folder: &Path, shard: &Shard) -> Result<bool> {
    let path = shard.path(folder);
    let metadata = match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::corrupt(format!("{} is missing; prepare the data again", path.display())));
        }
        metadata => metadata.context(|| format!("cannot read {}", path.display()))?,
    };
    if metadata.len() != shard.file_bytes {
        return Err(Error::corrupt(format!(
            "{} has {} bytes instead of {}; prepare the data again",
            path.display(),
            metadata.len(),
            shard.file_bytes
        )));
    }
    Ok(modified_ns(&metadata) != shard.modified_ns)
}

fn check_digest(folder: &Path, shard: &Shard, token_type: TokenType) -> Result<()> {
    let path = shard.path(folder);
    if digest_part(&path, shard.offset_bytes, shard.tokens * token_type.bytes())? != shard.sha256 {
        return Err(altered(&path));
    }
    check_file(&folder.join(&shard.document_starts), &shard.document_starts_sha256)
}

/// Checks what lies beside the shards.
fn check_beside(folder: &Path, manifest: &Manifest) -> Result<()> {
    check_file(&folder.join(TOKENIZER), &manifest.tokenizer_sha256)?;
    check_file(&folder.join(SOURCES), &manifest.sources_sha256)
}

/// Checks a whole file; without a digest there is none.
fn check_file(path: &Path, sha256: &str) -> Result<()> {
    if sha256.is_empty() {
        return Ok(());
    }
    if !path.is_file() {
        return Err(Error::corrupt(format!("{} is missing; prepare the data again", path.display())));
    }
    if digest_file(path)? == sha256 { Ok(()) } else { Err(altered(path)) }
}

fn altered(path: &Path) -> Error {
    Error::corrupt(format!("{} was altered after it was prepared; prepare the data again", path.display()))
}

/// One part of a corpus, cut into samples.
#[derive(Debug, Clone)]
pub struct TokenSplit {
    manifest: SplitManifest,
    samples: u64,
}

impl TokenSplit {
    fn of(manifest: &Manifest, split: Split) -> Self {
        let split = manifest.split(split).clone();
        let samples = split.shards.iter().map(|shard| samples_of(shard, manifest.sequence_length)).sum();
        Self { manifest: split, samples }
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Number of tokens; each but the first of a stream is a target once.
    pub fn tokens(&self) -> u64 {
        self.manifest.tokens
    }

    /// Number of documents from which it was made.
    pub fn documents(&self) -> u64 {
        self.manifest.documents
    }

    /// Bytes of text for each token, end-of-text tokens counted in: what turns a loss in nats per token into bits per
    /// byte. Nothing when the bytes are not known (token files without a tokenizer).
    pub fn bytes_per_token(&self) -> Option<f64> {
        let known = self.manifest.text_bytes > 0 && self.manifest.encoded_tokens > 0;
        known.then(|| self.manifest.text_bytes as f64 / self.manifest.encoded_tokens as f64)
    }
}

/// Samples of a shard: each begins where the one before has its last token.
fn samples_of(shard: &Shard, sequence_length: usize) -> u64 {
    (shard.tokens - 1) / sequence_length as u64
}

/// The shards of one part of a corpus in a folder. Any number of threads may read at once.
pub struct TokenFiles {
    shards: Vec<OpenShard>,
    samples: u64,
    form: SampleForm,
}

/// Samples are read, not mapped: they are copied out anyway, and a file that somebody cuts short while it is in use is
/// then an error and not the end of the process.
struct OpenShard {
    file: File,
    path: PathBuf,
    offset: u64,
    document_starts: PathBuf,
    /// The number of its first sample.
    first: u64,
}

impl TokenFiles {
    fn open(folder: &Path, manifest: &Manifest, split: Split) -> Result<Self> {
        let mut opened = Self { shards: Vec::new(), samples: 0, form: SampleForm::of(manifest) };
        for shard in &manifest.split(split).shards {
            opened.shards.push(open_shard(folder, shard, opened.samples)?);
            opened.samples += samples_of(shard, manifest.sequence_length);
        }
        Ok(opened)
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Reads sample `sample` into `out[T + 1]`: inputs are all but its last token, targets all but its first.
    ///
    /// # Errors
    /// `Invalid` when there is no such sample or `out` has another length; `Corrupt` when a token is beyond the
    /// vocabulary.
    pub fn read(&self, sample: u64, out: &mut [u32]) -> Result<()> {
        let wanted = self.form.tokens();
        if sample >= self.samples || out.len() != wanted {
            let all = self.samples;
            return Err(Error::invalid(format!(
                "sample {sample} of {all} into {} tokens instead of {wanted}",
                out.len()
            )));
        }
        let shard = &self.shards[self.shards.partition_point(|shard| shard.first <= sample) - 1];
        let start = shard.offset + (sample - shard.first) * self.form.stride_bytes();
        let mut bytes = vec![0; self.form.bytes()];
        shard
            .file
            .read_exact_at(&mut bytes, start)
            .context(|| format!("cannot read {}", shard.path.display()))?;
        self.form
            .decode([&bytes[..]], out)
            .map_err(|error| error.within(format!("{}: sample {sample}", shard.path.display())))
    }

    /// Where documents begin in shard `shard`, in tokens from its start; empty for token files used as they are.
    ///
    /// # Errors
    /// `Invalid` when there is no such shard; `Corrupt` when the list is damaged.
    pub fn document_starts(&self, shard: usize) -> Result<Vec<u64>> {
        let path = match self.shards.get(shard) {
            None => return Err(Error::invalid(format!("there is no shard {shard}"))),
            Some(shard) if shard.document_starts.as_os_str().is_empty() => return Ok(Vec::new()),
            Some(shard) => &shard.document_starts,
        };
        let describe = || format!("cannot read {}", path.display());
        let mut text = Vec::new();
        let file = disk::open_regular(path).context(describe)?;
        file.take(DOCUMENT_STARTS_LIMIT_BYTES).read_to_end(&mut text).context(describe)?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::corrupt(format!("{} is damaged", path.display())).with_source(error))
    }
}

/// Opens a shard's file; `first` is the number of its first sample.
fn open_shard(folder: &Path, shard: &Shard, first: u64) -> Result<OpenShard> {
    let path = shard.path(folder);
    let file = disk::open_regular(&path).context(|| format!("cannot read {}", path.display()))?;
    let list = &shard.document_starts;
    let document_starts = if list.is_empty() { PathBuf::new() } else { folder.join(list) };
    Ok(OpenShard { file, path, offset: shard.offset_bytes, document_starts, first })
}
