//! `gradus dataset` and `gradus cache` by hand: folders and buckets are described, shown, read and refused.

use gradus_testbed::{ACCESS_KEY, S3Server, SECRET_KEY};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const LINES: &str = "{\"text\": \"a bright cold day\"}\n\n{\"text\": \"and the clocks\"}\n";
const INDEX: &str = "gradus-index.parquet";

/// A folder, and a bucket `data` beside it.
struct Home {
    folder: TempDir,
    server: S3Server,
}

impl Home {
    /// Two files of two samples each, in `set` of both.
    fn new() -> Self {
        let (folder, server) = (tempfile::tempdir().unwrap(), S3Server::with_bucket("data").unwrap());
        fs::create_dir(folder.path().join("set")).unwrap();
        let home = Self { folder, server };
        home.put("a.jsonl", LINES);
        home.put("b.jsonl", LINES);
        home
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of `set`.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("set").join(name), text).unwrap();
        self.server.put("data", &format!("set/{name}"), text.as_bytes()).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradus"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
            .env("AWS_ENDPOINT_URL", self.server.endpoint())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env_remove("AWS_PROFILE");
        command.output().unwrap()
    }

    /// What a command that ends well prints.
    fn said(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is said of input that has to be mended.
    fn refused(&self, arguments: &[&str], code: i32, culprit: &str) {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(culprit), "{arguments:?}: {culprit:?} is not named in: {text}");
        assert_eq!(text.matches("error: ").count(), 1, "{arguments:?}: {text}");
    }

    /// Reads all samples of a dataset once: what is told of them, and of what was logged.
    fn read(&self, source: &str, more: &[&str]) -> (Value, String) {
        let output = self.run(&[&["bench", "dataset", "--epochs", "1", "--source", source], more].concat());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{log}");
        (serde_json::from_slice(&output.stdout).unwrap(), log)
    }

    /// Bytes of a file of `set` that have left the bucket since the last call.
    fn fetched(&self, name: &str) -> u64 {
        let counts = self.server.faults().counts();
        self.server.faults().reset_counts();
        let of_file = counts.bytes_by_target.iter().filter(|(target, _)| target.contains(name));
        of_file.map(|(_, bytes)| bytes).sum()
    }
}

#[test]
fn a_folder_and_a_bucket_are_described_alike() {
    let home = Home::new();
    let described = |source: &str| {
        let (made, shown) =
            (home.said(&["dataset", "index", source]), home.said(&["dataset", "show", source]));
        let (text, written) = made.rsplit_once("\nwrote ").unwrap();
        assert!(written.trim_end().ends_with(&format!("/set/{INDEX}")), "{written}");
        assert_eq!(text, shown.trim_end());
        text.strip_prefix(source).unwrap().to_owned()
    };
    let folder = described("set");
    assert_eq!(folder, described("s3://data/set"));
    assert!(folder.contains("JSON lines") && folder.contains("samples    4"), "{folder}");
    assert!(home.path("set").join(INDEX).is_file());
    // Once more: an index is no data, and is replaced.
    assert_eq!(folder, described("set"));
    let one = home.said(&["dataset", "index", "s3://data/set/a.jsonl", "--output", "one.parquet"]);
    assert!(one.contains("samples    2") && home.path("one.parquet").is_file(), "{one}");
    assert!(home.said(&["dataset", "show", "one.parquet"]).contains("samples    2"));
}

