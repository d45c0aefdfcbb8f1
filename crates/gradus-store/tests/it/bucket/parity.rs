//! One suite over a bucket and over a folder.

use super::{Home, assert_kind, begin, home, noise, whole};
use gradus_error::Kind;
use gradus_store::ObjectInfo;
use gradus_store::bucket::{Address, Bucket, BucketSettings};
use gradus_store::index::Objects;
use gradus_testbed::Refusal;
use std::io::{Read, Write};

/// A bucket and a folder, empty both, with parts as small as they may be.
fn places(home: &Home) -> [Bucket; 2] {
    let settings = BucketSettings { part_bytes: 5 << 20, ..home.settings() };
    let folder = home.folder.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    [home.open(&settings, "s3://data/sub"), home.open(&settings, folder.to_str().unwrap())]
}

fn address(bucket: &Bucket, key: &str) -> String {
    bucket.address().join(key).to_string()
}

#[test]
fn what_is_written_is_read_back() {
    let home = home();
    for bucket in places(&home) {
        let bytes = noise(300_000);
        let written = bucket.write("a/one.bin", &bytes).unwrap();
        assert_eq!((written.address.clone(), written.bytes), (address(&bucket, "a/one.bin"), 300_000));
        assert_eq!(bucket.head("a/one.bin").unwrap(), written);
        assert_eq!(bucket.find("a/one.bin").unwrap(), Some(written.clone()));
        let mut part = vec![0; 1000];
        bucket.read_at(&written, 123_456, &mut part).unwrap();
        assert_eq!(part, bytes[123_456..124_456]);
        let read = begin(&bucket, &written, 7..200_007);
        assert_eq!(read.recv().unwrap().unwrap(), bytes[7..200_007]);
        assert!(whole(&bucket, &written) == bytes);
        // Bytes that were read: a part by blocking, one by callback, the whole by a stream.
        assert_eq!(bucket.counters().bytes_read, 1000 + 200_000 + 300_000);
        bucket.delete("a/one.bin").unwrap();
        bucket.delete("a/one.bin").unwrap();
        assert_eq!(bucket.find("a/one.bin").unwrap(), None);
    }
}

#[test]
fn an_object_is_replaced_whole() {
    let home = home();
    for bucket in places(&home) {
        let old = bucket.write("key", b"old").unwrap();
        let mut writer = bucket.writer("key").unwrap();
        writer.write_all(b"new one").unwrap();
        assert_eq!(whole(&bucket, &old), b"old", "it was not finished");
        let new = writer.finish().unwrap();
        assert_eq!(whole(&bucket, &new), b"new one");
        assert_ne!(new.etag, old.etag);
    }
}

#[test]
fn a_large_object_is_written_in_parts_and_a_dropped_one_is_not_there() {
    let home = home();
    for bucket in places(&home) {
        let bytes = noise(12 << 20);
        let mut writer = bucket.writer("large").unwrap();
        bytes.chunks(1_000_003).for_each(|chunk| writer.write_all(chunk).unwrap());
        let written = writer.finish().unwrap();
        assert_eq!(written, bucket.head("large").unwrap());
        assert!(whole(&bucket, &written) == bytes);
        let mut dropped = bucket.writer("dropped").unwrap();
        dropped.write_all(&bytes).unwrap();
        drop(dropped);
        assert_eq!(bucket.list("").unwrap(), [written]);
    }
}

#[test]
fn exactly_one_part_and_exactly_two() {
    let home = home();
    for bucket in places(&home) {
        for parts in [1, 2] {
            let bytes = noise(parts * (5 << 20));
            let written = bucket.write("key", &bytes).unwrap();
            assert_eq!(written.bytes, bytes.len() as u64);
            assert!(whole(&bucket, &written) == bytes);
        }
    }
}

#[test]
fn an_empty_object_is_an_object() {
    let home = home();
    for bucket in places(&home) {
        let empty = bucket.write("empty", b"").unwrap();
        assert_eq!((empty.bytes, bucket.head("empty").unwrap()), (0, empty.clone()));
        assert_eq!(bucket.list("").unwrap(), std::slice::from_ref(&empty));
        assert_eq!(whole(&bucket, &empty), b"");
        bucket.read_at(&empty, 0, &mut []).unwrap();
        assert_eq!(begin(&bucket, &empty, 0..0).recv().unwrap().unwrap(), b"");
    }
}

