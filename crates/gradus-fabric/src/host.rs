//! What a host is called, what tells whether two ranks share one, and whether the ranks of a host have a processor each.

use gradus_host::random;
use gradus_memory::Segment;
use rustix::thread::CpuSet;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Words of 64 processors in a mask: as many as the system's own mask holds.
pub(crate) const WORDS: usize = 16;

/// The same for two processes exactly if they can hand each other memory: one kernel, one network namespace (in which
/// the sockets live over which memory is handed), one namespace of process numbers (by which they are fenced), one user. Empty if
/// this process cannot share memory at all.
pub(crate) fn identity() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let processes = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if boot.is_empty() || network.as_os_str().is_empty() || Segment::create("gradus-probe", 4096).is_err() {
        return String::new();
    }
    let user = rustix::process::geteuid().as_raw();
    format!("{} {} {} {user}", boot.trim(), network.display(), processes.display())
}

/// Characters of a host's name that are shown.
const LONGEST_NAME: usize = 64;

/// What a person calls this host, made of letters, digits, `.`, `-` and `_`.
pub(crate) fn name() -> String {
    shown(&rustix::system::uname().nodename().to_string_lossy())
}

/// A host's name that another process gave, made fit to be shown.
pub(crate) fn shown(name: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || ".-_".contains(*c);
    let name: String = name.chars().filter(fits).take(LONGEST_NAME).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// A number that processes share exactly if they share a kernel and a network namespace, and lie on nodes of one name:
/// between them lies no network, and is none made believe. Where the system does not tell, it is nobody else's.
pub fn node_mark(node_id: &str) -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    if boot.is_empty() || network.as_os_str().is_empty() {
        return random::seed_from_system();
    }
    let digest = Sha256::digest(format!("{} {} {node_id}", boot.trim(), network.display()));
    u64::from_le_bytes(*digest.first_chunk().expect("a digest has 32 bytes"))
}

/// The processors that this process may use, as a mask, the first 64 first; none if unknown.
pub(crate) fn mask() -> [u64; WORDS] {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return [0; WORDS] };
    std::array::from_fn(|word| {
        (0..64).filter(|bit| set.is_set(word * 64 + bit)).fold(0, |mask, bit| mask | 1 << bit)
    })
}

/// The same in hexadecimal; empty if unknown.
pub(crate) fn processors() -> String {
    let words = mask();
    let used = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
    words[..used].iter().fold(String::new(), |mut text, word| {
        let _ = write!(text, "{word:016x}");
        text
    })
}

/// Whether ranks with these masks can each have a processor of their own. Masks that cannot be read count as none.
pub(crate) fn enough_processors(masks: &[&str]) -> bool {
    let mut union = [0u64; WORDS];
    for mask in masks {
        for (word, digits) in union.iter_mut().zip(mask.as_bytes().chunks(16)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *word |= u64::from_str_radix(digits, 16).unwrap_or(0);
        }
    }
    union.iter().map(|word| word.count_ones() as usize).sum::<usize>() >= masks.len()
}

/// Moves the calling thread to the `place`th of its processors, counted around, which it is free to leave again. Ranks that
/// spin side by side on one processor while another one idles look busy to the system, and may stay so for seconds.
pub(crate) fn step_to(place: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let count = allowed.count() as usize;
    let mut processors = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
    let Some(processor) = processors.nth(place % count.max(1)) else { return };
    let mut only = CpuSet::new();
    only.set(processor);
    if rustix::thread::sched_setaffinity(None, &only).is_ok() {
        // What was allowed before the call before is allowed now: there is nothing to refuse.
        let _ = rustix::thread::sched_setaffinity(None, &allowed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_host_and_processors() {
        assert_eq!((identity(), node_mark("a")), (identity(), node_mark("a")));
        assert_ne!(node_mark(""), node_mark("a"));
        assert!(!identity().is_empty() && enough_processors(&[&processors()]));
    }

    #[test]
    fn stepping_aside_takes_no_processor_away() {
        let before = mask();
        (0..5).for_each(step_to);
        assert_eq!(mask(), before);
    }

    #[test]
    fn names_of_hosts_are_fit_to_be_shown() {
        assert_eq!(shown("node-7.example_\u{1b}[31m \n"), "node-7.example_31m");
        assert_eq!(shown(&"x".repeat(1000)).len(), LONGEST_NAME);
        assert!(shown("\u{e9} ") == "unnamed" && !name().is_empty());
    }

    #[test]
    fn processors_are_counted_once() {
        let (zero, one, both) = ("0000000000000001", "0000000000000002", "0000000000000003");
        assert!(enough_processors(&[zero, one]) && enough_processors(&[both, both]));
        assert!(!enough_processors(&[zero, zero]) && !enough_processors(&[both, zero, one]));
        assert!(
            !enough_processors(&["nonsense", ""]) && !enough_processors(&["é\u{ffff}".repeat(40).as_str()])
        );
        assert!(enough_processors(&[zero, "00000000000000000000000000000001"]));
    }
}
