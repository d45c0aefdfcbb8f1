//! Measures a world's links, once, for all ranks.
//!
//! All ranks carry out exchanges by the executor itself, so that what a message and a collective cost in software is in the
//! figures, and all at once, so that what ranks share is. The mean of the ranks' times counts; rank 0 turns them into a profile and
//! sends it to everybody: all ranks hold the same figures, to the bit, and choose alike.
//!
//! Bounded: sizes grow until a call takes [`LONG_S`]; a second or so in all, half of it for what ranks of one host do without
//! links.

use super::exchange::{Level, Neighbours, SMALL};
use super::fit::{BufferTimes, HOPS, MESSAGES, SmallTimes, Times, fit};
use super::neighbour_fit::fit_neighbours;
use super::neighbours::time_neighbours;
use crate::algorithm::Nodes;
use crate::collective::Collective;
use crate::communicator::Communicator;
use crate::cost::LinkProfile;
use crate::element::Reduction;
use crate::operation::Prepared;
use crate::plan::Step;
use crate::select::Way;
use gradus_error::{Error, Result};
use std::sync::Arc;

/// Buffers of these many bytes, from what the first cache holds to what the last one does not.
const BUFFERS: [usize; 7] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20];

/// Seconds of a call after which no larger buffer is tried.
pub(super) const LONG_S: f64 = 8e-3;

/// Turns of which the median counts, after one that warms up: as many as fit [`TURNS_S`], or [`SMALL_TURNS_S`] where next to
/// nothing moves, for what is found there is in every other figure.
const FEWEST_TURNS: usize = 3;
const MOST_TURNS: usize = 200;
const TURNS_S: f64 = 15e-3;
const SMALL_TURNS_S: f64 = 40e-3;

/// Calls of a turn where a call takes less than a barrier leaves ranks apart.
const CALLS: usize = 16;

/// Most bytes of a record of a profile.
const MOST_RECORD_BYTES: usize = 32 << 10;

/// Measures the links of all ranks of a communicator, which all call this with nothing in flight. Blocks until rank 0's
/// profile has come.
///
/// # Errors
/// Those of collectives; `Invalid` when `nodes` are of another world, or the times measured are those of no links;
/// `Corrupt` when what comes from rank 0 is no profile.
pub(crate) fn measure(world: &mut Communicator, nodes: &Nodes) -> Result<LinkProfile> {
    if nodes.world_size() != world.world_size() {
        return Err(strange_nodes(nodes, world.world_size()));
    }
    let [inside, across] = [Level::Inside, Level::Across].map(|level| time_level(world, nodes, level));
    let (inside, across) = (inside?, across?);
    let neighbours = time_neighbours(world)?;
    let fit_all = || {
        let neighbours = neighbours.as_ref().map(fit_neighbours).transpose()?;
        Ok(LinkProfile { neighbours, ..fit(inside.as_ref(), across.as_ref())? })
    };
    let profile = (world.rank() == 0).then(fit_all).transpose();
    agree(world, profile)
}

/// Why nodes do not serve a world.
pub(crate) fn strange_nodes(nodes: &Nodes, world_size: usize) -> Error {
    Error::invalid(format!("nodes of {} ranks, but a world of {world_size}", nodes.world_size()))
}

