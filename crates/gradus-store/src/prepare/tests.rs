use super::*;
use std::fmt::Write as _;

fn settings(home: &Path, name: &str) -> PrepareSettings {
    let mut text = String::new();
    for n in 0..60_000u32 {
        writeln!(text, "line {n} holds the number {} and {}", n.wrapping_mul(2_654_435_761), n % 97).unwrap();
    }
    std::fs::write(home.join("a.txt"), text).unwrap();
    PrepareSettings {
        input: vec![home.join("a.txt").display().to_string()],
        prepared: home.join(name).display().to_string(),
        vocabulary: 400,
        sequence_length: 16,
        shard_tokens: 100_000,
        tokenizer_sample_bytes: 200_000,
        ..PrepareSettings::default()
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_byte() {
    let home = tempfile::tempdir().unwrap();
    let digests: Vec<_> = [1, 2, 5]
        .into_iter()
        .map(|threads| {
            let settings = settings(home.path(), &threads.to_string());
            let prepared = prepare_with_threads(&settings, &no_bucket, threads, &mut |_| ()).unwrap();
            assert!(prepared.manifest.train.shards.len() > 3);
            (prepared.manifest.tokenizer_sha256.clone(), Dataset::open(&prepared.folder).unwrap().digest())
        })
        .collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn a_long_document_gives_the_tokens_of_its_whole_text() {
    let home = tempfile::tempdir().unwrap();
    let settings = PrepareSettings { held_out: 0.0, ..settings(home.path(), "x") };
    let dataset = Dataset::open(&prepare(&settings, &mut |_| ()).unwrap().folder).unwrap();
    let text = std::fs::read(home.path().join("a.txt")).unwrap();
    assert!(text.len() > 4 * reader::BATCH_BYTES);
    let expected = dataset.tokenizer().unwrap().unwrap().encode_bytes(&text).unwrap();
    let split = dataset.files(Split::Train).unwrap();
    assert_eq!(split.samples(), expected.len() as u64 / 16);
    let mut sample = [0; 17];
    for index in 0..split.samples() {
        split.read(index, &mut sample).unwrap();
        assert_eq!(sample[..16], expected[index as usize * 16..][..16]);
    }
}

#[test]
fn a_folder_of_something_else_is_not_replaced() {
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path(), "x");
    std::fs::create_dir(home.path().join("x")).unwrap();
    std::fs::write(home.path().join("x/photo.jpg"), "dear").unwrap();
    let error = prepare(&settings, &mut |_| ()).unwrap_err();
    assert_eq!(*error.kind(), gradus_error::Kind::Invalid);
    assert!(home.path().join("x/photo.jpg").exists());
}
