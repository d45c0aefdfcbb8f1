//! A corpus that every Rust checkout has: the sources of the packages in its `Cargo.lock`.
//!
//! `cargo metadata`, without the network and without changing the lock, names the packages for this machine's target
//! and where their sources are. Of those from a registry, the `.rs` files below 100 KB are put in an order that the seed
//! decides, and taken until the limit is reached. The list of what was taken is kept with the prepared data.

use super::inputs::{InputFile, sorted_entries};
use crate::order::SampleOrder;
use gradus_error::{Error, IoContext, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A source file is smaller: larger ones are tables made by programs.
const FILE_BYTES: u64 = 100_000;

/// The sources of a `Cargo.lock`.
pub(crate) struct CargoSources {
    pub(crate) lock: PathBuf,
    /// The program that knows them.
    cargo: OsString,
}

/// A source file that was chosen.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChosenSource {
    /// Name and version, such as `serde-1.0.0`.
    pub(crate) package: String,
    /// Path within the package.
    pub(crate) file: String,
    /// Size.
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Option<Resolve>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

impl CargoSources {
    /// The sources of `lock`, a `Cargo.lock` or the folder that holds one.
    pub(crate) fn new(lock: &Path) -> Result<Self> {
        let lock = if lock.is_dir() { lock.join("Cargo.lock") } else { lock.to_owned() };
        if !lock.is_file() {
            let lock = lock.display();
            return Err(unusable(format!("there is no {lock}")));
        }
        // Cargo sets the variable for what it runs.
        Ok(Self { lock, cargo: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()) })
    }

    /// Chooses files until they have `limit_bytes` (0: all of them).
    pub(crate) fn choose(&self, seed: u64, limit_bytes: u64) -> Result<(Vec<InputFile>, Vec<ChosenSource>)> {
        let mut all = Vec::new();
        for package in self.packages()? {
            collect(&package, &mut all)?;
        }
        if all.is_empty() {
            let lock = self.lock.display();
            return Err(unusable(format!(
                "no package of {lock} comes from a registry with its sources on this machine"
            )));
        }
        Ok(choose(all, seed, limit_bytes))
    }

    /// The packages from registries, by name and version.
    fn packages(&self) -> Result<Vec<Package>> {
        let manifest = self.lock.with_file_name("Cargo.toml");
        let target = self.host_target()?;
        let mut arguments: Vec<OsString> =
            ["metadata", "--format-version", "1", "--offline", "--locked"].map(OsString::from).to_vec();
        arguments.extend([
            "--filter-platform".into(),
            target.into(),
            "--manifest-path".into(),
            manifest.into(),
        ]);
        let output = self.run_cargo(&arguments)?;
        let metadata: Metadata = serde_json::from_slice(&output)
            .map_err(|error| unusable("`cargo metadata` gave no JSON".to_owned()).with_source(error))?;
        let mut packages = metadata.packages;
        if let Some(resolve) = metadata.resolve {
            let used: std::collections::HashSet<String> =
                resolve.nodes.into_iter().map(|node| node.id).collect();
            packages.retain(|package| used.contains(&package.id));
        }
        packages.retain(|package| package.source.as_ref().is_some_and(|source| is_registry(source)));
        packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        Ok(packages)
    }

    /// The target for which cargo builds when it is not told.
    fn host_target(&self) -> Result<String> {
        let output = self.run_cargo(&["-vV".into()])?;
        let text = String::from_utf8_lossy(&output);
        let host = text.lines().find_map(|line| line.strip_prefix("host: "));
        host.map(str::to_owned).ok_or_else(|| unusable("`cargo -vV` names no host".to_owned()))
    }

    fn run_cargo(&self, arguments: &[OsString]) -> Result<Vec<u8>> {
        let output = Command::new(&self.cargo).args(arguments).output();
        let output = output
            .map_err(|error| unusable(format!("cannot run {}", self.cargo.display())).with_source(error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(unusable(format!("`cargo {}` failed: {}", arguments[0].display(), said.trim())));
        }
        Ok(output.stdout)
    }
}

fn is_registry(source: &str) -> bool {
    source.starts_with("registry+") || source.starts_with("sparse+")
}

fn unusable(why: String) -> Error {
    Error::invalid(format!(
        "the Rust sources of a Cargo.lock cannot be used: {why}; name another corpus with --data.input"
    ))
}

/// The sources of one package, by sorted path.
fn collect(package: &Package, all: &mut Vec<(InputFile, ChosenSource)>) -> Result<()> {
    let Some(root) = package.manifest_path.parent() else { return Ok(()) };
    let name = format!("{}-{}", package.name, package.version);
    if !root.is_dir() {
        return Err(unusable(format!("the sources of {name} are missing ({})", root.display())));
    }
    let mut folders = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in sorted_entries(&folder)? {
            match path.symlink_metadata().context(|| format!("cannot read {}", path.display()))? {
                kind if kind.is_dir() => folders.push(path),
                kind if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") => {
                    paths.push(path)
                }
                _ => {}
            }
        }
    }
    paths.sort();
    for path in paths {
        let file = InputFile::new(&path)?;
        if (1..FILE_BYTES).contains(&file.bytes) {
            let within = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let chosen = ChosenSource { package: name.clone(), file: within, bytes: file.bytes };
            all.push((file, chosen));
        }
    }
    Ok(())
}

