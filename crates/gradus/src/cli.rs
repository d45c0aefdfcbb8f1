//! The command line: subcommands and flags by clap, and any setting by its dotted name.
//!
//! A flag is a setting's override exactly when its name has a dot: `--model.layers 6`, `--model.layers=6`. Overrides are
//! taken out of the arguments before clap sees them, so settings need no second definition there and both kinds mix in
//! any order. What follows `--` is left alone.

use crate::commands::bench_dataset::BenchDatasetArguments;
use crate::commands::bench_generate::BenchGenerateArguments;
use crate::commands::bench_handover::BenchHandoverArguments;
use crate::commands::bench_kernels::BenchKernelsArguments;
use crate::commands::bench_train::BenchTrainArguments;
use crate::commands::cache::CacheCommand;
use crate::commands::coordinator::CoordinatorArguments;
use crate::commands::dataset::DatasetCommand;
use crate::commands::generate::GenerateArguments;
use crate::commands::logits::LogitsArguments;
use crate::commands::plan_collective::PlanCollectiveArguments;
use crate::commands::plan_pipeline::PlanPipelineArguments;
use crate::commands::plan_train::PlanTrainArguments;
use crate::commands::preflight::PreflightArguments;
use crate::commands::train::TrainArguments;
use clap::{Parser, Subcommand};
use gradus_error::{Error, Result};
use std::ffi::OsString;
use std::path::PathBuf;

/// Arguments for clap, and pairs of a dotted key and its value, in the order given.
pub type SplitArguments = (Vec<OsString>, Vec<(String, String)>);

/// Trains language models across machines.
#[derive(Debug, Parser)]
#[command(
    name = "gradus",
    version,
    propagate_version = true,
    after_help = "Any setting can be given by its dotted name, after its file: --model.layers 6"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model; any setting can follow by its dotted name.
    Train(TrainArguments),
    /// Turn text into token shards, as training would.
    Prepare {
        /// Settings of the run, as TOML.
        file: Option<PathBuf>,
    },
    /// Describe a dataset as it lies, or show what it holds.
    Dataset {
        /// Which of them.
        #[command(subcommand)]
        what: DatasetCommand,
    },
    /// Write text with a model, as it comes.
    Generate(GenerateArguments),
    /// Write what a model predicts after each token, for other tools to compare with.
    Logits(LogitsArguments),
    /// Print every setting of a run, with where its value comes from.
    Config {
        /// Settings of the run, as TOML.
        file: Option<PathBuf>,
    },
    /// Keep the membership of groups, on its own; members come and go, epochs are numbered.
    Coordinator(CoordinatorArguments),
    /// Measure the links between all ranks, and name those that are bad, before anything is trained over them.
    Preflight(PreflightArguments),
    /// Show what this machine offers and what Gradus will use of it.
    Doctor,
    /// The folder of a cache of data: what it holds, whether it is whole, and filling it ahead of a run.
    Cache {
        /// What to do.
        #[command(subcommand)]
        what: CacheCommand,
    },
    /// Predict what something would take, and say which way Gradus would choose.
    Plan {
        /// What.
        #[command(subcommand)]
        what: Plan,
    },
    /// Lay ranks' flight records side by side: who waits for whom.
    Flight {
        /// Their files, one for each rank.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Run a benchmark's part when told to on stdin; `cargo x bench` does.
    Bench {
        /// Which one.
        #[command(subcommand)]
        what: Bench,
    },
    /// Make a run's report.html and loss.svg anew from its metrics.
    Report {
        /// The run's folder.
        run: PathBuf,
    },
}

/// What can be predicted.
#[derive(Debug, Subcommand)]
pub enum Plan {
    /// A collective: the time of each algorithm on given links.
    Collective(PlanCollectiveArguments),
    /// A pipeline: how long ranks wait for each other under each schedule, and how much they hold meanwhile.
    Pipeline(PlanPipelineArguments),
    /// A training run: what each rank would hold and send, and how long a step would take; any setting can follow by its dotted name.
    Train(PlanTrainArguments),
}

/// Benchmarks that this program takes part in.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Training steps of a fixed model: a GPT of 13.9M parameters, or SmolLM2-135M.
    Train(BenchTrainArguments),
    /// Operations of the device, one by one.
    Kernels(BenchKernelsArguments),
    /// Text from a model, token by token.
    Generate(BenchGenerateArguments),
    /// Read every sample of a dataset and sum its bytes.
    Dataset(BenchDatasetArguments),
    /// Write what another program needs to train the very same run.
    Handover(BenchHandoverArguments),
}

impl Command {
    /// Refuses settings given to a subcommand that has none.
    ///
    /// # Errors
    /// `Invalid`, naming the first.
    pub fn check_overrides(&self, overrides: &[(String, String)]) -> Result<()> {
        match (self, overrides.first()) {
            (
                Self::Train(_)
                | Self::Prepare { .. }
                | Self::Config { .. }
                | Self::Coordinator(_)
                | Self::Preflight(_)
                | Self::Bench { what: Bench::Dataset(_) }
                | Self::Cache { what: CacheCommand::Warm(_) }
                | Self::Dataset { .. }
                | Self::Plan { what: Plan::Collective(_) | Plan::Train(_) },
                _,
            )
            | (_, None) => Ok(()),
            (_, Some((key, _))) => Err(Error::invalid(format!(
                "--{key} is a setting of a run: only train, prepare, config, preflight, coordinator, plan collective, plan train, cache warm, dataset and bench \
                 dataset take settings"
            ))),
        }
    }
}

