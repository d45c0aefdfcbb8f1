//! Reads a dataset's samples in shuffled batches, out of a folder or a bucket, and says what was waited for.
//!
//! ```text
//! cargo run --release -p gradus-store --example read_batches -- s3://BUCKET/PREFIX
//! ```
//!
//! Keys, region and endpoint come from where Amazon's tools look for them.

use gradus_error::{Error, Result};
use gradus_host::{Clock, RealClock};
use gradus_store::order::Shuffled;
use gradus_store::{
    Address, Bucket, BucketSettings, CacheSettings, Cause, Feed, Index, IndexSettings, Readers, Reading,
    Shuffle, Source, cache_for,
};
use std::sync::Arc;

const SEED: u64 = 1;
const EPOCHS: u64 = 2;
const BATCH: u64 = 32;

fn main() -> Result<()> {
    let place = std::env::args().nth(1).ok_or_else(|| Error::invalid("which dataset? s3://BUCKET/PREFIX"))?;
    let address = Address::parse(&place)?;
    let bucket = Bucket::open(&address, &BucketSettings::default(), &|name| std::env::var(name).ok())?;
    let index = Index::build(&bucket, &address.to_string(), &IndexSettings::default(), &|_| ())?;
    let samples = index.samples();
    let reading = Reading {
        index: Arc::new(index),
        order: Arc::new(Shuffled::new(SEED, samples)),
        readers: Readers::alone(),
        end: Some(EPOCHS * samples),
    };
    let source = if address.is_remote() { Source::Bucket(bucket) } else { Source::Files };
    let cache = cache_for(&reading.index, CacheSettings::default(), Shuffle::Whole);
    let clock = Arc::new(RealClock::new());
    let feed = Feed::open(reading, &source, &cache, clock.clone())?;
    feed.begin(0);
    let begin = clock.now();
    for first in (0..EPOCHS * samples).step_by(BATCH as usize) {
        for sample in feed.samples(first..(first + BATCH).min(EPOCHS * samples)) {
            // The bytes, where they lie in the cache.
            sample?.parts().for_each(|part| _ = std::hint::black_box(part));
        }
    }
    let (counters, seconds) = (feed.counters(), (clock.now() - begin).as_secs_f64());
    println!("{:.0} MB/s", counters.bytes as f64 / 1e6 / seconds);
    for cause in Cause::ALL {
        println!("waited for {}: {:.3} s", cause.name(), counters.stalls.of(cause));
    }
    Ok(())
}
