//! Logical nodes: several nodes on one machine, as people rehearse with them.

use crate::corpus::{Place, STEPS};
use serde_json::Value;
use std::fs;

const FOUR: [&str; 4] = ["--nproc-per-node", "4", "--train.measure_links", "true"];

/// What a run recorded of its nodes.
fn nodes(place: &Place, run: &str) -> Value {
    let text = fs::read_to_string(place.checkpoint(run, STEPS).join("training_state.json")).unwrap();
    let state: Value = serde_json::from_str(&text).unwrap();
    let conditions = state["conditions"].as_array().unwrap();
    let recorded = conditions.iter().find(|condition| condition[0] == "nodes").unwrap();
    serde_json::from_str(recorded[1].as_str().unwrap()).unwrap()
}

#[test]
fn two_logical_nodes_learn_what_one_node_learns() {
    let place = Place::new();
    place.train(&[&FOUR[..], &["--run.dir", "runs/one"]].concat());
    place.train(&[&FOUR[..], &["--run.dir", "runs/two", "--launch.logical_nodes", "2"]].concat());
    assert_eq!(nodes(&place, "one"), serde_json::json!([[0, 1, 2, 3]]));
    assert_eq!(nodes(&place, "two"), serde_json::json!([[0, 1], [2, 3]]));
    // Near and far are told apart also where nothing was measured.
    place.train(&["--nproc-per-node", "4", "--run.dir", "runs/unmeasured", "--launch.logical_nodes", "2"]);
    assert_eq!(nodes(&place, "unmeasured"), serde_json::json!([[0, 1], [2, 3]]));
    let [one, two, unmeasured] = ["one", "two", "unmeasured"].map(|run| place.losses(run));
    assert!(two.len() as u64 == STEPS && unmeasured.len() as u64 == STEPS);
    for (two, one) in two.iter().zip(&one).chain(unmeasured.iter().zip(&one)) {
        // Sums in another order differ by some 1e-7; twenty steps at 3e-4 keep that below 1e-5.
        assert!((two - one).abs() <= 1e-5 * one, "{two} {one}");
    }
}

#[test]
fn nodes_of_other_names_are_no_reason_not_to_go_on() {
    let place = Place::new();
    let common = ["--nproc-per-node", "3", "--launch.logical_nodes", "3", "--node-id"];
    place.train(&[&common[..], &["a", "--train.steps", "4"]].concat());
    place.train(&[&common[..], &["b", "--resume"]].concat());
    assert!(place.checkpoint("a", STEPS).is_dir());
}
