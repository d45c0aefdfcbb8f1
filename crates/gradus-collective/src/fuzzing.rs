//! What takes bytes that a stranger could send, each as a function of bytes: it may refuse them, and must do nothing
//! worse. With every target come inputs that are taken, for a fuzzer to begin with. Built with the feature `fuzzing` only.

use crate::algorithm::Nodes;
use crate::choose::{Links, choose_all_reduce};
use crate::collective::Collective;
use crate::communicator::Communicator;
use crate::cost::{LinkProfile, NeighbourFigures};
use crate::flight::{FlightLog, analyse};
use crate::header::{HEADER_BYTES, Header};
use crate::preflight::{self, Limits, Pair, Seated};
use gradus_error::{Error, Result};
use gradus_fabric::simulated::{self, Conditions};
use gradus_fabric::{Interest, Lane, Transport};
use gradus_host::RealClock;
use serde::Serialize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Name, function, which says whether it takes its input, and first inputs, all of which it takes.
pub type Target = (&'static str, fn(&[u8]) -> bool, fn() -> Vec<Vec<u8>>);

/// All of this crate.
pub const TARGETS: [Target; 6] = [
    ("collective-header", header, streams),
    ("collective-stream", stream, streams),
    ("collective-link-figures", link_figures, figures),
    ("collective-preflight-records", preflight_records, records),
    ("collective-preflight-commands", preflight_commands, || vec![preflight::as_leader()]),
    ("collective-flight-log", flight_log, logs),
];

/// Elements of the collectives that the streams are taken for.
const LEN: usize = 300;

fn header(data: &[u8]) -> bool {
    let Some(bytes) = data.first_chunk::<HEADER_BYTES>() else { return false };
    let Ok(header) = Header::decode(bytes) else { return false };
    assert_eq!(header.encode(), *bytes, "what is understood says the same again");
    let _ = header.identity.to_string();
    true
}

/// A peer that says just this, to a rank that sums, gathers and waits.
fn stream(data: &[u8]) -> bool {
    play(&mut Communicator::new(Box::new(Recording::playing(data)), Duration::ZERO)).is_ok()
}

/// What the ranks do whose streams are looked at.
fn play(communicator: &mut Communicator) -> Result<()> {
    communicator.all_reduce(&mut [1i32; LEN])?;
    communicator.run_in_place(&Collective::all_gather(), &mut [1i32; 2 * LEN])?;
    communicator.barrier()
}

/// A transport whose peers have said all that they ever say, one after the other; what it is sent is dropped.
struct Recording {
    world_size: usize,
    said: Vec<u8>,
    taken: usize,
}

impl Recording {
    fn playing(said: &[u8]) -> Self {
        Self { world_size: 2, said: said.to_vec(), taken: 0 }
    }
}

impl Transport for Recording {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn name(&self) -> &'static str {
        "a recording"
    }

    fn try_send(&mut self, _: Lane, bytes: &[u8]) -> Result<usize> {
        Ok(bytes.len())
    }

    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let rest = &self.said[self.taken..];
        if rest.is_empty() {
            return Err(Error::peer_lost(lane.peer, "it has said all"));
        }
        let count = consume(rest.as_ptr(), rest.len());
        assert!(count <= rest.len(), "a consumer takes no more than it is given");
        self.taken += count;
        Ok(count)
    }

    fn wait(&mut self, _: &[Interest], _: Duration) -> Result<()> {
        Ok(())
    }

    fn abort(&mut self, _: &Error) {}
}

/// A transport that writes down what it sends.
struct Writer {
    inner: Box<dyn Transport>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Transport for Writer {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn try_send(&mut self, lane: Lane, bytes: &[u8]) -> Result<usize> {
        let count = self.inner.try_send(lane, bytes)?;
        self.written.lock().expect("nobody panics with it").extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        self.inner.try_receive(lane, consume)
    }

    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        self.inner.wait(interests, limit)
    }

    fn abort(&mut self, reason: &Error) {
        self.inner.abort(reason);
    }
}

/// What rank 1 says while two ranks [`play`].
fn streams() -> Vec<Vec<u8>> {
    let finish = simulated::run(2, &Conditions::default(), |inner, clock| {
        let written = Arc::default();
        let writer = Writer { inner, written: Arc::clone(&written) };
        let mut communicator = Communicator::with_clock(Box::new(writer), Duration::MAX, clock);
        play(&mut communicator).expect("nothing goes wrong in this world");
        written.lock().expect("nobody panics with it").clone()
    });
    vec![finish.results[1].clone()]
}

/// What rank 0 says of links, and what all choose by that.
fn link_figures(data: &[u8]) -> bool {
    let Ok(profile) = crate::tuner::decode_profile(data) else { return false };
    for nodes in [None, Some(Nodes::even(4, 1)), Some(Nodes::even(4, 2))] {
        let links = Links { profile: profile.clone(), nodes };
        for len in [1, LEN, 1 << 20] {
            let _ = choose_all_reduce(&links, 4, len, size_of::<f32>());
        }
    }
    true
}

fn figures() -> Vec<Vec<u8>> {
    let alone = LinkProfile::default();
    let near = LinkProfile { neighbours: Some(NeighbourFigures::default()), ..LinkProfile::default() };
    [alone, near].map(|profile| serde_json::to_vec(&profile).expect("profiles are JSON")).to_vec()
}

/// Ranks of the worlds whose links are surveyed.
const SURVEYED: usize = 3;

/// What ranks tell each other in a survey, and what is judged by that.
fn preflight_records(data: &[u8]) -> bool {
    let mut recording = Recording { world_size: SURVEYED, ..Recording::playing(data) };
    let Ok(survey) = preflight::hear_all(&mut recording, &RealClock::new()) else { return false };
    let _ = preflight::judge(&survey, &Limits::default());
    true
}

fn records() -> Vec<Vec<u8>> {
    let seat = |host_mark| Seated { host_mark, host: "a".to_owned(), address: "10.0.0.1:1".to_owned() };
    let pair = Pair {
        one: 1,
        other: 2,
        round_trip_us: 12.5,
        there_bytes_per_s: 1e9,
        back_bytes_per_s: 2e9,
        clock_ahead_ms: -0.5,
        clock_error_ms: 0.25,
    };
    let all: Vec<Seated> = (0..SURVEYED as u64).map(seat).collect();
    let said = [record(&all[1]), record(&all[2]), record(&all), record(&[pair]), record::<[Pair]>(&[])];
    vec![said.concat()]
}

/// Something as a record, its length before it.
fn record<T: Serialize + ?Sized>(what: &T) -> Vec<u8> {
    let body = serde_json::to_vec(what).expect("records are JSON");
    [&(body.len() as u32).to_le_bytes(), &body[..]].concat()
}

/// A peer that leads the measuring.
fn preflight_commands(data: &[u8]) -> bool {
    preflight::follow_one(&mut Recording::playing(data), &RealClock::new()).is_ok()
}

fn flight_log(data: &[u8]) -> bool {
    let Ok(log) = FlightLog::parse(data) else { return false };
    let _ = analyse(&[log.clone(), log]).to_string();
    true
}

fn logs() -> Vec<Vec<u8>> {
    let mut communicator = Communicator::new(Box::new(Recording::playing(&[])), Duration::ZERO);
    let _ = communicator.all_reduce(&mut [1i32; LEN]);
    vec![serde_json::to_vec(&communicator.flight()).expect("records are JSON")]
}
