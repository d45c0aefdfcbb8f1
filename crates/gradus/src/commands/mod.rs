//! One file per subcommand.

pub mod bench_handover;
pub mod bench_train;
pub mod doctor;
pub mod generate;
pub mod logits;
pub mod prepare;
pub mod rank;
pub mod train;

use gradus_compute::{CpuDevice, Precision};
use gradus_error::Result;
use gradus_host::processors;

/// Elements of address space that a device reserves: all of the host's memory, for memory is taken only when touched.
fn device_capacity() -> usize {
    let bytes = processors::total_memory_bytes().unwrap_or(64 << 30);
    usize::try_from(bytes / 4).unwrap_or(usize::MAX / 8)
}

/// The host's device with `threads` threads, or its fair share where that is 0.
fn open_device(threads: usize, local_world_size: usize, precision: Precision) -> Result<CpuDevice> {
    let threads = if threads > 0 { threads } else { processors::share(local_world_size) };
    CpuDevice::new(threads, precision, device_capacity())
}

/// Reads a precision off the command line.
fn parse_precision(text: &str) -> Result<Precision, String> {
    match text {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        other => Err(format!("{other:?} is no precision: choose f32 or bf16")),
    }
}
