//! Buckets over a real S3 server and over a folder: what is written is read back, and what goes wrong is said.

mod credentials;
mod faults;
mod parity;

use gradus_error::{Kind, Result};
use gradus_store::ObjectInfo;
use gradus_store::bucket::{Address, Bucket, BucketSettings, Read as Ranged};
use gradus_testbed::{ACCESS_KEY, S3Server, SECRET_KEY};
use std::io::Read;
use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};
use tempfile::TempDir;

/// A server with one bucket, `data`.
struct Home {
    server: S3Server,
    folder: TempDir,
}

fn home() -> Home {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path()).unwrap();
    server.make_bucket("data").unwrap();
    Home { server, folder }
}

/// Settings that pause for no time to speak of.
pub fn quick(server: &S3Server) -> BucketSettings {
    BucketSettings { endpoint: server.endpoint(), retry_pause_ms: 1, ..BucketSettings::default() }
}

/// The environment of one who may do everything.
pub fn keys(name: &str) -> Option<String> {
    match name {
        "AWS_ACCESS_KEY_ID" => Some(ACCESS_KEY.to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some(SECRET_KEY.to_owned()),
        _ => None,
    }
}

impl Home {
    fn settings(&self) -> BucketSettings {
        quick(&self.server)
    }

    fn open(&self, settings: &BucketSettings, address: &str) -> Bucket {
        Bucket::open(&Address::parse(address).unwrap(), settings, &keys).unwrap()
    }

    fn bucket(&self) -> Bucket {
        self.open(&self.settings(), "s3://data")
    }

    /// A bucket with these bytes as `key`, and the object; counts begin after that.
    fn with_object(&self, settings: &BucketSettings, bytes: &[u8]) -> (Bucket, ObjectInfo) {
        self.server.put("data", "key", bytes).unwrap();
        let bucket = self.open(settings, "s3://data");
        let object = bucket.head("key").unwrap();
        self.server.faults().reset_counts();
        (bucket, object)
    }
}

/// Bytes that differ everywhere.
pub fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn whole(bucket: &Bucket, object: &ObjectInfo) -> Vec<u8> {
    let mut bytes = Vec::new();
    bucket.open_stream(object).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Begins a read; what comes is received.
fn begin(bucket: &Bucket, object: &ObjectInfo, range: Range<u64>) -> Receiver<Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    let into = vec![0; (range.end - range.start) as usize];
    let done = move |part: Vec<u8>, result: Result<()>| sender.send(result.map(|()| part)).unwrap();
    bucket.begin_read(Ranged { object, range, into, done });
    receiver
}

#[track_caller]
fn assert_kind<T>(result: Result<T>, kind: &Kind) -> String {
    let error = result.err().unwrap();
    assert_eq!(error.kind(), kind, "{error}");
    error.to_string()
}
