//! The runner against targets that do harm on purpose.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An empty folder of a test's own.
fn root(test: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).unwrap();
    root
}

/// Whether the runner finds nothing, and what it says.
fn smoke(root: &Path, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smoke"));
    let output = command.arg("--root").arg(root).args(words).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn whatever_a_single_input_does_is_found() {
    let root = root("single");
    for (input, sign) in [
        ("nothing", None),
        ("do harm: abort", Some("FAILED (signal")),
        ("do harm: panic", Some("FAILED (exit")),
        ("do harm: memory", Some("bytes of memory")),
        ("do harm: hang", Some("HANGS")),
    ] {
        let file = root.join("input");
        fs::write(&file, input).unwrap();
        let words = ["--target", "planted", "--replay", file.to_str().unwrap(), "--grace", "2"];
        let (well, said) = smoke(&root, &words);
        assert_eq!(well, sign.is_none(), "{input}: {said}");
        assert!(sign.is_none_or(|sign| said.contains(sign)), "{input}: {said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), input, "what is replayed stays");
    }
}

#[test]
fn a_finding_of_a_target_alone_is_kept_and_no_later_run_removes_it() {
    let root = root("kept");
    let (well, said) = smoke(&root, &["--target", "planted-abort", "--seconds", "1"]);
    let kept = files_in(&root.join("findings/planted-abort"));
    assert!(!well && kept.len() == 1 && said.contains(kept[0].to_str().unwrap()), "{said}");
    assert_eq!(fs::read(&kept[0]).unwrap(), b"do harm: abort");
    let beside = root.join("findings/planted/before");
    fs::create_dir_all(beside.parent().unwrap()).unwrap();
    fs::write(&beside, "before").unwrap();
    let (well, said) = smoke(&root, &["--target", "planted", "--seconds", "1", "--seed", "1"]);
    assert!(well, "{said}");
    assert!(kept[0].exists() && beside.exists());
}

#[test]
fn a_target_that_refuses_what_it_comes_with_is_found() {
    let (well, said) = smoke(&root("refused"), &["--target", "planted-refusal", "--seconds", "1"]);
    assert!(!well && said.contains("does not take what it comes with"), "{said}");
}

#[test]
fn what_a_killed_run_has_left_is_cleared_by_the_next() {
    let root = root("cleared");
    let left = root.join("work/0/files/left");
    fs::create_dir_all(&left).unwrap();
    assert!(smoke(&root, &["--target", "planted", "--seconds", "1"]).0);
    let names: Vec<_> = files_in(&root.join("work"));
    assert_eq!(names, [root.join("work/0.lock")], "nothing but the lock stays");
}
