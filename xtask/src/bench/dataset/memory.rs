//! What a process and all that it started hold, by the kernel's word.
//!
//! Each page is counted once, shared out among the processes that map it (`Pss` of `/proc/PID/smaps_rollup`), so workers that
//! share their parent's pages, and batches in shared memory, are not counted twice. *Own* are pages of the processes
//! and of shared memory; *whole* has mapped files beside them, libraries and mapped data alike. Walking the pages costs the
//! process milliseconds, so speeds are taken in turns in which nobody looks.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The most that was seen, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Anonymous and shared memory.
    pub own: u64,
    /// With mapped files.
    pub whole: u64,
}

impl Memory {
    /// Looks at `process` and its descendants.
    pub fn look(&mut self, process: u32) {
        let processes = std::iter::once(process).chain(descendants(process));
        let (mut own, mut whole) = (0, 0);
        for process in processes {
            let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
            own += field(&text, "Pss_Anon") + field(&text, "Pss_Shmem");
            whole += field(&text, "Pss");
        }
        self.own = self.own.max(own);
        self.whole = self.whole.max(whole);
    }
}

/// Has so many bytes of memory, or half of what is free, used once and given back: a virtual machine's host takes back what
/// has been free for long, and who asks for it first then waits milliseconds for each piece of 2 MiB. `program` is
/// `benches/peers/make_present.c`.
///
/// # Errors
/// When there is not so much.
pub fn make_present(program: &Path, bytes: u64) -> Result<()> {
    let there = fs::read_to_string("/proc/meminfo").map_or(0, |text| field(&text, "MemAvailable"));
    let mut command = Command::new(program);
    command.arg(bytes.min(there / 2).to_string());
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "{} ended with {status}", program.display());
    Ok(())
}

/// Bytes of a line such as `Pss_Anon:  123 kB`; none where it is not there.
fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

/// Every process that `process` has started, and theirs.
pub fn descendants(process: u32) -> Vec<u32> {
    let parents = parents();
    let mut found = vec![process];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, its)| **its == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

/// Whether there is such a process, and it has not only to be waited for.
pub fn is_running(process: u32) -> bool {
    stat(process).is_some_and(|(state, _)| state != "Z")
}

/// Every process' parent.
fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter_map(|process| Some((process, stat(process)?.1))).collect()
}

/// State and parent of `process`.
fn stat(process: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name stands in brackets and may hold anything, brackets too.
    let mut words = text.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Pss:  30 kB\nPss_Dirty: 7 kB\nPss_Anon:   20 kB\n";
        assert_eq!((field(text, "Pss"), field(text, "Pss_Anon")), (30 << 10, 20 << 10));
        assert_eq!(field(text, "Pss_Shmem"), 0);
    }

    #[test]
    fn a_child_counts_until_it_has_ended() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(descendants(std::process::id()).contains(&child.id()));
        assert!(is_running(child.id()));
        let mut memory = Memory::default();
        memory.look(std::process::id());
        assert!(memory.own > 0 && memory.whole > memory.own);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_running(child.id()));
    }
}
