//! What a measurement must say of where and of what it was made.

use crate::shell;
use anyhow::Result;
use serde_json::{Value, json};
use std::fs;

/// Instruction sets that decide how fast a matrix product can be.
const TELLING_FLAGS: [&str; 6] = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "avx_vnni"];

/// Processor, cores, memory, kernel and load of this machine.
pub fn facts() -> Value {
    let load = read("/proc/loadavg");
    json!({
        "processor": processor(&read("/proc/cpuinfo")),
        "cores": cores(),
        "instructions": instructions(&read("/proc/cpuinfo")),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_before": load.split(' ').take(3).collect::<Vec<_>>().join(" "),
    })
}

/// Level and bytes of the first processor's caches of data, smallest first; empty where the kernel does not say.
pub fn caches() -> Vec<(u32, u64)> {
    let folder = "/sys/devices/system/cpu/cpu0/cache";
    let cache = |index: usize| {
        let about = |what: &str| read(&format!("{folder}/index{index}/{what}")).trim().to_owned();
        let is_data = about("type") != "Instruction";
        Some((is_data, about("level").parse().ok()?, kibibytes(&about("size"))?))
    };
    let found = (0..8).map_while(cache).filter(|(is_data, ..)| *is_data);
    found.map(|(_, level, bytes)| (level, bytes)).collect()
}

/// Bytes of a size such as `1024K`.
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix('K')?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// A short name for files: processor and cores.
pub fn name() -> String {
    let processor = processor(&read("/proc/cpuinfo"));
    format!("{}-{}-cores", slug(&processor), cores())
}

/// What git leaves aside where changes are looked for.
const RESULTS_ASIDE: &str = ":(exclude)benches/results";

/// The commit measured, and whether the tree held changes beside it: others than results, which come as things are measured.
///
/// # Errors
/// When git fails.
pub fn commit() -> Result<String> {
    let commit = shell::output(shell::command("git", &["rev-parse", "HEAD"]))?;
    let changes = shell::output(shell::command("git", &["status", "--porcelain", "--", ".", RESULTS_ASIDE]))?;
    Ok(if changes.is_empty() { commit } else { format!("{commit} with changes") })
}

/// The time in UTC, such as 2026-01-31-1405.
///
/// # Errors
/// When `date` fails.
pub fn date() -> Result<String> {
    shell::output(shell::command("date", &["-u", "+%Y-%m-%d-%H%M"]))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The value behind the first `name :` of a file such as /proc/cpuinfo; empty when there is none.
fn field(text: &str, name: &str) -> String {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .into_iter()
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

fn processor(cpuinfo: &str) -> String {
    let name = field(cpuinfo, "model name");
    if name.is_empty() { std::env::consts::ARCH.to_owned() } else { name }
}

fn instructions(cpuinfo: &str) -> Vec<&'static str> {
    let flags = field(cpuinfo, "flags");
    let has = |flag: &&str| flags.split(' ').any(|found| found == *flag);
    TELLING_FLAGS.into_iter().filter(has).collect()
}

fn slug(text: &str) -> String {
    let plain = text.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), " ");
    plain.split_whitespace().take(4).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_for_files() {
        assert_eq!(slug("Intel(R) Xeon(R) Platinum 8481C @ 2.70GHz"), "intel-r-xeon-r");
        assert_eq!(slug("AMD EPYC"), "amd-epyc");
    }

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(kibibytes("1024K"), Some(1 << 20));
        assert_eq!(kibibytes("1M"), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 amx_bf16_x avx512f\n";
        assert_eq!(processor(text), "AMD EPYC");
        assert_eq!(instructions(text), ["avx2", "avx512f"]);
        assert_eq!(field(text, "vendor"), "");
    }
}
