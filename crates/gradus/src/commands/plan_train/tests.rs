use super::*;
use crate::settings::resolve;
use clap::Parser;
use gradus_error::Kind;
use std::path::Path;

const H100: &str = "--memory-gb 80 --peak-flops 989e12 --ranks-per-node 8 --link-latency-us 5 --link-gb-per-s 450 \
                    --node-latency-us 10 --node-gb-per-s 50";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: PlanTrainArguments,
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// What is printed, for people and for programs; overrides as `key=value`.
fn plan(line: &str, overrides: &[&str]) -> Result<(Vec<String>, serde_json::Value), Error> {
    let words = ["gradus"].into_iter().chain(line.split_whitespace());
    let mut arguments = Line::try_parse_from(words).unwrap().arguments;
    arguments.file = arguments.file.map(|name| example(&name.to_string_lossy()));
    let pairs: Vec<(String, String)> = overrides
        .iter()
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let resolved = resolve::<Settings>(arguments.file.as_deref(), &pairs)?;
    let (work, machine) = (work(&resolved.settings)?, arguments.machine()?);
    let memory = arguments.memory(&machine)?;
    let choices = arguments.choices(&resolved, &work, &machine, memory)?;
    let report = Report::new(&choices, &machine, memory);
    Ok((lines(&report, &arguments), serde_json::to_value(&report).unwrap()))
}

#[test]
fn impossible_input_is_named() {
    for (line, overrides, culprit) in [
        ("plan-7b.toml --world 0", &[][..], "--world"),
        ("plan-7b.toml --world 18446744073709551615", &[], "--world"),
        ("plan-7b.toml --world 8 --memory-gb 0", &[], "--memory-gb"),
        ("plan-7b.toml --world 8 --memory-gb NaN", &[], "--memory-gb"),
        ("plan-7b.toml --world 8 --efficiency 1.5", &[], "efficiency"),
        ("plan-7b.toml --world 8 --peak-flops 0", &[], "operations"),
        ("plan-7b.toml --world 8 --ranks-per-node 0", &[], "node"),
        ("plan-7b.toml --world 8 --node-gb-per-s 0", &[], "across"),
        ("plan-7b.toml --world 8 --link-latency-us=-1", &[], "latencies"),
        ("plan-7b.toml --world 8", &["parallel.tp=3"], "parallel.tp"),
        ("plan-7b.toml --world 8", &["parallel.fsdp=5"], "parallel.fsdp"),
        ("plan-7b.toml --world 8", &["parallel.pp=8", "parallel.schedule=interleaved"], "stages_per_rank"),
        ("plan-7b.toml --world 8", &["train.microbatch=2000"], "train.microbatch"),
        ("nowhere.toml --world 8", &[], "nowhere.toml"),
    ] {
        let error = plan(line, overrides).unwrap_err();
        assert!(*error.kind() == Kind::Invalid && error.to_string().contains(culprit), "{line}: {error}");
    }
}

#[test]
fn tables_and_reports_show_the_same_plan() {
    let (lines, report) = plan(&format!("plan-7b.toml --world 64 {H100}"), &[]).unwrap();
    let text = lines.join("\n");
    assert!(lines[0].starts_with("6.74B parameters, sequences of 4,096 tokens"), "{text}");
    assert!(lines[1].starts_with("64 ranks on 8 nodes of 8, each with 80.0GB and 989TFLOP/s"), "{text}");
    assert!(text.contains("what a rank holds") && text.contains("what a rank sends"), "{text}");
    let choices = report["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    let fits = |choice: &serde_json::Value| choice["memory_bytes"].as_u64().unwrap() <= 80_000_000_000;
    assert!(choices.iter().all(fits));
    assert_eq!(choices[0]["memory_bytes"], {
        let holdings = report["holdings"].as_array().unwrap();
        let sum = |holding: &serde_json::Value| -> u64 {
            holding["memory"].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum()
        };
        holdings.iter().map(sum).max().unwrap()
    });
    assert!(!text.contains("assumed"), "everything was said: {text}");
    assert!(plan("plan-7b.toml --world 64 --memory-gb 80", &[]).unwrap().0.join("\n").contains("assumed"));
}

#[test]
fn settings_that_name_a_split_are_planned_as_they_are() {
    let given = ["parallel.pp=4", "parallel.tp=8", "parallel.fsdp=4", "train.microbatch=1"];
    let (lines, report) = plan(&format!("plan-70b.toml --world 1024 {H100}"), &given).unwrap();
    let text = lines.join("\n");
    assert!(
        text.contains("split: pp 4 x dp 8 x fsdp 4 x tp 8, zero 3, 1f1b; 64 microbatches of 1"),
        "{text}"
    );
    assert_eq!(report["holdings"].as_array().unwrap().len(), 4);
    assert_eq!(report["holdings"][0]["slots"], serde_json::json!([4]));
    let axes: Vec<_> = report["traffic"].as_array().unwrap().iter().map(|row| row["axis"].clone()).collect();
    assert!(
        ["tp", "fsdp", "dp", "pp"].iter().all(|axis| axes.contains(&serde_json::json!(axis))),
        "{axes:?}"
    );
}

#[test]
fn what_does_not_fit_is_bad_input_with_what_would_fit() {
    let error = plan(&format!("plan-70b.toml --world 1024 {H100}"), &["parallel.dp=1024"]).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.exit_code(), 2);
    assert!(text.contains("bytes are missing") && text.contains("moments"), "{text}");
    assert!(text.contains("parallel.fsdp") && text.contains("would fit"), "{text}");
    let nothing = plan("plan-70b.toml --world 2 --memory-gb 1", &[]).unwrap_err();
    assert!(*nothing.kind() == Kind::Invalid && nothing.to_string().contains("2 ranks"), "{nothing}");
}

#[test]
fn presets_and_runs_that_learn_their_vocabulary_need_no_data() {
    let preset = plan("quickstart.toml --world 2 --memory-gb 8", &[]).unwrap().1;
    assert!(preset["parameters"].as_u64().unwrap() > 3_000_000);
    let settings = ["model.preset=gpt2", "train.steps=1"];
    let gpt2 = plan("--world 2 --memory-gb 8", &settings).unwrap().1;
    assert_eq!(gpt2["parameters"], 124_439_808);
}
