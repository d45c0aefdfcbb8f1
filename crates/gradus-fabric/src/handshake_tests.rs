use super::*;
use proptest::prelude::*;

const PLAIN: Binding = [0; 32];

fn secret(text: &str) -> Secret {
    Secret::from_environment(&|name| (name == crate::secret::SECRET).then(|| text.repeat(16))).unwrap()
}

/// Two sides, and what has travelled: the caller's frames and the listener's.
struct Meeting {
    caller: Handshake,
    listener: Handshake,
    bindings: [Binding; 2],
    frames: Vec<Vec<u8>>,
}

impl Meeting {
    fn new(ours: &Secret, theirs: &Secret, purposes: [Purpose; 2]) -> Self {
        let (caller, opening) = Handshake::call(ours, purposes[0], 3, &[7; 32]);
        let listener = Handshake::answer(theirs, purposes[1], 0, &[9; 32]);
        Self { caller, listener, bindings: [PLAIN; 2], frames: vec![opening] }
    }

    /// Carries frames to and fro, changed by `change` (which is told their number), until nobody says anything.
    fn run(&mut self, change: impl Fn(usize, &mut Vec<u8>)) -> (Turn, Turn) {
        while self.frames.last().is_some_and(|frame| !frame.is_empty()) {
            let number = self.frames.len() - 1;
            let (side, binding) = match number % 2 {
                0 => (&mut self.listener, self.bindings[1]),
                _ => (&mut self.caller, self.bindings[0]),
            };
            let mut frame = self.frames[number].clone();
            change(number, &mut frame);
            frame.truncate(side.wanted());
            let reply = side.take(&frame, &binding).1;
            self.frames.push(reply);
        }
        self.frames.pop();
        (self.caller.turn, self.listener.turn)
    }
}

fn meet(ours: &Secret, theirs: &Secret) -> (Turn, Turn) {
    Meeting::new(ours, theirs, [Purpose::Stream; 2]).run(|_, _| {})
}

#[test]
fn who_shares_a_secret_is_proven_on_both_sides() {
    for known in [secret("a"), Secret::default()] {
        assert_eq!(meet(&known, &known), (Turn::Proven(0), Turn::Proven(3)));
    }
}

#[test]
fn another_secret_or_none_is_told_to_both_sides() {
    let (one, other, none) = (secret("a"), secret("b"), Secret::default());
    for (ours, theirs) in [(&one, &other), (&one, &none), (&none, &other)] {
        let turns = meet(ours, theirs);
        assert_eq!(turns, (Turn::Refused(Refusal::Refused(0)), Turn::Refused(Refusal::Secret(3))));
    }
}

#[test]
fn other_versions_purposes_and_roles_are_told_apart() {
    let known = secret("a");
    let mut meeting = Meeting::new(&known, &known, [Purpose::Rendezvous, Purpose::Memory]);
    assert_eq!(meeting.run(|_, _| {}), (Turn::Refused(Refusal::Purpose), Turn::Refused(Refusal::Purpose)));
    let mut meeting = Meeting::new(&known, &known, [Purpose::Stream; 2]);
    let older = |number: usize, frame: &mut Vec<u8>| frame[8] = if number == 0 { 1 } else { frame[8] };
    // The listener answers all the same, so that an older caller can see whose version differs.
    assert_eq!(meeting.run(older).1, Turn::Refused(Refusal::Version(1)));
    assert_eq!(meeting.frames[1].len(), OPENING_BYTES);
}

#[test]
fn a_listener_that_does_not_know_the_secret_is_found_out() {
    let known = secret("a");
    let mut meeting = Meeting::new(&known, &known, [Purpose::Stream; 2]);
    let forge = |number: usize, frame: &mut Vec<u8>| {
        if number == 3 {
            frame[1..].fill(5);
        }
    };
    assert_eq!(meeting.run(forge).0, Turn::Refused(Refusal::Secret(0)));
}

#[test]
fn a_caller_that_is_answered_with_its_own_words_believes_nothing() {
    let (mut caller, opening) = Handshake::call(&secret("a"), Purpose::Stream, 3, &[7; 32]);
    assert_eq!(caller.take(&opening, &PLAIN), (Turn::Refused(Refusal::Purpose), vec![]));
    // With the role mended the caller proves itself; its proof, sent back, proves nothing.
    let (mut caller, mut opening) = Handshake::call(&secret("a"), Purpose::Stream, 3, &[7; 32]);
    opening[11] = Role::Listener as u8;
    let (turn, proof) = caller.take(&opening, &PLAIN);
    assert_eq!(turn, Turn::More);
    assert_eq!(caller.take(&proof, &PLAIN).0, Turn::Refused(Refusal::Secret(3)));
}

