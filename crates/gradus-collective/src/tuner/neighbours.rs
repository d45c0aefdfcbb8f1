//! Measures what it costs ranks of one host to work on each other's memory, by [`Trial`]s that the executor itself carries
//! out, all ranks at once.

use super::measure::{LONG_S, time_sums};
use super::neighbour_fit::{NeighbourTimes, Timed};
use super::trials::{FEW, HOPS, Trial};
use crate::collective::Collective;
use crate::communicator::Communicator;
use crate::element::Reduction;
use crate::one_sided::{Agenda, MOST_AT_ONCE};
use crate::select::Way;
use gradus_error::Result;
use gradus_memory::HeapRange;
use std::sync::Arc;

/// Bytes of buffers that are staged.
const STAGED: [usize; 9] =
    [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];

/// Bytes of buffers that peers reach, registered and private.
const REGISTERED: [usize; 7] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];
const PRIVATE: [usize; 5] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

/// Registered memory that all ranks together take for it.
const MOST_REGISTERED: usize = 128 << 20;

/// Times of neighbours; `None` where ranks are none, or too many to work so. All ranks call this.
///
/// # Errors
/// Those of collectives.
pub(super) fn time_neighbours(world: &mut Communicator) -> Result<Option<NeighbourTimes>> {
    let ranks = world.world_size();
    let Some(surroundings) = world.surroundings().filter(|_| (2..=MOST_AT_ONCE).contains(&ranks)) else {
        return Ok(None);
    };
    let mut few = [0.0f32; FEW];
    Ok(Some(NeighbourTimes {
        ranks,
        processors: surroundings.processors.unwrap_or(0),
        one: time(world, &mut few, Trial::Meets(1))?,
        hops: time(world, &mut few, Trial::Meets(HOPS))?,
        pairs: [1, HOPS]
            .map(|hops| time(world, &mut few, Trial::Pairs(hops)))
            .into_iter()
            .collect::<Result<_>>()?,
        staged: time_private(world, &STAGED, [Trial::Stage, Trial::StageAndCombine, Trial::Staged])?,
        registered: time_registered(world)?,
        private: if surroundings.reads_private {
            time_private(world, &PRIVATE, [Trial::ReachPrivate, Trial::Pull])?
        } else {
            Vec::new()
        },
    }))
}

fn time(world: &mut Communicator, data: &mut [f32], trial: Trial) -> Result<f64> {
    let program = trial.program(world.rank(), world.world_size(), data.len());
    world.stand_in_for_all_reduce(data, Way::Meeting(Arc::new(Agenda::new(program))))?;
    time_sums(world, data)
}

/// Times of several trials on as many bytes.
fn time_all<const N: usize>(
    world: &mut Communicator,
    data: &mut [f32],
    trials: [Trial; N],
) -> Result<Timed<N>> {
    let mut seconds = [0.0; N];
    for (seconds, trial) in seconds.iter_mut().zip(trials) {
        *seconds = time(world, data, trial)?;
    }
    Ok(Timed { bytes: size_of_val(data) as u64, seconds })
}

fn time_registered(world: &mut Communicator) -> Result<Vec<Timed<2>>> {
    let most = REGISTERED.into_iter().rfind(|bytes| bytes * world.world_size() <= MOST_REGISTERED);
    let range = world.heap().and_then(|heap| heap.allocate(most.unwrap_or(0)).ok());
    let mut all_have = [u8::from(range.is_some())];
    world.run_in_place(&Collective::all_reduce(Reduction::Min), &mut all_have)?;
    let Some(mut range) = range.filter(|_| all_have == [1]) else { return Ok(Vec::new()) };
    let mut times: Vec<Timed<2>> = Vec::new();
    for bytes in REGISTERED.into_iter().filter(|bytes| Some(*bytes) <= most) {
        let data = beginning(&mut range, bytes / size_of::<f32>());
        times.push(time_all(world, data, [Trial::ReachRegistered, Trial::Push])?);
        if times.iter().any(Timed::is_long) {
            break;
        }
    }
    Ok(times)
}

/// The first elements of a range.
fn beginning(range: &mut HeapRange, len: usize) -> &mut [f32] {
    // SAFETY: zeros, aligned to a page, as long as `range` lives, which holds as many elements; peers write there within
    // collectives only, which borrow the slice.
    unsafe { std::slice::from_raw_parts_mut(range.start().as_ptr().cast(), len) }
}

/// Times of trials on memory that is this rank's alone, by growing size, until they get long.
fn time_private<const N: usize>(
    world: &mut Communicator,
    sizes: &[usize],
    trials: [Trial; N],
) -> Result<Vec<Timed<N>>> {
    let mut times: Vec<Timed<N>> = Vec::new();
    for bytes in sizes {
        let mut data = vec![0.0; bytes / size_of::<f32>()];
        times.push(time_all(world, &mut data, trials)?);
        if times.iter().any(Timed::is_long) {
            break;
        }
    }
    Ok(times)
}

impl<const N: usize> Timed<N> {
    fn is_long(&self) -> bool {
        self.seconds.iter().any(|seconds| *seconds > LONG_S)
    }
}
