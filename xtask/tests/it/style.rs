//! How files look: none too long, none that names a place of one machine, every crate under the workspace's lints.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A longer file holds two things.
const MOST_LINES: usize = 600;

/// Paths that exist on one machine only. Put together here, so that this file does not hold them.
const BANNED: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/tmp", "/brief")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files that git tracks, or would with the next `git add`.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(listed.status.success(), "git: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("names are UTF-8");
    let files: Vec<PathBuf> = names.split_terminator('\0').map(PathBuf::from).collect();
    assert!(
        files.contains(&PathBuf::from("Cargo.toml")),
        "git lists {} files, Cargo.toml is not one",
        files.len()
    );
    files
}

/// The text of a file; `None` for one that is no text, or was removed and not yet committed.
fn text(file: &Path) -> Option<String> {
    fs::read(root().join(file)).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

fn has_extension(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|found| found == extension)
}

fn too_long(text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > MOST_LINES).then(|| format!("{lines} lines, more than {MOST_LINES}: it holds two things"))
}

fn banned(text: &str) -> Option<String> {
    let holds = |(number, line): (usize, &str)| {
        let found =
            BANNED.iter().find(|word| line.match_indices(**word).any(|(at, _)| begins_path(&line[..at])));
        found.map(|word| format!("line {} names {word}", number + 1))
    };
    text.lines().enumerate().find_map(holds)
}

/// Whether a path that starts after `before` is absolute: no folder's name stands before it.
fn begins_path(before: &str) -> bool {
    !before.ends_with(|last: char| last.is_alphanumeric() || "._-}$>)".contains(last))
}

fn without_lints(manifest: &str) -> Option<String> {
    let mut lines = manifest.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let inherits = lines.any(|line| line == "[lints]")
        && lines.find(|line| !line.is_empty()) == Some("workspace = true");
    (!inherits).then(|| "[lints] workspace = true is missing".to_owned())
}

/// Every file of `extension` (any, when empty) that `fault` finds something wrong with.
fn faults(extension: &str, fault: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let chosen = files().into_iter().filter(|file| extension.is_empty() || has_extension(file, extension));
    chosen.filter_map(|file| Some(format!("{}: {}", file.display(), fault(&text(&file)?)?))).collect()
}

#[test]
fn no_rust_file_is_too_long() {
    let faults = faults("rs", too_long);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let faults = faults("", banned);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_crate_inherits_the_lints() {
    let is_crate = |manifest: &str| manifest.contains("[package]");
    let faults = faults("toml", |manifest| is_crate(manifest).then(|| without_lints(manifest)).flatten());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn planted_faults_are_found() {
    assert!(too_long(&"\n".repeat(MOST_LINES)).is_none());
    assert!(too_long(&"\n".repeat(MOST_LINES + 1)).is_some());
    for word in BANNED {
        assert_eq!(banned(&format!("a\nsee `{word}x`")), Some(format!("line 2 names {word}")));
        assert_eq!(banned(&format!("{word}x")), Some(format!("line 1 names {word}")));
        assert_eq!(banned(&format!("benches{word}x")), None);
    }
    assert!(without_lints("[package]\nname = \"a\"\n[lints]\n\nworkspace = true # all\n").is_none());
    assert!(without_lints("[package]\nname = \"a\"\n").is_some());
    assert!(without_lints("[lints]\nworkspace = false\n[dependencies]\nworkspace = true\n").is_some());
}
