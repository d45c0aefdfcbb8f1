//! Runs that learn from several data at once, by weight: in folders, in a bucket, in both.

use crate::buckets::{text, with_bucket};
use crate::corpus::{Place, STEPS};
use gradus_testbed::S3Server;
use serde_json::Value;
use std::fs;
use std::process::Command;

/// What replaces the settings' own input.
const NO_INPUT: [&str; 2] = ["--data.input", ""];

/// Two prepared datasets of one tokenizer, in the folders `first` and `second` and, the same, in a bucket.
struct Home {
    place: Place,
    server: S3Server,
}

impl Home {
    fn new() -> Self {
        let home = Self { place: Place::new(), server: S3Server::with_bucket("data").unwrap() };
        let other = home.place.path().join("other");
        fs::create_dir(&other).unwrap();
        for document in 0..12 {
            let lines = (0..30).map(|line| format!("if a{line} == {document} {{ return {line}; }}\n"));
            fs::write(other.join(format!("{document:02}.txt")), lines.collect::<String>()).unwrap();
        }
        home.prepare("first", &[]);
        home.prepare("second", &["--data.input", "other", "--data.tokenizer", "first"]);
        for name in ["first", "second"] {
            for entry in fs::read_dir(home.place.path().join(name)).unwrap() {
                let path = entry.unwrap().path();
                let key = format!("{name}/{}", path.file_name().unwrap().to_str().unwrap());
                home.server.put("data", &key, &fs::read(&path).unwrap()).unwrap();
            }
        }
        home
    }

    fn prepare(&self, name: &str, arguments: &[&str]) {
        let common = ["prepare", "run.toml", "--data.prepared", name];
        let output = self.place.run(&[&common[..], arguments].concat());
        assert!(output.status.success(), "{}", text(&output));
    }

    fn command(&self, mixture: &str, arguments: &[&str]) -> Command {
        let common = ["train", "run.toml", "--data.mixture", mixture];
        with_bucket(&self.server, self.place.command([&common[..], &NO_INPUT, arguments].concat()))
    }

