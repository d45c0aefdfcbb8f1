//! All settings of a run, section by section, as a TOML file gives them.

use crate::data_section::DataSection;
use crate::settings::parse_duration;
use gradus_error::{Error, Result};
use gradus_fabric::membership::CoordinatorAddress;
use gradus_fabric::{Launch, NetworkSettings, TransportKind};
use gradus_model::{Family, ModelConfig, ModelSettings, hugging_face};
use gradus_store::{BucketSettings, CacheSettings, OrderSettings, PrepareSettings};
use gradus_train::{
    CheckpointSettings, Mesh, OptimizerSettings, ParallelSettings, RunSettings, SampleSettings, TrainSettings,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file in a Hugging Face folder that holds its tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// How many times `network.failure_detection` a rank that lives may take no part in a collective: loading, saving or
/// writing a sample takes a rank longer than dying does.
const STALLS: u32 = 30;

/// The setting that says where the ranks' coordinator is.
const RDZV: &str = "launch.rdzv";

/// Characters of what tells a job from others: with what stands before it, a group's name has 128 at most.
const LONGEST_ID: usize = 120;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the run goes, and its seed.
    pub run: RunSection,
    /// How ranks are started and reach each other.
    pub launch: LaunchSection,
    /// Times and sizes of rendezvous and transports.
    pub network: NetworkSettings,
    /// What to learn from.
    pub data: DataSection,
    /// In which order samples come.
    pub order: OrderSettings,
    /// How buckets are reached.
    pub bucket: BucketSettings,
    /// What of a bucket's data is kept near.
    pub cache: CacheSettings,
    /// What learns.
    pub model: ModelSettings,
    /// How a run goes.
    pub train: TrainSettings,
    /// Over which axes the ranks split the work.
    pub parallel: ParallelSettings,
    /// The optimizer and its schedule.
    pub optimizer: OptimizerSettings,
    /// When to save.
    pub checkpoint: CheckpointSettings,
    /// What to let the model write.
    pub sample: SampleSettings,
}

/// Where the run goes, and its seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunSection {
    /// Folder of the run; if it holds a run already, a number is appended.
    pub dir: String,
    /// Of everything random.
    pub seed: u64,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { dir: "runs/run".into(), seed: 1337 }
    }
}

/// How ranks are started and reach each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaunchSection {
    /// Local ranks that `gradus train` starts itself; also `--nproc-per-node`.
    pub nproc_per_node: usize,
    /// Logical nodes onto which the local ranks are dealt, in even runs.
    pub logical_nodes: usize,
    /// Where the coordinator of the ranks' group is, `HOST:PORT` or `etcd://...`; also `--rdzv`.
    pub rdzv: String,
    /// What tells this job from others there; also `--rdzv-id`.
    pub rdzv_id: String,
    /// `auto`, `shm` or `tcp`.
    pub transport: String,
    /// Time without any progress after which a collective gives up, such as `300s`; empty: a multiple of
    /// `network.failure_detection`.
    pub stall_timeout: String,
}

impl Default for LaunchSection {
    fn default() -> Self {
        Self {
            nproc_per_node: 1,
            logical_nodes: 1,
            rdzv: String::new(),
            rdzv_id: String::new(),
            transport: "auto".into(),
            stall_timeout: String::new(),
        }
    }
}

/// The default ring is a megabyte; a larger one may take this much of a host's memory for each rank that is near.
const LARGEST_RING: usize = 16 << 20;

/// The ring in which a message fits with what goes before it: by default where the default is large enough.
pub(crate) fn ring_for(message_bytes: usize) -> usize {
    match message_bytes.saturating_add(4096).next_power_of_two() {
        small if small <= 1 << 20 => 0,
        large => large.min(LARGEST_RING),
    }
}

