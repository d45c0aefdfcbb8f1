//! What an arm gave, and what is read from it.

use super::super::arm::Turn;
use super::super::table::{allowed, median};
use super::split::Split;
use serde_json::Value;

/// What ranks wait for, as our worker names it.
pub const AXES: [&str; 5] = ["pp", "dp", "fsdp", "tp", "vote"];

/// An arm's turns, or why there are none.
#[derive(Debug)]
pub struct Row {
    /// Which arm.
    pub split: Split,
    /// What it said of itself when warm.
    pub ready: Value,
    /// One per round.
    pub turns: Vec<Turn>,
    /// Bytes that it holds, by its own word.
    pub memory: Value,
    /// Why the arm is missing.
    pub missing: Option<String>,
}

/// How a pipeline's waiting compares with its plan; medians over the rounds.
#[derive(Debug, PartialEq)]
pub struct Bubble {
    /// The part of the ranks' time that the plan has them wait.
    pub planned: f64,
    /// The part that they waited.
    pub measured: f64,
    /// The second over the first.
    pub of_plan: f64,
    /// Tokens per second over what as many of one rank would reach that waited as planned.
    pub of_bound: f64,
}

impl Row {
    pub fn is_there(&self) -> bool {
        self.missing.is_none() && !self.turns.is_empty()
    }

    fn median_of(&self, of: impl Fn(&Turn) -> f64) -> f64 {
        median(self.turns.iter().map(of).collect())
    }

    /// Median of the rounds' speeds, tokens per second.
    pub fn speed(&self) -> f64 {
        self.median_of(|turn| turn.tokens_per_s)
    }

    /// Slowest and fastest round.
    pub fn range(&self) -> [f64; 2] {
        let speeds = || self.turns.iter().map(|turn| turn.tokens_per_s);
        [speeds().fold(f64::NAN, f64::min), speeds().fold(f64::NAN, f64::max)]
    }

    /// This arm's figure over the other's, round by round; the median.
    fn over(&self, other: &Self, of: impl Fn(&Turn, &Turn) -> f64) -> f64 {
        median(self.turns.iter().zip(&other.turns).map(|(own, theirs)| of(own, theirs)).collect())
    }

    /// Its speed over that of the replicas of as many ranks.
    pub fn against_replicas(&self, rows: &[Self]) -> Option<f64> {
        let is_it = |row: &&Self| row.split.is_reference() && row.split.ranks() == self.split.ranks();
        let replicas = rows.iter().find(is_it).filter(|row| row.is_there())?;
        self.is_there().then(|| self.over(replicas, |own, theirs| own.tokens_per_s / theirs.tokens_per_s))
    }

    /// The part of a step's time in which the mean rank waits along an axis; the median.
    pub fn exposed(&self, axis: &str) -> f64 {
        self.median_of(|turn| {
            number(&turn.answers[0]["exposed_by_axis_s"][axis]) / number(&turn.answers[0]["seconds"])
        })
    }

    /// How a pipeline waits; none where there is no pipeline, or where ranks wait for cores too, which no plan knows.
    pub fn bubble(&self, rows: &[Self], cores: usize) -> Option<Bubble> {
        let alone = rows.iter().find(|row| row.split.ranks() == 1 && row.is_there())?;
        if !self.is_there() || self.split.pp == 1 || self.split.ranks() > cores {
            return None;
        }
        let of = |turn: &Turn, key: &str| number(&turn.answers[0]["pipeline"][key]);
        let [planned, measured] =
            ["planned_bubble", "measured_bubble"].map(|key| move |turn: &Turn| of(turn, key));
        let ranks = self.split.ranks() as f64;
        let of_bound =
            |own: &Turn, one: &Turn| own.tokens_per_s / (one.tokens_per_s * ranks * (1.0 - planned(own)));
        Some(Bubble {
            planned: self.median_of(planned),
            measured: self.median_of(measured),
            of_plan: self.median_of(|turn| measured(turn) / planned(turn)),
            of_bound: self.over(alone, of_bound),
        })
    }

    /// The largest relative difference of its losses from one rank's, and the median.
    pub fn losses_apart(&self, rows: &[Self]) -> Option<[f64; 2]> {
        let alone = rows.iter().find(|row| row.split.ranks() == 1 && row.is_there())?;
        let apart: Vec<f64> =
            self.turns.iter().zip(&alone.turns).map(|(own, one)| (own.loss / one.loss - 1.0).abs()).collect();
        // A loss that is no number is farther than any.
        let largest = apart.iter().copied().max_by(f64::total_cmp)?;
        Some([largest, median(apart)])
    }

