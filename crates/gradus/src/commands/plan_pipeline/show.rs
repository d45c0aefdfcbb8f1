//! Schedules side by side, for people and for programs.

use super::lines::timeline;
use super::{Case, PlanPipelineArguments};
use crate::wording::{counted, grouped, percent};
use gradus_train::pipeline::Kind;
use serde::Serialize;

/// What `--json` prints.
#[derive(Serialize)]
pub(super) struct Report {
    ranks: usize,
    microbatches: usize,
    forward: f64,
    backward_input: f64,
    backward_weight: f64,
    transfer: f64,
    schedules: Vec<Row>,
}

/// A schedule's figures. Passes of which activations are held are counted in microbatches of all of a rank's layers.
#[derive(Serialize)]
struct Row {
    schedule: Kind,
    stages_per_rank: usize,
    makespan: f64,
    ideal: f64,
    bubble: f64,
    expected_bubble: f64,
    in_flight: f64,
    memory: f64,
    formula: &'static str,
    source: &'static str,
}

impl Report {
    pub(super) fn new(arguments: &PlanPipelineArguments, cases: &[Case]) -> Self {
        let PlanPipelineArguments { ranks, microbatches, forward, .. } = *arguments;
        let PlanPipelineArguments { backward_input, backward_weight, transfer, .. } = *arguments;
        let schedules = cases.iter().map(Row::new).collect();
        Self { ranks, microbatches, forward, backward_input, backward_weight, transfer, schedules }
    }
}

impl Row {
    fn new(case: &Case) -> Self {
        let stages_per_rank = case.schedule.shape.chunks_per_rank;
        let whole =
            |counts: &[usize]| counts.iter().max().map_or(0.0, |most| *most as f64 / stages_per_rank as f64);
        Self {
            schedule: case.kind,
            stages_per_rank,
            makespan: case.timeline.makespan(),
            ideal: case.timeline.ideal(),
            bubble: case.timeline.bubble(),
            expected_bubble: case.expected_bubble,
            in_flight: whole(&case.peaks),
            memory: whole(&case.slots),
            formula: case.kind.formula(),
            source: case.kind.source(),
        }
    }

    fn line(&self) -> String {
        format!(
            "{:<12} {:>6} {:>10} {:>7} {:>8} {:>10} {:>7}",
            self.schedule.name(),
            self.stages_per_rank,
            short(self.makespan),
            percent(self.bubble),
            percent(self.expected_bubble),
            short(self.in_flight),
            short(self.memory)
        )
    }
}

/// The lines for a person.
pub(super) fn table(arguments: &PlanPipelineArguments, cases: &[Case]) -> Vec<String> {
    let rows: Vec<_> = cases.iter().map(Row::new).collect();
    let mut lines = vec![heading(arguments), costs(arguments), String::new()];
    let names = ["stages", "makespan", "bubble", "formula", "in flight", "memory"];
    let [stages, makespan, bubble, formula, in_flight, memory] = names;
    lines.push(format!(
        "{:<12} {stages:>6} {makespan:>10} {bubble:>7} {formula:>8} {in_flight:>10} {memory:>7}",
        "schedule"
    ));
    lines.extend(rows.iter().map(Row::line));
    lines.push(String::new());
    lines.extend(rows.iter().map(|row| format!("{}: {}; {}", row.schedule, row.formula, row.source)));
    if let [case] = cases {
        lines.extend(timeline(case));
    }
    lines
}

fn heading(arguments: &PlanPipelineArguments) -> String {
    let PlanPipelineArguments { ranks, microbatches, .. } = *arguments;
    let batches = if microbatches == 1 { "microbatch" } else { "microbatches" };
    format!("{} {batches} through {}", grouped(microbatches as u64), counted(ranks as u64, "rank"))
}

fn costs(arguments: &PlanPipelineArguments) -> String {
    let PlanPipelineArguments { forward, backward_input, backward_weight, transfer, .. } = *arguments;
    let whole = arguments.microbatches as f64 * (forward + backward_input + backward_weight);
    format!(
        "a rank's forward pass takes {}, backward {} for the input and {} for the weights, a transfer {}: {} if nobody waits",
        short(forward),
        short(backward_input),
        short(backward_weight),
        short(transfer),
        short(whole)
    )
}

/// With as many places as it needs, at most two.
pub(super) fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    #[test]
    fn tables_and_reports_show_the_same() {
        let arguments = arguments("--ranks 4 --microbatches 8");
        let cases = arguments.cases().unwrap();
        let lines = table(&arguments, &cases);
        assert_eq!(lines[0], "8 microbatches through 4 ranks");
        let row = |name: &str| lines.iter().find(|line| line.starts_with(name)).unwrap().clone();
        let words = |name| row(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(words("gpipe"), "gpipe 1 33 27.3% 27.3% 8 8");
        assert_eq!(words("1f1b"), "1f1b 1 33 27.3% 27.3% 4 4");
        assert_eq!(words("interleaved"), "interleaved 2 28.5 15.8% 15.8% 5.5 6");
        assert_eq!(words("zero-bubble"), "zero-bubble 1 27 11.1% 11.1% 4 5");
        let report = serde_json::to_value(Report::new(&arguments, &cases)).unwrap();
        assert_eq!(report["schedules"][3]["schedule"], "zero-bubble");
        assert_eq!(report["schedules"][2]["in_flight"], 5.5);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([3.0, 2.5, 0.126, 1200.0].map(short), ["3", "2.5", "0.13", "1200"]);
    }
}
