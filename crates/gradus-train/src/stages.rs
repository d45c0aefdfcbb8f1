//! Which blocks each stage of a pipeline has.

use gradus_model::{ModelConfig, Part};

/// Cuts a model into stages, as evenly as blocks allow.
pub fn cut_layers(
    config: &ModelConfig,
    stages: usize,
    (tensor_rank, tensor_ranks): (usize, usize),
) -> Vec<Part> {
    let layers = |stage: usize| config.layers * stage / stages;
    let part = |stage| Part {
        layers: layers(stage)..layers(stage + 1),
        embedding: stage == 0,
        head: stage + 1 == stages,
        tensor_rank,
        tensor_ranks,
    };
    (0..stages).map(part).collect()
}