    /// Bytes that devices have handed out: on rank 0, and on the rank that has most.
    pub fn held(&self) -> Option<[f64; 2]> {
        let bytes: Vec<f64> = self.memory["device_bytes"].as_array()?.iter().map(number).collect();
        Some([*bytes.first()?, bytes.iter().copied().fold(0.0, f64::max)])
    }

    /// What was planned for rank 0, where the worker says.
    pub fn planned_bytes(&self) -> Option<f64> {
        self.memory["planned_bytes"].as_f64()
    }
}

/// Not a number where there is none.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Whose losses are not one rank's. Empty when all agree; what cannot be compared is a problem too.
pub fn wrong_losses(rows: &[Row], precision: &str) -> Vec<String> {
    let split = rows.iter().filter(|row| row.is_there() && row.split.ranks() > 1);
    split
        .filter_map(|row| wrong_loss(row, rows, precision).map(|text| format!("{}: {text}", row.split)))
        .collect()
}

fn wrong_loss(row: &Row, rows: &[Row], precision: &str) -> Option<String> {
    let Some([_, apart]) = row.losses_apart(rows) else {
        return Some("its losses were held against nothing: one rank did not run".to_owned());
    };
    let allowed = allowed(precision);
    let is_near = apart <= allowed;
    (!is_near).then(|| format!("losses lie {apart:.1e} from one rank's in the median, allowed {allowed:.0e}"))
}

#[cfg(test)]
pub mod tests {
    use super::super::split::GROUPS;
    use super::*;
    use serde_json::json;

    /// One rank, replicas, and a pipeline, in three rounds.
    pub fn rows() -> Vec<Row> {
        let pipeline = GROUPS[0].iter().find(|split| split.pp == 2).unwrap();
        vec![
            row(GROUPS[0][0], [100.0, 50.0, 100.0], 0.0),
            row(GROUPS[0][1], [180.0, 90.0, 200.0], 0.1),
            row(*pipeline, [144.0, 80.0, 160.0], 0.2),
        ]
    }

    fn row(split: Split, speeds: [f64; 3], waited: f64) -> Row {
        let answer = json!({
            "seconds": 2.0,
            "exposed_by_axis_s": { "pp": waited, "dp": 0.0, "fsdp": 0.0, "tp": 0.0, "vote": waited / 2.0 },
            "pipeline": { "planned_bubble": 0.2, "measured_bubble": 0.21 },
        });
        let turn = |tokens_per_s| Turn {
            tokens_per_s,
            loss: 4.0,
            steps_done: Some(4),
            answers: vec![answer.clone()],
        };
        let turns = speeds.map(turn).to_vec();
        let memory = json!({ "device_bytes": [3e8, 4e8] });
        Row { split, ready: Value::Null, turns, memory, missing: None }
    }

    #[test]
    fn figures_are_medians_of_the_rounds() {
        let rows = rows();
        let close =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, {expected}");
        close(rows[2].against_replicas(&rows).unwrap(), 0.8);
        close(rows[0].against_replicas(&rows).unwrap(), 1.0);
        close(rows[2].exposed("pp"), 0.1);
        let bubble = rows[2].bubble(&rows, 2).unwrap();
        close(bubble.of_plan, 1.05);
        // 144 of 100 x 2 x 0.8, 80 of 80, 160 of 160.
        close(bubble.of_bound, 1.0);
        assert_eq!((bubble.planned, bubble.measured), (0.2, 0.21));
    }

    #[test]
    fn only_pipelines_with_a_core_for_each_rank_have_a_bubble() {
        let rows = rows();
        assert_eq!(rows[1].bubble(&rows, 2), None);
        assert_eq!(rows[2].bubble(&rows, 1), None);
    }

    #[test]
    fn losses_are_held_against_one_rank() {
        let mut rows = rows();
        assert_eq!(wrong_losses(&rows, "f32"), [""; 0]);
        rows[2].turns[0].loss = 4.1;
        assert!((rows[2].losses_apart(&rows).unwrap()[0] - 0.025).abs() < 1e-12);
        assert!(wrong_losses(&rows, "f32").is_empty(), "one spike is forgiven");
        rows[2].turns[1].loss = 4.002;
        assert_eq!(wrong_losses(&rows, "f32").len(), 1);
        assert!(wrong_losses(&rows, "bf16").is_empty());
        rows[1].turns.iter_mut().for_each(|turn| turn.loss = f64::NAN);
        assert!(wrong_losses(&rows, "bf16")[0].contains("NaN"));
        rows[0].missing = Some("gone".to_owned());
        assert_eq!(wrong_losses(&rows, "bf16").len(), 2);
    }
}
