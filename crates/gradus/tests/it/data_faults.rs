//! Training while its data come slowly, or a node that has some of them stands still: the same bits, a little later.

use crate::buckets::{Home, text};
use crate::ranks::ranks_of;
use gradus_host::{Clock, RealClock};
use rustix::process::{Signal, kill_process};
use std::process::{Child, Stdio};
use std::thread::yield_now;
use std::time::Duration;

/// Longest time that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Memory for one block that waits and one that is on its way, so that most samples ask the bucket anew.
const SMALL: [&str; 4] = ["--cache.block_bytes", "4096", "--cache.memory_bytes", "8192"];

impl Home {
    fn start(&self, run: &str, arguments: &[&str]) -> Child {
        self.command(run, arguments).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Requests that a run with these arguments makes for anything else than samples, before it reads any; and those for
    /// samples to learn from.
    fn requests(&self, run: &str, arguments: &[&str]) -> (u64, u64) {
        self.fetched();
        self.train(run, arguments);
        let counts = self.server.faults().counts();
        let of = |is_meant: fn(&str) -> bool| -> u64 {
            let targets = counts.by_target.iter().filter(|((_, target), _)| is_meant(target));
            targets.map(|(_, count)| count).sum()
        };
        (counts.requests - of(|target| target.ends_with(".bin")), of(is_train))
    }
}

fn end_well(run: Child) {
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_bucket_that_is_far_or_grows_slow_in_mid_run_costs_time_and_no_bit() {
    let home = Home::new();
    let faults = home.server.faults();
    faults.set(|plan| plan.latency = Duration::from_millis(200));
    home.train("far", &[]);
    assert!(home.place.final_bytes("far") == home.place.final_bytes("folder"));
    faults.set(|plan| plan.latency = Duration::ZERO);
    let (before, _) = home.requests("near", &SMALL);
    faults.reset_counts();
    faults.set(|plan| plan.bandwidth = Some(1_000_000));
    let run = home.start("slow", &SMALL);
    faults.wait_for_requests(before + 8);
    faults.set(|plan| plan.bandwidth = Some(100_000));
    end_well(run);
    assert!(home.place.final_bytes("slow") == home.place.final_bytes("folder"));
}

#[test]
fn a_node_that_stands_still_is_done_without_until_it_goes_on() {
    let home = Home::new();
    home.train_two_from_folder();
    let two = ["--nproc-per-node", "2", "--launch.logical_nodes", "2", "--network.failure_detection", "60s"];
    let two = [&two[..], &["--cache.block_bytes", "4096"]].concat();
    let (before, of_samples) = home.requests("two", &two);
    let whole = home.fetched()[0];
    let faults = home.server.faults();
    faults.hold_after(before);
    let run = home.start("stopped", &two);
    // Both have asked for the blocks that they are home of.
    faults.wait_for_requests(before + of_samples);
    // And are past the collective with which steps begin: there nothing would be asked of the one that stands still.
    let clock = RealClock::new();
    let end = clock.now() + PATIENCE;
    let metrics = home.place.path().join("runs/stopped/metrics.jsonl");
    while std::fs::metadata(&metrics).map_or(0, |metrics| metrics.len()) == 0 {
        assert!(clock.now() < end, "no step has begun");
        yield_now();
    }
    let stopped = ranks_of(run.id()).into_iter().find(|(rank, _)| rank == "1").unwrap().1;
    kill_process(stopped, Signal::STOP).unwrap();
    faults.release();
    // Each block leaves the bucket once for both nodes: more is what was asked of one that does not answer.
    let end = clock.now() + PATIENCE;
    while train_bytes(&home) <= whole {
        assert!(clock.now() < end, "{} bytes of {whole} came", train_bytes(&home));
        yield_now();
    }
    kill_process(stopped, Signal::CONT).unwrap();
    end_well(run);
    assert_eq!(home.place.losses("stopped"), home.place.losses("two-folder"));
    assert!(home.place.final_bytes("stopped") == home.place.final_bytes("two-folder"));
}

/// Bytes of shards to learn from that have left the bucket since they were last counted.
fn train_bytes(home: &Home) -> u64 {
    let counts = home.server.faults().counts();
    counts.bytes_by_target.iter().filter(|(target, _)| is_train(target)).map(|(_, bytes)| bytes).sum()
}

fn is_train(target: &str) -> bool {
    target.ends_with(".bin") && target.contains("/train-")
}
