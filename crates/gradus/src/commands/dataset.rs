//! `gradus dataset`: what a dataset holds, described once and shown.

use super::environment;
use crate::logging;
use crate::run_settings::Settings;
use crate::settings;
use crate::sinks::Preparation;
use crate::wording::{bytes, grouped, printable};
use clap::Subcommand;
use gradus_error::{Error, Result};
use gradus_host::processors;
use gradus_store::bucket::{Address, Bucket, BucketSettings};
use gradus_store::index::{Format, INDEX_FILE, Index, IndexProgress, IndexSettings, Objects};
use gradus_store::{MANIFEST, ObjectInfo, Split};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

/// Objects read at a time, at most: a disk or a bucket gives no more to more.
const MOST_THREADS: usize = 8;

/// Steps of progress that wait to be shown.
const MOST_UNSHOWN: usize = 64;

/// What can be done with a dataset.
#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Describe a dataset where it lies: JSON lines, Parquet, WebDataset or MDS. Writes a file that says where each sample is.
    Index {
        /// A folder, a file, or an address.
        uri: String,
        /// Where to write the index; beside the data if it is not given.
        #[arg(long)]
        output: Option<PathBuf>,
        /// The column of Parquet files that holds the text.
        #[arg(long, default_value = "text")]
        text_column: String,
        /// Read all bytes for checksums, also where the format needs no reading.
        #[arg(long)]
        checksums: bool,
    },
    /// Show what a described dataset holds.
    Show {
        /// A folder or address with an index, an index, or a folder of prepared tokens.
        uri: String,
    },
}

/// Does what is asked; of the settings that are given, those of `[bucket]` count.
///
/// # Errors
/// `Invalid`, naming the key, for a bad setting; what [`Index::build`], [`Index::write`] and [`Index::read`] say.
pub fn run(command: &DatasetCommand, overrides: &[(String, String)]) -> Result<()> {
    let reached_by = settings::resolve::<Settings>(None, overrides)?.settings.bucket;
    match command {
        DatasetCommand::Index { uri, output, text_column, checksums } => {
            let settings = IndexSettings {
                text_column: text_column.clone(),
                checksums: *checksums,
                threads: processors::available().min(MOST_THREADS),
                split: Split::Train,
            };
            index(open(uri, &reached_by)?, uri, output.clone(), &settings)
        }
        DatasetCommand::Show { uri } => show(open(uri, &reached_by)?, uri),
    }
}

/// The store at an address, which is given back as it is written in full.
fn open(uri: &str, settings: &BucketSettings) -> Result<(Bucket, String)> {
    let address = Address::parse(uri)?;
    let bucket = Bucket::open(&address, settings, &environment)?;
    Ok((bucket, address.to_string()))
}

fn index(
    (bucket, address): (Bucket, String),
    uri: &str,
    output: Option<PathBuf>,
    settings: &IndexSettings,
) -> Result<()> {
    let listed = Objects::list(&bucket, &address)?;
    if output.is_none() && matches!(&*listed, [only] if only.address == address) {
        return Err(Error::invalid(format!(
            "{uri} is one object: say where its index is to be written with --output"
        )));
    }
    let index = build_shown(&bucket, &address, &listed, settings)?;
    let description = describe(&index, uri);
    let written = match output {
        Some(path) => {
            index.write(&path)?;
            path.display().to_string()
        }
        None if matches!(index.format(), Format::Tokens { .. }) => {
            let note = "nothing is to be written: the manifest of prepared tokens says all of it";
            return logging::print(format_args!("{description}\n{note}"));
        }
        None => {
            let mut writer = bucket.writer(INDEX_FILE)?;
            index.write_to(&mut writer)?;
            writer.finish()?.address
        }
    };
    logging::print(format_args!("{description}\nwrote {written}"))
}

/// Indexes on another thread, so that this one shows how far it is.
fn build_shown(
    objects: &dyn Objects,
    uri: &str,
    listed: &[ObjectInfo],
    settings: &IndexSettings,
) -> Result<Index> {
    let (sender, receiver) = sync_channel(MOST_UNSHOWN);
    let (mut preparation, mut begun, mut done_bytes) = (Preparation::new(), false, 0);
    let index = std::thread::scope(|scope| {
        // What finds no room is not shown: more of the same follows.
        let tell = move |progress: IndexProgress| {
            let _ = sender.try_send(progress);
        };
        let indexing = scope.spawn(move || Index::build_listed(objects, uri, listed, settings, &tell));
        for progress in receiver {
            if !begun {
                preparation.begin("indexing", progress.bytes);
                begun = true;
            }
            // Several threads tell, and the one that counted first may be heard last.
            done_bytes = progress.bytes_done.max(done_bytes);
            preparation.advance(done_bytes);
        }
        indexing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    preparation.end();
    Ok(index)
}

fn show((bucket, address): (Bucket, String), uri: &str) -> Result<()> {
    let listed = Objects::list(&bucket, &address)?;
    if let Some(file) = listed.iter().find(|object| is_index(object, &listed)) {
        let index = Index::read_object(&bucket, file)?;
        // An index that is named itself may lie elsewhere than what it describes.
        if listed.len() > 1 {
            index.check_objects(&listed)?;
        }
        return logging::print(format_args!("{}", describe(&index, uri)));
    }
    if !listed.iter().any(|object| object.name() == MANIFEST) {
        return Err(Error::invalid(format!("{uri} has no index: make one (gradus dataset index {uri})")));
    }
    let index = Index::build_listed(&bucket, &address, &listed, &IndexSettings::default(), &|_| ())?;
    logging::print(format_args!("{}", describe(&index, uri)))
}

/// Whether an object is the index of what is listed: by its name, or as the only one.
fn is_index(object: &ObjectInfo, listed: &[ObjectInfo]) -> bool {
    object.name() == INDEX_FILE || (listed.len() == 1 && object.address.ends_with(".parquet"))
}

/// What a dataset holds, in lines.
fn describe(index: &Index, uri: &str) -> String {
    let sizes = index.sizes();
    let stored: u64 = index.objects().iter().map(|object| object.bytes).sum();
    let checked = (0..index.objects().len() as u32).all(|object| {
        let samples = index.samples_of(object);
        samples.is_empty() || index.sample(samples.start).crc32c.is_some()
    });
    let checksums = match index.format() {
        Format::Tokens { .. } => "in the manifest",
        _ if checked => "of every sample",
        _ => "none (--checksums reads all bytes for them)",
    };
    let lines = [
        ("samples", grouped(index.samples())),
        ("objects", format!("{}, {}", grouped(index.objects().len() as u64), bytes(stored))),
        ("bytes", format!("{} in samples", bytes(sizes.total))),
        (
            "sizes",
            format!("median {}, p99 {}, largest {}", bytes(sizes.p50), bytes(sizes.p99), bytes(sizes.most)),
        ),
        ("checksums", checksums.to_owned()),
    ];
    let mut text = format!("{}: {}", uri, index.format().title());
    for (name, value) in lines {
        text.push_str(&format!("\n  {name:<10} {value}"));
    }
    if let Format::Mosaic { columns } = index.format() {
        let columns: Vec<String> =
            columns.iter().map(|one| format!("{} ({})", one.name, one.encoding)).collect();
        text.push_str(&format!("\n  {:<10} {}", "columns", printable(&columns.join(", "))));
    }
    text
}
