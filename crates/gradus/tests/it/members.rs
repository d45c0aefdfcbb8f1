//! Ranks of launchers that know of no membership, as members of a group whose coordinator a person names.

use crate::corpus::{Place, STEPS};
use crate::etcd_server::{EtcdServer, etcd_is_there};
use crate::hosts::Ranks;
use crate::ranks::{free_port, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Long enough that no busy machine makes the living look dead.
const FAILURE_DETECTION: &str = "6s";

/// How long to wait for what must come.
const LIMIT: Duration = Duration::from_secs(120);

/// A run that only a lost rank ends, and soon only if membership tells of it.
const ENDLESS: [&str; 4] = ["--train.steps", "1000000", "--launch.stall_timeout", "1h"];

/// `gradus coordinator`, which does not outlive its test.
struct Coordinator {
    child: Child,
    address: String,
    lines: Receiver<String>,
}

impl Coordinator {
    fn start(place: &Place, engine: [&str; 2]) -> Self {
        let mut command = place.command(["coordinator", "--listen", "127.0.0.1:0"]);
        command.args(engine).args(["--failure-detection", FAILURE_DETECTION]).env("GRADUS_LOG", "info");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, address, lines }
    }

    fn on_a_file(place: &Place) -> Self {
        Self::start(place, ["--state", "state"])
    }

    /// Waits for a line of its log that has all of `words`.
    fn logs(&self, words: &[&str]) {
        loop {
            let line = self.lines.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no line has {words:?}"));
            if words.iter().all(|word| line.contains(word)) {
                return;
            }
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rank `rank` of `count` as torchrun would start it on this host.
fn rank(place: &Place, [rank, count]: [usize; 2], port: &str, rdzv: &str, arguments: &[&str]) -> Child {
    let mut command = place.command(["train", "run.toml", "--rdzv", rdzv]);
    command.args(["--network.failure_detection", FAILURE_DETECTION]).args(arguments);
    let (rank, count) = (rank.to_string(), count.to_string());
    command.env("RANK", &rank).env("WORLD_SIZE", &count);
    command.env("LOCAL_RANK", &rank).env("LOCAL_WORLD_SIZE", &count);
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port);
    command.env("TORCHELASTIC_RUN_ID", "of-torchrun");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// All `count` of them.
fn ranks(place: &Place, count: usize, rdzv: &str, arguments: &[&str]) -> Ranks {
    let port = free_port();
    Ranks((0..count).map(|number| rank(place, [number, count], &port, rdzv, arguments)).collect())
}

/// All of them train to the end.
fn all_are_done(ranks: Ranks) {
    for (rank, (code, text)) in ranks.end().into_iter().enumerate() {
        assert_eq!(code, Some(0), "rank {rank}: {text}");
    }
}

/// Strikes rank 1 of three once they learn; what each of the others says of it, and rank 1 as it was left.
fn struck(mut ranks: Ranks, strike: impl FnOnce(&mut Child)) -> ([String; 2], Ranks) {
    let mut stderr = wait_for(&mut ranks.0[0], "step: 3");
    let mut victim = Ranks(vec![ranks.0.remove(1)]);
    strike(&mut victim.0[0]);
    let mut first = String::new();
    stderr.read_to_string(&mut first).unwrap();
    let ended = ranks.end();
    assert!(ended.iter().all(|(code, _)| *code == Some(1)), "{first} {ended:?}");
    ([first, ended[1].1.clone()], victim)
}

fn stop(rank: &mut Child) {
    kill_process(Pid::from_child(rank), Signal::STOP).unwrap();
}

/// Each of them says that membership has found rank 1 lost.
fn name_rank_1(told: &[String; 2]) {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let words = [&format!("rank 1 on {host}"), "all-reduce number", "stopped or cut off"];
    for text in told {
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn ranks_of_another_launcher_learn_in_a_group_what_they_learn_without() {
    let place = Place::new();
    place.train(&["--run.dir", "runs/own", "--nproc-per-node", "2"]);
    let coordinator = Coordinator::on_a_file(&place);
    all_are_done(ranks(&place, 2, &coordinator.address, &["--run.dir", "runs/members"]));
    coordinator.logs(&["joins", "train/of-torchrun", "rank-1"]);
    coordinator.logs(&["all may act", "train/of-torchrun"]);
    assert!(place.final_bytes("members") == place.final_bytes("own"));
    // Its own launcher leaves the group to the coordinator that is named.
    let own = ["--nproc-per-node", "2", "--rdzv", &coordinator.address, "--rdzv-id", "of-mine"];
    place.train(
        &[&own[..], &["--run.dir", "runs/again", "--network.failure_detection", FAILURE_DETECTION]].concat(),
    );
    coordinator.logs(&["all may act", "train/of-mine"]);
    assert!(place.final_bytes("again") == place.final_bytes("own"));
}

#[test]
fn a_stopped_rank_of_another_launcher_is_named_and_its_job_comes_back_under_the_same_name() {
    for transport in ["shm", "tcp"] {
        let place = Place::new();
        let coordinator = Coordinator::on_a_file(&place);
        let over = ["--launch.transport", transport, "--rdzv-id", "again"];
        let start = |more: &[&str]| ranks(&place, 3, &coordinator.address, &[&over, more].concat());
        let (told, mut stopped) = struck(start(&ENDLESS), stop);
        name_rank_1(&told);
        // The stopped one still has its name.
        all_are_done(start(&["--run.dir", "runs/second"]));
        assert_eq!(place.losses("second").len() as u64, STEPS);
        kill_process(Pid::from_child(&stopped.0[0]), Signal::CONT).unwrap();
        assert_eq!(stopped.0[0].wait().unwrap().code(), Some(1));
        // Those of the next are still known when it is started.
        struck(start(&ENDLESS), |rank| rank.kill().unwrap());
        all_are_done(start(&["--run.dir", "runs/fourth"]));
    }
}

#[test]
fn a_stopped_rank_is_named_over_etcd_by_the_coordinator_that_has_taken_over() {
    if !etcd_is_there() {
        return;
    }
    let (place, etcd) = (Place::new(), EtcdServer::start(None));
    let address = etcd.address("runs/a");
    let start = || Coordinator::start(&place, ["--rdzv", &address]);
    let mut first = start();
    first.logs(&["begins its term", "term=1"]);
    let second = start();
    all_are_done(ranks(&place, 3, &address, &["--run.dir", "runs/whole"]));
    first.logs(&["all may act", "train/of-torchrun"]);
    let (told, _) = struck(ranks(&place, 3, &address, &ENDLESS), |rank| {
        first.child.kill().unwrap();
        second.logs(&["begins its term", "term=2"]);
        stop(rank);
    });
    name_rank_1(&told);
}

#[test]
fn a_coordinator_that_is_not_there_and_a_group_that_is_not_full_are_named() {
    let place = Place::new();
    // A coordinator is waited for no longer than ranks are, however long a silent rank is borne.
    let brief = ["--network.rendezvous_timeout_s", "1", "--network.failure_detection", "1h"];
    // The discard port (RFC 863), which only a privileged program could serve.
    for (code, text) in ranks(&place, 2, "127.0.0.1:9", &brief).end() {
        assert!(
            code == Some(1)
                && text.contains("launch.rdzv")
                && text.contains("at 127.0.0.1:9: is `gradus coordinator` running"),
            "{text}"
        );
    }
    let coordinator = Coordinator::on_a_file(&place);
    let apart = |number: usize| {
        let id = ["one", "two"][number];
        let arguments = ["--network.rendezvous_timeout_s", "2", "--rdzv-id", id];
        rank(&place, [number, 2], &free_port(), &coordinator.address, &arguments)
    };
    for ((code, text), id) in Ranks([0, 1].map(apart).into()).end().into_iter().zip(["one", "two"]) {
        let named =
            text.contains(&format!("no world of train/{id}")) && text.contains("same --rdzv and --rdzv-id");
        assert!(code == Some(1) && named, "{text}");
    }
}

#[test]
fn what_cannot_lead_to_a_coordinator_is_refused_and_no_password_is_shown_or_kept() {
    let place = Place::new();
    let cases: [(&[&str], &str); 5] = [
        (&["--rdzv", "etcd://me:hunter2@127.0.0.1/p"], "ETCDCTL_USER"),
        (&["--launch.rdzv", "etcds://me:hunter2@127.0.0.1/p"], "ETCDCTL_USER"),
        (&["--rdzv", "etcds://127.0.0.1/p"], "ETCDCTL_CACERT"),
        (&["--rdzv", "nonsense"], "launch.rdzv"),
        (&["--rdzv", "127.0.0.1:9", "--rdzv-id", "of mine"], "launch.rdzv_id"),
    ];
    for (arguments, named) in cases {
        let mut command = place.command([&["train", "run.toml"], arguments].concat());
        command.env("RANK", "0").env("WORLD_SIZE", "2").env_remove("ETCDCTL_CACERT");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(named) && !text.contains("hunter2"), "{text}");
    }
    // Who trains alone keeps its settings, too.
    let alone = place.run(&["train", "run.toml", "--rdzv", "etcd://me:hunter2@127.0.0.1/p"]);
    assert_eq!(alone.status.code(), Some(2));
    assert!(!place.path().join("runs").exists());
}
