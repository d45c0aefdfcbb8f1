//! Objects at their addresses: `s3://` and `file://`, read and written alike.
//!
//! A [`Bucket`] is opened at an [`Address`] and names objects by keys below it; what is read is an
//! [`ObjectInfo`](crate::ObjectInfo), an object as it was when it was described. This is the only room that knows tokio and
//! `object_store`: they run on two threads of their own, shared by all buckets of the process.
//!
//! Two pure machines decide: `retry` when a failed request is sent again, `throttle` how many may be under way.
//! Credentials are looked for along Amazon's chain (`chain`).
//!
//! Invariants: bytes are those of the object that was described, all of them, or there is an error: one that has changed
//! is `Corrupt`, a short body is sent for again, and no failure reads as an empty object or listing. Every operation ends
//! within its budget of attempts and time. No byte of a body is copied more than once here.

mod address;
mod attempts;
mod chain;
mod counters;
mod credentials;
mod environment;
mod failure;
mod files;
mod gate;
mod issued;
mod metadata;
mod open;
mod process;
mod profile;
mod read;
mod remote;
mod retry;
mod runtime;
mod settings;
mod stream;
mod tail;
mod throttle;
mod transport;
mod trouble;
mod upload;
mod web_identity;
mod writer;

pub use address::Address;
pub use counters::BucketCounters;
pub(crate) use files::OpenFile;
pub use read::{Destination, Read};
pub use settings::BucketSettings;
pub use stream::ObjectReader;
pub(crate) use stream::as_io;
pub(crate) use tail::Tail;
pub use writer::ObjectWriter;

use crate::blocks::ObjectInfo;
use counters::Tally;
use gradus_error::{Error, IoContext, Result};
use read::Lent;
use remote::Remote;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The objects at an address; clones share connections, limits and counters.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    address: Address,
    settings: BucketSettings,
    tally: Arc<Tally>,
    place: Place,
}

enum Place {
    Remote(Remote),
    Files(PathBuf),
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.inner.address)
    }
}

impl Bucket {
    /// Opens what is at `address`: a bucket, or a folder of one or of this machine. Variables of the environment are looked
    /// up now; no request is sent.
    ///
    /// # Errors
    /// `Invalid` for settings or a profile that cannot be used.
    pub fn open(
        address: &Address,
        settings: &BucketSettings,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        settings.validate()?;
        let tally = Arc::new(Tally::default());
        let place = match address {
            Address::File(path) => Place::Files(path.clone()),
            Address::S3 { bucket, .. } => {
                Place::Remote(open::remote(bucket, settings, lookup, Arc::clone(&tally))?)
            }
        };
        let inner = Inner { address: address.clone(), settings: settings.clone(), tally, place };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where it was opened.
    pub fn address(&self) -> &Address {
        &self.inner.address
    }

    /// The object of this key, counted from where the bucket was opened; an empty one is the address itself.
    ///
    /// # Errors
    /// `Invalid` when there is none, or no such bucket; `Denied`, naming whose credentials were; `Unavailable` when the
    /// store did not answer within the budget.
    pub fn head(&self, key: &str) -> Result<ObjectInfo> {
        let missing = || Error::invalid(format!("there is no object {}", self.inner.address.join(key)));
        self.find(key)?.ok_or_else(missing)
    }

    /// The object of this key, if there is one.
    ///
    /// # Errors
    /// As [`Bucket::head`]; a bucket that is not there is an error.
    pub fn find(&self, key: &str) -> Result<Option<ObjectInfo>> {
        match &self.inner.place {
            Place::Remote(remote) => runtime::get()?.block_on(remote.find(&self.full_key(key))),
            Place::Files(root) => files::find(&below(root, key)?),
        }
    }

    /// All objects whose keys begin with `prefix`, counted from where the bucket was opened, in order of their addresses.
    ///
    /// # Errors
    /// `Invalid` when there is no such bucket or folder, or a key that cannot be asked for; else as [`Bucket::head`].
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        match &self.inner.place {
            Place::Remote(remote) => {
                let full = match &self.inner.address {
                    Address::S3 { key, .. } if !key.is_empty() => format!("{key}/{prefix}"),
                    _ => prefix.to_owned(),
                };
                runtime::get()?.block_on(remote.list(&full))
            }
            Place::Files(root) => {
                let (folder, _) = prefix.rsplit_once('/').unwrap_or_default();
                below(root, folder)?;
                files::list(root, prefix)
            }
        }
    }

