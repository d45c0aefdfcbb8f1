//! What cannot be prepared is refused, and the culprit named.

use super::{settings, text};
use gradus_error::Kind;
use gradus_store::{PrepareSettings, prepare};
use std::fs;

fn assert_invalid(settings: &PrepareSettings, culprit: &str) {
    let error = prepare(settings, &mut |_| ()).unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid, "{error}");
    assert!(error.to_string().contains(culprit), "{error} does not name {culprit}");
}

#[test]
fn missing_and_empty_inputs() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("empty")).unwrap();
    fs::write(home.path().join("empty.txt"), "").unwrap();
    fs::write(home.path().join("tiny.txt"), "x").unwrap();
    assert_invalid(&settings(home.path(), "none.txt"), "none.txt");
    assert_invalid(&settings(home.path(), "*.none"), "*.none");
    assert_invalid(&settings(home.path(), "a[.txt"), "a[.txt");
    assert_invalid(&settings(home.path(), "empty"), "empty");
    assert_invalid(&settings(home.path(), "empty.txt"), "data.input");
    assert_invalid(&settings(home.path(), "tiny.txt"), "data.sequence_length");
}

#[test]
fn impossible_settings() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let with = |change: fn(&mut PrepareSettings), culprit: &str| {
        let mut settings = settings(home.path(), "a.txt");
        change(&mut settings);
        assert_invalid(&settings, culprit);
    };
    with(|settings| settings.input.clear(), "data.input");
    with(|settings| settings.prepared.clear(), "data.prepared");
    with(|settings| settings.text_field.clear(), "data.text_field");
    with(|settings| settings.vocabulary = 256, "data.vocabulary");
    with(|settings| settings.held_out = f64::NAN, "data.held_out");
    with(|settings| settings.held_out = 0.9, "data.held_out");
    with(|settings| settings.sequence_length = 0, "data.sequence_length");
    with(|settings| settings.shard_tokens = 0, "data.shard_tokens");
    with(|settings| settings.tokenizer = "none/tokenizer.json".to_owned(), "data.tokenizer");
    with(|settings| settings.end_of_text = "</s>".to_owned(), "data.end_of_text");
    with(|settings| settings.pre_tokenizer = "bert".to_owned(), "data.pre_tokenizer");
    with(|settings| settings.prepared = settings.input[0].clone(), "data.prepared");
    with(|settings| settings.sequence_length = 900_000, "data.sequence_length");
}

#[test]
fn a_tokenizer_that_is_none() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    fs::write(home.path().join("tokenizer.json"), "[]").unwrap();
    let mut settings = settings(home.path(), "a.txt");
    settings.tokenizer = home.path().display().to_string();
    assert_invalid(&settings, "tokenizer.json");
}

#[test]
fn json_lines_are_named_by_their_number() {
    let home = tempfile::tempdir().unwrap();
    let bad = [
        r#"{"text": "#,
        r#"["text"]"#,
        r#"{"other": "x"}"#,
        r#"{"text": 5}"#,
        r#"{"text": "x"} trailing"#,
        "\"\\xff\"",
    ];
    for line in bad {
        let lines = format!("{}\n{line}\n", vec![r#"{"text": "some text here"}"#; 20].join("\n"));
        fs::write(home.path().join("a.jsonl"), lines).unwrap();
        assert_invalid(&settings(home.path(), "a.jsonl"), "a.jsonl:21");
    }
}

#[test]
fn unknown_settings_are_refused() {
    assert!(serde_json::from_str::<PrepareSettings>(r#"{"inputs": []}"#).is_err());
    let settings: PrepareSettings = serde_json::from_str(r#"{"held_out": 0.2}"#).unwrap();
    assert_eq!(settings, PrepareSettings { held_out: 0.2, ..PrepareSettings::default() });
}
