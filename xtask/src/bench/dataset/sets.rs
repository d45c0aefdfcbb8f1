//! The samples, in every form: made once under `benches/work/dataset/sets`, by the peers' own writers.

use super::super::work_folder;
use crate::environment::Environment;
use crate::shell;
use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};
use serde_json::Value;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

const SEED: u64 = 7;
/// What peers recommend for shards, and their writers' default.
const MOST_SHARD_BYTES: u64 = 64 << 20;
/// Small sets have as many shards, so that workers share them out evenly, and a cache of half a set holds several.
const SHARDS: u64 = 24;
/// The mean of what lengths are drawn from.
const SAMPLE_BYTES: u64 = 100 << 10;

/// One set of samples.
#[derive(Debug, Clone)]
pub struct Set {
    /// Where its forms lie; its name is the bucket's.
    pub folder: PathBuf,
    /// How many there are.
    pub samples: u64,
    /// Of all samples together.
    pub bytes: u64,
    /// Of all samples' words.
    pub sum: u64,
    /// What it was made with.
    pub facts: Value,
}

/// Where sets lie; the S3 server serves it.
///
/// # Errors
/// When it cannot be made.
pub fn root() -> Result<PathBuf> {
    work_folder("dataset/sets")
}

impl Set {
    /// Finds or makes the set of so many samples.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn ensure(samples: u64, peers: &Environment) -> Result<Self> {
        let folder = root()?.join(format!("set-{samples}"));
        let shard_bytes = (samples * SAMPLE_BYTES / SHARDS).min(MOST_SHARD_BYTES);
        let wanted = |set: &Self| set.facts["seed"] == SEED && set.facts["shard_bytes"] == shard_bytes;
        if let Some(set) = Self::found(&folder).ok().filter(wanted) {
            return Ok(set);
        }
        let mut make = peers.script("bench_dataset.py");
        make.args(["make", "--samples", &samples.to_string(), "--seed", &SEED.to_string()]);
        make.args(["--shard-bytes", &shard_bytes.to_string(), "--out"]).arg(&folder);
        shell::run(make)?;
        Self::found(&folder)
    }

    fn found(folder: &Path) -> Result<Self> {
        let path = folder.join("facts.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let facts: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        let count = |key: &str| facts[key].as_u64().with_context(|| format!("no count `{key}` in {text}"));
        let (samples, bytes, sum) = (count("samples")?, count("bytes")?, count("sum")?);
        Ok(Self { folder: folder.to_owned(), samples, bytes, sum, facts })
    }

    /// Under which name the S3 server has it.
    pub fn bucket(&self) -> String {
        format!("set-{}", self.samples)
    }
}

/// Reads `path`, or all files below it, so that they lie in the page cache.
///
/// # Errors
/// When one cannot be read.
pub fn warm(path: &Path) -> Result<()> {
    each_file(path, &|mut file| io::copy(&mut file, &mut io::sink()).map(|_| ()))
}

/// Has the page cache give up `path`, or all files below it: what is read again lies there as a disk's files do, in large
/// pieces, and not as its writer left it, in as small ones as it wrote.
///
/// # Errors
/// When one cannot be written back.
pub fn cool(path: &Path) -> Result<()> {
    each_file(path, &|file| {
        file.sync_data()?;
        Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
    })
}

fn each_file(path: &Path, each: &dyn Fn(File) -> io::Result<()>) -> Result<()> {
    let named = || format!("cannot read {}", path.display());
    if path.is_dir() {
        let mut entries = path.read_dir().with_context(named)?;
        return entries.try_for_each(|entry| each_file(&entry.with_context(named)?.path(), each));
    }
    File::open(path).and_then(each).with_context(named)
}
