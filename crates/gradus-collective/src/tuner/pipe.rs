//! Whole messages over a transport, one at a time, for those who may block.

use gradus_error::{Error, Result};
use gradus_fabric::{Direction, Interest, Transport};
use gradus_host::Clock;
use std::time::Duration;

/// Longest single wait: what is lost is found out that soon.
const NAP: Duration = Duration::from_millis(100);

/// A transport, and how long to wait without a byte moving.
pub(super) struct Pipe<'a> {
    pub(super) transport: &'a mut dyn Transport,
    pub(super) clock: &'a dyn Clock,
    pub(super) patience: Duration,
}

impl Pipe<'_> {
    /// Sends all of `bytes`. Blocks.
    ///
    /// # Errors
    /// Those of the transport; `Unavailable`, naming the peer, when nothing moves for as long as patience lasts.
    pub(super) fn send(&mut self, peer: usize, bytes: &[u8]) -> Result<()> {
        let mut sent = 0;
        self.until(peer, Direction::Send, |transport| {
            let count = transport.try_send(peer, &bytes[sent..])?;
            sent += count;
            Ok((count, sent == bytes.len()))
        })
    }

    /// Fills `bytes` with what `peer` sends. Blocks.
    ///
    /// # Errors
    /// As for [`Pipe::send`].
    pub(super) fn receive(&mut self, peer: usize, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        self.until(peer, Direction::Receive, |transport| {
            let count = transport.try_receive(peer, &mut |from, len| {
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
            self.transport.wait(&[Interest { peer, direction }], NAP)?;
        }
    }
}
