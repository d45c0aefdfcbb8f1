//! All splits of a work among some ranks, and the best of them that fit.
//!
//! Laying out a pipeline and cutting shards take long, so splits are tried by what they take at least; as soon as nothing that
//! is left can be better than what was found, the search ends. What it finds is what trying all would find.

use super::machine::Machine;
use super::memory::Sizes;
use super::split::{Split, Work};
use super::time::{StepTime, bound, predict};
use crate::learner::checks;
use crate::mesh::Mesh;
use crate::pipeline::Kind;
use crate::settings::{Accumulate, ParallelSettings};
use gradus_compute::{Linear, Use};
use std::iter;

/// Chunks of layers per rank that are tried.
const CHUNKS: [usize; 3] = [2, 4, 8];

/// What is searched.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    /// What is to be split.
    pub work: &'a Work,
    /// What the search leaves as it is: `accumulate` and `gradients`.
    pub parallel: &'a ParallelSettings,
    /// Among how many ranks.
    pub world_size: usize,
    /// On what.
    pub machine: &'a Machine,
    /// Bytes of each rank.
    pub memory: u64,
    /// What a device takes for a prepared weight.
    pub prepared: &'a dyn Fn(Linear, Use) -> usize,
    /// Meshes to be found.
    pub most: usize,
}

/// A split that fits.
#[derive(Debug, Clone)]
pub struct Choice<'a> {
    /// The split.
    pub split: Split<'a>,
    /// What the rank that needs most memory needs.
    pub memory: u64,
    /// How long a step takes.
    pub step: StepTime,
}

impl Choice<'_> {
    /// Shorter steps are better; of equal ones those that need less memory, then plainer ones.
    fn rank(&self) -> (f64, u64) {
        (self.step.total, self.memory)
    }

    fn beats(&self, other: &Self) -> bool {
        let ((a, b), (c, d)) = (self.rank(), other.rank());
        a.total_cmp(&c).then(b.cmp(&d)).is_lt()
    }
}

/// The best splits that fit, one for each mesh, the best first.
pub fn search<'a>(search: &Search<'a>) -> Vec<Choice<'a>> {
    let mut sizes = Sizes::new(search.work, search.prepared);
    let mut bounds: Vec<(f64, Split<'a>)> = Vec::new();
    for split in splits(search) {
        if sizes.least(&split) <= search.memory {
            bounds.push((bound(&split, search.machine, &mut sizes), split));
        }
    }
    // The sort is stable, and plainer splits come first.
    bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut found: Vec<Choice<'a>> = Vec::new();
    for (least, split) in bounds {
        if found.len() == search.most && found.last().is_some_and(|worst| worst.step.total < least) {
            break;
        }
        let memory = sizes.most(&split);
        if memory <= search.memory {
            let step = predict(&split, search.machine, &mut sizes);
            keep(&mut found, Choice { split, memory, step }, search.most);
        }
    }
    found
}

/// Adds a choice where it belongs, unless its mesh has a better one or there are enough better ones.
fn keep<'a>(found: &mut Vec<Choice<'a>>, choice: Choice<'a>, most: usize) {
    if let Some(same) = found.iter().position(|other| other.split.mesh == choice.split.mesh) {
        if !choice.beats(&found[same]) {
            return;
        }
        found.remove(same);
    }
    let place = found.iter().position(|other| choice.beats(other)).unwrap_or(found.len());
    found.insert(place, choice);
    found.truncate(most);
}

/// All splits that are possible; of those that differ in nothing that matters, the plainest.
pub(super) fn splits<'a>(search: &Search<'a>) -> impl Iterator<Item = Split<'a>> {
    let search = *search;
    meshes(search.world_size).flat_map(move |mesh| ways(&search, mesh).collect::<Vec<_>>())
}

/// All meshes of so many ranks, those with fewer axes first.
fn meshes(world_size: usize) -> impl Iterator<Item = Mesh> {
    let divisors = |number: usize| (1..=number).filter(move |divisor| number.is_multiple_of(*divisor));
    divisors(world_size).flat_map(move |pp| {
        divisors(world_size / pp).flat_map(move |tp| {
            let data = world_size / pp / tp;
            divisors(data).map(move |fsdp| Mesh { pp, dp: data / fsdp, fsdp, tp })
        })
    })
}

/// All ways to use a mesh.
fn ways<'a>(search: &Search<'a>, mesh: Mesh) -> impl Iterator<Item = Split<'a>> {
    let (work, base) = (search.work, search.parallel.clone());
    let schedules = schedules(mesh.pp).filter(move |(_, chunks)| {
        mesh.check_model(&work.model, *chunks).is_ok() && mesh.check_optimizer(&work.optimizer).is_ok()
    });
    schedules.flat_map(move |(schedule, stages_per_rank)| {
        let base = base.clone();
        let parallel = zeros(&base, mesh.fsdp).into_iter().map(move |zero| ParallelSettings {
            dp: mesh.dp,
            fsdp: mesh.fsdp,
            pp: mesh.pp,
            tp: mesh.tp,
            zero,
            schedule,
            stages_per_rank,
            ..base.clone()
        });
        let goes = move |parallel: &ParallelSettings| {
            parallel.check().is_ok() && checks::check(&work.model, &mesh, &work.optimizer, parallel).is_ok()
        };
        let possible = parallel.filter(goes);
        possible.flat_map(move |parallel| {
            let sizes = microbatches(work, &mesh).into_iter();
            sizes.map(move |sequences| Split::of(work, parallel.clone(), mesh, sequences))
        })
    })
}

fn schedules(pp: usize) -> impl Iterator<Item = (Kind, usize)> {
    use Kind::{GPipe, Interleaved, OneForwardOneBackward, ZeroBubble};
    let others = [(ZeroBubble, 1), (GPipe, 1)].into_iter().chain(CHUNKS.map(|chunks| (Interleaved, chunks)));
    iter::once((OneForwardOneBackward, 1)).chain(others.filter(move |_| pp > 1))
}

/// Degrees of sharding that differ.
fn zeros(parallel: &ParallelSettings, fsdp: usize) -> Vec<u8> {
    match (fsdp, parallel.accumulate) {
        (1, _) => vec![parallel.zero],
        (_, Accumulate::Full) => vec![1, 3],
        (_, Accumulate::Scatter) => vec![1, 2, 3],
    }
}

/// Sizes of microbatches: the one that is set, or the powers of two that leave every data rank one at least.
fn microbatches(work: &Work, mesh: &Mesh) -> Vec<usize> {
    let (train, ranks) = (&work.train, mesh.data_ranks());
    let fits = |sequences: &usize| {
        train.global_batch.div_ceil(*sequences) >= ranks
            && mesh.check_microbatch(*sequences, train.sequence_length).is_ok()
    };
    let all = match train.microbatch {
        0 => {
            (0..usize::BITS).map(|power| 1 << power).take_while(|size| *size <= train.global_batch).collect()
        }
        set => vec![set],
    };
    all.into_iter().filter(fits).collect()
}
