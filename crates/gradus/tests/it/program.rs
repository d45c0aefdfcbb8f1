//! The program itself, as a person runs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

fn gradus(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gradus"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the program was built for this test")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes text")
}

#[test]
fn a_report_is_made_from_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let line = r#"{"event":"evaluation","step":1,"loss":null,"nats_per_byte":0.0,"targets":3}"#;
    std::fs::write(directory.path().join("metrics.jsonl"), line).unwrap();
    let output = gradus(directory.path(), &["report", "."]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    assert_eq!(text(&output.stdout), "./report.html\n./loss.svg\n");
    assert!(directory.path().join("report.html").is_file() && directory.path().join("loss.svg").is_file());
}

#[test]
fn only_folders_of_caches_are_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    for what in ["stat", "verify", "clear"] {
        let output = gradus(directory.path(), &["cache", what, "nowhere"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("nowhere is no cache's folder"), "{output:?}");
    }
}

#[test]
fn pipelines_are_laid_out_and_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let line = ["plan", "pipeline", "--ranks", "2", "--microbatches", "2", "--svg", "pipeline.svg"];
    let output = gradus(directory.path(), &line);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    assert!(text(&output.stdout).starts_with("2 microbatches through 2 ranks\n"));
    assert!(std::fs::read_to_string(directory.path().join("pipeline.svg")).unwrap().ends_with("</svg>\n"));
    let output = gradus(directory.path(), &[&line[..6], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schedules"].as_array().unwrap().len(), 4);
}

#[test]
fn runs_are_planned_without_data_and_refused_where_they_do_not_fit() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("run.toml"),
        "[model]\npreset = \"gpt2\"\n[train]\nsteps = 1\nglobal_batch = 32\n",
    )
    .unwrap();
    let line = ["plan", "train", "run.toml", "--world", "8", "--memory-gb", "2", "--json"];
    let output = gradus(directory.path(), &line);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["world_size"], &report["parameters"]), (&8.into(), &124_439_808.into()));
    let output = gradus(directory.path(), &[&line[..], &["--parallel.dp", "8"]].concat());
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("bytes are missing") && error.contains("parallel.fsdp"), "{error}");
}

#[test]
fn bad_input_ends_with_two_and_says_what_to_mend() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 8] = [
        (&["report", "nowhere"], "gradus: error: cannot read nowhere/metrics.jsonl: "),
        (&["report", ".", "--model.layers"], "gradus: error: --model.layers needs a value"),
        (&["report", ".", "--model.layers", "6"], "gradus: error: --model.layers is a setting of a run"),
        (&["plan", "collective", "--world", "0", "--bytes", "1"], "gradus: error: --world 0: choose 1 to "),
        (
            &["plan", "collective", "--world", "2", "--bytes", "1", "--links.inside.latency", "1"],
            "gradus: error: --links.inside.latency: there is no setting `links.inside.latency`; did you mean \
             `links.inside.latency_us`?",
        ),
        (
            &["plan", "pipeline", "--ranks", "0", "--microbatches", "1"],
            "gradus: error: --ranks 0: choose 1 to ",
        ),
        (
            &["plan", "pipeline", "--ranks", "2", "--microbatches", "1", "--links.inside.latency_us", "1"],
            "gradus: error: --links.inside.latency_us is a setting of a run",
        ),
        (&["repotr"], "error: unrecognized subcommand 'repotr'"),
    ];
    for (arguments, message) in cases {
        let output = gradus(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).starts_with(message), "{}", text(&output.stderr));
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let directory = tempfile::tempdir().unwrap();
    for flag in ["--help", "--version"] {
        let output = gradus(directory.path(), &[flag]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
        assert!(text(&output.stdout).contains("gradus"));
    }
}

/// `section.key` of every setting that `gradus config` prints.
fn keys_of_the_program() -> BTreeSet<String> {
    let directory = tempfile::tempdir().unwrap();
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text(&gradus(directory.path(), &["config"]).stdout).lines() {
        if let Some((key, _)) = line.split_once(" = ") {
            keys.insert(format!("{section}.{}", key.trim()));
        } else if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
        }
    }
    keys
}

#[test]
fn the_page_of_settings_names_every_setting_and_no_other() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/settings.md");
    let page = std::fs::read_to_string(page).unwrap();
    let named = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named: BTreeSet<String> = named.map(|(key, _)| key.to_owned()).collect();
    let known = keys_of_the_program();
    assert!(known.contains("model.layers"), "{known:?}");
    let apart: Vec<_> = named.symmetric_difference(&known).collect();
    assert!(apart.is_empty(), "only in docs/settings.md, or only in the program: {apart:?}");
}
