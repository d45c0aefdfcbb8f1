//! `cargo x bench train --scaling`: one step, split in every way among 1, 2 and 4 ranks.
//!
//! Hypothesis: replicas come near to as many ranks' worth of one; shards cost what their gathers and scatters leave exposed; a
//! pipeline waits as long as its plan says, and otherwise computes. Ceiling: one rank's speed times the ranks, of a pipeline
//! less its planned bubble; replicas share the memory bus, so they are what others are held against.
//!
//! How: all arms learn from the same global batch, cut into the same microbatches, from the same weights, so their losses are
//! one rank's but for rounding, and are checked to be. Every arm is a job that sleeps until it is told to step; the arms of a
//! group take turns as in [`super::train`]. Of each turn the job says how long its ranks waited along each axis, and of a
//! pipeline what its stages took and what waiting its plan has for such stages.

mod row;
mod split;
mod table;

use super::arm::Turn;
use super::inputs::texts;
use super::shape::Shape;
use super::train::Options;
use super::worker::Worker;
use super::{in_turns, keep, work_folder};
use crate::{machine, shell};
use anyhow::{Context, Result, ensure};
use row::Row;
use serde_json::{Value, json};
use split::{GROUPS, Split};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Batches of a shape that a step of all ranks has: as many as the most ranks take.
const BATCHES_OF_A_STEP: usize = 4;
/// Sequences that are cut from the text at most; a longer run starts over.
const SEQUENCES: usize = 2048;

/// What is said of it beside what the training measurement takes.
#[derive(Debug, clap::Args)]
pub struct ScalingOptions {
    /// Split one step in every way among 1, 2 and 4 ranks, instead of measuring beside PyTorch.
    #[arg(long)]
    pub scaling: bool,
    /// Arithmetic of matrix products: f32 or bf16.
    #[arg(long, default_value = "bf16", requires = "scaling", value_parser = ["f32", "bf16"])]
    precision: String,
    /// Microbatches of a step, over all ranks.
    #[arg(long, default_value_t = 8, requires = "scaling")]
    microbatches: usize,
}

/// Measures, prints the table, keeps the results.
///
/// # Errors
/// When an arm is missing or its losses are not one rank's, after all else has been measured and kept.
pub fn run(options: &Options) -> Result<()> {
    let groups = chosen(&options.arms);
    ensure!(!groups.is_empty(), "no split's name contains {}", options.arms.join(" or "));
    let facts = machine::facts();
    let job = Job::prepare(options)?;
    let groups: Vec<Vec<Row>> =
        groups.iter().map(|group| measure(group, &job, options)).collect::<Result<_>>()?;
    conclude(&groups, options, &facts)
}

/// The groups with what is named in them, and what that is held against.
fn chosen(names: &[String]) -> Vec<Vec<Split>> {
    let is_named = |split: &Split| {
        names.is_empty() || names.iter().any(|part| split.to_string().contains(part.as_str()))
    };
    let groups = GROUPS.iter().filter(|group| group[1..].iter().any(is_named));
    groups.map(|group| group.iter().copied().filter(|s| s.is_reference() || is_named(s)).collect()).collect()
}

/// What all arms start from.
struct Job {
    binary: PathBuf,
    batches: PathBuf,
    shape: Shape,
    precision: String,
    microbatches: usize,
}

impl Job {
    fn prepare(options: &Options) -> Result<Self> {
        let binary = options.binary.as_deref();
        let binary = binary.map_or_else(shell::release_binary, |given| Ok(std::path::absolute(given)?))?;
        let shape = options.shape;
        let batches = work_folder("scaling")?.join(format!("batches-{}.bin", shape.name()));
        write_batches(&batches, shape, &texts(options.data.as_deref())?)?;
        let ScalingOptions { precision, microbatches, .. } = &options.scaling;
        Ok(Self { binary, batches, shape, precision: precision.clone(), microbatches: *microbatches })
    }

    fn command(&self, split: &Split) -> Command {
        let words = ["bench", "train", "--shape", self.shape.name(), "--precision", &self.precision];
        let mut command = shell::command(&self.binary, &words);
        command.args(split.words()).arg("--batches").arg(&self.batches);
        command.arg("--microbatches").arg(self.microbatches.to_string());
        command.arg("--sequences").arg(sequences(self.shape).to_string());
        command
    }
}

/// Of a step.
fn sequences(shape: Shape) -> usize {
    BATCHES_OF_A_STEP * shape.sizes().batch
}

/// The bytes of texts as tokens, as many as make whole batches.
fn write_batches(path: &Path, shape: Shape, texts: &[PathBuf]) -> Result<()> {
    let sizes = shape.sizes();
    let row = sizes.sequence + 1;
    let mut tokens: Vec<u8> = Vec::new();
    for text in texts {
        tokens.extend(fs::read(text).with_context(|| format!("cannot read {}", text.display()))?);
    }
    let count = (tokens.len() / row).min(SEQUENCES) / sizes.batch * sizes.batch;
    ensure!(count > 0, "the text has {} bytes, fewer than {} sequences of {row}", tokens.len(), sizes.batch);
    let wide: Vec<u8> = tokens[..count * row].iter().flat_map(|byte| [*byte, 0]).collect();
    fs::write(path, wide).with_context(|| format!("cannot write {}", path.display()))
}

