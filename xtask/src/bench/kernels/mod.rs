//! `cargo x bench kernels`: each operation of the CPU device beside its own ceiling and beside PyTorch's operator for the
//! same thing, at the sizes of a step.
//!
//! Hypothesis: an operation reaches half of its ceiling, and is no slower than PyTorch's. Ceiling: for products, the unit
//! that multiplies, on registers; for all else, the plain stream that is likest to it, over as much memory as the
//! operation touches, so that what fits a cache is held against that cache.
//!
//! How: both programs are warm and sleep until told. For each operation both make the same inputs and run once, and their
//! outputs are compared. Then, in each round, the ceiling, ours and PyTorch's are measured in turn, the first of them
//! changing from round to round. An operation runs again and again on the same tensors, so what fits a cache lies there;
//! in a step it may not. A figure is the median over the rounds, a ratio the median of the rounds' own ratios.

mod catalog;
mod measure;
mod report;
mod table;

use super::keep;
use super::shape::Shape;
use crate::machine;
use anyhow::{Result, ensure};
use measure::{Programs, Table};
use serde_json::{Value, json};

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Models whose sizes are measured.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Shape::ALL)]
    shape: Vec<Shape>,
    /// Arithmetic of products: f32, bf16.
    #[arg(long, value_delimiter = ',', default_values_t = ["f32".to_owned(), "bf16".to_owned()])]
    precision: Vec<String>,
    /// Threads of each program.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How often each operation has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Least seconds of a turn.
    #[arg(long, default_value_t = 0.03)]
    seconds: f64,
    /// Only operations whose name contains one of these.
    #[arg(long, num_args = 1..)]
    only: Vec<String>,
    /// Also measure steps of the GPT, and write docs/step-time.md: how a step's time divides.
    #[arg(long)]
    report: bool,
}

/// Measures, prints the tables, keeps the results.
///
/// # Errors
/// When the peer is missing or an output of ours is not the peer's, after all else has been measured and kept.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.threads > 0, "--rounds and --threads start at 1");
    let unknown = options.precision.iter().find(|name| !["f32", "bf16"].contains(&name.as_str()));
    ensure!(unknown.is_none(), "no precision {unknown:?}: choose f32 or bf16");
    ensure!(
        !options.report || options.only.is_empty() && options.shape.contains(&Shape::Gpt),
        "--report is of all operations of the GPT: leave --only out, and --shape gpt in"
    );
    // Before this run writes results, which are changes too.
    let (facts, commit) = (machine::facts(), machine::commit()?);
    let programs = Programs::prepare()?;
    let mut tables = Vec::new();
    for shape in &options.shape {
        for precision in &options.precision {
            tables.push(measure::measure(*shape, precision, &programs, options)?);
        }
    }
    let steps = if options.report { Some(report::steps(options, &programs)?) } else { None };
    let measured = json!({
        "tables": tables.iter().map(table::as_json).collect::<Vec<_>>(),
        "steps": steps.as_ref().map(|rows| super::table::as_json(rows)),
    });
    keep("kernels", &facts, settings(options), measured)?;
    if let Some(steps) = &steps {
        report::write(&tables, steps, (&facts, &commit), options)?;
    }
    conclude(&tables)
}

fn settings(options: &Options) -> Value {
    json!({
        "shapes": options.shape.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "precisions": options.precision,
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "only": options.only,
    })
}

fn conclude(tables: &[Table]) -> Result<()> {
    for table in tables {
        print!("{}", table::render(table));
    }
    let problems: Vec<String> = tables.iter().flat_map(Table::problems).collect();
    for problem in &problems {
        println!("wrong or missing: {problem}");
    }
    ensure!(problems.is_empty(), "operations wrong or missing: {}", problems.len());
    Ok(())
}
