//! `gradus cache`: the folder of a cache, looked at from outside, and filled.

use super::cache_warm::{self, WarmArguments};
use crate::logging;
use crate::sinks::Preparation;
use crate::wording;
use clap::Subcommand;
use gradus_error::{Error, Result};
use gradus_store::cache::{FolderContent, Verified, clear_folder, verify_folder};
use std::path::{Path, PathBuf};

/// What can be done with a cache's folder.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show what it holds; it may be in use.
    Stat {
        /// The folder (cache.folder).
        folder: PathBuf,
    },
    /// Read every block and compare it with its checksum.
    Verify {
        /// The folder (cache.folder).
        folder: PathBuf,
    },
    /// Fetch what a run will read, as much as there is room for; any setting can follow by its dotted name.
    Warm(WarmArguments),
    /// Give up all blocks; they are fetched again when they are needed.
    Clear {
        /// The folder (cache.folder).
        folder: PathBuf,
    },
}

/// Does it, and prints what was found.
///
/// # Errors
/// `Invalid` for a folder that is no cache's, `Unavailable` for one in use where that matters, `Corrupt` when blocks prove
/// to be damaged; the system's; what [`cache_warm::run`] says.
pub fn run(command: &CacheCommand, overrides: &[(String, String)]) -> Result<()> {
    match command {
        CacheCommand::Stat { folder } => stat(folder),
        CacheCommand::Verify { folder } => verify(folder),
        CacheCommand::Warm(arguments) => cache_warm::run(arguments, overrides),
        CacheCommand::Clear { folder } => {
            let content = clear_folder(folder)?;
            logging::print(format_args!(
                "gave up {} blocks of {} in {}",
                content.blocks,
                wording::bytes(content.bytes),
                folder.display()
            ))
        }
    }
}

fn line(name: &str, value: impl std::fmt::Display) -> Result<()> {
    logging::print(format_args!("{name:<12} {value}"))
}

fn stat(folder: &Path) -> Result<()> {
    let content = FolderContent::read(folder)?;
    line("folder", folder.display())?;
    line("block size", format_args!("{} KiB", content.block_bytes >> 10))?;
    line("slots", content.slots)?;
    line("blocks", content.blocks)?;
    line("data", wording::bytes(content.bytes))?;
    line("objects", content.objects)
}

fn verify(folder: &Path) -> Result<()> {
    let mut screen = Preparation::new();
    let mut has_begun = false;
    let verified = verify_folder(folder, &mut |done, all| {
        if !std::mem::replace(&mut has_begun, true) {
            screen.begin("reading", all);
        }
        screen.advance(done);
    });
    screen.end();
    let Verified { blocks, damaged } = verified?;
    line("blocks", blocks)?;
    line("damaged", damaged)?;
    if damaged > 0 {
        return Err(Error::corrupt(format!(
            "{damaged} of {blocks} blocks in {} are damaged: a run fetches them again when it needs them; `gradus cache clear` \
             gives up all, and a disk that does this again should be replaced",
            folder.display()
        )));
    }
    Ok(())
}
