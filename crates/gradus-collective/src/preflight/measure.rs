//! Measures every pair of a world, round by round.

use super::schedule::rounds;
use super::{Pair, Seated, Survey};
use crate::tuner::pipe::Pipe;
use gradus_error::{Error, Result};
use gradus_fabric::Transport;
use gradus_host::Clock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Round trips of 4 bytes; the fastest counts, for all else that a machine does only ever adds.
const ROUND_TRIPS: usize = 64;
/// Looks at the other's clock; the one with the shortest round trip counts (Cristian, "Probabilistic clock synchronization",
/// Distributed Computing 1989).
const CLOCK_LOOKS: usize = 16;
/// Messages grow fourfold until even the fastest takes so long that what begins and ends it is of no account.
const SMALLEST: usize = 16 << 10;
const LARGEST: usize = 16 << 20;
const LONG_ENOUGH: Duration = Duration::from_millis(20);
/// The same in round trips: over a long way, or where ranks wait for processors, one begins and ends by taking that long itself.
const LONG_ENOUGH_TRIPS: u32 = 8;
/// Messages of the last size; the fastest counts.
const TRIES: usize = 4;
/// Bytes of a record that ranks exchange, for each rank of the world: a seat, or what was measured with all others.
const MOST_PER_RANK: usize = 1024;

/// Set in a command when the bytes shall come back instead of going there.
const BACK: u64 = 1 << 63;
/// A command to end.
const END: u64 = 0;

/// Measures all pairs. All ranks call it, on a transport that carries nothing else; rank 0 gets what was found. Blocks until all is
/// measured, 0.2 to 0.6 s for each pair that has to take its turn, or 100 to 300 of its round trips over a long way, and leaves the
/// transport as it was.
///
/// # Errors
/// Those of the transport; `Unavailable`, naming a rank, when nothing moves for `patience`; `Corrupt` when a rank says what it should
/// not.
pub fn survey(
    transport: &mut dyn Transport,
    own: &Seated,
    clock: &dyn Clock,
    patience: Duration,
) -> Result<Option<Survey>> {
    let (rank, world_size) = (transport.rank(), transport.world_size());
    let mut pipe = Pipe { transport, clock, patience };
    let ranks = exchange_seats(&mut pipe, own)?;
    let marks: Vec<u64> = ranks.iter().map(|seated| seated.host_mark).collect();
    let mut found = Vec::new();
    for round in rounds(&marks) {
        wait_for_all(&mut pipe)?;
        match round.into_iter().find(|(one, other)| [*one, *other].contains(&rank)) {
            Some((one, other)) if one == rank => found.push(lead(&mut pipe, other)?),
            Some((one, _)) => follow(&mut pipe, one)?,
            None => {}
        }
    }
    if rank > 0 {
        send(&mut pipe, 0, &found)?;
        return Ok(None);
    }
    for peer in 1..world_size {
        let theirs: Vec<Pair> = receive(&mut pipe, peer)?;
        found.extend(check(theirs, peer, world_size)?);
    }
    found.sort_by_key(|pair| (pair.one, pair.other));
    Ok(Some(Survey { ranks, pairs: found }))
}

/// Refuses figures of pairs that are not `peer`'s to measure.
fn check(pairs: Vec<Pair>, peer: usize, world_size: usize) -> Result<Vec<Pair>> {
    let possible = |pair: &Pair| pair.one == peer && (peer + 1..world_size).contains(&pair.other);
    match pairs.iter().all(possible) {
        true => Ok(pairs),
        false => Err(Error::corrupt(format!("rank {peer} sent figures of pairs that it has not measured"))),
    }
}

/// Rank 0 hears from all and tells all.
fn exchange_seats(pipe: &mut Pipe<'_>, own: &Seated) -> Result<Vec<Seated>> {
    let world_size = pipe.transport.world_size();
    if pipe.transport.rank() > 0 {
        send(pipe, 0, own)?;
        let ranks: Vec<Seated> = receive(pipe, 0)?;
        return match ranks.len() == world_size {
            true => Ok(ranks),
            false => Err(Error::corrupt("rank 0 sent the seats of another world")),
        };
    }
    let mut ranks = vec![own.clone()];
    for peer in 1..world_size {
        ranks.push(receive(pipe, peer)?);
    }
    for peer in 1..world_size {
        send(pipe, peer, &ranks)?;
    }
    Ok(ranks)
}

/// Returns once every rank has come here: in turn k each hears from the rank 2^k before it (Hensgen, Finkel and Manber, "Two
/// algorithms for barrier synchronization", 1988).
fn wait_for_all(pipe: &mut Pipe<'_>) -> Result<()> {
    let (rank, world_size) = (pipe.transport.rank(), pipe.transport.world_size());
    let mut step = 1;
    while step < world_size {
        pipe.send((rank + step) % world_size, &[0])?;
        pipe.receive((rank + world_size - step) % world_size, &mut [0])?;
        step *= 2;
    }
    Ok(())
}

