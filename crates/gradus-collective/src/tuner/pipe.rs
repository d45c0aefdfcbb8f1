//! Whole messages over a transport, one at a time, for those who may block.

use gradus_error::{Error, Result};
use gradus_fabric::{Direction, Interest, Lane, Transport};
use gradus_host::Clock;
use std::time::Duration;

/// Longest single wait: what is lost is found out that soon.
const NAP: Duration = Duration::from_millis(100);

/// A transport, and how long to wait without a byte moving.
pub(crate) struct Pipe<'a> {
    pub(crate) transport: &'a mut dyn Transport,
    pub(crate) clock: &'a dyn Clock,
    pub(crate) patience: Duration,
}

impl Pipe<'_> {
    /// Sends all of `bytes`. Blocks.
    ///
    /// # Errors
    /// Those of the transport; `Unavailable`, naming the peer, when nothing moves for as long as patience lasts.
    pub(crate) fn send(&mut self, peer: usize, bytes: &[u8]) -> Result<()> {
        let mut sent = 0;
        self.until(peer, Direction::Send, |transport| {
            let count = transport.try_send(Lane::lowest(peer), &bytes[sent..])?;
            sent += count;
            Ok((count, sent == bytes.len()))
        })
    }

    /// Fills `bytes` with what `peer` sends. Blocks.
    ///
    /// # Errors
    /// As for [`Pipe::send`].
    pub(crate) fn receive(&mut self, peer: usize, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        self.until(peer, Direction::Receive, |transport| {
            let count = transport.try_receive(Lane::lowest(peer), &mut |from, len| {
                let rest = &mut bytes[filled..];
                let count = len.min(rest.len());
                // SAFETY: the transport hands out `len` readable bytes of memory of its own; count fits both sides.
                unsafe { std::ptr::copy_nonoverlapping(from, rest.as_mut_ptr(), count) };
                filled += count;
                count
            })?;
            Ok((count, filled == bytes.len()))
        })
    }

    /// Sends a record, its length before it. Blocks.
    ///
    /// # Errors
    /// As for [`Pipe::send`]; `Internal` for a record beyond 4 GiB.
    pub(crate) fn send_record(&mut self, peer: usize, record: &[u8]) -> Result<()> {
        let len = u32::try_from(record.len()).map_err(|_| Error::internal("a record fits into 4 GiB"))?;
        self.send(peer, &len.to_le_bytes())?;
        self.send(peer, record)
    }

    /// What a peer sends as a record, of `most` bytes at most. Blocks.
    ///
    /// # Errors
    /// As for [`Pipe::send`]; `Corrupt` when it is longer.
    pub(crate) fn receive_record(&mut self, peer: usize, most: usize) -> Result<Vec<u8>> {
        let mut len = [0; 4];
        self.receive(peer, &mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > most {
            return Err(Error::corrupt(format!(
                "rank {peer} sent a record of {len} bytes, of {most} at most"
            )));
        }
        let mut record = vec![0; len];
        self.receive(peer, &mut record)?;
        Ok(record)
    }

    /// Tries until `attempt` says that it is done; it also says how many bytes it moved.
    fn until(
        &mut self,
        peer: usize,
        direction: Direction,
        mut attempt: impl FnMut(&mut dyn Transport) -> Result<(usize, bool)>,
    ) -> Result<()> {
        let mut last_moved = self.clock.now();
        loop {
            let (moved, done) = attempt(self.transport)?;
            if done {
                return Ok(());
            }
            if moved > 0 {
                last_moved = self.clock.now();
                continue;
            }
            if self.clock.now() - last_moved >= self.patience {
                let rank = self.transport.rank();
                return Err(Error::unavailable(format!(
                    "rank {rank} has waited {} s for rank {peer} while links were measured: all ranks must measure",
                    self.patience.as_secs_f32()
                )));
            }
            self.transport.wait(&[Interest { lane: Lane::lowest(peer), direction }], NAP)?;
        }
    }
}
