//! Corpora, tokenizing, dataset shards, the order of samples, atomic objects.
//!
//! [`prepare()`] turns a corpus into a folder of token shards, once; a [`Dataset`] reads samples from it; a
//! [`SampleOrder`] says which sample stands at which position of which epoch; a [`Tokenizer`] turns text into tokens
//! and back; [`atomic`] writes folders that are either the old one or the new one, and checks them.
//!
//! Invariants: nothing in a finished folder is changed in place; the same corpus and settings give the same bytes,
//! whatever the number of threads; memory is bounded whatever the size of the corpus.

pub mod atomic;
mod dataset;
mod digest;
mod manifest;
pub mod order;
mod prepare;
mod tokenizer;

pub use atomic::{recover_folder, seal, verify_sealed, write_folder_atomically};
pub use dataset::{Dataset, TokenSplit};
pub use digest::digest_file;
pub use manifest::{InputStamp, Inputs, MANIFEST, Manifest, Shard, Split, SplitManifest, TokenType};
pub use order::SampleOrder;
pub use prepare::{PreparePhase, PrepareProgress, PrepareSettings, Prepared, prepare};
pub use tokenizer::{END_OF_TEXT, Encoder, LEAST_VOCABULARY, StreamDecoder, Tokenizer, train};
