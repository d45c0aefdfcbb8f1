//! `cargo x bench NAME`: one measurement against a peer, in one command, with its table last.
//!
//! Raw results are kept as JSON under `benches/results/`; what a measurement needs while it runs lies under
//! `benches/work/`, which git does not see.

mod arm;
mod collective;
mod dataset;
mod generate;
mod inputs;
mod kernels;
mod memory;
mod scaling;
mod shape;
mod table;
mod train;
mod validation;
mod worker;

use crate::{machine, shell};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The measurements there are.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Training steps of a GPT of 13.9M parameters or of SmolLM2-135M: tokens per second and memory beside PyTorch; or
    /// split among ranks in every way.
    Train(train::Options),
    /// The held-out loss after some hundred steps, beside PyTorch's over the same batches.
    Validation(validation::Options),
    /// All-reduce between processes of this host, by size and transport, beside gloo, Open MPI and Intel MPI.
    Collective(collective::Options),
    /// Each operation of the CPU device, beside its own ceiling and PyTorch's operator.
    Kernels(kernels::Options),
    /// Samples per second out of local files and S3, beside the data loaders of the field.
    Dataset(dataset::Options),
    /// Tokens per second of a model that writes, beside transformers and the memory's bound.
    Generate(generate::Options),
}

/// Runs one.
///
/// # Errors
/// When it cannot be run, a part of it is missing, or what it computed is wrong.
pub fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Train(options) => train::run(&options),
        Bench::Validation(options) => validation::run(&options),
        Bench::Collective(options) => collective::run(&options),
        Bench::Kernels(options) => kernels::run(&options),
        Bench::Dataset(options) => dataset::run(&options),
        Bench::Generate(options) => generate::run(&options),
    }
}

/// Writes what was measured, with machine, date, commit and settings, to a file of its own.
fn keep(name: &str, machine: &Value, settings: Value, measured: Value) -> Result<()> {
    keep_in(&result_file(name)?, name, machine, settings, measured)
}

/// The same in a file that is known: what a long measurement has found so far takes the place of what it had before.
fn keep_in(path: &Path, name: &str, machine: &Value, settings: Value, measured: Value) -> Result<()> {
    let result = json!({
        "bench": name,
        "date": machine::date()?,
        "commit": machine::commit()?,
        "machine": machine,
        "settings": settings,
        "measured": measured,
    });
    let text = serde_json::to_string_pretty(&result)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("results: {}", shell::relative(path));
    Ok(())
}

/// `benches/results/NAME-DATE-MACHINE.json`; its folder is made.
fn result_file(name: &str) -> Result<PathBuf> {
    let folder = made(shell::root().join("benches/results"))?;
    Ok(folder.join(format!("{name}-{}-{}.json", machine::date()?, machine::name())))
}

/// Gives each of `arms` its turn in every round; the order rotates, so that no arm always follows the same one.
fn in_turns(rounds: usize, arms: usize, mut turn: impl FnMut(usize)) {
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        (0..arms).for_each(|place| turn((place + round) % arms));
    }
}

/// `benches/work/NAME`; it is made.
fn work_folder(name: &str) -> Result<PathBuf> {
    made(shell::root().join("benches/work").join(name))
}

fn made(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