// Two ranks: one leads, the other follows.

fn lead(pipe: &mut Pipe<'_>, other: usize) -> Result<Pair> {
    let one = pipe.transport.rank();
    let round_trip = fastest_round_trip(pipe, other)?;
    let (ahead_s, error_s) = look_at_clock(pipe, other)?;
    let mut buffer = vec![0; LARGEST];
    let mut one_way = |way| bandwidth(round_trip, |bytes| transfer(pipe, other, way, &mut buffer[..bytes]));
    let (there_bytes_per_s, back_bytes_per_s) = (one_way(0)?, one_way(BACK)?);
    pipe.send(other, &END.to_le_bytes())?;
    Ok(Pair {
        one,
        other,
        round_trip_us: round_trip.as_secs_f64() * 1e6,
        there_bytes_per_s,
        back_bytes_per_s,
        clock_ahead_ms: ahead_s * 1e3,
        clock_error_ms: error_s * 1e3,
    })
}

fn follow(pipe: &mut Pipe<'_>, one: usize) -> Result<()> {
    let mut ball = [0; 4];
    for _ in 0..ROUND_TRIPS {
        pipe.receive(one, &mut ball)?;
        pipe.send(one, &ball)?;
    }
    for _ in 0..CLOCK_LOOKS {
        pipe.receive(one, &mut ball)?;
        let calendar_ns = pipe.clock.calendar().as_nanos() as u64;
        pipe.send(one, &calendar_ns.to_le_bytes())?;
    }
    let mut buffer = vec![0; LARGEST];
    loop {
        let mut command = [0; 8];
        pipe.receive(one, &mut command)?;
        let command = u64::from_le_bytes(command);
        if command == END {
            return Ok(());
        }
        let bytes = usize::try_from(command & !BACK).unwrap_or(usize::MAX);
        let part = buffer.get_mut(..bytes).ok_or_else(|| {
            Error::corrupt(format!(
                "rank {one} wants to measure with {bytes} bytes, more than anybody should"
            ))
        })?;
        if command & BACK == 0 {
            pipe.receive(one, part)?;
            pipe.send(one, &[0])?;
        } else {
            pipe.send(one, part)?;
        }
    }
}

fn fastest_round_trip(pipe: &mut Pipe<'_>, other: usize) -> Result<Duration> {
    let mut fastest = Duration::MAX;
    let mut ball = [0; 4];
    for _ in 0..ROUND_TRIPS {
        let start = pipe.clock.now();
        pipe.send(other, &ball)?;
        pipe.receive(other, &mut ball)?;
        fastest = fastest.min(pipe.clock.now() - start);
    }
    Ok(fastest)
}

/// How far the other's clock is ahead, and by how much that may be wrong, in seconds.
fn look_at_clock(pipe: &mut Pipe<'_>, other: usize) -> Result<(f64, f64)> {
    let mut best = (0.0, f64::INFINITY);
    for _ in 0..CLOCK_LOOKS {
        // In this order all that comes between counts as part of the round trip, and so of what may be wrong.
        let start = pipe.clock.now();
        let asked = pipe.clock.calendar();
        pipe.send(other, &[0; 4])?;
        let mut theirs = [0; 8];
        pipe.receive(other, &mut theirs)?;
        let half = (pipe.clock.now() - start).as_secs_f64() / 2.0;
        if half < best.1 {
            let theirs = Duration::from_nanos(u64::from_le_bytes(theirs));
            best = (theirs.as_secs_f64() - asked.as_secs_f64() - half, half);
        }
    }
    Ok(best)
}

/// Bytes per second one way, by the fastest of the messages that all take long enough: one alone may have been held up. `transfer`
/// takes so many bytes over and says how long that took.
fn bandwidth(round_trip: Duration, mut transfer: impl FnMut(usize) -> Result<Duration>) -> Result<f64> {
    let long_enough = LONG_ENOUGH.max(round_trip * LONG_ENOUGH_TRIPS);
    let (mut bytes, mut fastest, mut tries) = (SMALLEST, Duration::MAX, 0);
    while tries < TRIES {
        fastest = fastest.min(transfer(bytes)?);
        tries += 1;
        if fastest < long_enough && bytes < LARGEST {
            (bytes, fastest, tries) = (bytes * 4, Duration::MAX, 0);
        }
    }
    // Half a round trip to begin and half to end; a clock may be too coarse for what is left.
    let moving = fastest.saturating_sub(round_trip).max(fastest / 2).max(Duration::from_nanos(1));
    Ok(bytes as f64 / moving.as_secs_f64())
}

