//! What a shuffle costs and what it is worth: how well samples are mixed, against what is read from the bucket.
//!
//! ```text
//! cargo run -p gradus-store --example shuffle_quality
//! ```
//!
//! The data set is a gibibyte in blocks of 1 MiB, and sorted by source: 64 sources, the second half as large as the
//! first, the third a third of it, and so on. Batches have 256 samples. An object begins with 100 000 bytes that belong to
//! no sample, so that neither samples nor runs of them begin where blocks do. Nothing is left to time or chance: the
//! figures are the same on every machine.
//!
//! *mix*: the mean total-variation distance between a batch's parts of sources and those of the whole, over that of the
//! whole shuffle: 1 is as good as that. *neighbours*: the mean distance in storage of two samples that follow one
//! another, over a third of all, which is that of the whole shuffle. *together*: how many of a sample's companions in a
//! batch are in its batch again in the next epoch, over that of the whole shuffle. *read*: bytes read from the bucket in
//! an epoch, over those of the data set, for a cache that holds a part of it; means of two epochs after a first one.

use gradus_error::Result;
use gradus_store::Block;
use gradus_store::order::{Order, OrderSettings, Shuffle};
use std::collections::{BTreeMap, BTreeSet};

const SEED: u64 = 1;
const BATCH: usize = 256;
const SOURCES: u64 = 64;
const BLOCK_BYTES: u64 = 1 << 20;
const DATA_BYTES: u64 = 1 << 30;
const HEADER_BYTES: u64 = 100_000;
const CACHES: [u64; 3] = [5, 25, 50];

/// The first fills the cache, the last gives those before it a future.
const EPOCHS: u64 = 4;

/// Samples of one size, stored one behind another.
#[derive(Clone, Copy)]
struct Data {
    sample_bytes: u64,
}

impl Data {
    fn samples(self) -> u64 {
        DATA_BYTES / self.sample_bytes
    }

    fn blocks(self) -> u64 {
        (HEADER_BYTES + DATA_BYTES).div_ceil(BLOCK_BYTES)
    }

    /// The blocks that hold a sample.
    fn blocks_of(self, sample: u64) -> impl Iterator<Item = Block> {
        let start = HEADER_BYTES + sample * self.sample_bytes;
        (start / BLOCK_BYTES..(start + self.sample_bytes).div_ceil(BLOCK_BYTES)).map(Block)
    }

    /// The source of each sample.
    fn sources(self) -> Vec<usize> {
        let harmonic: f64 = (1..=SOURCES).map(|source| 1.0 / source as f64).sum();
        let mut sources = Vec::new();
        let mut share = 0.0;
        for source in 0..SOURCES {
            share += 1.0 / (source + 1) as f64 / harmonic;
            sources.resize((share * self.samples() as f64).round() as usize, source as usize);
        }
        sources
    }
}

/// How well an order mixes.
struct Quality {
    mix: f64,
    neighbours: f64,
    together: f64,
}

impl Quality {
    fn of(order: &dyn Order, data: Data) -> Self {
        let epoch = |epoch: u64| {
            let positions = epoch * data.samples()..(epoch + 1) * data.samples();
            positions.map(|position| order.sample_at(position)).collect::<Vec<_>>()
        };
        let (first, second) = (epoch(0), epoch(1));
        Self {
            mix: mean_distance(&first, &data.sources()),
            neighbours: mean(first.windows(2).map(|pair| pair[0].abs_diff(pair[1]) as f64)),
            together: together_again(&first, &second),
        }
    }
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = numbers.fold((0.0, 0.0), |(sum, count), number| (sum + number, count + 1.0));
    sum / count
}

/// The mean total-variation distance between batches and the whole.
fn mean_distance(samples: &[u64], sources: &[usize]) -> f64 {
    let parts = |samples: &[u64]| {
        let mut parts = [0.0; SOURCES as usize];
        for sample in samples {
            parts[sources[*sample as usize]] += 1.0 / samples.len() as f64;
        }
        parts
    };
    let whole = parts(samples);
    let distance = |batch: &[u64]| {
        let part = parts(batch);
        part.iter().zip(&whole).map(|(part, whole)| (part - whole).abs()).sum::<f64>() / 2.0
    };
    mean(samples.chunks_exact(BATCH).map(distance))
}

/// How many companions of a sample are its companions again.
fn together_again(first: &[u64], second: &[u64]) -> f64 {
    let mut next_batch = vec![0; second.len()];
    for (place, sample) in second.iter().enumerate() {
        next_batch[*sample as usize] = place / BATCH;
    }
    let of_batch = |batch: &[u64]| {
        let mut counts = BTreeMap::new();
        for sample in batch {
            *counts.entry(next_batch[*sample as usize]).or_insert(0.0) += 1.0;
        }
        counts.values().map(|count: &f64| count * (count - 1.0)).sum::<f64>() / batch.len() as f64
    };
    mean(first.chunks_exact(BATCH).map(of_batch))
}

