//! Runs whose data lie in a bucket: a real S3 server, and everything that goes with it.

use crate::corpus::Place;
use gradus_testbed::{ACCESS_KEY, S3Server, SECRET_KEY};
use std::fs;
use std::process::{Command, Output};

/// Prepared data in a folder and, the same, in a bucket.
pub struct Home {
    pub place: Place,
    pub server: S3Server,
    /// Bytes of the shards to learn from, and of those held out.
    pub bytes: [u64; 2],
}

impl Home {
    /// Prepares, trains once from the folder as the run `folder`, and copies what was prepared.
    pub fn new() -> Self {
        Self::of(Place::new())
    }

    /// The same of another corpus.
    fn of(place: Place) -> Self {
        place.train(&["--run.dir", "runs/folder", "--data.prepared", "prepared"]);
        let server = S3Server::with_bucket("data").unwrap();
        let mut bytes = [0; 2];
        for entry in fs::read_dir(place.path().join("prepared")).unwrap() {
            let (name, content) = {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            };
            if name.ends_with(".bin") {
                bytes[usize::from(name.starts_with("held_out"))] += content.len() as u64;
            }
            server.put("data", &format!("set/{name}"), &content).unwrap();
        }
        server.faults().reset_counts();
        Self { place, server, bytes }
    }

    /// Trains from the bucket.
    pub fn command(&self, run: &str, arguments: &[&str]) -> Command {
        let dir = format!("runs/{run}");
        let common = ["train", "run.toml", "--run.dir", &dir, "--data.prepared", "s3://data/set"];
        with_bucket(&self.server, self.place.command([&common[..], arguments].concat()))
    }

    /// The program, with what it needs to reach the bucket.
    pub fn reaching(&self, arguments: &[&str]) -> Command {
        with_bucket(&self.server, self.place.command(arguments))
    }

