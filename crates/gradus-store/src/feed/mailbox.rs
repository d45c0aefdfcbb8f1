//! What the thread that answers other nodes is told: asks, and that the walk may get on.
//!
//! That it may get on is remembered, whoever listens: an ask that finds it cannot be walked to, while the walk is already
//! going on elsewhere, is looked at once more. A mailbox full of asks keeps the word all the same.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Job<T> {
    /// Something new is asked.
    Ask(T),
    /// What could not be had may be there now.
    Again,
}

/// See the module.
pub(super) struct Mailbox<T> {
    most: usize,
    state: Mutex<State<T>>,
    told: Condvar,
}

struct State<T> {
    asks: VecDeque<T>,
    /// Since the last [`Job::Again`].
    has_moved: bool,
    /// Whoever listens wants to hear of it.
    is_awaited: bool,
    has_ended: bool,
}

impl<T> Mailbox<T> {
    /// An empty one, for `most` asks.
    pub fn new(most: usize) -> Self {
        let state = State { asks: VecDeque::new(), has_moved: false, is_awaited: false, has_ended: false };
        Self { most, state: Mutex::new(state), told: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an ask in; hands it back if there are too many. After the end it is dropped.
    pub fn put(&self, ask: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.asks.len() >= self.most && !state.has_ended {
            return Err(ask);
        }
        if !state.has_ended {
            state.asks.push_back(ask);
        }
        drop(state);
        self.told.notify_one();
        Ok(())
    }

    /// The walk has gone on, or can.
    pub fn moved(&self) {
        let mut state = self.lock();
        state.has_moved = true;
        let is_awaited = state.is_awaited;
        drop(state);
        // Readers come by at every sample: nobody is woken who has no use for it.
        if is_awaited {
            self.told.notify_one();
        }
    }

    /// Whoever listens is to end. What was asked and not taken is dropped.
    pub fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        let asks = std::mem::take(&mut state.asks);
        drop(state);
        drop(asks);
        self.told.notify_one();
    }

    /// Blocks until there is something to do; nothing at the end. One thread listens. [`Job::Again`] is of interest where
    /// something waits for the walk, and comes before what is new.
    pub fn next(&self, something_waits: bool) -> Option<Job<T>> {
        let mut state = self.lock();
        loop {
            if state.has_ended {
                return None;
            }
            if something_waits && std::mem::take(&mut state.has_moved) {
                return Some(Job::Again);
            }
            if let Some(ask) = state.asks.pop_front() {
                return Some(Job::Ask(ask));
            }
            state.is_awaited = something_waits;
            state = self.told.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.is_awaited = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn what_moves_while_nobody_listens_is_heard_of() {
        let mailbox = Mailbox::new(2);
        mailbox.put(1).unwrap();
        assert_eq!(mailbox.next(false), Some(Job::Ask(1)));
        // While that is being looked at, and found not to be there yet, by now in vain:
        mailbox.moved();
        mailbox.put(2).unwrap();
        assert_eq!(mailbox.next(true), Some(Job::Again));
        // Nothing has moved since, so what is new comes next.
        assert_eq!(mailbox.next(true), Some(Job::Ask(2)));
    }

    #[test]
    fn a_full_mailbox_takes_no_ask_and_keeps_the_word() {
        let mailbox = Mailbox::new(2);
        (0..2).for_each(|ask| mailbox.put(ask).unwrap());
        assert_eq!(mailbox.put(2), Err(2));
        mailbox.moved();
        assert_eq!(mailbox.next(false), Some(Job::Ask(0)));
        assert_eq!(mailbox.next(true), Some(Job::Again));
        mailbox.end();
        assert_eq!(mailbox.put(3), Ok(()));
        assert_eq!(mailbox.next(true), None);
    }

    #[test]
    fn who_sleeps_is_woken_by_asks_by_movement_and_at_the_end() {
        let mailbox = Mailbox::new(1);
        let (sender, heard) = channel();
        let heard = std::thread::scope(|scope| {
            let mailbox = &mailbox;
            scope.spawn(move || {
                for something_waits in [false, true, true] {
                    sender.send(mailbox.next(something_waits)).unwrap();
                }
            });
            mailbox.put(1).unwrap();
            let first = heard.recv_timeout(PATIENCE);
            mailbox.moved();
            let second = heard.recv_timeout(PATIENCE);
            mailbox.end();
            [first, second, heard.recv_timeout(PATIENCE)]
        });
        assert_eq!(heard, [Ok(Some(Job::Ask(1))), Ok(Some(Job::Again)), Ok(None)]);
    }
}
