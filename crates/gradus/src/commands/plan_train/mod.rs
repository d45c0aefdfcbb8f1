//! `gradus plan train`: what each rank of a run would hold and send, and how long a step would take. Nothing is run.

mod show;
#[cfg(test)]
mod tests;

use crate::logging;
use crate::run_settings::Settings;
use crate::settings::{Origin, Resolved, resolve};
use anyhow::Result;
use gradus_error::Error;
use gradus_host::processors;
use gradus_model::PRESETS;
use gradus_train::TrainSettings;
use gradus_train::plan::{
    Choice, LinkRate, Machine, Search, Sizes, Split, Work, check_memory, predict, prepared_in_pairs, search,
};
use show::{Report, lines};
use std::path::PathBuf;

/// More are a slip of the finger.
const MOST_RANKS: usize = 1 << 16;

/// Settings that say how the work is split.
const WAYS: [&str; 7] = ["pp", "dp", "fsdp", "tp", "zero", "schedule", "stages_per_rank"];

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct PlanTrainArguments {
    /// Settings of the run, as TOML. Without `parallel`, all ways to split it are compared.
    pub file: Option<PathBuf>,
    /// Ranks.
    #[arg(long)]
    pub world: usize,
    /// Memory of a rank, in GB (1e9 bytes); this host's over the ranks of a node if not given.
    #[arg(long)]
    pub memory_gb: Option<f64>,
    /// Operations per second that a rank reaches at best, such as 989e12; 1e12 if not given.
    #[arg(long)]
    pub peak_flops: Option<f64>,
    /// What of these it reaches while it computes.
    #[arg(long, default_value_t = 0.5)]
    pub efficiency: f64,
    /// Ranks of each node; all on one node if not given.
    #[arg(long)]
    pub ranks_per_node: Option<usize>,
    /// Microseconds of a hop inside a node.
    #[arg(long)]
    pub link_latency_us: Option<f64>,
    /// GB per second that a rank sends inside its node.
    #[arg(long)]
    pub link_gb_per_s: Option<f64>,
    /// Microseconds of a hop across nodes.
    #[arg(long)]
    pub node_latency_us: Option<f64>,
    /// GB per second that a rank sends across nodes.
    #[arg(long)]
    pub node_gb_per_s: Option<f64>,
    /// How many of the best meshes are shown.
    #[arg(long, default_value_t = 6)]
    pub best: usize,
    /// Print JSON instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Prints the plan.
///
/// # Errors
/// `Invalid`, naming setting or argument, for what cannot be; with what is missing, where memory does not suffice.
pub fn run(arguments: &PlanTrainArguments, overrides: &[(String, String)]) -> Result<()> {
    let resolved = resolve::<Settings>(arguments.file.as_deref(), overrides)?;
    let (work, machine) = (work(&resolved.settings)?, arguments.machine()?);
    let memory = arguments.memory(&machine)?;
    let choices = arguments.choices(&resolved, &work, &machine, memory)?;
    let report = Report::new(&choices, &machine, memory);
    if arguments.json {
        logging::print(serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    for line in lines(&report, arguments) {
        logging::print(line)?;
    }
    Ok(())
}

impl PlanTrainArguments {
    fn machine(&self) -> Result<Machine, Error> {
        if self.world == 0 || self.world > MOST_RANKS {
            return Err(Error::invalid(format!("--world {}: choose 1 to {MOST_RANKS} ranks", self.world)));
        }
        let default = Machine::default();
        let link = |latency_us: Option<f64>, gigabytes: Option<f64>, default: LinkRate| LinkRate {
            latency_us: latency_us.unwrap_or(default.latency_us),
            bytes_per_s: gigabytes.map_or(default.bytes_per_s, |gigabytes| gigabytes * 1e9),
        };
        let machine = Machine {
            peak_flops: self.peak_flops.unwrap_or(default.peak_flops),
            efficiency: self.efficiency,
            ranks_per_node: self.ranks_per_node.unwrap_or(self.world).min(self.world),
            inside: link(self.link_latency_us, self.link_gb_per_s, default.inside),
            across: link(self.node_latency_us, self.node_gb_per_s, default.across),
        };
        machine.check()?;
        Ok(machine)
    }

    /// Bytes of a rank.
    fn memory(&self, machine: &Machine) -> Result<u64, Error> {
        match self.memory_gb {
            Some(gigabytes) if gigabytes.is_finite() && gigabytes > 0.0 => Ok((gigabytes * 1e9) as u64),
            Some(gigabytes) => {
                Err(Error::invalid(format!("--memory-gb {gigabytes}: choose a number above 0")))
            }
            None => {
                let host = processors::total_memory_bytes();
                let host =
                    host.ok_or_else(|| Error::invalid("--memory-gb is missing: this host does not say"))?;
                Ok(host / machine.ranks_per_node as u64)
            }
        }
    }

    /// The split that the settings ask for, or the best of all.
    fn choices<'a>(
        &self,
        resolved: &'a Resolved<Settings>,
        work: &'a Work,
        machine: &'a Machine,
        memory: u64,
    ) -> Result<Vec<Choice<'a>>, Error> {
        let parallel = &resolved.settings.parallel;
        if is_split(resolved) {
            let split = Split::new(work, parallel, self.world)?;
            check_memory(&split, memory, &prepared_in_pairs)?;
            let mut sizes = Sizes::new(work, &prepared_in_pairs);
            let (memory, step) = (sizes.most(&split), predict(&split, machine, &mut sizes));
            return Ok(vec![Choice { split, memory, step }]);
        }
        parallel.check()?;
        work.check(1)?;
        let (world_size, prepared) = (self.world, &prepared_in_pairs);
        let most = self.best.max(1);
        let space = Search { work, parallel, world_size, machine, memory, prepared, most };
        match search(&space) {
            choices if choices.is_empty() => Err(nothing_fits(work, self.world, memory)),
            choices => Ok(choices),
        }
    }
}

/// Whether somebody said how the work is split.
fn is_split(resolved: &Resolved<Settings>) -> bool {
    let given = |key: &str| {
        resolved.origins.get(&format!("parallel.{key}")).is_some_and(|origin| *origin != Origin::Default)
    };
    WAYS.into_iter().any(given)
}

fn nothing_fits(work: &Work, world_size: usize, memory: u64) -> Error {
    let mut without = String::new();
    if !work.train.recompute {
        without += " train.recompute true takes less;";
    }
    if work.train.global_batch < world_size {
        without += " with a larger train.global_batch more ranks share out sequences;";
    }
    Error::invalid(format!(
        "no way to split this model among {world_size} ranks fits into {:.2} GB of each:{without} give more ranks, more memory \
         (--memory-gb) or a smaller train.microbatch",
        memory as f64 / 1e9
    ))
}

/// What is to be trained, with the vocabulary that there will be.
fn work(settings: &Settings) -> Result<Work, Error> {
    settings.optimizer.check()?;
    let tokens = vocabulary(settings)?;
    let model = settings.model_config(tokens)?;
    let train = TrainSettings { sequence_length: settings.sequence_length()?, ..settings.train.clone() };
    Ok(Work { model, train, optimizer: settings.optimizer.clone() })
}

/// The tokens of a tokenizer that is not asked for them: as many as the model has, its preset had, or are to be learned.
fn vocabulary(settings: &Settings) -> Result<usize, Error> {
    let model = &settings.model;
    let preset = PRESETS.iter().find(|(name, _)| *name == model.preset);
    match (model.vocabulary, preset) {
        _ if !model.from.is_empty() => Ok(1),
        (0, Some((_, config))) => Ok(config.vocabulary),
        (0, None) if settings.data.prepare.vocabulary > 0 => Ok(settings.data.prepare.vocabulary),
        (0, None) => {
            Err(Error::invalid("model.vocabulary is missing: without data nobody knows the tokenizer's"))
        }
        (set, _) => Ok(set),
    }
}
