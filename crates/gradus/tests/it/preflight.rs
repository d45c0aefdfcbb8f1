//! `gradus preflight` as a person or a launcher runs it, on one host and on several.

use crate::corpus::Place;
use crate::hosts::{Hosts, Ranks, SECRET, hosts_can_be_made};
use serde_json::Value;
use std::process::{Child, Stdio};

fn report(place: &Place) -> Value {
    serde_json::from_str(&std::fs::read_to_string(place.path().join("found.json")).unwrap()).unwrap()
}

fn faults(report: &Value) -> &Vec<Value> {
    report["verdict"]["faults"].as_array().unwrap()
}

#[test]
fn every_pair_of_a_host_is_measured_and_the_exit_code_is_the_verdict() {
    let place = Place::new();
    for transport in ["shm", "tcp"] {
        let arguments =
            ["preflight", "--nproc-per-node", "3", "--json", "found.json", "--launch.transport", transport];
        let output = place.run(&arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        let report = report(&place);
        // Whether a busy machine's links are alike is not ours to say.
        let good = faults(&report).is_empty();
        assert_eq!(output.status.code(), Some(i32::from(!good)), "{text}");
        assert_eq!(text.contains("good: "), good, "{text}");
        let pairs = report["survey"]["pairs"].as_array().unwrap();
        let ranks: Vec<_> = pairs
            .iter()
            .map(|pair| (pair["one"].as_u64().unwrap(), pair["other"].as_u64().unwrap()))
            .collect();
        assert_eq!(ranks, [(0, 1), (0, 2), (1, 2)]);
        assert!(text.contains("  0 - 1 ") && text.contains("usual inside hosts"), "{text}");
    }
}

#[test]
fn logical_nodes_are_told_apart() {
    let place = Place::new();
    let arguments =
        ["preflight", "--nproc-per-node", "2", "--node-id", "here", "--launch.logical_nodes", "2"];
    let output = place.run(&arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    let told = ["over TCP on 2 hosts", "rank 0: here.0 ", "rank 1: here.1 ", "usual between hosts"];
    assert!(told.iter().all(|words| text.contains(words)), "{text}");
}

#[test]
fn what_cannot_be_measured_says_why() {
    let place = Place::new();
    let output = place.run(&["preflight"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--nproc-per-node"));
    let mut alone = place.command(["preflight", "--network.rendezvous_timeout_s", "1"]);
    alone.envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
    let output = alone.env("MASTER_PORT", crate::ranks::free_port()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("rank 1"), "{text}");
}

fn start(hosts: &Hosts, place: &Place, arguments: &[&str]) -> Ranks {
    let start = |rank: usize| -> Child {
        let mut command = hosts.rank(rank, place, Some(SECRET));
        command.args(["preflight", "--json", "found.json"]).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    Ranks((0..3).map(start).collect())
}

#[test]
fn the_host_on_a_thin_cable_is_named() {
    if !hosts_can_be_made() {
        return;
    }
    let (place, hosts) = (Place::new(), Hosts::new(3));
    for (host, rate) in ["400mbit", "400mbit", "40mbit"].iter().enumerate() {
        hosts.shape(host, rate);
    }
    let ended = start(&hosts, &place, &[]).end();
    let codes: Vec<_> = ended.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [Some(1), Some(0), Some(0)], "{ended:?}");
    let report = report(&place);
    let named: Vec<_> = faults(&report).iter().filter_map(|fault| fault["rank"]["rank"].as_u64()).collect();
    // A busy machine may make others look bad too.
    assert!(named.contains(&2), "{report}");
    for pair in report["survey"]["pairs"].as_array().unwrap().iter().filter(|pair| pair["other"] == 2) {
        for way in ["there_bytes_per_s", "back_bytes_per_s"] {
            let megabits = pair[way].as_f64().unwrap() * 8e-6;
            assert!(megabits < 60.0, "a cable of 40 Mbit/s cannot carry {megabits}");
        }
    }
}

#[test]
fn hosts_that_cannot_reach_each_other_are_named() {
    if !hosts_can_be_made() {
        return;
    }
    let (place, hosts) = (Place::new(), Hosts::new(3));
    hosts.part(1, 2);
    let ended = start(&hosts, &place, &["--network.rendezvous_timeout_s", "10"]).end();
    assert!(ended.iter().all(|(code, _)| *code == Some(1)), "{ended:?}");
    let named = [(1, "rank 2"), (2, "rank 1")].iter().any(|(rank, other)| ended[*rank].1.contains(other));
    assert!(named, "{ended:?}");
}
