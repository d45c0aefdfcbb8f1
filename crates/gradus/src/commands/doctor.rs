//! `gradus doctor`: what this machine offers, what Gradus will use of it, and what stands in the way.

use super::open_device;
use crate::logging;
use anyhow::Result;
use gradus_compute::cpu::ceilings::{Ceilings, Stream, Unit};
use gradus_compute::{Device, Precision};
use gradus_fabric::Launch;
use gradus_host::processors;

/// Bytes as GiB, for a person.
fn gib(bytes: Option<u64>) -> String {
    bytes.map_or("unknown".into(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)))
}

/// Prints the findings.
///
/// # Errors
/// Only for what makes training impossible, such as kernels forced by `GRADUS_CPU` that the processor lacks.
pub fn run() -> Result<()> {
    let line = |name: &str, value: String| logging::print(format_args!("{name:<22} {value}"));
    line("gradus", env!("CARGO_PKG_VERSION").into())?;
    line("processor", processors::model_name().unwrap_or("unknown".into()))?;
    line("processors to use", processors::available().to_string())?;
    line(
        "memory",
        format!(
            "{} available of {}",
            gib(processors::available_memory_bytes()),
            gib(processors::total_memory_bytes())
        ),
    )?;
    for precision in [Precision::F32, Precision::Bf16] {
        let device = open_device(0, 1, precision)?;
        line(
            &format!("matrix products {precision:?}").to_lowercase(),
            format!("{}: {:.0} GFLOP/s measured", device.describe(), device.peak_flops() * 1e-9),
        )?;
    }
    ceilings(&line)?;
    line("shared memory", shared_memory())?;
    line("launched by", launched_by()?)?;
    line("cargo's sources", cargo_sources())?;
    Ok(())
}

/// Streams over this many bytes lie beyond all but the largest caches.
const STREAM_BYTES: usize = 512 << 20;

/// What all processors together do on registers, and what memory gives them.
fn ceilings(line: &dyn Fn(&str, String) -> gradus_error::Result<()>) -> Result<()> {
    let threads = processors::available();
    let spare = processors::available_memory_bytes().map_or(STREAM_BYTES, |bytes| bytes as usize / 4);
    let bytes = STREAM_BYTES.min(spare);
    let mut ceilings = Ceilings::new(threads, bytes)?;
    let units = Unit::ALL.into_iter().filter_map(|unit| {
        ceilings.registers(unit).map(|rate| format!("{} {:.0} GFLOP/s", unit.name(), rate * 1e-9))
    });
    let units: Vec<_> = units.collect();
    line("on registers", if units.is_empty() { "not known here".into() } else { units.join(", ") })?;
    let streams =
        Stream::ALL.map(|stream| format!("{} {:.1}", stream.name(), ceilings.stream(stream, bytes) * 1e-9));
    line("memory streams", format!("{} GB/s", streams.join(", ")))?;
    Ok(())
}

/// Whether ranks on this host can share a segment of memory.
fn shared_memory() -> String {
    match gradus_memory::Segment::create("gradus-doctor", 1 << 20) {
        Ok(_) => "memfd segments work: local ranks will use them".into(),
        Err(error) => format!("not available, local ranks will use TCP ({error})"),
    }
}

fn launched_by() -> Result<String> {
    Ok(match Launch::from_environment(&|name| std::env::var(name).ok())? {
        Some(launch) => format!("{}: rank {} of {}", launch.origin, launch.rank, launch.world_size),
        None => "nobody: gradus train starts its own ranks (--nproc-per-node)".into(),
    })
}

/// Whether the quickstart will find its text.
fn cargo_sources() -> String {
    let home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    match home.map(|home| home.join("registry/src")) {
        Some(sources) if sources.is_dir() => {
            format!("in {}: the quickstart learns from them", sources.display())
        }
        _ => "not found: give the quickstart other text with --data.input PATH".into(),
    }
}
