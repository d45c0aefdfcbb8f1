//! Any number of ranks, over either transport, learns the same; when one is lost, all end.

use crate::corpus::{Place, STEPS};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

fn train(place: &Place, name: &str, ranks: usize, transport: &str) {
    let (dir, ranks) = (format!("runs/{name}"), ranks.to_string());
    place.train(&["--run.dir", &dir, "--nproc-per-node", &ranks, "--launch.transport", transport]);
}

#[test]
fn one_to_four_ranks_learn_the_same_over_shared_memory_and_tcp() {
    let place = Place::new();
    train(&place, "one", 1, "auto");
    let alone = place.losses("one");
    assert_eq!(alone.len() as u64, STEPS);
    assert!(alone[19] < alone[0] - 0.05, "it learns: {alone:?}");
    for ranks in 2..=4 {
        for transport in ["shm", "tcp"] {
            let name = format!("{transport}{ranks}");
            train(&place, &name, ranks, transport);
            for (together, alone) in place.losses(&name).iter().zip(&alone) {
                // Sums in another order differ by some 1e-7; twenty steps at 3e-4 keep that below 1e-5.
                assert!((together - alone).abs() <= 1e-5 * alone, "{name}: {together} {alone}");
            }
        }
        // Of two, each sum has one order; of more, the plan decides, and transports have plans of their own.
        let same = place.final_bytes(&format!("shm{ranks}")) == place.final_bytes(&format!("tcp{ranks}"));
        assert!(same || ranks > 2);
    }
}

#[test]
fn what_the_coordinator_logs_holds_nobody_up() {
    let place = Place::new();
    let mut command = place.command(["train", "run.toml", "--nproc-per-node", "2"]);
    let output = command.env("GRADUS_LOG", "debug").output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("DEBUG"), "{log}");
}

#[test]
fn more_ranks_than_files_may_be_open_are_refused_before_any_is_started() {
    let place = Place::new();
    let mut limited = place.foreign_command("/bin/sh");
    let script = "ulimit -n 50; exec \"$0\" train run.toml --nproc-per-node 4";
    let output = limited.args(["-c", script, env!("CARGO_BIN_EXE_gradus")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("ulimit -n"), "{said}");
}

#[test]
fn the_same_run_has_the_same_bits_again() {
    let place = Place::new();
    for precision in ["f32", "bf16"] {
        let names = ["a", "b"].map(|name| format!("{precision}-{name}"));
        for name in &names {
            let dir = format!("runs/{name}");
            place.train(&["--run.dir", &dir, "--nproc-per-node", "2", "--train.precision", precision]);
        }
        assert!(place.final_bytes(&names[0]) == place.final_bytes(&names[1]));
        assert_eq!(place.losses(&names[0]), place.losses(&names[1]));
    }
}

#[test]
fn ranks_started_by_another_launcher_take_their_place_from_the_environment() {
    let place = Place::new();
    place.train(&["--run.dir", "runs/own", "--nproc-per-node", "2"]);
    for (number, variables) in [
        ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"],
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let port = free_port();
        let dir = format!("runs/foreign{number}");
        let ranks: Vec<Child> = ["0", "1"]
            .map(|rank| {
                let mut command = place.command(["train", "run.toml", "--run.dir", &dir]);
                command.envs(variables.iter().zip([rank, "2", rank, "2"]));
                command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]);
                command.stderr(Stdio::piped()).spawn().unwrap()
            })
            .into();
        for rank in ranks {
            let output = rank.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(place.final_bytes(&format!("foreign{number}")) == place.final_bytes("own"));
    }
}

#[test]
fn ranks_asked_for_where_another_launcher_has_started_one_are_refused() {
    let place = Place::new();
    let mut command = place.command(["train", "run.toml", "--nproc-per-node", "2"]);
    let output = command.env("RANK", "0").env("WORLD_SIZE", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("RANK and WORLD_SIZE"), "{text}");
}

/// Starts ranks 0 and 1 as a foreign launcher would, each with its own arguments and in its own place; both must fail.
fn disagree(places: [&Place; 2], extra: [&[&str]; 2], culprit: &str) {
    let port = free_port();
    let ranks = [0, 1].map(|rank| {
        let mut command = places[rank].command([&["train", "run.toml"], extra[rank]].concat());
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port).stderr(Stdio::piped());
        command.spawn().unwrap()
    });
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(culprit), "{culprit:?} is not named in: {text}");
    }
}

#[test]
fn ranks_with_other_settings_data_kernels_or_steps_do_not_train_together() {
    let (here, there) = (Place::new(), Place::new());
    disagree([&here, &here], [&[], &["--model.layers", "3"]], "model.layers");
    let sharded = ["--parallel.fsdp", "2", "--parallel.zero"];
    disagree(
        [&here, &here],
        [&[&sharded[..], &["1"]].concat(), &[&sharded[..], &["2"]].concat()],
        "parallel.zero",
    );
    let text = fs::read_to_string(there.path().join("corpus/00.txt")).unwrap();
    fs::write(there.path().join("corpus/00.txt"), text.replace("let", "tel")).unwrap();
    disagree([&here, &there], [&[], &[]], "data");
    let (here, there) = (Place::new(), Place::new());
    let steps = ["--checkpoint.allow_changes", "true", "--run.dir", "runs/own"];
    here.train(&[&steps[..], &["--train.steps", "4"]].concat());
    there.train(&[&steps[..], &["--train.steps", "6"]].concat());
    let resume = [&steps[..], &["--resume"]].concat();
    disagree([&here, &there], [&resume, &resume], "step");
}

