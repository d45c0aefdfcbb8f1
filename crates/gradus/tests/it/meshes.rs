//! Real ranks on a mesh: they learn what one rank learns, leave what one rank leaves, and end together.

use crate::corpus::{Place, STEPS};
use crate::ranks::{ranks_of, wait_for};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::Path;

/// Ranks, and how they split the work.
type Mesh = (&'static str, &'static [&'static str]);

const MESHES: [Mesh; 8] = [
    ("2", &["--parallel.fsdp", "2", "--parallel.zero", "1"]),
    ("2", &["--parallel.fsdp", "2", "--parallel.zero", "2"]),
    ("2", &["--parallel.fsdp", "2"]),
    ("2", &["--parallel.pp", "2"]),
    ("4", &["--parallel.pp", "2"]),
    ("4", &["--parallel.pp", "2", "--parallel.fsdp", "2"]),
    ("2", &["--parallel.tp", "2"]),
    ("4", &["--parallel.pp", "2", "--parallel.tp", "2"]),
];

fn arguments<'a>((ranks, mesh): Mesh, dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--nproc-per-node", ranks, "--run.dir", dir], mesh, more].concat()
}

/// Names, types and shapes of the tensors of a model.
fn tensors(model: &Path) -> Vec<String> {
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let shown = |(name, tensor): (&String, &Value)| format!("{name} {} {}", tensor["dtype"], tensor["shape"]);
    let mut all: Vec<String> = header.as_object().unwrap().iter().map(shown).collect();
    all.sort();
    all
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= 1e-5 * expected,
            "{what}, step {step}: {found}, alone {expected}"
        );
    }
}

/// The last `step` event of a run.
fn last_step(place: &Path, run: &str) -> Value {
    let text = fs::read_to_string(place.join("runs").join(run).join("metrics.jsonl")).unwrap();
    let mut events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.rfind(|event| event["event"] == "step").unwrap()
}

#[test]
fn every_mesh_learns_and_leaves_what_one_rank_does_over_shared_memory_and_tcp() {
    let place = Place::new();
    place.train(&["--run.dir", "runs/one"]);
    let (losses, last) = (place.losses("one"), last_step(place.path(), "one"));
    let model = |run: &str| place.path().join("runs").join(run).join("model");
    for (number, mesh) in MESHES.into_iter().enumerate() {
        for transport in ["shm", "tcp"] {
            let run = format!("{transport}{number}");
            place.train(&arguments(mesh, &format!("runs/{run}"), &["--launch.transport", transport]));
            let what = format!("{mesh:?} over {transport}");
            assert_close(&place.losses(&run), &losses, &what);
            assert_eq!(tensors(&model(&run)), tensors(&model("one")), "{what}");
            let config = |run| fs::read_to_string(model(run).join("config.json")).unwrap();
            assert_eq!(config(&run), config("one"), "{what}");
            let found = last_step(place.path(), &run);
            assert_eq!(found["tokens"], last["tokens"], "each token counts once: {what}");
            let by_axis = found["exposed_by_axis_s"].as_object().unwrap().values();
            let sum: f64 = by_axis.map(|time| time.as_f64().unwrap()).sum();
            assert!(
                (sum - found["exposed_communication_s"].as_f64().unwrap()).abs() < 1e-9,
                "{what}: {found}"
            );
        }
    }
}

#[test]
fn the_mesh_is_shown_and_what_it_cannot_do_is_said_once() {
    let place = Place::new();
    let more = ["--sample.tokens", "4", "--train.microbatch", "4", "--train.steps", "3"];
    let output = place.run(&[&["train", "run.toml"], &arguments(MESHES[4], "runs/a", &more)[..]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("  mesh        pp 2 x dp 2\n") && text.contains("% (pp "), "{text}");
    for warning in ["no rank has the whole model", "(parallel.pp) has 1 microbatches"] {
        assert_eq!(text.matches(warning).count(), 1, "{warning:?} in {text}");
    }
    let page = fs::read_to_string(place.path().join("runs/a/report.html")).unwrap();
    assert!(page.contains("<td>pp 2 x dp 2</td>") && page.contains("time: pp "), "{page}");
}

#[test]
fn a_killed_rank_of_a_mesh_ends_the_run_and_is_named() {
    for (transport, mesh) in [("shm", MESHES[4]), ("tcp", MESHES[5])] {
        let place = Place::new();
        let more = ["--train.steps", "1000000", "--launch.transport", transport];
        let mut launcher = place.start(&arguments(mesh, "runs/a", &more));
        let mut stderr = wait_for(&mut launcher, "step: 3");
        let ranks = ranks_of(launcher.id());
        let victim = ranks.iter().find(|(rank, _)| rank == "2").unwrap().1;
        kill_process(victim, Signal::KILL).unwrap();
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert_eq!(launcher.wait().unwrap().code(), Some(1));
        assert!(rest.contains("rank 2") && rest.contains("SIGKILL"), "{rest}");
    }
}

/// Takes the last checkpoint of a run away, so that it goes on from the one before.
fn forget_the_end(place: &Place, run: &str) {
    fs::remove_dir_all(place.checkpoint(run, STEPS)).unwrap();
}

#[test]
fn resumed_under_the_same_mesh_a_run_repeats_its_bits_and_under_another_it_learns_the_same_if_told_to() {
    let place = Place::new();
    let saving = ["--checkpoint.every", "10", "--checkpoint.keep", "9", "--resume"];
    let whole = arguments(MESHES[5], "runs/a", &saving);
    place.train(&whole[..whole.len() - 1]);
    let (losses, bytes) = (place.losses("a"), place.final_bytes("a"));
    forget_the_end(&place, "a");
    place.train(&whole);
    assert!(place.losses("a") == losses && place.final_bytes("a") == bytes);

    for mesh in [("2", &[][..]), ("1", &[][..]), MESHES[1], MESHES[3], MESHES[7]] {
        forget_the_end(&place, "a");
        let other = arguments(mesh, "runs/a", &saving);
        let refused = place.run(&[&["train", "run.toml"], &other[..]].concat());
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && text.contains("--checkpoint.allow_changes"), "{text}");
        let is_named = |key: &str| text.contains(&format!("parallel.{key} was 2 and is 1"));
        assert!(is_named("fsdp") || is_named("pp"), "{text}");
        place.train(&[&other[..], &["--checkpoint.allow_changes", "true"]].concat());
        assert_close(&place.losses("a"), &losses, &format!("{mesh:?}"));
    }
}