#[test]
fn odd_keys_are_themselves() {
    let home = home();
    for bucket in places(&home) {
        let mut keys = [
            "a b/c d",
            "ü/日本.txt",
            "a%41b",
            "a%2Fb",
            "a+b",
            "a&b=c?d#e",
            "it's \"q\"",
            "~!$()*,;:@[]",
            ".hid",
            "a\\b",
        ];
        keys.sort_unstable();
        let written: Vec<ObjectInfo> =
            keys.iter().map(|key| bucket.write(key, key.as_bytes()).unwrap()).collect();
        for (key, object) in keys.iter().zip(&written) {
            assert_eq!(object.address, address(&bucket, key));
            assert_eq!(whole(&bucket, object), key.as_bytes());
            assert_eq!(bucket.head(key).unwrap(), *object);
        }
        assert_eq!(bucket.list("").unwrap(), written);
        keys.iter().for_each(|key| bucket.delete(key).unwrap());
        assert_eq!(bucket.list("").unwrap(), []);
    }
}

#[test]
fn keys_that_stores_disagree_on_are_refused() {
    let home = home();
    for bucket in places(&home) {
        for key in ["a//b", "../a", "a/./b", "/a", "a/", "a\nb", &"k".repeat(1025)] {
            assert_kind(bucket.write(key, b"x"), &Kind::Invalid);
            assert_kind(bucket.head(key), &Kind::Invalid);
            assert_kind(bucket.find(key), &Kind::Invalid);
            assert_kind(bucket.delete(key), &Kind::Invalid);
        }
    }
}

#[test]
fn listings_are_of_prefixes_and_sorted() {
    let home = home();
    for bucket in places(&home) {
        for key in ["b", "a/2", "a/10", "a/1", "a-", "ab/c/d"] {
            bucket.write(key, key.as_bytes()).unwrap();
        }
        let listed = |prefix: &str| -> Vec<String> {
            let begins = address(&bucket, "x").len() - 1;
            bucket
                .list(prefix)
                .unwrap()
                .into_iter()
                .map(|object| object.address[begins..].to_owned())
                .collect()
        };
        assert_eq!(listed(""), ["a-", "a/1", "a/10", "a/2", "ab/c/d", "b"]);
        assert_eq!(listed("a/1"), ["a/1", "a/10"]);
        assert_eq!(listed("a"), ["a-", "a/1", "a/10", "a/2", "ab/c/d"]);
        assert_eq!(listed("ab/c/"), ["ab/c/d"]);
        assert_eq!(listed("none/at/all"), [""; 0]);
    }
}

#[test]
fn marks_of_folders_are_no_objects_of_them() {
    let home = home();
    let bucket = home.bucket();
    ["marked", "marked/empty", "marked/full"].iter().for_each(|key| home.server.mark_folder("data", key));
    let inside = bucket.write("marked/full/a", b"a").unwrap();
    for prefix in ["", "marked", "marked/full", "marked/full/"] {
        let listed = bucket.list(prefix).unwrap();
        // What is empty cannot be told from an object of no bytes, save by asking for itself.
        let of_bytes: Vec<_> = listed.iter().filter(|object| object.bytes > 0).collect();
        assert_eq!(of_bytes, [&inside], "{prefix}");
        assert!(
            listed.iter().all(|object| object.address.ends_with("/a") || object.address.ends_with("/empty"))
        );
    }
    assert_eq!(bucket.list("marked/empty/").unwrap(), []);
    let objects: &dyn Objects = &bucket;
    assert_eq!(objects.list("s3://data/marked/empty").unwrap(), []);
    assert_eq!(objects.list("s3://data/marked/full").unwrap(), [inside]);
}

#[test]
fn what_is_missing_is_named() {
    let home = home();
    for bucket in places(&home) {
        let object = bucket.write("gone", b"bytes").unwrap();
        bucket.delete("gone").unwrap();
        let text = assert_kind(bucket.head("gone"), &Kind::Invalid);
        assert!(text.contains(&object.address), "{text}");
        let text = assert_kind(bucket.read_at(&object, 0, &mut [0; 5]), &Kind::Invalid);
        assert!(text.contains(&object.address), "{text}");
        assert_kind(begin(&bucket, &object, 0..5).recv().unwrap(), &Kind::Invalid);
    }
    let nowhere = home.folder.path().join("nowhere");
    for place in ["s3://nowhere", nowhere.to_str().unwrap()] {
        let bucket = home.open(&home.settings(), place);
        let text = assert_kind(bucket.list(""), &Kind::Invalid);
        assert!(text.contains("nowhere"), "{text}");
        assert_kind(bucket.head("key"), &Kind::Invalid);
    }
}