#[test]
fn what_was_said_once_serves_nobody_again() {
    let known = secret("a");
    let mut heard = Meeting::new(&known, &known, [Purpose::Stream; 2]);
    assert_eq!(heard.run(|_, _| {}).1, Turn::Proven(3));
    let mut listener = Handshake::answer(&known, Purpose::Stream, 0, &[10; 32]);
    assert_eq!(listener.take(&heard.frames[0], &PLAIN).0, Turn::More);
    assert_eq!(listener.take(&heard.frames[2], &PLAIN).0, Turn::Refused(Refusal::Secret(3)));
}

#[test]
fn a_proof_belongs_to_its_tls_session() {
    let known = secret("a");
    let mut meeting = Meeting::new(&known, &known, [Purpose::Stream; 2]);
    meeting.bindings = [[1; 32], [2; 32]];
    assert_eq!(meeting.run(|_, _| {}).1, Turn::Refused(Refusal::Secret(3)));
}

#[test]
fn strangers_are_told_from_those_who_speak_tls() {
    let turn =
        |bytes: &[u8]| Handshake::answer(&secret("a"), Purpose::Stream, 0, &[1; 32]).take(bytes, &PLAIN);
    assert_eq!(turn(b"GET / HTTP/1.1\r\n"), (Turn::Refused(Refusal::Stranger), vec![]));
    assert_eq!(turn(&[22, 3, 1, 0, 200]).0, Turn::Refused(Refusal::Tls));
    assert_eq!(turn(&[21, 3]).0, Turn::Refused(Refusal::Tls));
    assert_eq!(turn(&[22, 9]).0, Turn::Refused(Refusal::Stranger));
    assert_eq!(turn(&[22]).0, Turn::More);
    assert_eq!(turn(b"gradus").0, Turn::More);
}

proptest! {
    #[test]
    fn one_changed_bit_anywhere_is_never_believed(number in 0usize..4, at in 0usize..384) {
        let known = secret("a");
        let mut meeting = Meeting::new(&known, &known, [Purpose::Stream; 2]);
        let flip = |frame_number: usize, frame: &mut Vec<u8>| {
            let len = frame.len() * 8;
            if frame_number == number {
                frame[at % len / 8] ^= 1 << (at % 8);
            }
        };
        let (caller, listener) = meeting.run(flip);
        let believed = [caller, listener].iter().filter(|turn| matches!(turn, Turn::Proven(_))).count();
        // Once the listener has proven itself too nothing of its conviction can be taken back.
        prop_assert!(believed == 0 || (number == 3 && listener == Turn::Proven(3)));
    }

    #[test]
    fn pieces_of_any_size_come_to_the_same(sizes in proptest::collection::vec(1usize..60, 1..40)) {
        let known = secret("a");
        let mut whole = Meeting::new(&known, &known, [Purpose::Stream; 2]);
        whole.run(|_, _| {});
        let mut listener = Handshake::answer(&known, Purpose::Stream, 0, &[9; 32]);
        let mut said = [whole.frames[0].clone(), whole.frames[2].clone(), b"rest".to_vec()].concat();
        let mut heard = Vec::new();
        for size in sizes.into_iter().cycle() {
            let count = size.min(listener.wanted());
            if count == 0 { break }
            let (_, reply) = listener.take(&said.drain(..count).collect::<Vec<_>>(), &PLAIN);
            heard.extend(reply);
        }
        prop_assert_eq!(listener.turn, Turn::Proven(3));
        prop_assert_eq!(heard, [whole.frames[1].clone(), whole.frames[3].clone()].concat());
        prop_assert_eq!(said, b"rest");
    }

    #[test]
    fn random_bytes_never_panic_and_are_never_believed(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        // Most random bytes fail at the first: let some begin right.
        begun in 0usize..=OPENING_BYTES,
        calling: bool,
    ) {
        let right = opening(if calling { Role::Listener } else { Role::Caller }, Purpose::Memory, 1, &[3; 32]);
        let mut side = match calling {
            true => Handshake::call(&secret("a"), Purpose::Memory, 0, &[4; 32]).0,
            false => Handshake::answer(&secret("a"), Purpose::Memory, 0, &[4; 32]),
        };
        let bytes = [&right[..begun], &bytes].concat();
        for byte in bytes {
            if side.wanted() == 0 { break }
            let (turn, reply) = side.take(&[byte], &PLAIN);
            prop_assert!(!matches!(turn, Turn::Proven(_)) && reply.len() <= OPENING_BYTES);
            prop_assert!(side.received.len() <= OPENING_BYTES);
        }
    }
}
