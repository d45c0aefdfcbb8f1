//! What Gradus reads out of a bucket: a form of the set with its description beside it, as `gradus dataset index` writes it.
//!
//! Other loaders' forms come with theirs, written with the samples. Files of this host need none: describing them takes no
//! latency.

use super::server::Server;
use super::sets::Set;
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The folder of a set that has its form `form` with a description.
pub fn name(form: &str) -> String {
    format!("{form}-described")
}

/// Makes that folder anew: the same files, and what `gradus` writes of them as a server has them.
///
/// # Errors
/// When a file cannot be linked, or the description not be written.
pub fn make(set: &Set, form: &str, gradus: &Path, server: &Server) -> Result<()> {
    let (from, to) = (set.folder.join(form), set.folder.join(name(form)));
    super::remove(&to)?;
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in from.read_dir().with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let link = to.join(path.file_name().context("an entry has a name")?);
        fs::hard_link(&path, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    // What is shown holds, or it is refused.
    for verb in ["index", "show"] {
        let mut command = Command::new(gradus);
        command.args(["dataset", verb, &format!("s3://{}/{}", set.bucket(), name(form))]);
        server.introduce(&mut command);
        shell::run(command)?;
    }
    Ok(())
}