    pub fn train(&self, run: &str, arguments: &[&str]) {
        let output = self.command(run, arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Trains two ranks from the folder, as the run `two-folder`.
    pub fn train_two_from_folder(&self) {
        let folder = ["--run.dir", "runs/two-folder", "--data.prepared", "prepared"];
        self.place.train(&[&folder[..], &["--nproc-per-node", "2"]].concat());
    }

    /// Blocks that the folder of a cache holds.
    fn blocks_of(&self, folder: &str) -> u64 {
        let output = self.place.run(&["cache", "stat", folder]);
        assert!(output.status.success(), "{}", text(&output));
        let lines = String::from_utf8(output.stdout).unwrap();
        let count = lines.lines().find_map(|line| line.strip_prefix("blocks ")).unwrap();
        count.trim().parse().unwrap()
    }

    /// Bytes of shards that have left the bucket since the last call: to learn from, and held out.
    pub fn fetched(&self) -> [u64; 2] {
        let counts = self.server.faults().counts();
        self.server.faults().reset_counts();
        ["train-", "held_out-"].map(|part| {
            let shards = counts
                .bytes_by_target
                .iter()
                .filter(|(target, _)| target.ends_with(".bin") && target.contains(&format!("/{part}")));
            shards.map(|(_, bytes)| bytes).sum()
        })
    }
}

/// Without an input, what is to be read must be there.
const FOUND: [&str; 2] = ["--data.input", ""];

/// A command that can reach the server's buckets.
pub fn with_bucket(server: &S3Server, mut command: Command) -> Command {
    command
        .env("AWS_ENDPOINT_URL", server.endpoint())
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .env_remove("AWS_PROFILE");
    command
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn data_in_a_bucket_give_the_same_bits_and_leave_it_once_for_all_ranks_of_a_node() {
    let home = Home::new();
    let folder = home.place.final_bytes("folder");
    home.train("one", &[]);
    assert_eq!(home.place.losses("one"), home.place.losses("folder"));
    assert!(home.place.final_bytes("one") == folder, "the model or its state has other bits");
    home.fetched();
    home.train_two_from_folder();
    home.train("two", &["--nproc-per-node", "2"]);
    assert_eq!(home.place.losses("two"), home.place.losses("two-folder"));
    assert!(home.place.final_bytes("two") == home.place.final_bytes("two-folder"));
    let [train, held_out] = home.fetched();
    assert!(
        train <= home.bytes[0] && held_out <= home.bytes[1],
        "{train} and {held_out} of {:?}",
        home.bytes
    );
    assert!(train > 0 && held_out > 0);
}

#[test]
fn data_are_prepared_from_a_bucket_into_it_and_give_the_same_bits() {
    let home = Home::new();
    for entry in fs::read_dir(home.place.path().join("corpus")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        home.server.put("data", &format!("corpus/{name}"), &fs::read(&path).unwrap()).unwrap();
    }
    let places = ["--data.input", "s3://data/corpus", "--data.prepared", "s3://data/made"];
    let prepare = || {
        let command = home.place.command([&["prepare", "run.toml"], &places[..]].concat());
        let output = with_bucket(&home.server, command).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(prepare().starts_with("prepared s3://data/made"));
    assert!(prepare().starts_with("nothing changed in s3://data/made"));
    home.server.faults().reset_counts();
    home.train("made", &places);
    assert!(home.place.final_bytes("made") == home.place.final_bytes("folder"));
    let counts = home.server.faults().counts();
    assert_eq!(counts.of("PUT") + counts.of("POST") + counts.of("DELETE"), 0);
    // Where it was not prepared before, the rank does it.
    home.train("fresh", &["--data.input", "s3://data/corpus", "--data.prepared", "s3://data/fresh"]);
    assert!(home.place.final_bytes("fresh") == home.place.final_bytes("folder"));
    // Ranks find what their launcher has prepared.
    let again = ["--data.input", "s3://data/corpus", "--data.prepared", "s3://data/two"];
    home.train_two_from_folder();
    home.train("two", &[&again[..], &["--nproc-per-node", "2"]].concat());
    assert!(home.place.final_bytes("two") == home.place.final_bytes("two-folder"));
}

#[test]
fn nodes_share_what_they_fetch() {
    let home = Home::new();
    home.train_two_from_folder();
    home.fetched();
    let two = ["--nproc-per-node", "2", "--launch.logical_nodes", "2"];
    // A node that a busy machine holds up for longer than the other waits costs a block more: so the best of three runs counts.
    let mut together = (0..3).map(|run| {
        let run = format!("two-{run}");
        home.train(&run, &two);
        assert_eq!(home.place.losses(&run), home.place.losses("two-folder"));
        home.fetched()
    });
    let is_once = |[train, held_out]: &[u64; 2]| *train <= home.bytes[0] && *held_out <= home.bytes[1];
    let shared = together.find(is_once);
    let shared = shared.unwrap_or_else(|| panic!("three runs fetched more than {:?}", home.bytes));
    home.train("apart", &[&two[..], &["--cache.share", "false"]].concat());
    assert_eq!(home.place.losses("apart"), home.place.losses("two-folder"));
    let apart = home.fetched();
    assert!(apart[0] > shared[0], "{apart:?} apart, {shared:?} together");
}

#[test]
fn a_cache_on_disk_serves_the_next_run() {
    let home = Home::new();
    let cache = ["--cache.folder", "tier0", "--cache.disk_bytes", "1073741824"];
    home.train("first", &cache);
    assert!(home.fetched()[0] > 0);
    home.train("second", &cache);
    assert_eq!(home.fetched(), [0, 0]);
    assert!(home.place.final_bytes("second") == home.place.final_bytes("folder"));
}

#[test]
fn blocks_on_disk_stay_of_use_in_another_order_and_with_another_budget() {
    let home = Home::new();
    let cache = ["--cache.folder", "tier0", "--order.shuffle"];
    home.train("first", &[&cache[..], &["blocks", "--cache.disk_bytes", "1073741824"]].concat());
    assert!(home.fetched()[0] > 0);
    // Either would have another size chosen for an empty folder.
    for (run, shuffle, disk_bytes) in [("order", "whole", "1073741824"), ("budget", "whole", "1099511627776")]
    {
        home.train(run, &[&cache[..], &[shuffle, "--cache.disk_bytes", disk_bytes]].concat());
        assert_eq!(home.fetched(), [0, 0], "{run}");
        assert!(home.place.final_bytes(run) == home.place.final_bytes("folder"));
    }
}

#[test]
fn nodes_that_are_started_again_keep_what_they_have_on_disk() {
    let place = Place::new();
    // More of the same, so that every node is home of several blocks.
    for document in 12..96 {
        let [from, to] =
            [document % 12, document].map(|number| place.path().join(format!("corpus/{number:02}.txt")));
        fs::copy(from, to).unwrap();
    }
    let home = Home::of(place);
    let cache = ["--cache.folder", "tier0", "--cache.disk_bytes", "1048576", "--cache.block_bytes", "4096"];
    let nodes = |run: &str, nodes: &str| {
        let named = ["--nproc-per-node", nodes, "--launch.logical_nodes", nodes, "--node-id", "node"];
        home.train(run, &[&cache[..], &named].concat());
        home.fetched()
    };
    let first = nodes("three", "3");
    assert!(first[0] > 0 && first[0] <= home.bytes[0], "{first:?}: every block once for all nodes");
    // One of the three comes no more, and with it what it has.
    let gone = ["train", "held_out"].map(|part| home.blocks_of(&format!("tier0/node.2/{part}")));
    assert!(gone[0] > 3 && gone[1] > 0, "{gone:?}");
    let fetched = nodes("two", "2");
    for ((fetched, gone), all) in fetched.into_iter().zip(gone).zip(home.bytes) {
        // All blocks are whole but the last of the only shard.
        let last = 4096 - all % 4096;
        let least = (gone * 4096).saturating_sub(last);
        // A node that was slow to answer may have cost a block or two more; other homes cost six.
        assert!((least..=(gone + 2) * 4096).contains(&fetched), "{fetched} for {gone} blocks");
    }
}

#[test]
fn what_is_wrong_with_a_bucket_is_said() {
    let home = Home::new();
    let fails = |arguments: &[&str], environment: &[(&str, &str)], code: i32, words: &[&str]| {
        let mut command = home.command("bad", arguments);
        command.envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        for word in words {
            assert!(text(&output).contains(word), "{word:?} is not in {}", text(&output));
        }
    };
    let nothing = ["--data.prepared", "s3://data/nothing"];
    fails(&[&nothing[..], &FOUND].concat(), &[], 2, &["s3://data/nothing"]);
    fails(&[&nothing[..], &FOUND, &["--nproc-per-node", "2"]].concat(), &[], 2, &["s3://data/nothing"]);
    fails(&[&nothing[..], &["--data.input", "s3://data/none"]].concat(), &[], 2, &["s3://data/none"]);
    fails(&["--data.prepared", "s3://none/set"], &[], 2, &["none"]);
    fails(&["--data.prepared", "gs://data/set"], &[], 2, &["gs://"]);
    fails(&[], &[("AWS_SECRET_ACCESS_KEY", "wrong")], 1, &["AWS_ACCESS_KEY_ID"]);
    fails(&["--cache.memory_bytes", "1000"], &[], 2, &["cache.memory_bytes"]);
    fails(&["--cache.folder", "tier0", "--cache.disk_bytes", "10"], &[], 2, &["cache.disk_bytes"]);
    fails(&["--order.window_blocks", "0"], &[], 2, &["order.window_blocks"]);
    home.server.put("data", "set/train-00000.bin", b"short").unwrap();
    fails(&FOUND, &[], 1, &["train-00000.bin"]);
}