fn measure(group: &[Split], job: &Job, options: &Options) -> Result<Vec<Row>> {
    let mut arms = group.iter().map(|split| start(split, job)).collect::<Result<Vec<_>>>()?;
    in_turns(options.rounds, arms.len(), |place| {
        let (worker, row) = &mut arms[place];
        take_turn(worker, row, options.steps);
    });
    for (worker, row) in &mut arms {
        if let Some(Ok(memory)) = worker.as_mut().map(|worker| worker.ask("memory")) {
            row.memory = memory;
        }
    }
    Ok(arms.into_iter().map(|(_, row)| row).collect())
}

/// A job that does not start keeps its row.
fn start(split: &Split, job: &Job) -> Result<(Option<Worker>, Row)> {
    eprintln!("starting {split}");
    let log = work_folder("scaling")?.join(format!("{split}.log").replace([' ', ','], "-"));
    let (worker, missing) = match Worker::start(job.command(split), &log) {
        Ok(worker) => (Some(worker), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let ready = worker.as_ref().map_or(Value::Null, |worker| worker.ready().clone());
    Ok((worker, Row { split: *split, ready, turns: Vec::new(), memory: Value::Null, missing }))
}

/// One that fails on its way is missing from then on.
fn take_turn(worker: &mut Option<Worker>, row: &mut Row, steps: usize) {
    let Some(running) = worker else { return };
    match running.ask(format_args!("step {steps}")).and_then(|answer| Turn::of(vec![answer])) {
        Ok(turn) => row.turns.push(turn),
        Err(error) => {
            row.missing = Some(format!("{error:#}"));
            *worker = None;
        }
    }
}

fn conclude(groups: &[Vec<Row>], options: &Options, facts: &Value) -> Result<()> {
    let ScalingOptions { precision, microbatches, .. } = &options.scaling;
    let cores = facts["cores"].as_u64().unwrap_or(0) as usize;
    let wrong: Vec<String> = groups.iter().flat_map(|rows| row::wrong_losses(rows, precision)).collect();
    let settings = json!({
        "model": options.shape.to_string(),
        "precision": precision,
        "sequences": sequences(options.shape),
        "microbatches": microbatches,
        "rounds": options.rounds,
        "steps": options.steps,
        "arms": options.arms,
        "other_binary": options.binary.is_some(),
    });
    let groups_as_json: Vec<Value> = groups.iter().map(|rows| table::as_json(rows, cores)).collect();
    keep("scaling", facts, settings, json!({ "wrong_losses": wrong, "groups": groups_as_json }))?;
    for problem in &wrong {
        println!("wrong: {problem}");
    }
    let (sequences, threads) = (sequences(options.shape), "1 thread each");
    println!(
        "{}\n{precision}, {sequences} sequences a step in {microbatches} microbatches, {threads}, {cores} cores",
        options.shape
    );
    print!("{}", table::render(groups, cores));
    let missing = groups.iter().flatten().filter(|row| row.missing.is_some()).count();
    ensure!(wrong.is_empty(), "arms whose losses are not one rank's: {}", wrong.len());
    ensure!(missing == 0, "arms missing: {missing}; the table says why");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_with_what_it_is_held_against() {
        let names = |parts: &[&str]| {
            let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            let names = |group: Vec<Split>| group.iter().map(Split::to_string).collect::<Vec<_>>();
            chosen(&parts).into_iter().map(names).collect::<Vec<_>>()
        };
        assert_eq!(names(&["gpipe"]), [["1 rank", "2 ranks, dp 2", "2 ranks, pp 2, gpipe"]]);
        assert_eq!(names(&["4 ranks, fsdp"])[0].len(), 3);
        assert_eq!(names(&[]).concat().len(), GROUPS.concat().len());
        assert!(names(&["moon"]).is_empty());
    }

    #[test]
    fn texts_become_whole_batches() {
        let folder = tempfile::tempdir().unwrap();
        let [text, batches] = ["text", "batches"].map(|name| folder.path().join(name));
        fs::write(&text, vec![7; 9 * 257 + 3]).unwrap();
        write_batches(&batches, Shape::Gpt, std::slice::from_ref(&text)).unwrap();
        let written = fs::read(&batches).unwrap();
        assert_eq!((written.len(), &written[..4]), (2 * 8 * 257, &[7, 0, 7, 0][..]));
        fs::write(&text, "short").unwrap();
        assert!(write_batches(&batches, Shape::Gpt, &[text]).is_err());
    }

    #[test]
    fn microbatches_divide_the_steps_of_all_shapes() {
        assert!(Shape::ALL.iter().all(|shape| sequences(*shape).is_multiple_of(8)));
    }
}
