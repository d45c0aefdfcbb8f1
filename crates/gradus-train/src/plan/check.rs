//! Whether a split fits into the memory there is, and if not, what is missing and what would fit.

use super::machine::Machine;
use super::memory::{Holding, Sizes};
use super::search::{Choice, Search, search};
use super::split::{Split, Work};
use crate::settings::{ParallelSettings, TrainSettings};
use gradus_compute::{Linear, Use};
use gradus_error::{Error, Result};

/// What the ranks at each place of the pipeline hold, if each has room for it in `memory` bytes. `prepared` is what the device
/// takes for a prepared weight ([`gradus_compute::Device::prepared_len`]).
///
/// # Errors
/// `Invalid`, with what is missing, what is needed by kind, and a split that would fit.
pub fn check_memory(
    split: &Split<'_>,
    memory: u64,
    prepared: &dyn Fn(Linear, Use) -> usize,
) -> Result<Vec<Holding>> {
    let holdings = Sizes::new(split.work, prepared).holdings(split);
    let fullest = holdings.iter().rev().max_by_key(|holding| holding.memory.total());
    match fullest {
        Some(fullest) if fullest.memory.total() > memory => {
            Err(Error::invalid(format!("{}; {}", lack(fullest, memory), mend(split, memory, prepared))))
        }
        _ => Ok(holdings),
    }
}

/// How much more a rank needs than there is, and for what.
fn lack(holding: &Holding, memory: u64) -> String {
    let (kinds, total) = (holding.memory.kinds(), holding.memory.total());
    let mut kinds: Vec<_> = kinds.into_iter().filter(|(_, bytes)| *bytes > 0).collect();
    kinds.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let needs: Vec<String> =
        kinds.iter().map(|(name, bytes)| format!("{name} {}", gigabytes(*bytes))).collect();
    format!(
        "rank {} (place {} of the pipeline) needs {}, and there are {}: {} bytes are missing. It needs {}",
        holding.rank,
        holding.pp,
        gigabytes(total),
        gigabytes(memory),
        total - memory,
        needs.join(", ")
    )
}

/// What would fit.
fn mend(split: &Split<'_>, memory: u64, prepared: &dyn Fn(Linear, Use) -> usize) -> String {
    let frugal =
        Work { train: TrainSettings { recompute: true, ..split.work.train.clone() }, ..split.work.clone() };
    for (work, more) in [(split.work, ""), (&frugal, ", and train.recompute true,")] {
        let (parallel, world_size, machine) = (&split.parallel, split.mesh.world_size(), &Machine::default());
        let space = Search { work, parallel, world_size, machine, memory, prepared, most: 1 };
        if let Some(choice) = search(&space).first() {
            return format!("{}{more} would fit, with {}", named(choice), gigabytes(choice.memory));
        }
    }
    let world_size = split.mesh.world_size();
    format!(
        "no way to split it among {world_size} ranks would fit, also not with train.recompute: give more ranks, more memory, or \
         a smaller train.microbatch"
    )
}

/// A split, as settings have it.
fn named(choice: &Choice<'_>) -> String {
    let ParallelSettings { dp, fsdp, pp, tp, zero, schedule, stages_per_rank, .. } = &choice.split.parallel;
    let mut text = format!("parallel.pp {pp}, parallel.dp {dp}, parallel.fsdp {fsdp}, parallel.tp {tp}");
    let mut also = |key: &str, value: &str| text.push_str(&format!(", {key} {value}"));
    if *fsdp > 1 {
        also("parallel.zero", &zero.to_string());
    }
    if *pp > 1 {
        also("parallel.schedule", schedule.name());
        also("parallel.stages_per_rank", &stages_per_rank.to_string());
    }
    also("train.microbatch", &choice.split.sequences.to_string());
    text
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
