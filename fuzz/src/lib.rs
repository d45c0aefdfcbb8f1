//! Everything that takes foreign bytes, as fuzz targets.
//!
//! A target is a function of bytes that may refuse them and must do nothing worse: not panic, not overflow, not take more
//! memory than [`runner::MOST_MEMORY`], not go on for ever. Where what takes them is a crate's own affair, the target
//! stands in that crate's `fuzzing` module; files that any caller can name are read here, in [`mod@files`].

pub mod files;
pub mod mutate;
pub mod place;
mod planted;
pub mod runner;

/// Name, function and first inputs.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All targets.
pub fn targets() -> Vec<Target> {
    let own = files::TARGETS.into_iter();
    own.chain(gradus_fabric::fuzzing::TARGETS).chain(gradus_collective::fuzzing::TARGETS).collect()
}

/// The target of a name; those that do harm on purpose are found as well.
pub fn find(name: &str) -> Option<Target> {
    targets().into_iter().chain(planted::TARGETS).find(|target| target.0 == name)
}