#[test]
fn a_bucket_that_is_not_there_is_no_empty_one() {
    let home = home();
    let bucket = home.open(&home.settings(), "s3://nowhere");
    for text in [
        assert_kind(bucket.find("key"), &Kind::Invalid),
        assert_kind(bucket.write("key", b"x"), &Kind::Invalid),
        assert_kind(bucket.list(""), &Kind::Invalid),
    ] {
        assert!(text.contains("`nowhere`"), "{text}");
    }
}

#[test]
fn a_changed_object_is_not_read() {
    let home = home();
    for bucket in places(&home) {
        let old = bucket.write("key", &noise(1000)).unwrap();
        let new = bucket.write("key", &noise(2000)).unwrap();
        let text = assert_kind(bucket.read_at(&old, 0, &mut [0; 10]), &Kind::Corrupt);
        assert!(text.contains(&old.address), "{text}");
        assert_kind(begin(&bucket, &old, 0..10).recv().unwrap(), &Kind::Corrupt);
        let mut stream = bucket.open_stream(&old).unwrap();
        let error = stream.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        assert!(stream.read(&mut [0; 10]).is_err(), "a stream that failed has not ended");
        assert!(whole(&bucket, &new) == noise(2000));
    }
}

#[test]
fn a_range_beyond_the_end_is_refused() {
    let home = home();
    for bucket in places(&home) {
        let object = bucket.write("key", &noise(1000)).unwrap();
        assert_kind(bucket.read_at(&object, 991, &mut [0; 10]), &Kind::Invalid);
        assert_kind(bucket.read_at(&object, u64::MAX, &mut [0; 10]), &Kind::Invalid);
        assert_kind(begin(&bucket, &object, 500..1001).recv().unwrap(), &Kind::Invalid);
        let longer = ObjectInfo { bytes: 2000, ..object };
        assert_kind(bucket.read_at(&longer, 1500, &mut [0; 10]), &Kind::Corrupt);
    }
}

#[test]
fn datasets_are_indexed_from_either() {
    let home = home();
    for bucket in places(&home) {
        for key in ["d/1", "d/e/2", "dd/3", "d/.4", "d/.git/5", "d/e/.6/7"] {
            bucket.write(key, key.as_bytes()).unwrap();
        }
        let objects: &dyn Objects = &bucket;
        let folder = address(&bucket, "d");
        let listed = objects.list(&folder).unwrap();
        let names: Vec<_> = listed.iter().map(|object| &object.address[folder.len()..]).collect();
        assert_eq!(names, ["/1", "/e/2"]);
        assert_eq!(objects.list(&listed[0].address).unwrap(), listed[..1]);
        // One that is named itself is not passed over, nor is what is in a hidden folder that is.
        for (named, name) in [("d/.4", ""), ("d/.git", "/5")] {
            let named = address(&bucket, named);
            let listed = objects.list(&named).unwrap();
            assert!(matches!(&listed[..], [only] if only.address == named.clone() + name), "{listed:?}");
        }
        let mut text = String::new();
        objects.open(&listed[1]).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "d/e/2");
    }
}

#[test]
fn an_object_that_is_named_is_found_by_whoever_may_not_list() {
    let home = home();
    let [remote, _] = places(&home);
    let written = remote.write("d/1", b"one").unwrap();
    let objects: &dyn Objects = &remote;
    let refuse_the_listing = || {
        home.server.faults().set(|plan| (plan.refuse_next, plan.refusal) = (1, Refusal::AccessDenied));
    };
    refuse_the_listing();
    assert_eq!(objects.list(&written.address).unwrap(), [written]);
    refuse_the_listing();
    assert_kind(objects.list(&address(&remote, "d")), &Kind::Denied);
}

#[test]
fn a_folder_that_is_a_file_is_refused() {
    let home = home();
    let [_, folder] = places(&home);
    folder.write("key", b"x").unwrap();
    let inside = home.open(&home.settings(), folder.address().join("key").to_string().as_str());
    assert_kind(inside.list(""), &Kind::Invalid);
    assert_eq!(inside.head("").unwrap().bytes, 1, "the address itself");
    assert_kind(folder.writer(""), &Kind::Invalid);
    assert_eq!(Address::parse("s3://data/k").unwrap().parent().unwrap().1, "k");
}
