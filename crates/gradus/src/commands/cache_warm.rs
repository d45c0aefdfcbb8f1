//! `gradus cache warm`: fills the folder of a cache before a run reads from it.

use crate::data_source::DataSource;
use crate::found_data::FoundData;
use crate::logging;
use crate::mixture;
use crate::run_data::cache_of_part;
use crate::run_settings::Settings;
use crate::settings;
use crate::sinks::Preparation;
use crate::wording::{bytes, counted, grouped};
use gradus_error::{Error, Result};
use gradus_host::RealClock;
use gradus_store::{CacheSettings, Dataset, Index, MANIFEST, Order, Source, Split, Warmed, cache_for, warm};
use std::path::PathBuf;
use std::sync::Arc;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct WarmArguments {
    /// Settings of the run that will read, as TOML: its order says what is needed first.
    pub file: Option<PathBuf>,
    /// Where the data are, s3://BUCKET/PREFIX; if it is not given, those of data.prepared or data.mixture.
    #[arg(long)]
    pub source: Option<String>,
    /// Name of the node that will read; overrides network.node_id.
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
}

/// Fills it: of prepared data what `gradus train` reads of each part, of other data all.
///
/// # Errors
/// `Invalid` without a source in a bucket or without a folder; what is wrong with the data, the bucket, or a setting;
/// `Exhausted` when the disk is full.
pub fn run(arguments: &WarmArguments, overrides: &[(String, String)]) -> Result<()> {
    let mut settings = settings::resolve::<Settings>(arguments.file.as_deref(), overrides)?.settings;
    if let Some(name) = &arguments.node_id {
        settings.network.node_id.clone_from(name);
    }
    let address = arguments.source.clone().unwrap_or_else(|| settings.data.prepare.prepared.clone());
    if address.is_empty() && !settings.data.is_mixed() {
        return Err(Error::invalid("say where the data are: --source s3://BUCKET/PREFIX, or data.prepared"));
    }
    if settings.cache.folder.is_empty() {
        return Err(Error::invalid("say which folder is to be filled: --cache.folder PATH"));
    }
    if address.is_empty() {
        return fill_parts(&found_mixture(&settings)?, &mut settings);
    }
    let source = DataSource::open(&address, &settings)?;
    if !source.is_remote() {
        return Err(Error::invalid(format!(
            "{address} is a folder of this host: what lies there is read where it is, and no cache is filled with it"
        )));
    }
    if source.bucket().find(MANIFEST)?.is_none() {
        return fill_other(&source, &settings);
    }
    let dataset = Box::new(Dataset::find(source.bucket(), &source.address())?);
    fill_parts(&FoundData::One { dataset, source: Some(source) }, &mut settings)
}

/// What is mixed, if any of it lies in a bucket.
fn found_mixture(settings: &Settings) -> Result<FoundData> {
    let (mixed, sources) = mixture::open(settings)?;
    if !sources.iter().any(DataSource::is_remote) {
        return Err(Error::invalid(
            "all of data.mixture lies in folders of this host: it is read where it is, and no cache is filled with it",
        ));
    }
    Ok(FoundData::Mixed { mixed, sources })
}

/// Both parts of prepared data, each with a folder of its own.
fn fill_parts(found: &FoundData, settings: &mut Settings) -> Result<()> {
    settings.train.sequence_length = found.dataset().sequence_length();
    for split in [Split::Train, Split::HeldOut] {
        if let Some(order) = found.order(split, settings)? {
            let (index, source) = found.index(split)?;
            let cache = cache_of_part(settings.cache.clone(), &settings.network.node_id, split);
            let cache = cache_for(&index, cache, settings.order.shuffle);
            let end = end(found, split, order.as_ref(), settings);
            fill(split.name(), (&index, order.as_ref(), end), &source, &cache)?;
        }
    }
    Ok(())
}

/// All of a dataset that is not prepared tokens.
fn fill_other(source: &DataSource, settings: &Settings) -> Result<()> {
    let index = source.index()?;
    let order = settings.order.order(settings.run.seed, index.samples())?;
    let cache = cache_for(&index, settings.cache.clone(), settings.order.shuffle);
    fill("data", (&index, order.as_ref(), order.samples()), &source.source(), &cache)
}

/// The position before which all is read that is to be there: an epoch of one dataset; of a mixture, of which a run may
/// never see all, the end of the run, if it is known.
fn end(found: &FoundData, split: Split, order: &dyn Order, settings: &Settings) -> u64 {
    let Settings { train, .. } = settings;
    match found {
        FoundData::Mixed { .. } if split == Split::Train && train.steps > 0 => {
            train.steps.saturating_mul(train.global_batch as u64)
        }
        _ => order.samples(),
    }
}

/// Fills one folder, and says what it holds then.
fn fill(
    name: &str,
    reading: (&Index, &dyn Order, u64),
    source: &Source,
    cache: &CacheSettings,
) -> Result<()> {
    let (mut screen, mut has_begun) = (Preparation::new(), false);
    let warmed = warm(reading, source, cache, Arc::new(RealClock::new()), &mut |done, all| {
        if !std::mem::replace(&mut has_begun, true) {
            screen.begin(name, all);
        }
        screen.advance(done);
    });
    screen.end();
    logging::print(format_args!("{name}: {}", describe(&warmed?, cache)))
}

fn describe(warmed: &Warmed, cache: &CacheSettings) -> String {
    let counters = &warmed.cache;
    let mut text = format!(
        "{} of {} KiB in {}: {} fetched ({})",
        counted(counters.disk_blocks, "block"),
        cache.block_bytes >> 10,
        cache.folder,
        grouped(counters.fetched_blocks),
        bytes(counters.fetched_bytes),
    );
    if counters.damaged_blocks > 0 {
        text.push_str(&format!(", {} of them because they were damaged", grouped(counters.damaged_blocks)));
    }
    if warmed.is_full {
        text.push_str("; cache.disk_bytes is used up, and the rest will come from the bucket");
    }
    text
}
