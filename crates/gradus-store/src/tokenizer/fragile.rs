//! The parts of a `tokenizer.json` whose parsers beneath panic at what they do not like, or take it and panic later: they are
//! read once before.

use super::charsmap;
use gradus_error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizers::Precompiled;

/// What SentencePiece's table is called.
const TABLE: &str = "precompiled_charsmap";

#[derive(Deserialize)]
struct Fragile {
    /// Where it is no JSON.
    #[serde(default, rename = "decoder")]
    _decoder: Value,
    /// Where a table of SentencePiece's is damaged.
    #[serde(default)]
    normalizer: Value,
}

/// Refuses a `tokenizer.json` that would have the library panic.
///
/// # Errors
/// `Corrupt`, naming the part.
pub(super) fn check(json: &[u8]) -> Result<()> {
    let fragile: Fragile = serde_json::from_slice(json).map_err(no_json)?;
    check_tables(&fragile.normalizer)
}

fn no_json(error: serde_json::Error) -> Error {
    Error::corrupt("it is not the JSON of a tokenizer").with_source(error)
}

/// Checks every table of a normalizer and of those in it.
fn check_tables(normalizer: &Value) -> Result<()> {
    match normalizer {
        Value::Object(fields) => {
            if fields.contains_key(TABLE) || fields.get("type").is_some_and(means_table) {
                check_table(normalizer)?;
            }
            fields.values().try_for_each(check_tables)
        }
        // The library would also take a table without its name, as the only thing of a list.
        Value::Array(parts) if !parts.iter().all(Value::is_object) => {
            Err(Error::corrupt("a list in its normalizer holds what is no normalizer"))
        }
        Value::Array(parts) => parts.iter().try_for_each(check_tables),
        _ => Ok(()),
    }
}

/// Whether a type is that of tables, in either way that the library understands.
fn means_table(kind: &Value) -> bool {
    kind == "Precompiled" || kind.get("Precompiled").is_some()
}

fn check_table(normalizer: &Value) -> Result<()> {
    let table = normalizer.get(TABLE).and_then(Value::as_str);
    charsmap::check(table.ok_or_else(|| Error::corrupt(format!("its normalizer's {TABLE} is no text")))?)?;
    // Last, for the library allocates before it looks.
    serde_json::from_str::<Precompiled>(&normalizer.to_string()).map(drop).map_err(no_json)
}
