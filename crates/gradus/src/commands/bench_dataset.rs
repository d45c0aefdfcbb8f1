//! `gradus bench dataset`: reads every sample of a dataset, epoch after epoch, and sums its bytes, as the data loaders do
//! that `cargo x bench dataset` puts beside it. Prints a line of JSON for each epoch.

use crate::data_source::DataSource;
use crate::logging;
use crate::run_settings::Settings;
use anyhow::{Context, Result};
use gradus_error::Error;
use gradus_host::units::parse_bytes;
use gradus_host::{Clock, RealClock};
use gradus_store::{Feed, FeedCounters, Order, Readers, Reading, Sample, cache_for};
use multiversion::multiversion;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;
use std::time::Duration;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct BenchDatasetArguments {
    /// Where the dataset is: s3://BUCKET/PREFIX, or a folder.
    #[arg(long)]
    pub source: String,
    /// How often it is read.
    #[arg(long, default_value_t = 2)]
    pub epochs: u64,
    /// Samples of a batch, which one thread reads.
    #[arg(long, default_value_t = 32)]
    pub batch: u64,
    /// Threads that read.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Stay when all is read, until stdin ends.
    #[arg(long)]
    pub stay: bool,
    /// Bytes that are used up each second, such as 500MB: a thread pauses after each batch for as long as that takes.
    #[arg(long, value_parser = parse_bytes)]
    pub demand: Option<u64>,
}

/// Reads all of it.
///
/// # Errors
/// What is wrong with the dataset, the bucket or a setting.
pub fn run(arguments: &BenchDatasetArguments, settings: &Settings) -> Result<()> {
    if arguments.batch == 0 || arguments.threads == 0 || arguments.epochs == 0 {
        return Err(Error::invalid("--batch, --threads and --epochs are 1 at least").into());
    }
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let began = clock.now();
    let source = DataSource::open(&arguments.source, settings)?;
    let index = Arc::new(source.index()?);
    let samples = index.samples();
    let order: Arc<dyn Order> = Arc::from(settings.order.order(settings.run.seed, samples)?);
    let end = Some(samples * arguments.epochs);
    let cache = cache_for(&index, settings.cache.clone(), settings.order.shuffle);
    let reading = Reading { index, order, readers: Readers::alone(), end };
    let feed = Feed::open(reading, &source.source(), &cache, clock.clone())?;
    let reader = Reader { feed: &feed, clock: &*clock, arguments, samples, next: AtomicU64::new(0) };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<Worker> = (0..arguments.threads).map(|_| Worker::start(scope, &reader)).collect();
        let opening = clock.now().saturating_sub(began);
        feed.begin(0);
        for epoch in 0..arguments.epochs {
            let before = feed.counters();
            let read = reader.epoch(&workers, epoch)?;
            report(epoch, &read, (&before, &feed.counters()), opening)?;
        }
        Ok(())
    })?;
    if arguments.stay {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("cannot read stdin")?;
    }
    Ok(())
}

struct Reader<'a> {
    feed: &'a Feed,
    clock: &'a dyn Clock,
    arguments: &'a BenchDatasetArguments,
    samples: u64,
    /// The first place of the epoch that no thread has taken.
    next: AtomicU64,
}

/// A thread that reads its part of an epoch when it is told to. It stays for the next one, as loaders' workers do.
struct Worker {
    /// Number and beginning of an epoch.
    epochs: SyncSender<(u64, Duration)>,
    parts: Receiver<gradus_error::Result<Epoch>>,
}

impl Worker {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, reader: &'scope Reader) -> Self {
        let (epochs, told) = sync_channel(1);
        let (sender, parts) = sync_channel(1);
        // Ends when nobody tells it of epochs any more.
        scope.spawn(move || {
            told.into_iter().try_for_each(|(epoch, begin)| sender.send(reader.batches(epoch, begin)))
        });
        Self { epochs, parts }
    }
}

/// What an epoch gave.
#[derive(Debug, Clone, Copy, Default)]
struct Epoch {
    seconds: f64,
    /// Until the first batch was there, and what of that was waiting.
    first_batch_s: f64,
    first_batch_stall_s: f64,
    samples: u64,
    bytes: u64,
    sum: u64,
}

