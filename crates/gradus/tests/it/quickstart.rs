//! The quickstart as its reader runs it, a few steps of it: its data once in a folder, once in a bucket.

use crate::buckets::{text, with_bucket};
use crate::corpus::Place;
use gradus_testbed::S3Server;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Enough that what was read has gone into all weights.
const STEPS: u64 = 6;

/// Prepares the quickstart's data where `prepared` says, if they are not there, and trains with its two ranks.
fn train(place: &Place, server: &S3Server, run: &str, prepared: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = place.path().join("runs").join(run);
    let (folder, steps) = (folder.to_str().unwrap(), STEPS.to_string());
    let places = ["--run.dir", folder, "--data.prepared", prepared];
    let length = ["--train.steps", &steps, "--train.evaluate_tokens", "20000", "--sample.tokens", "0"];
    let mut command = place.command([&["train", "examples/quickstart.toml"], &places[..], &length].concat());
    command.current_dir(root);
    // The sources that it learns from are those of the lock file there.
    let output = with_bucket(server, command).output().unwrap();
    assert!(output.status.success(), "{prepared}: {}", text(&output));
}

/// The losses of all steps and evaluations.
fn losses(place: &Place, run: &str) -> Vec<f64> {
    let metrics = fs::read_to_string(place.path().join("runs").join(run).join("metrics.jsonl")).unwrap();
    let events = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let measured = events.filter(|event| ["step", "evaluation"].contains(&event["event"].as_str().unwrap()));
    measured.map(|event| event["loss"].as_f64().unwrap()).collect()
}

#[test]
fn its_data_in_a_bucket_give_the_bits_of_those_in_a_folder() {
    let (place, server) = (Place::new(), S3Server::with_bucket("data").unwrap());
    train(&place, &server, "folder", place.path().join("prepared").to_str().unwrap());
    train(&place, &server, "bucket", "s3://data/quickstart");
    let steps = place.losses("folder");
    assert_eq!(steps.len() as u64, STEPS);
    assert_eq!(losses(&place, "bucket"), losses(&place, "folder"));
    assert!(losses(&place, "folder").len() as u64 > STEPS, "nothing was evaluated");
    for name in ["model.safetensors", "training_state.safetensors"] {
        let bytes = |run: &str| fs::read(place.checkpoint(run, STEPS).join(name)).unwrap();
        assert!(bytes("bucket") == bytes("folder"), "{name} has other bits");
    }
}
