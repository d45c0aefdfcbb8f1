//! The table of a model's operations, as text and as data.

use super::catalog::Bound;
use super::measure::{Row, Table};
use crate::machine;
use serde_json::{Value, json};
use std::fmt::Write;

/// The text: one line for each operation.
pub fn render(table: &Table) -> String {
    let threads =
        if table.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", table.threads) };
    let mut text = format!("\n{}\n{}; {}, {threads}\n", table.shape, table.device, table.torch);
    let _ = writeln!(
        text,
        "{:<66} {:>6} {:>11} {:>13} {:>15} {:>5} {:>11} {:>6} {:>6} {:>8}",
        "operation", "calls", "us", "rate", "ceiling", "part", "torch us", "ratio", "lies", "apart"
    );
    for row in &table.rows {
        text.push_str(&line(row, table.unit));
    }
    text
}

fn line(row: &Row, unit: &str) -> String {
    let (ceiling, per_s) = (row.median(|round| round.ceiling) * 1e-9, row.work() * 1e-9);
    let ours = row.median(|round| round.ours);
    let (name, torch) = (&row.item.name, row.median(|round| round.torch) * 1e6);
    let way = row.way.as_ref().filter(|way| *way != "plain");
    let way = way.map_or(String::new(), |way| format!("  torch: {way}"));
    let problem = row.problem.as_ref().map_or(String::new(), |problem| format!("  {problem}"));
    let (rate, bound) = (per_s / ours, bound(row, unit));
    format!(
        "{name:<66} {:>6} {:>11.1} {rate:>6.1} {:>6} {:>6.1} {bound:>8} {:>5.2} {torch:>11.1} {:>6.2} {:>6} {:>8.0e}{way}{problem}\n",
        calls(row.item.calls),
        ours * 1e6,
        per_unit(row),
        ceiling,
        row.of_ceiling(),
        row.over_torch(),
        lies_in(row.item.touched, &machine::caches()),
        row.farthest(),
    )
}

/// Whole, or with a digit.
pub fn calls(calls: f64) -> String {
    if calls.fract() == 0.0 { format!("{calls:.0}") } else { format!("{calls:.1}") }
}

/// What a rate counts.
pub fn per_unit(row: &Row) -> &'static str {
    match row.item.bound {
        Bound::Products(_) => "GF/s",
        Bound::Stream(..) => "GB/s",
    }
}

/// The ceiling's name.
pub fn bound<'a>(row: &Row, unit: &'a str) -> &'a str {
    match row.item.bound {
        Bound::Products(_) => unit,
        Bound::Stream(_, stream) => stream,
    }
}

/// The smallest cache that the tensors of an operation fit together, or memory.
pub fn lies_in(touched: f64, caches: &[(u32, u64)]) -> String {
    let fits = caches.iter().find(|(_, bytes)| touched <= *bytes as f64);
    fits.map_or("memory".to_owned(), |(level, _)| format!("L{level}"))
}

/// The same as data, with every round.
pub fn as_json(table: &Table) -> Value {
    let row = |row: &Row| {
        let rounds = row.rounds.iter().map(
            |round| json!({ "ceiling_per_s": round.ceiling, "gradus_s": round.ours, "torch_s": round.torch }),
        );
        json!({
            "operation": row.item.name,
            "op": row.item.op,
            "calls_per_step": row.item.calls,
            "torch_calls_per_step": row.item.peer_calls,
            "work": row.work(),
            "unit": per_unit(row),
            "ceiling": bound(row, table.unit),
            "touched_bytes": row.item.touched,
            "of_ceiling": row.of_ceiling(),
            "torch_over_gradus": row.over_torch(),
            "torch_way": row.way,
            "apart": row.apart,
            "problem": row.problem,
            "rounds": rounds.collect::<Vec<_>>(),
        })
    };
    json!({
        "shape": table.shape.to_string(),
        "precision": table.precision,
        "threads": table.threads,
        "device": table.device,
        "torch": table.torch,
        "caches": machine::caches(),
        "rows": table.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_lie_in_the_smallest_cache_that_holds_them() {
        let caches = [(1, 48 << 10), (2, 1 << 20), (3, 32 << 20)];
        assert_eq!(lies_in(1e3, &caches), "L1");
        assert_eq!(lies_in(3e6, &caches), "L3");
        assert_eq!(lies_in(1e9, &caches), "memory");
        assert_eq!(lies_in(1.0, &[]), "memory");
    }

    #[test]
    fn calls_are_shown_as_short_as_they_are() {
        assert_eq!(calls(6.0), "6");
        assert_eq!(calls(1024.0 / 42.0), "24.4");
    }
}
