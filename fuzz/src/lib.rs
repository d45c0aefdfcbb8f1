//! Everything that takes foreign bytes, as fuzz targets.
//!
//! A target is a function of bytes that may refuse them and must do nothing worse: not panic, not overflow, not take more
//! memory than [`runner::MOST_MEMORY`], not go on for ever. The first inputs that come with it must be taken, or else all that follows
//! from them would be refused at the door. Where what takes them is a crate's own affair, the target
//! stands in that crate's `fuzzing` module; files that any caller can name are read here, in [`mod@files`], and what the
//! program alone takes in `program`.

pub mod datasets;
pub mod files;
pub mod mutate;
pub mod place;
mod planted;
mod program;
pub mod runner;

// They name each other by these names.
#[allow(dead_code, reason = "the program has more uses for it")]
#[path = "../../crates/gradus/src/data_section.rs"]
mod data_section;
#[allow(dead_code, reason = "the program has more uses for it")]
#[path = "../../crates/gradus/src/run_settings.rs"]
mod run_settings;
#[allow(dead_code, unused_imports, reason = "the program has more uses for it")]
#[path = "../../crates/gradus/src/settings/mod.rs"]
mod settings;

/// Name, function, which says whether it takes its input, and first inputs, all of which it takes.
pub type Target = (&'static str, fn(&[u8]) -> bool, fn() -> Vec<Vec<u8>>);

/// All targets.
pub fn targets() -> Vec<Target> {
    let own = files::TARGETS.into_iter().chain(datasets::TARGETS).chain(program::TARGETS);
    own.chain(gradus_fabric::fuzzing::TARGETS)
        .chain(gradus_collective::fuzzing::TARGETS)
        .chain(gradus_train::fuzzing::TARGETS)
        .collect()
}

/// The target of a name; those that do harm on purpose are found as well.
pub fn find(name: &str) -> Option<Target> {
    targets().into_iter().chain(planted::TARGETS).find(|target| target.0 == name)
}
