//! Preparing into a bucket: built in a local folder, then uploaded, the manifest last.
//!
//! Before anything of an earlier preparation is replaced its manifest is removed, and the new one is written when all that
//! it names is there: a prefix with a manifest is whole, whenever a process is killed. The local folder belongs to this
//! user and this address and is locked, so that processes of a host take turns; what a killed one left is cleared by the
//! next. Processes of several hosts are not kept apart: equal ones write the same bytes, and one that finds another's
//! among its own gives up. Each says first what it prepares (`CLAIM`), before it removes a manifest, and looks at that again
//! after it wrote its own: whoever began before that is noticed, and whoever begins later removes the manifest.

use super::inputs::{Format, Source};
use super::{Observer, OpenBucket, PreparePhase, PrepareProgress, PrepareSettings, Prepared, Request};
use super::{build, is_ours, lock, phase};
use crate::blocks::ObjectInfo;
use crate::bucket::{Address, Bucket};
use crate::dataset::Dataset;
use crate::digest::digest_bytes;
use crate::index::Objects;
use crate::manifest::{MANIFEST, Manifest};
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_host::disk;
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The object that says what is being prepared, by the digest of the request; gone when that is done.
pub(super) const CLAIM: &str = "preparing";

/// Bytes that are copied at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Characters of an address' digest that name its folder.
const NAME_CHARACTERS: usize = 32;

/// Permissions that let others than the owner do anything.
const OTHERS: u32 = 0o077;

/// Prepares into the folder of a bucket at `address`, unless it was done already.
pub(super) fn prepare(
    settings: &PrepareSettings,
    address: &Address,
    open: OpenBucket,
    threads: usize,
    observer: Observer,
) -> Result<Prepared> {
    phase(observer, PreparePhase::Finding);
    let target = Target::open(address, open)?;
    let request = Request::find(settings, open)?;
    let prepared =
        |manifest, changed| Ok(Prepared { folder: PathBuf::from(address.to_string()), manifest, changed });
    if let Some(manifest) = target.done(&request)? {
        return prepared(manifest, false);
    }
    check_inputs(&request)?;
    let local = LocalFolder::new(&std::env::temp_dir(), address, observer)?;
    // Whoever held the lock may have prepared the same.
    if let Some(manifest) = target.done(&request)? {
        return prepared(manifest, false);
    }
    target.check_replaceable()?;
    build(settings, &request, threads, &local.folder, observer)?;
    let mut manifest = Manifest::read(&local.folder)?;
    // Of the local copy, which is gone soon: equal preparations have equal manifests.
    manifest
        .train
        .shards
        .iter_mut()
        .chain(&mut manifest.held_out.shards)
        .for_each(|shard| shard.modified_ns = 0);
    manifest.write(&local.folder)?;
    target.upload(&local.folder, &request.digest, observer)?;
    prepared(manifest, true)
}

/// Token files stay where they are: a manifest in a bucket would name what nobody else finds.
fn check_inputs(request: &Request) -> Result<()> {
    let files = request.found.sources.iter().filter_map(|source| match source {
        Source::Files(files) => Some(files),
        Source::Cargo(_) => None,
    });
    match files.flatten().find(|file| file.format == Format::Tokens) {
        None => Ok(()),
        Some(file) => Err(Error::invalid(format!(
            "{}: token files stay where they are and are not written to a bucket: prepare into a folder \
             (data.prepared)",
            file.path.display()
        ))),
    }
}

/// Where it goes.
struct Target {
    bucket: Bucket,
    address: String,
}

impl Target {
    fn open(address: &Address, open: OpenBucket) -> Result<Self> {
        Ok(Self { bucket: open(address)?, address: address.to_string() })
    }

    /// What is there, by names counted from the address.
    fn list(&self) -> Result<Vec<(String, ObjectInfo)>> {
        let listed =
            Objects::list(&self.bucket, &self.address).map_err(|error| error.within("data.prepared"))?;
        let named = |object: ObjectInfo| {
            let name = object.address.strip_prefix(&self.address).and_then(|rest| rest.strip_prefix('/'));
            match name {
                Some(name) => Ok((name.to_owned(), object)),
                None => {
                    Err(Error::invalid(format!("{} is an object, no folder (data.prepared)", self.address)))
                }
            }
        };
        listed.into_iter().map(named).collect()
    }

