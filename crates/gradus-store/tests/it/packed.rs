//! Corpora that are packed, or Parquet, give what they give unpacked.

use super::{prepared, settings, tokens};
use gradus_error::Kind;
use gradus_store::{Dataset, PrepareSettings, Split, prepare};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Two members, the second of which is all there is to the end.
    let half = bytes.len() / 2;
    let member = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    [member(&bytes[..half]), member(&bytes[half..])].concat()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn texts() -> Vec<String> {
    (0..400).map(|n| format!("document {n} says größer {} times\n", n * 37).repeat(1 + n % 9)).collect()
}

pub fn lines(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{}\n", serde_json_text(text))).collect()
}

fn serde_json_text(text: &str) -> String {
    format!("{{\"text\": \"{}\"}}", text.replace('\n', "\\n"))
}

pub fn write_parquet(path: &Path, texts: &[String]) {
    let schema = Arc::new(parse_message_type("message rows { required binary text (string); }").unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer =
        SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::builder().build())).unwrap();
    for rows in texts.chunks(150) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let rows: Vec<ByteArray> = rows.iter().map(|text| ByteArray::from(text.as_str())).collect();
        column.typed::<ByteArrayType>().write_batch(&rows, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// Tokens of both splits of a file that is prepared.
fn tokens_of(home: &Path, name: &str, change: impl Fn(&mut PrepareSettings)) -> [Vec<u32>; 2] {
    let mut settings = PrepareSettings {
        prepared: home.join(format!("{name}.out")).display().to_string(),
        ..settings(home, name)
    };
    change(&mut settings);
    let dataset = Dataset::open(&prepared(&settings).folder).unwrap();
    [Split::Train, Split::HeldOut].map(|split| tokens(&dataset, split))
}

#[test]
fn packed_files_give_the_tokens_of_what_is_in_them() {
    let home = tempfile::tempdir().unwrap();
    let (text, lines) = (texts().concat(), lines(&texts()));
    for (name, bytes) in [("a.txt", &text), ("a.jsonl", &lines)] {
        std::fs::write(home.path().join(name), bytes).unwrap();
        std::fs::write(home.path().join(format!("{name}.gz")), gzip(bytes.as_bytes())).unwrap();
        std::fs::write(home.path().join(format!("{name}.zst")), zstd(bytes.as_bytes())).unwrap();
        // All of it; a part of it; a tokenizer that knows blocks from all over it.
        let changes: [&dyn Fn(&mut PrepareSettings); 3] =
            [&|_| (), &|settings| settings.limit_bytes = 30_000, &|settings| {
                settings.tokenizer_sample_bytes = 1
            }];
        for (number, change) in changes.into_iter().enumerate() {
            let of = |name: &str| {
                let found = tokens_of(home.path(), name, change);
                std::fs::remove_dir_all(home.path().join(format!("{name}.out"))).unwrap();
                found
            };
            let plain = of(name);
            assert_eq!(of(&format!("{name}.gz")), plain, "{name} {number}");
            assert_eq!(of(&format!("{name}.zst")), plain, "{name} {number}");
        }
    }
}

#[test]
fn rows_of_parquet_are_documents() {
    let home = tempfile::tempdir().unwrap();
    write_parquet(&home.path().join("a.parquet"), &texts());
    std::fs::write(home.path().join("a.jsonl"), lines(&texts())).unwrap();
    assert_eq!(tokens_of(home.path(), "a.parquet", |_| ()), tokens_of(home.path(), "a.jsonl", |_| ()));
    let some = |settings: &mut PrepareSettings| {
        settings.limit_bytes = 20_000;
        settings.tokenizer_sample_bytes = 1;
        settings.prepared.push('2');
    };
    let [train, held_out] = tokens_of(home.path(), "a.parquet", some);
    assert!(!train.is_empty() && !held_out.is_empty() && train.len() + held_out.len() < 20_000);
}

#[test]
fn packed_files_that_are_damaged_or_of_other_kinds_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let packed = gzip(texts().concat().as_bytes());
    let cut = &packed[..packed.len() - 9];
    let frame = zstd(texts().concat().as_bytes());
    let refused: [(&str, &[u8], Kind); 7] = [
        ("a.txt.gz", cut, Kind::Corrupt),
        ("b.txt.gz", b"no gzip", Kind::Corrupt),
        ("a.txt.zst", &frame[..frame.len() - 3], Kind::Corrupt),
        ("b.jsonl.zst", b"no frame", Kind::Corrupt),
        ("a.parquet", b"no parquet at all", Kind::Corrupt),
        ("a.csv.gz", &packed, Kind::Invalid),
        ("a.tar", &packed, Kind::Invalid),
    ];
    for (name, bytes, kind) in refused {
        std::fs::write(home.path().join(name), bytes).unwrap();
        let error = prepare(&settings(home.path(), name), &mut |_| ()).unwrap_err();
        assert_eq!(*error.kind(), kind, "{name}: {error}");
    }
}

#[test]
fn text_that_is_packed_otherwise_is_not_left_out_of_a_folder() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("corpus/below");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a.txt"), texts().concat()).unwrap();
    // An archive beside text is as a photo is.
    std::fs::write(folder.join("sources.zip"), b"PK\x03\x04\0").unwrap();
    for name in ["b.txt.bz2", "b.jsonl.xz", "b.lz4"] {
        std::fs::write(folder.join(name), b"\0").unwrap();
        for input in [String::from("corpus"), format!("corpus/below/{name}")] {
            let error = prepare(&settings(home.path(), &input), &mut |_| ()).unwrap_err();
            assert!(*error.kind() == Kind::Invalid && error.to_string().contains(name), "{input}: {error}");
        }
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    assert!(prepare(&settings(home.path(), "corpus"), &mut |_| ()).unwrap().changed);
}
