//! Plans against hand-computed cases, against what is really allocated, and against trying everything.

mod memory;
mod search;
mod sizes;
mod time;

use super::*;
use crate::pipeline::Kind;
use crate::settings::{GradientFormat, OptimizerKind, OptimizerSettings, ParallelSettings, TrainSettings};
use gradus_compute::Precision;
use gradus_model::{Family, ModelConfig, ModelSettings};

/// A model of a few thousand parameters.
fn tiny(family: Family, tied: bool, layers: usize) -> ModelConfig {
    let name = if family == Family::Gpt2 { "gpt2" } else { "llama" };
    let settings = ModelSettings {
        family: name.to_owned(),
        width: 32,
        heads: 4,
        layers,
        feed_forward: 96,
        context: 16,
        tied: tied.to_string(),
        ..ModelSettings::default()
    };
    settings.complete(200).unwrap()
}

fn work(model: ModelConfig, global_batch: usize) -> Work {
    let train = TrainSettings {
        sequence_length: model.context,
        global_batch,
        precision: Precision::F32,
        ..TrainSettings::default()
    };
    Work { model, train, optimizer: OptimizerSettings::default() }
}

/// Sizes of Llama 2's models (Touvron et al. 2023).
fn llama([layers, width, heads, kv_heads, feed_forward]: [usize; 5], global_batch: usize) -> Work {
    let settings = ModelSettings {
        width,
        layers,
        heads,
        kv_heads,
        feed_forward,
        context: 4096,
        tied: "false".to_owned(),
        ..ModelSettings::default()
    };
    let mut work = work(settings.complete(32_000).unwrap(), global_batch);
    work.train.precision = Precision::Bf16;
    work
}

/// H100s in nodes of eight, by their makers' figures.
fn h100() -> Machine {
    Machine {
        peak_flops: 989e12,
        efficiency: 0.5,
        ranks_per_node: 8,
        inside: LinkRate { latency_us: 5.0, bytes_per_s: 450e9 },
        across: LinkRate { latency_us: 10.0, bytes_per_s: 50e9 },
    }
}

/// A pipeline of 2 with tensor ranks, shards and replicas, by settings that tests change.
fn parallel(sizes: [usize; 4], zero: u8, schedule: Kind) -> ParallelSettings {
    let [pp, dp, fsdp, tp] = sizes;
    let stages_per_rank = if schedule == Kind::Interleaved { 2 } else { 1 };
    ParallelSettings { pp, dp, fsdp, tp, zero, schedule, stages_per_rank, ..ParallelSettings::default() }
}
