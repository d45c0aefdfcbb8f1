//! What all arms share: initial weights, batches of a real text, and the command that starts each.

use super::arm::{Engine, Layout, Plan};
use super::shape::Shape;
use super::work_folder;
use crate::environment::Environment;
use crate::shell;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Enough for any sensible number of rounds; a longer run starts over.
const STEPS_OF_BATCHES: &str = "256";

/// The engines and what they start from.
#[derive(Debug)]
pub struct Inputs {
    environment: Environment,
    binary: PathBuf,
    shape: Shape,
    init: PathBuf,
    batches: PathBuf,
}

impl Inputs {
    /// Builds ours unless a `binary` is given, installs the peer, writes weights and batches.
    ///
    /// # Errors
    /// When one of these fails.
    pub fn prepare(shape: Shape, binary: Option<&Path>, data: Option<&Path>) -> Result<Self> {
        let binary = binary.map_or_else(shell::release_binary, |given| Ok(std::path::absolute(given)?))?;
        let environment = Environment::ensure("golden")?;
        let folder = work_folder("train")?;
        let (init, batches) = (
            folder.join(format!("init-{}", shape.name())),
            folder.join(format!("batches-{}.bin", shape.name())),
        );
        let mut write_init = environment.script("bench_train.py");
        write_init.args(["init", "--shape", shape.name(), "--out"]).arg(&init);
        shell::run(write_init)?;
        let mut write_batches = environment.script("bench_train.py");
        write_batches
            .args(["batches", "--shape", shape.name(), "--steps", STEPS_OF_BATCHES, "--out"])
            .arg(&batches)
            .arg("--data");
        write_batches.args(texts(data)?);
        shell::run(write_batches)?;
        Ok(Self { environment, binary, shape, init, batches })
    }

    /// Starts one process of `plan`.
    pub fn command(&self, plan: &Plan) -> Command {
        let (threads, ranks) = match plan.layout {
            Layout::Threads(threads) => (threads, 1),
            Layout::Ranks(ranks) => (1, ranks),
            Layout::Copies(_) => (1, 1),
        };
        let mut command = match plan.engine {
            Engine::Torch => self.torch(plan.mode, ranks),
            Engine::Gradus => self.gradus(plan.mode, ranks),
        };
        command.args(["--shape", self.shape.name(), "--threads"]).arg(threads.to_string());
        command.arg("--init").arg(&self.init).arg("--batches").arg(&self.batches);
        command
    }

    fn torch(&self, mode: &str, ranks: usize) -> Command {
        let mut command = self.environment.script("bench_train.py");
        command.args(["serve", "--mode", mode, "--ddp"]).arg(ranks.to_string());
        command
    }

    fn gradus(&self, precision: &str, ranks: usize) -> Command {
        let mut command =
            shell::command(&self.binary, &["bench", "train", "--precision", precision, "--ranks"]);
        command.arg(ranks.to_string());
        command
    }
}

/// The text given, or else the sources of this repository: a text that is always at hand.
pub(super) fn texts(data: Option<&Path>) -> Result<Vec<PathBuf>> {
    if let Some(data) = data {
        return Ok(vec![std::path::absolute(data)?]);
    }
    let mut found = Vec::new();
    let mut folders = vec![shell::root().join("crates")];
    while let Some(folder) = folders.pop() {
        let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
