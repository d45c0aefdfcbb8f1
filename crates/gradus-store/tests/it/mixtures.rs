//! Several prepared datasets read as one, wherever each lies.

use super::bucket::{keys as environment, quick};
use super::{prepared, settings, text};
use gradus_error::Kind;
use gradus_host::RealClock;
use gradus_store::order::Order;
use gradus_store::{
    Address, Bucket, CacheSettings, Dataset, Feed, FeedTokens, Index, IndexSettings, Mixed, MixedPart,
    OrderSettings, PrepareSettings, Readers, Reading, Source, Split, Tokens,
};
use gradus_testbed::S3Server;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// Of a dataset that lies in a folder and of one that lies in a bucket.
const WEIGHTS: [f64; 2] = [0.4, 0.6];

struct Home {
    folder: TempDir,
    server: S3Server,
}

impl Home {
    /// Two datasets of one tokenizer, the second much smaller; it is in the bucket, too.
    fn new() -> Self {
        let (folder, server) = (tempfile::tempdir().unwrap(), S3Server::with_bucket("data").unwrap());
        let home = Self { folder, server };
        home.prepare(0, 900, "");
        home.prepare(1, 90, home.path(0).to_str().unwrap());
        for entry in std::fs::read_dir(home.path(1)).unwrap() {
            let path = entry.unwrap().path();
            let key = format!("set/{}", path.file_name().unwrap().to_str().unwrap());
            home.server.put("data", &key, &std::fs::read(&path).unwrap()).unwrap();
        }
        home
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("prepared{number}"))
    }

    fn prepare(&self, number: usize, lines: usize, tokenizer: &str) {
        let input = format!("{number}.txt");
        std::fs::write(self.folder.path().join(&input), text(lines)).unwrap();
        prepared(&PrepareSettings {
            prepared: self.path(number).display().to_string(),
            tokenizer: tokenizer.to_owned(),
            ..settings(self.folder.path(), &input)
        });
    }

    fn dataset(&self, number: usize) -> Dataset {
        Dataset::open(&self.path(number)).unwrap()
    }

    fn mixed(&self) -> Mixed {
        let part = |number: usize| self.part(number, WEIGHTS[number]);
        Mixed::new(vec![part(0), part(1)], &OrderSettings::default(), 5).unwrap()
    }

    fn part(&self, number: usize, weight: f64) -> MixedPart {
        MixedPart { name: format!("prepared{number}"), dataset: self.dataset(number), weight }
    }

    /// The samples of one part of both, the first in its folder, the second in the bucket.
    fn feed(&self, split: Split, order: Arc<dyn Order>) -> Feed {
        let files = bucket(&self.server, self.path(0).to_str().unwrap());
        let objects = bucket(&self.server, "s3://data/set");
        let index = |bucket: &Bucket| {
            let settings = IndexSettings { split, ..IndexSettings::default() };
            Index::build(bucket, &bucket.address().to_string(), &settings, &|_| ()).unwrap()
        };
        let parts = [index(&files), index(&objects)];
        let places = vec![
            (parts[0].objects().len(), Source::Files),
            (parts[1].objects().len(), Source::Bucket(objects)),
        ];
        let index = Arc::new(Index::join(parts.into()).unwrap());
        let reading = Reading { index, order, readers: Readers::alone(), end: None };
        let cache = CacheSettings { block_bytes: 4096, memory_bytes: 1 << 20, ..CacheSettings::default() };
        Feed::open(reading, &Source::Several(places), &cache, Arc::new(RealClock::new())).unwrap()
    }
}

fn bucket(server: &S3Server, address: &str) -> Bucket {
    Bucket::open(&Address::parse(address).unwrap(), &quick(server), &environment).unwrap()
}

#[test]
fn every_position_holds_its_datasets_sample_wherever_that_lies_and_shares_are_the_weights() {
    let home = Home::new();
    let mixed = home.mixed();
    for split in [Split::Train, Split::HeldOut] {
        let order: Arc<dyn Order> = match split {
            Split::Train => mixed.order(),
            Split::HeldOut => Arc::new(mixed.held_out(50).unwrap()),
        };
        let datasets = [home.dataset(0), home.dataset(1)];
        let files = datasets.each_ref().map(|dataset| dataset.files(split).unwrap());
        let first = datasets[0].split(split).samples();
        let feed = Arc::new(home.feed(split, order.clone()));
        let mut tokens = FeedTokens::own(feed.clone(), &datasets[0]);
        tokens.begin(0).unwrap();
        let (mut out, mut expected, mut read) = ([0; 9], [0; 9], [0u64; 2]);
        // Of what is learned from, whole periods of five; the small dataset comes round several times.
        let positions = if split == Split::Train { 5 * 200 } else { order.samples() };
        for position in 0..positions {
            tokens.read(position, &mut out).unwrap();
            let sample = order.sample_at(position);
            let part = usize::from(sample >= first);
            files[part].read(sample - part as u64 * first, &mut expected).unwrap();
            assert_eq!(out, expected, "{split:?}: position {position}");
            read[part] += 1;
        }
        match split {
            Split::Train => {
                assert_eq!(read, [400, 600]);
                let progress = mixed.order().progress(positions);
                assert_eq!(progress.iter().map(|part| part.samples).collect::<Vec<_>>(), read);
                assert!(progress[1].epochs > 1.0 && progress[0].epochs < 1.0, "{progress:?}");
            }
            // As many as the bucket's dataset holds out allow, by weight.
            Split::HeldOut => assert!((read[0] as f64 / read[1] as f64 - 4.0 / 6.0).abs() < 0.2, "{read:?}"),
        }
        let counters = feed.counters();
        assert!(counters.brought.disk > 0 && counters.brought.bucket > 0, "{counters:?}");
        // What lies in files is not kept again.
        let in_bucket =
            datasets[1].manifest().split(split).shards.iter().map(|shard| shard.file_bytes).sum::<u64>();
        assert!(counters.cache.fetched_bytes <= in_bucket, "{counters:?}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let home = Home::new();
    let kind = |parts| Mixed::new(parts, &OrderSettings::default(), 5).err().unwrap().kind().clone();
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(kind(vec![home.part(0, 1.0), home.part(1, weight)]), Kind::Invalid, "{weight}");
    }
    assert_eq!(kind(Vec::new()), Kind::Invalid);
    home.prepare(1, 90, "");
    assert_eq!(kind(vec![home.part(0, 1.0), home.part(1, 1.0)]), Kind::Invalid);
}

#[test]
fn other_shares_are_other_data() {
    let home = Home::new();
    let digest = |weights: [f64; 2]| {
        let parts = vec![home.part(0, weights[0]), home.part(1, weights[1])];
        Mixed::new(parts, &OrderSettings::default(), 5).unwrap().summary(50).digest
    };
    assert_eq!(digest([0.4, 0.6]), digest([4.0, 6.0]));
    assert_ne!(digest([0.4, 0.6]), digest([0.5, 0.5]));
}
