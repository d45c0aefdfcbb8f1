//! `cargo x bench validation --data FILE`: the held-out loss after some hundred steps, beside PyTorch's from the same
//! initial weights over the same batches.

use super::{keep, work_folder};
use crate::environment::Environment;
use crate::{machine, shell};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The two losses must agree to this part of PyTorch's.
const TOLERANCE: f64 = 0.003;
/// Held out at the end of a single document.
const HELD_OUT: &str = "0.1";

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// A text; its last tenth is held out.
    #[arg(long)]
    data: PathBuf,
    /// Steps to train.
    #[arg(long, default_value_t = 300)]
    steps: usize,
    /// Arithmetic of both: f32 or bf16.
    #[arg(long, default_value = "f32")]
    precision: String,
}

/// Trains on both sides and compares.
///
/// # Errors
/// When either side fails, or the losses do not agree.
pub fn run(options: &Options) -> Result<()> {
    let facts = machine::facts();
    let environment = Environment::ensure("golden")?;
    let binary = shell::release_binary()?;
    let work = work_folder("validation")?;
    let settings = write_settings(options, &work)?;
    let ours = ours(options, &binary, &settings, &work)?;
    let theirs = theirs(options, &environment, &work)?;
    let apart = (ours / theirs - 1.0).abs();
    let text = options.data.file_name().map(|name| name.to_string_lossy().into_owned());
    let measured = json!({ "gradus": ours, "torch": theirs, "apart": apart });
    keep(
        "validation",
        &facts,
        json!({ "data": text, "steps": options.steps, "precision": options.precision }),
        measured,
    )?;
    println!(
        "held-out loss after {} steps, {}: gradus {ours:.4}, torch {theirs:.4}, {:.3}% apart",
        options.steps,
        options.precision,
        apart * 100.0
    );
    if apart > TOLERANCE {
        bail!("the losses are more than {}% apart", TOLERANCE * 100.0);
    }
    Ok(())
}

fn write_settings(options: &Options, work: &Path) -> Result<PathBuf> {
    let data =
        fs::canonicalize(&options.data).with_context(|| format!("cannot find {}", options.data.display()))?;
    let run = work.join("run");
    if run.exists() {
        fs::remove_dir_all(&run).with_context(|| format!("cannot remove {}", run.display()))?;
    }
    let text = format!(
        "[run]\ndir = {run:?}\n[data]\ninput = [{data:?}]\nprepared = {:?}\nvocabulary = 1024\nheld_out = {HELD_OUT}\n\
         [model]\nfamily = \"gpt2\"\nwidth = 192\nlayers = 4\nheads = 6\ncontext = 256\ntied = \"false\"\n\
         [train]\nsteps = {}\nglobal_batch = 8\nprecision = {:?}\nevaluate_tokens = 0\n\
         [optimizer]\nlearning_rate = 3e-4\nschedule = \"constant\"\nwarmup_steps = 0\n[sample]\ntokens = 0\n",
        work.join("data"),
        options.steps,
        options.precision
    );
    let path = work.join("run.toml");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Our held-out loss; what PyTorch needs is handed over first.
fn ours(options: &Options, binary: &Path, settings: &Path, work: &Path) -> Result<f64> {
    let handover = [Path::new("bench"), Path::new("handover"), settings, Path::new("--out"), work];
    shell::run(shell::command(binary, &handover))?;
    shell::run(shell::command(binary, &[Path::new("train"), settings]))?;
    let metrics = work.join("run/metrics.jsonl");
    let text = fs::read_to_string(&metrics).with_context(|| format!("cannot read {}", metrics.display()))?;
    let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_last = |event: &Value| event["event"] == "evaluation" && event["step"] == options.steps;
    let last = events.rfind(is_last);
    last.and_then(|event| event["loss"].as_f64()).context("the run has no last evaluation")
}

fn theirs(options: &Options, environment: &Environment, work: &Path) -> Result<f64> {
    let mut command = environment.script("validate_shakespeare.py");
    command.arg("--init").arg(work.join("init")).arg("--batches").arg(work.join("batches.json"));
    command.arg("--train").arg(work.join("data/train-00000.bin"));
    command.arg("--held-out").arg(work.join("data/held_out-00000.bin"));
    command.args(["--steps", &options.steps.to_string(), "--precision", &options.precision]);
    let printed = shell::output(command)?;
    let last = printed.lines().last().context("PyTorch's side printed nothing")?;
    let result: Value =
        serde_json::from_str(last).with_context(|| format!("PyTorch's side printed {last}"))?;
    result["held_out_loss"].as_f64().context("PyTorch's side gave no held-out loss")
}
