//! Tier 0: the blocks that a node keeps, in memory and on disk.
//!
//! Whoever walks the order of samples accesses their blocks in that order. Each access is decided at once and for good, in
//! the directories of both tiers, by number only; what follows from it takes its time: a fetch ([`Fill`]), a
//! read from disk ([`Load`]), the wait for another's ([`Held`]), a write to disk behind everybody's back. So what the cache
//! takes in and gives up does not depend on how far ahead it is asked, nor on how fast anything is; with next uses known it
//! is Belady's optimum.
//!
//! Memory of a block is reused, and its slot on disk, when the directory has let go of it and nobody holds it. So the
//! memory tier has fewer blocks than there are pages: the others are for what is on its way.
//!
//! Invariants: one fetch of a block is under way at a time, and whoever wants the block shares it; bytes that are read are
//! those that were written, or the block counts as damaged and is fetched again; no failure of the disk ends a run.

mod access;
mod counters;
mod directory;
mod pages;
mod policy;
mod settings;
mod slots;
mod state;
mod tier0;
mod writer;

pub use access::{Access, Fill, Held, Load, Loaded};
pub use counters::CacheCounters;
pub use pages::Waker;
pub use policy::PolicyKind;
pub use settings::CacheSettings;
pub use slots::{FolderContent, Verified, clear_folder, folder_block_bytes, verify_folder};
pub use tier0::Tier0;

#[cfg(test)]
mod tests;
