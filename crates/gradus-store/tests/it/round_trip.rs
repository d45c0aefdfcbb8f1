//! What is prepared is what was given.

use super::{prepared, settings, text, tokens};
use gradus_store::{Dataset, PreparePhase, Split, Tokenizer, prepare};
use std::fs;

/// The bytes of a token stream, without ends of text.
fn bytes(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<u8> {
    tokenizer.decode_bytes(tokens).unwrap()
}

#[test]
fn a_single_document_gives_its_last_tenth_and_comes_back() {
    let home = tempfile::tempdir().unwrap();
    let whole = text(500);
    fs::write(home.path().join("a.txt"), &whole).unwrap();
    let prepared = prepared(&settings(home.path(), "a.txt"));
    assert!(prepared.changed);
    let dataset = Dataset::open(&prepared.folder).unwrap();
    let tokenizer = dataset.tokenizer().unwrap().unwrap();
    let train = bytes(&tokenizer, &tokens(&dataset, Split::Train));
    let held_out = bytes(&tokenizer, &tokens(&dataset, Split::HeldOut));
    assert!(whole.as_bytes().starts_with(&train));
    let start = whole.len() * 9 / 10;
    let parted = whole[..start].rfind('\n').unwrap() + 1;
    assert!(whole.as_bytes()[parted..].starts_with(&held_out));
    // Fewer than T tokens are left out at the end of each.
    assert!(parted - train.len() < 8 * 40 && whole.len() - parted - held_out.len() < 8 * 40);
    let split = dataset.split(Split::Train);
    let manifest = &prepared.manifest.train;
    assert_eq!(split.bytes_per_token(), Some(manifest.text_bytes as f64 / manifest.encoded_tokens as f64));
    assert_eq!(manifest.text_bytes, parted as u64);
    assert!(manifest.encoded_tokens - manifest.tokens < 8);
}

#[test]
fn documents_stay_apart_and_their_starts_are_listed() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("corpus/deep");
    fs::create_dir_all(&folder).unwrap();
    let documents: Vec<String> = (0..40).map(|n| format!("document {n}\n").repeat(n + 3)).collect();
    for (index, document) in documents.iter().enumerate() {
        fs::write(folder.join(format!("{index:02}.md")), document).unwrap();
    }
    fs::write(home.path().join("corpus/.hidden"), "secret").unwrap();
    fs::write(home.path().join("corpus/picture"), b"\x89PNG\0\0").unwrap();
    let mut settings = settings(home.path(), "corpus");
    settings.shard_tokens = 200;
    let prepared = prepared(&settings);
    let dataset = Dataset::open(&prepared.folder).unwrap();
    let tokenizer = dataset.tokenizer().unwrap().unwrap();
    assert_eq!(dataset.split(Split::HeldOut).documents(), 4);
    assert_eq!(dataset.split(Split::Train).documents(), 36);
    let stream = tokens(&dataset, Split::Train);
    let starts: Vec<u64> = stream
        .iter()
        .enumerate()
        .filter(|(_, token)| **token == tokenizer.end_of_text())
        .map(|(at, _)| at as u64 + 1)
        .collect();
    assert!(prepared.manifest.train.shards.len() > 3);
    let (mut base, mut listed) = (0, Vec::new());
    for (index, shard) in prepared.manifest.train.shards.iter().enumerate() {
        let starts = dataset.files(Split::Train).unwrap().document_starts(index).unwrap();
        assert_eq!(starts.len() as u64, shard.documents);
        assert!(starts.iter().all(|start| *start < shard.tokens - 1));
        listed.extend(starts.iter().map(|start| start + base));
        base += shard.tokens - 1;
    }
    let expected: Vec<u64> =
        [0].into_iter().chain(starts).filter(|start| *start < stream.len() as u64 - 1).collect();
    assert_eq!(listed, expected);
    let first = stream[..expected[1] as usize - 1].to_vec();
    assert!(documents.contains(&tokenizer.decode(&first).unwrap()));
}

