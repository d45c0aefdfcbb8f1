//! Waking a rank that sleeps in shared memory.
//!
//! A rank that waits announces it in its inbox (`asleep` = 1), looks once more, then sleeps on the bell. A rank that has
//! changed something looks whether its peer is asleep, and if so clears that, steps the bell and wakes it. Each side
//! writes one word and then reads the other's, with a sequentially consistent fence between: at least one of them sees
//! what the other wrote, so no wake-up is lost. The bell is read before the announcement, so a step in between makes the
//! sleep return at once. Should a peer die or misbehave, the sleep ends by itself after [`NAP`].

use crate::gate::timespec;
use gradus_error::Result;
use gradus_memory::Segment;
use rustix::thread::futex;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, fence};
use std::time::Duration;

/// Offset of the word that says whether the owner sleeps; the bell itself is at 0.
const ASLEEP: usize = 128;

/// The longest sleep without a look whether the peers live.
const NAP: Duration = Duration::from_millis(20);

/// The bell of an inbox, in its first page.
pub(crate) struct Bell(pub(crate) Arc<Segment>);

impl Bell {
    fn count(&self) -> &AtomicU32 {
        self.0.atomic_u32(0)
    }

    fn asleep(&self) -> &AtomicU32 {
        self.0.atomic_u32(ASLEEP)
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
        if self.asleep().swap(0, AcqRel) != 0 {
            self.count().fetch_add(1, Release);
            // A failure leaves the owner to its nap.
            let _ = futex::wake(self.count(), futex::Flags::empty(), 1);
        }
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
}