    fn train(&self, run: &str, mixture: &str, arguments: &[&str]) {
        let dir = format!("runs/{run}");
        let output = self.command(mixture, &[&["--run.dir", &dir], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{run}: {}", text(&output));
    }

    /// What the last record of a run's data says of its mixture: of each dataset its share, samples and epochs.
    fn mixture(&self, run: &str) -> Vec<(f64, u64, f64)> {
        let path = self.place.path().join("runs").join(run).join("metrics.jsonl");
        let metrics = fs::read_to_string(path).unwrap();
        let mut events = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let last = events.rfind(|event| event["event"] == "data").unwrap();
        let one = |part: &Value| {
            (
                part["share"].as_f64().unwrap(),
                part["samples"].as_u64().unwrap(),
                part["epochs"].as_f64().unwrap(),
            )
        };
        last["mixture"].as_array().unwrap().iter().map(one).collect()
    }
}

/// The setting that mixes data at these places.
fn mixture(parts: &[(&str, &str)]) -> String {
    let parts =
        parts.iter().map(|(prepared, weight)| format!("{{ prepared = \"{prepared}\", weight = {weight} }}"));
    format!("[{}]", parts.collect::<Vec<_>>().join(", "))
}

#[test]
fn folders_and_buckets_are_mixed_with_the_same_bits_by_any_ranks_and_after_a_resume() {
    let home = Home::new();
    let folders = mixture(&[("first", "0.75"), ("second", "0.25")]);
    let both = mixture(&[("first", "3"), ("s3://data/second", "1")]);
    home.train("folders", &folders, &[]);
    let whole = home.place.losses("folders");
    assert_eq!(whole.len() as u64, STEPS);
    for (run, parts) in
        [("both", &both), ("bucket", &mixture(&[("s3://data/first", "3"), ("s3://data/second", "1")]))]
    {
        home.train(run, parts, &["--checkpoint.every", "10", "--checkpoint.keep", "9"]);
        assert_eq!(home.place.losses(run), whole, "{run}");
        assert!(home.place.final_bytes(run) == home.place.final_bytes("folders"), "{run} has other bits");
    }
    // Batches of 8 are two whole periods of four: each has its share of every batch.
    let shares = home.mixture("both");
    assert_eq!(
        shares.iter().map(|part| (part.0, part.1)).collect::<Vec<_>>(),
        [(0.75, 6 * STEPS), (0.25, 2 * STEPS)]
    );
    assert!(shares.iter().all(|part| part.2 > 0.0));
    // From the step in the middle to the end again.
    fs::remove_dir_all(home.place.checkpoint("both", STEPS)).unwrap();
    home.train("both", &both, &["--resume"]);
    assert!(home.place.final_bytes("both") == home.place.final_bytes("folders"), "other bits after a resume");
    let two = ["--nproc-per-node", "2"];
    home.train("two-folders", &folders, &two);
    home.train("two", &both, &two);
    home.train("two-nodes", &both, &[&two[..], &["--launch.logical_nodes", "2"]].concat());
    assert_eq!(home.place.losses("two"), home.place.losses("two-folders"));
    for run in ["two", "two-nodes"] {
        for (ours, theirs) in home.place.losses(run).iter().zip(&whole) {
            // Sums in another order differ by some 1e-7; twenty steps at 3e-4 keep that below 1e-5.
            assert!((ours - theirs).abs() <= 1e-5 * theirs, "{run}: {ours} {theirs}");
        }
    }
    assert_eq!(home.mixture("two"), shares);
}

#[test]
fn a_cache_is_filled_with_what_of_a_mixture_lies_in_a_bucket() {
    let home = Home::new();
    let both = mixture(&[("first", "3"), ("s3://data/second", "1")]);
    let steps = STEPS.to_string();
    let common = ["--cache.folder", "tier0", "--cache.block_bytes", "4096", "--train.steps", &steps];
    let warm = |parts: &str| {
        let arguments =
            [&["cache", "warm", "run.toml", "--data.mixture", parts], &NO_INPUT[..], &common].concat();
        with_bucket(&home.server, home.place.command(arguments)).output().unwrap()
    };
    let output = warm(&both);
    assert!(output.status.success(), "{}", text(&output));
    home.train("warm", &both, &common);
    let metrics = fs::read_to_string(home.place.path().join("runs/warm/metrics.jsonl")).unwrap();
    let mut events = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let last = events.rfind(|event| event["event"] == "data").unwrap();
    assert_eq!((&last["misses"], &last["fetched_bytes"]), (&0.into(), &0.into()), "{last}");
    assert!(last["disk_hit_rate"].as_f64() > Some(0.0), "{last}");
    let refused = warm(&mixture(&[("first", "1"), ("second", "1")]));
    assert!(
        refused.status.code() == Some(2) && text(&refused).contains("data.mixture"),
        "{}",
        text(&refused)
    );
}

#[test]
fn what_cannot_be_mixed_is_named() {
    let home = Home::new();
    home.prepare("foreign", &["--data.input", "other", "--data.vocabulary", "280"]);
    home.prepare("short", &["--data.tokenizer", "first", "--train.sequence_length", "16"]);
    let fails = |parts: &[(&str, &str)], arguments: &[&str], words: &[&str]| {
        let output = home
            .command(&mixture(parts), &[&["--run.dir", "runs/bad"], arguments].concat())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        for word in words {
            assert!(text(&output).contains(word), "{word:?} is not in {}", text(&output));
        }
    };
    for weight in ["0", "-1", "nan", "inf"] {
        fails(&[("first", "1"), ("second", weight)], &[], &["data.mixture", "second", "weight"]);
    }
    let fine = [("first", "0.5"), ("second", "0.5")];
    fails(&fine, &["--data.prepared", "first"], &["data.prepared", "data.mixture"]);
    fails(&fine, &["--data.input", "corpus"], &["data.input", "data.mixture"]);
    fails(&[("first", "1"), ("./first", "1")], &[], &["./first", "twice"]);
    fails(&[("first", "1"), ("nothing", "1")], &[], &["nothing"]);
    fails(&[("first", "1"), ("s3://data/nothing", "1")], &[], &["s3://data/nothing"]);
    fails(&[("first", "1"), ("foreign", "1")], &[], &["foreign", "data.tokenizer"]);
    fails(&[("first", "1"), ("foreign", "1")], &["--nproc-per-node", "2"], &["foreign", "data.tokenizer"]);
    fails(&[("first", "1"), ("short", "1")], &[], &["short", "data.sequence_length"]);
    fails(&[("first", "1"), ("second", "1e-9")], &[], &["data.mixture"]);
    let output = home.command("[{ prepared = \"first\" }]", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let prepared = home
        .place
        .run(&[&["prepare", "run.toml", "--data.mixture", &mixture(&fine)][..], &NO_INPUT].concat());
    assert_eq!(prepared.status.code(), Some(2), "{}", text(&prepared));
}
