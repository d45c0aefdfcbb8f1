//! What membership says, brought to the transport of the epoch that it is about, at once and from another thread.

use super::FENCED;
use crate::alarm::Alarm;
use crate::membership::{Epoch, Identity, MemberNote};
use gradus_error::{Error, Kind, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// See the module.
#[derive(Default)]
pub(super) struct Watch(Mutex<State>);

#[derive(Default)]
struct State {
    /// The newest epoch that was formed.
    formed: Epoch,
    /// The newest that is over.
    over: Epoch,
    /// The newest that is broken, and who was lost in it, by the table's ranks.
    broken: Option<(Epoch, Vec<(usize, Identity)>)>,
    /// Why there will be no epoch any more.
    end: Option<(Kind, String)>,
    world: World,
}

/// The world that was handed out last, or is being connected.
#[derive(Default)]
struct World {
    epoch: Epoch,
    /// Its ranks, by those of the table.
    ranks: Vec<usize>,
    alarm: Weak<Alarm>,
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what has come to pass.
    pub(super) fn note(&self, note: &MemberNote) {
        let mut state = self.state();
        match note {
            MemberNote::Formed { table, .. } => state.formed = state.formed.max(table.epoch),
            MemberNote::Broken { epoch, lost, left, .. } => {
                state.over = state.over.max(*epoch);
                // Who has left in good order is missed only by those who need something from it.
                if !lost.is_empty() || left.is_empty() {
                    state.broken = Some((*epoch, lost.clone()));
                }
            }
            MemberNote::Fenced => {
                let message = format!("the group goes on without this process, {FENCED}");
                state.end = Some((Kind::Fenced, message));
            }
            MemberNote::Refused { message } => state.end = Some((Kind::Invalid, message.clone())),
            MemberNote::Active { .. } | MemberNote::Isolated | MemberNote::Heard => {}
        }
        state.raise();
    }

    /// An alarm for the world of `epoch`, which is raised when membership finds it broken, or has already; `ranks` are the
    /// world's, by those of the table.
    ///
    /// # Errors
    /// The system's failure to make one.
    pub(super) fn alarm(&self, epoch: Epoch, ranks: Vec<usize>) -> Result<Arc<Alarm>> {
        let alarm = Arc::new(Alarm::new()?);
        let mut state = self.state();
        state.world = World { epoch, ranks, alarm: Arc::downgrade(&alarm) };
        state.raise();
        Ok(alarm)
    }

    /// The epoch whose transport is still held, if one is.
    pub(super) fn held(&self) -> Option<Epoch> {
        let state = self.state();
        (state.world.alarm.strong_count() > 0).then_some(state.world.epoch)
    }

    /// Whether the world of `epoch` is not the newest thing that membership knows of.
    pub(super) fn is_outdated(&self, epoch: Epoch) -> bool {
        let state = self.state();
        state.formed > epoch || state.over >= epoch || state.end.is_some()
    }
}

impl State {
    fn raise(&self) {
        if let (Some(alarm), Some(reason)) = (self.world.alarm.upgrade(), self.reason()) {
            alarm.raise(&reason);
        }
    }

    /// Why the world is of no more use, if it is not.
    fn reason(&self) -> Option<Error> {
        if let Some((kind, message)) = &self.end {
            return Some(Error::new(kind.clone(), message.clone()));
        }
        let (epoch, lost) = self.broken.as_ref().filter(|(epoch, _)| *epoch >= self.world.epoch)?;
        if lost.is_empty() {
            let message =
                format!("epoch {epoch} was given up: one of its ranks could not go on with another");
            return Some(Error::closed(message));
        }
        // An epoch that was never connected numbers its ranks by itself.
        let ours = *epoch == self.world.epoch;
        let rank = |place: &usize| match self.world.ranks.get(*place) {
            Some(rank) if ours => *rank,
            _ => *place,
        };
        let names: Vec<String> = lost
            .iter()
            .map(|(place, member)| format!("rank {} on {} ({})", rank(place), member.host, member.name))
            .collect();
        let verb = if names.len() == 1 { "is" } else { "are" };
        let (first, _) = lost.first()?;
        let message = format!("{} {verb} lost in epoch {epoch}: dead, stopped or cut off", names.join(", "));
        Some(Error::peer_lost(rank(first), message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Table;

    fn member(name: &str) -> Identity {
        Identity { name: name.into(), incarnation: 1, host: format!("host-of-{name}"), address: "a".into() }
    }

    fn broken(epoch: u64, lost: &[(usize, &str)], left: &[(usize, &str)]) -> MemberNote {
        let named =
            |ranks: &[(usize, &str)]| ranks.iter().map(|(rank, name)| (*rank, member(name))).collect();
        MemberNote::Broken { term: 1, epoch: Epoch(epoch), lost: named(lost), left: named(left) }
    }

    /// The alarm of epoch 5, whose world turns the table's ranks 0, 1, 2 round.
    fn watch() -> (Watch, Arc<Alarm>) {
        let watch = Watch::default();
        let alarm = watch.alarm(Epoch(5), vec![2, 1, 0]).unwrap();
        (watch, alarm)
    }

    #[test]
    fn the_lost_are_named_as_the_world_numbers_them() {
        let (watch, alarm) = watch();
        assert!(!watch.is_outdated(Epoch(5)));
        watch.note(&broken(5, &[(0, "x"), (1, "y")], &[]));
        let error = alarm.check().unwrap_err();
        assert_eq!(*error.kind(), Kind::PeerLost { rank: 2 });
        let text = error.to_string();
        assert!(text.contains("rank 2 on host-of-x") && text.contains("rank 1 on host-of-y"), "{text}");
        assert!(watch.is_outdated(Epoch(5)));
    }

    #[test]
    fn what_broke_before_a_world_was_connected_is_raised_at_once_and_older_news_never() {
        let watch = Watch::default();
        watch.note(&broken(4, &[(0, "x")], &[]));
        watch.alarm(Epoch(5), vec![0, 1]).unwrap().check().unwrap();
        watch.note(&broken(6, &[(1, "x")], &[]));
        let error = watch.alarm(Epoch(6), vec![0, 1]).unwrap().check().unwrap_err();
        assert_eq!(*error.kind(), Kind::PeerLost { rank: 1 });
    }

    #[test]
    fn who_leaves_in_good_order_raises_nothing_and_is_news() {
        let (watch, alarm) = watch();
        watch.note(&broken(5, &[], &[(1, "y")]));
        alarm.check().unwrap();
        assert!(watch.is_outdated(Epoch(5)));
        watch.note(&broken(5, &[(0, "x")], &[]));
        assert_eq!(*alarm.check().unwrap_err().kind(), Kind::PeerLost { rank: 2 });
    }

    #[test]
    fn an_epoch_that_was_given_up_and_one_that_fenced_us_end_all_waiting() {
        let (one, given_up) = watch();
        one.note(&broken(5, &[], &[]));
        assert_eq!(*given_up.check().unwrap_err().kind(), Kind::Closed);
        let (other, fenced) = watch();
        other.note(&MemberNote::Fenced);
        assert_eq!(*fenced.check().unwrap_err().kind(), Kind::Fenced);
        assert_eq!(*other.alarm(Epoch(9), vec![]).unwrap().check().unwrap_err().kind(), Kind::Fenced);
    }

    #[test]
    fn newcomers_are_news_and_no_alarm_and_a_transport_is_held_until_it_is_dropped() {
        let (watch, alarm) = watch();
        let table = Table { epoch: Epoch(6), members: vec![member("x")] };
        watch.note(&MemberNote::Formed { term: 1, table });
        alarm.check().unwrap();
        assert!(watch.is_outdated(Epoch(5)) && watch.held() == Some(Epoch(5)));
        drop(alarm);
        assert_eq!(watch.held(), None);
    }
}
