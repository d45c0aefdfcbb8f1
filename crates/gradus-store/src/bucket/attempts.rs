//! The sendings of one operation on a bucket: through the gate, with credentials that are good, again as the budget allows.

use super::failure::{Deed, Failure, Then};
use super::gate::Permit;
use super::remote::Remote;
use super::retry::Retry;
use super::throttle::Ended;
use gradus_error::Result;
use gradus_host::clock::Clock;
use std::sync::PoisonError;
use std::time::Duration;

/// The sendings of one operation.
pub(super) struct Attempts<'a> {
    remote: &'a Remote,
    verb: &'static str,
    address: &'a str,
    pub(super) retry: Retry,
    renewed: bool,
}

impl Attempts<'_> {
    /// Sends a request until it is answered, will never be, or its budget is spent.
    pub(super) async fn sent<T, F>(&mut self, request: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        loop {
            let permit = self.begin().await.map_err(Failure::end)?;
            match request().await {
                Ok(answer) => {
                    permit.end(Ended::Good);
                    return Ok(answer);
                }
                Err(error) => {
                    let failure = self.failed(error);
                    self.again(failure, permit).await?;
                }
            }
        }
    }

    /// Judges a failure of `object_store`.
    pub(super) fn failed(&self, error: object_store::Error) -> Failure {
        let who = self.remote.credentials.who();
        let deed = Deed {
            verb: self.verb,
            address: self.address,
            bucket: &self.remote.bucket,
            who: &who,
            endpoint: &self.remote.endpoint,
        };
        deed.failed(error)
    }

    /// Waits for a turn, with credentials that are good.
    pub(super) async fn begin(&mut self) -> Result<Permit> {
        let queued = self.remote.clock.now();
        let permit = self.remote.gate.enter().await;
        // A queue is no failure of the store's.
        self.retry.leave_out(self.remote.clock.now().saturating_sub(queued));
        self.remote
            .credentials
            .ready()
            .await
            .map_err(|error| error.within(format!("cannot {} {}", self.verb, self.address)))?;
        Ok(permit)
    }

    /// After a failed sending: waits until it is to be sent again, or gives the failure back.
    pub(super) async fn again(&mut self, failure: Failure, permit: Permit) -> Result<(), Failure> {
        let remote = self.remote;
        permit.end(if failure.then == Then::Fewer { Ended::Throttled } else { Ended::Neither });
        match failure.then {
            Then::Fewer => remote.tally.was_throttled(),
            Then::Again => {}
            Then::Renew if !self.renewed => {
                self.renewed = true;
                remote.credentials.forget();
            }
            _ => return Err(failure),
        }
        let now = remote.clock.now();
        let draw = remote.draws.lock().unwrap_or_else(PoisonError::into_inner).next_f64();
        let Some(pause) = self.retry.failed(now, draw) else {
            let (failures, elapsed) = (self.retry.failures(), self.retry.elapsed(now));
            let error = failure.error.within(format!("given up after {failures} attempts in {elapsed:.1?}"));
            return Err(Failure { error, then: Then::End });
        };
        remote.tally.retried();
        remote.tell_of(&failure, now);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Remote {
    /// Says now and then that requests fail, which readers notice as mere slowness.
    fn tell_of(&self, failure: &Failure, now: Duration) {
        let throttled = failure.then == Then::Fewer;
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notice) = trouble.met(throttled, now) {
            tracing::warn!("{} {notice}; they are sent again: {}", self.endpoint, failure.error);
        }
    }

    /// The sendings of an operation that begins now.
    pub(super) fn attempts<'a>(&'a self, verb: &'static str, address: &'a str) -> Attempts<'a> {
        let retry = Retry::new(self.budget, self.clock.now());
        Attempts { remote: self, verb, address, retry, renewed: false }
    }
}
