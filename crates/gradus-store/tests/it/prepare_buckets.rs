//! Corpora read from a bucket, and data prepared into one: the same shards as of files and folders, or an error.

use super::bucket::{keys, quick};
use super::packed::{gzip, lines, texts, write_parquet, zstd};
use super::settings;
use gradus_error::{Error, Kind, Result};
use gradus_store::{
    Address, Bucket, BucketSettings, Dataset, Manifest, PreparePhase, PrepareProgress, PrepareSettings,
    Prepared, prepare_with_buckets,
};
use gradus_testbed::{Refusal, S3Server};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The same corpus in a folder and in a bucket.
struct Home {
    server: S3Server,
    folder: TempDir,
}

impl Home {
    fn new() -> Self {
        let (folder, server) = (tempfile::tempdir().unwrap(), S3Server::with_bucket("data").unwrap());
        let home = Self { server, folder };
        let (text, lines) = (texts().concat(), lines(&texts()));
        home.put("corpus/b/a.jsonl", lines.as_bytes());
        home.put("corpus/b/a.jsonl.gz", &gzip(lines.as_bytes()));
        // Before `b/` in the order of addresses, after it in the order of folders.
        home.put("corpus/b-2.txt", text.as_bytes());
        home.put("corpus/c.txt.zst", &zstd(text.as_bytes()));
        home.put("corpus/README", b"a text without an ending\n");
        home.put("corpus/.hidden.txt", b"hidden\n");
        home.put("corpus/empty.txt", b"");
        home.put("corpus/photo", b"\x89PNG\0\0");
        write_parquet(&home.folder.path().join("corpus/d.parquet"), &texts());
        home.put("corpus/d.parquet", &fs::read(home.folder.path().join("corpus/d.parquet")).unwrap());
        home
    }

