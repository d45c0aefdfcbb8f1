//! Whether a schedule is one: nothing is left out or done twice, no rank waits for ever, and memory stays within what the
//! schedule promises.

use super::schedule::{Action, ActionKind, Schedule, Shape};
use super::simulate::{Costs, simulate};
use gradus_error::{Error, Result};

/// How far a microbatch has come in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Progress {
    Waiting,
    Forward,
    InputGradient,
    Done,
}

impl Progress {
    /// After an action of `kind`; `None` where that may not follow.
    pub(super) fn after(self, kind: ActionKind) -> Option<Self> {
        match (self, kind) {
            (Self::Waiting, ActionKind::Forward) => Some(Self::Forward),
            (Self::Forward, ActionKind::BackwardInput) => Some(Self::InputGradient),
            (Self::Forward, ActionKind::Backward) | (Self::InputGradient, ActionKind::BackwardWeight) => {
                Some(Self::Done)
            }
            _ => None,
        }
    }

    /// Whether there is what `kind` leaves.
    pub(super) fn includes(self, kind: ActionKind) -> bool {
        match kind {
            ActionKind::Forward => self >= Self::Forward,
            ActionKind::BackwardInput => self >= Self::InputGradient,
            ActionKind::Backward | ActionKind::BackwardWeight => self == Self::Done,
        }
    }
}

/// Checks a schedule, and says for each rank of how many microbatches, counted for each chunk, it holds activations at
/// once at most.
///
/// # Errors
/// `Internal`, naming rank and action, where a pass is missing, superfluous or too early, where ranks wait for each
/// other for ever, and where more is in flight than promised.
pub fn check(schedule: &Schedule) -> Result<Vec<usize>> {
    let Schedule { shape, most_in_flight, actions } = schedule;
    if actions.len() != shape.ranks || most_in_flight.len() != shape.ranks {
        return Err(Error::internal(format!("a schedule of {} ranks has as many lists", shape.ranks)));
    }
    let lanes = actions.iter().enumerate();
    let peaks = lanes.map(|(rank, lane)| check_lane(*shape, rank, lane)).collect::<Result<Vec<_>>>()?;
    simulate(schedule, &Costs::unit(*shape))?;
    match (0..shape.ranks).find(|rank| peaks[*rank] > most_in_flight[*rank]) {
        Some(rank) => Err(Error::internal(format!(
            "rank {rank} holds {} microbatches at once, more than the {} promised",
            peaks[rank], most_in_flight[rank]
        ))),
        None => Ok(peaks),
    }
}

/// Follows the microbatches through one rank; returns how many are in flight at most.
fn check_lane(shape: Shape, rank: usize, lane: &[Action]) -> Result<usize> {
    let mut progress = vec![Progress::Waiting; shape.chunks_per_rank * shape.microbatches];
    let (mut in_flight, mut peak) = (0, 0);
    for action in lane {
        let Action { kind, microbatch, chunk } = *action;
        let known = microbatch < shape.microbatches && chunk < shape.chunks_per_rank;
        let entry = known.then(|| &mut progress[chunk * shape.microbatches + microbatch]);
        let refused = || Error::internal(format!("rank {rank}: {action} may not stand where it stands"));
        let entry = entry.ok_or_else(refused)?;
        *entry = entry.after(kind).ok_or_else(refused)?;
        // A microbatch that was never begun cannot end, so the count does not fall below zero.
        in_flight = in_flight + usize::from(kind == ActionKind::Forward) - usize::from(kind.ends());
        peak = peak.max(in_flight);
    }
    match progress.iter().position(|progress| *progress != Progress::Done) {
        Some(index) => Err(Error::internal(format!(
            "rank {rank}: microbatch {} never ends in chunk {}",
            index % shape.microbatches,
            index / shape.microbatches
        ))),
        None => Ok(peak),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn schedule() -> Schedule {
        let shape = Shape { ranks: 3, chunks_per_rank: 1, microbatches: 5 };
        Kind::ZeroBubble.generate(shape).unwrap()
    }

    fn refused(spoil: impl FnOnce(&mut Schedule)) -> String {
        let mut schedule = schedule();
        spoil(&mut schedule);
        check(&schedule).unwrap_err().to_string()
    }

    #[test]
    fn a_pass_too_many_too_few_or_out_of_place_is_found() {
        let forward = Action::new(ActionKind::Forward, 4, 0);
        assert!(refused(|schedule| schedule.actions[1].push(forward)).contains("may not stand"));
        assert!(refused(|schedule| schedule.actions[1].truncate(14)).contains("microbatch 4 never ends"));
        assert!(refused(|schedule| schedule.actions.truncate(2)).contains("as many lists"));
        assert!(refused(|schedule| schedule.actions[0].swap(0, 3)).contains("rank 0: backward"));
        assert!(refused(|schedule| schedule.actions[2][0].kind = ActionKind::Backward).contains("rank 2"));
        assert!(refused(|schedule| schedule.actions[2][0].microbatch = 5).contains("microbatch 5"));
        assert!(refused(|schedule| schedule.actions[2][0].chunk = 1).contains("chunk 1"));
        let weights_first = |schedule: &mut Schedule| {
            let of = |kind| move |action: &Action| *action == Action::new(kind, 0, 0);
            let lane = &mut schedule.actions[0];
            let input = lane.iter().position(of(ActionKind::BackwardInput)).unwrap();
            let weights = lane.iter().position(of(ActionKind::BackwardWeight)).unwrap();
            lane.swap(input, weights);
        };
        assert!(refused(weights_first).contains("backward (weights) of microbatch 0"));
    }

    #[test]
    fn ranks_that_wait_for_each_other_are_found() {
        // The first rank wants the gradient of microbatch 0 before it hands on microbatch 1, the second the other way round.
        let shape = Shape { ranks: 2, chunks_per_rank: 1, microbatches: 2 };
        let [first, second] = [1, 2].map(|ahead| {
            let pass = |kind| move |microbatch| Action::new(kind, microbatch, 0);
            let mut lane: Vec<_> = (0..ahead).map(pass(ActionKind::Forward)).collect();
            lane.push(pass(ActionKind::Backward)(0));
            lane.extend((ahead..2).map(pass(ActionKind::Forward)));
            lane.push(pass(ActionKind::Backward)(1));
            lane
        });
        let schedule = Schedule { shape, most_in_flight: vec![2, 2], actions: vec![first, second] };
        let error = check(&schedule).unwrap_err();
        assert!(error.to_string().contains("waits for ever"), "{error}");
    }

    #[test]
    fn more_in_flight_than_promised_is_found() {
        assert_eq!(check(&schedule()).unwrap(), [3, 3, 3]);
        assert!(refused(|schedule| schedule.most_in_flight[1] = 2).contains("rank 1 holds 3 microbatches"));
    }
}
