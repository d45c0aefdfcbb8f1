//! Corpora, tokenizing, dataset shards, the order of samples, atomic objects; datasets in buckets, and what a node keeps of them.
//!
//! [`prepare()`] turns a corpus into a folder of token shards, once; a [`Dataset`] reads samples from it;
//! an [`Order`] says which sample stands at which position, and when it comes next; a [`Tokenizer`] turns text into tokens
//! and back; a [`Bucket`] holds objects, an [`Index`] says where a dataset's samples are in them, and a [`Feed`] reads them
//! ahead through a cache ([`cache`]) that nodes share ([`peers`]); [`atomic`] writes folders that are either the old one or the new one, and checks them.
//!
//! Invariants: nothing in a finished folder is changed in place; the same corpus and settings give the same bytes,
//! whatever the number of threads; memory is bounded whatever the size of the corpus.

#![forbid(unsafe_code)]

pub mod atomic;
mod blocks;
pub mod bucket;
pub mod cache;
mod crc32c;
mod dataset;
mod digest;
mod feed;
pub mod index;
mod manifest;
mod mixed;
pub mod order;
pub mod peers;
mod prepare;
mod sample_form;
mod summary;
mod tokenizer;
mod tokens;

pub use atomic::{recover_folder, seal, verify_sealed, write_folder_atomically};
pub use blocks::{Block, BlockKey, BlockMap, ObjectInfo};
pub use bucket::{Address, Bucket, BucketCounters, BucketSettings};
pub use cache::{CacheCounters, CacheSettings};
pub use dataset::{Dataset, TokenFiles, TokenSplit};
pub use digest::digest_file;
pub use feed::{
    Asker, Brought, Cause, Fallbacks, Feed, FeedCounters, Joining, Keeper, Readers, Reading, Sample, Samples,
    Source, Stalls, Warmed, cache_for, chosen_block_bytes, known_block_bytes, warm,
};
pub use index::{Index, IndexSettings, Objects};
pub use manifest::{InputStamp, Inputs, MANIFEST, Manifest, Shard, Split, SplitManifest, TokenType};
pub use mixed::{Mixed, MixedOrder, MixedPart, MixtureProgress};
pub use order::{Order, OrderSettings, SampleOrder, Shuffle};
pub use prepare::{
    OpenBucket, PreparePhase, PrepareProgress, PrepareSettings, Prepared, prepare, prepare_with_buckets,
};
pub use summary::{DataSummary, PartSummary};
pub use tokenizer::{END_OF_TEXT, Encoder, LEAST_VOCABULARY, StreamDecoder, Tokenizer, train};
pub use tokens::{FeedTokens, FileTokens, Tokens};
