//! Mutual proof that both ends of a new connection know the run's secret, before a byte of what they say is believed.
//!
//! Four frames of fixed size, the caller's first:
//!
//! | | frame | bytes |
//! |---|---|---|
//! | 1 | the caller's *opening*: magic 8, version 2, purpose 1, role 1, rank 4, nonce 32 | 48 |
//! | 2 | the listener's opening | 48 |
//! | 3 | the caller's *proof*: verdict 1, HMAC-SHA256 32 | 33 |
//! | 4 | the listener's proof, or its verdict that the caller's is wrong | 33 |
//!
//! (Numbers are little endian.) A proof is the HMAC (RFC 2104) under the secret over a label, the prover's role, both
//! openings and the *binding*: what ties it to the TLS session it travels in (RFC 9266), zeros without TLS. Each side's
//! nonce is fresh, so no proof of another connection serves again; the role is in the proof and in the opening, so none
//! serves in the other direction. The caller proves first: a stranger who calls gets nothing that is made with the
//! secret, not even for guessing at leisure. Proofs are compared in constant time.
//!
//! The machine is pure: bytes in, bytes out. It holds 48 bytes at most and asks for no byte beyond the handshake's end.
//! Invariant: [`Turn::Proven`] comes only after the other side's proof was found right.

use crate::secret::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Versions that differ here cannot meet. The first ten bytes of an opening are the same in all of them.
pub(crate) const VERSION: u16 = 2;

const MAGIC: [u8; 8] = *b"gradus\0\n";
const OPENING_BYTES: usize = 48;
const PROOF_BYTES: usize = 33;
const LABEL: &[u8] = b"gradus handshake";

/// How every TLS record of a handshake or an alert begins (RFC 8446, section 5.1): its type, then version 3.
const TLS_RECORDS: [[u8; 2]; 2] = [[21, 3], [22, 3]];

/// A number that is used once.
pub(crate) type Nonce = [u8; 32];

/// What ties a proof to the TLS session that it travels in.
pub(crate) type Binding = [u8; 32];

/// What a connection is for: a proof for one thing is none for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Purpose {
    /// Meeting all ranks at rank 0.
    Rendezvous = 1,
    /// Data and signs of life over TCP.
    Stream = 2,
    /// Handing over shared memory.
    Memory = 3,
    /// Between a member and the coordinator of its group.
    Membership = 4,
    /// Between two processes that serve each other, such as the caches of two nodes ([`crate::service`]).
    Service = 5,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Role {
    Caller = 1,
    Listener = 2,
}

/// Why the other side is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// What it says is no handshake.
    Stranger,
    /// It speaks TLS where none is expected.
    Tls,
    /// It speaks another version.
    Version(u16),
    /// It came for something else, or as what we are ourselves.
    Purpose,
    /// Who says it is this rank does not know our secret.
    Secret(u32),
    /// It does not believe us.
    Refused(u32),
}

/// What a [`Handshake`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// More bytes are wanted.
    More,
    /// The other side knows the secret, and says that it is this rank.
    Proven(u32),
    /// It is not to be believed; the connection is to be closed once the answer is sent.
    Refused(Refusal),
}

/// One side of a handshake.
pub(crate) struct Handshake {
    secret: Secret,
    role: Role,
    ours: [u8; OPENING_BYTES],
    theirs: Option<[u8; OPENING_BYTES]>,
    received: Vec<u8>,
    turn: Turn,
}

impl Handshake {
    /// The side that calls, and what it says first.
    pub(crate) fn call(secret: &Secret, purpose: Purpose, rank: u32, nonce: &Nonce) -> (Self, Vec<u8>) {
        let side = Self::new(secret, Role::Caller, purpose, rank, nonce);
        let opening = side.ours.to_vec();
        (side, opening)
    }

    /// The side that is called.
    pub(crate) fn answer(secret: &Secret, purpose: Purpose, rank: u32, nonce: &Nonce) -> Self {
        Self::new(secret, Role::Listener, purpose, rank, nonce)
    }

    fn new(secret: &Secret, role: Role, purpose: Purpose, rank: u32, nonce: &Nonce) -> Self {
        let ours = opening(role, purpose, rank, nonce);
        let secret = secret.clone();
        Self { secret, role, ours, theirs: None, received: Vec::new(), turn: Turn::More }
    }

    /// Bytes that are wanted before anything follows; 0 when the handshake is over.
    pub(crate) fn wanted(&self) -> usize {
        let frame = if self.theirs.is_none() { OPENING_BYTES } else { PROOF_BYTES };
        if self.turn == Turn::More { frame - self.received.len() } else { 0 }
    }

