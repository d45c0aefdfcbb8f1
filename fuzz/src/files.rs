//! Files that people download or pass around: one of a folder is altered, the others are as they were.

use crate::Target;
use crate::place::{self, Place};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gradus_memory::Span;
use gradus_model::hugging_face::{SpecialTokens, read_model, write_model_folder};
use gradus_model::{Family, ModelConfig, Parameters};
use gradus_store::cache::{FolderContent, verify_folder};
use gradus_store::{Dataset, MANIFEST, PrepareSettings, Tokenizer, prepare, seal, verify_sealed};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// All of them.
pub const TARGETS: [Target; 11] = [
    ("model-config", model_config, || folder_seeds(model(), "config.json")),
    ("model-weights", model_weights, || folder_seeds(model(), "model.safetensors")),
    ("model-index", model_index, index_seeds),
    ("store-manifest", store_manifest, || folder_seeds(data(), MANIFEST)),
    ("store-tokenizer", store_tokenizer, tokenizer_seeds),
    ("store-json-lines", json_lines, || vec![lines()]),
    ("store-token-file", token_file, token_files),
    ("store-peers", gradus_store::peers::is_understood, gradus_store::peers::understood),
    ("store-cache", cache, || vec![records()]),
    ("store-credentials", gradus_store::bucket::is_understood, gradus_store::bucket::understood),
    ("store-checksums", store_checksums, || folder_seeds(sealed(), CHECKSUMS)),
];

/// The file that seals a folder.
const CHECKSUMS: &str = "checksums.json";

static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Has this process keep its folders in one that exists or can be made, if it keeps none yet.
pub fn work_in(folder: PathBuf) {
    let _ = ROOT.set(folder);
}

/// Where this process keeps its folders.
fn root() -> &'static Path {
    ROOT.get_or_init(|| {
        let place = Place::take(&place::usual()).expect("a folder for fuzzing can be made");
        // It is this process's until it ends.
        let place: &'static Place = Box::leak(Box::new(place));
        place.folder().to_owned()
    })
}

fn make(name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let folder = root().join(name);
    fs::create_dir_all(&folder).expect("a folder for fuzzing can be made");
    fill(&folder);
    folder
}

/// What `read` comes to with one file of a folder replaced.
fn with_file(folder: &Path, name: &str, data: &[u8], read: impl FnOnce(&Path) -> bool) -> bool {
    let path = folder.join(name);
    let before = fs::read(&path).ok();
    fs::write(&path, data).expect("a file for fuzzing can be written");
    let taken = read(folder);
    match before {
        Some(before) => fs::write(&path, before).expect("a file for fuzzing can be written"),
        None => fs::remove_file(&path).expect("a file for fuzzing can be removed"),
    }
    taken
}

/// What `read` comes to with a file of a folder that holds nothing else.
pub(crate) fn with_new_file(name: &str, data: &[u8], read: impl FnOnce(&Path) -> bool) -> bool {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    with_file(MADE.get_or_init(|| make("alone", |_| {})), name, data, |folder| read(&folder.join(name)))
}

fn folder_seeds(folder: &Path, name: &str) -> Vec<Vec<u8>> {
    vec![fs::read(folder.join(name)).expect("the folder was written whole")]
}

// Models.

fn model() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| make("model", write_model))
}

fn write_model(folder: &Path) {
    let config = ModelConfig {
        family: Family::Llama,
        vocabulary: 11,
        context: 5,
        width: 12,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_size: 4,
        feed_forward: 7,
        tied: true,
        qkv_bias: true,
        norm_epsilon: 1e-6,
        rope_theta: 10_000.0,
    };
    let zeros = |span: Span| vec![0.0; span.len];
    let tokens = SpecialTokens { bos: None, eos: Some(3) };
    write_model_folder(folder, &config, &Parameters::new(&config), &zeros, tokens, 0)
        .expect("a small model can be written");
}

fn model_config(data: &[u8]) -> bool {
    with_file(model(), "config.json", data, |folder| read_model(folder).is_ok())
}

fn model_weights(data: &[u8]) -> bool {
    with_file(model(), "model.safetensors", data, |folder| read_model(folder).is_ok())
}

/// A folder whose weights lie in shards, so that it has an index.
fn sharded() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        make("sharded", |folder| {
            write_model(folder);
            fs::rename(folder.join("model.safetensors"), folder.join("model-00001-of-00001.safetensors"))
                .expect("the weights were written");
        })
    })
}

fn model_index(data: &[u8]) -> bool {
    with_file(sharded(), "model.safetensors.index.json", data, |folder| read_model(folder).is_ok())
}

fn index_seeds() -> Vec<Vec<u8>> {
    let entry = |name: &str| format!(r#""{name}":"model-00001-of-00001.safetensors""#);
    let names = ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"];
    let map = names.map(entry).join(",");
    vec![format!(r#"{{"metadata":{{"total_size":100}},"weight_map":{{{map}}}}}"#).into_bytes()]
}

// Data.

pub(crate) fn data() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let corpus = make("corpus", |folder| {
            let text = "it was a bright cold day, and the clocks were striking thirteen. ".repeat(200);
            fs::write(folder.join("a.txt"), text).expect("a file for fuzzing can be written");
        });
        let folder = root().join("data");
        let settings = PrepareSettings {
            input: vec![corpus.join("a.txt").display().to_string()],
            prepared: folder.display().to_string(),
            vocabulary: 300,
            sequence_length: 16,
            ..PrepareSettings::default()
        };
        prepare(&settings, &mut |_| {}).expect("a small corpus can be prepared");
        folder
    })
}