    /// The manifest, where just this was prepared and all shards are there.
    fn done(&self, request: &Request) -> Result<Option<Manifest>> {
        let manifest = match Dataset::find(&self.bucket, &self.address) {
            Ok(dataset) => dataset.manifest().clone(),
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Corrupt) => {
                tracing::debug!("{} is to be prepared: {error}", self.address);
                return Ok(None);
            }
            Err(error) => return Err(error.within("data.prepared")),
        };
        if manifest.request_digest != request.digest {
            return Ok(None);
        }
        let listed = self.list()?;
        let is_there = |name: &str, bytes: Option<u64>| {
            let fits = |object: &ObjectInfo| bytes.is_none_or(|bytes| bytes == object.bytes);
            name.is_empty() || listed.iter().any(|(found, object)| found == name && fits(object))
        };
        let whole = manifest.shards().all(|shard| {
            is_there(&shard.file, Some(shard.file_bytes)) && is_there(&shard.document_starts, None)
        });
        Ok(whole.then_some(manifest))
    }

    /// Refuses to write among anything else than prepared data.
    fn check_replaceable(&self) -> Result<()> {
        match self.list()?.iter().find(|(name, _)| name.contains('/') || !is_ours(name)) {
            None => Ok(()),
            Some((name, _)) => Err(Error::invalid(format!(
                "{} holds `{name}`, which is no prepared data: name another place, or clear this one (data.prepared)",
                self.address
            ))),
        }
    }

    fn upload(&self, folder: &Path, request: &str, observer: Observer) -> Result<()> {
        let files = files_of(folder)?;
        let total_bytes = files.iter().map(|(_, bytes)| bytes).sum();
        let mut done_bytes = 0;
        let mut progress = |bytes: u64| {
            done_bytes += bytes;
            observer(PrepareProgress { phase: PreparePhase::Uploading, done_bytes, total_bytes });
        };
        progress(0);
        let claim = self.bucket.write(CLAIM, request.as_bytes())?;
        self.bucket.delete(MANIFEST)?;
        let mut written = Vec::new();
        for (name, bytes) in files.iter().filter(|(name, _)| name != MANIFEST) {
            let object = self.upload_file(folder, name, &mut progress)?;
            if object.bytes != *bytes {
                return Err(Error::unavailable(format!(
                    "{} has {} bytes of {bytes} of its file in {}, which somebody has changed",
                    object.address,
                    object.bytes,
                    folder.display()
                )));
            }
            written.push(object);
        }
        let earlier = self.check_written(&claim, &written)?;
        let manifest = self.upload_file(folder, MANIFEST, &mut progress)?;
        if let Err(error) = self.check_written(&claim, &written) {
            // Another's stays: what it names is there.
            if self.bucket.find(MANIFEST)?.is_some_and(|found| found == manifest) {
                self.bucket.delete(MANIFEST)?;
            }
            return Err(error);
        }
        earlier.iter().try_for_each(|name| self.bucket.delete(name))
    }

    /// Holds what is there against what was written, and the claim, if there is one, against ours; the names of what else is
    /// there.
    fn check_written(&self, claim: &ObjectInfo, written: &[ObjectInfo]) -> Result<Vec<String>> {
        let mut listed = self.list()?;
        let is_there = |object: &ObjectInfo| listed.iter().any(|(_, found)| found == object);
        let altered = written.iter().find(|object| !is_there(object));
        let is_other = |found: &ObjectInfo| found.address == claim.address && found != claim;
        let others = listed.iter().map(|(_, found)| found).find(|found| is_other(found));
        if let Some(object) = altered.or(others) {
            return Err(Error::unavailable(format!(
                "{} is not as it was written: another process prepares into {}, too; give each a place of its own, or \
                 prepare again (data.prepared)",
                object.address, self.address
            )));
        }
        listed.retain(|(_, found)| !written.contains(found));
        // What came in the meantime, other than shards, is not ours to remove.
        Ok(listed
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name != MANIFEST && is_ours(name))
            .collect())
    }

    fn upload_file(&self, folder: &Path, name: &str, progress: &mut dyn FnMut(u64)) -> Result<ObjectInfo> {
        let path = folder.join(name);
        let describe_read = || format!("cannot read {}", path.display());
        let mut file = disk::open_regular(&path).context(describe_read)?;
        let mut writer = self.bucket.writer(name)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = file.read(&mut chunk).context(describe_read)?;
            if read == 0 {
                return writer.finish();
            }
            writer.write_all(&chunk[..read]).context(|| format!("cannot write {}/{name}", self.address))?;
            progress(read as u64);
        }
    }
}

