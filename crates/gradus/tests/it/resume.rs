//! A run that was stopped, in whatever way, and goes on, ends with the same bits as one that was not.

use crate::corpus::{Place, STEPS};
use crate::ranks::wait_for;
use gradus_host::random::{Stream, seed_from_system};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::Child;

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Steps whose lines are all shown.
const SHOWN: u64 = 10;

#[test]
fn killed_at_any_step_and_resumed_the_final_files_are_the_same() {
    let place = Place::new();
    let common = ["--nproc-per-node", "2", "--checkpoint.keep", "100"];
    place.train(&[&common[..], &["--run.dir", "runs/whole"]].concat());
    // Where the kill falls, and how far back the newest checkpoint lies, is drawn anew each time: every draw must do.
    let mut draws = Stream::new(seed_from_system(), 0);
    for number in 0..3 {
        let (every, step) = (1 + draws.next_below(4), 1 + draws.next_below(STEPS - 4));
        let (run, every_text) = (format!("killed{number}"), every.to_string());
        let dir = format!("runs/{run}");
        let arguments = [&common[..], &["--run.dir", &dir, "--checkpoint.every", &every_text]].concat();
        let mut launcher = place.start(&arguments);
        let saved = format!("step-{:08}", step.next_multiple_of(every));
        let text = if step < SHOWN { format!("step: {step} ") } else { saved };
        drop(wait_for(&mut launcher, &text));
        send(&launcher, Signal::KILL);
        launcher.wait().unwrap();
        let drawn = format!("killed at step {step} with a checkpoint every {every} steps");
        // Before the first checkpoint there is nothing to go on from: the run begins again.
        let begun = (1..=STEPS).any(|step| place.checkpoint(&run, step).is_dir());
        let again: &[&str] = if begun { &["--resume"] } else { &[] };
        place.train(&[&arguments[..], again].concat());
        let run = if begun { run } else { format!("{run}-2") };
        assert!(place.final_bytes(&run) == place.final_bytes("whole"), "{drawn}");
        assert_eq!(place.losses(&run), place.losses("whole"), "the metrics read as one run: {drawn}");
    }
}

#[test]
fn ctrl_c_saves_ends_with_130_and_the_run_goes_on_from_there() {
    let place = Place::new();
    place.train(&["--nproc-per-node", "2", "--run.dir", "runs/whole"]);
    for ranks in ["1", "2"] {
        let dir = format!("runs/stopped{ranks}");
        let arguments = ["--nproc-per-node", ranks, "--run.dir", &dir];
        let mut launcher = place.start(&[&arguments[..], &["--train.steps", "1000000"]].concat());
        let stderr = wait_for(&mut launcher, "step: 2 ");
        send(&launcher, Signal::INT);
        drop(std::io::read_to_string(stderr).unwrap());
        assert_eq!(launcher.wait().unwrap().code(), Some(130));
        let stopped = fs::read_dir(place.path().join(&dir).join("checkpoints")).unwrap().count();
        assert_eq!(stopped, 1, "it saved where it stopped");
        assert!(!place.path().join(&dir).join("model").exists(), "an interrupted run exports nothing");
    }
}

#[test]
fn a_run_stopped_before_its_length_was_decided_decides_it_after_the_resume() {
    let place = Place::new();
    let timed = ["--train.steps", "0", "--train.duration", "2s", "--nproc-per-node", "1"];
    let mut rank = place.start(&timed);
    let stderr = wait_for(&mut rank, "step: 9 ");
    send(&rank, Signal::INT);
    drop(std::io::read_to_string(stderr).unwrap());
    let code = rank.wait().unwrap().code();
    place.train(&[&timed[..], &["--resume"]].concat());
    // Twenty steps to calibrate come after those of the first life, of which there were at least nine.
    assert!(code == Some(0) || place.losses("a").len() >= 29, "{code:?} {}", place.losses("a").len());
}