impl Settings {
    /// The model: of the sizes given, or as the folder in `model.from` has it. `tokens` is the tokenizer's count.
    ///
    /// # Errors
    /// `Invalid`, naming the key or the file; `Corrupt` for a folder that is damaged.
    pub fn model_config(&self, tokens: usize) -> Result<ModelConfig> {
        if self.model.from.is_empty() {
            return self.model.complete(tokens);
        }
        self.model.check_from()?;
        let config = hugging_face::read_config(Path::new(&self.model.from))?;
        if tokens > config.vocabulary {
            return Err(Error::invalid(format!(
                "the tokenizer has {tokens} tokens, the model in {} {}: give the tokenizer that belongs to it \
                 (data.tokenizer)",
                self.model.from, config.vocabulary
            )));
        }
        Ok(config)
    }

    /// `T`: as set for training or for the data, or the model's context. The preset decides where none is given.
    ///
    /// # Errors
    /// `Invalid`, naming the keys.
    pub fn sequence_length(&self) -> Result<usize> {
        match (self.train.sequence_length, self.data.prepare.sequence_length) {
            // The context does not depend on the tokenizer: any count serves to complete the rest.
            (0, 0) => Ok(self.model_config(1)?.context),
            (0, set) | (set, 0) => Ok(set),
            (train, data) if train == data => Ok(train),
            (train, data) => Err(Error::invalid(format!(
                "train.sequence_length is {train}, data.sequence_length {data}: data are packed as they are trained \
                 on, so give one of the two"
            ))),
        }
    }

