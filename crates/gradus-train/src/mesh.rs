//! The mesh: where each rank stands along the axes over which the work is split.
//!
//! From the outermost axis to the innermost: `pp` cuts the layers among ranks, `dp` replicates, `fsdp` shards what is
//! replicated, `tp` cuts each layer. Ranks count along the innermost first, so that those that say most to each other are
//! neighbours. `dp` and `fsdp` together share out the microbatches: a rank's place on both is its data rank.

use crate::settings::{OptimizerKind, OptimizerSettings, ParallelSettings, no_ranks};
use gradus_collective::Communicator;
use gradus_compute::Format;
use gradus_error::{Error, Result};
use gradus_model::ModelConfig;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// A direction in which a mesh extends; from the outermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Stages of a pipeline.
    Pp,
    /// Replicas.
    Dp,
    /// Shards.
    Fsdp,
    /// Slices of each layer.
    Tp,
}

impl Axis {
    /// All, from the outermost.
    pub const ALL: [Self; 4] = [Self::Pp, Self::Dp, Self::Fsdp, Self::Tp];

    /// As the settings call it.
    pub fn name(self) -> &'static str {
        ["pp", "dp", "fsdp", "tp"][self as usize]
    }
}

/// Where a rank stands along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Coordinates {
    /// Along [`Axis::Pp`].
    pub pp: usize,
    /// Along [`Axis::Dp`].
    pub dp: usize,
    /// Along [`Axis::Fsdp`].
    pub fsdp: usize,
    /// Along [`Axis::Tp`].
    pub tp: usize,
}

impl Coordinates {
    fn to_array(self) -> [usize; 4] {
        [self.pp, self.dp, self.fsdp, self.tp]
    }
}

/// The sizes of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    /// Ranks that the layers are cut among.
    pub pp: usize,
    /// Replicas.
    pub dp: usize,
    /// Ranks that share out what a replica holds.
    pub fsdp: usize,
    /// Ranks that each layer is cut among.
    pub tp: usize,
}

/// That of a single rank.
impl Default for Mesh {
    fn default() -> Self {
        Self { pp: 1, dp: 1, fsdp: 1, tp: 1 }
    }
}

impl Mesh {
    /// The mesh of so many ranks that the settings ask for; `parallel.dp` 0 is what the other axes leave.
    ///
    /// # Errors
    /// `Invalid`, naming the keys, the arithmetic and what would do instead.
    pub fn from_settings(settings: &ParallelSettings, world_size: usize) -> Result<Self> {
        settings.check()?;
        if world_size == 0 {
            return Err(no_ranks());
        }
        let ParallelSettings { pp, dp, fsdp, tp, .. } = *settings;
        let fixed = pp * fsdp * tp;
        let dp = match dp {
            0 if world_size.is_multiple_of(fixed) => world_size / fixed,
            set => set,
        };
        let mesh = Self { pp, dp, fsdp, tp };
        if mesh.world_size() == world_size {
            return Ok(mesh);
        }
        Err(Error::invalid(mismatch(settings, world_size)))
    }

    fn sizes(&self) -> [usize; 4] {
        [self.pp, self.dp, self.fsdp, self.tp]
    }

    /// Ranks along an axis.
    pub fn size(&self, axis: Axis) -> usize {
        self.sizes()[axis as usize]
    }

    /// The axes along which there is more than one rank, as `pp 2 x fsdp 4`; empty for a single rank.
    pub fn describe(&self) -> String {
        let axes = Axis::ALL.into_iter().filter(|axis| self.size(*axis) > 1);
        let named = axes.map(|axis| format!("{} {}", axis.name(), self.size(axis)));
        named.collect::<Vec<_>>().join(" x ")
    }

    /// Where these ranks stand together along the axes with more than one rank, as `pp 1, dp 0`; empty where they do not.
    pub fn common_place(&self, ranks: &[usize]) -> String {
        let places: Vec<_> = ranks.iter().map(|rank| self.coordinates(*rank).to_array()).collect();
        let common = |axis: &Axis| {
            let place = places.first()?[*axis as usize];
            places.iter().all(|other| other[*axis as usize] == place).then_some(place)
        };
        let axes = Axis::ALL.into_iter().filter(|axis| self.size(*axis) > 1);
        let named = axes.filter_map(|axis| Some(format!("{} {}", axis.name(), common(&axis)?)));
        named.collect::<Vec<_>>().join(", ")
    }

    /// Ranks of the whole mesh.
    pub fn world_size(&self) -> usize {
        self.sizes().iter().product()
    }

    /// Ranks that share out the microbatches.
    pub fn data_ranks(&self) -> usize {
        self.dp * self.fsdp
    }

    /// Which of them a rank is; ranks that differ by stage or slice only are the same.
    pub fn data_rank(&self, rank: usize) -> usize {
        let Coordinates { dp, fsdp, .. } = self.coordinates(rank);
        dp * self.fsdp + fsdp
    }

