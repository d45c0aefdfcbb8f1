//! `gradus bench train`: training steps of a fixed model, run when told on stdin, so that several programs can take turns
//! on one machine. `cargo x bench train` speaks this protocol with us and with PyTorch (python/bench_train.py): `step K`
//! is answered by the time and the loss, `memory` by the bytes that are held. Ours also says where the time went on each rank.

mod account;
mod batches;
mod shape;
mod split;

use super::open_device;
use crate::launcher::{ExitStatusSummary, Membership, launch_local};
use crate::logging;
use crate::run_settings::ring_for;
use account::Account;
use anyhow::{Context, Result, bail};
use batches::StoredBatches;
use gradus_collective::Communicator;
use gradus_compute::{CpuDevice, Device, Precision};
use gradus_fabric::{NetworkSettings, TransportKind, connect};
use gradus_host::{Clock, RealClock, processors};
use gradus_model::{ModelConfig, Parameters, hugging_face, logits_rows};
use gradus_train::pipeline::Kind;
use gradus_train::plan::{Sizes, Split, Work};
use gradus_train::{
    FirstWeights, Learner, LearnerSettings, OptimizerSettings, ScheduleKind, TrainSettings, stages,
};
pub use shape::Shape;
use split::SplitArguments;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const WARMUP_STEPS: usize = 3;
/// Between commands the other ranks wait in a broadcast: as long as a person may think.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);

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
    /// Ranks, over shared memory.
    #[arg(long, default_value_t = 1)]
    pub ranks: usize,
    /// How they split a step.
    #[command(flatten)]
    split: SplitArguments,
    /// Folder with the initial weights; without it they are random.
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Tokens of the batches, raw little-endian u16, [batches][8][257] (smollm2: [batches][2][513]), of which steps take one
    /// sequence after the other; without it they are made up.
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
        arguments.split.cut(arguments.shape.sizes(), arguments.ranks)?;
        return launch_ranks(arguments.ranks);
    }
    let communicator = match &launch {
        Some(launch) => {
            let network = NetworkSettings { ring_bytes: ring_bytes(arguments)?, ..Default::default() };
            let transport = connect(launch, TransportKind::Auto, &network, "bench")?;
            Communicator::new(transport, PATIENCE)
        }
        None => Communicator::alone(),
    };
    let mut bench = Bench::new(arguments, communicator)?;
    bench.run(WARMUP_STEPS)?;
    bench.serve()
}

/// As a run would have them: stages hand each other a microbatch's rows.
fn ring_bytes(arguments: &BenchTrainArguments) -> Result<usize> {
    let (sizes, parallel) = (arguments.shape.sizes(), arguments.split.parallel());
    if parallel.pp == 1 {
        return Ok(0);
    }
    let rows = arguments.split.cut(sizes, arguments.ranks)?.each() * sizes.sequence;
    Ok(ring_for(rows.div_ceil(parallel.tp) * sizes.width * size_of::<f32>()))
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
    schedule: Kind,
    /// What each rank's device has handed out.
    device_bytes: Vec<f64>,
    /// What `gradus plan train` expects that of this rank to be.
    planned_bytes: u64,
    resident_before: Option<u64>,
}