    /// Fills `into` with the bytes of `object` from `offset` on; blocks. Not to be called from a completion.
    ///
    /// # Errors
    /// `Corrupt` when the object is no longer what was described, or is shorter; else as [`Bucket::head`].
    pub fn read_at(&self, object: &ObjectInfo, offset: u64, into: &mut [u8]) -> Result<()> {
        let range = read::range(object, offset, into.len())?;
        match &self.inner.place {
            Place::Remote(remote) => runtime::get()?.block_on(remote.fill(object, range, &mut Lent(into))),
            Place::Files(_) => self.inner.read_file(object, offset, into),
        }
    }

    /// The whole of an object as a stream, read ahead by several requests at a time.
    ///
    /// # Errors
    /// `Invalid` for an object of another bucket. What goes wrong later, reading returns.
    pub fn open_stream(&self, object: &ObjectInfo) -> Result<ObjectReader> {
        ObjectReader::new(self.clone(), object.clone(), self.inner.settings.part_bytes)
    }

    /// Writes an object; one that is there is replaced, whole.
    ///
    /// # Errors
    /// As [`Bucket::head`]; `Exhausted` when a disk is full.
    pub fn write(&self, key: &str, bytes: &[u8]) -> Result<ObjectInfo> {
        let mut writer = self.writer(key)?;
        std::io::Write::write_all(&mut writer, bytes)
            .context(|| format!("cannot write {}", self.inner.address.join(key)))?;
        writer.finish()
    }

    /// Writes an object as it comes. It is there when [`ObjectWriter::finish`] has returned, and not before.
    ///
    /// # Errors
    /// `Invalid` for a key that no object can have; the system's failure to make a file.
    pub fn writer(&self, key: &str) -> Result<ObjectWriter> {
        ObjectWriter::new(self.clone(), key)
    }

    /// Removes an object; one that is not there is none to remove.
    ///
    /// # Errors
    /// As [`Bucket::head`].
    pub fn delete(&self, key: &str) -> Result<()> {
        match &self.inner.place {
            Place::Remote(remote) => runtime::get()?.block_on(remote.delete(&self.full_key(key))),
            Place::Files(root) => files::delete(&below(root, key)?),
        }
    }

    /// What was asked of it so far.
    pub fn counters(&self) -> BucketCounters {
        let gate = match &self.inner.place {
            Place::Remote(remote) => Some(&remote.gate),
            Place::Files(_) => None,
        };
        self.inner.tally.figures(gate, &self.inner.settings)
    }

    /// The key in the whole bucket.
    fn full_key(&self, key: &str) -> String {
        match self.inner.address.join(key) {
            Address::S3 { key, .. } => key,
            Address::File(_) => String::new(),
        }
    }
}

impl Inner {
    fn fill_from_file(&self, object: &ObjectInfo, offset: u64, into: &mut dyn Destination) -> Result<()> {
        let mut bytes = vec![0; into.room()];
        self.read_file(object, offset, &mut bytes)?;
        into.put(0, &bytes);
        Ok(())
    }

    fn read_file(&self, object: &ObjectInfo, offset: u64, into: &mut [u8]) -> Result<()> {
        files::fill(object, offset, into)?;
        self.tally.read(into.len() as u64);
        Ok(())
    }
}

/// The path of a key below a folder.
fn below(root: &Path, key: &str) -> Result<PathBuf> {
    address::check_key(key)?;
    Ok(if key.is_empty() { root.to_owned() } else { root.join(key) })
}

/// What takes bytes that somebody else words, for a fuzzer: whether they are a file of profiles, or credentials as a service
/// or a program gives them, or as STS does.
#[doc(hidden)]
pub fn is_understood(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let profiles = profile::is_understood(&text);
    let issued = issued::read(bytes, String::new()).is_ok();
    let traded = web_identity::read(&text, String::new()).is_ok();
    profiles || issued || traded
}

/// Inputs that [`is_understood`] takes.
#[doc(hidden)]
pub fn understood() -> Vec<Vec<u8>> {
    let texts = [
        "[default]\naws_access_key_id = A # whose\naws_secret_access_key = B\n[profile b]\ns3 =\n  endpoint_url = http://a\n",
        r#"{"AccessKeyId":"A","SecretAccessKey":"B","Token":"C","Expiration":"2030-01-31T12:00:00Z"}"#,
        "<R><AccessKeyId>A</AccessKeyId><SecretAccessKey>B&amp;</SecretAccessKey><SessionToken>C</SessionToken>\
         <Expiration>2030-01-31T12:00:00+00:00</Expiration></R>",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}