/// Which blocks are used, one after another, and where epochs begin.
struct Trace {
    blocks: Vec<Block>,
    epochs: Vec<usize>,
}

impl Trace {
    fn of(order: &dyn Order, data: Data) -> Self {
        let (mut blocks, mut epochs) = (Vec::new(), Vec::new());
        for position in 0..EPOCHS * data.samples() {
            if position % data.samples() == 0 {
                epochs.push(blocks.len());
            }
            blocks.extend(data.blocks_of(order.sample_at(position)));
        }
        Self { blocks, epochs }
    }

    /// When the block of each use is used next.
    fn next_uses(&self) -> Vec<u64> {
        let mut next = vec![u64::MAX; self.blocks.len()];
        let mut latest = BTreeMap::new();
        for (index, block) in self.blocks.iter().enumerate().rev() {
            next[index] = latest.insert(*block, index as u64).unwrap_or(u64::MAX);
        }
        next
    }

    /// Blocks read in an epoch by a cache that lets go of the block that was worth least when it was used last, which
    /// may be the one just read.
    fn reads(&self, capacity: usize, worth: impl Fn(usize) -> u64) -> f64 {
        let mut held = BTreeMap::new();
        let mut by_worth = BTreeSet::new();
        let mut reads = 0;
        for (index, block) in self.blocks.iter().enumerate().take(self.epochs[EPOCHS as usize - 1]) {
            match held.insert(*block, worth(index)) {
                Some(before) => {
                    by_worth.remove(&(before, *block));
                }
                None => reads += usize::from(index >= self.epochs[1]),
            }
            by_worth.insert((worth(index), *block));
            if by_worth.len() > capacity
                && let Some((_, least)) = by_worth.pop_first()
            {
                held.remove(&least);
            }
        }
        reads as f64 / (EPOCHS - 2) as f64
    }
}

/// Reads over blocks, by LRU and by Belady's rule, for each size of the cache.
fn reads(order: &dyn Order, data: Data) -> Vec<[f64; 2]> {
    let trace = Trace::of(order, data);
    let next = trace.next_uses();
    let of_cache = |percent: &u64| {
        let capacity = (data.blocks() * percent / 100) as usize;
        let lru = trace.reads(capacity, |index| index as u64);
        let belady = trace.reads(capacity, |index| u64::MAX - next[index]);
        [lru, belady].map(|reads| reads / data.blocks() as f64)
    };
    CACHES.iter().map(of_cache).collect()
}

fn settings(samples_of_block: u64) -> Vec<(String, OrderSettings)> {
    let blocks = |(run_blocks_of_16, window_blocks): (u64, u64)| {
        let block_samples = samples_of_block * run_blocks_of_16 / 16;
        let percent = (block_samples * window_blocks) as f64 / samples_of_block as f64 / 10.24;
        let name = format!("`blocks`, {block_samples} x {window_blocks} ({percent:.1}%)");
        (name, OrderSettings { shuffle: Shuffle::Blocks, block_samples, window_blocks })
    };
    // Runs in sixteenths of a block, and how many are mixed.
    let chosen =
        [(4, 256), (16, 16), (16, 64), (16, 256), (64, 4), (64, 8), (64, 16), (64, 64), (256, 4), (256, 16)];
    let other = |name: &str, shuffle| (name.to_owned(), OrderSettings { shuffle, ..Default::default() });
    let mut all = vec![other("`whole`", Shuffle::Whole)];
    all.extend(chosen.into_iter().map(blocks));
    all.push(other("`none`", Shuffle::None));
    all
}

fn print_table(sample_bytes: u64) -> Result<()> {
    let data = Data { sample_bytes };
    println!(
        "\n{} samples of {} KiB, {} to a block\n",
        data.samples(),
        sample_bytes >> 10,
        BLOCK_BYTES / sample_bytes
    );
    let caches = CACHES.map(|percent| format!("read, {percent}% LRU | Belady"));
    println!("| order (window / data) | mix | neighbours | together | {} |", caches.join(" | "));
    println!("|---|{}", "---:|".repeat(3 + 2 * CACHES.len()));
    let mut best: Option<Quality> = None;
    for (name, settings) in settings(BLOCK_BYTES / sample_bytes) {
        let order = settings.order(SEED, data.samples())?;
        let quality = Quality::of(order.as_ref(), data);
        // The whole shuffle comes first.
        let best = best.get_or_insert(Quality { ..quality });
        let reads: Vec<String> = reads(order.as_ref(), data)
            .iter()
            .map(|[lru, belady]| format!("{lru:.2} | {belady:.2}"))
            .collect();
        println!(
            "| {name} | {:.2} | {:.2} | {:.1} | {} |",
            quality.mix / best.mix,
            quality.neighbours / (data.samples() as f64 / 3.0),
            quality.together / best.together,
            reads.join(" | ")
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    print_table(4 << 10)?;
    print_table(128 << 10)
}
