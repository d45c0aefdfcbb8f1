//! A small schedule as text: a line for each rank, a place for each pass.

use super::Case;
use gradus_train::pipeline::{Action, ActionKind, Period};

/// Wider lines break on most screens.
const MOST_COLUMNS: usize = 200;

/// The lines of a schedule that has room on a screen; otherwise where to look for it.
pub(super) fn timeline(case: &Case) -> Vec<String> {
    let columns = Columns::of(case);
    if columns.count(case.timeline.makespan()) > MOST_COLUMNS {
        return vec![String::new(), "too wide for a screen: --svg FILE draws it".to_owned()];
    }
    let mut lines = vec![String::new(), legend(case)];
    let lanes = case.schedule.actions.iter().zip(&case.timeline.periods).enumerate();
    let width = (lanes.len() - 1).to_string().len();
    lines.extend(lanes.map(|(rank, (actions, periods))| {
        format!("rank {rank:>width$} |{}", columns.line(actions, periods)).trim_end().to_owned()
    }));
    lines
}

/// How time is laid on columns.
struct Columns {
    per_time: f64,
    microbatch_digits: usize,
    chunks: usize,
}

impl Columns {
    /// So that the shortest pass has room for its name.
    fn of(case: &Case) -> Self {
        let lengths = case.timeline.periods.iter().flatten().map(|period| period.end - period.start);
        let shortest = lengths.filter(|length| *length > 0.0).fold(f64::INFINITY, f64::min);
        let shape = case.schedule.shape;
        let microbatch_digits = (shape.microbatches - 1).to_string().len();
        let name = 1 + microbatch_digits + usize::from(shape.chunks_per_rank > 1);
        Self { per_time: (name + 1) as f64 / shortest, microbatch_digits, chunks: shape.chunks_per_rank }
    }

    fn count(&self, time: f64) -> usize {
        (time * self.per_time).round() as usize
    }

    fn line(&self, actions: &[Action], periods: &[Period]) -> String {
        let mut line = String::new();
        for (action, period) in actions.iter().zip(periods) {
            let (start, end) = (self.count(period.start), self.count(period.end));
            let room = end.saturating_sub(start).saturating_sub(1);
            let name: String = self.name(action).chars().take(room).collect();
            line = format!("{line:<start$}{name:-<room$}");
        }
        line
    }

    fn name(&self, action: &Action) -> String {
        let digits = self.microbatch_digits;
        let chunk = match self.chunks {
            1 => String::new(),
            _ => char::from_u32('a' as u32 + action.chunk as u32 % 26).map(String::from).unwrap_or_default(),
        };
        format!("{}{:0>digits$}{chunk}", letter(action.kind), action.microbatch)
    }
}

/// A pass in one letter.
pub(super) fn letter(kind: ActionKind) -> char {
    match kind {
        ActionKind::Forward => 'F',
        ActionKind::Backward => 'B',
        ActionKind::BackwardInput => 'I',
        ActionKind::BackwardWeight => 'W',
    }
}

fn legend(case: &Case) -> String {
    let halves = case.schedule.actions[0].iter().any(|action| action.kind == ActionKind::BackwardInput);
    let backward = if halves { "I backward for the input, W for the weights" } else { "B backward" };
    let chunks = if case.schedule.shape.chunks_per_rank > 1 { ", a and on its rank's stages" } else { "" };
    format!("F forward, {backward}; a number is a microbatch{chunks}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    fn lines(line: &str) -> Vec<String> {
        timeline(&arguments(line).cases().unwrap()[0])
    }

    #[test]
    fn passes_stand_where_they_happen() {
        let expected = ["rank 0 |F0 F1       B0---    B1---", "rank 1 |   F0 B0--- F1 B1---"];
        assert_eq!(lines("--ranks 2 --microbatches 2 --schedule 1f1b")[2..], expected);
        let expected = ["rank 0 |F0 F1    I0 W0 I1 W1", "rank 1 |   F0 I0 F1 I1 W0 W1"];
        assert_eq!(lines("--ranks 2 --microbatches 2 --schedule zero-bubble")[2..], expected);
        let interleaved = lines("--ranks 1 --microbatches 1 --schedule interleaved");
        assert_eq!(interleaved[2], "rank 0 |F0a F0b B0b---- B0a----");
    }

    #[test]
    fn what_has_no_room_is_not_printed() {
        let lines = lines("--ranks 2 --microbatches 200 --schedule gpipe");
        assert!(lines.len() == 2 && lines[1].contains("--svg"));
    }
}
