//! Python environments: made on first use under `target/venv-NAME`, made anew when their requirements change.
//!
//! Invariant: an environment whose stamp is there is whole. The stamp is written last and holds everything that the
//! environment was made from.

use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python with the packages of `python/requirements-NAME.txt`.
#[derive(Debug)]
pub struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// Finds or makes the environment `name`; the first time takes minutes and 1.7 GB.
    ///
    /// # Errors
    /// When Python or its venv module is missing, or a package cannot be installed.
    pub fn ensure(name: &str) -> Result<Self> {
        let environment = Self { folder: shell::target().join(format!("venv-{name}")) };
        let requirements = shell::root().join(format!("python/requirements-{name}.txt"));
        let stamp = stamp(&requirements)?;
        let stamp_file = environment.folder.join("stamp");
        if fs::read_to_string(&stamp_file).is_ok_and(|made_from| made_from == stamp) {
            return Ok(environment);
        }
        environment.make(&requirements)?;
        fs::write(&stamp_file, stamp).with_context(|| format!("cannot write {}", stamp_file.display()))?;
        Ok(environment)
    }

    fn make(&self, requirements: &Path) -> Result<()> {
        if self.folder.exists() {
            let remove = || format!("cannot remove {}", self.folder.display());
            fs::remove_dir_all(&self.folder).with_context(remove)?;
        }
        let words = ["-m".as_ref(), "venv".as_ref(), self.folder.as_os_str()];
        shell::run(shell::command("python3", &words)).context(
            "Python 3.11 or newer with its venv module is needed (on Debian: apt install python3-venv)",
        )?;
        let mut install = self.script("install.py");
        install.arg(requirements);
        shell::run(install)
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program that its packages brought.
    pub fn program(&self, name: &str) -> Command {
        shell::command(self.folder.join("bin").join(name), &[] as &[&str])
    }

    /// `python/NAME` under this environment's Python.
    pub fn script(&self, name: &str) -> Command {
        let script = shell::root().join("python").join(name);
        let mut command = shell::command(self.folder.join("bin/python"), &[script]);
        // Scripts leave nothing in the tree, and find no other environment's packages.
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1").env_remove("PYTHONPATH");
        command
    }
}

/// Everything that the environment is made from: its requirements, those they name, the installer, the Python.
fn stamp(requirements: &Path) -> Result<String> {
    let mut stamp = shell::output(shell::command("python3", &["--version"])).context("python3 is needed")?;
    let folder = requirements.parent().expect("a file lies in a folder");
    let mut wanted = vec![requirements.to_owned(), folder.join("install.py")];
    while let Some(file) = wanted.pop() {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if file.extension().is_some_and(|extension| extension == "txt") {
            wanted.extend(
                text.lines().filter_map(|line| line.strip_prefix("-r ")).map(|name| folder.join(name.trim())),
            );
        }
        stamp.push_str(&text);
    }
    Ok(stamp)
}
