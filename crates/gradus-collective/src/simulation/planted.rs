//! Bugs that tests plant, to see that the judge finds them: a transport that is not as it should be.

#[cfg(test)]
use gradus_error::{Error, Kind, Result};
use gradus_fabric::Transport;
#[cfg(test)]
use gradus_fabric::{Interest, Lane};
use gradus_host::Clock;
use std::sync::Arc;
use std::time::Duration;

/// A bug; outside of this crate's own tests there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Planted {
    /// As it should be.
    #[default]
    Nothing,
    /// A bit of some payloads is turned.
    #[cfg(test)]
    TurnsABit,
    /// Another rank than the one that is lost is named.
    #[cfg(test)]
    BlamesTheNext,
    /// Who is lost is not told of, and nobody minds a stall.
    #[cfg(test)]
    WaitsForEver,
    /// A loss is called something else.
    #[cfg(test)]
    MistakesTheKind,
    /// Every pause is a stall.
    #[cfg(test)]
    HasNoPatience,
}

impl Planted {
    #[cfg(not(test))]
    pub(super) fn break_it(self, transport: Box<dyn Transport>, _: &Arc<dyn Clock>) -> Box<dyn Transport> {
        transport
    }

    #[cfg(not(test))]
    pub(super) fn stall_limit(self, limit: Duration) -> Duration {
        limit
    }

    #[cfg(test)]
    pub(super) fn break_it(self, inner: Box<dyn Transport>, clock: &Arc<dyn Clock>) -> Box<dyn Transport> {
        if self == Self::Nothing {
            return inner;
        }
        Box::new(Broken { inner, bug: self, clock: Arc::clone(clock) })
    }

    #[cfg(test)]
    pub(super) fn stall_limit(self, limit: Duration) -> Duration {
        match self {
            Self::WaitsForEver => Duration::MAX,
            Self::HasNoPatience => Duration::from_millis(1),
            _ => limit,
        }
    }
}

#[cfg(test)]
struct Broken {
    inner: Box<dyn Transport>,
    bug: Planted,
    clock: Arc<dyn Clock>,
}

#[cfg(test)]
impl Broken {
    fn change(&self, error: Error) -> Error {
        match error.kind() {
            Kind::PeerLost { rank } if self.bug == Planted::BlamesTheNext => {
                Error::peer_lost((rank + 1) % self.inner.world_size(), error.to_string())
            }
            Kind::PeerLost { .. } if self.bug == Planted::MistakesTheKind => {
                Error::corrupt(error.to_string())
            }
            _ => error,
        }
    }

    /// What the caller hears; `nothing` where failures are kept from it.
    fn hears<T>(&self, result: Result<T>, nothing: T) -> Result<T> {
        match result {
            Err(error) if self.bug == Planted::WaitsForEver && *error.kind() != Kind::Internal => {
                // Who polls in vain takes its time, or the test would.
                self.clock.sleep(Duration::from_secs(1));
                Ok(nothing)
            }
            result => result.map_err(|error| self.change(error)),
        }
    }
}

#[cfg(test)]
impl Transport for Broken {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn levels(&self) -> usize {
        self.inner.levels()
    }

    fn try_send(&mut self, lane: Lane, bytes: &[u8]) -> Result<usize> {
        let sent = if self.bug == Planted::TurnsABit && bytes.len() > 1000 {
            let mut turned = bytes.to_vec();
            turned[700] ^= 4;
            self.inner.try_send(lane, &turned)
        } else {
            self.inner.try_send(lane, bytes)
        };
        self.hears(sent, 0)
    }

    fn try_receive(
        &mut self,
        lane: Lane,
        consume: &mut dyn FnMut(*const u8, usize) -> usize,
    ) -> Result<usize> {
        let received = self.inner.try_receive(lane, consume);
        self.hears(received, 0)
    }

    fn wait(&mut self, interests: &[Interest], limit: Duration) -> Result<()> {
        let waited = self.inner.wait(interests, limit);
        self.hears(waited, ())
    }

    fn abort(&mut self, reason: &Error) {
        self.inner.abort(reason);
    }
}
