//! `gradus bench train`: training steps of a fixed model, run when told on stdin, so that several programs can take turns
//! on one machine. `cargo x bench train` speaks this protocol with us and with PyTorch (python/bench_train.py): `step K`
//! is answered by the time and the loss, `memory` by the bytes that are held.

use super::open_device;
use crate::launcher::{ExitStatusSummary, Membership, launch_local};
use crate::logging;
use anyhow::{Context, Result, bail};
use gradus_collective::Communicator;
use gradus_compute::{CpuDevice, Device, Precision};
use gradus_error::Error;
use gradus_fabric::{NetworkSettings, TransportKind, connect};
use gradus_host::{Clock, RealClock, processors};
use gradus_model::{Batch, Family, ModelConfig, PRESETS, Parameters, hugging_face, logits_rows};
use gradus_train::{
    FirstWeights, Learner, LearnerSettings, Microbatches, OptimizerSettings, ParallelSettings, ScheduleKind,
    stages,
};
use serde::Deserialize;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const WARMUP_STEPS: usize = 3;
/// Between commands the other ranks wait in a broadcast: as long as a person may think.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);

/// The models that are measured, with their batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// A GPT of 13.9M parameters.
    Gpt,
    /// SmolLM2-135M.
    Smollm2,
}

/// Sizes, batches and learning rates, which the task runner and the peer read too.
const SHAPES: &str = include_str!("../../../../benches/shapes.json");

/// What is measured, with the letters of the code's legend where a size has one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    vocabulary: usize,
    width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    feed_forward: usize,
    /// Tokens of a sequence.
    sequence: usize,
    /// Sequences of a step.
    batch: usize,
    /// Without a warm-up, 3e-4 throws the loss of thirty layers from 11 to 13 within four steps; on such a spike rounding
    /// alone makes half a percent, and losses of two programs say nothing of each other.
    learning_rate: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllSizes {
    gpt: Sizes,
    smollm2: Sizes,
}

impl Shape {
    fn sizes(self) -> Sizes {
        let all: AllSizes = serde_json::from_str(SHAPES).expect("a test reads it");
        match self {
            Self::Gpt => all.gpt,
            Self::Smollm2 => all.smollm2,
        }
    }

    fn model(self) -> Result<ModelConfig> {
        match self {
            Self::Gpt => Ok(self.sizes().gpt()),
            Self::Smollm2 => {
                let found = PRESETS.iter().find(|(name, _)| *name == "smollm2-135m");
                Ok(found.context("the preset is gone")?.1.clone())
            }
        }
    }
}

impl Sizes {
    /// Tokens that a step reads, targets of the last ones included.
    fn batch_tokens(self) -> usize {
        self.batch * (self.sequence + 1)
    }

    /// Tokens that a step learns from.
    fn rows(self) -> usize {
        self.batch * self.sequence
    }

    /// The benchmark's own model.
    fn gpt(self) -> ModelConfig {
        ModelConfig {
            family: Family::Gpt2,
            vocabulary: self.vocabulary,
            context: self.sequence,
            width: self.width,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_size: self.head_size,
            feed_forward: self.feed_forward,
            tied: false,
            qkv_bias: true,
            norm_epsilon: 1e-5,
            rope_theta: 10_000.0,
        }
    }
}

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct BenchTrainArguments {
    /// Arithmetic of matrix products: f32 or bf16.
    #[arg(long, default_value = "bf16", value_parser = super::parse_precision)]
    pub precision: Precision,
    /// Model and batch.
    #[arg(long, value_enum, default_value = "gpt")]
    pub shape: Shape,
    /// Threads of each rank.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Ranks, over shared memory; each takes 8 (smollm2: 2) sequences of every step.
    #[arg(long, default_value_t = 1)]
    pub ranks: usize,
    /// Folder with the initial weights; without it they are random.
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Tokens of the batches, raw little-endian u16, [steps][8][257] (smollm2: [steps][2][513]); without it they are made up.
    #[arg(long)]
    pub batches: Option<PathBuf>,
}

/// Serves steps until the end of stdin.
///
/// # Errors
/// What is wrong with the folder or the file; a rank's failure.
pub fn run(arguments: &BenchTrainArguments) -> Result<()> {
    let launch = super::place_in_the_world()?;
    if launch.is_none() && arguments.ranks > 1 {
        return launch_ranks(arguments.ranks);
    }
    let communicator = match &launch {
        Some(launch) => {
            let transport = connect(launch, TransportKind::Auto, &NetworkSettings::default(), "bench")?;
            Communicator::new(transport, PATIENCE)
        }
        None => Communicator::alone(),
    };
    let mut bench = Bench::new(arguments, communicator)?;
    bench.run(WARMUP_STEPS)?;
    bench.serve()
}

