//! Measures a world's links, once, for all ranks.
//!
//! Rank 0 plays ping-pong with one rank of its own node and one of another, times adding, turns the times into figures and
//! sends them to everybody. So all ranks hold the same figures, to the bit, and will choose alike. Other pairs are taken
//! to be like these: whoever doubts that looks at all of them first.

use super::fit::{Measurements, Sample, fit};
use super::pipe::Pipe;
use crate::algorithm::Nodes;
use crate::cost::LinkFigures;
use gradus_compute::reduce::{self, Combine};
use gradus_error::{Error, Result};
use gradus_fabric::Transport;
use gradus_host::Clock;
use std::time::Duration;

/// Messages of these many bytes, from what is all latency to what is all bandwidth.
const SIZES: [usize; 5] = [8, 1 << 10, 16 << 10, 256 << 10, 4 << 20];
/// Round trips of each; the fastest counts.
const ROUNDS: usize = 12;
/// Elements that are added: what fits the cache, and what a rank works on at a time.
const ADDED: [usize; 2] = [8 << 10, 64 << 10];
/// Most bytes of a record of figures.
const MOST_BYTES: usize = 4096;

/// Measures the links of a world. All ranks call it, on a transport that carries nothing else; it blocks until rank 0's
/// figures have come, and leaves the transport as it was. Some 120 MB go between rank 0 and each of two others.
///
/// # Errors
/// Those of the transport; `Unavailable`, naming a rank, when nothing moves for `patience`; `Corrupt` when what comes from
/// rank 0 are no figures; `Invalid` when `nodes` are of another world.
pub fn measure(
    transport: &mut dyn Transport,
    nodes: &Nodes,
    clock: &dyn Clock,
    patience: Duration,
) -> Result<LinkFigures> {
    if nodes.world_size() != transport.world_size() {
        let (known, met) = (nodes.world_size(), transport.world_size());
        return Err(Error::invalid(format!("nodes of {known} ranks, but a world of {met}")));
    }
    let mut pipe = Pipe { transport, clock, patience };
    let [near, far] = partners(nodes);
    match pipe.transport.rank() {
        0 => lead(&mut pipe, near, far),
        rank => {
            if [near, far].contains(&Some(rank)) {
                answer(&mut pipe)?;
            }
            receive(&mut pipe)
        }
    }
}

/// With whom rank 0 measures: inside its node, and beyond.
fn partners(nodes: &Nodes) -> [Option<usize>; 2] {
    [true, false].map(|near| (1..nodes.world_size()).find(|rank| nodes.are_together(0, *rank) == near))
}

fn lead(pipe: &mut Pipe<'_>, near: Option<usize>, far: Option<usize>) -> Result<LinkFigures> {
    let adding = time_adding(pipe.clock);
    let mut play = |partner: Option<usize>| partner.map_or(Ok(Vec::new()), |peer| play(pipe, peer));
    let measurements = Measurements { inside: play(near)?, across: play(far)?, adding };
    let record = serde_json::to_vec(&fit(&measurements)?)
        .map_err(|error| Error::internal("figures can be written").with_source(error))?;
    for peer in 1..pipe.transport.world_size() {
        pipe.send_record(peer, &record)?;
    }
    // As the others read it: writing a number as text and reading it may change its last bit.
    decode(&record)
}

/// Rank 0's side of the game.
fn play(pipe: &mut Pipe<'_>, peer: usize) -> Result<Vec<Sample>> {
    let mut samples = Vec::with_capacity(SIZES.len() * ROUNDS);
    for size in SIZES {
        let mut ball = vec![0; size];
        for _ in 0..ROUNDS {
            let start = pipe.clock.now();
            pipe.send(peer, &ball)?;
            pipe.receive(peer, &mut ball)?;
            let seconds = (pipe.clock.now() - start).as_secs_f64() / 2.0;
            // A clock may be too coarse for the smallest.
            samples.push(Sample { bytes: size as u64, seconds: seconds.max(1e-9) });
        }
    }
    Ok(samples)
}

/// The partner's side.
fn answer(pipe: &mut Pipe<'_>) -> Result<()> {
    for size in SIZES {
        let mut ball = vec![0; size];
        for _ in 0..ROUNDS {
            pipe.receive(0, &mut ball)?;
            pipe.send(0, &ball)?;
        }
    }
    Ok(())
}

fn receive(pipe: &mut Pipe<'_>) -> Result<LinkFigures> {
    decode(&pipe.receive_record(0, MOST_BYTES)?)
}

/// Figures from the JSON that rank 0 sends.
pub(crate) fn decode(record: &[u8]) -> Result<LinkFigures> {
    let wrong = |why: String| Error::corrupt(format!("rank 0 sent no figures of links: {why}"));
    let figures: LinkFigures = serde_json::from_slice(record).map_err(|error| wrong(error.to_string()))?;
    figures.validate().map_err(|error| wrong(error.to_string()))?;
    Ok(figures)
}

fn time_adding(clock: &dyn Clock) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(ADDED.len() * ROUNDS);
    for len in ADDED {
        let (mut sum, addend) = (vec![0.0f32; len], vec![1.0f32; len]);
        for _ in 0..ROUNDS {
            let start = clock.now();
            // SAFETY: both are whole vectors of `len` elements, apart from each other, and ours.
            unsafe { reduce::combine::<f32>(Combine::Add, sum.as_mut_ptr(), addend.as_ptr().cast(), len) };
            let seconds = (clock.now() - start).as_secs_f64();
            samples.push(Sample { bytes: size_of_val(&*addend) as u64, seconds: seconds.max(1e-9) });
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    #[test]
    fn partners_are_one_inside_and_one_beyond() {
        assert_eq!(partners(&Nodes::even(1, 1)), [None, None]);
        assert_eq!(partners(&Nodes::even(4, 4)), [Some(1), None]);
        assert_eq!(partners(&Nodes::even(4, 2)), [Some(1), Some(2)]);
        assert_eq!(partners(&Nodes::even(4, 1)), [None, Some(1)]);
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
            let error = decode(&bytes).unwrap_err();
            prop_assert_eq!(error.kind(), &Kind::Corrupt);
            let whole = serde_json::to_vec(&LinkFigures::default()).unwrap();
            prop_assert_eq!(decode(&whole).unwrap(), LinkFigures::default());
            prop_assert!(decode(&whole[..cut.min(whole.len() - 1)]).is_err());
        }
    }
}
