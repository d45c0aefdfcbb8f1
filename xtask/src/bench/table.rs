//! Medians, ratios and the table that a measurement ends with.

use super::arm::{Engine, Layout, Plan, Turn};
use serde_json::{Value, json};

/// An arm's turns, or why there are none.
#[derive(Debug)]
pub struct Row {
    /// Which arm.
    pub plan: Plan,
    /// What it said of itself when warm.
    pub ready: Value,
    /// One per round.
    pub turns: Vec<Turn>,
    /// Bytes that it holds, by its own word; null when it was not asked.
    pub memory: Value,
    /// Why the arm is missing.
    pub missing: Option<String>,
}

/// One arm over another, round by round.
#[derive(Debug, PartialEq)]
pub struct Ratio {
    /// The other arm, in a word where that says it.
    pub over: String,
    /// Median of the rounds' ratios: two arms of one round met the same weather.
    pub median: f64,
}

/// The middle of `values`; the mean of the middle two of an even number. Not a number when there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

impl Row {
    fn speeds(&self) -> Vec<f64> {
        self.turns.iter().map(|turn| turn.tokens_per_s).collect()
    }

    /// Median of the rounds' speeds.
    pub fn median(&self) -> f64 {
        median(self.speeds())
    }

    /// Slowest and fastest round.
    fn range(&self) -> (f64, f64) {
        let speeds = self.speeds();
        (speeds.iter().copied().fold(f64::NAN, f64::min), speeds.iter().copied().fold(f64::NAN, f64::max))
    }

    fn is_there(&self) -> bool {
        self.missing.is_none() && !self.turns.is_empty()
    }

    fn over(&self, other: &Self, name: String) -> Ratio {
        let pairs = self.turns.iter().zip(&other.turns);
        let ratios = pairs.map(|(ours, theirs)| ours.tokens_per_s / theirs.tokens_per_s).collect();
        Ratio { over: name, median: median(ratios) }
    }
}

/// Ours over the fastest peer of its precision and layout.
pub fn against_peer(row: &Row, rows: &[Row]) -> Option<Ratio> {
    if row.plan.engine != Engine::Gradus || !row.is_there() {
        return None;
    }
    let peers = rows.iter().filter(|other| other.is_there() && other.plan.is_peer_of(&row.plan));
    peers
        .max_by(|a, b| a.median().total_cmp(&b.median()))
        .map(|peer| row.over(peer, format!("torch {}", peer.plan.mode)))
}

/// Ranks over as many independent copies: what communication and waiting left of the ideal.
pub fn against_copies(row: &Row, rows: &[Row]) -> Option<Ratio> {
    let Layout::Ranks(ranks) = row.plan.layout else { return None };
    let copies = Plan { layout: Layout::Copies(ranks), ..row.plan.clone() };
    let control = rows.iter().find(|other| other.plan == copies && other.is_there())?;
    row.is_there().then(|| row.over(control, "its copies".to_owned()))
}

/// The table as text: one line per arm, missing ones too.
pub fn render(rows: &[Row]) -> String {
    let mut text =
        format!("{:<44} {:>9} {:>17} {:>8}  {}\n", "arm", "tokens/s", "slowest-fastest", "loss", "ratio");
    for row in rows {
        text.push_str(&line(row, rows));
    }
    text
}

fn line(row: &Row, rows: &[Row]) -> String {
    let name = row.plan.to_string();
    if let Some(reason) = &row.missing {
        return format!("{name:<44} missing: {reason}\n");
    }
    let (slowest, fastest) = row.range();
    let loss = row.turns.last().map_or(f64::NAN, |turn| turn.loss);
    let ratios: Vec<String> = [against_peer(row, rows), against_copies(row, rows)]
        .into_iter()
        .flatten()
        .map(|ratio| format!("{:.2} of {}", ratio.median, ratio.over))
        .collect();
    let range = format!("{slowest:.0}-{fastest:.0}");
    format!("{name:<44} {:>9.0} {range:>17} {loss:>8.4}  {}\n", row.median(), ratios.join("; "))
        .replace("  \n", "\n")
}

/// The same as data, with every raw answer.
pub fn as_json(rows: &[Row]) -> Value {
    let ratio =
        |ratio: Option<Ratio>| ratio.map(|ratio| json!({ "over": ratio.over, "median": ratio.median }));
    let row = |row: &Row| {
        let (slowest, fastest) = row.range();
        json!({
            "arm": row.plan.to_string(),
            "missing": row.missing,
            "memory": row.memory,
            "ready": row.ready,
            "median_tokens_per_s": row.median(),
            "slowest_tokens_per_s": slowest,
            "fastest_tokens_per_s": fastest,
            "against_peer": ratio(against_peer(row, rows)),
            "against_copies": ratio(against_copies(row, rows)),
            "rounds": row.turns.iter().map(|turn| &turn.answers).collect::<Vec<_>>(),
        })
    };
    rows.iter().map(row).collect()
}

