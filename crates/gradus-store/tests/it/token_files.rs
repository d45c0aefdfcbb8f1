//! Token files that others made.

use super::{prepared, settings, text, tokens};
use gradus_error::Kind;
use gradus_store::{Dataset, Split, TokenType, prepare};
use std::fs;
use std::path::Path;

fn write_u16(path: &Path, tokens: impl Iterator<Item = u16>) {
    fs::write(path, tokens.flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
}

/// The layout of llm.c: 256 words of header, then tokens.
fn write_with_header(path: &Path, magic: u32, said: u32, tokens: &[u8]) {
    let mut header = [0u32; 256];
    header[..3].copy_from_slice(&[magic, 1, said]);
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend_from_slice(tokens);
    fs::write(path, bytes).unwrap();
}

#[test]
fn nanogpt_files_are_used_where_they_are() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    fs::create_dir(&data).unwrap();
    write_u16(&data.join("train.bin"), 0..300);
    write_u16(&data.join("val.bin"), 100..150);
    fs::write(data.join("prepare.py"), "import os").unwrap();
    let settings = settings(home.path(), "data");
    let folder = prepared(&settings).folder;
    let dataset = Dataset::open(&folder).unwrap();
    assert_eq!(tokens(&dataset, Split::Train), (0..297).collect::<Vec<u32>>()[..].to_vec());
    assert_eq!(tokens(&dataset, Split::HeldOut), (100..149).collect::<Vec<u32>>());
    assert!(dataset.tokenizer().unwrap().is_none() && dataset.end_of_text().is_none());
    assert_eq!(dataset.split(Split::Train).bytes_per_token(), None);
    assert!(!prepared(&settings).changed);
    write_u16(&data.join("train.bin"), (0..300).rev());
    assert_eq!(*Dataset::open(&folder).err().unwrap().kind(), Kind::Corrupt);
    assert!(prepared(&settings).changed);
}

#[test]
fn a_file_without_a_partner_gives_its_end() {
    let home = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..200u32).flat_map(u32::to_le_bytes).collect();
    write_with_header(&home.path().join("some.bin"), 20_240_801, 200, &bytes);
    let dataset = Dataset::open(&prepared(&settings(home.path(), "some.bin")).folder).unwrap();
    assert_eq!(dataset.manifest().token_type, TokenType::U32);
    assert_eq!(tokens(&dataset, Split::Train), (0..177).collect::<Vec<u32>>());
    assert_eq!(tokens(&dataset, Split::HeldOut), (180..197).collect::<Vec<u32>>());
}

#[test]
fn a_tokenizer_tells_bytes_and_documents() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.txt"), text(300)).unwrap();
    let mut from_text = settings(home.path(), "a.txt");
    from_text.held_out = 0.0;
    let first = prepared(&from_text);
    fs::copy(first.folder.join("train-00000.bin"), home.path().join("tiny_train.bin")).unwrap();
    let mut from_tokens = settings(home.path(), "tiny_train.bin");
    from_tokens.held_out = 0.0;
    from_tokens.prepared = home.path().join("second").display().to_string();
    from_tokens.tokenizer = first.folder.display().to_string();
    let second = prepared(&from_tokens);
    assert_eq!(second.manifest.end_of_text, first.manifest.end_of_text);
    let lost = first.manifest.train.text_bytes - second.manifest.train.text_bytes;
    assert!(lost < 8 * 20, "{lost}");
    let dataset = Dataset::open(&second.folder).unwrap();
    assert_eq!(tokens(&dataset, Split::Train), tokens(&Dataset::open(&first.folder).unwrap(), Split::Train));
}

#[test]
fn damaged_token_files_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("train.bin");
    let refuse = |culprit: &str| {
        let error = prepare(&settings(home.path(), "train.bin"), &mut |_| ()).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains(culprit), "{error}");
    };
    fs::write(&path, [0; 101]).unwrap();
    refuse("train.bin");
    write_u16(&path, [1, 2, 320].into_iter().chain(0..100));
    refuse("token 320 at byte 4");
    write_with_header(&path, 20_240_520, 101, &[0; 200]);
    refuse("header");
    write_with_header(&path, 20_240_520, 100, &[0; 200]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[4] = 9;
    fs::write(&path, bytes).unwrap();
    refuse("version 9");
    fs::write(&path, 20_240_520u32.to_le_bytes()).unwrap();
    refuse("header");
    write_u16(&path, 0..5);
    refuse("data.sequence_length");
    fs::write(&path, []).unwrap();
    refuse("data.sequence_length");
}

#[test]
fn tokens_and_text_are_not_one_corpus() {
    let home = tempfile::tempdir().unwrap();
    write_u16(&home.path().join("train.bin"), 0..100);
    fs::write(home.path().join("train.txt"), text(100)).unwrap();
    let error = prepare(&settings(home.path(), "train.*"), &mut |_| ()).unwrap_err();
    assert_eq!(*error.kind(), Kind::Invalid);
}
