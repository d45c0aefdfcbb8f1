//! Simulations under faults: one seed with all that happens in it, or many.

use crate::shell;
use anyhow::{Result, ensure};

/// Seeds of what: of membership, where nothing is named.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Simulation {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    seeds: Seeds,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// Membership: a coordinator and the members of groups.
    Membership(Seeds),
    /// Collectives: whole programs of them, over a simulated transport.
    Collective(Seeds),
}

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

impl Simulation {
    /// The package and its example that run seeds: the task runner depends on no crate of Gradus.
    fn example(&self) -> (&'static str, &'static str, &Seeds) {
        let membership = |seeds| ("gradus-fabric", "membership_simulation", seeds);
        match &self.what {
            None => membership(&self.seeds),
            Some(What::Membership(seeds)) => membership(seeds),
            Some(What::Collective(seeds)) => ("gradus-collective", "collective_simulation", seeds),
        }
    }
}

/// Runs them.
///
/// # Errors
/// When none is asked for, or one violates an invariant.
pub fn run(simulation: &Simulation) -> Result<()> {
    let (package, example, seeds) = simulation.example();
    let words = match seeds {
        Seeds { seed: Some(seed), .. } => vec!["--seed".to_owned(), seed.to_string()],
        Seeds { seeds: Some(count), first, .. } => {
            vec!["--seeds".to_owned(), count.to_string(), "--first".to_owned(), first.to_string()]
        }
        _ => Vec::new(),
    };
    ensure!(!words.is_empty(), "which seeds? --seed N replays one, --seeds COUNT runs many");
    let mut command = shell::cargo(&["run", "--quiet", "--package", package, "--example", example]);
    command.arg("--").args(words);
    shell::run(command)
}
