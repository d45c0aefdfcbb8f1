//! Datasets as others wrote them: described, and every sample read.

use crate::{Target, files};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gradus_error::{Error, Result};
use gradus_store::index::{Decoder, Format, Index, IndexSettings, Objects};
use gradus_store::{MANIFEST, ObjectInfo};
use std::io::{Cursor, Read};

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("dataset-tar", |data| reads("a.tar", data, ""), || vec![tar()]),
    ("dataset-lines", |data| reads("a.jsonl", data, ""), || vec![LINES.to_vec()]),
    ("dataset-lines-gzip", |data| reads("a.jsonl.gz", data, ""), || vec![gzip()]),
    ("dataset-lines-zstd", |data| reads("a.jsonl.zst", data, ""), || vec![zstd()]),
    ("dataset-mosaic-index", mosaic_index, || vec![mosaic_json(shard().len()).into_bytes()]),
    ("dataset-mosaic-shard", mosaic_shard, || vec![shard()]),
    ("dataset-parquet", parquet, || vec![index_file()]),
    ("dataset-tokens", tokens, || vec![manifest()]),
    ("dataset-index", index, || vec![index_file()]),
];

/// Samples that are read of one input: neighbours share units that are decoded anew when they do not stay.
const MOST_SAMPLES: u64 = 200;

/// A shard of prepared tokens.
const TOKENS: &str = "train-00000.bin";

const LINES: &[u8] = b"{\"text\": \"a bright cold day\"}\n\n{\"text\": \"and the clocks\"}\n";

/// Objects in memory, directly at `m:/`.
struct Memory(Vec<(ObjectInfo, Vec<u8>)>);

impl Memory {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let object = |(name, bytes): &(&str, &[u8])| {
            let address = format!("m:/{name}");
            (ObjectInfo { address, bytes: bytes.len() as u64, etag: "1".to_owned() }, bytes.to_vec())
        };
        Self(files.iter().map(object).collect())
    }

    fn bytes(&self, object: &ObjectInfo) -> Result<&[u8]> {
        let found = self.0.iter().find(|(known, _)| known.address == object.address);
        found.map(|(_, bytes)| bytes.as_slice()).ok_or_else(|| Error::invalid("there is no such object"))
    }
}

impl Objects for Memory {
    fn list(&self, _: &str) -> Result<Vec<ObjectInfo>> {
        Ok(self.0.iter().map(|(object, _)| object.clone()).collect())
    }

    fn open(&self, object: &ObjectInfo) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(Cursor::new(self.bytes(object)?.to_vec())))
    }

    fn read_at(&self, object: &ObjectInfo, offset: u64, into: &mut [u8]) -> Result<()> {
        let bytes = self.bytes(object)?.get(offset as usize..).and_then(|bytes| bytes.get(..into.len()));
        into.copy_from_slice(bytes.ok_or_else(|| Error::corrupt("the object ends before"))?);
        Ok(())
    }
}

fn build(objects: &Memory, text_column: &str) -> Result<Index> {
    let settings =
        IndexSettings { text_column: text_column.to_owned(), threads: 1, ..IndexSettings::default() };
    Index::build(objects, "m:", &settings, &|_| ())
}

/// Whether a dataset of one file is one, and its samples can be read.
fn reads(name: &str, data: &[u8], text_column: &str) -> bool {
    let objects = Memory::new(&[(name, data)]);
    build(&objects, text_column).is_ok_and(|index| samples_are_whole(&index, &objects))
}

/// Whether all samples can be read: where one cannot, it is refused and nothing worse.
fn samples_are_whole(index: &Index, objects: &Memory) -> bool {
    let mut decoder = Decoder::new(1 << 20);
    let mut whole = true;
    for number in 0..index.samples().min(MOST_SAMPLES) {
        let sample = read(index, number, objects, &mut decoder);
        let fields = sample.and_then(|sample| index.fields(&sample));
        whole &= fields.is_ok_and(|fields| !fields.is_empty());
    }
    let _ = index.sizes();
    for (number, object) in index.objects().iter().enumerate() {
        let all = index.samples_in(number as u32, 0..object.bytes);
        assert!(all.end <= index.samples());
    }
    whole
}

