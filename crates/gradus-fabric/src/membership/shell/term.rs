//! A term of office: one loop that carries events in and actions out, for as long as the right to coordinate lasts.

use super::super::coordinator::{Coordinator, CoordinatorNote};
use super::attentive_clock::AttentiveClock;
use super::hall::{Hall, Word};
use super::office::Office;
use gradus_error::{Error, Kind, Result};
use gradus_host::machine::{Action, ActionOf, Event, EventOf, Machine, Peer};
use gradus_host::{Clock, RealClock};
use std::os::fd::AsFd;
use std::time::Duration;

/// Messages that one connection may say before the others have their turn.
const ONE_TURN: usize = 64;

/// A coordinator in office.
pub(super) struct Term<'a, O, C = RealClock> {
    machine: Coordinator,
    office: Office,
    hall: &'a mut Hall,
    clock: C,
    /// The machine's time.
    attention: AttentiveClock<C>,
    observe: &'a mut O,
}

impl<'a, O: FnMut(&CoordinatorNote), C: Clock + Clone> Term<'a, O, C> {
    pub(super) fn new(
        machine: Coordinator,
        office: Office,
        hall: &'a mut Hall,
        clock: C,
        observe: &'a mut O,
    ) -> Self {
        let attention = AttentiveClock::new(clock.clone(), machine.timeouts().heartbeat);
        Self { machine, office, hall, clock, attention, observe }
    }

    /// Serves until `stop` is readable or the right is lost.
    ///
    /// # Errors
    /// `Fenced` when another may coordinate; or the failure to wait or to store.
    pub(super) fn run(mut self, stop: &impl AsFd) -> Result<()> {
        self.tell(Event::Wake)?;
        while let Some(speakers) = self.wait(stop)? {
            for (peer, message) in self.hall.arrivals() {
                self.tell(Event::Message { from: peer, message })?;
            }
            for peer in speakers {
                self.hear(peer)?;
            }
            self.check_office()?;
            if self.machine.deadline().is_some_and(|deadline| self.attention.now() >= deadline) {
                self.tell(Event::Wake)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, stop: &impl AsFd) -> Result<Option<Vec<Peer>>> {
        let deadline = self.deadline();
        let speakers = self.hall.wait(stop, deadline)?;
        self.attention.has_waited_for(deadline.unwrap_or(Duration::MAX));
        Ok(speakers)
    }

    /// When there is something to do, or to find out, though nobody speaks.
    fn deadline(&self) -> Option<Duration> {
        let machine = self.machine.deadline().map(|deadline| self.attention.to_real(deadline));
        machine.into_iter().chain(self.office.until()).min()
    }

    /// Takes in what a member has said, and its end.
    fn hear(&mut self, peer: Peer) -> Result<()> {
        for _ in 0..ONE_TURN {
            match self.hall.next(peer) {
                Word::Nothing => return Ok(()),
                Word::Said(message) => self.tell(Event::Message { from: peer, message })?,
                Word::Gone => return self.tell(Event::Closed { peer }),
            }
        }
        Ok(())
    }

    /// Lets the machine take one step and does what it asks for.
    ///
    /// The right is looked at once the event is in our hands: a sign of life that is answered was given before anybody else
    /// could lead, so however late the answer goes out, the lease that it gives ends before a successor lets others act.
    fn tell(&mut self, event: EventOf<Coordinator>) -> Result<()> {
        self.check_office()?;
        for action in self.machine.step(event, self.attention.now()) {
            self.carry_out(action)?;
        }
        match self.machine.is_superseded() {
            true => Err(self.office.superseded()),
            false => Ok(()),
        }
    }

    fn check_office(&self) -> Result<()> {
        match self.office.until() {
            Some(until) if self.clock.now() >= until => {
                Err(Error::new(Kind::Fenced, "the lease of the right to coordinate is over"))
            }
            _ => Ok(()),
        }
    }

    fn carry_out(&mut self, action: ActionOf<Coordinator>) -> Result<()> {
        match action {
            Action::Send { to, message } => self.hall.send(to, &message),
            Action::Persist(bytes) => return self.store(&bytes),
            Action::Note(note) => (self.observe)(&note),
        }
        Ok(())
    }

    /// Who could not be heard while a disk or etcd took its time is not to blame for that.
    fn store(&mut self, bytes: &[u8]) -> Result<()> {
        let before = self.clock.now();
        let stored = self.office.replace(bytes);
        self.attention.has_waited_for(before);
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::timeouts::Timeouts;
    use super::super::door::{self, trust};
    use super::*;
    use crate::secret::Secret;
    use gradus_host::simulation::SimulatedClock;
    use std::net::TcpListener;

    #[test]
    fn time_in_which_it_stores_does_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let door = door::open(listener, trust(Secret::default(), None, 0)).unwrap();
        let mut hall = Hall::new(door, Duration::MAX, RealClock::new());
        let clock = SimulatedClock::new();
        let machine = Coordinator::open(None, Timeouts::from(Duration::from_secs(1)).unwrap()).unwrap();
        let office = Office::Slow(clock.clone(), Duration::from_secs(1000));
        let mut observe = |_: &CoordinatorNote| {};
        let mut term = Term::new(machine, office, &mut hall, clock.clone(), &mut observe);
        term.tell(Event::Wake).unwrap();
        assert_eq!((clock.now().as_secs(), term.attention.now()), (1000, Duration::ZERO));
    }
}