    /// Takes [`Handshake::wanted`] bytes or fewer: what it came to, and what is to be sent, whatever it came to.
    ///
    /// # Panics
    /// If given more than was wanted.
    pub(crate) fn take(&mut self, bytes: &[u8], binding: &Binding) -> (Turn, Vec<u8>) {
        assert!(bytes.len() <= self.wanted(), "no more is read than is wanted");
        if self.turn != Turn::More {
            return (self.turn, Vec::new());
        }
        self.received.extend_from_slice(bytes);
        let mut reply = Vec::new();
        self.turn = match self.foreign() {
            Some(refusal) => Turn::Refused(refusal),
            None if self.wanted() > 0 => Turn::More,
            None if self.theirs.is_none() => self.hear_opening(binding, &mut reply),
            None => self.hear_proof(binding, &mut reply),
        };
        (self.turn, reply)
    }

    /// Why what has come of an opening cannot be the beginning of one: a stranger is not waited for.
    fn foreign(&self) -> Option<Refusal> {
        let begun = &self.received[..self.received.len().min(MAGIC.len())];
        if self.theirs.is_some() || MAGIC.starts_with(begun) {
            return None;
        }
        let record = begun.first_chunk().is_some_and(|start| TLS_RECORDS.contains(start));
        let undecided = begun.len() == 1 && TLS_RECORDS.iter().any(|start| start[0] == begun[0]);
        if undecided {
            return None;
        }
        Some(if record { Refusal::Tls } else { Refusal::Stranger })
    }

    fn hear_opening(&mut self, binding: &Binding, reply: &mut Vec<u8>) -> Turn {
        let theirs = *self.received.first_chunk().expect("the whole opening has come");
        self.received.clear();
        self.theirs = Some(theirs);
        if self.role == Role::Listener {
            // Also towards who is refused: our own opening tells why.
            reply.extend_from_slice(&self.ours);
        }
        match self.objection(&theirs) {
            Some(refusal) => Turn::Refused(refusal),
            None => {
                if self.role == Role::Caller {
                    reply.extend(self.proof(binding));
                }
                Turn::More
            }
        }
    }

    fn objection(&self, theirs: &[u8; OPENING_BYTES]) -> Option<Refusal> {
        let version = u16::from_le_bytes([theirs[8], theirs[9]]);
        if version != VERSION {
            return Some(Refusal::Version(version));
        }
        let expected = [self.ours[10], self.role.other() as u8];
        (theirs[10..12] != expected).then_some(Refusal::Purpose)
    }

    fn hear_proof(&mut self, binding: &Binding, reply: &mut Vec<u8>) -> Turn {
        let proof = std::mem::take(&mut self.received);
        let (verdict, code) = proof.split_first().expect("the whole proof has come");
        let rank = self.their_rank();
        if Verdict::from(*verdict) != Verdict::Believed {
            return Turn::Refused(Refusal::Refused(rank));
        }
        let right = self.code(self.role.other(), binding).verify_slice(code).is_ok();
        if self.role == Role::Listener {
            reply.extend(if right { self.proof(binding) } else { refused() });
        }
        if right { Turn::Proven(rank) } else { Turn::Refused(Refusal::Secret(rank)) }
    }

    fn their_rank(&self) -> u32 {
        let theirs = self.theirs.as_ref().expect("proofs follow openings");
        u32::from_le_bytes(*theirs[12..].first_chunk().expect("an opening holds a rank"))
    }

    fn proof(&self, binding: &Binding) -> Vec<u8> {
        let code = self.code(self.role, binding).finalize().into_bytes();
        std::iter::once(Verdict::Believed as u8).chain(code).collect()
    }

    /// The code with which `prover` proves itself.
    fn code(&self, prover: Role, binding: &Binding) -> Hmac<Sha256> {
        let theirs = self.theirs.as_ref().expect("proofs follow openings");
        let [caller, listener] = match self.role {
            Role::Caller => [&self.ours, theirs],
            Role::Listener => [theirs, &self.ours],
        };
        let mut code =
            Hmac::<Sha256>::new_from_slice(self.secret.key()).expect("HMAC takes keys of any length");
        for part in [LABEL, &[prover as u8], caller, listener, binding] {
            code.update(part);
        }
        code
    }
}

impl Role {
    fn other(self) -> Self {
        match self {
            Self::Caller => Self::Listener,
            Self::Listener => Self::Caller,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Verdict {
    Believed = 0,
    Refused = 1,
}

impl From<u8> for Verdict {
    fn from(byte: u8) -> Self {
        if byte == Self::Believed as u8 { Self::Believed } else { Self::Refused }
    }
}

fn refused() -> Vec<u8> {
    let mut frame = vec![0; PROOF_BYTES];
    frame[0] = Verdict::Refused as u8;
    frame
}

fn opening(role: Role, purpose: Purpose, rank: u32, nonce: &Nonce) -> [u8; OPENING_BYTES] {
    let mut bytes = [0; OPENING_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10] = purpose as u8;
    bytes[11] = role as u8;
    bytes[12..16].copy_from_slice(&rank.to_le_bytes());
    bytes[16..].copy_from_slice(nonce);
    bytes
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
