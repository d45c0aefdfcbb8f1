//! Where the time of a turn's steps went, on every rank; and how a pipeline's waiting compares with its plan.
//!
//! The plan takes what passes took in the very same steps for the costs of its stages, so what it is held against is the order
//! of the passes and what comes between them, not the pace of the machine.

use anyhow::Result;
use gradus_collective::Communicator;
use gradus_train::pipeline::{
    ActionKind, Costs, Kind, Shape, Sharing, StageCosts, Timeline, lower, rehearse,
};
use gradus_train::{Exposed, Learner, Mesh};
use serde_json::{Map, Value, json};

/// What a rank waits for.
const AXES: [&str; 5] = ["pp", "dp", "fsdp", "tp", "vote"];
/// Then comes the time of updates, and by chunk and kind passes and their seconds.
const UPDATE: usize = AXES.len();
const PASSES: usize = UPDATE + 1;
/// Of a chunk.
const NUMBERS: usize = 2 * ActionKind::ALL.len();

/// Every rank's numbers, one rank's after the other's; all ranks call it with as many.
///
/// # Errors
/// The communicator's.
pub(super) fn gather(ranks: &mut Communicator, own: &[f64]) -> Result<Vec<f64>> {
    let mut all = vec![0.0; own.len() * ranks.world_size()];
    all[ranks.rank() * own.len()..][..own.len()].copy_from_slice(own);
    ranks.all_reduce(&mut all)?;
    Ok(all)
}

/// One rank's account: seconds and counts, in the order said above, so that ranks can add them up.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Account(Vec<f64>);

impl Account {
    /// All that has come up so far.
    pub fn so_far(learner: &Learner) -> Self {
        let Exposed { pp, dp, fsdp, tp, vote } = learner.exposed();
        let computed = learner.computed().expect("the bench keeps account from the beginning");
        let mut numbers = vec![pp, dp, fsdp, tp, vote, computed.update_s];
        for chunk in 0..learner.pipeline().chunks_per_rank {
            for spent in ActionKind::ALL.map(|kind| computed.of(chunk, kind)) {
                numbers.extend([spent.passes as f64, spent.seconds]);
            }
        }
        Self(numbers)
    }

    /// What has come up since an earlier account.
    pub fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().zip(&earlier.0).map(|(now, then)| now - then).collect())
    }

    /// Every rank's, by rank; all ranks call it.
    ///
    /// # Errors
    /// The communicator's.
    pub fn of_all(&self, ranks: &mut Communicator) -> Result<Vec<Self>> {
        let all = gather(ranks, &self.0)?;
        Ok(all.chunks_exact(self.0.len()).map(|numbers| Self(numbers.to_vec())).collect())
    }

    /// Passes of a kind and their seconds.
    fn passes(&self, chunk: usize, kind: ActionKind) -> [f64; 2] {
        let first = PASSES + NUMBERS * chunk + 2 * kind as usize;
        [self.0[first], self.0[first + 1]]
    }

    /// Seconds in passes.
    fn computing_s(&self) -> f64 {
        self.0[PASSES..].chunks_exact(2).map(|spent| spent[1]).sum()
    }

    /// Seconds in which stages waited for each other: for messages, and, done before the others, in the vote.
    fn stages_waiting_s(&self) -> f64 {
        self.0[0] + self.0[AXES.len() - 1]
    }

    fn exposed(&self) -> Value {
        AXES.iter()
            .zip(&self.0)
            .map(|(axis, seconds)| ((*axis).to_owned(), json!(seconds)))
            .collect::<Map<_, _>>()
            .into()
    }

    fn as_json(&self) -> Value {
        json!({ "exposed_s": self.exposed(), "computing_s": self.computing_s(), "update_s": self.0[UPDATE] })
    }
}