/// How far losses may lie apart, relative, in the median of the rounds. The arms start from the same weights and see the
/// same batches. Over 34 steps our losses were seen 1.5e-5 from eager f32 PyTorch's in f32 and 1e-4 in bf16, as far as
/// PyTorch's own modes are from each other; a wrong gradient shows within two steps in the second digit. The median,
/// since without a warm-up single steps spike, and there rounding alone makes a percent.
pub fn allowed(precision: &str) -> f64 {
    if precision == "f32" { 1e-4 } else { 1e-3 }
}

/// Holds our losses against eager f32 PyTorch's at the same steps of the same layout. Empty when all agree; an arm of
/// ours that cannot be compared is a problem too.
pub fn wrong_losses(rows: &[Row]) -> Vec<String> {
    let ours = rows.iter().filter(|row| row.plan.engine == Engine::Gradus && row.is_there());
    ours.filter_map(|row| wrong_loss(row, rows).map(|problem| format!("{}: {problem}", row.plan))).collect()
}

fn wrong_loss(row: &Row, rows: &[Row]) -> Option<String> {
    let is_reference = |other: &&Row| {
        other.plan == Plan { engine: Engine::Torch, mode: "f32-eager", layout: row.plan.layout }
            && other.is_there()
    };
    let Some(reference) = rows.iter().find(is_reference) else {
        return Some(
            "its losses were held against nothing: torch f32-eager of this layout did not run".to_owned(),
        );
    };
    let mut apart = Vec::new();
    for (ours, theirs) in row.turns.iter().zip(&reference.turns) {
        if ours.steps_done.is_none() || ours.steps_done != theirs.steps_done {
            return Some(format!("steps_done is {:?}, torch's {:?}", ours.steps_done, theirs.steps_done));
        }
        if !ours.loss.is_finite() {
            return Some(format!("a loss is {}, torch's {}", ours.loss, theirs.loss));
        }
        apart.push((ours.loss / theirs.loss - 1.0).abs());
    }
    let (apart, allowed) = (median(apart), allowed(row.plan.precision()));
    (apart > allowed)
        .then(|| format!("losses lie {apart:.1e} from torch's in the median, allowed {allowed:.0e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(engine: Engine, mode: &'static str, layout: Layout, speeds: &[f64], loss: f64) -> Row {
        let turn =
            |speed: &f64| Turn { tokens_per_s: *speed, loss, steps_done: Some(4), answers: Vec::new() };
        let turns = speeds.iter().map(turn).collect();
        Row {
            plan: Plan { engine, mode, layout },
            ready: Value::Null,
            turns,
            memory: Value::Null,
            missing: None,
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            row(Engine::Torch, "f32-eager", Layout::Ranks(2), &[10.0, 20.0, 40.0], 4.0),
            row(Engine::Torch, "f32-compiled", Layout::Ranks(2), &[1.0, 2.0, 4.0], 4.0),
            row(Engine::Gradus, "f32", Layout::Ranks(2), &[30.0, 60.0, 80.0], 4.0001),
            row(Engine::Gradus, "f32", Layout::Copies(2), &[60.0, 60.0, 100.0], 4.0),
        ]
    }

    #[test]
    fn medians_of_odd_even_and_no_numbers() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn ratios_are_taken_round_by_round_against_the_fastest_peer() {
        let rows = rows();
        let over = |name: &str, median| Some(Ratio { over: name.to_owned(), median });
        assert_eq!(against_peer(&rows[2], &rows), over("torch f32-eager", 3.0));
        assert_eq!(against_copies(&rows[2], &rows), over("its copies", 0.8));
        assert_eq!(against_peer(&rows[0], &rows), None);
        assert_eq!(against_peer(&rows[3], &rows), None);
    }

    #[test]
    fn a_wrong_or_incomparable_loss_is_found() {
        let mut rows = rows();
        assert_eq!(wrong_losses(&rows).len(), 1, "copies have nothing to be held against here");
        rows[2].turns[1].loss = 4.01;
        assert_eq!(wrong_losses(&rows).len(), 1, "one spike is forgiven");
        rows[2].turns[2].loss = 4.001;
        assert!(
            wrong_losses(&rows)[0].contains("losses lie 2.5e-4 from torch's"),
            "{:?}",
            wrong_losses(&rows)
        );
        rows[2].turns[1].loss = f64::NAN;
        assert!(wrong_losses(&rows)[0].contains("NaN"));
        rows[2].turns[0].steps_done = Some(5);
        assert!(wrong_losses(&rows)[0].contains("Some(5)"));
    }

    #[test]
    fn a_missing_arm_keeps_its_line() {
        let mut rows = rows();
        rows[0].missing = Some("no torch".to_owned());
        let text = render(&rows);
        assert_eq!(text.lines().count(), 5);
        assert!(text.contains("torch f32-eager, 2 ranks x 1 thread          missing: no torch\n"), "{text}");
        assert!(text.contains("30.00 of torch f32-compiled; 0.80 of its copies\n"), "{text}");
    }
}
