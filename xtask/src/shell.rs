//! Running commands: each is shown before it runs, and a failure names it.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The repository's root.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the repository's root").to_owned()
}

/// Where cargo builds: CARGO_TARGET_DIR, or `target`.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// `program` in the repository's root, with words after it.
pub fn command<W: AsRef<std::ffi::OsStr>>(program: impl AsRef<std::ffi::OsStr>, words: &[W]) -> Command {
    let mut command = Command::new(program);
    command.args(words).current_dir(root());
    command
}

/// `cargo` in the repository's root. What cargo told this process of the package `xtask` is not for the next cargo.
pub fn cargo(words: &[&str]) -> Command {
    let mut command = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), words);
    for (name, _) in std::env::vars_os() {
        let inherited = name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if inherited {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `command` to its end, without stdin.
///
/// # Errors
/// When it cannot be started, or fails; the command is named.
pub fn run(mut command: Command) -> Result<()> {
    let shown = show(&command);
    eprintln!("$ {shown}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed: {status}");
    Ok(())
}

/// What `command` prints on stdout, trimmed.
///
/// # Errors
/// When it cannot be started, or fails.
pub fn output(mut command: Command) -> Result<String> {
    let shown = show(&command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The command as a person would type it; the root's own path is left out.
pub fn show(command: &Command) -> String {
    let root = format!("{}/", root().display());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let word = |word: &std::ffi::OsStr| word.to_string_lossy().replace(&root, "");
    words.map(word).collect::<Vec<_>>().join(" ")
}

/// The path as seen from the repository's root; whole, when it lies elsewhere.
pub fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Builds the release binary and names it.
///
/// # Errors
/// When the build fails.
pub fn release_binary() -> Result<PathBuf> {
    run(cargo(&["build", "--release", "--package", "gradus"]))?;
    let binary = target().join("release/gradus");
    ensure!(binary.is_file(), "cargo built no {}", binary.display());
    Ok(binary)
}
