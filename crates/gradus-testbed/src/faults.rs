//! What goes wrong, and what was asked for.
//!
//! A request gets a number when it arrives; what befalls it is drawn from the seed and that number, so of the first
//! thousand requests the same ones fail in every run, whatever order they came in.

use crate::body::Ending;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 503 with the code that asks for fewer requests.
    SlowDown,
    /// 500.
    InternalError,
    /// 403: these credentials may not.
    AccessDenied,
    /// 400: the credentials were good once.
    ExpiredToken,
}

impl Refusal {
    /// Its status and code.
    pub(crate) fn words(self) -> (u16, &'static str) {
        match self {
            Self::SlowDown => (503, "SlowDown"),
            Self::InternalError => (500, "InternalError"),
            Self::AccessDenied => (403, "AccessDenied"),
            Self::ExpiredToken => (400, "ExpiredToken"),
        }
    }
}

/// What befalls requests.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Decides which requests meet which fault.
    pub seed: u64,
    /// The share of requests that is refused, 0 to 1.
    pub refused: f64,
    /// How they are refused.
    pub refusal: Refusal,
    /// This many requests from now on are refused, whatever the share says.
    pub refuse_next: u64,
    /// Time that passes before a request is answered.
    pub latency: Duration,
    /// Bytes a second of all bodies together.
    pub bandwidth: Option<u64>,
    /// The share of bodies during which the connection is cut.
    pub cut: f64,
    /// The share of bodies that end early in good order: the message is whole, and shorter than its range says.
    pub truncated: f64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            refused: 0.0,
            refusal: Refusal::SlowDown,
            refuse_next: 0,
            latency: Duration::ZERO,
            bandwidth: None,
            cut: 0.0,
            truncated: 0.0,
        }
    }
}

/// What was asked for so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// All requests.
    pub requests: u64,
    /// Requests by method and target: `("GET", "bucket/key")`; listings name the bucket alone.
    pub by_target: BTreeMap<(String, String), u64>,
    /// Bytes of bodies that were sent, by target.
    pub bytes_by_target: BTreeMap<String, u64>,
    /// Most requests that were being answered at one time.
    pub most_in_flight: u64,
    /// Requests that were refused here.
    pub refused: u64,
    /// Bodies that were cut or truncated here.
    pub broken: u64,
}

impl Counts {
    /// Requests of a method.
    pub fn of(&self, method: &str) -> u64 {
        self.by_target.iter().filter(|((name, _), _)| name == method).map(|(_, count)| count).sum()
    }

    /// Requests of a method for one target.
    pub fn of_target(&self, method: &str, target: &str) -> u64 {
        self.by_target.get(&(method.to_owned(), target.to_owned())).copied().unwrap_or(0)
    }

    /// Bytes of all bodies.
    pub fn bytes(&self) -> u64 {
        self.bytes_by_target.values().sum()
    }
}

#[derive(Debug, Default)]
struct State {
    plan: Plan,
    counts: Counts,
    /// Requests that ever came: their numbers go on when counts begin anew.
    arrived: u64,
    in_flight: u64,
    /// When the next byte may pass, where a bandwidth is set.
    free: Option<Instant>,
}

/// The handle on what stands before a server; clones control the same.
#[derive(Debug, Clone)]
pub struct Faults {
    state: Arc<(Mutex<State>, Condvar)>,
    /// Requests of this number and later ones wait.
    held: watch::Sender<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { state: Arc::default(), held: watch::Sender::new(u64::MAX) }
    }
}

impl Faults {
    /// Changes what befalls requests from now on; bodies that are under way take on a new bandwidth.
    pub fn set(&self, change: impl FnOnce(&mut Plan)) {
        let mut state = self.lock();
        change(&mut state.plan);
        state.free = None;
    }

    /// Lets requests arrive and be counted, but answers none until [`Faults::release`].
    pub fn hold(&self) {
        self.held.send_replace(0);
    }

    /// Answers `count` more requests, and holds those that come after them.
    pub fn hold_after(&self, count: u64) {
        let arrived = self.lock().arrived;
        self.held.send_replace(arrived + count);
    }

    /// Answers what was held.
    pub fn release(&self) {
        self.held.send_replace(u64::MAX);
    }

    /// Blocks until `count` requests are in flight.
    ///
    /// # Panics
    /// If they are not after a minute.
    pub fn wait_for_in_flight(&self, count: u64) {
        self.wait_while(|state| state.in_flight < count);
    }

    /// Blocks until `count` requests have come since the counts began.
    ///
    /// # Panics
    /// If they have not after a minute.
    pub fn wait_for_requests(&self, count: u64) {
        self.wait_while(|state| state.counts.requests < count);
    }

