//! What a world may leave behind: nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The variable by which all processes of a world are known.
pub const MARK: &str = "GRADUS_TEST_MARK";

/// Descriptors that this process has open, by number and what they lead to.
pub fn descriptors() -> BTreeSet<(String, String)> {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let described = open.filter_map(|entry| {
        let path = entry.unwrap().path();
        // The one that reads the folder is gone by now.
        let target = fs::read_link(&path).ok()?;
        Some((path.file_name()?.to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
    });
    described.filter(|(_, target)| !target.starts_with("/proc/")).collect()
}

/// The numbers by which the kernel knows the inboxes that a process has mapped.
pub fn inboxes(process: &Path) -> BTreeSet<u64> {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let inboxes = maps.lines().filter(|line| line.contains("gradus-inbox"));
    // Address, rights, offset, device, number, name.
    inboxes.map(|line| line.split_whitespace().nth(4).unwrap().parse().unwrap()).collect()
}

/// Whether a process was started with [`MARK`] set to `mark`.
fn is_marked(process: &Path, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
}

/// Fails if a process of the world with this mark lives, or anybody has one of its inboxes mapped.
pub fn assert_nothing_left(mark: &str, of_the_world: &BTreeSet<u64>) {
    for entry in fs::read_dir("/proc").unwrap() {
        let process = entry.unwrap().path();
        let is_number = process.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
        if is_number {
            assert!(!is_marked(&process, mark), "{} is left", process.display());
            let held = inboxes(&process);
            assert!(held.is_disjoint(of_the_world), "{} holds inboxes {held:?}", process.display());
        }
    }
}
