//! The table that the measurement ends with, and the same as data.

use super::row::{AXES, Bubble, Row};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// How far a measured bubble may lie from the planned one, relative, to be called as planned.
const AS_PLANNED: f64 = 0.1;

/// Titles of the columns after the arm's name, with what several have in common above them, and widths.
const COLUMNS: [(&str, &str, usize); 16] = [
    ("", "tokens/s", 9),
    ("", "slowest-fastest", 16),
    ("speed,", "of dp", 7),
    ("losses", "apart", 9),
    ("% of a", AXES[0], 8),
    ("step", AXES[1], 7),
    ("waits", AXES[2], 7),
    ("for", AXES[3], 7),
    ("ranks", AXES[4], 7),
    ("bubble,", "planned", 10),
    ("%", "waited", 8),
    ("of", "plan", 7),
    ("of", "bound", 7),
    ("MB of", "rank 0", 10),
    ("", "most", 8),
    ("", "planned", 9),
];

/// One line for each arm, missing ones too; then how pipelines wait, in words.
pub fn render(groups: &[Vec<Row>], cores: usize) -> String {
    let mut text = write_line("", COLUMNS.map(|(above, _, _)| above.to_owned()));
    text.push_str(&write_line("arm", COLUMNS.map(|(_, title, _)| title.to_owned())));
    for rows in groups {
        rows.iter().for_each(|row| text.push_str(&line(row, rows, cores)));
    }
    for rows in groups {
        rows.iter().filter_map(|row| verdict(row, rows, cores)).for_each(|words| text.push_str(&words));
    }
    text
}

fn write_line(name: &str, cells: [String; COLUMNS.len()]) -> String {
    let mut text = format!("{name:<33}");
    for (cell, (_, _, width)) in cells.iter().zip(COLUMNS) {
        let _ = write!(text, "{cell:>width$}");
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn line(row: &Row, rows: &[Row], cores: usize) -> String {
    let name = row.split.to_string();
    if let Some(reason) = &row.missing {
        return format!("{name:<33} missing: {reason}\n");
    }
    let [slowest, fastest] = row.range();
    let [pp, dp, fsdp, tp, vote] = AXES.map(|axis| format!("{:.2}", 100.0 * row.exposed(axis)));
    let bubble = row.bubble(rows, cores);
    let part = |of: fn(&Bubble) -> f64| decimals(bubble.as_ref().map(of), 2);
    let (held, megabytes) = (row.held(), |bytes: Option<f64>| decimals(bytes.map(|bytes| bytes / 1e6), 1));
    let cells = [
        format!("{:.0}", row.speed()),
        format!("{slowest:.0}-{fastest:.0}"),
        decimals(row.against_replicas(rows), 2),
        row.losses_apart(rows).map_or("-".to_owned(), |[largest, _]| format!("{largest:.1e}")),
        pp,
        dp,
        fsdp,
        tp,
        vote,
        part(|bubble| 100.0 * bubble.planned),
        part(|bubble| 100.0 * bubble.measured),
        part(|bubble| bubble.of_plan),
        part(|bubble| bubble.of_bound),
        megabytes(held.map(|held| held[0])),
        megabytes(held.map(|held| held[1])),
        megabytes(row.planned_bytes()),
    ];
    write_line(&name, cells)
}

fn decimals(value: Option<f64>, count: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.count$}"))
}

/// Whether a pipeline waits as planned.
fn verdict(row: &Row, rows: &[Row], cores: usize) -> Option<String> {
    let Bubble { planned, measured, of_plan, of_bound } = row.bubble(rows, cores)?;
    let is_near = (of_plan - 1.0).abs() <= AS_PLANNED;
    Some(format!(
        "{}: waited {:.2}%, planned {:.2}% by its stages' own times: {of_plan:.2} of the plan, {}; {of_bound:.2} of the bound\n",
        row.split,
        100.0 * measured,
        100.0 * planned,
        if is_near { "within 10%" } else { "not within 10%" }
    ))
}

/// The same as data, with every raw answer.
pub fn as_json(rows: &[Row], cores: usize) -> Value {
    rows.iter().map(|row| row_as_json(row, rows, cores)).collect()
}

fn row_as_json(row: &Row, rows: &[Row], cores: usize) -> Value {
    let exposed: Map<String, Value> =
        AXES.iter().map(|axis| ((*axis).to_owned(), json!(row.exposed(axis)))).collect();
    let bubble = row.bubble(rows, cores).map(|Bubble { planned, measured, of_plan, of_bound }| {
        json!({ "planned": planned, "measured": measured, "of_plan": of_plan, "of_bound": of_bound })
    });
    let [slowest, fastest] = row.range();
    json!({
        "arm": row.split.to_string(),
        "words": row.split.words().join(" "),
        "missing": row.missing,
        "ready": row.ready,
        "memory": row.memory,
        "median_tokens_per_s": row.speed(),
        "slowest_tokens_per_s": slowest,
        "fastest_tokens_per_s": fastest,
        "against_replicas": row.against_replicas(rows),
        "largest_loss_difference": row.losses_apart(rows).map(|[largest, _]| largest),
        "exposed_part_by_axis": exposed,
        "bubble": bubble,
        "rounds": row.turns.iter().map(|turn| &turn.answers).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::rows;
    use super::*;

    #[test]
    fn a_pipeline_s_line_has_all_figures() {
        let text = render(&[rows()], 2);
        let line = text.lines().find(|line| line.contains("pp 2")).unwrap();
        let words: Vec<&str> = line.split_whitespace().skip(5).collect();
        let expected = "144 80-160 0.80 0.0e0 10.00 0.00 0.00 0.00 5.00 20.00 21.00 1.05 1.00 300.0 400.0 -";
        assert_eq!(words.join(" "), expected, "{text}");
        assert!(text.contains("1.05 of the plan, within 10%; 1.00 of the bound"), "{text}");
        assert!(!render(&[rows()], 1).contains("of the plan"));
    }

    #[test]
    fn what_is_missing_keeps_its_line() {
        let mut rows = rows();
        rows[1].missing = Some("no tensors".to_owned());
        let text = render(&[rows], 2);
        assert!(text.contains("2 ranks, dp 2                     missing: no tensors\n"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("1 rank ") && line.contains(" 1.00 ")), "{text}");
    }

    #[test]
    fn data_have_what_the_table_has() {
        let found = as_json(&rows(), 2);
        assert_eq!(found[2]["bubble"]["measured"], 0.21);
        assert_eq!(
            (&found[0]["bubble"], &found[1]["exposed_part_by_axis"]["pp"]),
            (&Value::Null, &json!(0.05))
        );
    }
}