impl Bench {
    fn new(arguments: &BenchTrainArguments, communicator: Communicator) -> Result<Self> {
        let resident_before = processors::resident_bytes();
        let (shape, device) =
            (arguments.shape, Arc::new(open_device(arguments.threads, 1, arguments.precision)?));
        let sizes = shape.sizes();
        let cut = arguments.split.cut(sizes, communicator.world_size())?;
        let batches = StoredBatches::open(sizes, arguments.batches.as_deref(), cut)?;
        let (config, first) = first(shape, arguments.init.clone())?;
        let parallel = arguments.split.parallel();
        let head = stages::head_in_blocks(&config, sizes.sequence);
        let settings = LearnerSettings {
            optimizer: optimizer(sizes.learning_rate),
            stages: stages::cut(config.layers, parallel.stages(), head),
            parallel,
            rows: cut.each() * sizes.sequence,
            microbatches: cut.microbatches,
            recompute: false,
            bucket_bytes: 1 << 20,
        };
        let schedule = settings.parallel.schedule;
        let planned_bytes = planned_bytes(arguments, &config, &settings, &device, &communicator)?;
        let (clock, any_device) = (RealClock::new(), Arc::clone(&device) as Arc<dyn Device>);
        let mut learner = Learner::new(config, &any_device, communicator, settings)?;
        learner.keep_account(Arc::new(clock));
        learner.begin_with(&first)?;
        let device_bytes = account::gather(learner.communicator(), &[4.0 * device.allocated() as f64])?;
        let (precision, threads) = (arguments.precision, arguments.threads);
        Ok(Self {
            learner,
            batches,
            clock,
            precision,
            threads,
            device,
            schedule,
            device_bytes,
            planned_bytes,
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

    /// Bytes held: `device_bytes` all that each rank's device has handed out, planned once, and `planned_bytes` what
    /// `gradus plan train` says of rank 0. Where every rank has the whole
    /// model, of that `state` is weights (their own masters), gradients and moments, and `kept` the rest: what blocks leave
    /// for their backward pass, gradients between layers, a piece of logits (`logits`, counted in `kept`). `scratch` is what
    /// kernels work in; `peak` and `before` resident memory at its most and before there was a model.
    fn memory(&self) -> serde_json::Value {
        let config = self.learner.config();
        let (elements, vocabulary) = (Parameters::new(config).layout.len(), config.padded_vocabulary());
        let rows = self.batches.cut.each() * self.batches.sizes.sequence;
        let held = 4 * self.device.allocated();
        let shards = self.learner.mesh().fsdp > 1;
        let state = self.learner.whole_model().filter(|_| !shards).map(|_| 4 * 4 * elements);
        serde_json::json!({
            "device_bytes": self.device_bytes,
            "planned_bytes": self.planned_bytes,
            "state_bytes": state,
            "kept_bytes": state.map(|state| held - state),
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
            let answer = self.turn(steps)?;
            if first {
                facts.as_object_mut().expect("facts are an object").extend(answer);
                logging::print(format_args!("{facts}"))?;
            }
        }
    }

    /// Runs steps, and says what came of it.
    fn turn(&mut self, steps: usize) -> Result<serde_json::Map<String, serde_json::Value>> {
        let before = Account::so_far(&self.learner);
        let (seconds, loss) = self.run(steps)?;
        let own = Account::so_far(&self.learner).since(&before);
        let ranks = own.of_all(self.learner.communicator())?;
        let (mesh, shape) = (*self.learner.mesh(), self.learner.pipeline());
        let mut answer = serde_json::Map::new();
        answer.insert("tokens".to_owned(), (steps * self.batches.tokens_of_step()).into());
        answer.insert("seconds".to_owned(), seconds.into());
        answer.insert("loss".to_owned(), loss.into());
        answer.insert("steps_done".to_owned(), self.batches.step.into());
        answer.insert("pipeline".to_owned(), account::pipeline(&ranks, &mesh, shape, self.schedule)?);
        answer.extend(account::exposed(&ranks).map(|(key, value)| (key.to_owned(), value)));
        Ok(answer)
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

/// What a rank's device will hand out, by the arithmetic of `gradus plan train`.
fn planned_bytes(
    arguments: &BenchTrainArguments,
    config: &ModelConfig,
    settings: &LearnerSettings,
    device: &CpuDevice,
    communicator: &Communicator,
) -> Result<u64> {
    let (sizes, ranks) = (arguments.shape.sizes(), communicator.world_size());
    let cut = arguments.split.cut(sizes, ranks)?;
    let train = TrainSettings {
        sequence_length: sizes.sequence,
        global_batch: cut.sequences,
        microbatch: cut.each(),
        precision: arguments.precision,
        recompute: settings.recompute,
        ..Default::default()
    };
    let work = Work { model: config.clone(), train, optimizer: settings.optimizer.clone() };
    let split = Split::new(&work, &settings.parallel, ranks)?.with_stages(settings.stages.clone());
    let prepared = |shape, usage| device.prepared_len(shape, usage);
    let place = split.mesh.coordinates(communicator.rank());
    Ok(Sizes::new(&work, &prepared).of_rank(&split, place).total())
}

/// The defaults, at one learning rate throughout.
fn optimizer(learning_rate: f64) -> OptimizerSettings {
    OptimizerSettings {
        learning_rate,
        schedule: ScheduleKind::Constant,
        warmup_steps: 0,
        ..Default::default()
    }
}

/// What is trained, and what it begins with.
fn first(shape: Shape, init: Option<PathBuf>) -> Result<(ModelConfig, FirstWeights)> {
    match init {
        Some(folder) => Ok((hugging_face::read_config(&folder)?, FirstWeights::Folder(folder))),
        None => Ok((shape.model()?, FirstWeights::Seed(1))),
    }
}