#[test]
fn a_reader_that_goes_away_breaks_nothing() {
    let place = Place::new();
    let mut shell = place.foreign_command("/bin/sh");
    let script = "\"$0\" train run.toml 2>&1 | head -n 1; \"$0\" config run.toml | head -n 1";
    let output = shell.args(["-c", script, env!("CARGO_BIN_EXE_gradus")]).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    assert!(place.checkpoint("a", STEPS).is_dir(), "the run goes on without a reader");
}

#[test]
fn a_resume_that_would_change_the_bits_is_refused_unless_told() {
    let place = Place::new();
    place.train(&["--nproc-per-node", "2", "--train.steps", "4"]);
    let again = ["train", "run.toml", "--resume", "--train.steps", "6", "--nproc-per-node"];
    assert_eq!(place.run(&[&again[..], &["1"]].concat()).status.code(), Some(2));
    let other = place.run(&[&again[..], &["2", "--optimizer.beta2", "0.5"]].concat());
    let text = String::from_utf8_lossy(&other.stderr);
    assert!(other.status.code() == Some(2) && text.contains("optimizer.beta2 was 0.95 and is 0.5"), "{text}");
    let other = place.run(&[&again[..], &["2", "--order.shuffle", "none"]].concat());
    let text = String::from_utf8_lossy(&other.stderr);
    assert!(
        other.status.code() == Some(2) && text.contains("order.shuffle was \"whole\" and is \"none\""),
        "{text}"
    );
    let told = place.run(&[&again[..], &["1", "--checkpoint.allow_changes", "true"]].concat());
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    assert!(place.checkpoint("a", 6).is_dir());
}

#[test]
fn a_run_by_muon_goes_on_with_the_same_bits_and_by_muon_only() {
    let place = Place::new();
    let common = ["--nproc-per-node", "2", "--checkpoint.keep", "100", "--checkpoint.every", "7"];
    let muon = [&common[..], &["--optimizer.kind", "muon", "--optimizer.learning_rate", "3e-3"]].concat();
    place.train(&[&muon[..], &["--run.dir", "runs/whole"]].concat());
    place.train(&muon);
    let losses = place.losses("a");
    assert!(losses[STEPS as usize - 1] < losses[0] - 0.1, "{losses:?}");
    for step in 8..=STEPS {
        let _ = fs::remove_dir_all(place.checkpoint("a", step));
    }
    place.train(&[&muon[..], &["--resume"]].concat());
    assert!(place.final_bytes("a") == place.final_bytes("whole"));
    let refused = |extra: &[&str], said: &str| {
        let output = place.run(&[&["train", "run.toml", "--resume"], &common[..], extra].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(said), "{text}");
    };
    let iterations =
        ["--optimizer.kind", "muon", "--optimizer.learning_rate", "3e-3", "--optimizer.muon.iterations", "4"];
    refused(&iterations, "optimizer.muon.iterations was 5 and is 4");
    refused(&[], "optimizer.kind \"muon\"");
    // There are no moments for AdamW, so that no permission helps.
    refused(&["--checkpoint.allow_changes", "true"], "optimizer.kind \"muon\"");
}

