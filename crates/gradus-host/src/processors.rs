//! Processors and memory of this host, as this process may use them.

/// Processors that this process may run on: its affinity mask, else all of the host.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Threads for each of `sharers` processes that share the same processors: an even share, at least one.
pub fn share(sharers: usize) -> usize {
    (available() / sharers.max(1)).max(1)
}

/// A field of `/proc/meminfo` or `/proc/self/status`, in bytes, if the kernel offers it.
fn proc_bytes(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Memory that could be taken without swapping, bytes.
pub fn available_memory_bytes() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemAvailable:")
}

/// Physical memory of this host, bytes.
pub fn total_memory_bytes() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemTotal:")
}

/// Memory that this process holds now, bytes.
pub fn resident_bytes() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmRSS:")
}

/// The most memory that this process has held so far, bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmHWM:")
}

/// The processor's name as the kernel gives it.
pub fn model_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
