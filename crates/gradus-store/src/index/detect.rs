//! What a listing is a dataset of, by the names in it.

use super::Format;
use super::mosaic::INDEX_JSON;
use crate::blocks::ObjectInfo;
use crate::index::file::INDEX_FILE;
use crate::manifest::MANIFEST;
use gradus_error::{Error, Result};

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The manifest of prepared tokens.
    Tokens(ObjectInfo),
    /// The index of MDS shards.
    Mosaic(ObjectInfo),
    JsonLines(Vec<(ObjectInfo, Packing)>),
    Parquet(Vec<ObjectInfo>),
    WebDataset(Vec<ObjectInfo>),
}

/// How a file of lines is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    JsonLines(Packing),
    Parquet,
    WebDataset,
}

/// Endings of names and what they mean. Longer ones come first.
const ENDINGS: [(&str, Kind); 13] = [
    (".jsonl.gz", Kind::JsonLines(Packing::Gzip)),
    (".ndjson.gz", Kind::JsonLines(Packing::Gzip)),
    (".json.gz", Kind::JsonLines(Packing::Gzip)),
    (".jsonl.zst", Kind::JsonLines(Packing::Zstd)),
    (".ndjson.zst", Kind::JsonLines(Packing::Zstd)),
    (".json.zst", Kind::JsonLines(Packing::Zstd)),
    (".jsonl.zstd", Kind::JsonLines(Packing::Zstd)),
    (".ndjson.zstd", Kind::JsonLines(Packing::Zstd)),
    (".json.zstd", Kind::JsonLines(Packing::Zstd)),
    (".jsonl", Kind::JsonLines(Packing::Plain)),
    (".ndjson", Kind::JsonLines(Packing::Plain)),
    (".parquet", Kind::Parquet),
    (".tar", Kind::WebDataset),
];

/// Endings of data that are not read: passing over them would silently leave out samples.
const UNREADABLE: [&str; 11] = [
    ".tar.gz",
    ".tgz",
    ".tar.zst",
    ".tar.zstd",
    ".bz2",
    ".xz",
    ".lz4",
    ".arrow",
    ".csv",
    ".tfrecord",
    ".zip",
];

fn kind(object: &ObjectInfo) -> Option<Kind> {
    let name = object.name().to_ascii_lowercase();
    let hidden = name.starts_with(['.', '_']) || name == INDEX_FILE;
    let found = ENDINGS.iter().find(|(ending, _)| name.ends_with(ending));
    found.filter(|_| !hidden).map(|(_, kind)| *kind)
}

/// Whether an object by its name belongs to a dataset of this format; of MDS and of tokens their own lists say so.
pub(super) fn is_data(format: &Format, object: &ObjectInfo) -> bool {
    match format {
        Format::JsonLines => matches!(kind(object), Some(Kind::JsonLines(_))),
        Format::Parquet { .. } => kind(object) == Some(Kind::Parquet),
        Format::WebDataset => kind(object) == Some(Kind::WebDataset),
        Format::Mosaic { .. } | Format::Tokens { .. } => false,
    }
}

/// The object that is directly at `prefix` with this name, if it is listed.
fn at<'a>(listed: &'a [ObjectInfo], prefix: &str, wanted: &str) -> Option<&'a ObjectInfo> {
    let depth = |address: &str| address.matches('/').count();
    let named = listed.iter().filter(|object| object.name() == wanted);
    // The one nearest to the prefix; one that is no nearer than the data of a folder below belongs to that folder.
    let nearest = named.min_by_key(|object| depth(&object.address))?;
    let least = listed.iter().map(|object| depth(&object.address)).min()?;
    let names_it = prefix.ends_with(wanted);
    (names_it || depth(&nearest.address) == least).then_some(nearest)
}

/// What `listed`, all that is at `prefix`, is a dataset of.
pub(super) fn detect(prefix: &str, listed: &[ObjectInfo]) -> Result<Found> {
    if listed.is_empty() {
        return Err(Error::invalid(format!("there is nothing at {prefix}")));
    }
    if let Some(manifest) = at(listed, prefix, MANIFEST) {
        return Ok(Found::Tokens(manifest.clone()));
    }
    if let Some(index) = at(listed, prefix, INDEX_JSON) {
        return Ok(Found::Mosaic(index.clone()));
    }
    if let Some(odd) = listed.iter().find(|object| is_unreadable(object)) {
        return Err(Error::invalid(format!(
            "{} is of a kind that cannot be indexed: JSON lines (plain, .gz, .zst), Parquet, plain .tar, MDS and prepared \
             tokens can",
            odd.address
        )));
    }
    let known: Vec<(Kind, ObjectInfo)> =
        listed.iter().filter_map(|object| Some((kind(object)?, object.clone()))).collect();
    let Some((first, example)) = known.first().cloned() else {
        return Err(Error::invalid(format!(
            "none of the {} objects at {prefix} is data (the first is {}): .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .tar, \
             MDS with its {INDEX_JSON}, or prepared tokens with their {MANIFEST} are",
            listed.len(),
            listed[0].address
        )));
    };
    if let Some((_, other)) = known.iter().find(|(kind, _)| !same(*kind, first)) {
        return Err(Error::invalid(format!(
            "{prefix} is a mixture: {} and {} are of two formats; name a folder of one",
            example.address, other.address
        )));
    }
    let objects = known.iter().map(|(_, object)| object.clone());
    Ok(match first {
        Kind::Parquet => Found::Parquet(objects.collect()),
        Kind::WebDataset => Found::WebDataset(objects.collect()),
        Kind::JsonLines(_) => Found::JsonLines(known.iter().filter_map(with_packing).collect()),
    })
}

fn is_unreadable(object: &ObjectInfo) -> bool {
    let name = object.name().to_ascii_lowercase();
    UNREADABLE.iter().any(|ending| name.ends_with(ending))
}

fn with_packing((kind, object): &(Kind, ObjectInfo)) -> Option<(ObjectInfo, Packing)> {
    match kind {
        Kind::JsonLines(packing) => Some((object.clone(), *packing)),
        _ => None,
    }
}

fn same(one: Kind, other: Kind) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other)
}