fn read(index: &Index, number: u64, objects: &Memory, decoder: &mut Decoder) -> Result<Vec<u8>> {
    let place = index.sample(number);
    let object = &index.objects()[place.object as usize];
    assert!(place.unit.start <= place.unit.end && place.unit.end <= object.bytes);
    assert!(place.offset + place.len <= place.unit_bytes);
    if let Some(sample) = decoder.held(&place, object)? {
        return Ok(sample.to_vec());
    }
    let Some(unit) = objects.bytes(object)?.get(place.unit.start as usize..place.unit.end as usize) else {
        return Err(Error::corrupt("the object has changed"));
    };
    decoder.sample(&place, object, unit.to_vec().into()).map(|sample| sample.to_vec())
}

// Archives and lines.

/// An archive of one sample of two entries.
fn tar() -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, bytes) in [("1.txt", b"a bright cold day" as &[u8]), ("1.cls", b"7")] {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend(header);
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Two members that share a line.
fn gzip() -> Vec<u8> {
    STANDARD.decode(GZIP).expect("it was written here")
}

const GZIP: &str = "H4sIAAAAAAACA6tWKkmtKFGyUlBKVEgqykzPKFFIzs9JUUhJrFSq5aoGygIAl8zFriIAAAAfiwgAAAAAAAIDqyhRslJQSsxLUSjJSFVIzslPzi5WquUCAM6wTHYXAAAA";

/// A frame of one block that is not compressed (RFC 8878, 3.1.1).
fn zstd() -> Vec<u8> {
    let size = LINES.len() as u8;
    let header = [0x28, 0xb5, 0x2f, 0xfd, 0x20, size, size << 3 | 1, size >> 5, 0];
    [&header as &[u8], LINES].concat()
}

// MDS.

fn shard() -> Vec<u8> {
    let words: [u32; 4] = [2, 16, 21, 28];
    let head: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    [&head as &[u8], &1u32.to_le_bytes(), b"a", &3u32.to_le_bytes(), b"day"].concat()
}

fn mosaic_json(bytes: usize) -> String {
    format!(
        r#"{{"version": 2, "shards": [{{"version": 2, "format": "mds", "column_names": ["text"], "column_encodings": ["str"],
        "column_sizes": [null], "compression": null, "samples": 2, "zip_data": null,
        "raw_data": {{"basename": "shard", "bytes": {bytes}, "hashes": {{}}}}}}]}}"#
    )
}

fn mosaic_index(data: &[u8]) -> bool {
    let objects = Memory::new(&[("index.json", data), ("shard", &shard())]);
    build(&objects, "").is_ok_and(|index| samples_are_whole(&index, &objects))
}

fn mosaic_shard(data: &[u8]) -> bool {
    let objects = Memory::new(&[("index.json", mosaic_json(data.len()).as_bytes()), ("shard", data)]);
    build(&objects, "").is_ok_and(|index| samples_are_whole(&index, &objects))
}

// Prepared tokens.

/// A manifest and a shard, as preparing leaves them.
fn prepared() -> (Vec<u8>, Vec<u8>) {
    let read = |name| std::fs::read(files::data().join(name)).expect("the folder was written whole");
    (read(MANIFEST), read(TOKENS))
}

fn manifest() -> Vec<u8> {
    prepared().0
}

fn tokens(data: &[u8]) -> bool {
    let objects = Memory::new(&[(MANIFEST, data), (TOKENS, &prepared().1)]);
    build(&objects, "").is_ok_and(|index| samples_are_whole(&index, &objects))
}

// Parquet, of which an index is an example.

fn index_file() -> Vec<u8> {
    let mut bytes = Vec::new();
    let index = build(&Memory::new(&[("a.jsonl.gz", &gzip())]), "").expect("lines can be indexed");
    index.write_to(&mut bytes).expect("memory can be written to");
    bytes
}

fn parquet(data: &[u8]) -> bool {
    // A column whose values are all there, and one whose values may be missing.
    [reads("a.parquet", data, "address"), reads("a.parquet", data, "key")] == [true; 2]
}

fn index(data: &[u8]) -> bool {
    let objects = Memory::new(&[("index.parquet", data), ("a.jsonl.gz", &gzip())]);
    let file = &objects.0[0].0;
    let Ok(index) = Index::read_object(&objects, file) else { return false };
    *index.format() == Format::JsonLines && samples_are_whole(&index, &objects)
}
