//! Where a pipeline cuts the model: which layers each stage has.

use gradus_model::{ModelConfig, Part};
use std::ops::Range;

/// Operations of one training token in what a part of a model has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartFlops {
    /// In its blocks.
    pub blocks: f64,
    /// In its head with the loss; none in a part without.
    pub head: f64,
}

impl PartFlops {
    /// Those of a part at sequences of `sequence` tokens, of all tensor ranks together. Looking up takes none.
    pub fn of(config: &ModelConfig, part: &Part, sequence: usize) -> Self {
        let at = |layers: usize| ModelConfig { layers, ..config.clone() }.flops_per_token(sequence);
        let head = if part.head { at(0) } else { 0.0 };
        Self { blocks: part.layers.len() as f64 * (at(1) - at(0)), head }
    }
}

/// What the head with the loss costs, in the cost of a block, by operations.
pub fn head_in_blocks(config: &ModelConfig, sequence: usize) -> f64 {
    let PartFlops { blocks, head } = PartFlops::of(config, &Part::whole(config), sequence);
    head * config.layers as f64 / blocks
}

/// Cuts the layers of a model into `stages` runs whose most expensive one costs as little as can be, by operations at sequences
/// as long as the context: [`cut`] into [`parts`].
///
/// # Panics
/// As [`cut`].
pub fn cut_layers(config: &ModelConfig, stages: usize, tensor: (usize, usize)) -> Vec<Part> {
    parts(&cut(config.layers, stages, head_in_blocks(config, config.context)), tensor)
}

/// The parts of a model that stages with these layers have, on one tensor rank.
pub fn parts(layers: &[Range<usize>], (tensor_rank, tensor_ranks): (usize, usize)) -> Vec<Part> {
    let part = |(stage, own): (usize, &Range<usize>)| Part {
        layers: own.clone(),
        embedding: stage == 0,
        head: stage + 1 == layers.len(),
        tensor_rank,
        tensor_ranks,
    };
    layers.iter().enumerate().map(part).collect()
}

/// Cuts `layers` layers into `stages` runs whose most expensive one costs as little as can be, where the head, which belongs to the
/// last one, costs as much as so many blocks. Of cuts that are equally good it is the one with most layers in the
/// last stage; of the others the later ones have more, for the first has the embedding, and most microbatches in flight.
///
/// # Panics
/// Where there are fewer layers than stages, or no stages.
pub fn cut(layers: usize, stages: usize, head_in_blocks: f64) -> Vec<Range<usize>> {
    assert!((1..=layers).contains(&stages), "each stage has a layer at least");
    let last = layers_of_last(layers, stages, head_in_blocks);
    let before = layers - last;
    evenly(before, stages - 1).chain(std::iter::once(before..layers)).collect()
}

/// Layers of the last stage.
fn layers_of_last(layers: usize, stages: usize, head: f64) -> usize {
    if stages == 1 {
        return layers;
    }
    let most = |last: usize| {
        let largest = (layers - last).div_ceil(stages - 1);
        (largest as f64).max(last as f64 + head)
    };
    // Of equal ones `min_by` takes the first.
    (1..=layers + 1 - stages).rev().min_by(|a, b| most(*a).total_cmp(&most(*b))).unwrap_or(1)
}

/// `count` layers in `runs` runs that differ by one at most, the longer ones last.
fn evenly(count: usize, runs: usize) -> impl Iterator<Item = Range<usize>> {
    let start = move |run: usize| {
        let (each, longer) = (count / runs, count % runs);
        run * each + (run + longer).saturating_sub(runs)
    };
    (0..runs).map(move |run| start(run)..start(run + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_model::PRESETS;

    /// What the most expensive stage costs, in the best of all cuts, found one by one.
    fn best(costs: &[f64], stages: usize) -> f64 {
        if stages == 1 {
            return costs.iter().sum();
        }
        let cuts = 1..=costs.len() + 1 - stages;
        let of = |first: usize| costs[..first].iter().sum::<f64>().max(best(&costs[first..], stages - 1));
        cuts.map(of).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn no_cut_has_a_cheaper_most_expensive_stage() {
        for (_, preset) in PRESETS {
            for (layers, vocabulary) in [(1, 64), (5, 64), (9, 50_000), (11, 400_000), (12, 4_000_000)] {
                let config = ModelConfig { layers, vocabulary, ..preset.clone() };
                let cost = |part: &Part| {
                    let PartFlops { blocks, head } = PartFlops::of(&config, part, config.context);
                    blocks + head
                };
                let mut costs = vec![
                    PartFlops::of(&config, &Part::whole(&config), config.context).blocks
                        / layers as f64;
                    layers
                ];
                costs[layers - 1] += PartFlops::of(&config, &Part::whole(&config), config.context).head;
                for stages in 1..=layers.min(6) {
                    let parts = cut_layers(&config, stages, (0, 1));
                    let found = parts.iter().map(cost).fold(0.0, f64::max);
                    let best = best(&costs, stages);
                    assert!((found - best).abs() <= 1e-9 * best, "{layers} in {stages}: {found}, {best}");
                }
            }
        }
    }

    #[test]
    fn stages_follow_each_other_and_the_ends_have_embedding_and_head() {
        let (_, config) = &PRESETS[0];
        for stages in 1..=config.layers {
            let parts = cut_layers(config, stages, (1, 2));
            let end = parts.iter().fold(0, |end, part| {
                assert!(part.layers.start == end && !part.layers.is_empty());
                assert_eq!((part.tensor_rank, part.tensor_ranks), (1, 2));
                part.layers.end
            });
            assert_eq!((end, parts.len()), (config.layers, stages));
            let ends: Vec<_> = parts.iter().map(|part| (part.embedding, part.head)).collect();
            assert!(ends[0].0 && ends[stages - 1].1);
            assert_eq!(ends.iter().filter(|(embedding, head)| *embedding || *head).count(), stages.min(2));
        }
        assert_eq!(cut_layers(config, 1, (0, 1)), [Part::whole(config)]);
    }
}