#[test]
fn what_cannot_be_described_is_said() {
    let home = Home::new();
    fs::create_dir(home.path("empty")).unwrap();
    home.refused(&["dataset", "index", "nowhere"], 2, "nowhere");
    home.refused(&["dataset", "index", "empty"], 2, "nothing");
    home.refused(&["dataset", "index", "gs://data/set"], 2, "gs://");
    home.refused(&["dataset", "index", "s3://none/set"], 2, "none");
    home.refused(&["dataset", "index", "s3://data/nothing"], 2, "s3://data/nothing");
    home.refused(&["dataset", "index", "set/a.jsonl"], 2, "--output");
    home.refused(&["dataset", "index", "s3://data/set", "--bucket.endpoint", "here"], 2, "bucket.endpoint");
    home.refused(&["dataset", "show", "set", "--bucket.anonymous", "perhaps"], 2, "bucket.anonymous");
    home.refused(&["dataset", "index", "set", "--output", "no/folder/x.parquet"], 2, "no/folder/x.parquet");
    home.refused(&["dataset", "show", "set"], 2, "gradus dataset index set");
    home.refused(&["dataset", "show", "s3://data/set"], 2, "gradus dataset index");
    home.put("c.csv", "1,2\n");
    home.refused(&["dataset", "index", "set"], 2, "c.csv");
    fs::remove_file(home.path("set/c.csv")).unwrap();
    fs::write(home.path("set/b.jsonl"), "{\n  \"text\": 1\n}\n").unwrap();
    home.refused(&["dataset", "index", "set"], 2, "b.jsonl");
    fs::write(home.path("set").join(INDEX), "no index").unwrap();
    home.refused(&["dataset", "show", "set"], 1, INDEX);
}

#[test]
fn an_index_is_used_while_it_holds() {
    let home = Home::new();
    let source = "s3://data/set";
    let (read, _) = home.read(source, &[]);
    // Once to describe it, and once to read it.
    assert_eq!(home.fetched("a.jsonl"), 2 * LINES.len() as u64);
    home.said(&["dataset", "index", source]);
    home.fetched("");
    let (again, log) = home.read(source, &[]);
    assert_eq!((&again["samples"], &again["sum"]), (&read["samples"], &read["sum"]));
    assert_eq!(home.fetched("a.jsonl"), LINES.len() as u64, "it was described anew: {log}");
    let stale = |why: &str, samples: u64| {
        home.refused(&["dataset", "show", source], 2, why);
        let (read, log) = home.read(source, &[]);
        assert!(read["samples"] == samples && log.contains(INDEX_IS_PASSED_OVER), "{read}: {log}");
    };
    home.put("c.jsonl", LINES);
    stale("c.jsonl", 6);
    home.said(&["dataset", "index", source]);
    home.put("a.jsonl", "{}\n");
    stale("a.jsonl", 5);
    home.put(INDEX, "no index");
    let (read, log) = home.read(source, &[]);
    assert!(read["samples"] == 5 && log.contains(INDEX_IS_PASSED_OVER), "{read}: {log}");
}

/// What is logged of an index that does not hold.
const INDEX_IS_PASSED_OVER: &str = "passed over";

#[test]
fn the_folder_of_a_cache_is_looked_at_checked_and_cleared() {
    let home = Home::new();
    home.read("s3://data/set", &["--cache.folder", "tier0", "--cache.disk_bytes", "100MB"]);
    let stat = home.said(&["cache", "stat", "tier0"]);
    assert!(stat.contains("blocks       2") && stat.contains("objects      2"), "{stat}");
    assert!(home.said(&["cache", "verify", "tier0"]).contains("damaged      0"));
    damage(&home.path("tier0/gradus-cache.blocks"));
    home.refused(&["cache", "verify", "tier0"], 1, "1 of 2 blocks");
    assert!(home.said(&["cache", "clear", "tier0"]).contains("2 blocks"));
    for command in ["stat", "verify", "clear"] {
        home.refused(&["cache", command, "tier0"], 2, "tier0");
        home.refused(&["cache", command, "set"], 2, "set");
        home.refused(&["cache", command, "nowhere"], 2, "nowhere");
    }
}

/// Alters a byte of the first block.
fn damage(blocks: &Path) {
    let mut bytes = fs::read(blocks).unwrap();
    bytes[3] ^= 1;
    fs::write(blocks, bytes).unwrap();
}