fn launch_ranks(ranks: usize) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match launch_local(&program, &arguments, ranks, &[], Membership::Nowhere)? {
        ExitStatusSummary::Done => Ok(()),
        other => bail!("{other}"),
    }
}

/// The learner, and where it stands in the batches.
struct Bench {
    learner: Learner,
    batches: StoredBatches,
    clock: RealClock,
    precision: Precision,
    threads: usize,
    device: Arc<CpuDevice>,
    resident_before: Option<u64>,
}

impl Bench {
    fn new(arguments: &BenchTrainArguments, communicator: Communicator) -> Result<Self> {
        let resident_before = processors::resident_bytes();
        let (shape, device) =
            (arguments.shape, Arc::new(open_device(arguments.threads, 1, arguments.precision)?));
        let optimizer = OptimizerSettings {
            learning_rate: shape.sizes().learning_rate,
            schedule: ScheduleKind::Constant,
            warmup_steps: 0,
            ..Default::default()
        };
        let world_size = communicator.world_size();
        let settings = LearnerSettings {
            optimizer,
            parallel: ParallelSettings::default(),
            stages: stages::cut(shape.sizes().layers, 1, 0.0),
            rows: shape.sizes().rows(),
            microbatches: world_size,
            recompute: false,
            bucket_bytes: 1 << 20,
        };
        let batches = StoredBatches::open(shape.sizes(), arguments.batches.as_deref(), world_size)?;
        let (config, first) = first(shape, arguments.init.clone())?;
        let learner =
            Learner::new(config, &(Arc::clone(&device) as Arc<dyn Device>), communicator, settings)?;
        learner.begin_with(&first)?;
        Ok(Self {
            learner,
            batches,
            clock: RealClock::new(),
            precision: arguments.precision,
            threads: arguments.threads,
            device,
            resident_before,
        })
    }

    /// Runs steps; seconds, and the loss of the last one before its update.
    fn run(&mut self, steps: usize) -> Result<(f64, f64)> {
        self.learner.communicator().barrier()?;
        let start = self.clock.now();
        let mut loss = f64::NAN;
        for _ in 0..steps {
            let learning_rate = self.batches.sizes.learning_rate;
            loss = self.learner.step(&mut self.batches, learning_rate, false)?.loss.mean();
            self.batches.step += 1;
        }
        self.learner.communicator().barrier()?;
        Ok(((self.clock.now() - start).as_secs_f64(), loss))
    }

    fn facts(&mut self) -> serde_json::Value {
        serde_json::json!({
            "mode": format!("{:?}", self.precision).to_lowercase(),
            "threads": self.threads,
            "ranks": self.learner.communicator().world_size(),
            "device": self.device.describe(),
            "warmup_steps": WARMUP_STEPS,
        })
    }

    /// Bytes held: `state` is weights (their own masters), gradients and moments; `kept` what else the device has handed
    /// out, planned once: what blocks leave for their backward pass, gradients between layers, a piece of logits
    /// (`logits`, counted in `kept`); `scratch` what kernels work in; `peak` and `before` resident memory at its most and
    /// before there was a model.
    fn memory(&self) -> serde_json::Value {
        let config = self.learner.config();
        let (elements, vocabulary) = (Parameters::new(config).layout.len(), config.padded_vocabulary());
        let rows = self.batches.sizes.rows();
        let state = 4 * 4 * elements;
        serde_json::json!({
            "state_bytes": state,
            "kept_bytes": 4 * self.device.allocated() - state,
            "logits_bytes": 4 * logits_rows(vocabulary, rows) * vocabulary,
            "scratch_bytes": self.device.scratch_bytes(),
            "peak_bytes": processors::peak_resident_bytes(),
            "before_bytes": self.resident_before,
        })
    }

