//! `gradus cache warm`: fills the folder of a cache before a run reads from it.

use crate::data_source::{DataSource, cache_for};
use crate::found_data::order_of_part;
use crate::logging;
use crate::run_data::cache_of_part;
use crate::run_settings::Settings;
use crate::settings;
use crate::sinks::Preparation;
use crate::wording::{bytes, counted, grouped};
use gradus_error::{Error, Result};
use gradus_host::RealClock;
use gradus_store::{CacheSettings, Dataset, Index, MANIFEST, Order, Source, Split, Warmed, warm};
use std::path::PathBuf;
use std::sync::Arc;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct WarmArguments {
    /// Settings of the run that will read, as TOML: its order says what is needed first.
    pub file: Option<PathBuf>,
    /// Where the data are, s3://BUCKET/PREFIX; data.prepared if it is not given.
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
    if address.is_empty() && settings.data.is_mixed() {
        return Err(Error::invalid(
            "data.mixture cannot be fetched ahead: a run fetches what it needs of each of them",
        ));
    }
    if address.is_empty() {
        return Err(Error::invalid("say where the data are: --source s3://BUCKET/PREFIX, or data.prepared"));
    }
    if settings.cache.folder.is_empty() {
        return Err(Error::invalid("say which folder is to be filled: --cache.folder PATH"));
    }
    let source = DataSource::open(&address, &settings)?;
    if matches!(source.source(), Source::Files) {
        return Err(Error::invalid(format!(
            "{address} is a folder of this host: what lies there is read where it is, and no cache is filled with it"
        )));
    }
    let mut warming = Warming { source: &source, screen: Preparation::new() };
    if source.bucket().find(MANIFEST)?.is_none() {
        let index = source.index(Split::Train)?;
        let order: Arc<dyn Order> = Arc::from(settings.order.order(settings.run.seed, index.samples())?);
        let cache = cache_for(&index, settings.cache.clone(), settings.order.shuffle);
        return warming.fill("data", &index, order.as_ref(), &cache);
    }
    let dataset = Dataset::find(source.bucket(), &source.address())?;
    settings.train.sequence_length = dataset.sequence_length();
    for split in [Split::Train, Split::HeldOut] {
        if let Some(order) = order_of_part(&dataset, &settings, split)? {
            let index = source.index(split)?;
            let cache = cache_of_part(settings.cache.clone(), &settings.network.node_id, split);
            let cache = cache_for(&index, cache, settings.order.shuffle);
            warming.fill(split.name(), &index, order.as_ref(), &cache)?;
        }
    }
    Ok(())
}

struct Warming<'a> {
    source: &'a DataSource,
    screen: Preparation,
}

impl Warming<'_> {
    /// Fills one folder, and says what it holds then.
    fn fill(&mut self, name: &str, index: &Index, order: &dyn Order, cache: &CacheSettings) -> Result<()> {
        let mut has_begun = false;
        let screen = &mut self.screen;
        let clock = Arc::new(RealClock::new());
        let warmed = warm((index, order), self.source.bucket(), cache, clock, &mut |done, all| {
            if !std::mem::replace(&mut has_begun, true) {
                screen.begin(name, all);
            }
            screen.advance(done);
        });
        screen.end();
        logging::print(format_args!("{name}: {}", describe(&warmed?, cache)))
    }
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
