//! What a run tells of the data that it read, and a cache that is filled ahead of it.

use crate::buckets::{Home, text};
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// Events of one kind in a run's metrics.
fn events(home: &Home, run: &str, kind: &str) -> Vec<Value> {
    let file = home.place.path().join("runs").join(run).join("metrics.jsonl");
    let text = fs::read_to_string(file).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["event"] == kind).collect()
}

/// The sum of an object's numbers.
fn sum(object: &Value) -> f64 {
    object.as_object().unwrap().values().map(|number| number.as_f64().unwrap()).sum()
}

#[test]
fn what_was_read_and_waited_for_is_told() {
    let home = Home::new();
    home.server.faults().set(|plan| plan.latency = Duration::from_millis(20));
    home.server.faults().reset_counts();
    let mut command = home.reaching(&[
        "train",
        "run.toml",
        "--run.dir",
        "runs/slow",
        "--data.prepared",
        "s3://data/set",
        "--bucket.price_per_gb",
        "1000",
        // Whether the input was prepared already is asked by another.
        "--data.input",
        "",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains(" read: memory "), "{}", text(&output));
    let counts = home.server.faults().counts();
    let [train, held_out] = home.fetched();
    let steps = events(&home, "slow", "step");
    for step in &steps {
        let whole = step["data_wait_s"].as_f64().unwrap();
        assert!((sum(&step["data_wait_by_cause_s"]) - whole).abs() < 1e-9);
        assert!(whole <= step["step_s"].as_f64().unwrap());
    }
    let waited: f64 = steps.iter().map(|step| step["data_wait_s"].as_f64().unwrap()).sum();
    let records = events(&home, "slow", "data");
    assert!(records.len() > events(&home, "slow", "evaluation").len());
    let last = records.last().unwrap();
    assert_eq!(last["fetched_bytes"], train + held_out);
    assert_eq!(last["requests"], counts.requests);
    let of_objects = counts.bytes_by_target.iter().filter(|(target, _)| target.contains('/'));
    assert_eq!(last["bucket_bytes"].as_u64().unwrap(), of_objects.map(|(_, bytes)| bytes).sum::<u64>());
    assert!((last["cost"].as_f64().unwrap() - last["bucket_bytes"].as_f64().unwrap() / 1e6).abs() < 1e-6);
    // What is read ahead has been found, and is not taken yet.
    assert!(sum(&last["bytes_by_source"]) >= last["bytes"].as_f64().unwrap());
    assert!(sum(&last["wait_by_cause_s"]) >= waited - 1e-9);
    assert_eq!(last["retries"], 0);
    assert!(events(&home, "folder", "data").is_empty(), "nothing is counted of a folder");
}

#[test]
fn steps_that_wait_for_the_bucket_say_so() {
    let home = Home::new();
    home.server.faults().set(|plan| plan.latency = Duration::from_millis(20));
    // Of the eight samples that a step reads at once, two at most can have come ahead.
    let small = ["--cache.block_bytes", "4096", "--cache.memory_bytes", "8192", "--train.microbatch", "8"];
    home.train("waits", &small);
    let steps = events(&home, "waits", "step");
    let of = |step: &Value| step["data_wait_by_cause_s"]["bucket"].as_f64().unwrap();
    assert!(steps.iter().map(of).sum::<f64>() > 0.0);
    assert!(
        fs::read_to_string(home.place.path().join("runs/waits/report.html"))
            .unwrap()
            .contains("Waiting for data")
    );
    assert!(
        events(&home, "waits", "data").pop().unwrap()["wait_by_cause_s"]["bucket"].as_f64().unwrap() > 0.0
    );
}

#[test]
fn a_bucket_that_refuses_is_named_and_the_run_goes_on() {
    let home = Home::new();
    home.server.faults().set(|plan| plan.refuse_next = 2);
    let mut command = home.reaching(&[
        "train",
        "run.toml",
        "--run.dir",
        "runs/refused",
        "--data.prepared",
        "s3://data/set",
        "--nproc-per-node",
        "2",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("they are sent again"), "{}", text(&output));
    assert!(home.place.final_bytes("refused").0.len() > 1);
}

#[test]
fn a_cache_that_was_filled_leaves_nothing_to_fetch() {
    let home = Home::new();
    let cache = ["--cache.folder", "tier0", "--cache.disk_bytes", "1073741824"];
    let warm = |more: &[&str]| {
        let source = ["cache", "warm", "run.toml", "--source", "s3://data/set"];
        home.reaching(&[&source[..], &cache, more].concat()).output().unwrap()
    };
    let output = warm(&[]);
    assert!(output.status.success(), "{}", text(&output));
    let [train, held_out] = home.fetched();
    assert!(train > 0 && train <= home.bytes[0] && held_out > 0 && held_out <= home.bytes[1]);
    home.train("warm", &cache);
    assert_eq!(home.fetched(), [0, 0]);
    assert!(home.place.final_bytes("warm") == home.place.final_bytes("folder"));
    let last = events(&home, "warm", "data").pop().unwrap();
    assert_eq!((&last["misses"], &last["fetched_bytes"]), (&0.into(), &0.into()));
    assert!(warm(&[]).status.success());
    assert_eq!(home.fetched(), [0, 0], "what is there is not fetched again");
}

#[test]
fn a_small_folder_is_filled_and_no_more_and_bad_input_is_named() {
    let home = Home::new();
    let run = |arguments: &[&str]| {
        home.reaching(&[&["cache", "warm", "run.toml"], arguments].concat()).output().unwrap()
    };
    let small = ["--cache.folder", "small", "--cache.disk_bytes", "8192", "--cache.block_bytes", "4096"];
    let output = run(&[&["--source", "s3://data/set"], &small[..]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert!(home.fetched()[0] <= 8192);
    for (arguments, word) in [
        (vec!["--source", "s3://data/set"], "--cache.folder"),
        (vec!["--cache.folder", "a"], "--source"),
        (vec!["--source", "prepared", "--cache.folder", "a"], "prepared"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(word), "{word:?} is not in {}", text(&output));
    }
}