    /// Rank 0 reads `step K` and tells the others; they wait for it.
    fn serve(&mut self) -> Result<()> {
        let first = self.learner.communicator().rank() == 0;
        let mut facts = self.facts();
        if first {
            logging::print(format_args!("ready {facts}"))?;
        }
        let mut lines = std::io::stdin().lock().lines();
        loop {
            let mut order = if first { self.next_order(&mut lines)?.to_le_bytes() } else { [0; 8] };
            self.learner.communicator().broadcast(0, &mut order)?;
            let steps = u64::from_le_bytes(order) as usize;
            if steps == 0 {
                return Ok(());
            }
            let before = self.learner.communicator().counters().waited_ns;
            let (seconds, loss) = self.run(steps)?;
            let waited = self.learner.communicator().counters().waited_ns - before;
            if first {
                facts["tokens"] = (steps * self.batches.sizes.rows() * self.batches.world_size).into();
                facts["seconds"] = seconds.into();
                facts["loss"] = loss.into();
                facts["exposed_s"] = (waited as f64 * 1e-9).into();
                facts["steps_done"] = self.batches.step.into();
                logging::print(format_args!("{facts}"))?;
            }
        }
    }

    /// The next `step K`; 0 at the end of stdin. What else is asked for is answered meanwhile.
    fn next_order(&self, lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<u64> {
        for line in lines {
            let line = line.context("cannot read stdin")?;
            match line.strip_prefix("step ").and_then(|count| count.trim().parse().ok()) {
                Some(steps) if steps > 0 => return Ok(steps),
                _ if line == "memory" => logging::print(format_args!("{}", self.memory()))?,
                _ => logging::print(format_args!(
                    "{}",
                    serde_json::json!({ "error": format!("expected `step K` or `memory`, got {line:?}") })
                ))?,
            }
        }
        Ok(0)
    }
}

/// What is trained, and what it begins with.
fn first(shape: Shape, init: Option<PathBuf>) -> Result<(ModelConfig, FirstWeights)> {
    match init {
        Some(folder) => Ok((hugging_face::read_config(&folder)?, FirstWeights::Folder(folder))),
        None => Ok((shape.model()?, FirstWeights::Seed(1))),
    }
}

/// Batches one after another, over and over; with ranks, rank `r` takes batch `world_size * step + r`.
struct StoredBatches {
    sizes: Sizes,
    /// `[batches][B][T + 1]`.
    tokens: Vec<u32>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    world_size: usize,
    step: usize,
}

impl StoredBatches {
    fn open(sizes: Sizes, file: Option<&Path>, world_size: usize) -> Result<Self> {
        let tokens = match file {
            Some(path) => read_tokens(path, sizes.batch_tokens())?,
            // Any fixed tokens do where only the time counts.
            None => {
                (0..64 * sizes.batch_tokens() as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 20).collect()
            }
        };
        Ok(Self { sizes, tokens, inputs: Vec::new(), targets: Vec::new(), world_size, step: 0 })
    }
}

fn read_tokens(path: &Path, batch_tokens: usize) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.is_empty() || !bytes.len().is_multiple_of(2 * batch_tokens) {
        let text =
            format!("{} holds no whole number of batches of {batch_tokens} u16 tokens", path.display());
        return Err(Error::invalid(text).into());
    }
    Ok(bytes.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect())
}

impl Microbatches for StoredBatches {
    fn count(&self) -> usize {
        self.world_size
    }

    fn load(&mut self, index: usize) -> gradus_error::Result<Batch<'_>> {
        let (batch_tokens, sequence) = (self.sizes.batch_tokens(), self.sizes.sequence);
        let batches = self.tokens.len() / batch_tokens;
        let number = (self.world_size * self.step + index) % batches;
        let rows = self.tokens[number * batch_tokens..][..batch_tokens].chunks_exact(sequence + 1);
        self.inputs.clear();
        self.targets.clear();
        for row in rows {
            self.inputs.extend_from_slice(&row[..sequence]);
            self.targets.extend_from_slice(&row[1..]);
        }
        let (tokens, targets) = (&self.inputs, &self.targets);
        Ok(Batch { batch: self.sizes.batch, sequence, tokens, targets, documents: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_models_that_run() {
        for shape in [Shape::Gpt, Shape::Smollm2] {
            let (sizes, model) = (shape.sizes(), shape.model().unwrap());
            assert_eq!(
                [sizes.vocabulary, sizes.width, sizes.layers, sizes.heads, sizes.kv_heads, sizes.head_size],
                [model.vocabulary, model.width, model.layers, model.heads, model.kv_heads, model.head_size]
            );
            assert!(sizes.feed_forward == model.feed_forward && sizes.sequence <= model.context, "{shape:?}");
        }
    }
}