    /// Where a rank stands.
    pub fn coordinates(&self, rank: usize) -> Coordinates {
        let mut left = rank;
        let mut along = |size: usize| {
            let place = left % size;
            left /= size;
            place
        };
        let (tp, fsdp, dp, pp) = (along(self.tp), along(self.fsdp), along(self.dp), along(self.pp));
        Coordinates { pp, dp, fsdp, tp }
    }

    /// Which rank stands there.
    pub fn rank_at(&self, place: Coordinates) -> usize {
        let along = self.sizes().into_iter().zip(place.to_array());
        along.fold(0, |rank, (size, place)| rank * size + place)
    }

    /// The ranks that stand where `rank` does but for these axes, itself among them, from the lowest.
    pub fn ranks_along(&self, rank: usize, axes: &[Axis]) -> Vec<usize> {
        let place = self.coordinates(rank).to_array();
        let alike = |other: &usize| {
            let other = self.coordinates(*other).to_array();
            (0..4).all(|axis| place[axis] == other[axis] || axes.iter().any(|free| *free as usize == axis))
        };
        (0..self.world_size()).filter(alike).collect()
    }

    /// Whether a model can be cut as the mesh wants it, into `stages_per_rank` chunks of layers on each rank.
    ///
    /// # Errors
    /// `Invalid`, naming the keys and what would fit.
    pub fn check_model(&self, model: &ModelConfig, stages_per_rank: usize) -> Result<()> {
        self.check_layers(model.layers, stages_per_rank)?;
        let sizes =
            [("heads", model.heads), ("kv_heads", model.kv_heads), ("feed_forward", model.feed_forward)];
        let uneven = sizes.iter().find(|(_, size)| !size.is_multiple_of(self.tp));
        let common = sizes.iter().fold(0, |common, (_, size)| greatest_common_divisor(common, *size));
        let most = common.min(model.padded_vocabulary());
        let what = match uneven {
            Some((key, size)) => {
                format!("parallel.tp is {}, which does not divide model.{key} {size}", self.tp)
            }
            None if self.tp > most => {
                format!("parallel.tp is {}, more than the vocabulary has rows", self.tp)
            }
            None => return Ok(()),
        };
        let fits: Vec<usize> = (1..=most).filter(|ranks| common.is_multiple_of(*ranks)).collect();
        Err(Error::invalid(format!("{what}: layers of this model can be cut among {} ranks", choice(&fits))))
    }

    fn check_layers(&self, layers: usize, stages_per_rank: usize) -> Result<()> {
        let stages = self.pp * stages_per_rank;
        if stages <= layers {
            return Ok(());
        }
        let mend = match layers / stages_per_rank {
            0 => format!("at most parallel.stages_per_rank {}", (layers / self.pp).max(1)),
            1 => "parallel.pp 1".to_owned(),
            most => format!("at most parallel.pp {most}"),
        };
        Err(Error::invalid(format!(
            "parallel.pp {} x parallel.stages_per_rank {stages_per_rank} = {stages} stages, but model.layers is {layers}: \
             each stage has a layer at least, so {mend} would do",
            self.pp
        )))
    }

    /// Whether such an optimizer can update what the ranks have.
    ///
    /// # Errors
    /// `Invalid`, naming the keys and what would do.
    pub fn check_optimizer(&self, settings: &OptimizerSettings) -> Result<()> {
        let is_cut = settings.kind == OptimizerKind::Muon && self.tp > 1;
        if is_cut && settings.masters == Format::Bf16 {
            return Err(Error::invalid(format!(
                "optimizer.masters \"bf16\" with optimizer.kind \"muon\" and parallel.tp {}: matrices that are cut among ranks \
                 are updated in f32 only; give masters \"f32\", kind \"adamw\", or parallel.tp 1",
                self.tp
            )));
        }
        Ok(())
    }

    /// Whether microbatches of `sequences` of so many tokens can be cut among the ranks of `tp`.
    ///
    /// # Errors
    /// `Invalid`, naming the keys.
    pub fn check_microbatch(&self, sequences: usize, sequence_length: usize) -> Result<()> {
        let rows = sequences.saturating_mul(sequence_length);
        if rows >= self.tp {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a microbatch of {sequences} x {sequence_length} = {rows} tokens (train.microbatch x train.sequence_length) \
             cannot be cut among the {} ranks of parallel.tp: give larger ones, or at most parallel.tp {rows}",
            self.tp
        )))
    }

    /// What is possible but slow, where a data rank has so many microbatches in a step.
    pub fn warning(&self, microbatches: usize) -> Option<String> {
        (self.pp > 1 && microbatches < self.pp).then(|| {
            format!(
                "a pipeline of {} ranks (parallel.pp) has {microbatches} microbatches to work on in a step, so some of its \
                 ranks always wait: a larger train.global_batch or a smaller train.microbatch would keep them busy",
                self.pp
            )
        })
    }
}

