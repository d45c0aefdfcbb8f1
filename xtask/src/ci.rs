//! The tasks that CI is made of; `.ci/run` is their order.

use crate::environment::Environment;
use crate::{readme, shell};
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// The quickstart at a length that shows that it works: a tokenizer, a model, a checkpoint, an export.
const SHORT_RUN: [&str; 5] = ["train", "examples/quickstart.toml", "--train.duration", "20s", "--run.dir"];

/// Formatting and lints.
///
/// # Errors
/// When one is not clean.
pub fn check() -> Result<()> {
    shell::run(shell::cargo(&["fmt", "--all", "--check"]))?;
    shell::run(shell::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // The fuzz targets are a workspace of their own; files of the program that are read there are tested here.
    shell::run(shell::cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    let mut clippy =
        shell::cargo(&["clippy", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target-dir"]);
    clippy.arg(shell::target()).args(["--lib", "--bins", "--tests", "--", "-D", "warnings"]);
    shell::run(clippy)
}

/// The README's test command, run by a shell as a reader would.
///
/// # Errors
/// When README.md names none, or it fails.
pub fn test() -> Result<()> {
    shell::run(shell::command("bash", &["-c", &readme::test_command()?]))
}

/// Makes or checks the golden files.
///
/// # Errors
/// When the environment or the script fails.
pub fn golden(check: bool, cases: &[String]) -> Result<()> {
    let mut script = Environment::ensure("golden")?.script("golden.py");
    script.args(check.then_some("--check")).args(cases);
    shell::run(script)
}

/// Holds a run against other people's readers; makes a short one when none is given.
///
/// # Errors
/// When the build, the run or a check fails.
pub fn interop(run: Option<PathBuf>) -> Result<()> {
    let binary = shell::release_binary()?;
    let environment = Environment::ensure("interop")?;
    let run = match run {
        Some(run) => shell::root().join(run),
        None => short_run(&binary)?,
    };
    let mut script = environment.script("interop.py");
    script.arg("--gradus").arg(binary).arg("--run").arg(run);
    shell::run(script)
}

fn short_run(binary: &Path) -> Result<PathBuf> {
    let folder = shell::target().join("interop/run");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    let mut train = shell::command(binary, &SHORT_RUN);
    train.arg(&folder);
    shell::run(train)?;
    ensure!(folder.is_dir(), "the run left no {}", folder.display());
    Ok(folder)
}

/// The same as CI.
///
/// # Errors
/// When a stage fails.
pub fn all() -> Result<()> {
    shell::run(shell::command(".ci/run", &[] as &[&str]))
}
