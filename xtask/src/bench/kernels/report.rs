//! docs/step-time.md: how a training step's time divides. Written here and nowhere else.

use super::measure::{Programs, Row, Table};
use super::table::{bound, calls, lies_in, per_unit};
use super::{Options, settings};
use crate::bench::arm::{Engine, Layout, Plan};
use crate::bench::inputs::Inputs;
use crate::bench::shape::Shape;
use crate::bench::{table, train};
use crate::{machine, shell};
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt::Write;

const STEPS_OF_A_TURN: usize = 2;

/// Whole steps of the GPT, ours and PyTorch's eager ones, in every precision that was asked for.
///
/// # Errors
/// When inputs cannot be made.
pub fn steps(options: &Options, programs: &Programs) -> Result<Vec<table::Row>> {
    let inputs = Inputs::prepare(Shape::Gpt, Some(&programs.binary), None)?;
    let layout = Layout::Threads(options.threads);
    let arms = |precision: &String| {
        let f32 = precision == "f32";
        [
            Plan {
                engine: Engine::Torch,
                mode: if f32 { "f32-eager" } else { "bf16-autocast-eager" },
                layout,
            },
            Plan { engine: Engine::Gradus, mode: if f32 { "f32" } else { "bf16" }, layout },
        ]
    };
    let plans: Vec<Plan> = options.precision.iter().flat_map(arms).collect();
    train::measure(&plans, &inputs, options.rounds, STEPS_OF_A_TURN)
}

/// Writes the page.
///
/// # Errors
/// When git or the file system fails.
pub fn write(
    tables: &[Table],
    steps: &[table::Row],
    made_of: (&Value, &str),
    options: &Options,
) -> Result<()> {
    let path = shell::root().join("docs/step-time.md");
    let text = page(tables, steps, made_of, options)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("report: {}", shell::relative(&path));
    Ok(())
}

fn page(
    tables: &[Table],
    steps: &[table::Row],
    (machine, commit): (&Value, &str),
    options: &Options,
) -> Result<String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let text = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
    let (date, command) = (machine::date()?, words.join(" "));
    let mut page = format!(
        "# Where a training step's time goes\n\n\
         Written by `cargo x {command}` at {commit} on {date} (UTC), and by nothing else: edit the command, not this page. \
         {}, {} cores; {} rounds.\n\n\
         The model is {}; a step has {} tokens. Each operation was measured alone, again and again on the same tensors, \
         beside its ceiling and beside PyTorch's operator for the same thing on as many threads, in turns; figures are \
         medians of the rounds. The ceiling of a product is the unit that multiplies, on registers; of all else the plain \
         stream over memory that is likest to the operation, over as many bytes as the operation touches. A linear layer \
         `through` a function applies it in the same call; PyTorch's time is of the product and then the function. What is \
         made again for our backward pass PyTorch keeps: its column counts its own calls. What fits a \
         cache lies in that cache here; in a step it may have been displaced, which is one reason why the sum and the step \
         differ. How things are measured is told in [benchmarks.md](benchmarks.md).\n",
        text("processor"),
        machine["cores"],
        settings(options)["rounds"],
        Shape::Gpt,
        Shape::Gpt.sizes().rows(),
    );
    for table in tables.iter().filter(|table| table.shape == Shape::Gpt) {
        section(&mut page, table, steps);
    }
    Ok(page)
}

fn section(page: &mut String, table: &Table, steps: &[table::Row]) {
    let _ = writeln!(page, "\n## {}\n\n{}; {}.\n", table.precision, table.device, table.torch);
    page.push_str("| operation | calls | ms in a step | share | rate | ceiling | part of it | PyTorch, ms | its tensors lie in |\n");
    page.push_str("|---|---|---|---|---|---|---|---|---|\n");
    let in_step = || table.rows.iter().filter(|row| row.item.calls > 0.0);
    let sum: f64 = in_step().map(ours_ms).sum();
    for row in in_step() {
        line(page, row, table, sum);
    }
    let torch: f64 = in_step().map(torch_ms).sum();
    let _ = writeln!(page, "| **sum** | | **{sum:.1}** | 100% | | | | **{torch:.1}** | |");
    let step = |engine: Engine| measured_ms(steps, engine, &table.precision);
    let _ = writeln!(
        page,
        "| **step, measured** | | **{:.1}** | {:.0}% | | | | **{:.1}** | |",
        step(Engine::Gradus),
        step(Engine::Gradus) / sum * 100.0,
        step(Engine::Torch)
    );
    let slow = || in_step().filter(|row| row.over_torch() < 1.0);
    let names: Vec<String> =
        slow().map(|row| format!("{} ({:.2})", row.item.name, row.over_torch())).collect();
    let lost = if names.is_empty() { "none".to_owned() } else { names.join("; ") };
    let _ = writeln!(page, "\nSlower than PyTorch's, with the ratio of the times: {lost}.");
    let _ = writeln!(
        page,
        "PyTorch's step is its eager one{}; between operators it also adds residuals, sums what autograd accumulates{}.",
        if table.precision == "bf16" { " under autocast" } else { "" },
        if table.precision == "bf16" { " and casts weights and gradients" } else { "" },
    );
}

fn line(page: &mut String, row: &Row, table: &Table, sum: f64) {
    let _ = writeln!(
        page,
        "| {} | {} | {:.2} | {:.1}% | {:.0} {} | {:.0} {} | {:.0}% | {} | {} |",
        row.item.name,
        calls(row.item.calls),
        ours_ms(row),
        ours_ms(row) / sum * 100.0,
        row.work() / row.median(|round| round.ours) * 1e-9,
        per_unit(row),
        row.median(|round| round.ceiling) * 1e-9,
        bound(row, table.unit),
        row.of_ceiling() * 100.0,
        if row.item.peer_calls > 0.0 { format!("{:.2}", torch_ms(row)) } else { "-".to_owned() },
        lies_in(row.item.touched, &machine::caches()),
    );
}

fn ours_ms(row: &Row) -> f64 {
    row.item.calls * row.median(|round| round.ours) * 1e3
}

fn torch_ms(row: &Row) -> f64 {
    row.item.peer_calls * row.median(|round| round.torch) * 1e3
}

/// Milliseconds of a whole step; not a number where its arm is missing.
fn measured_ms(steps: &[table::Row], engine: Engine, precision: &str) -> f64 {
    let found = steps.iter().find(|row| row.plan.engine == engine && row.plan.precision() == precision);
    found.map_or(f64::NAN, |row| Shape::Gpt.sizes().rows() as f64 / row.median() * 1e3)
}