    /// What the data are prepared by: sequence length, tokenizer and a folder follow from other settings where not given.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn data_settings(&self) -> Result<PrepareSettings> {
        let mut data = self.data.prepare.clone();
        data.sequence_length = self.sequence_length()?;
        // A model that has learned one tokenizer's tokens can make nothing of another's.
        if data.tokenizer.is_empty() && Path::new(&self.model.from).join(TOKENIZER).is_file() {
            data.tokenizer.clone_from(&self.model.from);
        }
        let model = self.model_config(1)?;
        if data.pre_tokenizer.is_empty() && model.family == Family::Llama && model.qkv_bias {
            // Other tools take such a model for Qwen2, and read its text as Qwen2 does.
            data.pre_tokenizer = "qwen2".to_owned();
        }
        if data.prepared.is_empty() {
            let name = Path::new(&self.run.dir).file_name().unwrap_or("run".as_ref());
            data.prepared = Path::new("data").join(name).to_string_lossy().into_owned();
        }
        Ok(data)
    }

    /// Whether everything that can be told without data is possible, for `world_size` ranks.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self, world_size: usize) -> Result<()> {
        let mesh = Mesh::from_settings(&self.parallel, world_size)?;
        self.train.check(mesh.data_ranks())?;
        self.optimizer.check()?;
        self.sample.check()?;
        self.checkpoint.check()?;
        self.network.check()?;
        self.data.check()?;
        self.order.validate()?;
        self.bucket.validate()?;
        self.check_discretion()?;
        let sequences = self.train.microbatch_sequences(self.parallel.shares(&mesh));
        mesh.check_microbatch(sequences, self.sequence_length()?)?;
        self.transport()?;
        self.stall_timeout()?;
        self.duration_s()?;
        mesh.check_optimizer(&self.optimizer)?;
        mesh.check_model(&self.model_config(1)?, self.parallel.stages_per_rank)
    }

    /// Time without any progress after which a collective gives up.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn stall_timeout(&self) -> Result<Duration> {
        const KEY: &str = "launch.stall_timeout";
        let timeouts = self.network.timeouts()?;
        if self.launch.stall_timeout.is_empty() {
            return Ok(timeouts.detection * STALLS);
        }
        let limit = parse_duration(&self.launch.stall_timeout).map_err(|error| error.within(KEY))?;
        timeouts.check_longer(KEY, limit)?;
        Ok(limit)
    }

    fn duration_s(&self) -> Result<f64> {
        if self.train.duration.is_empty() {
            return Ok(0.0);
        }
        let duration = parse_duration(&self.train.duration);
        let duration_s = duration.map_err(|error| error.within("train.duration"))?.as_secs_f64();
        if duration_s <= 0.0 {
            return Err(Error::invalid("train.duration is no time at all: give one such as 150s"));
        }
        Ok(duration_s)
    }

    /// Where the coordinator of the ranks' group is, if a person says so; `lookup` reads the environment, for etcd.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn coordinator(&self, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<CoordinatorAddress>> {
        self.check_discretion()?;
        if self.launch.rdzv.is_empty() {
            return Ok(None);
        }
        let parsed = CoordinatorAddress::parse(&self.launch.rdzv, lookup);
        parsed.map(Some).map_err(|error| error.within(RDZV))
    }

    /// A run keeps its settings in a file, which is no place for a password.
    fn check_discretion(&self) -> Result<()> {
        if !self.launch.rdzv.contains('@') {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{RDZV} has a user in it, and a run writes its settings down: leave USER:PASSWORD@ out, and set ETCDCTL_USER"
        )))
    }

    /// The group of a job's ranks; `job` is what its launcher calls it.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn group(&self, job: &str) -> Result<String> {
        let id = if self.launch.rdzv_id.is_empty() { job } else { &self.launch.rdzv_id };
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if id.len() > LONGEST_ID || !id.bytes().all(plain) {
            return Err(Error::invalid(format!(
                "the job is called {id:?}, which is no name of a group: give launch.rdzv_id, at most {LONGEST_ID} printable \
                 ASCII characters without spaces, quotes and backslashes"
            )));
        }
        Ok(format!("train/{id}"))
    }

    /// How gradients travel.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn transport(&self) -> Result<TransportKind> {
        match self.launch.transport.as_str() {
            "auto" => Ok(TransportKind::Auto),
            "shm" => Ok(TransportKind::SharedMemory),
            "tcp" => Ok(TransportKind::Tcp),
            other => Err(Error::invalid(format!(
                "launch.transport is \"{other}\": choose \"auto\", \"shm\" or \"tcp\""
            ))),
        }
    }

    /// How a rank reaches the others: as set, from the node that it lies on; between stages of a pipeline in rings that a
    /// message fits in, for its sender computes meanwhile.
    ///
    /// # Errors
    /// `Invalid`, naming the key, for a node or a mesh that cannot be.
    pub fn network_of(&self, launch: &Launch) -> Result<NetworkSettings> {
        let node_id = launch.node_id(&self.network.node_id, self.launch.logical_nodes)?;
        let ring_bytes = match self.network.ring_bytes {
            0 => ring_for(self.message_bytes(launch.world_size)?),
            set => set,
        };
        Ok(NetworkSettings { node_id, ring_bytes, ..self.network.clone() })
    }

    /// Bytes of what stages of a pipeline hand each other at once; 0 without one.
    fn message_bytes(&self, world_size: usize) -> Result<usize> {
        let mesh = Mesh::from_settings(&self.parallel, world_size)?;
        if mesh.pp == 1 {
            return Ok(0);
        }
        let sequences = self.train.microbatch_sequences(self.parallel.shares(&mesh));
        let rows = (sequences * self.sequence_length()?).div_ceil(mesh.tp);
        Ok(rows * self.model_config(1)?.width * size_of::<f32>())
    }

    /// What the trainer needs.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn run_settings(&self, folder: PathBuf, resume: Option<PathBuf>) -> Result<RunSettings> {
        Ok(RunSettings {
            train: TrainSettings { sequence_length: self.sequence_length()?, ..self.train.clone() },
            parallel: self.parallel.clone(),
            optimizer: self.optimizer.clone(),
            checkpoint: self.checkpoint.clone(),
            sample: self.sample.clone(),
            duration_s: self.duration_s()?,
            seed: self.run.seed,
            order: self.order.clone(),
            folder,
            resume,
        })
    }
}