fn store_manifest(data: &[u8]) -> bool {
    with_file(self::data(), MANIFEST, data, |folder| {
        let Ok(dataset) = Dataset::open(folder) else { return false };
        [dataset.verify().is_ok(), dataset.tokenizer().is_ok()] == [true; 2]
    })
}

fn store_tokenizer(data: &[u8]) -> bool {
    with_file(self::data(), "tokenizer.json", data, |folder| {
        let Ok(tokenizer) = Tokenizer::load(folder) else { return false };
        let Ok(tokens) = tokenizer.encode("it was a bright cold day \u{1F600} in 1984") else { return false };
        [tokenizer.decode(&tokens).is_ok(), tokenizer.decode_bytes(&[0, 1, 2, u32::MAX]).is_ok()] == [true; 2]
    })
}

/// A tokenizer as it was made, and one that also rewrites characters by SentencePiece's table.
fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let plain = folder_seeds(data(), "tokenizer.json").remove(0);
    let text = String::from_utf8(plain.clone()).expect("JSON is text");
    let table = STANDARD.encode(table());
    let normalizer = format!(r#""normalizer": {{"type": "Precompiled", "precompiled_charsmap": "{table}"}}"#);
    let rewriting = text.replacen(r#""normalizer": null"#, &normalizer, 1);
    assert_ne!(text, rewriting, "a trained tokenizer has no normalizer");
    vec![plain, rewriting.into_bytes()]
}

/// The least table: a trie of one block, in which "a" leads to a replacement.
fn table() -> Vec<u8> {
    let mut units = [0u32; 256];
    let a = u32::from(b'a');
    units[a as usize] = (a ^ 2) << 10 | 1 << 8 | a;
    units[2] = 1 << 31;
    let words = std::iter::once(size_of_val(&units) as u32).chain(units);
    words.flat_map(u32::to_le_bytes).chain("\u{e9}\0".bytes()).collect()
}

fn json_lines(data: &[u8]) -> bool {
    prepares("corpus.jsonl", data)
}

fn lines() -> Vec<u8> {
    let line = |day: usize| format!("{{\"day\": {day}, \"text\": \"a bright cold day, \\ud83d\\ude00\"}}\n");
    (0..20).map(line).collect::<String>().into_bytes()
}

fn token_file(data: &[u8]) -> bool {
    prepares("some.bin", data)
}

/// Tokens as nanoGPT writes them, and as llm.c does.
fn token_files() -> Vec<Vec<u8>> {
    let tokens: Vec<u8> = (0..200u16).flat_map(u16::to_le_bytes).collect();
    let mut header = [0u32; 256];
    header[..3].copy_from_slice(&[20_240_520, 1, 200]);
    let header: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    vec![tokens.clone(), [header, tokens].concat()]
}

/// Whether data can be prepared from a file.
fn prepares(name: &str, bytes: &[u8]) -> bool {
    let tokenizer = data().display().to_string();
    with_new_file(name, bytes, |file| {
        let folder = file.with_file_name("prepared");
        let settings = PrepareSettings {
            input: vec![file.display().to_string()],
            prepared: folder.display().to_string(),
            tokenizer,
            sequence_length: 4,
            ..PrepareSettings::default()
        };
        let taken = prepare(&settings, &mut |_| {}).is_ok() && Dataset::open(&folder).is_ok();
        let _ = fs::remove_dir_all(folder);
        taken
    })
}

fn sealed() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        make("sealed", |folder| {
            fs::write(folder.join("a"), "some bytes").expect("a file for fuzzing can be written");
            seal(folder).expect("a folder can be sealed");
        })
    })
}

fn store_checksums(data: &[u8]) -> bool {
    with_file(sealed(), CHECKSUMS, data, |folder| verify_sealed(folder).is_ok())
}

// The folder of a cache: its records, as a disk may give them back.

/// Bytes of a record, and of a block.
const RECORD: usize = 64;
const BLOCK: usize = 4096;

/// A header and three records; the second is none, and the data of the third are others.
fn records() -> Vec<u8> {
    let word = |number: usize| (number as u32).to_le_bytes();
    let mut bytes = vec![0; 4 * RECORD];
    bytes[..16].copy_from_slice(b"gradus blocks\0\0\x01");
    bytes[16..20].copy_from_slice(&word(BLOCK));
    for slot in [1, 3] {
        let record = &mut bytes[slot * RECORD..][..RECORD];
        record[16] = slot as u8;
        record[24..28].copy_from_slice(&word(BLOCK));
        record[28..32].copy_from_slice(&word(if slot == 1 { crc32c(&[7; BLOCK]) as usize } else { 0 }));
    }
    sealed_records(&bytes)
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The same records, with the checksums that they should have: what is altered is then also taken for whole.
fn sealed_records(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    for record in sealed.as_chunks_mut::<RECORD>().0 {
        let checksum = crc32c(&record[..RECORD - 4]).to_le_bytes();
        record[RECORD - 4..].copy_from_slice(&checksum);
    }
    sealed
}

fn cache_folder() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| make("cache", |_| {}))
}

fn cache(data: &[u8]) -> bool {
    let read = |data: &[u8]| {
        // Whoever opens a cache cuts its blocks to what it may have.
        fs::write(cache_folder().join("gradus-cache.blocks"), [7; 3 * BLOCK])
            .expect("a file for fuzzing can be written");
        with_file(cache_folder(), "gradus-cache.records", data, |folder| {
            let Ok(content) = FolderContent::read(folder) else { return false };
            let verified = verify_folder(folder, &mut |done, all| assert!(done <= all));
            verified
                .is_ok_and(|verified| verified.blocks == content.blocks && verified.damaged < verified.blocks)
        })
    };
    [read(data), read(&sealed_records(data))] == [true; 2]
}