/// The files of a folder with their sizes, in order of their names.
fn files_of(folder: &Path) -> Result<Vec<(String, u64)>> {
    let describe = || format!("cannot list {}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).context(describe)? {
        let entry = entry.context(describe)?;
        let bytes = entry.metadata().context(describe)?.len();
        files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
    }
    files.sort();
    Ok(files)
}

/// An empty folder of this machine, removed with this.
struct LocalFolder {
    folder: PathBuf,
    /// Released after the folder is removed.
    _lock: File,
}

impl LocalFolder {
    /// The folder for an address, below `temporary`; waits while another process has it.
    fn new(temporary: &Path, address: &Address, observer: Observer) -> Result<Self> {
        let home = own_folder(temporary)?;
        let digest = digest_bytes(address.to_string().as_bytes());
        let folder = home.join(&digest[..NAME_CHARACTERS]);
        let held = lock(&folder, observer)?;
        clear_abandoned(&home);
        let new = Self { folder, _lock: held };
        let describe = || format!("cannot make the folder {}", new.folder.display());
        new.clear().context(describe)?;
        fs::create_dir(&new.folder).context(describe)?;
        Ok(new)
    }

    fn clear(&self) -> std::io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

impl Drop for LocalFolder {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// This user's own folder below the system's temporary one, where anybody may write.
fn own_folder(temporary: &Path) -> Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let home = temporary.join(format!("gradus-prepare-{user}"));
    let describe = || format!("cannot make the folder {} (TMPDIR)", home.display());
    match DirBuilder::new().mode(0o700).create(&home) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::io(describe(), error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(&home).context(describe)?;
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & OTHERS != 0 {
        return Err(Error::denied(format!(
            "{} is no private folder of this user: remove it, or set TMPDIR to another place",
            home.display()
        )));
    }
    Ok(home)
}

/// Removes what processes left that were killed. One that is at work holds its lock.
fn clear_abandoned(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "lock") {
            let folder = path.with_extension("");
            let held = File::options().append(true).open(&path);
            if folder.is_dir()
                && held.is_ok_and(|lock| lock.try_lock().is_ok() && fs::remove_dir_all(&folder).is_ok())
            {
                tracing::debug!("removed {}, which a process had left", folder.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(key: &str) -> Address {
        Address::parse(&format!("s3://data/{key}")).unwrap()
    }

    #[test]
    fn what_killed_processes_left_is_cleared_and_what_is_in_use_is_not() {
        let temporary = tempfile::tempdir().unwrap();
        let new = |key| LocalFolder::new(temporary.path(), &address(key), &mut |_| ()).unwrap();
        let leave = |key| {
            let left = new(key);
            fs::write(left.folder.join("train-00000.bin"), "half").unwrap();
            let LocalFolder { folder, .. } = &left;
            let folder = folder.clone();
            // As a kill leaves it: the lock is gone, the folder is not.
            let copy = folder.with_extension("kept");
            fs::rename(&folder, &copy).unwrap();
            drop(left);
            fs::rename(&copy, &folder).unwrap();
            folder
        };
        let (same, other) = (leave("a"), leave("b"));
        let used = new("c");
        let again = new("a");
        assert_eq!(again.folder, same);
        assert_eq!(fs::read_dir(&again.folder).unwrap().count(), 0);
        assert!(!other.exists() && used.folder.exists());
        drop(again);
        assert!(!same.exists());
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let home = own_folder(temporary.path()).unwrap();
        assert_eq!(own_folder(temporary.path()).unwrap(), home);
        fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(*own_folder(temporary.path()).unwrap_err().kind(), Kind::Denied);
        fs::remove_dir(&home).unwrap();
        std::os::unix::fs::symlink(temporary.path(), &home).unwrap();
        assert_eq!(*own_folder(temporary.path()).unwrap_err().kind(), Kind::Denied);
    }
}
