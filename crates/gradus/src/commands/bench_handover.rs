//! `gradus bench handover`: what another program needs to train the very same run: the initial weights, and which
//! samples each step learns from.

use super::{first_model, open_device, prepare};
use crate::logging;
use crate::run_settings::Settings;
use anyhow::{Context, Result};
use gradus_error::Error;
use gradus_host::disk;
use gradus_store::order::{Order, Shuffled};
use gradus_store::{Dataset, Split};
use gradus_train::{batches, checkpoint};
use std::path::{Path, PathBuf};

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct BenchHandoverArguments {
    /// Settings of the run, as TOML; train.steps says how many steps are handed over.
    pub file: PathBuf,
    /// Folder to write `init/` (a Hugging Face folder) and `batches.json` (sample numbers of each step) into.
    #[arg(long)]
    pub out: PathBuf,
}

/// Writes both, and prints where the prepared tokens are.
///
/// # Errors
/// What is wrong with the settings, the data or the folder.
pub fn run(arguments: &BenchHandoverArguments, settings: &Settings) -> Result<()> {
    settings.check(1)?;
    if settings.train.steps == 0 {
        return Err(
            Error::invalid("train.steps is not set: only steps that are counted can be handed over").into()
        );
    }
    let prepared = prepare::run(settings)?;
    let dataset = Dataset::open(&prepared.folder)?;
    let device = open_device(0, 1, settings.train.precision)?;
    let model = first_model(settings, device, dataset.vocabulary())?;
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    checkpoint::export(&arguments.out.join("init"), &model, dataset.tokenizer()?.as_ref())?;
    write_batches(&arguments.out.join("batches.json"), settings, dataset.split(Split::Train).samples())?;
    logging::print(format_args!("{}", prepared.folder.display()))?;
    Ok(())
}

fn write_batches(path: &Path, settings: &Settings, samples: u64) -> Result<()> {
    let size = settings.train.global_batch;
    let order = Shuffled::new(settings.run.seed, samples);
    let of_step = |step| {
        let positions = batches::positions(step, 0, size, size);
        positions.map(|position| order.sample_at(position)).collect::<Vec<_>>()
    };
    let steps: Vec<_> = (1..=settings.train.steps).map(of_step).collect();
    let text = serde_json::to_string(&steps).context("cannot write sample numbers as JSON")?;
    disk::write_atomically(path, |file| {
        file.write_all(text.as_bytes())
            .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
    })?;
    Ok(())
}