/// Takes dotted flags out of `arguments`, the program's own name first.
///
/// # Errors
/// `Invalid`, naming the flag, for a dotted flag without a value or with one that is not UTF-8.
pub fn split_overrides(arguments: impl IntoIterator<Item = OsString>) -> Result<SplitArguments> {
    let mut arguments = arguments.into_iter();
    let mut kept: Vec<OsString> = arguments.next().into_iter().collect();
    let mut overrides = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            kept.push(argument);
            kept.extend(arguments);
            break;
        }
        match dotted_flag(&argument)? {
            None => kept.push(argument),
            Some((key, Some(value))) => overrides.push((key, value)),
            Some((key, None)) => {
                let value = value_of(&key, arguments.next())?;
                overrides.push((key, value));
            }
        }
    }
    Ok((kept, overrides))
}

/// The key, and the value if it stands behind `=`, of a flag whose name has a dot.
fn dotted_flag(argument: &OsString) -> Result<Option<(String, Option<String>)>> {
    let Some(rest) = argument.as_encoded_bytes().strip_prefix(b"--") else {
        return Ok(None);
    };
    let name = rest.split(|byte| *byte == b'=').next().unwrap_or_default();
    if !name.contains(&b'.') {
        return Ok(None);
    }
    let shown = argument.to_string_lossy();
    let text = argument.to_str().ok_or_else(|| Error::invalid(format!("{shown} is not UTF-8")))?;
    let text = text.strip_prefix("--").unwrap_or(text);
    Ok(Some(match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    }))
}

/// The argument after the flag of `key`. One that looks like a flag is none: `--a.b --c` has forgotten its value.
fn value_of(key: &str, argument: Option<OsString>) -> Result<String> {
    let forgotten = || Error::invalid(format!("--{key} needs a value: --{key} VALUE, or --{key}=VALUE"));
    let argument = argument.ok_or_else(forgotten)?;
    if argument.as_encoded_bytes().starts_with(b"--") {
        return Err(forgotten());
    }
    argument.into_string().map_err(|value| {
        Error::invalid(format!("--{key}: the value {} is not UTF-8", value.to_string_lossy()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use gradus_error::Kind;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    type Split = (Vec<String>, Vec<(String, String)>);

    fn split(line: &str) -> Result<Split> {
        let (kept, overrides) = split_overrides(line.split(' ').map(OsString::from))?;
        Ok((kept.into_iter().map(|argument| argument.into_string().unwrap()).collect(), overrides))
    }

    #[test]
    fn clap_accepts_its_own_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dotted_flags_are_taken_out_wherever_they_stand() {
        let line = "gradus train run.toml --model.layers 6 --nproc-per-node 2 --data.path=a.b=c --resume";
        let (kept, overrides) = split(line).unwrap();
        assert_eq!(kept.join(" "), "gradus train run.toml --nproc-per-node 2 --resume");
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(overrides, [pair("model.layers", "6"), pair("data.path", "a.b=c")]);
    }

    #[test]
    fn values_with_dots_negative_numbers_and_what_follows_two_dashes_are_left_alone() {
        let (kept, overrides) =
            split("gradus train --out=a.b --optimizer.decay -1.5 -- --model.layers 3").unwrap();
        assert_eq!(kept.join(" "), "gradus train --out=a.b -- --model.layers 3");
        assert_eq!(overrides, [("optimizer.decay".to_owned(), "-1.5".to_owned())]);
        assert_eq!(split("gradus --a.b=").unwrap().1, [("a.b".to_owned(), String::new())]);
    }

    #[test]
    fn a_dotted_flag_without_a_value_is_named() {
        for line in ["gradus train --model.layers", "gradus train --model.layers --resume"] {
            let error = split(line).unwrap_err();
            assert_eq!(*error.kind(), Kind::Invalid);
            assert!(error.to_string().starts_with("--model.layers needs a value"));
        }
    }

    #[test]
    fn arguments_that_are_no_text_are_clap_s_unless_dotted() {
        let strange = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let plain = split_overrides(["gradus".into(), strange(b"\xff")]).unwrap();
        assert_eq!(plain.0.len(), 2);
        assert!(split_overrides(["gradus".into(), strange(b"--a.b=\xff")]).is_err());
        assert!(split_overrides(["gradus".into(), "--a.b".into(), strange(b"\xff")]).is_err());
    }

    proptest! {
        #[test]
        fn clap_never_sees_a_dotted_flag(arguments in proptest::collection::vec("-{0,3}[a.=]{0,5}", 0..8)) {
            let given: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            if let Ok((kept, overrides)) = split_overrides(given.clone()) {
                let seen = kept.iter().skip(1).take_while(|argument| *argument != "--");
                prop_assert!(seen.filter(|argument| dotted_flag(argument).unwrap().is_some()).count() == 0);
                prop_assert!(kept.len() + overrides.len() <= given.len());
            }
        }
    }
}
