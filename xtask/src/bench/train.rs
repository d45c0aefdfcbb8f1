//! Training steps beside PyTorch's, interleaved.
//!
//! Hypothesis: with the matrix unit fed well, a step on a CPU takes a third of PyTorch's time in bf16 and no longer than
//! PyTorch's in f32; two ranks over shared memory reach nearly what two independent copies do. Ceiling: the two copies.
//!
//! How: every arm is a warm process that sleeps until it is told to step. In each round each arm runs the same few steps,
//! alone on the machine; the round's order rotates, so that no arm always follows the same one. Layouts that are not
//! compared with each other are measured one after the other, since a worker of PyTorch's holds 0.7 GB; of SmolLM2-135M it
//! holds 4 GB, so there precisions are measured one after the other too. All arms start from the same weights and see the
//! same batches, and our losses are held against PyTorch's in the same run. After its turns each arm says what memory it
//! holds (`memory.rs`).

use super::arm::{Arm, Layout, Plan, plans};
use super::inputs::Inputs;
use super::scaling::{self, ScalingOptions};
use super::shape::Shape;
use super::table::{self, Row};
use super::{in_turns, keep, memory, work_folder};
use crate::machine;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each arm has its turn.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Steps of a turn.
    #[arg(long, default_value_t = 4)]
    pub steps: usize,
    /// Model and batch: a GPT of 13.9M parameters, or SmolLM2-135M (by threads only).
    #[arg(long, value_enum, default_value_t = Shape::Gpt)]
    pub shape: Shape,
    /// Only arms whose name contains one of these; see the table for names.
    #[arg(long, num_args = 1..)]
    pub arms: Vec<String>,
    /// The text that batches are cut from; the sources of this repository when not given.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Measure this binary; without it, this tree's release build.
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Of what is split among ranks.
    #[command(flatten)]
    pub scaling: ScalingOptions,
}

/// Measures, prints the table, keeps the results.
///
/// # Errors
/// When an arm is missing or a loss of ours is wrong, after all else has been measured and kept.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.steps > 0, "--rounds and --steps start at 1");
    if options.scaling.scaling {
        return scaling::run(options);
    }
    let is_chosen = |plan: &Plan| is_measured(plan, options.shape) && is_named(plan, &options.arms);
    let chosen: Vec<Plan> = plans().into_iter().filter(is_chosen).collect();
    ensure!(
        !chosen.is_empty(),
        "no arm's name contains {}; `--arms thread` is all",
        options.arms.join(" or ")
    );
    let facts = machine::facts();
    let inputs = Inputs::prepare(options.shape, options.binary.as_deref(), options.data.as_deref())?;
    let mut rows = Vec::new();
    for together in groups(&chosen, options.shape) {
        rows.extend(measure(&together, &inputs, options.rounds, options.steps)?);
    }
    conclude(&rows, options, &facts)
}

/// Measures arms that take turns with each other.
///
/// # Errors
/// When their logs cannot be written; an arm that fails keeps its row.
pub fn measure(plans: &[Plan], inputs: &Inputs, rounds: usize, steps: usize) -> Result<Vec<Row>> {
    let mut arms = start_all(plans, inputs)?;
    in_turns(rounds, arms.len(), |place| take_turn(&mut arms[place], steps));
    arms.iter_mut().for_each(ask_memory);
    Ok(arms.into_iter().map(|(_, row)| row).collect())
}

/// A large model is not spread over ranks: on a host that this is meant for, they would not fit it.
fn is_measured(plan: &Plan, shape: Shape) -> bool {
    shape == Shape::Gpt || matches!(plan.layout, Layout::Threads(_))
}

/// Arms that are compared with each other, and as many of them at once as memory allows.
fn groups(chosen: &[Plan], shape: Shape) -> Vec<Vec<Plan>> {
    let mut groups: Vec<Vec<Plan>> = Vec::new();
    for together in chosen.chunk_by(|one, next| one.layout.is_measured_with(next.layout)) {
        if shape == Shape::Gpt {
            groups.push(together.to_vec());
            continue;
        }
        for precision in ["f32", "bf16"] {
            let of_precision = together.iter().filter(|plan| plan.precision() == precision);
            groups.push(of_precision.cloned().collect());
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

fn is_named(plan: &Plan, arms: &[String]) -> bool {
    arms.is_empty() || arms.iter().any(|part| plan.to_string().contains(part.as_str()))
}

/// One after the other: warming up is work too, and would disturb another's. An arm that fails keeps its row.
fn start_all(plans: &[Plan], inputs: &Inputs) -> Result<Vec<(Option<Arm>, Row)>> {
    let logs = work_folder("train")?;
    let start = |plan: &Plan| {
        eprintln!("starting {plan}");
        let log = logs.join(plan.to_string().replace([' ', ','], "-"));
        let (arm, missing) = match Arm::start(plan, || inputs.command(plan), &log) {
            Ok(arm) => (Some(arm), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let ready = arm.as_ref().map_or(Value::Null, |arm| arm.ready().clone());
        (arm, Row { plan: plan.clone(), ready, turns: Vec::new(), memory: Value::Null, missing })
    };
    Ok(plans.iter().map(start).collect())
}

/// An arm that fails on its way is missing from then on: half a row compares with nothing.
fn take_turn((arm, row): &mut (Option<Arm>, Row), steps: usize) {
    let Some(running) = arm else { return };
    match running.turn(steps) {
        Ok(turn) => row.turns.push(turn),
        Err(error) => {
            row.missing = Some(format!("{error:#}"));
            *arm = None;
        }
    }
}

/// What an arm that is still there holds; who cannot say keeps its row without it.
fn ask_memory((arm, row): &mut (Option<Arm>, Row)) {
    if let Some(Ok(memory)) = arm.as_mut().map(Arm::memory) {
        row.memory = memory;
    }
}

fn conclude(rows: &[Row], options: &Options, facts: &Value) -> Result<()> {
    let wrong = table::wrong_losses(rows);
    let settings = json!({
        "model": options.shape.to_string(),
        "rounds": options.rounds,
        "steps": options.steps,
        "arms": options.arms,
        "data": options.data.as_deref().and_then(Path::file_name).map(OsStr::to_string_lossy),
        "other_binary": options.binary.is_some(),
    });
    keep("train", facts, settings, json!({ "wrong_losses": wrong, "arms": table::as_json(rows) }))?;
    for problem in &wrong {
        println!("wrong: {problem}");
    }
    println!("{}", options.shape);
    print!("{}", memory::render(rows, options.shape));
    print!("\n{}", table::render(rows));
    let missing = rows.iter().filter(|row| row.missing.is_some()).count();
    ensure!(wrong.is_empty(), "arms of ours whose losses are not PyTorch's: {}", wrong.len());
    ensure!(missing == 0, "arms missing: {missing}; the table says why");
    Ok(())
}
