//! The form of every message that is not bulk data: a length of four bytes, little endian, then that many bytes of
//! JSON, at most [`LIMIT`].

use crate::stream::{Moved, Stream};
use gradus_error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of JSON in one message. The largest that is sent holds two settings' fingerprints and a sentence.
pub(crate) const LIMIT: usize = 64 * 1024;

/// Bytes of the length.
pub(crate) const PREFIX: usize = 4;

/// A message as bytes.
///
/// # Errors
/// `Invalid` when it is longer than [`LIMIT`].
pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let body = serde_json::to_vec(message)
        .map_err(|error| Error::internal("cannot write a message as JSON").with_source(error))?;
    if body.len() > LIMIT {
        return Err(Error::invalid(format!("a message of {} bytes is longer than {LIMIT}", body.len())));
    }
    let mut bytes = Vec::with_capacity(PREFIX + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// A message from the JSON of a frame.
///
/// # Errors
/// `Corrupt` when it is none of this kind.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| Error::corrupt("cannot understand a message").with_source(error))
}

/// Reads one frame from a connection that never blocks, taking no byte beyond its end.
#[derive(Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
}

/// What a [`Reader`] came to.
pub(crate) enum Progress {
    /// The JSON of a whole frame; the reader is ready for the next.
    Frame(Vec<u8>),
    /// Nothing more has arrived.
    Waiting,
    /// The other side has closed, in good order or not.
    Ended,
}

impl Reader {
    /// Takes what has arrived.
    ///
    /// # Errors
    /// `Corrupt` when the length is beyond [`LIMIT`]; what TLS finds wrong; the system's failure.
    pub(crate) fn read(&mut self, stream: &mut Stream) -> Result<Progress> {
        loop {
            let wanted = self.wanted()?;
            if self.bytes.len() >= PREFIX && wanted == self.bytes.len() {
                let frame = self.bytes.split_off(PREFIX);
                self.bytes.clear();
                return Ok(Progress::Frame(frame));
            }
            let have = self.bytes.len();
            self.bytes.resize(wanted, 0);
            let received = stream.receive(&mut self.bytes[have..]);
            let count = if let Ok(Moved::Bytes(count)) = received { count } else { 0 };
            self.bytes.truncate(have + count);
            match received? {
                Moved::Bytes(_) => {}
                Moved::Nothing => return Ok(Progress::Waiting),
                Moved::Ended => return Ok(Progress::Ended),
            }
        }
    }

    /// Bytes that the reader must hold before it can go on.
    fn wanted(&self) -> Result<usize> {
        let Some(prefix) = self.bytes.first_chunk::<PREFIX>() else { return Ok(PREFIX) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > LIMIT {
            return Err(Error::corrupt(format!("a message announces {length} bytes, more than {LIMIT}")));
        }
        Ok(PREFIX + length)
    }
}

/// Sends a whole message at once; a connection that cannot take it is as good as lost.
///
/// Frames are small beside any socket's buffer, and few are sent on one connection.
///
/// # Errors
/// `Closed` when it is lost.
pub(crate) fn send(stream: &mut Stream, bytes: &[u8]) -> Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.send(&bytes[sent..])? {
            Moved::Bytes(count) => sent += count,
            Moved::Nothing | Moved::Ended => return Err(Error::closed("a message found no room")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// A connection that reads what is written to the other end.
    fn pair() -> (UnixStream, Stream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Stream::plain(theirs.into()).unwrap())
    }

    #[test]
    fn a_frame_arrives_in_pieces_and_takes_nothing_beyond_its_end() {
        let (mut ours, mut theirs) = pair();
        let mut reader = Reader::default();
        let bytes = encode(&"hello").unwrap();
        for byte in &bytes {
            assert!(matches!(reader.read(&mut theirs).unwrap(), Progress::Waiting));
            ours.write_all(&[*byte]).unwrap();
        }
        ours.write_all(b"rest").unwrap();
        let Progress::Frame(body) = reader.read(&mut theirs).unwrap() else { panic!("the frame is whole") };
        assert_eq!(decode::<String>(&body).unwrap(), "hello");
        drop(ours);
        let mut rest = UnixStream::from(theirs.into_plain().unwrap());
        let mut left = Vec::new();
        rest.read_to_end(&mut left).unwrap();
        assert_eq!(left, b"rest");
        assert!(matches!(reader.read(&mut Stream::plain(rest.into()).unwrap()).unwrap(), Progress::Ended));
    }

    #[test]
    fn too_long_is_refused_on_both_sides() {
        assert_eq!(*encode(&"x".repeat(LIMIT)).unwrap_err().kind(), Kind::Invalid);
        let (mut ours, mut theirs) = pair();
        ours.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(*Reader::default().read(&mut theirs).err().unwrap().kind(), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut ours, mut theirs) = pair();
            ours.write_all(&bytes).unwrap();
            let mut reader = Reader::default();
            while let Ok(Progress::Frame(body)) = reader.read(&mut theirs) {
                let _ = decode::<crate::rendezvous::Hello>(&body);
            }
            let _ = decode::<crate::rendezvous::Hello>(&bytes);
            let _ = decode::<crate::rendezvous::Answer>(&bytes);
            let _ = decode::<crate::doors::Member>(&bytes);
        }
    }
}
