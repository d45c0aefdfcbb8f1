//! The right to coordinate, among all coordinators that run on one etcd and prefix.
//!
//! Whoever leads holds a key that lives as long as a lease; each of its writes is a transaction that compares in which
//! revision that key was made, and in which the state was written last. So a coordinator that has lost the key can write
//! nothing any more, even if it has not noticed, and what etcd carries out late undoes nothing newer. It must not answer
//! members either: they would keep leases that its successor does not wait for. Therefore it counts its own lease from
//! when it *asked* for it, and only four fifths of it, for clocks that differ: when that is over it stops, and no other
//! has begun. With each prolongation it asks whether the key is still there, too.

use super::super::timeouts::Timeouts;
use super::place::{LEADER, Published};
use crate::etcd::{Claim, Etcd, EtcdAddress, Lease, Written};
use gradus_error::{Error, IoContext, Kind, Result};
use gradus_host::{Clock, RealClock};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The key that holds the coordinator's state.
const STATE: &str = "state";

/// The pause before something is tried again that etcd has not answered.
const PAUSE: Duration = Duration::from_millis(100);

/// Until when the lease runs, by this process' clock; zero when it is known to be over.
type Until = Arc<Mutex<Duration>>;

/// A coordinator that would lead if nobody else did.
pub(super) struct Candidate {
    etcd: Etcd,
    address: EtcdAddress,
    published: Vec<u8>,
    timeouts: Timeouts,
    clock: RealClock,
}

impl Candidate {
    /// A candidate whom members would reach at `published`.
    ///
    /// # Errors
    /// Those of files that TLS with etcd needs.
    pub(super) fn new(
        address: EtcdAddress,
        published: String,
        timeouts: Timeouts,
        clock: RealClock,
    ) -> Result<Self> {
        let published = Published { address: published }.to_bytes();
        Ok(Self { etcd: Etcd::open(&address, timeouts.heartbeat)?, address, published, timeouts, clock })
    }

    /// Where etcd is.
    pub(super) fn address(&self) -> &EtcdAddress {
        &self.address
    }

    /// Leads from now on, unless another does; also what the one before has stored. Blocks as long as etcd may take.
    ///
    /// # Errors
    /// Those of etcd, or the system's failure to make a thread.
    pub(super) fn campaign(&mut self) -> Result<Option<(Leadership, Option<Vec<u8>>)>> {
        let leader = self.address.key(LEADER);
        if self.etcd.get(&leader)?.is_some() {
            return Ok(None);
        }
        let asked = self.clock.now();
        let lease = self.etcd.grant(self.timeouts.lease)?;
        match self.etcd.claim(&leader, &self.published, lease, &self.address.key(STATE)) {
            Ok(Some(claim)) => self.lead(lease, asked, claim).map(Some),
            // This process was stopped for longer than the lease runs: it is late, and no more.
            Err(error) if *error.kind() == Kind::Closed => Ok(None),
            // Perhaps the claim was made and only its answer is lost; without its lease it does not stand.
            lost => {
                let _ = self.etcd.revoke(lease);
                lost.map(|_| None)
            }
        }
    }