/// From the command to the last byte, or to the word that it has come.
fn transfer(pipe: &mut Pipe<'_>, other: usize, way: u64, part: &mut [u8]) -> Result<Duration> {
    let start = pipe.clock.now();
    pipe.send(other, &(part.len() as u64 | way).to_le_bytes())?;
    if way == BACK {
        pipe.receive(other, part)?;
    } else {
        pipe.send(other, part)?;
        pipe.receive(other, &mut [0])?;
    }
    Ok(pipe.clock.now() - start)
}

// Records.

fn send(pipe: &mut Pipe<'_>, peer: usize, value: &impl Serialize) -> Result<()> {
    let record = serde_json::to_vec(value)
        .map_err(|error| Error::internal("what was measured can be written").with_source(error))?;
    pipe.send_record(peer, &record)
}

fn receive<T: DeserializeOwned>(pipe: &mut Pipe<'_>, peer: usize) -> Result<T> {
    let most = MOST_PER_RANK * pipe.transport.world_size();
    let record = pipe.receive_record(peer, most)?;
    serde_json::from_slice(&record).map_err(|error| {
        Error::corrupt(format!("rank {peer} sent no record of what it measured")).with_source(error)
    })
}

/// Hears what others say in a survey, as rank 0 and as another, over a transport on which all of it comes.
#[cfg(feature = "fuzzing")]
pub(crate) fn hear_all(transport: &mut dyn Transport, clock: &dyn Clock) -> Result<Survey> {
    let world_size = transport.world_size();
    let mut pipe = Pipe { transport, clock, patience: Duration::ZERO };
    let mut ranks: Vec<Seated> = Vec::new();
    for peer in 1..world_size {
        ranks.push(receive(&mut pipe, peer)?);
    }
    let all: Vec<Seated> = receive(&mut pipe, 1)?;
    ranks.extend(all.into_iter().next());
    let mut pairs = Vec::new();
    for peer in 1..world_size {
        pairs.extend(check(receive(&mut pipe, peer)?, peer, world_size)?);
    }
    match ranks.len() == world_size {
        true => Ok(Survey { ranks, pairs }),
        false => Err(Error::corrupt("rank 0 sent the seats of another world")),
    }
}

/// Follows a peer over a transport on which all that is foreign comes.
#[cfg(feature = "fuzzing")]
pub(crate) fn follow_one(transport: &mut dyn Transport, clock: &dyn Clock) -> Result<()> {
    follow(&mut Pipe { transport, clock, patience: Duration::ZERO }, 1)
}

/// What [`follow_one`] takes: all that [`lead`] says of one transfer each way.
#[cfg(feature = "fuzzing")]
pub(crate) fn as_leader() -> Vec<u8> {
    let there = (SMALLEST as u64).to_le_bytes();
    let back = (SMALLEST as u64 | BACK).to_le_bytes();
    let balls = vec![0; 4 * (ROUND_TRIPS + CLOCK_LOOKS)];
    [&balls[..], &there, &vec![1; SMALLEST], &back, &END.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::cell::Cell;

    /// What is found of a shaped link, which lets a burst through at once, while the messages of one size are held up but for the
    /// last `let_by` of four.
    fn of_shaped(bytes_per_s: f64, held_up: usize, let_by: usize) -> f64 {
        const BURST: usize = 64 << 10;
        let tries = Cell::new(0);
        let found = bandwidth(Duration::from_micros(100), |bytes| {
            let shaped = bytes.saturating_sub(BURST) as f64 / bytes_per_s;
            let is_held = bytes == held_up && tries.replace(tries.get() + 1) < TRIES - let_by;
            let held_s = if is_held { 0.1 } else { 0.0 };
            Ok(Duration::from_secs_f64(100e-6 + shaped + held_s))
        });
        found.unwrap()
    }

    #[test]
    fn a_burst_is_not_taken_for_the_link_because_a_message_was_held_up() {
        for bytes_per_s in [1e6, 5e6, 125e6] {
            for (held_up, let_by) in [16 << 10, 64 << 10, 256 << 10].into_iter().zip([3, 1, 2]) {
                let found = of_shaped(bytes_per_s, held_up, let_by) / bytes_per_s;
                assert!((0.9..1.4).contains(&found), "{found} of {bytes_per_s} B/s, held up at {held_up}");
            }
        }
    }

    #[test]
    fn figures_of_others_pairs_are_refused() {
        let pair = |one, other| Pair {
            one,
            other,
            round_trip_us: 1.0,
            there_bytes_per_s: 1.0,
            back_bytes_per_s: 1.0,
            clock_ahead_ms: 0.0,
            clock_error_ms: 0.0,
        };
        assert_eq!(check(vec![pair(1, 2)], 1, 3).unwrap().len(), 1);
        for wrong in [pair(0, 2), pair(1, 1), pair(1, 0), pair(1, 3), pair(2, 1)] {
            assert_eq!(*check(vec![wrong], 1, 3).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
