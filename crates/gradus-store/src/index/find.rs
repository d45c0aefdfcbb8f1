//! A dataset's description, found beside the data, or made.

use super::file::{INDEX_FILE, TAIL_BYTES};
use super::{Format, Index, IndexSettings, Objects};
use crate::blocks::ObjectInfo;
use crate::bucket::{Bucket, Tail};
use gradus_error::{Kind, Result};

impl Index {
    /// The description of the dataset at a bucket's address: the one that lies beside it, if that still holds, or one that is
    /// made now by `settings`. A word in the log says when one is passed over. Blocks: for one latency of the bucket's where
    /// one of less than a mebibyte lies there.
    ///
    /// # Errors
    /// What [`Index::build`] says.
    pub fn find(bucket: &Bucket, settings: &IndexSettings) -> Result<Self> {
        // Both at once: a bucket's latency is waited for once.
        let tail = bucket.begin_tail(INDEX_FILE, TAIL_BYTES);
        let listed = Objects::list(bucket, &bucket.address().to_string())?;
        match beside(bucket, &listed, tail) {
            // What is described of prepared tokens depends on the split, and their manifest says all of it.
            Ok(Some(index)) if !matches!(index.format(), Format::Tokens { .. }) => return Ok(index),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Corrupt) => {
                tracing::warn!(
                    "the index beside the data is passed over, and they are indexed anew: {error}"
                );
            }
            Err(error) => return Err(error),
        }
        Self::build_listed(bucket, &bucket.address().to_string(), &listed, settings, &|_| ())
    }
}

/// The index among what lies at the address, if there is one; `tail` is its end, as far as it has come.
///
/// # Errors
/// `Invalid` and `Corrupt` where it does not hold; the store's.
fn beside(bucket: &Bucket, listed: &[ObjectInfo], tail: Tail) -> Result<Option<Index>> {
    let address = bucket.address().join(INDEX_FILE).to_string();
    let Some(file) = listed.iter().find(|object| object.address == address) else { return Ok(None) };
    // Where another was written between the two answers, what was listed counts.
    let tail = tail.take().filter(|(object, _)| object == file);
    let index = Index::read_ended(bucket, file, tail.map(|(_, bytes)| bytes))?;
    index.check_objects(listed)?;
    Ok(Some(index))
}
