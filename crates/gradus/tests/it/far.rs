//! Ranks that train on hosts far from each other, on a line that takes its time and loses packets.

use crate::corpus::{Place, STEPS};
use crate::delay_line::DelayLine;
use crate::namespaces::{Namespaces, address};
use std::io::Read;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

const HOSTS: usize = 3;

/// Two milliseconds each way: hosts of one town.
const DELAY: Duration = Duration::from_millis(2);

/// A rank on the host of its number; stderr can be read.
fn start(hosts: &Namespaces, place: &Place, rank: usize, arguments: &[&str]) -> Child {
    // `ip netns exec` becomes the program: its process is the rank.
    let mut command = place.foreign_command("ip");
    command.args(["netns", "exec", &hosts.name(rank), env!("CARGO_BIN_EXE_gradus"), "train", "run.toml"]);
    command.args(["--network.rendezvous_timeout_s", "60"]).args(arguments);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", HOSTS.to_string());
    command.env("MASTER_ADDR", address(0)).env("MASTER_PORT", "29500");
    command.env("GRADUS_SECRET", "known to the ranks of this test only");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Ranks that do not outlive a test.
struct Ranks(Vec<Child>);

impl Ranks {
    /// How they end, by rank.
    fn end(mut self) -> Vec<Output> {
        std::mem::take(&mut self.0).into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.0 {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ranks_far_apart_learn_what_ranks_on_one_host_learn() {
    let Some(hosts) = Namespaces::apart(HOSTS) else { return };
    let (line, place) = (DelayLine::between(&hosts, HOSTS, DELAY, 300), Place::new());
    place.train(&["--run.dir", "runs/near", "--nproc-per-node", "3", "--launch.transport", "tcp"]);
    let ranks = (0..HOSTS).map(|rank| start(&hosts, &place, rank, &["--run.dir", "runs/far"])).collect();
    for output in Ranks(ranks).end() {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    assert_eq!(place.losses("far").len() as u64, STEPS);
    assert!(place.final_bytes("far") == place.final_bytes("near"));
    assert!(line.lost() > 0, "the line has lost nothing");
}

#[test]
fn a_far_host_that_is_cut_off_ends_the_run_on_all() {
    let Some(hosts) = Namespaces::apart(HOSTS) else { return };
    let (line, place) = (DelayLine::between(&hosts, HOSTS, DELAY, 0), Place::new());
    let endless =
        ["--train.steps", "1000000", "--network.failure_detection", "4s", "--launch.stall_timeout", "5s"];
    let mut ranks = Ranks((0..HOSTS).map(|rank| start(&hosts, &place, rank, &endless)).collect());
    let mut stderr = crate::ranks::wait_for(&mut ranks.0[0], "step: 3");
    line.cut(1);
    let mut first = String::new();
    stderr.read_to_string(&mut first).unwrap();
    for (rank, output) in ranks.end().iter().enumerate() {
        let said = if rank == 0 { first.clone() } else { text(output) };
        assert_eq!(output.status.code(), Some(1), "rank {rank}: {said}");
        assert!(said.contains("number ") && said.contains("rank 1"), "rank {rank}: {said}");
    }
}