    fn wait_while(&self, mut missing: impl FnMut(&State) -> bool) {
        let (state, arrived) = &*self.state;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, waited) = arrived
            .wait_timeout_while(state, Duration::from_secs(60), |state| missing(state))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "what was waited for did not come in a minute: {state:?}");
    }

    /// What was asked for so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Counts from nothing again. Requests in flight stay in flight.
    pub fn reset_counts(&self) {
        let mut state = self.lock();
        state.counts = Counts { most_in_flight: state.in_flight, ..Counts::default() };
    }

    /// The bandwidth that is set.
    pub(crate) fn bandwidth(&self) -> Option<u64> {
        self.lock().plan.bandwidth
    }

    /// When `bytes` more have passed, where a bandwidth is set.
    pub(crate) fn pace(&self, bytes: u64) -> Option<Instant> {
        let mut state = self.lock();
        let bandwidth = state.plan.bandwidth?.max(1);
        let now = Instant::now();
        let start = state.free.map_or(now, |free| free.max(now));
        let end = start + Duration::from_secs_f64(bytes as f64 / bandwidth as f64);
        state.free = Some(end);
        Some(end)
    }

    /// Counts a request that has arrived.
    pub(crate) fn arrive(&self, method: &str, target: &str) -> (Ticket, Fate) {
        let mut state = self.lock();
        let number = state.arrived;
        let refusal = if state.plan.refuse_next > 0 {
            state.plan.refuse_next -= 1;
            Some(state.plan.refusal)
        } else {
            (draw(state.plan.seed, number, 0) < state.plan.refused).then_some(state.plan.refusal)
        };
        state.counts.requests += 1;
        state.arrived += 1;
        state.counts.refused += u64::from(refusal.is_some());
        *state.counts.by_target.entry((method.to_owned(), target.to_owned())).or_default() += 1;
        state.in_flight += 1;
        state.counts.most_in_flight = state.counts.most_in_flight.max(state.in_flight);
        let fate = Fate { number, refusal, latency: state.plan.latency };
        drop(state);
        self.state.1.notify_all();
        (Ticket { faults: self.clone(), target: target.to_owned() }, fate)
    }

    /// How a body of `bytes` ends, that answers the request numbered `number`.
    pub(crate) fn ending(&self, number: u64, bytes: u64) -> Ending {
        let mut state = self.lock();
        let plan = &state.plan;
        let middle = (draw(plan.seed, number, 2) * bytes as f64) as u64;
        let kind = draw(plan.seed, number, 1);
        let ending = match kind {
            _ if bytes == 0 => Ending::Whole,
            kind if kind < plan.cut => Ending::Cut(middle),
            kind if kind < plan.cut + plan.truncated => Ending::Short(middle),
            _ => Ending::Whole,
        };
        state.counts.broken += u64::from(ending != Ending::Whole);
        ending
    }

    /// Waits while the request of this number is held.
    pub(crate) async fn held(&self, number: u64) {
        // The sender is this handle's own, so it is there.
        let _ = self.held.subscribe().wait_for(|first| number < *first).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What befalls one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fate {
    pub(crate) number: u64,
    pub(crate) refusal: Option<Refusal>,
    pub(crate) latency: Duration,
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    faults: Faults,
    target: String,
}

impl Ticket {
    /// Counts bytes of the answer.
    pub(crate) fn passed(&self, bytes: u64) {
        let mut state = self.faults.lock();
        match state.counts.bytes_by_target.get_mut(&self.target) {
            Some(count) => *count += bytes,
            None => {
                state.counts.bytes_by_target.insert(self.target.clone(), bytes);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.faults.lock().in_flight -= 1;
    }
}

/// Uniform in [0, 1): the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over seed, number and purpose.
fn draw(seed: u64, number: u64, purpose: u64) -> f64 {
    let mut word = seed
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(number.wrapping_mul(0xD1B5_4A32_D192_ED03))
        .wrapping_add(purpose.wrapping_mul(0x8CB9_2BA7_2F3D_8DD7));
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((word ^ (word >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_requests_fail_for_the_same_seed() {
        let failing = |seed| {
            let faults = Faults::default();
            faults.set(|plan| (plan.seed, plan.refused) = (seed, 0.3));
            (0..1000).map(|_| faults.arrive("GET", "b/k").1.refusal.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(failing(1), failing(1));
        assert_ne!(failing(1), failing(2));
        let share = failing(1).iter().filter(|failed| **failed).count();
        // Five standard deviations of a thousand draws at 0.3: 5 * sqrt(1000 * 0.3 * 0.7) = 73.
        assert!((227..=373).contains(&share), "{share}");
    }

    #[test]
    fn what_is_in_flight_is_counted_until_it_is_dropped() {
        let faults = Faults::default();
        let (first, _) = faults.arrive("GET", "b/k");
        let (second, _) = faults.arrive("GET", "b/k");
        first.passed(10);
        drop(first);
        drop(second);
        let (third, _) = faults.arrive("HEAD", "b/k");
        let counts = faults.counts();
        assert_eq!((counts.most_in_flight, counts.of("GET"), counts.bytes()), (2, 2, 10));
        drop(third);
    }
}
