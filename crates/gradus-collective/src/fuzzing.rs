//! What takes bytes that a stranger could send, each as a function of bytes: it may refuse them, and must do nothing
//! worse. With every target come inputs that are taken, for a fuzzer to begin with. Built with the feature `fuzzing` only.

use crate::collective::Collective;
use crate::communicator::Communicator;
use crate::cost::{LinkProfile, NeighbourFigures};
use crate::element::Reduction;
use crate::flight::{FlightLog, analyse};
use crate::header::{HEADER_BYTES, Header};
use gradus_error::{Error, Result};
use gradus_fabric::{Interest, Transport};
use std::time::Duration;

/// Name, function and first inputs.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All of this crate.
pub const TARGETS: [Target; 4] = [
    ("collective-header", header, streams),
    ("collective-stream", stream, streams),
    ("collective-link-figures", link_figures, figures),
    ("collective-flight-log", flight_log, logs),
];

/// Elements of the collectives that the streams are taken for.
const LEN: usize = 300;

fn header(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode(), *bytes, "what is understood says the same again");
        let _ = header.identity.to_string();
    }
}

/// A peer that says just this, to a rank that sums, gathers and waits.
fn stream(data: &[u8]) {
    let mut communicator = Communicator::new(Box::new(Recording::playing(data)), Duration::ZERO);
    let all = communicator.all_reduce(&mut [1i32; LEN]);
    let all = all.and_then(|()| communicator.run_in_place(&Collective::all_gather(), &mut [1i32; 2 * LEN]));
    let _ = all.and_then(|()| communicator.barrier());
}

/// A transport whose only peer has said all that it ever says; what it is sent is kept.
struct Recording {
    said: Vec<u8>,
    taken: usize,
}

impl Recording {
    fn playing(said: &[u8]) -> Self {
        Self { said: said.to_vec(), taken: 0 }
    }
}

impl Transport for Recording {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        2
    }

    fn name(&self) -> &'static str {
        "a recording"
    }

    fn try_send(&mut self, _: usize, bytes: &[u8]) -> Result<usize> {
        Ok(bytes.len())
    }

    fn try_receive(
        &mut self,
        peer: usize,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let rest = &self.said[self.taken..];
        if rest.is_empty() {
            return Err(Error::peer_lost(peer, "it has said all"));
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

/// What a rank says in the collectives that [`stream`] runs: the headers of rank 1 are those of rank 0.
fn streams() -> Vec<Vec<u8>> {
    use std::sync::{Arc, Mutex};

    /// A transport that writes down what it is told to send.
    struct Writer(Arc<Mutex<Vec<u8>>>);

    impl Transport for Writer {
        fn rank(&self) -> usize {
            1
        }

        fn world_size(&self) -> usize {
            2
        }

        fn name(&self) -> &'static str {
            "a writer"
        }

        fn try_send(&mut self, _: usize, bytes: &[u8]) -> Result<usize> {
            self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn try_receive(&mut self, _: usize, _: &mut dyn FnMut(*const u8, usize) -> usize) -> Result<usize> {
            Ok(0)
        }

        fn wait(&mut self, _: &[Interest], _: Duration) -> Result<()> {
            Err(Error::closed("this is all that was wanted"))
        }

        fn abort(&mut self, _: &Error) {}
    }

    let written = Arc::new(Mutex::new(Vec::new()));
    let mut communicator = Communicator::new(Box::new(Writer(Arc::clone(&written))), Duration::MAX);
    let what = Collective::all_reduce(Reduction::Sum);
    let _ = communicator.run_in_place(&what, &mut [1i32; LEN]);
    let written = written.lock().expect("nobody panics with it").clone();
    vec![written]
}

fn link_figures(data: &[u8]) {
    let _ = crate::tuner::decode_profile(data);
}

fn figures() -> Vec<Vec<u8>> {
    let alone = LinkProfile::default();
    let near = LinkProfile { neighbours: Some(NeighbourFigures::default()), ..LinkProfile::default() };
    [alone, near].map(|profile| serde_json::to_vec(&profile).expect("profiles are JSON")).to_vec()
}

fn flight_log(data: &[u8]) {
    if let Ok(log) = FlightLog::parse(data) {
        let _ = analyse(&[log.clone(), log]).to_string();
    }
}

fn logs() -> Vec<Vec<u8>> {
    let mut communicator = Communicator::new(Box::new(Recording::playing(&[])), Duration::ZERO);
    let _ = communicator.all_reduce(&mut [1i32; LEN]);
    vec![serde_json::to_vec(&communicator.flight()).expect("records are JSON")]
}
