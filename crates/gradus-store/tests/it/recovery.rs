//! Prepared once, and again when it must be.

use super::{prepared, settings, text};
use gradus_error::Kind;
use gradus_store::{Dataset, Split, prepare};
use std::fs;
use std::path::Path;

/// What happens to a file.
type Harm = fn(&Path);

fn assert_corrupt(folder: &Path, culprit: &str) {
    let error = Dataset::open(folder).err().expect("damage is found");
    assert_eq!(*error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains(culprit), "{error}");
}

#[test]
fn a_second_run_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let settings = settings(home.path(), "a.txt");
    let first = prepared(&settings);
    let second = prepared(&settings);
    assert!(first.changed && !second.changed);
    assert_eq!(first.manifest, second.manifest);
}

#[test]
fn another_input_or_setting_prepares_again() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let mut settings = settings(home.path(), "a.txt");
    let first = prepared(&settings);
    fs::write(home.path().join("a.txt"), text(301)).unwrap();
    let second = prepared(&settings);
    assert!(second.changed);
    assert_ne!(first.manifest.inputs, second.manifest.inputs);
    settings.sequence_length = 9;
    assert!(prepared(&settings).changed);
    assert!(!prepared(&settings).changed);
}

#[test]
fn every_damage_is_named_and_mended() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let settings = settings(home.path(), "a.txt");
    let folder = prepared(&settings).folder;
    let damage: [(&str, Harm); 8] = [
        ("train-00000.bin", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[100] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("train-00000.bin", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 2]).unwrap();
        }),
        ("held_out-00000.bin", |path| fs::remove_file(path).unwrap()),
        ("train-00000.documents.json", |path| fs::write(path, "[1]\n").unwrap()),
        ("held_out-00000.documents.json", |path| fs::remove_file(path).unwrap()),
        ("tokenizer.json", |path| fs::write(path, "{}").unwrap()),
        ("tokenizer.json", |path| fs::remove_file(path).unwrap()),
        ("manifest.json", |path| fs::write(path, "{\"format\": 1}").unwrap()),
    ];
    for (culprit, harm) in damage {
        harm(&folder.join(culprit));
        assert_corrupt(&folder, culprit);
        assert!(prepared(&settings).changed);
        Dataset::open(&folder).unwrap().verify().unwrap();
    }
}

#[test]
fn a_manifest_that_lies_is_corrupt() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let folder = prepared(&settings(home.path(), "a.txt")).folder;
    let path = folder.join("manifest.json");
    let honest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let lies: [fn(&mut serde_json::Value); 8] = [
        |manifest| manifest["format"] = 1.into(),
        |manifest| manifest["sequence_length"] = 0.into(),
        |manifest| manifest["sequence_length"] = u64::MAX.into(),
        |manifest| manifest["end_of_text"] = 320.into(),
        |manifest| manifest["train"]["shards"] = serde_json::json!([]),
        |manifest| manifest["train"]["shards"][0]["tokens"] = u64::MAX.into(),
        |manifest| manifest["train"]["shards"][0]["offset_bytes"] = 2.into(),
        |manifest| manifest["train"]["shards"][0]["file"] = "../train-00000.bin".into(),
    ];
    for lie in lies {
        let mut manifest = honest.clone();
        lie(&mut manifest);
        fs::write(&path, manifest.to_string()).unwrap();
        assert_corrupt(&folder, "manifest.json");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(*Dataset::open(&folder).err().unwrap().kind(), Kind::Invalid);
}

#[test]
fn a_token_beyond_the_vocabulary_is_never_given_out() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let folder = prepared(&settings(home.path(), "a.txt")).folder;
    let path = folder.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["vocabulary"] = 5.into();
    fs::write(&path, manifest.to_string()).unwrap();
    let dataset = Dataset::open(&folder).unwrap();
    let error = dataset.files(Split::Train).unwrap().read(0, &mut [0; 9]).unwrap_err();
    assert_eq!(*error.kind(), Kind::Corrupt);
    let error = dataset.files(Split::Train).unwrap().read(u64::MAX, &mut [0; 9]).unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid);
    assert_eq!(*dataset.files(Split::Train).unwrap().read(0, &mut [0; 8]).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn what_a_killed_process_left_is_cleared() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let settings = settings(home.path(), "a.txt");
    let partial = home.path().join("prepared.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("train-00000.bin"), "half").unwrap();
    fs::write(home.path().join("prepared.lock"), "").unwrap();
    assert!(prepared(&settings).changed);
    assert!(!partial.exists());
    // Killed while the finished folder was renamed aside.
    fs::rename(home.path().join("prepared"), home.path().join("prepared.old")).unwrap();
    assert!(!prepared(&settings).changed);
    assert!(!home.path().join("prepared.old").exists());
    Dataset::open(&home.path().join("prepared")).unwrap();
}

#[test]
fn a_failure_keeps_what_was_prepared() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let mut settings = settings(home.path(), "a.txt");
    let folder = prepared(&settings).folder;
    settings.sequence_length = 1_000_000;
    assert_eq!(*prepare(&settings, &mut |_| ()).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(Dataset::open(&folder).unwrap().sequence_length(), 8);
    assert!(!home.path().join("prepared.partial").exists());
}

#[test]
fn two_at_once_prepare_once() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(3000)).unwrap();
    let settings = settings(home.path(), "a.txt");
    let changed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| prepared(&settings).changed)).collect();
        threads
            .into_iter()
            .filter(|_| true)
            .map(|thread| thread.join().unwrap())
            .filter(|changed| *changed)
            .count()
    });
    assert_eq!(changed, 1);
    Dataset::open(&home.path().join("prepared")).unwrap().verify().unwrap();
}
