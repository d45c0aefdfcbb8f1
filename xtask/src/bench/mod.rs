//! `cargo x bench NAME`: one measurement against a peer, in one command, with its table last.
//!
//! Raw results are kept as JSON under `benches/results/`; what a measurement needs while it runs lies under
//! `benches/work/`, which git does not see.

mod arm;
mod inputs;
mod table;
mod train;
mod worker;

use crate::{machine, shell};
use anyhow::{Context, Result};
use clap::Subcommand;
use std::fs;
use std::path::PathBuf;

/// The measurements there are.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Training steps of a 13.9M parameter GPT: tokens per second beside PyTorch, on one rank and two.
    Train(train::Options),
    /// Collectives beside their limit and their peers: `gradus bench collective`.
    Collective {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Kernels beside their ceilings: `gradus bench kernels`.
    Kernels {
        /// Passed on.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Runs one.
///
/// # Errors
/// When it cannot be run, a part of it is missing, or what it computed is wrong.
pub fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Train(options) => train::run(&options),
        Bench::Collective { arguments } => built_in("collective", &arguments),
        Bench::Kernels { arguments } => built_in("kernels", &arguments),
    }
}

/// A measurement that is a subcommand of the binary, release build.
fn built_in(name: &str, arguments: &[String]) -> Result<()> {
    let binary = shell::release_binary()?;
    let mut command = shell::command(binary, &["bench", name, "--out"]);
    command.arg(result_file(name)?).args(arguments);
    shell::run(command)
}

/// `benches/results/NAME-DATE-MACHINE.json`; its folder is made.
fn result_file(name: &str) -> Result<PathBuf> {
    let folder = made(shell::root().join("benches/results"))?;
    Ok(folder.join(format!("{name}-{}-{}.json", machine::date()?, machine::name())))
}

/// `benches/work/NAME`; it is made.
fn work_folder(name: &str) -> Result<PathBuf> {
    made(shell::root().join("benches/work").join(name))
}

fn made(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
