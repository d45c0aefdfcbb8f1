//! `cargo x ...`: the one task runner of this repository.
//!
//! Each task is a command that a person could type, with the parts that one forgets: the environment a Python script
//! needs, the release build a benchmark wants, the order in which CI runs things. Nothing here is part of Gradus: the
//! task runner depends on none of its crates, so that it runs while they do not build.

mod bench;
mod ci;
mod environment;
mod fuzz;
mod machine;
mod readme;
mod sanitize;
mod shell;
mod simulate;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// The task runner of Gradus.
#[derive(Debug, Parser)]
#[command(name = "cargo x", bin_name = "cargo x")]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Formatting and lints: what must be clean before a commit.
    Check,
    /// The README's test command, word for word.
    Test,
    /// Make the model's golden files with PyTorch, or compare them with what is committed.
    Golden {
        /// Compare with the committed files, change nothing.
        #[arg(long)]
        check: bool,
        /// Cases to make; all when none is named.
        cases: Vec<String>,
    },
    /// Hold our files and numbers against transformers, safetensors and TensorBoard.
    Interop {
        /// A finished training run to look at; without it, a short one is made.
        #[arg(long)]
        run: Option<PathBuf>,
    },
    /// Measure against a peer, side by side, in one command.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// What is simulated under faults: replay a seed, or run many.
    Sim(simulate::Simulation),
    /// Foreign bytes: every target that takes some, with altered inputs, for a bounded time.
    Fuzz(fuzz::Inputs),
    /// The kernels' tests under AddressSanitizer.
    Sanitize,
    /// The worker pool in every order in which its threads can meet.
    Model,
    /// What CI runs.
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        None => Cli::command().print_help().map_err(Into::into),
        Some(task) => run(task),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo x: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Check => ci::check(),
        Task::Test => ci::test(),
        Task::Golden { check, cases } => ci::golden(check, &cases),
        Task::Interop { run } => ci::interop(run),
        Task::Bench(bench) => bench::run(bench),
        Task::Sim(simulation) => simulate::run(&simulation),
        Task::Fuzz(inputs) => fuzz::run(&inputs),
        Task::Sanitize => sanitize::address(),
        Task::Model => sanitize::model(),
        Task::Ci => ci::all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_accepts_its_own_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_seed_needs_no_name_of_what_it_is_of() {
        for words in [
            &["--seed", "3"][..],
            &["--seeds", "9"],
            &["membership", "--seed", "3"],
            &["collective", "--seed", "3"],
        ] {
            let words = ["cargo x", "sim"].iter().chain(words);
            assert!(Cli::try_parse_from(words.clone()).is_ok(), "{words:?}");
        }
        assert!(Cli::try_parse_from(["cargo x", "sim", "--seed", "3", "--seeds", "9"]).is_err());
    }
}
