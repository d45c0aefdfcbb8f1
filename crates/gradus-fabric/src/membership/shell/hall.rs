//! The members' connections on the coordinator's side.

use super::super::message::{LARGEST_GROUP, News, Reply, Request, Wish};
use super::door::{Arrival, Door};
use super::link::Link;
use crate::gate::timespec;
use gradus_error::{Error, Result};
use gradus_host::machine::Peer;
use gradus_host::{Clock, RealClock, descriptors};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Duration;

/// Connections at once, so that a largest group is there with those who call anew before their old connections are known to
/// have ended; beyond that callers are turned away. Half at most of what this process may hold open: strangers at the
/// door take a quarter, and the coordinator needs files of its own.
const MOST_LINKS: usize = 2 * LARGEST_GROUP as usize;
const SHARE: usize = 2;

/// Nobody waits longer than this without looking around.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A member's connection and when it last said something.
struct Visitor {
    link: Link,
    heard: Duration,
}

/// What a member's connection has for us.
pub(super) enum Word {
    /// A request.
    Said(Request),
    /// Nothing for now.
    Nothing,
    /// Its end.
    Gone,
}

/// A door, and those who came in by it.
pub(super) struct Hall {
    door: Door,
    visitors: BTreeMap<Peer, Visitor>,
    last_peer: Peer,
    /// Who says nothing for so long makes room for others.
    patience: Duration,
    clock: RealClock,
}

impl Hall {
    pub(super) fn new(door: Door, patience: Duration, clock: RealClock) -> Self {
        Self { door, visitors: BTreeMap::new(), last_peer: 0, patience, clock }
    }

    /// Waits until `deadline` at most for something to do: who has something to say, or can take what was kept; `None` is to stop.
    ///
    /// # Errors
    /// The system's failure to wait.
    pub(super) fn wait(&self, stop: &impl AsFd, deadline: Option<Duration>) -> Result<Option<Vec<Peer>>> {
        let now = self.clock.now();
        let limit = deadline.map_or(LONGEST_WAIT, |deadline| deadline.saturating_sub(now));
        let mut watched = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.door, PollFlags::IN)];
        watched.extend(
            self.visitors.values().map(|visitor| PollFd::new(&visitor.link, visitor.link.interest())),
        );
        match poll(&mut watched, Some(&timespec(limit.min(LONGEST_WAIT)))) {
            Ok(_) if !watched[0].revents().is_empty() => Ok(None),
            Ok(_) => {
                let ready =
                    self.visitors.keys().zip(&watched[2..]).filter(|(_, fd)| !fd.revents().is_empty());
                Ok(Some(ready.map(|(peer, _)| *peer).collect()))
            }
            Err(Errno::INTR) => Ok(Some(Vec::new())),
            Err(error) => Err(Error::io("cannot wait for members", error.into())),
        }
    }

    /// Lets in who has come, and what each said first.
    pub(super) fn arrivals(&mut self) -> Vec<(Peer, Request)> {
        let arrivals = self.door.arrivals();
        arrivals.into_iter().filter_map(|arrival| self.let_in(arrival)).collect()
    }

    fn let_in(&mut self, arrival: Arrival) -> Option<(Peer, Request)> {
        let now = self.clock.now();
        self.visitors.retain(|_, visitor| now < visitor.heard + self.patience);
        let most = MOST_LINKS.min(descriptors::limit() / SHARE);
        if self.visitors.len() >= most {
            turn_away(arrival, most);
            return None;
        }
        self.last_peer += 1;
        self.visitors.insert(self.last_peer, Visitor { link: arrival.link, heard: now });
        Some((self.last_peer, arrival.request))
    }

    /// The next word of a member.
    pub(super) fn next(&mut self, peer: Peer) -> Word {
        let Some(visitor) = self.visitors.get_mut(&peer) else { return Word::Nothing };
        match visitor.link.flush().and_then(|()| visitor.link.receive::<Request>()) {
            Ok(None) => Word::Nothing,
            Ok(Some(message)) => {
                visitor.heard = self.clock.now();
                Word::Said(message)
            }
            Err(_) => {
                self.visitors.remove(&peer);
                Word::Gone
            }
        }
    }

    /// Says something to a member. A link that fails shows at the next reading.
    pub(super) fn send(&mut self, to: Peer, message: &Reply) {
        if let Some(visitor) = self.visitors.get_mut(&to) {
            let _ = visitor.link.send(message);
        }
    }

    /// Sends everybody away, those who have just come too: they look for their coordinator anew.
    pub(super) fn dismiss(&mut self) {
        drop(self.door.arrivals());
        self.visitors.clear();
    }
}

/// Tells a newcomer that there is no room. Who belongs to a group already is told nothing, for it would give up: it calls again.
fn turn_away(Arrival { mut link, request }: Arrival, most: usize) {
    let message = format!(
        "the coordinator serves {most} connections already: raise its limit of open files (ulimit -n), or start another \
         coordinator for other groups"
    );
    if matches!(request.wish, Wish::Join { .. }) {
        let (term, incarnation) = (request.term, request.wish.incarnation());
        // Who has gone need not be told.
        let _ = link.send(&Reply { term, incarnation, news: News::Refused { message } });
    }
}