    fn lead(&self, lease: Lease, asked: Duration, claim: Claim) -> Result<(Leadership, Option<Vec<u8>>)> {
        let until = Until::new(Mutex::new(asked + surely(lease.span)));
        let (stop, stopped) = channel();
        let keeper = Keeper {
            etcd: Etcd::open(&self.address, self.timeouts.heartbeat)?,
            leader: self.address.key(LEADER),
            revision: claim.revision,
            lease,
            until: Arc::clone(&until),
            stopped,
            clock: self.clock,
        };
        let thread = std::thread::Builder::new().name("gradus-leader".into());
        let thread =
            thread.spawn(move || keeper.run()).context(|| "cannot start a leader's thread".to_owned())?;
        let leadership = Leadership {
            etcd: Etcd::open(&self.address, self.timeouts.heartbeat)?,
            leader: self.address.key(LEADER),
            state: self.address.key(STATE),
            revision: claim.revision,
            stored_in: claim.read_revision,
            lease,
            until,
            clock: self.clock,
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((leadership, claim.read))
    }
}

/// For how long a lease surely runs that etcd granted after we asked, where clocks differ by less than a quarter.
fn surely(span: Duration) -> Duration {
    span * 4 / 5
}

/// The right itself. Dropping it lets go of it at once.
pub(super) struct Leadership {
    etcd: Etcd,
    leader: Vec<u8>,
    state: Vec<u8>,
    /// In which revision the leader's key became ours.
    revision: i64,
    /// In which revision the state was written last.
    stored_in: i64,
    lease: Lease,
    until: Until,
    clock: RealClock,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Leadership {
    /// Until when nobody else leads, as things stand.
    pub(super) fn until(&self) -> Duration {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what is stored. Blocks until etcd has it, or the right is lost.
    ///
    /// # Errors
    /// `Fenced` when another leads or may; else those of etcd that waiting does not mend.
    pub(super) fn replace(&mut self, bytes: &[u8]) -> Result<()> {
        loop {
            let claim = (self.leader.as_slice(), self.revision);
            let put = self.etcd.put_under(claim, (&self.state, self.stored_in), bytes);
            match put {
                Ok(Written::In(revision)) => {
                    self.stored_in = revision;
                    return Ok(());
                }
                Ok(Written::Unclaimed) => return Err(deposed()),
                Ok(Written::Changed(revision)) => self.take_back(revision)?,
                Err(error) if *error.kind() != Kind::Unavailable => return Err(error),
                Err(error) if self.clock.now() >= self.until() => return Err(deposed().with_source(error)),
                // Whether it was written or not shows at the next try.
                Err(_) => self.clock.sleep(PAUSE),
            }
        }
    }

    /// The state is ours alone to write: whatever somebody else put there is written over.
    fn take_back(&mut self, revision: i64) -> Result<()> {
        tracing::warn!(revision, "somebody else has written the key {STATE:?}: it is written over");
        self.stored_in = revision;
        if self.clock.now() >= self.until() { Err(deposed()) } else { Ok(()) }
    }

    /// Whether the right is still ours, in etcd's eyes.
    ///
    /// # Errors
    /// `Fenced` when it is not, or those of etcd.
    pub(super) fn confirm(&mut self) -> Result<()> {
        if self.etcd.stands(&self.leader, self.revision)? { Ok(()) } else { Err(deposed()) }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Whoever stands by need not wait for the lease to end; if this fails, it waits.
        let _ = self.etcd.revoke(self.lease);
    }
}

fn deposed() -> Error {
    Error::new(Kind::Fenced, "this coordinator has lost the right to lead")
}

/// The thread that prolongs the lease, and sees to it that the key is still there: it can be removed while the lease runs on,
/// and then nothing keeps another from leading.
struct Keeper {
    etcd: Etcd,
    leader: Vec<u8>,
    revision: i64,
    lease: Lease,
    until: Until,
    stopped: Receiver<()>,
    clock: RealClock,
}

impl Keeper {
    fn run(mut self) {
        // Two may fail before the lease is over.
        let mut pause = self.lease.span / 4;
        while self.stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let asked = self.clock.now();
            pause = match self.prolong() {
                Ok(Some(span)) => {
                    self.set(asked + surely(span));
                    span / 4
                }
                Ok(None) => return self.set(Duration::ZERO),
                Err(error) => {
                    tracing::warn!("the lease of the leader's key is not prolonged: {error}");
                    PAUSE
                }
            };
        }
    }

    /// For how long the right is ours from now on, or `None` when it is no more.
    fn prolong(&mut self) -> Result<Option<Duration>> {
        let span = self.etcd.prolong(self.lease)?;
        let stands = span.is_some() && self.etcd.stands(&self.leader, self.revision)?;
        Ok(span.filter(|_| stands))
    }

    fn set(&self, until: Duration) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}