impl Reader<'_> {
    fn epoch(&self, workers: &[Worker], epoch: u64) -> Result<Epoch> {
        let panicked = "a reading thread has panicked";
        self.next.store(0, Ordering::Relaxed);
        let begin = self.clock.now();
        workers.iter().try_for_each(|worker| worker.epochs.send((epoch, begin)).context(panicked))?;
        let parts = workers.iter().map(|worker| Ok(worker.parts.recv().context(panicked)??));
        let read = parts.collect::<Result<Vec<_>>>()?;
        let seconds = self.clock.now().saturating_sub(begin).as_secs_f64();
        let first = read.iter().map(|part| part.first_batch_s).fold(f64::INFINITY, f64::min);
        let stalled =
            read.iter().filter(|part| part.first_batch_s == first).map(|part| part.first_batch_stall_s);
        let first_batch_stall_s = stalled.sum();
        let whole = Epoch { seconds, first_batch_s: first, first_batch_stall_s, ..Epoch::default() };
        Ok(read.iter().fold(whole, |whole, part| Epoch {
            samples: whole.samples + part.samples,
            bytes: whole.bytes + part.bytes,
            sum: whole.sum.wrapping_add(part.sum),
            ..whole
        }))
    }

    /// One thread's batches.
    fn batches(&self, epoch: u64, begin: Duration) -> gradus_error::Result<Epoch> {
        let mut read = Epoch { first_batch_s: f64::INFINITY, ..Epoch::default() };
        let mut due = self.clock.now();
        loop {
            let first = self.next.fetch_add(self.arguments.batch, Ordering::Relaxed);
            if first >= self.samples {
                return Ok(read);
            }
            let before = read.bytes;
            let (last, epoch_begin) =
                ((first + self.arguments.batch).min(self.samples), epoch * self.samples);
            for sample in self.feed.samples(epoch_begin + first..epoch_begin + last) {
                let sample = sample?;
                // What a program uses of a sample is its first field: an image, a text, some tokens.
                let fields = self.feed.index().fields_of(sample.reader(), sample.len())?;
                let sample = sample.slice(fields.first().map_or(0..0, |field| field.range.clone()));
                read.samples += 1;
                read.bytes += sample.len() as u64;
                read.sum = read.sum.wrapping_add(sum(&sample));
            }
            if read.first_batch_s.is_infinite() {
                read.first_batch_s = self.clock.now().saturating_sub(begin).as_secs_f64();
                read.first_batch_stall_s = self.feed.counters().stalls.total_s();
                due = self.clock.now();
            }
            if let Some(demand) = self.arguments.demand {
                // A batch is used up in so long, and one that came late is not used up faster.
                due = due.max(self.clock.now())
                    + Duration::from_secs_f64((read.bytes - before) as f64 / demand.max(1) as f64);
                self.clock.sleep(due.saturating_sub(self.clock.now()));
            }
        }
    }
}

/// The sum of a sample's words of 8 bytes, little-endian, the last filled up with zeros.
fn sum(sample: &Sample) -> u64 {
    let (mut sum, mut cut, mut cut_len) = (0u64, [0; 8], 0);
    for part in sample.parts() {
        let missing = if cut_len == 0 { 0 } else { (8 - cut_len).min(part.len()) };
        let (first, part) = part.split_at(missing);
        cut[cut_len..cut_len + missing].copy_from_slice(first);
        cut_len += missing;
        if cut_len == 8 {
            sum = sum.wrapping_add(u64::from_le_bytes(std::mem::take(&mut cut)));
            cut_len = 0;
        }
        let (words, rest) = part.as_chunks::<8>();
        sum = sum.wrapping_add(sum_of_words(words));
        if !rest.is_empty() {
            cut[..rest.len()].copy_from_slice(rest);
            cut_len = rest.len();
        }
    }
    sum.wrapping_add(u64::from_le_bytes(cut))
}

/// With the widest registers of this processor, as the sums of other loaders' measurements have it.
#[multiversion(targets = "simd")]
fn sum_of_words(words: &[[u8; 8]]) -> u64 {
    words.iter().fold(0, |sum: u64, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

fn report(
    epoch: u64,
    read: &Epoch,
    (before, after): (&FeedCounters, &FeedCounters),
    opening: Duration,
) -> Result<()> {
    let stalls = after.stalls.since(&before.stalls);
    let by_cause: serde_json::Map<_, _> = gradus_store::Cause::ALL
        .iter()
        .map(|cause| (cause.name().to_owned(), json!(stalls.of(*cause))))
        .collect();
    let line = json!({
        // From 1, as in the table of loaders.
        "epoch": epoch + 1,
        "seconds": read.seconds + if epoch == 0 { opening.as_secs_f64() } else { 0.0 },
        "reading_s": read.seconds,
        "first_batch_s": read.first_batch_s,
        "first_batch_stall_s": read.first_batch_stall_s,
        "opening_s": opening.as_secs_f64(),
        "samples": read.samples,
        "bytes": read.bytes,
        "sum": read.sum,
        "fetched_bytes": after.bucket.bytes_read - before.bucket.bytes_read,
        "requests": after.bucket.gets - before.bucket.gets,
        "stall_s": by_cause,
        "depth_bytes": after.depth_bytes,
        "memory_hits": after.cache.memory_hits - before.cache.memory_hits,
        "disk_hits": after.cache.disk_hits - before.cache.disk_hits,
        "misses": after.cache.misses - before.cache.misses,
    });
    logging::print(format_args!("{line}"))?;
    Ok(())
}
