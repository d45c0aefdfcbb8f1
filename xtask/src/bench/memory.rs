//! What each arm holds in memory, beside the arithmetic.
//!
//! State is weights, gradients and two moments, in f32: 16 bytes for each parameter, by ours as by PyTorch's autocast (its
//! pure bf16 has 8 and no masters). What a step needs beside it is counted in two ways. *Kept*: of ours, all that the device
//! has handed out beside the state, planned once before the first step, gradients between layers and a piece of logits
//! included; of PyTorch's, the storages that autograd saves for the backward pass, each once, by
//! `torch.autograd.graph.saved_tensors_hooks`, and the logits, which the loss reads (what a compiled graph keeps is not
//! known; gradients between layers are not in it). *Beyond state*: resident memory at its most, less that before there was
//! a model, less the state: everything, also what an allocator holds on to.

use super::arm::Engine;
use super::shape::Shape;
use super::table::Row;
use std::fmt::Write;

/// Numbers of state for each parameter: itself, its gradient, two moments.
const NUMBERS: usize = 4;

/// One line for each arm that said what it holds.
pub fn render(rows: &[Row], shape: Shape) -> String {
    let mut text = format!(
        "{:<44} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>13}\n",
        "memory, MB", "state", "by N", "kept", "logits", "casts", "scratch", "beyond state"
    );
    for row in rows.iter().filter(|row| row.memory.is_object()) {
        text.push_str(&line(row, shape));
    }
    text
}

fn line(row: &Row, shape: Shape) -> String {
    let bytes = |key: &str| row.memory[key].as_f64();
    let ours = row.plan.engine == Engine::Gradus;
    // Ours counts its logits in what it keeps; autograd does not.
    let kept =
        bytes("kept_bytes").map(|kept| kept + if ours { 0.0 } else { bytes("logits_bytes").unwrap_or(0.0) });
    let state = bytes("state_bytes");
    let beyond = bytes("peak_bytes").zip(bytes("before_bytes")).zip(state);
    let columns = [
        state,
        Some((NUMBERS * bytes_of_a_number(row.plan.mode) * shape.parameters()) as f64),
        kept,
        bytes("logits_bytes"),
        bytes("weight_copies_bytes"),
        bytes("scratch_bytes"),
    ];
    let mut text = format!("{:<44}", row.plan.to_string());
    for column in columns {
        let _ = write!(text, " {:>8}", megabytes(column));
    }
    let beyond = beyond.map(|((peak, before), state)| peak - before - state);
    let _ = writeln!(text, " {:>13}", megabytes(beyond));
    text
}

/// State is in f32, but for a model that is bf16 as a whole.
fn bytes_of_a_number(mode: &str) -> usize {
    if mode == "bf16-pure" { 2 } else { 4 }
}

fn megabytes(bytes: Option<f64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| format!("{:.1}", bytes / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::arm::{Layout, Plan};
    use serde_json::{Value, json};

    fn row(engine: Engine, memory: Value) -> Row {
        let plan = Plan { engine, mode: "f32", layout: Layout::Threads(1) };
        Row { plan, ready: Value::Null, turns: Vec::new(), memory, missing: None }
    }

    #[test]
    fn logits_count_once() {
        let memory = json!({ "state_bytes": 222e6, "kept_bytes": 100e6, "logits_bytes": 8e6, "peak_bytes": 400e6,
                             "before_bytes": 10e6 });
        let rows = [
            row(Engine::Gradus, memory.clone()),
            row(Engine::Torch, memory),
            row(Engine::Torch, Value::Null),
        ];
        let text = render(&rows, Shape::Gpt);
        let words: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().skip(4).collect()).collect();
        assert_eq!(words.len(), 3, "{text}");
        assert_eq!(words[1], ["222.0", "222.3", "100.0", "8.0", "-", "-", "168.0"]);
        assert_eq!(words[2][2], "108.0");
    }
}
