//! Guests: those who ask this node.

use super::Keeper;
use crate::peers::guest::Guest;
use crate::peers::protocol::{self, Hello, Welcome};
use crate::peers::{Answer, Asked, PeerCounters};
use gradus_error::Result;
use gradus_fabric::service::{self, Arrival};
use gradus_host::Clock;
use std::sync::Arc;

/// Guests at a time; beyond that callers are sent away.
const MOST_GUESTS: usize = 4096;

impl Keeper {
    pub(super) fn let_in(&mut self, arrival: Arrival) {
        let Arrival { mut connection, said } = arrival;
        let Ok(hello) = service::understand::<Hello>(&said) else { return };
        let crowded = (self.guests.len() >= MOST_GUESTS).then(|| "it serves too many others".to_owned());
        if let Some(reason) = hello.objection(&self.hello).or(crowded) {
            tracing::warn!("node {:.64} is not served: {reason}", hello.node);
            // Whom it does not reach sees the end.
            let _ = connection.say(&Welcome::Refused { reason });
            return;
        }
        if connection.say(&Welcome::Come { node: self.hello.node.clone() }).is_err() {
            return;
        }
        // One that calls again has lost its connection, whether that shows here or not.
        self.guests.retain(|_, guest| guest.node != hello.node);
        let guest = self.number();
        self.guests.insert(guest, Guest::new(hello.node, connection, self.clock.now()));
    }

    pub(super) fn attend_guest(&mut self, number: u64) {
        if let Err(error) = self.try_attend_guest(number)
            && let Some(guest) = self.guests.remove(&number)
        {
            tracing::debug!("node {} asks no more: {error}", guest.node);
        }
    }

    fn try_attend_guest(&mut self, number: u64) -> Result<()> {
        let now = self.clock.now();
        let Some(guest) = self.guests.get_mut(&number) else { return Ok(()) };
        let asks = guest.receive(self.settings.unsent_bytes, now)?;
        let sent = guest.send(now);
        let node = guest.node.clone();
        for ask in asks {
            let protocol::Ask { id, key, length, position, .. } = ask;
            let inbox = Arc::clone(&self.inbox);
            let answer = Answer { inbox, guest: number, id, length, given: false };
            self.serve.serve(Asked { key, length, position }, answer);
        }
        for bytes in sent? {
            self.count(&node, PeerCounters::served(bytes));
        }
        Ok(())
    }

    pub(super) fn send_away_the_stuck(&mut self) {
        let (now, limit) = (self.clock.now(), self.settings.most_patience);
        self.guests.retain(|_, guest| guest.deadline(limit).is_none_or(|deadline| now < deadline));
    }
}
