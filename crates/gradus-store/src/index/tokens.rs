//! Prepared tokens: what `gradus prepare` wrote, in a folder or a bucket.
//!
//! Samples have one size and begin at equal distances, each sharing its last token with the next: arithmetic, for which
//! nothing but the manifest is read and no memory is needed.

use super::objects::{Objects, read_whole};
use super::table::{Fixed, Table};
use super::{Format, Index, IndexSettings};
use crate::blocks::ObjectInfo;
use crate::manifest::{LIMIT_BYTES, Manifest, Shard};
use gradus_error::{Error, Result};

/// Describes one part of the tokens whose manifest is given.
pub(super) fn index(
    objects: &dyn Objects,
    manifest_object: &ObjectInfo,
    listed: &[ObjectInfo],
    settings: &IndexSettings,
) -> Result<Index> {
    let text = read_whole(objects, manifest_object, LIMIT_BYTES)?;
    let manifest = Manifest::parse(&text, &manifest_object.address)?;
    let folder = manifest_object.address.rsplit_once('/').map_or("", |(folder, _)| folder);
    let sequence_length = manifest.sequence_length as u64;
    let width = manifest.token_type.bytes();
    let shards = &manifest.split(settings.split).shards;
    let infos = shards.iter().map(|shard| find(folder, shard, listed)).collect::<Result<Vec<_>>>()?;
    let table = |shard: &Shard| {
        Table::fixed(Fixed {
            start: shard.offset_bytes,
            stride: sequence_length * width,
            len: (sequence_length + 1) * width,
            samples: (shard.tokens - 1) / sequence_length,
        })
    };
    let format = Format::Tokens { split: settings.split, token_type: manifest.token_type, sequence_length };
    let keys = infos.iter().map(|_| Vec::new()).collect();
    Ok(Index::new(format, infos, shards.iter().map(table).collect(), keys))
}

/// The object of a shard, of the size that the manifest says.
fn find(folder: &str, shard: &Shard, listed: &[ObjectInfo]) -> Result<ObjectInfo> {
    if shard.file.starts_with('/') {
        return Err(Error::invalid(format!(
            "{folder} names the token file {} and does not hold it: a folder that is read as a dataset has its shards in \
             it; prepare from text",
            shard.file
        )));
    }
    let address = format!("{folder}/{}", shard.file);
    let Some(object) = listed.iter().find(|object| object.address == address) else {
        return Err(Error::corrupt(format!(
            "{address} is missing: the manifest beside it names it; copy it again"
        )));
    };
    if object.bytes != shard.file_bytes {
        return Err(Error::corrupt(format!(
            "{address} has {} bytes, its manifest says {}: copy it again",
            object.bytes, shard.file_bytes
        )));
    }
    Ok(object.clone())
}
