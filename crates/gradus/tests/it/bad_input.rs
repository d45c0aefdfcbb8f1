//! What is wrong ends with exit code 2 (mend the input) or 1, in one message that names the culprit.

use crate::corpus::Place;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Runs and expects a failure whose message names `culprits`, once.
fn refused(place: &Place, arguments: &[&str], code: i32, culprits: &[&str]) {
    let output = place.run(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    for culprit in culprits {
        assert!(text.contains(culprit), "{arguments:?}: {culprit:?} is not named in: {text}");
    }
    assert_eq!(text.matches("error: ").count(), 1, "{arguments:?}: {text}");
}

#[test]
fn settings_that_are_wrong_are_named() {
    let place = Place::new();
    let train = |extra: &[&'static str]| [&["train", "run.toml"], extra].concat();
    refused(&place, &["train", "nowhere.toml"], 2, &["nowhere.toml"]);
    refused(&place, &train(&["--model.layer", "3"]), 2, &["--model.layer", "model.layers"]);
    refused(&place, &train(&["--model.layers", "three"]), 2, &["--model.layers"]);
    refused(&place, &train(&["--model.heads", "3"]), 2, &["model.heads"]);
    refused(&place, &train(&["--train.precision", "fp8"]), 2, &["train.precision"]);
    refused(&place, &train(&["--train.duration", "10 parsecs"]), 2, &["train.duration", "parsecs"]);
    refused(&place, &train(&["--train.steps", "0"]), 2, &["train.steps", "train.duration"]);
    refused(&place, &train(&["--optimizer.beta2", "1.5"]), 2, &["optimizer.beta2"]);
    refused(&place, &train(&["--optimizer.kind", "muno"]), 2, &["--optimizer.kind", "`muon`"]);
    refused(
        &place,
        &train(&["--optimizer.momentum", "1"]),
        2,
        &["--optimizer.momentum", "`optimizer.muon.momentum`"],
    );
    let adjustment = ["--optimizer.muon.adjustment", "match_rms"];
    refused(&place, &train(&adjustment), 2, &["--optimizer.muon.adjustment", "`match_rms_adamw`"]);
    refused(&place, &train(&["--optimizer.muon.iterations", "0"]), 2, &["optimizer.muon.iterations"]);
    refused(&place, &train(&["--nproc-per-node", "5"]), 2, &["5 ranks", "4 microbatches"]);
    refused(
        &place,
        &train(&["--launch.transport", "carrier-pigeon", "--nproc-per-node", "1"]),
        2,
        &["carrier-pigeon"],
    );
    refused(&place, &train(&["--network.interface", "a,^b"]), 2, &["network.interface", "a,^b"]);
    refused(&place, &train(&["--node-id", "a node"]), 2, &["network.node_id", "a node"]);
    let nodes = ["--nproc-per-node", "2", "--launch.logical_nodes", "3"];
    refused(&place, &train(&nodes), 2, &["launch.logical_nodes is 3", "1 to 2"]);
    refused(&place, &train(&["--network.tls.key", "key.pem"]), 2, &["network.tls.certificate"]);
    refused(&place, &train(&["--resume"]), 2, &["--resume"]);
    refused(&place, &train(&["--nproc-per-node", "0"]), 2, &["launch.nproc_per_node"]);
    refused(&place, &train(&["--train.duration", "0s", "--train.steps", "0"]), 2, &["train.duration"]);
    refused(&place, &train(&["--checkpoint.keep", "0"]), 2, &["checkpoint.keep"]);
    let both = ["--train.sequence_length", "8", "--data.sequence_length", "16"];
    refused(&place, &train(&both), 2, &["train.sequence_length", "data.sequence_length"]);
    refused(&place, &train(&["--network.socket_buffer_bytes", "9GiB"]), 2, &["network.socket_buffer_bytes"]);
    refused(&place, &train(&["--network.priority_levels", "5"]), 2, &["network.priority_levels", "1 to 4"]);
    refused(&place, &train(&["--network.failure_detection", "10"]), 2, &["network.failure_detection"]);
    refused(&place, &train(&["--network.failure_detection", "2h"]), 2, &["network.failure_detection"]);
    let shorter = ["--network.failure_detection", "30s", "--launch.stall_timeout", "29s"];
    refused(&place, &train(&shorter), 2, &["launch.stall_timeout is 29s", "network.failure_detection (30s)"]);
    // A choice is a boolean as TOML has it, and empty where the model is to decide.
    fs::write(place.path().join("choice.toml"), "[model]\ntied = false\nqkv_bias = true\n").unwrap();
    let shown = String::from_utf8(place.run(&["config", "choice.toml"]).stdout).unwrap();
    assert!(shown.contains("tied = \"false\"") && shown.contains("qkv_bias = \"true\""), "{shown}");
    fs::write(place.path().join("broken.toml"), "[model]\nwidth = 32\nlayers = = 2\n").unwrap();
    refused(&place, &["train", "broken.toml"], 2, &["broken.toml", "3"]);
}

#[test]
fn meshes_that_cannot_be_are_named_with_what_would_do() {
    let place = Place::new();
    let cases: [(&str, &[&str], &[&str]); 8] = [
        ("3", &["--parallel.pp", "2"], &["parallel.pp 2", "2 or 4 ranks"]),
        ("4", &["--parallel.dp", "3"], &["parallel.dp 3", "parallel.dp 4 (or 0"]),
        ("3", &["--parallel.pp", "3"], &["parallel.pp 3", "model.layers is 2", "at most parallel.pp 2"]),
        ("2", &["--parallel.zero", "0"], &["parallel.zero is 0", "parallel.fsdp 1"]),
        ("2", &["--parallel.fsdp", "0"], &["parallel.fsdp is 0"]),
        ("2", &["--parallel.pp", "2", "--parallel.stages_per_rank", "2"], &["\"interleaved\""]),
        ("1", &["--parallel.pp", "2"], &["parallel.pp 2", "2 ranks would do"]),
        (
            "4",
            &["--parallel.pp", "2", "--parallel.fsdp", "2", "--parallel.schedule", "zero-bubble"],
            &["parallel.accumulate \"full\""],
        ),
    ];
    for (ranks, given, culprits) in cases {
        refused(&place, &[&["train", "run.toml", "--nproc-per-node", ranks], given].concat(), 2, culprits);
    }
    assert!(!place.path().join("runs").exists());
}

#[test]
fn data_that_are_wrong_are_named_once_however_many_ranks() {
    let place = Place::new();
    let write = |name: &str, bytes: &[u8]| fs::write(place.path().join(name), bytes).unwrap();
    write("empty.txt", b"");
    write("broken.jsonl", b"{\"text\": \"fine\"}\n{\"text\": 3}\n");
    write("odd.bin", b"123");
    write("packed.txt.xz", b"\xfd7zXZ");
    write("tokenizer.json", b"{}");
    let train = |extra: &[&'static str]| [&["train", "run.toml", "--nproc-per-node", "2"], extra].concat();
    refused(&place, &train(&["--data.input", "nowhere.txt"]), 2, &["nowhere.txt"]);
    refused(&place, &train(&["--data.input", "empty.txt"]), 2, &[]);
    refused(&place, &train(&["--data.input", "broken.jsonl"]), 2, &["broken.jsonl:2"]);
    refused(&place, &train(&["--data.input", "odd.bin"]), 2, &["odd.bin"]);
    refused(&place, &train(&["--data.input", "packed.txt.xz"]), 2, &["packed.txt.xz", "unpack"]);
    refused(&place, &train(&["--data.tokenizer", "tokenizer.json"]), 2, &["tokenizer.json"]);
    // Nobody writes into this pipe: reading it would wait for ever.
    rustix::fs::mkfifoat(rustix::fs::CWD, place.path().join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    refused(&place, &train(&["--data.tokenizer", "pipe"]), 2, &["pipe", "no regular file"]);
    refused(&place, &train(&["--data.input", "pipe"]), 2, &["pipe"]);
    refused(&place, &train(&["--data.input", "cargo:Cargo.lock"]), 2, &["Cargo.lock", "--data.input"]);
}

#[test]
fn what_ranks_find_is_said_once_however_many_ranks() {
    let place = Place::new();
    let two = |extra: &[&'static str]| [&["train", "run.toml", "--nproc-per-node", "2"], extra].concat();
    refused(&place, &two(&["--resume"]), 2, &["no checkpoint"]);
    place.train(&["--nproc-per-node", "2", "--train.steps", "4"]);
    let other = ["--resume", "--train.steps", "6", "--optimizer.beta1", "0.5"];
    refused(&place, &two(&other), 2, &["optimizer.beta1"]);
    let moments = place.checkpoint("a", 4).join("training_state.safetensors");
    let whole = fs::read(&moments).unwrap();
    fs::write(&moments, &whole[..whole.len() - 9]).unwrap();
    refused(&place, &two(&["--resume"]), 1, &["training_state.safetensors"]);
    fs::write(&moments, whole).unwrap();
    fs::write(place.path().join("file"), "").unwrap();
    refused(&place, &two(&["--run.dir", "file"]), 2, &["file is no folder"]);
}

#[test]
fn secrets_that_are_wrong_are_refused_once_and_not_shown() {
    let place = Place::new();
    let file = place.path().join("secret");
    fs::write(&file, "hidden away from everybody\n").unwrap();
    let with = |name: &str, value: &str| {
        let mut command = place.command(["train", "run.toml", "--nproc-per-node", "2"]);
        let output = command.env(name, value).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!text.contains("hidden"), "{text}");
        assert!(text.matches("error: ").count() <= 1, "{text}");
        (output.status.code(), text)
    };
    let path = file.to_str().unwrap();
    let private = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    private(0o644);
    let (code, text) = with("GRADUS_SECRET_FILE", path);
    assert!(code == Some(1) && text.contains(&format!("chmod 600 {path}")), "{text}");
    private(0o600);
    let (code, text) = with("GRADUS_SECRET_FILE", path);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = with("GRADUS_SECRET", "hidden");
    assert!(code == Some(2) && text.contains("GRADUS_SECRET"), "{text}");
}

#[test]
fn an_altered_shard_is_made_again() {
    let place = Place::new();
    let prepare = || {
        let output = place.run(&["prepare", "run.toml"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(prepare().contains("prepared"));
    assert!(prepare().contains("nothing changed"));
    let shard = place.path().join("data/a/train-00000.bin");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    assert!(prepare().contains("prepared"));
    assert_eq!(fs::read(&shard).unwrap(), whole);
}

#[test]
fn models_that_do_not_fit_are_named() {
    let place = Place::new();
    place.train(&["--train.steps", "2"]);
    let model = place.path().join("runs/a/model");
    let generate = ["generate", "--model", "runs/a", "--max-tokens", "3", "let"];
    assert!(place.run(&generate).status.success());

    refused(&place, &["generate", "--model", "nowhere", "x"], 2, &["nowhere"]);
    let long = "let ".repeat(100);
    refused(&place, &["generate", "--model", "runs/a", &long], 2, &["context"]);
    let output = place.run(&["generate", "--model", "runs/a", "--temperature", "NaN", "let"]);
    assert_eq!(
        (output.status.code(), output.stdout.len()),
        (Some(2), 0),
        "nothing is written before it is known"
    );
    let full =
        place.run(&["generate", "--model", "runs/a", "--max-tokens", "60", "--temperature", "9", "let"]);
    assert!(full.status.success() && String::from_utf8_lossy(&full.stderr).contains("context of 32 tokens"));
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let edit = |from: &str, to: &str| {
        assert!(config.contains(from), "{config}");
        fs::write(model.join("config.json"), config.replace(from, to)).unwrap();
    };
    edit("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    refused(&place, &generate, 2, &["model.layers.2"]);
    edit("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    refused(&place, &generate, 2, &["model.layers.1"]);
    edit("\"vocab_size\": ", "\"vocab_size\": 1");
    refused(&place, &generate, 2, &["embed_tokens"]);
    edit("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    refused(&place, &generate, 2, &["mamba"]);
    fs::write(model.join("config.json"), &config).unwrap();
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    fs::write(model.join("model.safetensors"), &weights[..weights.len() - 7]).unwrap();
    refused(&place, &generate, 1, &["model.safetensors"]);
}

#[test]
fn a_port_in_use_is_named() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = place.command(["train", "run.toml"]);
    command.envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
    assert!(text.contains(&port) && text.contains("MASTER_PORT"), "{text}");
}

#[test]
fn flight_records_that_are_none_are_named() {
    let place = Place::new();
    fs::write(place.path().join("text.json"), "{}").unwrap();
    refused(&place, &["flight", "nowhere.json"], 2, &["nowhere.json"]);
    refused(&place, &["flight", "text.json"], 1, &["text.json", "no flight record"]);
}