/// Rank 0's profile, on every rank: the same bits, and what it could not find, as an error.
///
/// # Errors
/// As for [`measure`].
pub(crate) fn agree(world: &mut Communicator, ours: Result<Option<LinkProfile>>) -> Result<LinkProfile> {
    let record = ours.and_then(|profile| profile.as_ref().map(encode).transpose());
    let record = record.inspect_err(|error| world.give_up(error))?.unwrap_or_default();
    let mut len = (record.len() as u32).to_le_bytes();
    world.broadcast(0, &mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MOST_RECORD_BYTES {
        return Err(Error::corrupt(format!("rank 0 sent {len} bytes as a profile of links")));
    }
    let mut record = record;
    record.resize(len, 0);
    world.broadcast(0, &mut record)?;
    // Rank 0 reads it as the others do: writing a number as text and reading it may change its last bit.
    decode(&record)
}

fn encode(profile: &LinkProfile) -> Result<Vec<u8>> {
    serde_json::to_vec(profile)
        .map_err(|error| Error::internal("a profile of links has no JSON form").with_source(error))
}

/// A profile from the JSON that rank 0 sends.
pub(crate) fn decode(record: &[u8]) -> Result<LinkProfile> {
    let wrong = |why: String| Error::corrupt(format!("rank 0 sent no profile of links: {why}"));
    let profile: LinkProfile = serde_json::from_slice(record).map_err(|error| wrong(error.to_string()))?;
    profile.validate().map_err(|error| wrong(error.to_string()))?;
    Ok(profile)
}

/// Times the exchanges of a level; `None` where nobody has anybody there.
fn time_level(world: &mut Communicator, nodes: &Nodes, level: Level) -> Result<Option<Times>> {
    if (0..nodes.world_size()).all(|rank| level.neighbours(nodes, rank).is_none()) {
        return Ok(None);
    }
    let neighbours = level.neighbours(nodes, world.rank());
    let steps = |of: &dyn Fn(&Neighbours) -> Vec<Step>| neighbours.as_ref().map(of).unwrap_or_default();
    let small = SmallTimes {
        one: time(world, SMALL, steps(&|circle| circle.hops(1)))?,
        hops: time(world, SMALL, steps(&|circle| circle.hops(HOPS)))?,
        messages: time(world, SMALL * MESSAGES, steps(&|circle| circle.messages(MESSAGES)))?,
    };
    let mut buffers = Vec::with_capacity(BUFFERS.len());
    for bytes in BUFFERS {
        let len = bytes / size_of::<f32>();
        let exchange = |adds| steps(&|circle| circle.buffer(len, adds));
        let (copied, added) = (time(world, len, exchange(false))?, time(world, len, exchange(true))?);
        buffers.push(BufferTimes { bytes: bytes as u64, rounds: level.rounds(nodes), copied, added });
        if copied.max(added) > LONG_S {
            break;
        }
    }
    Ok(Some(Times { small, buffers }))
}

/// Seconds of a collective that consists of these steps, on `len` elements: the same on every rank.
fn time(world: &mut Communicator, len: usize, steps: Vec<Step>) -> Result<f64> {
    let mut data = vec![0.0f32; len];
    world.stand_in_for_all_reduce(&mut data, Way::Streams(Arc::new(Prepared::new(steps))))?;
    time_sums(world, &mut data)
}

/// Seconds of a sum of `data` in place: the median of some turns, of each the mean over the ranks. A rank that left the
/// barrier first waits for the others, and one that left it last for nobody: the mean is what lies between.
pub(super) fn time_sums(world: &mut Communicator, data: &mut [f32]) -> Result<f64> {
    let small = size_of_val(data) < BUFFERS[0];
    let (calls, budget) = if small { (CALLS, SMALL_TURNS_S) } else { (1, TURNS_S) };
    let mut longest = [turn(world, data, calls)? * calls as f64];
    world.run_in_place(&Collective::all_reduce(Reduction::Max), &mut longest)?;
    let turns = ((budget / longest[0]) as usize).clamp(FEWEST_TURNS, MOST_TURNS);
    let mut times = (0..turns).map(|_| turn(world, data, calls)).collect::<Result<Vec<f64>>>()?;
    world.run_in_place(&Collective::all_reduce(Reduction::Mean), &mut times)?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Seconds of a call, as this rank saw it.
fn turn(world: &mut Communicator, data: &mut [f32], calls: usize) -> Result<f64> {
    rewrite(data);
    world.barrier()?;
    let start = world.now();
    for call in 0..calls {
        if call > 0 {
            rewrite(data);
        }
        world.all_reduce(data)?;
    }
    // A clock may be too coarse for the smallest.
    Ok(((world.now() - start).as_secs_f64() / calls as f64).max(1e-9))
}

/// Writes elements one by one, as whoever computes them does: the system's way to fill memory may pass by the caches. Between
/// calls too, for what was just written costs more to read, and such is what ranks sum.
#[inline(never)]
fn rewrite(data: &mut [f32]) {
    let eight: [f32; 8] = std::array::from_fn(|i| i as f32);
    for run in data.chunks_mut(eight.len()) {
        run.copy_from_slice(&eight[..run.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::NeighbourFigures;
    use gradus_error::Kind;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..2000) {
            let error = decode(&bytes).unwrap_err();
            prop_assert_eq!(error.kind(), &Kind::Corrupt);
            let neighbours = Some(NeighbourFigures::default());
            let profile = LinkProfile { neighbours, ..LinkProfile::default() };
            let whole = encode(&profile).unwrap();
            prop_assert_eq!(decode(&whole).unwrap(), profile);
            prop_assert!(decode(&whole[..cut.min(whole.len() - 1)]).is_err());
        }
    }
}