    /// Puts a file into the folder and the bucket.
    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self.server.put("data", name, bytes).unwrap();
    }

    fn open(&self, address: &Address) -> Result<Bucket> {
        // Enough attempts that even many errors are never all that there is.
        Bucket::open(address, &BucketSettings { retry_attempts: 100, ..quick(&self.server) }, &keys)
    }

    fn bucket(&self) -> Bucket {
        self.open(&Address::parse("s3://data").unwrap()).unwrap()
    }

    /// Settings for inputs of the bucket, or of the folder.
    fn settings(&self, input: &str, prepared: &str) -> PrepareSettings {
        let place = |text: &str| if text.contains("://") { text.to_owned() } else { self.path(text) };
        PrepareSettings {
            input: vec![place(input)],
            prepared: place(prepared),
            tokenizer_sample_bytes: 100_000,
            shard_tokens: 100_000,
            ..settings(self.folder.path(), "")
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn try_prepare(&self, settings: &PrepareSettings) -> Result<Prepared> {
        prepare_with_buckets(settings, &|address| self.open(address), &mut |_| ())
    }

    fn prepare(&self, input: &str, prepared: &str) -> Prepared {
        self.try_prepare(&self.settings(input, prepared)).unwrap()
    }

    fn fails(&self, settings: &PrepareSettings) -> Error {
        self.try_prepare(settings).unwrap_err()
    }

    fn find(&self, address: &str) -> Result<Dataset> {
        Dataset::find(&self.open(&Address::parse(address).unwrap())?, address)
    }

    /// Requests that change something.
    fn writes(&self) -> u64 {
        let counts = self.server.faults().counts();
        ["PUT", "POST", "DELETE"].iter().map(|method| counts.of(method)).sum()
    }

    fn names_at(&self, prefix: &str) -> Vec<String> {
        let listed = self.bucket().list(prefix).unwrap();
        listed.into_iter().map(|object| object.address).collect()
    }
}

/// Digests of everything that was prepared but the settings.
fn content(manifest: &Manifest) -> Vec<String> {
    let of_shard = manifest.shards().flat_map(|shard| [&shard.sha256, &shard.document_starts_sha256]);
    of_shard.chain([&manifest.tokenizer_sha256]).cloned().collect()
}

#[test]
fn a_bucket_gives_the_shards_that_files_give() {
    let home = Home::new();
    let inputs = ["corpus", "corpus/b/*.jsonl*", "corpus/b*.txt", "corpus/**/*.gz", "corpus/d.parquet"];
    for (number, input) in inputs.into_iter().enumerate() {
        let files = home.prepare(input, &format!("files-{number}"));
        let address = format!("s3://data/{input}");
        let objects = home.prepare(&address, &format!("objects-{number}"));
        assert_eq!(content(&objects.manifest), content(&files.manifest), "{input}");
        assert_eq!(objects.manifest.train.tokens, files.manifest.train.tokens);
        assert!(!home.prepare(&address, &format!("objects-{number}")).changed, "{input}");
        let with_scheme = home.prepare(&format!("file://{}", home.path(input)), &format!("files-{number}"));
        assert!(!with_scheme.changed, "{input}");
    }
}

#[test]
fn an_object_that_changes_is_prepared_again() {
    let home = Home::new();
    let first = home.prepare("s3://data/corpus/b-2.txt", "prepared");
    home.put("corpus/b-2.txt", texts().concat().replace("says", "said").as_bytes());
    let second = home.prepare("s3://data/corpus/b-2.txt", "prepared");
    assert!(second.changed);
    assert_ne!(content(&first.manifest), content(&second.manifest));
}

#[test]
fn marks_of_folders_change_nothing() {
    let home = Home::new();
    let expected = content(&home.prepare("s3://data/corpus", "without").manifest);
    ["corpus", "corpus/b", "corpus/empty", "empty", "set", "set/.tmp"]
        .iter()
        .for_each(|key| home.server.mark_folder("data", key));
    assert_eq!(content(&home.prepare("s3://data/corpus", "with").manifest), expected);
    let error = home.fails(&home.settings("s3://data/empty", "p"));
    assert_eq!(*error.kind(), Kind::Invalid, "{error}");
    assert_eq!(content(&home.prepare("corpus", "s3://data/set").manifest), expected);
    assert!(!home.prepare("corpus", "s3://data/set").changed);
}

#[test]
fn a_part_of_a_corpus_is_the_same_part() {
    let home = Home::new();
    let some = |input: &str, prepared: &str| {
        let settings = PrepareSettings {
            limit_bytes: 40_000,
            tokenizer_sample_bytes: 1,
            held_out: 0.01,
            ..home.settings(input, prepared)
        };
        content(&home.try_prepare(&settings).unwrap().manifest)
    };
    for name in ["corpus/b-2.txt", "corpus/c.txt.zst", "corpus/b/a.jsonl", "corpus/d.parquet"] {
        assert_eq!(some(&format!("s3://data/{name}"), "objects"), some(name, "files"), "{name}");
    }
}

#[test]
fn data_prepared_into_a_bucket_are_those_of_a_folder_and_are_found_again() {
    let home = Home::new();
    let folder = home.prepare("corpus", "prepared");
    let settings = home.settings("corpus", "s3://data/set");
    let mut phases = Vec::new();
    let mut observe = |progress: PrepareProgress| phases.push(progress);
    let bucket = prepare_with_buckets(&settings, &|address| home.open(address), &mut observe).unwrap();
    assert!(bucket.changed && bucket.folder == Path::new("s3://data/set"));
    assert_eq!(content(&bucket.manifest), content(&folder.manifest));
    let last = phases.last().unwrap();
    assert!(last.phase == PreparePhase::Uploading && last.done_bytes == last.total_bytes);
    for entry in fs::read_dir(home.folder.path().join("prepared")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let object = home.bucket().head(&format!("set/{name}")).unwrap();
        let mut bytes = vec![0; object.bytes as usize];
        home.bucket().read_at(&object, 0, &mut bytes).unwrap();
        let same = bytes == fs::read(home.folder.path().join("prepared").join(&name)).unwrap();
        assert_eq!(same, name != "manifest.json", "{name}");
    }
    assert_eq!(home.find("s3://data/set").unwrap().digest(), Dataset::open(&folder.folder).unwrap().digest());
    home.server.faults().reset_counts();
    assert!(!home.prepare("corpus", "s3://data/set/").changed);
    assert_eq!(home.writes(), 0);
}

#[test]
fn what_is_no_longer_named_goes_and_what_is_lost_is_made_again() {
    let home = Home::new();
    let many = PrepareSettings { shard_tokens: 2000, ..home.settings("corpus", "s3://data/set") };
    home.try_prepare(&many).unwrap();
    let before = home.names_at("set/").len();
    home.server.put("data", "set/gradus-index.parquet", b"of the former").unwrap();
    let few = home.prepare("corpus", "s3://data/set");
    let after = home.names_at("set/");
    assert!(after.len() < before && few.manifest.train.shards.len() < 10);
    assert!(after.iter().all(|name| !name.ends_with("parquet")));
    for lost in ["train-00000.bin", "held_out-00000.documents.json", "tokenizer.json", "manifest.json"] {
        home.bucket().delete(&format!("set/{lost}")).unwrap();
        let again = home.prepare("corpus", "s3://data/set");
        assert!(again.changed, "{lost}");
        assert_eq!(home.names_at("set/"), after, "{lost}");
    }
    home.server.put("data", "set/train-00000.bin", b"short").unwrap();
    assert!(home.prepare("corpus", "s3://data/set").changed);
}

#[test]
fn an_upload_that_ends_early_leaves_no_manifest_and_is_made_again() {
    let home = Home::new();
    let expected = content(&home.prepare("corpus", "s3://data/set").manifest);
    let other = PrepareSettings { seed: 5, ..home.settings("corpus", "s3://data/set") };
    let faults = home.server.faults();
    let mut cut = |progress: PrepareProgress| {
        // From here on the bucket says no, after the former manifest and some shards have gone.
        if progress.phase == PreparePhase::Uploading && progress.done_bytes > 0 {
            faults.set(|plan| (plan.refused, plan.refusal) = (1.0, Refusal::AccessDenied));
        }
    };
    let error = prepare_with_buckets(&other, &|address| home.open(address), &mut cut).unwrap_err();
    assert_eq!(*error.kind(), Kind::Denied, "{error}");
    faults.set(|plan| plan.refused = 0.0);
    assert_eq!(*home.find("s3://data/set").err().unwrap().kind(), Kind::Invalid);
    let again = home.prepare("corpus", "s3://data/set");
    assert!(again.changed);
    assert_eq!(content(&again.manifest), expected);
}

#[test]
fn another_that_writes_among_ours_is_noticed() {
    let home = Home::new();
    let mut intrude = |progress: PrepareProgress| {
        // A shard of ours is replaced before the manifest is written; the manifest's own bytes come last.
        if progress.phase == PreparePhase::Uploading && progress.done_bytes > progress.total_bytes / 2 {
            home.server.put("data", "set/held_out-00000.bin", b"another's").unwrap();
        }
    };
    let settings = home.settings("corpus", "s3://data/set");
    let error = prepare_with_buckets(&settings, &|address| home.open(address), &mut intrude).unwrap_err();
    assert_eq!(*error.kind(), Kind::Unavailable, "{error}");
    assert_eq!(*home.find("s3://data/set").err().unwrap().kind(), Kind::Invalid);
}

#[test]
fn another_that_begins_while_the_manifest_is_written_is_noticed() {
    let home = Home::new();
    let settings = home.settings("corpus", "s3://data/set");
    for replaced in ["set/preparing", "set/train-00000.bin"] {
        let mut intrude = |progress: PrepareProgress| {
            // All shards are as they were written; of the manifest's own bytes, which come last, no object is made yet.
            if progress.phase == PreparePhase::Uploading && progress.done_bytes == progress.total_bytes {
                home.server.put("data", replaced, b"another's").unwrap();
            }
        };
        let error = prepare_with_buckets(&settings, &|address| home.open(address), &mut intrude).unwrap_err();
        assert_eq!(*error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains(replaced), "{error}");
        assert_eq!(*home.find("s3://data/set").err().unwrap().kind(), Kind::Invalid, "{replaced}");
    }
    assert!(home.prepare("corpus", "s3://data/set").changed);
    assert!(!home.names_at("set/").contains(&"s3://data/set/preparing".to_owned()));
}

#[test]
fn errors_of_the_bucket_change_nothing() {
    let home = Home::new();
    let expected = content(&home.prepare("corpus", "files").manifest);
    for (number, share) in [0.01, 0.3].into_iter().enumerate() {
        home.server
            .faults()
            .set(|plan| (plan.refused, plan.cut, plan.truncated) = (share, share / 4.0, share / 4.0));
        let target = format!("s3://data/set-{number}");
        let prepared = home.prepare("s3://data/corpus", &target);
        assert_eq!(content(&prepared.manifest), expected, "{share}");
        assert!(!home.prepare("s3://data/corpus", &target).changed);
    }
}

#[test]
fn an_object_that_changes_while_it_is_read_is_an_error() {
    let home = Home::new();
    for input in ["b-2.txt", "c.txt.zst", "b/a.jsonl.gz", "d.parquet"] {
        let key = format!("corpus/{input}");
        let mut change = |progress: PrepareProgress| {
            if progress.phase == PreparePhase::Tokenizer {
                home.server.put("data", &key, b"something else\n").unwrap();
            }
        };
        let settings = home.settings(&format!("s3://data/{key}"), "prepared");
        let error = prepare_with_buckets(&settings, &|address| home.open(address), &mut change).unwrap_err();
        assert_eq!(*error.kind(), Kind::Corrupt, "{input}: {error}");
        assert!(!home.folder.path().join("prepared").exists(), "{input}");
    }
}

#[test]
fn what_cannot_be_read_or_written_is_refused() {
    let home = Home::new();
    home.put("tokens/train.bin", &[1, 0, 2, 0]);
    home.put("others/photo.jpg", b"dear");
    home.put("packed/a.csv.gz", &gzip(b"a,b\n"));
    home.put("squeezed/a.txt", b"text");
    home.put("squeezed/b.txt.lz4", b"\0");
    home.put("file", b"an object");
    let invalid = |input: &str, prepared: &str, culprit: &str| {
        let error = home.fails(&home.settings(input, prepared));
        assert_eq!(*error.kind(), Kind::Invalid, "{input} {prepared}: {error}");
        assert!(error.to_string().contains(culprit), "{culprit:?} is not in {error}");
    };
    invalid("s3://data/nothing", "p", "s3://data/nothing");
    invalid("s3://data/corpus/*.csv", "p", "s3://data/corpus/*.csv");
    invalid("s3://data/corpus/***", "p", "s3://data/corpus/***");
    invalid("s3://none/corpus", "p", "none");
    invalid("gs://data/corpus", "p", "gs://");
    invalid("s3://data/tokens", "p", "s3://data/tokens/train.bin");
    invalid("s3://data/tokens/train.bin", "p", "s3://data/tokens/train.bin");
    invalid("s3://data/packed/*", "p", "s3://data/packed/a.csv.gz");
    invalid("s3://data/squeezed", "p", "s3://data/squeezed/b.txt.lz4");
    invalid("tokens/train.bin", "s3://data/set", "train.bin");
    invalid("corpus", "s3://data/others", "photo.jpg");
    invalid("corpus", "s3://data", "corpus/");
    invalid("corpus", "s3://data/file", "s3://data/file");
    invalid("corpus", "gs://data/set", "gs://");
    assert!(home.names_at("set").is_empty());
    let without_buckets = home.settings("s3://data/corpus", "p");
    let error = gradus_store::prepare(&without_buckets, &mut |_| ()).unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid);
    let wrong = |name: &str| keys(name).map(|value| format!("{value}x"));
    let open = |address: &Address| Bucket::open(address, &quick(&home.server), &wrong);
    for (input, prepared) in [("s3://data/corpus", "p"), ("corpus", "s3://data/set")] {
        let settings = home.settings(input, prepared);
        let error = prepare_with_buckets(&settings, &open, &mut |_| ()).unwrap_err();
        assert_eq!(*error.kind(), Kind::Denied, "{error}");
    }
}