/// The mean rank's exposed seconds by axis, and each rank's account.
pub(super) fn exposed(ranks: &[Account]) -> [(&'static str, Value); 2] {
    let mut mean = Account(vec![0.0; PASSES]);
    for rank in ranks {
        mean.0.iter_mut().zip(&rank.0).for_each(|(mean, own)| *mean += own / ranks.len() as f64);
    }
    [("exposed_by_axis_s", mean.exposed()), ("by_rank", ranks.iter().map(Account::as_json).collect())]
}

/// The part of the pipelines' time in which ranks waited.
fn measured_bubble(ranks: &[Account]) -> f64 {
    let sum = |of: fn(&Account) -> f64| ranks.iter().map(of).sum::<f64>();
    let (waiting, computing) = (sum(Account::stages_waiting_s), sum(Account::computing_s));
    waiting / (waiting + computing)
}

/// What a stage's passes took, in the mean of the ranks that have it. Transfers are waiting, if they show at all.
fn stage_costs(ranks: &[Account], mesh: &Mesh, shape: Shape, stage: usize) -> StageCosts {
    let has_it = |rank: &usize| mesh.coordinates(*rank).pp == shape.rank_of(stage);
    let mean = |kind| {
        let own = (0..ranks.len()).filter(has_it).map(|rank| ranks[rank].passes(shape.chunk_of(stage), kind));
        let [passes, seconds] = own.fold([0.0; 2], |sum, own| [sum[0] + own[0], sum[1] + own[1]]);
        if passes > 0.0 { seconds / passes } else { 0.0 }
    };
    StageCosts {
        forward: mean(ActionKind::Forward),
        // A schedule has backward passes in one piece or in two.
        backward_input: mean(ActionKind::Backward) + mean(ActionKind::BackwardInput),
        backward_weight: mean(ActionKind::BackwardWeight),
        transfer: 0.0,
    }
}

/// How one step is planned, with these costs.
fn plan(kind: Kind, shape: Shape, costs: &Costs) -> Result<Timeline> {
    let schedule = kind.generate(shape)?;
    Ok(rehearse(&schedule, &lower(&schedule, Sharing::Chunk)?, costs)?)
}

/// What was planned and what was measured of a pipeline; null where there is none.
///
/// # Errors
/// None but a defect's: the schedule has just been run.
pub(super) fn pipeline(ranks: &[Account], mesh: &Mesh, shape: Shape, kind: Kind) -> Result<Value> {
    if shape.ranks == 1 {
        return Ok(Value::Null);
    }
    let stages = (0..shape.stages()).map(|stage| stage_costs(ranks, mesh, shape, stage)).collect();
    let costs = Costs { stages };
    let timeline = plan(kind, shape, &costs)?;
    let stage = |costs: &StageCosts| {
        json!({ "forward_s": costs.forward, "backward_input_s": costs.backward_input,
                "backward_weight_s": costs.backward_weight })
    };
    Ok(json!({
        "schedule": kind.name(),
        "microbatches": shape.microbatches,
        "stages": costs.stages.iter().map(stage).collect::<Vec<_>>(),
        "planned_passes_s": timeline.makespan(),
        "planned_bubble": timeline.bubble(),
        "measured_bubble": measured_bubble(ranks),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: Mesh = Mesh { pp: 2, dp: 1, fsdp: 1, tp: 1 };
    const SHAPE: Shape = Shape { ranks: 2, chunks_per_rank: 1, microbatches: 8 };

    /// A rank of a step of eight microbatches: seconds of a forward and of a backward pass, and of waiting for messages and
    /// in the vote.
    fn rank(forward: f64, backward: f64, pp: f64, vote: f64) -> Account {
        let passes = [8.0, 8.0 * forward, 8.0, 8.0 * backward, 0.0, 0.0, 0.0, 0.0];
        Account([&[pp, 0.0, 0.0, 0.0, vote, 0.5][..], &passes].concat())
    }

    #[test]
    fn stages_that_wait_as_planned_have_the_planned_bubble() {
        // The second rank waits for a forward pass first, and for a backward pass when it is done.
        let ranks = [rank(1.0, 2.0, 3.0, 0.0), rank(1.0, 2.0, 1.0, 2.0)];
        let found = pipeline(&ranks, &MESH, SHAPE, Kind::OneForwardOneBackward).unwrap();
        let close =
            |key: &str, value: f64| assert!((found[key].as_f64().unwrap() - value).abs() < 1e-12, "{found}");
        close("planned_bubble", 1.0 / 9.0);
        close("measured_bubble", 1.0 / 9.0);
        close("planned_passes_s", 27.0);
    }

    #[test]
    fn uneven_stages_are_planned_as_they_are() {
        let ranks = [rank(1.0, 2.0, 0.0, 0.0), rank(2.0, 4.0, 0.0, 0.0)];
        let found = pipeline(&ranks, &MESH, SHAPE, Kind::GPipe).unwrap();
        assert_eq!([&found["stages"][0]["forward_s"], &found["stages"][1]["backward_input_s"]], [1.0, 4.0]);
        assert_eq!((&found["measured_bubble"], &found["planned_passes_s"]), (&json!(0.0), &json!(51.0)));
    }

    #[test]
    fn the_mean_rank_waits_by_axis() {
        let earlier = rank(0.0, 0.0, 1.0, 0.0);
        let ranks = [rank(1.0, 2.0, 3.0, 0.0), rank(1.0, 2.0, 2.0, 4.0)].map(|rank| rank.since(&earlier));
        let [(_, mean), (_, by_rank)] = exposed(&ranks);
        assert_eq!((&mean["pp"], &mean["vote"], &mean["tp"]), (&json!(1.5), &json!(2.0), &json!(0.0)));
        assert_eq!(by_rank[1]["exposed_s"]["vote"], 4.0);
    }

    #[test]
    fn one_rank_has_no_pipeline() {
        let shape = Shape { ranks: 1, ..SHAPE };
        let mesh = Mesh { pp: 1, ..MESH };
        assert!(pipeline(&[rank(1.0, 1.0, 0.0, 0.0)], &mesh, shape, Kind::default()).unwrap().is_null());
    }
}
