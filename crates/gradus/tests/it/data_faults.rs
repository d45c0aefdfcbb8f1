//! Training while its data come slowly, or a node that has some of them stands still: the same bits, a little later.

use crate::buckets::{Home, text};
use crate::ranks::ranks_of;
use gradus_host::{Clock, RealClock};
use rustix::process::{Pid, Signal, kill_process};
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
        let requests = self.server.faults().counts().requests;
        (requests - self.requests_of(|target| target.ends_with(".bin")), self.requests_of(is_train))
    }

    /// Requests since they were last counted for what is meant.
    fn requests_of(&self, is_meant: fn(&str) -> bool) -> u64 {
        let counts = self.server.faults().counts();
        let targets = counts.by_target.iter().filter(|((_, target), _)| is_meant(target));
        targets.map(|(_, count)| count).sum()
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
    // Both have asked for the blocks that they are home of; what they ask each other for, they ask as they begin.
    wait_until(|| home.requests_of(is_train) >= of_samples, "not all blocks are asked for");
    let stopped = ranks_of(run.id()).into_iter().find(|(rank, _)| rank == "1").unwrap().1;
    kill_process(stopped, Signal::STOP).unwrap();
    // A signal is delivered when a thread next runs: until then the block would come and be given.
    wait_until(|| stands_still(stopped), "the rank goes on");
    faults.release();
    // Each block leaves the bucket once for both nodes: more is what was asked of one that does not answer.
    wait_until(|| train_bytes(&home) > whole, "nothing but what leaves the bucket once has come");
    kill_process(stopped, Signal::CONT).unwrap();
    end_well(run);
    assert_eq!(home.place.losses("stopped"), home.place.losses("two-folder"));
    assert!(home.place.final_bytes("stopped") == home.place.final_bytes("two-folder"));
}

/// Waits until something is so; `otherwise` says what is the case if it never is.
fn wait_until(mut is_so: impl FnMut() -> bool, otherwise: &str) {
    let clock = RealClock::new();
    let end = clock.now() + PATIENCE;
    while !is_so() {
        assert!(clock.now() < end, "{otherwise}");
        yield_now();
    }
}

/// Whether all threads of a process have been stopped.
fn stands_still(process: Pid) -> bool {
    std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap().all(|thread| {
        // The state follows the name, which is in parentheses and may have any of them in itself. A thread that has ended
        // meanwhile ended running.
        let line = std::fs::read_to_string(thread.unwrap().path().join("stat"));
        line.is_ok_and(|line| line.rsplit_once(')').unwrap().1.starts_with(" T"))
    })
}

/// Bytes of shards to learn from that have left the bucket since they were last counted.
fn train_bytes(home: &Home) -> u64 {
    let counts = home.server.faults().counts();
    counts.bytes_by_target.iter().filter(|(target, _)| is_train(target)).map(|(_, bytes)| bytes).sum()
}

fn is_train(target: &str) -> bool {
    target.ends_with(".bin") && target.contains("/train-")
}