#[test]
fn steps_without_a_finite_gradient_are_skipped_and_too_many_end_the_run() {
    let place = Place::new();
    let wild =
        ["--optimizer.learning_rate", "1e30", "--optimizer.warmup_steps", "0", "--train.most_skipped", "3"];
    for ranks in ["1", "2"] {
        let output = place.run(&[&["train", "run.toml", "--nproc-per-node", ranks], &wild[..]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("not finite in 4 steps in a row") && text.contains("learning_rate"), "{text}");
    }
    let metrics = fs::read_to_string(place.path().join("runs/a/metrics.jsonl")).unwrap();
    assert_eq!(metrics.matches("\"skipped\":true").count(), 4);
}

/// A port that was free a moment ago: foreign launchers choose ports just so.
pub fn free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// Process ids of the ranks that a launcher has started, by their rank.
pub fn ranks_of(launcher: u32) -> Vec<(String, Pid)> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    children
        .split_whitespace()
        .filter_map(|child| {
            let environment = fs::read(format!("/proc/{child}/environ")).ok()?;
            let mut variables = environment.split(|byte| *byte == 0);
            let rank = variables.find_map(|entry| entry.strip_prefix(b"RANK="))?;
            Some((String::from_utf8(rank.to_vec()).unwrap(), Pid::from_raw(child.parse().unwrap()).unwrap()))
        })
        .collect()
}

/// Reads a launcher's stderr until a line has `text`.
pub fn wait_for(child: &mut Child, text: &str) -> BufReader<std::process::ChildStderr> {
    let mut reader = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "stderr ended before {text:?}");
    }
    reader
}

#[test]
fn a_killed_rank_ends_the_run_and_is_named() {
    for transport in ["shm", "tcp"] {
        let place = Place::new();
        let endless = ["--train.steps", "1000000", "--nproc-per-node", "3", "--launch.transport", transport];
        let mut launcher = place.start(&endless);
        let mut stderr = wait_for(&mut launcher, "step: 3");
        let ranks = ranks_of(launcher.id());
        assert_eq!(ranks.len(), 3);
        let victim = ranks.iter().find(|(rank, _)| rank == "1").unwrap().1;
        kill_process(victim, Signal::KILL).unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stderr, &mut rest).unwrap();
        assert_eq!(launcher.wait().unwrap().code(), Some(1));
        assert!(rest.contains("rank 1") && rest.contains("SIGKILL"), "{rest}");
        for (_, pid) in ranks {
            assert!(!fs::exists(format!("/proc/{}", pid.as_raw_nonzero())).unwrap(), "a rank is left behind");
        }
    }
}

#[test]
fn a_stopped_rank_ends_the_run_and_is_named_with_its_host_and_what_waited_for_it() {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for transport in ["shm", "tcp"] {
        let place = Place::new();
        let endless = ["--train.steps", "1000000", "--nproc-per-node", "3", "--launch.transport", transport];
        let mut launcher = place.start(&[&endless[..], &["--network.failure_detection", "4s"]].concat());
        let mut stderr = wait_for(&mut launcher, "step: 3");
        let ranks = ranks_of(launcher.id());
        let victim = ranks.iter().find(|(rank, _)| rank == "1").unwrap().1;
        kill_process(victim, Signal::STOP).unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stderr, &mut rest).unwrap();
        assert_eq!(launcher.wait().unwrap().code(), Some(1));
        // Nobody but membership tells of a process that is stopped: its connections stay open.
        let told = [format!("rank 1 on {host}"), "all-reduce number".into(), "stopped or cut off".into()];
        assert!(told.iter().all(|words| rest.contains(words)), "{transport}: {rest}");
        for (_, pid) in ranks {
            assert!(!fs::exists(format!("/proc/{}", pid.as_raw_nonzero())).unwrap(), "a rank is left behind");
        }
    }
}

#[test]
fn records_of_the_survivors_name_a_lost_rank() {
    let place = Place::new();
    let endless = ["--train.steps", "1000000", "--nproc-per-node", "3", "--launch.transport", "shm"];
    let arguments = [&["train", "run.toml"], endless.as_slice()].concat();
    let mut command = place.command(arguments);
    let mut launcher = command.env("GRADUS_FLIGHT_DIR", "flight").stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = wait_for(&mut launcher, "step: 3");
    let ranks = ranks_of(launcher.id());
    let victim = ranks.iter().find(|(rank, _)| rank == "1").unwrap().1;
    kill_process(victim, Signal::KILL).unwrap();
    std::io::Read::read_to_string(&mut stderr, &mut String::new()).unwrap();
    assert_eq!(launcher.wait().unwrap().code(), Some(1));
    let output = place.run(&["flight", "flight/flight-rank-0.json", "flight/flight-rank-2.json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let told = ["no record of rank 1", "look at rank 1 first"];
    assert!(told.iter().all(|line| text.contains(line)), "{text}");
}