/// Takes files in the order of the seed, up to the first that would exceed the limit.
fn choose(
    all: Vec<(InputFile, ChosenSource)>,
    seed: u64,
    limit_bytes: u64,
) -> (Vec<InputFile>, Vec<ChosenSource>) {
    let limit = if limit_bytes == 0 { u64::MAX } else { limit_bytes };
    let order = SampleOrder::new(seed, all.len() as u64);
    let mut slots: Vec<_> = all.into_iter().map(Some).collect();
    let mut total = 0;
    let mut chosen = Vec::new();
    for position in 0..order.samples() {
        let slot = slots[order.sample_at(0, position) as usize].take();
        let pair = slot.expect("a bijection names each file once");
        total += pair.0.bytes;
        if total > limit {
            break;
        }
        chosen.push(pair);
    }
    chosen.into_iter().unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    /// A folder with a lock, a package of ten sources, and a program that answers as cargo does.
    fn checkout(folder: &Path, package: &str) -> CargoSources {
        let sources = folder.join("a-1.0.0/src");
        std::fs::create_dir_all(&sources).unwrap();
        for index in 0..10 {
            std::fs::write(sources.join(format!("{index}.rs")), "fn x() {}\n".repeat(10)).unwrap();
        }
        std::fs::write(sources.join("large.rs"), " ".repeat(FILE_BYTES as usize)).unwrap();
        std::fs::write(sources.join("other.txt"), "text").unwrap();
        let entry = |id: &str, folder_name: &str, source: Option<&str>| {
            let manifest = folder.join(folder_name).join("Cargo.toml");
            json!({"id": id, "name": id, "version": "1.0.0", "source": source, "manifest_path": manifest})
        };
        let registry = Some("registry+https://example.org/index");
        let packages =
            [entry("a", package, registry), entry("b", "none", registry), entry("c", "none", None)];
        let metadata = json!({"packages": packages, "resolve": {"nodes": [{"id": "a"}, {"id": "c"}]}});
        std::fs::write(folder.join("metadata.json"), metadata.to_string()).unwrap();
        std::fs::write(folder.join("Cargo.lock"), "").unwrap();
        let cargo = folder.join("cargo");
        let answer = folder.join("metadata.json");
        let script = format!("#!/bin/sh\n[ $1 = -vV ] && echo 'host: x' || cat '{}'\n", answer.display());
        std::fs::write(&cargo, script).unwrap();
        std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
        CargoSources { lock: folder.join("Cargo.lock"), cargo: cargo.into() }
    }

    /// One test, not two: a program that was just written cannot be run while another thread, about to run its own,
    /// still has a copy of the descriptor that wrote it.
    #[test]
    fn sources_are_chosen_and_what_is_missing_is_named() {
        the_seed_chooses_sources_of_used_registry_packages_up_to_the_limit();
        missing_sources_and_a_missing_cargo_are_named();
    }

    fn the_seed_chooses_sources_of_used_registry_packages_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let sources = checkout(folder.path(), "a-1.0.0");
        let names = |seed, limit| {
            let (files, chosen) = sources.choose(seed, limit).unwrap();
            assert_eq!(files.len(), chosen.len());
            chosen.into_iter().map(|chosen| format!("{}/{}", chosen.package, chosen.file)).collect::<Vec<_>>()
        };
        let mut all = names(0, 0);
        assert_ne!(all, names(1, 0));
        assert_eq!(all, names(0, 0));
        assert_eq!(names(0, 450), all[..4]);
        all.sort();
        assert_eq!(all, (0..10).map(|index| format!("a-1.0.0/src/{index}.rs")).collect::<Vec<_>>());
    }

    fn missing_sources_and_a_missing_cargo_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let without_sources = checkout(folder.path(), "gone-1.0.0");
        let without_cargo = CargoSources { cargo: folder.path().join("no-cargo").into(), ..without_sources };
        let refusing = CargoSources { cargo: "false".into(), lock: without_cargo.lock.clone() };
        let without_sources = checkout(folder.path(), "gone-1.0.0");
        for sources in [without_sources, without_cargo, refusing] {
            let error = sources.choose(0, 0).unwrap_err();
            assert_eq!(*error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("--data.input"), "{error}");
        }
        assert_eq!(*CargoSources::new(Path::new("/nowhere/Cargo.lock")).err().unwrap().kind(), Kind::Invalid);
    }
}
