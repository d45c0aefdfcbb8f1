//! Shards of MDS: described by their tables, which are read while the index is.

use crate::index::{address, bucket, gzip, indexed, indexed_with, kind_of, named, samples};
use gradus_error::Kind;
use gradus_store::ObjectInfo;
use gradus_store::bucket::Bucket;
use gradus_store::index::{Index, IndexSettings, Objects};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// Longer than any test takes.
const GENEROUS: Duration = Duration::from_secs(60);

/// A shard of samples of a text and two numbers of eight bytes together, as the package writes it.
fn mosaic_shard(texts: &[&str]) -> Vec<u8> {
    let config = br#"{"column_names": ["pair", "text"]}"#;
    let encode =
        |text: &&str| [&(text.len() as u32).to_le_bytes(), &[9u8; 8] as &[u8], text.as_bytes()].concat();
    let encoded: Vec<Vec<u8>> = texts.iter().map(encode).collect();
    let mut at = 4 * (texts.len() as u32 + 2) + config.len() as u32;
    let mut shard = (texts.len() as u32).to_le_bytes().to_vec();
    shard.extend(at.to_le_bytes());
    for sample in &encoded {
        at += sample.len() as u32;
        shard.extend(at.to_le_bytes());
    }
    [shard, config.to_vec(), encoded.concat()].concat()
}

fn mosaic_entry(number: usize, shard: &[u8], samples: usize, packed: Option<(&str, usize)>) -> String {
    let zip = packed.map_or("null".to_owned(), |(name, bytes)| {
        format!(r#"{{"basename": "shard.{number}.mds.{name}", "bytes": {bytes}, "hashes": {{}}}}"#)
    });
    let compression = packed.map_or("null".to_owned(), |(name, _)| format!("\"{name}:7\""));
    format!(
        r#"{{"version": 2, "format": "mds", "column_names": ["pair", "text"], "column_encodings": ["ndarray:uint32:2", "str"],
        "column_sizes": [8, null], "compression": {compression}, "hashes": [], "samples": {samples}, "size_limit": 1,
        "raw_data": {{"basename": "shard.{number}.mds", "bytes": {}, "hashes": {{}}}}, "zip_data": {zip}}}"#,
        shard.len()
    )
}

fn write_mosaic(folder: &Path, shards: &[&[&str]], packed: Option<&str>) {
    let mut entries = Vec::new();
    for (number, texts) in shards.iter().enumerate() {
        let shard = mosaic_shard(texts);
        let data = match packed {
            Some("zstd") => zstd::encode_all(&*shard, 3).unwrap(),
            Some(_) => gzip(&shard),
            None => shard.clone(),
        };
        let ending = packed.map_or(String::new(), |name| format!(".{name}"));
        std::fs::write(folder.join(format!("shard.{number}.mds{ending}")), &data).unwrap();
        entries.push(mosaic_entry(number, &shard, texts.len(), packed.map(|name| (name, data.len()))));
    }
    let index = format!(r#"{{"version": 2, "shards": [{}]}}"#, entries.join(","));
    std::fs::write(folder.join("index.json"), index).unwrap();
}

#[test]
fn shards_of_mosaic_are_found_by_their_tables() {
    let texts: [&[&str]; 3] = [&["one", "", "three"], &["größer"], &["five", "six"]];
    for packed in [None, Some("zstd"), Some("gz")] {
        let folder = tempfile::tempdir().unwrap();
        write_mosaic(folder.path(), &texts, packed);
        let index = indexed(folder.path());
        let all: Vec<_> = samples(&index).iter().map(|sample| named(&index, sample)).collect();
        let expected: Vec<_> = texts
            .concat()
            .iter()
            .map(|text| vec![("pair".to_owned(), vec![9; 8]), ("text".to_owned(), text.as_bytes().to_vec())])
            .collect();
        assert_eq!(all, expected, "{packed:?}");
        assert_eq!(index.sample(0).crc32c.is_some(), packed.is_some());
        let settings = IndexSettings { checksums: true, ..IndexSettings::default() };
        let checked = indexed_with(folder.path(), &settings);
        assert!((0..6).all(|number| checked.sample(number).crc32c.is_some()));
        assert_eq!(samples(&checked), samples(&index));
    }
}

#[test]
fn shards_that_differ_from_their_index_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.0.mds");
    let index = folder.path().join("index.json");
    let restore = || write_mosaic(folder.path(), &[&["one", "two"]], None);
    restore();
    let shard = std::fs::read(&path).unwrap();
    // The count, the start of the first, the end of the last.
    for (at, kind) in [(0, Kind::Corrupt), (4, Kind::Corrupt), (12, Kind::Corrupt)] {
        let mut altered = shard.clone();
        altered[at] = 250;
        std::fs::write(&path, altered).unwrap();
        assert_eq!(kind_of(folder.path()), kind, "{at}");
    }
    std::fs::write(&path, &shard[..shard.len() - 1]).unwrap();
    assert_eq!(kind_of(folder.path()), Kind::Corrupt);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(kind_of(folder.path()), Kind::Invalid);
    restore();
    let text = std::fs::read_to_string(&index).unwrap();
    let odd = [
        ("\"version\": 2", "\"version\": 3"),
        ("mds\",", "xsv\","),
        ("\"samples\": 2", "\"samples\": 4000000000"),
    ];
    for (from, to) in odd {
        std::fs::write(&index, text.replacen(from, to, 1)).unwrap();
        assert_eq!(kind_of(folder.path()), Kind::Invalid, "{to}");
    }
}

