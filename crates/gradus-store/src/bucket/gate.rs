//! The throttle's shell: requests wait for their turn, in the order in which they came.

use super::throttle::{Ended, Pass, Throttle};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Lets as many requests through as the throttle allows.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    throttle: Throttle,
    waiting: VecDeque<oneshot::Sender<Permit>>,
}

/// The right to send one request; ends with it.
#[derive(Debug)]
pub(super) struct Permit {
    pass: Option<Pass>,
    gate: Gate,
}

impl Gate {
    pub(super) fn new(most: usize) -> Self {
        let state = State { throttle: Throttle::new(most), waiting: VecDeque::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for a turn.
    pub(super) async fn enter(&self) -> Permit {
        loop {
            let receiver = {
                let mut state = self.lock();
                if state.waiting.is_empty()
                    && let Some(pass) = state.throttle.begin()
                {
                    return Permit { pass: Some(pass), gate: self.clone() };
                }
                let (sender, receiver) = oneshot::channel();
                state.waiting.push_back(sender);
                receiver
            };
            // A sender is dropped without a word only if the state is: then there is a new turn to wait for.
            if let Ok(permit) = receiver.await {
                return permit;
            }
        }
    }

    /// Under way, allowed now, lowest that was allowed.
    pub(super) fn figures(&self) -> (usize, usize, usize) {
        let state = self.lock();
        (state.throttle.under_way(), state.throttle.limit(), state.throttle.lowest())
    }

    fn end(&self, pass: Pass, how: Ended) {
        let mut state = self.lock();
        state.throttle.end(pass, how);
        let mut admitted = Vec::new();
        while !state.waiting.is_empty() {
            let Some(pass) = state.throttle.begin() else { break };
            let Some(waiting) = state.waiting.pop_front() else { break };
            admitted.push((waiting, Permit { pass: Some(pass), gate: self.clone() }));
        }
        drop(state);
        // Who no longer waits gives its permit back by dropping it, which takes the lock again.
        admitted.into_iter().for_each(|(waiting, permit)| drop(waiting.send(permit)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Ends the request and says how it went.
    pub(super) fn end(mut self, how: Ended) {
        if let Some(pass) = self.pass.take() {
            self.gate.end(pass, how);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.gate.end(pass, Ended::Neither);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn enter(gate: &Gate) -> Permit {
        match poll(&mut Box::pin(gate.enter())) {
            Poll::Ready(permit) => permit,
            Poll::Pending => panic!("there is no room"),
        }
    }

    #[test]
    fn who_waits_gets_the_next_turn_and_who_leaves_passes_it_on() {
        let gate = Gate::new(1);
        let first = enter(&gate);
        let mut leaves = Box::pin(gate.enter());
        let mut stays = Box::pin(gate.enter());
        assert!(poll(&mut leaves).is_pending() && poll(&mut stays).is_pending());
        drop(leaves);
        first.end(Ended::Good);
        assert!(poll(&mut stays).is_ready());
    }

    #[test]
    fn a_turn_that_was_given_and_not_taken_is_given_on() {
        let gate = Gate::new(1);
        let first = enter(&gate);
        let mut leaves = Box::pin(gate.enter());
        let mut stays = Box::pin(gate.enter());
        assert!(poll(&mut leaves).is_pending() && poll(&mut stays).is_pending());
        first.end(Ended::Good);
        drop(leaves);
        assert!(poll(&mut stays).is_ready());
        drop(stays);
        assert_eq!(gate.figures(), (0, 1, 1));
    }

    #[test]
    fn a_refusal_closes_it_further() {
        let gate = Gate::new(4);
        let (first, second) = (enter(&gate), enter(&gate));
        first.end(Ended::Throttled);
        drop(second);
        assert_eq!(gate.figures(), (0, 2, 2));
    }
}
