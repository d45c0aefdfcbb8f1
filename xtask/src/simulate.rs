//! Membership under simulated faults: one seed with all that happens in it, or many.

use crate::shell;
use anyhow::{Result, ensure};

/// The example that runs seeds: the task runner depends on no crate of Gradus.
const EXAMPLE: [&str; 6] =
    ["run", "--quiet", "--package", "gradus-fabric", "--example", "membership_simulation"];

/// Which seeds.
#[derive(Debug, Clone, clap::Args)]
pub struct Seeds {
    /// Replay this seed and print all that happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Run as many seeds, and name those that violate an invariant.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

/// Runs them.
///
/// # Errors
/// When none is asked for, or one violates an invariant.
pub fn run(seeds: &Seeds) -> Result<()> {
    let words = match seeds {
        Seeds { seed: Some(seed), .. } => vec!["--seed".to_owned(), seed.to_string()],
        Seeds { seeds: Some(count), first, .. } => {
            vec!["--seeds".to_owned(), count.to_string(), "--first".to_owned(), first.to_string()]
        }
        _ => Vec::new(),
    };
    ensure!(!words.is_empty(), "which seeds? --seed N replays one, --seeds COUNT runs many");
    let mut command = shell::cargo(&EXAMPLE);
    command.arg("--").args(words);
    shell::run(command)
}