/// A bucket whose reads are looked at before they are made, with the number of bytes that are wanted.
struct Watched<F> {
    bucket: Bucket,
    look: F,
}

impl<F: Fn(&ObjectInfo, usize) -> gradus_error::Result<()> + Send + Sync> Objects for Watched<F> {
    fn list(&self, prefix: &str) -> gradus_error::Result<Vec<ObjectInfo>> {
        Objects::list(&self.bucket, prefix)
    }

    fn open(&self, object: &ObjectInfo) -> gradus_error::Result<Box<dyn Read + Send>> {
        Objects::open(&self.bucket, object)
    }

    fn read_at(&self, object: &ObjectInfo, offset: u64, into: &mut [u8]) -> gradus_error::Result<()> {
        (self.look)(object, into.len())?;
        Objects::read_at(&self.bucket, object, offset, into)
    }
}

#[test]
fn tables_are_read_while_the_index_is_and_long_ones_once_more() {
    let folder = tempfile::tempdir().unwrap();
    // A table of 20 KB.
    let many = vec!["x"; 5000];
    write_mosaic(folder.path(), &[&["one", "two"], &many, &["three"]], None);
    let (bucket, prefix) = (bucket(folder.path()), address(folder.path()).to_string());
    let (counts, asked) = (Mutex::new(BTreeMap::new()), Condvar::new());
    // Whoever reads the index waits until all others were asked for.
    let look = |object: &ObjectInfo, _: usize| {
        let mut reads = counts.lock().unwrap();
        *reads.entry(object.name().to_owned()).or_default() += 1;
        asked.notify_all();
        if object.name() == "index.json" {
            let waits = |reads: &mut BTreeMap<String, u64>| reads.len() < 4;
            let (reads, waited) = asked.wait_timeout_while(reads, GENEROUS, waits).unwrap();
            assert!(!waited.timed_out(), "only {reads:?} were asked for while the index is read");
        }
        Ok(())
    };
    let watched = Watched { bucket, look };
    let index = Index::build(&watched, &prefix, &IndexSettings::default(), &|_| ()).unwrap();
    assert_eq!(index.samples(), 5003);
    let reads: Vec<(String, u64)> = counts.into_inner().unwrap().into_iter().collect();
    let expected = [("index.json", 1), ("shard.0.mds", 1), ("shard.1.mds", 2), ("shard.2.mds", 1)];
    assert_eq!(reads, expected.map(|(name, count)| (name.to_owned(), count)));
    assert_eq!(index, indexed(folder.path()));
}

#[test]
fn heads_that_cannot_be_read_are_given_up_and_tables_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let text = "x".repeat(5000);
    let samples: [&str; 1] = [&text];
    let shards: Vec<&[&str]> = vec![&samples; 200];
    write_mosaic(folder.path(), &shards, None);
    let (bucket, prefix) = (bucket(folder.path()), address(folder.path()).to_string());
    let failed = AtomicUsize::new(0);
    // Heads are long here, and tables short.
    let look = |object: &ObjectInfo, wanted: usize| {
        if !object.name().ends_with(".mds") || wanted <= 1000 {
            return Ok(());
        }
        failed.fetch_add(1, Ordering::Relaxed);
        Err(gradus_error::Error::unavailable("the store is down"))
    };
    let index = Index::build(&Watched { bucket, look }, &prefix, &IndexSettings::default(), &|_| ()).unwrap();
    assert_eq!(index.samples(), 200);
    // Those that were under way together when the first failed.
    let failed = failed.into_inner();
    assert!((1..=64).contains(&failed), "{failed} of 200 heads were asked for in vain");
}