#[test]
fn bytes_that_are_no_text_survive() {
    let home = tempfile::tempdir().unwrap();
    let whole: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(home.path().join("a.dat"), &whole).unwrap();
    let mut settings = settings(home.path(), "a.dat");
    settings.held_out = 0.0;
    let dataset = Dataset::open(&prepared(&settings).folder).unwrap();
    let tokenizer = dataset.tokenizer().unwrap().unwrap();
    let back = bytes(&tokenizer, &tokens(&dataset, Split::Train));
    assert!(whole.starts_with(&back) && whole.len() - back.len() < 8 * 20);
    assert_eq!(dataset.split(Split::HeldOut).samples(), 0);
}

#[test]
fn json_lines_give_their_texts() {
    let home = tempfile::tempdir().unwrap();
    let mut lines = String::from("\u{feff}");
    for n in 0..100 {
        lines += &format!(
            "{{\"id\": [{n}, {{\"body\": 1}}], \"body\": \"text <|endoftext|> {n}\\n\\u00e9\", \"x\": null}}\r\n\n"
        );
    }
    fs::write(home.path().join("a.jsonl"), lines).unwrap();
    let mut settings = settings(home.path(), "*.jsonl");
    settings.text_field = "body".to_owned();
    let prepared = prepared(&settings);
    assert_eq!((prepared.manifest.train.documents, prepared.manifest.held_out.documents), (90, 10));
    let dataset = Dataset::open(&prepared.folder).unwrap();
    let tokenizer = dataset.tokenizer().unwrap().unwrap();
    let stream = tokens(&dataset, Split::Train);
    let first = stream.split(|token| *token == tokenizer.end_of_text()).next().unwrap();
    let decoded = tokenizer.decode(first).unwrap();
    assert!(decoded.starts_with("text <|endoftext|> ") && decoded.ends_with("\né"), "{decoded}");
}

#[test]
fn a_tokenizer_that_is_given_is_used_and_copied() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let mut settings = settings(home.path(), "a.txt");
    let first = prepared(&settings);
    settings.tokenizer = first.folder.display().to_string();
    settings.prepared = home.path().join("second").display().to_string();
    settings.vocabulary = 5000;
    let second = prepared(&settings);
    assert_eq!(second.manifest.vocabulary, first.manifest.vocabulary);
    assert_eq!(
        Dataset::open(&first.folder).unwrap().digest(),
        Dataset::open(&second.folder).unwrap().digest()
    );
    let config = |folder: &std::path::Path| fs::read(folder.join("tokenizer_config.json")).unwrap();
    assert_eq!(config(&first.folder), config(&second.folder));
}

#[test]
fn progress_reaches_its_end() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(20_000)).unwrap();
    let mut seen = Vec::new();
    prepare(&settings(home.path(), "a.txt"), &mut |progress| seen.push(progress)).unwrap();
    let phases =
        [PreparePhase::Finding, PreparePhase::Tokenizer, PreparePhase::Encoding, PreparePhase::Finishing];
    let mut order: Vec<_> = seen.iter().map(|progress| progress.phase).collect();
    order.dedup();
    assert_eq!(order, phases);
    let encoding: Vec<_> = seen.iter().filter(|progress| progress.phase == PreparePhase::Encoding).collect();
    assert!(encoding.windows(2).all(|pair| pair[0].done_bytes <= pair[1].done_bytes) && encoding.len() > 2);
    assert_eq!(encoding[encoding.len() - 1].done_bytes, encoding[0].total_bytes);
}

#[test]
fn a_limit_ends_the_corpus() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(1000)).unwrap();
    let mut settings = settings(home.path(), "a.txt");
    settings.limit_bytes = 10_000;
    let manifest = prepared(&settings).manifest;
    let all = manifest.train.text_bytes + manifest.held_out.text_bytes;
    assert!((9900..=10_000).contains(&all), "{all}");
}