/// Communicators of one rank along the axes of its mesh.
pub struct MeshRanks {
    /// All ranks.
    pub world: Communicator,
    /// The stages of this rank's pipeline, from the first.
    pub pp: Communicator,
    /// The ranks that hold what this one holds.
    pub dp: Communicator,
    /// The ranks that shard with this one.
    pub fsdp: Communicator,
    /// The ranks that each layer is cut among, with this one.
    pub tp: Communicator,
    /// The data ranks of this rank's stage and slice.
    pub data: Communicator,
    /// All ranks with this one's data rank: together they hold one model and see the same microbatches.
    pub model: Communicator,
}

impl MeshRanks {
    /// Groups of a world's ranks; nothing is sent.
    ///
    /// # Errors
    /// `Invalid` when the mesh has not as many places as there are ranks.
    pub fn new(mut world: Communicator, mesh: &Mesh) -> Result<Self> {
        let (rank, world_size) = (world.rank(), world.world_size());
        if mesh.world_size() != world_size {
            return Err(Error::invalid(format!("{mesh:?} has not {world_size} places, one for each rank")));
        }
        let mut along = |axes: &[Axis]| world.group(&mesh.ranks_along(rank, axes));
        Ok(Self {
            pp: along(&[Axis::Pp])?,
            dp: along(&[Axis::Dp])?,
            fsdp: along(&[Axis::Fsdp])?,
            tp: along(&[Axis::Tp])?,
            data: along(&[Axis::Dp, Axis::Fsdp])?,
            model: along(&[Axis::Pp, Axis::Tp])?,
            world,
        })
    }
}

/// Why settings make no mesh of so many ranks, and what would.
fn mismatch(settings: &ParallelSettings, world_size: usize) -> String {
    let ParallelSettings { pp, dp, fsdp, tp, .. } = *settings;
    let axes = [("pp", pp), ("dp", dp), ("fsdp", fsdp), ("tp", tp)];
    let given: Vec<(&str, usize)> =
        axes.into_iter().filter(|(key, size)| *size > 1 || *key == "dp" && *size == 1).collect();
    let product: usize = given.iter().map(|(_, size)| size).product();
    let terms: Vec<String> = given.iter().map(|(key, size)| format!("parallel.{key} {size}")).collect();
    let mut text = terms.join(" x ");
    if given.len() > 1 {
        let _ = write!(text, " = {product}");
    }
    let relation = if dp == 0 { "does not divide" } else { "is not the number of" };
    let _ = write!(text, " {relation} {world_size} ranks: {}", mends(&given, dp == 0, world_size));
    text
}

/// Other sizes and other worlds that would do; `open`, where another axis takes what is left.
fn mends(given: &[(&str, usize)], open: bool, world_size: usize) -> String {
    let product: usize = given.iter().map(|(_, size)| size).product();
    let mut axes: Vec<(usize, String)> = given
        .iter()
        .filter_map(|(key, size)| {
            let left = exact_quotient(world_size, product / size)?;
            let size_then = if open { nearest_divisor(left, *size) } else { left };
            let or_open = if *key == "dp" { " (or 0, which finds it)" } else { "" };
            Some((size_then.abs_diff(*size), format!("parallel.{key} {size_then}{or_open}")))
        })
        .collect();
    axes.sort();
    let fewer = world_size / product * product;
    let worlds = if open { vec![fewer, fewer + product] } else { vec![product] };
    let worlds: Vec<usize> = worlds.into_iter().filter(|world| *world > 0).collect();
    let axes = axes.into_iter().map(|(_, text)| text);
    let mends: Vec<String> = axes.chain([format!("{} ranks", choice(&worlds))]).collect();
    format!("{} would do", mends.join(", or "))
}

/// `whole / part` where nothing is left over.
fn exact_quotient(whole: usize, part: usize) -> Option<usize> {
    whole.is_multiple_of(part).then(|| whole / part)
}

/// The divisor of `number` that is nearest to `wanted`.
fn nearest_divisor(number: usize, wanted: usize) -> usize {
    let divisors = (1..=number).filter(|divisor| number.is_multiple_of(*divisor));
    divisors.min_by_key(|divisor| divisor.abs_diff(wanted)).unwrap_or(1)
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// `1, 2 or 4`: the largest of many.
fn choice(numbers: &[usize]) -> String {
    let shown: Vec<String> =
        numbers[numbers.len().saturating_sub(12)..].iter().map(usize::to_string).collect();
    match shown.as_slice() {
        [others @ .., last] if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => shown.concat(),
    }
}

#[cfg(test)]
mod tests;
