//! Waking a rank that sleeps in shared memory.
//!
//! A rank that waits announces it in its inbox (`asleep` = 1), looks once more, then sleeps on the bell. A rank that has
//! changed something looks whether its peer is asleep, and if so clears that, steps the bell and wakes it. Each side
//! writes one word and then reads the other's, with a sequentially consistent fence between: at least one of them sees
//! what the other wrote, so no wake-up is lost. The bell is read before the announcement, so a step in between makes the
//! sleep return at once. Should a peer die or misbehave, the sleep ends by itself after [`NAP`].
//!
//! A rank that waits for sockets too cannot sleep on a word in memory. It hands out a *cord* with its inbox, a descriptor
//! (eventfd) that peers write instead of waking it there, and sleeps in `poll`. It empties the cord after the sleep, and then
//! looks again; what is written later, by a peer that was slow, only cuts the next sleep short.

use crate::gate::timespec;
use gradus_error::{IoContext, Result};
use gradus_memory::Segment;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::futex;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, fence};
use std::time::Duration;

/// Offset of the word that says whether the owner sleeps; the bell itself is at 0.
const ASLEEP: usize = 128;

/// The longest sleep without a look whether the peers live.
pub(crate) const NAP: Duration = Duration::from_millis(20);

/// A cord for a bell of our own.
///
/// # Errors
/// The system's failure to make a descriptor.
pub(crate) fn cord() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(|| "cannot make a bell".to_owned())
}

/// The bell of an inbox, in its first page.
#[derive(Clone)]
pub(crate) struct Bell {
    inbox: Arc<Segment>,
    cord: Option<Arc<OwnedFd>>,
}

impl Bell {
    /// A bell whose owner sleeps on it.
    pub(crate) fn new(inbox: Arc<Segment>) -> Self {
        Self { inbox, cord: None }
    }

    /// A bell whose owner sleeps in `poll`, where it watches the cord.
    pub(crate) fn with_cord(inbox: Arc<Segment>, cord: OwnedFd) -> Self {
        Self { inbox, cord: Some(Arc::new(cord)) }
    }

    /// The inbox in which it hangs.
    pub(crate) fn inbox(&self) -> &Arc<Segment> {
        &self.inbox
    }

    fn count(&self) -> &AtomicU32 {
        self.inbox.atomic_u32(0)
    }

    fn asleep(&self) -> &AtomicU32 {
        self.inbox.atomic_u32(ASLEEP)
    }

    /// Wakes the owner if it sleeps; called after a store that it may wait for.
    pub(crate) fn ring(&self) {
        fence(SeqCst);
        self.wake_if_asleep();
    }

    /// As [`Bell::ring`], where that store was a sequentially consistent read-modify-write: on x86-64 a fence of its own.
    #[inline]
    pub(crate) fn ring_after_exchange(&self) {
        #[cfg(not(target_arch = "x86_64"))]
        fence(SeqCst);
        self.wake_if_asleep();
    }

    #[inline]
    fn wake_if_asleep(&self) {
        if self.asleep().load(Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.asleep().swap(0, AcqRel) == 0 {
            return;
        }
        // A failure leaves the owner to its nap.
        if let Some(cord) = &self.cord {
            let _ = rustix::io::write(cord, &1u64.to_ne_bytes());
            return;
        }
        self.count().fetch_add(1, Release);
        let _ = futex::wake(self.count(), futex::Flags::empty(), 1);
    }

    /// The owner sleeps, unless `is_ready` says that there is no need; for `limit`, or less.
    pub(crate) fn sleep(&self, limit: Duration, is_ready: impl FnOnce() -> Result<bool>) -> Result<()> {
        let seen = self.count().load(Acquire);
        self.asleep().store(1, Relaxed);
        fence(SeqCst);
        let ready = is_ready();
        if let Ok(false) = ready {
            // Whatever ends the sleep, the caller looks again.
            let nap = timespec(limit.min(NAP));
            let _ = futex::wait(self.count(), futex::Flags::empty(), seen, Some(&nap));
        }
        self.asleep().store(0, Relaxed);
        ready.map(|_| ())
    }

    /// As [`Bell::sleep`], for a bell with a cord: `doze` sleeps, no longer than [`NAP`], until the cord is readable or
    /// something else that it watches has news.
    pub(crate) fn sleep_by_cord(
        &self,
        is_ready: impl FnOnce() -> Result<bool>,
        doze: impl FnOnce(BorrowedFd) -> Result<()>,
    ) -> Result<()> {
        let cord = self.cord.as_ref().expect("only who has a cord sleeps by it").as_fd();
        self.asleep().store(1, Relaxed);
        fence(SeqCst);
        let ready = is_ready();
        let dozed = if let Ok(false) = ready { doze(cord) } else { Ok(()) };
        self.asleep().store(0, Relaxed);
        // Nothing to read is no failure: nobody has rung.
        let _ = rustix::io::read(cord, &mut [0u8; 8]);
        ready.and(dozed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::sync::atomic::AtomicU64;

    /// Much longer than any pause of a loaded machine.
    const LIMIT: Duration = Duration::from_secs(600);

    fn bell_with_cord() -> Bell {
        Bell::with_cord(Arc::new(Segment::create("test", 4096).unwrap()), cord().unwrap())
    }

    /// Sleeps until the cord is pulled, without a nap that would hide a ring that was lost.
    fn until_rung(cord: BorrowedFd) -> Result<()> {
        let rung = poll(&mut [PollFd::new(&cord, PollFlags::IN)], Some(&timespec(LIMIT))).unwrap();
        assert_eq!(rung, 1, "a ring was lost");
        Ok(())
    }

    #[test]
    fn no_ring_is_lost_however_sleepers_and_ringers_meet() {
        let (bells, turn) = ([bell_with_cord(), bell_with_cord()], AtomicU64::new(0));
        let play = |own: u64| {
            for round in 0..20_000u64 {
                let wanted = 2 * round + own;
                let is_ready = || Ok(turn.load(Acquire) == wanted);
                while !is_ready().unwrap() {
                    bells[own as usize].sleep_by_cord(is_ready, until_rung).unwrap();
                }
                turn.store(wanted + 1, Release);
                bells[1 - own as usize].ring();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| play(0));
            scope.spawn(|| play(1));
        });
    }

    #[test]
    fn who_has_something_to_do_does_not_sleep_and_failures_pass() {
        let bell = bell_with_cord();
        bell.sleep_by_cord(|| Ok(true), |_| panic!("it slept")).unwrap();
        let closed = || Err(gradus_error::Error::closed("over"));
        assert!(bell.sleep_by_cord(|| closed().map(|()| false), |_| panic!("it slept")).is_err());
        assert!(bell.sleep_by_cord(|| Ok(false), |_| closed()).is_err());
        // Nobody sleeps: nothing is written, and the next sleep is not cut short.
        bell.ring();
        let at_once = timespec(Duration::ZERO);
        let look = |cord: BorrowedFd| {
            let rung = poll(&mut [PollFd::new(&cord, PollFlags::IN)], Some(&at_once)).unwrap();
            assert_eq!(rung, 0);
            Ok(())
        };
        bell.sleep_by_cord(|| Ok(false), look).unwrap();
    }
}