#[test]
fn a_resumed_run_chooses_by_the_links_that_it_began_with() {
    let place = Place::new();
    let common = ["--nproc-per-node", "3", "--checkpoint.keep", "100", "--checkpoint.every", "4"];
    place.train(&[&common[..], &["--train.measure_links", "true"]].concat());
    let whole = place.final_bytes("a");
    let links = |step| {
        let state = place.checkpoint("a", step).join("training_state.json");
        let state: serde_json::Value = serde_json::from_str(&fs::read_to_string(state).unwrap()).unwrap();
        let conditions = state["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition[0] == "links").unwrap()[1].clone()
    };
    let measured = links(4);
    let later = (5..=STEPS).map(|step| place.checkpoint("a", step)).filter(|folder| folder.is_dir());
    later.for_each(|folder| fs::remove_dir_all(folder).unwrap());
    // It was not asked to measure again, and would find other figures if it did.
    place.train(&[&common[..], &["--resume"]].concat());
    assert_eq!(links(STEPS), measured);
    assert!(place.final_bytes("a") == whole);
}

#[test]
fn a_run_that_is_all_warm_up_is_warned_of_and_either_key_gives_the_length_of_sequences() {
    let place = Place::new();
    let short = ["train", "run.toml", "--train.steps", "4", "--data.sequence_length", "16"];
    let output = place.run(&[&short[..], &["--nproc-per-node", "2"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.matches("optimizer.warmup_steps is 5").count() == 1, "{text}");
    let metrics = fs::read_to_string(place.path().join("runs/a/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"tokens_per_step\":128"), "8 sequences of 16 tokens: {metrics}");
}

#[test]
fn a_run_that_begins_with_a_folder_takes_model_context_and_tokenizer_from_it() {
    let place = Place::new();
    place.train(&["--train.steps", "8"]);
    let settings = fs::read_to_string(place.path().join("run.toml")).unwrap();
    let from = "[model]\nfrom = \"runs/a/model\"\n";
    let old = "[model]\nwidth = 32\nlayers = 2\nheads = 2\ncontext = 32\n";
    assert!(settings.contains(old) && settings.contains("vocabulary = 300"));
    let settings = settings.replace(old, from).replace("vocabulary = 300", "vocabulary = 280");
    fs::write(place.path().join("on.toml"), settings).unwrap();
    let on = ["train", "on.toml", "--train.steps", "4", "--run.dir", "runs/b", "--data.prepared", "data/b"];
    let refused = place.run(&[&on[..], &["--model.layers", "3"]].concat());
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && text.contains("leave out model.layers"), "{text}");
    let output = place.run(&on);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(place.losses("b")[0] < place.losses("a")[7] + 0.1, "it goes on from where the folder stands");
    let [a, b] = ["a", "b"].map(|run| place.path().join("runs").join(run).join("model/tokenizer.json"));
    assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
}

#[test]
fn a_damaged_checkpoint_is_refused_and_a_half_written_one_is_not_seen() {
    let place = Place::new();
    place.train(&["--train.steps", "4"]);
    let half = place.path().join("runs/a/checkpoints/step-00000005.partial");
    fs::create_dir(&half).unwrap();
    let file = place.checkpoint("a", 4).join("training_state.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let output = place.run(&["train", "run.toml", "--resume"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("training_state.safetensors") && text.contains("step-00000004"), "{text}");
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    place.train(&["--resume"]);
    assert!(place.checkpoint("a", STEPS).is_dir());
}

#[test]
fn a_disk_that_fills_up_while_saving_keeps_the_last_checkpoint() {
    // Shared memory is files, too: two ranks of a pipeline, who bring rank 0 their parts, go over TCP.
    let pipeline = ["--nproc-per-node", "2", "--parallel.pp", "2", "--launch.transport", "tcp"];
    for mesh in [&[][..], &pipeline] {
        let place = Place::new();
        place.train(&[mesh, &["--train.steps", "4", "--checkpoint.every", "4"]].concat());
        let before = fs::read(place.checkpoint("a", 4).join("model.safetensors")).unwrap();
        // A limit on file sizes, whose signal is ignored, makes writes fail as a full disk does, in the middle of a file.
        let script = "trap '' XFSZ; ulimit -f 40; exec \"$0\" train run.toml --resume --train.steps 6 \"$@\"";
        let mut limited = place.foreign_command("/bin/sh");
        limited.args(["-c", script, env!("CARGO_BIN_EXE_gradus")]).args(mesh);
        let output = limited.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("saving a checkpoint"), "{said}");
        assert!(!place.checkpoint("a", 6).exists());
        assert_eq!(fs::read(place.checkpoint("a", 4).join("model.safetensors")).unwrap(), before);
        place.train(&[mesh, &["--resume"]].concat());
    }
}
