//! Fuzz targets on stable: the runner of `fuzz/`, a workspace of its own.

use crate::shell;
use anyhow::Result;
use std::path::PathBuf;

/// What the runner is told.
#[derive(Debug, Clone, clap::Args)]
pub struct Inputs {
    /// How long, for all targets together.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// One target; all when none is named.
    #[arg(long)]
    target: Option<String>,
    /// Where chance begins; new each time when it is not given, and shown.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs this input alone; wants --target.
    #[arg(long, requires = "target")]
    replay: Option<PathBuf>,
}

/// Runs the targets.
///
/// # Errors
/// When one does harm, or the runner cannot be built.
pub fn run(inputs: &Inputs) -> Result<()> {
    let manifest = shell::root().join("fuzz/Cargo.toml");
    let mut command = shell::cargo(&["run", "--quiet", "--locked", "--bin", "smoke", "--manifest-path"]);
    // The same folder as the other workspace: what is built there already is not built again.
    command.arg(manifest).arg("--target-dir").arg(shell::target());
    command.args(["--", "--seconds", &inputs.seconds.to_string()]);
    command.args(inputs.target.iter().flat_map(|target| ["--target", target]));
    command.args(inputs.seed.iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
    if let Some(file) = &inputs.replay {
        command.arg("--replay").arg(file);
    }
    shell::run(command)
}
