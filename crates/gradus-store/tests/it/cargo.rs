//! The corpus that every Rust checkout has.

use super::{prepared, settings};
use gradus_store::Dataset;
use std::path::Path;

#[test]
fn the_sources_of_this_checkout_are_a_corpus() {
    let home = tempfile::tempdir().unwrap();
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
    let mut settings = settings(home.path(), "");
    settings.input = vec![format!("cargo:{}", lock.display())];
    settings.limit_bytes = 300_000;
    let first = prepared(&settings);
    let sources = std::fs::read(first.folder.join("sources.json")).unwrap();
    let sources: Vec<serde_json::Value> = serde_json::from_slice(&sources).unwrap();
    let bytes: u64 = sources.iter().map(|source| source["bytes"].as_u64().unwrap()).sum();
    assert!(bytes <= 300_000 && bytes > 100_000);
    assert!(sources.iter().all(|source| !source["package"].as_str().unwrap().starts_with("gradus")));
    let manifest = &first.manifest;
    assert_eq!(manifest.train.documents + manifest.held_out.documents, sources.len() as u64);
    assert!(!prepared(&settings).changed);
    Dataset::open(&first.folder).unwrap();
}
