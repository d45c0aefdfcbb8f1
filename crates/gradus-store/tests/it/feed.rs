//! Samples by way of a feed: out of files and out of a real S3 server, in any order, whatever is small or goes wrong.

use super::bucket::{keys, noise, quick};
use gradus_error::Kind;
use gradus_host::{Clock, RealClock};
use gradus_store::bucket::{Address, Bucket};
use gradus_store::cache::Tier0;
use gradus_store::order::{Selection, Shuffled};
use gradus_store::{
    Asker, Block, BlockMap, CacheSettings, Cause, Feed, Index, IndexSettings, Keeper, Order, Readers,
    Reading, Source, Stalls, Warmed, warm,
};
use gradus_testbed::S3Server;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::yield_now;
use std::time::Duration;

/// JSON lines of many lengths in three objects of a bucket.
pub(super) struct Home {
    pub(super) server: S3Server,
    pub(super) lines: Vec<Vec<u8>>,
    pub(super) bytes: u64,
}

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

fn home(samples: usize) -> Home {
    home_of(samples, &|number| 20 + number * 7919 % 3000)
}

pub(super) fn home_of(samples: usize, length: &dyn Fn(usize) -> usize) -> Home {
    let server = S3Server::with_bucket("data").unwrap();
    let line = |number| format!("[\"{number:06}{}\"]", "x".repeat(length(number))).into_bytes();
    let lines: Vec<Vec<u8>> = (0..samples).map(line).collect();
    let mut bytes = 0;
    for (number, part) in lines.chunks(samples.div_ceil(3)).enumerate() {
        let text = part.join(&b'\n');
        bytes += text.len() as u64;
        server.put("data", &format!("set/{number}.jsonl"), &text).unwrap();
    }
    Home { server, lines, bytes }
}

impl Home {
    pub(super) fn bucket(&self) -> Bucket {
        Bucket::open(&Address::parse("s3://data/set").unwrap(), &quick(&self.server), &keys).unwrap()
    }

    pub(super) fn index(&self, bucket: &Bucket) -> Arc<Index> {
        let address = bucket.address().to_string();
        Arc::new(Index::build(bucket, &address, &IndexSettings::default(), &|_| ()).unwrap())
    }

    pub(super) fn order(&self) -> Arc<dyn Order> {
        Arc::new(Shuffled::new(5, self.lines.len() as u64))
    }

    pub(super) fn feed(&self, cache: &CacheSettings) -> Feed {
        self.feed_until(Some(3 * self.lines.len() as u64), cache)
    }

    pub(super) fn feed_until(&self, end: Option<u64>, cache: &CacheSettings) -> Feed {
        let bucket = self.bucket();
        let reading =
            Reading { index: self.index(&bucket), order: self.order(), readers: Readers::alone(), end };
        let feed = Feed::open(reading, &Source::Bucket(bucket), cache, Arc::new(RealClock::new())).unwrap();
        self.server.faults().reset_counts();
        feed
    }

    /// Reads all epochs and compares each sample.
    pub(super) fn check(&self, feed: &Feed) {
        let order = self.order();
        feed.begin(0);
        for position in 0..3 * self.lines.len() as u64 {
            let sample = feed.sample(position).unwrap().to_vec();
            assert_eq!(sample, self.lines[order.sample_at(position) as usize], "position {position}");
        }
    }
}

pub(super) fn small(memory_bytes: u64) -> CacheSettings {
    CacheSettings { block_bytes: 4096, memory_bytes, ..CacheSettings::default() }
}

#[test]
fn where_all_is_kept_every_byte_leaves_the_bucket_once() {
    let home = home(300);
    let feed = home.feed(&small(64 << 20));
    home.check(&feed);
    assert_eq!(home.server.faults().counts().bytes(), home.bytes);
    let counters = feed.counters();
    assert_eq!(counters.samples, 900);
    assert_eq!(counters.waiting_bytes, 0);
    let brought = counters.brought;
    assert_eq!(brought.total(), counters.bytes);
    assert!(0 < brought.bucket && brought.bucket <= home.bytes && (brought.disk, brought.peer) == (0, 0));
    assert_eq!(counters.stalls.of(Cause::Peer) + counters.stalls.of(Cause::Disk), 0.0);
}

#[test]
fn where_little_is_kept_every_byte_is_right() {
    let home = home(300);
    for memory_bytes in [8192, 65_536, 200_000] {
        let feed = home.feed(&small(memory_bytes));
        home.check(&feed);
        assert!(home.server.faults().counts().bytes() > home.bytes);
    }
}

#[test]
fn who_waits_for_memory_that_others_hold_is_told_so() {
    let home = home(300);
    let feed = home.feed(&small(4 * 4096));
    feed.begin(0);
    let mut waits = Stalls::default();
    let held: Vec<_> = (0..8).map(|position| feed.sample_waited(position, &mut waits).unwrap()).collect();
    assert!(waits.of(Cause::Memory) > 0.0, "{waits:?}");
    assert_eq!(feed.counters().stalls.of(Cause::Memory), waits.of(Cause::Memory));
    let order = home.order();
    for (position, sample) in held.iter().enumerate() {
        assert_eq!(sample.to_vec(), home.lines[order.sample_at(position as u64) as usize]);
    }
}

#[test]
fn what_is_on_disk_is_there_after_a_restart_and_damage_is_fetched_again() {
    let home = home(300);
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheSettings {
        folder: folder.path().join("tier0").to_str().unwrap().to_owned(),
        disk_bytes: 64 << 20,
        ..small(1 << 20)
    };
    home.check(&home.feed(&cache));
    assert_eq!(home.server.faults().counts().bytes(), home.bytes);
    let feed = home.feed(&cache);
    home.check(&feed);
    assert_eq!(home.server.faults().counts().bytes(), 0, "{:?}", feed.counters());
    drop(feed);
    damage(folder.path());
    let feed = home.feed(&cache);
    home.check(&feed);
    let fetched = home.server.faults().counts().bytes();
    assert!(fetched > 0 && fetched < home.bytes, "{fetched} of {}", home.bytes);
}

/// A tier that lets go of what is used last of all, by looking ahead.
struct Belady {
    capacity: usize,
    residents: BTreeSet<Block>,
}

impl Belady {
    /// Whether the block that is used `now` was there.
    fn access(&mut self, used: &[Block], now: usize) -> bool {
        if !self.residents.insert(used[now]) {
            return true;
        }
        if self.residents.len() > self.capacity {
            let next = |block: &&Block| used[now + 1..].iter().position(|later| later == *block).unwrap();
            let farthest = *self.residents.iter().max_by_key(next).unwrap();
            self.residents.remove(&farthest);
        }
        false
    }
}

/// The cache that a feed has left, once what was on its way then has come.
fn opened(map: &Arc<BlockMap>, cache: &CacheSettings) -> Tier0 {
    let clock = RealClock::new();
    let end = clock.now() + PATIENCE;
    loop {
        match Tier0::open(map.clone(), cache, 4) {
            Err(error) if *error.kind() == Kind::Unavailable && clock.now() < end => yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

#[test]
fn after_a_restart_in_mid_epoch_misses_are_the_fewest_possible() {
    // Four lines a block, newlines included, so that each position uses one block.
    let home = home_of(300, &|_| 1013);
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheSettings {
        folder: folder.path().to_str().unwrap().to_owned(),
        disk_bytes: 30 * 4096,
        ..small(24 * 4096)
    };
    let (index, order) = (home.index(&home.bucket()), home.order());
    let map = Arc::new(BlockMap::new(index.objects().to_vec(), 4096).unwrap());
    let used = |position| {
        let place = index.sample(order.sample_at(position));
        let blocks: Vec<Block> = map.covering(place.object as usize, place.unit).collect();
        assert_eq!(blocks.len(), 1);
        blocks[0]
    };
    let used: Vec<Block> = (0..1500).map(used).collect();
    // All walks end within the first epoch: a sample that comes again while it is still held is not accessed anew.
    for (from, to) in [(0, 130), (130, 220), (60, 200)] {
        // Half of the 24 pages are the window's, and of the others a quarter is for what waits to be written.
        let mut memory = Belady { capacity: 9, residents: BTreeSet::new() };
        let on_disk = opened(&map, &cache).on_disk();
        let mut disk = Belady { capacity: 30, residents: on_disk.into_iter().collect() };
        let feed = home.feed_until(None, &cache);
        feed.begin(from);
        for position in from..to {
            let sample = feed.sample(position).unwrap().to_vec();
            assert_eq!(sample, home.lines[order.sample_at(position) as usize], "position {position}");
        }
        let counters = feed.counters().cache;
        let walked = from as usize..(from + counters.accesses) as usize;
        let hits = walked.map(|now| [memory.access(&used, now), disk.access(&used, now)].contains(&true));
        assert_eq!(counters.misses, hits.filter(|hit| !hit).count() as u64, "from {from}: {counters:?}");
    }
}

fn warmed(home: &Home, cache: &CacheSettings) -> Warmed {
    let bucket = home.bucket();
    let (index, order) = (home.index(&bucket), home.order());
    home.server.faults().reset_counts();
    let (mut last, mut all) = (0, 0);
    let (reading, source) = ((&*index, order.as_ref(), order.samples()), Source::Bucket(bucket));
    let warmed = warm(reading, &source, cache, Arc::new(RealClock::new()), &mut |done, of| {
        assert!(last <= done && done <= of);
        (last, all) = (done, of);
    });
    let warmed = warmed.unwrap();
    assert!(warmed.is_full || last == all, "{last} of {all}");
    warmed
}

#[test]
fn a_folder_that_is_filled_ahead_leaves_nothing_to_fetch() {
    let home = home(300);
    let folder = tempfile::tempdir().unwrap();
    // Pages for few blocks: the writer must give them back.
    let cache = CacheSettings {
        folder: folder.path().join("tier0").to_str().unwrap().to_owned(),
        disk_bytes: 64 << 20,
        ..small(32_768)
    };
    let first = warmed(&home, &cache);
    assert_eq!((first.cache.fetched_bytes, first.is_full), (home.bytes, false));
    assert_eq!(first.cache.disk_blocks, first.wanted);
    let feed = home.feed(&cache);
    home.check(&feed);
    assert_eq!(home.server.faults().counts().bytes(), 0);
    assert_eq!(feed.counters().brought.bucket, 0);
    drop(feed);
    damage(folder.path());
    let again = warmed(&home, &cache);
    assert!(again.cache.damaged_blocks > 0 && again.cache.fetched_blocks == again.cache.damaged_blocks);
    home.check(&home.feed(&cache));
    assert_eq!(home.server.faults().counts().bytes(), 0);
}

#[test]
fn a_small_folder_is_filled_with_what_is_needed_first() {
    let home = home(300);
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheSettings {
        folder: folder.path().to_str().unwrap().to_owned(),
        disk_bytes: 10 * 4096,
        ..small(1 << 20)
    };
    let found = warmed(&home, &cache);
    assert_eq!((found.wanted, found.cache.disk_blocks, found.is_full), (10, 10, true));
    assert!(home.server.faults().counts().bytes() <= 10 * 4096);
    let feed = home.feed(&cache);
    feed.begin(0);
    feed.sample(0).unwrap();
    assert!(feed.counters().cache.disk_hits >= 1);
    drop(feed);
    let bucket = home.bucket();
    let (index, order) = (home.index(&bucket), home.order());
    let clock = Arc::new(RealClock::new());
    let (reading, source) = ((&*index, order.as_ref(), 1), Source::Bucket(bucket));
    let without = warm(reading, &source, &small(1 << 20), clock, &mut |_, _| ());
    assert_eq!(without.unwrap_err().kind(), &Kind::Invalid);
}

#[test]
fn each_reader_counts_its_own_waits() {
    let home = home(120);
    let feed = home.feed(&small(8192));
    feed.begin(0);
    let mut waits = [Stalls::default(); 2];
    for position in 0..240 {
        feed.sample_waited(position, &mut waits[position as usize % 2]).unwrap();
    }
    let all = feed.counters().stalls;
    let sum = |cause: Cause| waits[0].times[cause as usize] + waits[1].times[cause as usize];
    assert!(all.times[Cause::Bucket as usize] > 0);
    assert!(waits.iter().all(|own| own.times[Cause::Bucket as usize] > 0));
    assert_eq!(Cause::ALL.map(sum), all.times);
}

#[test]
fn batches_of_several_readers_are_the_samples_of_their_positions() {
    let home = home(300);
    let order = home.order();
    for memory_bytes in [8192, 65_536, 64 << 20] {
        let feed = home.feed(&small(memory_bytes));
        feed.begin(0);
        let next = AtomicU64::new(0);
        let read = || {
            let mut waits = Stalls::default();
            loop {
                let first = next.fetch_add(16, Ordering::Relaxed);
                if first >= 900 {
                    return waits;
                }
                let positions = first..(first + 16).min(900);
                let mut samples = feed.samples(positions.clone());
                for position in positions {
                    let sample = samples.next().unwrap().unwrap().to_vec();
                    assert_eq!(sample, home.lines[order.sample_at(position) as usize], "position {position}");
                }
                assert!(samples.next().is_none());
                Cause::ALL.iter().for_each(|cause| {
                    waits.times[*cause as usize] += samples.waits().times[*cause as usize];
                });
            }
        };
        let waits = std::thread::scope(|scope| {
            let readers = [scope.spawn(read), scope.spawn(read)];
            readers.map(|reader| reader.join().unwrap().times)
        });
        let counters = feed.counters();
        assert_eq!((counters.samples, counters.waiting_bytes), (900, 0));
        let waited = |cause: Cause| waits[0][cause as usize] + waits[1][cause as usize];
        assert_eq!(Cause::ALL.map(waited), counters.stalls.times);
    }
}

#[test]
fn a_batch_ends_where_the_order_does() {
    let home = home(10);
    let feed = home.feed(&small(1 << 20));
    feed.begin(24);
    let mut samples = feed.samples(24..40);
    let right = samples.by_ref().take_while(|sample| sample.is_ok()).count();
    assert_eq!((right, samples.next().is_none()), (6, true));
    let error = feed.samples(30..31).next().unwrap().err().unwrap();
    assert_eq!(error.kind(), &Kind::Invalid);
}

/// Alters a byte in every large file below a folder, in its middle.
fn damage(folder: &std::path::Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path);
        } else if std::fs::metadata(&path).unwrap().len() > 100_000 {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 4;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn files_are_read_where_they_are() {
    let home = home(200);
    let address = Address::File(home.server.root().join("data/set"));
    let bucket = Bucket::open(&address, &quick(&home.server), &keys).unwrap();
    let reading = Reading {
        index: home.index(&bucket),
        order: home.order(),
        readers: Readers::alone(),
        end: Some(3 * home.lines.len() as u64),
    };
    let feed = Feed::open(reading, &Source::Files, &small(8192), Arc::new(RealClock::new())).unwrap();
    home.check(&feed);
    std::fs::write(home.server.root().join("data/set/0.jsonl"), noise(10)).unwrap();
    feed.begin(0);
    let failed = (0..600).find_map(|position| feed.sample(position).err()).unwrap();
    assert_eq!(failed.kind(), &Kind::Corrupt);
}

#[test]
fn a_changed_object_is_an_error_and_never_mixed_bytes() {
    let home = home(200);
    let feed = home.feed(&small(16_384));
    feed.begin(0);
    home.server.put("data", "set/1.jsonl", &noise(100_000)).unwrap();
    let order = home.order();
    let (mut right, mut changed) = (0, 0);
    for position in 0..600 {
        match feed.sample(position) {
            Ok(sample) => {
                assert_eq!(sample.to_vec(), home.lines[order.sample_at(position) as usize]);
                right += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), &Kind::Corrupt);
                changed += 1;
            }
        }
    }
    assert!(right > 300 && changed > 100, "{right} right, {changed} changed");
}

#[test]
fn some_requests_fail_and_every_sample_is_right() {
    let home = home(200);
    for refused in [0.01, 0.3] {
        let feed = home.feed(&small(32_768));
        home.server.faults().set(|plan| plan.refused = refused);
        home.check(&feed);
        home.server.faults().set(|plan| plan.refused = 0.0);
        assert!(feed.counters().bucket.retries > 0);
    }
}

/// What an evaluation reads, over and over.
#[test]
fn a_selection_is_read_over_and_over() {
    let home = home(100);
    let bucket = home.bucket();
    let order: Arc<dyn Order> = Arc::new(Selection::new(7, 100));
    let reading =
        Reading { index: home.index(&bucket), order: order.clone(), readers: Readers::alone(), end: None };
    let feed =
        Feed::open(reading, &Source::Bucket(bucket), &small(1 << 20), Arc::new(RealClock::new())).unwrap();
    feed.begin(0);
    for position in 0..70 {
        let sample = feed.sample(position).unwrap().to_vec();
        assert_eq!(sample, home.lines[order.sample_at(position) as usize]);
    }
}

#[test]
fn ranks_of_a_node_share_one_feed() {
    let home = home(240);
    let bucket = home.bucket();
    // Batches of 8, of which two data ranks read half each; both are here, the second is two ranks.
    let readers = Readers::new(8, 2, vec![vec![(0, 1)], vec![(0, 2)]], 0);
    let reading = Reading { index: home.index(&bucket), order: home.order(), readers, end: Some(3 * 240) };
    let source = Source::Bucket(bucket);
    let feed = Arc::new(Feed::open(reading, &source, &small(64 << 20), Arc::new(RealClock::new())).unwrap());
    home.server.faults().reset_counts();
    feed.begin(0);
    let keeper = Keeper::start(feed.clone()).unwrap();
    let (order, name) = (home.order(), keeper.name().to_owned());
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let (order, name, lines) = (order.clone(), &name, &home.lines);
            scope.spawn(move || {
                let mut asker = Asker::connect(name, PATIENCE).unwrap();
                let mut bytes = Vec::new();
                for step in 0..90u64 {
                    let half = step * 8 + u64::from(rank > 0) * 4;
                    asker.ask(half..half + 4).unwrap();
                    for position in half..half + 4 {
                        asker.read(position, &mut bytes).unwrap();
                        assert_eq!(bytes, lines[order.sample_at(position) as usize]);
                    }
                }
            });
        }
    });
    assert_eq!(home.server.faults().counts().bytes(), home.bytes);
    assert_eq!(feed.counters().waiting_bytes, 0);
    let mut late = Asker::connect(&name, PATIENCE).unwrap();
    assert_eq!(late.read(3 * 240, &mut Vec::new()).unwrap_err().kind(), &Kind::Invalid);
    drop(keeper);
    assert_eq!(late.read(0, &mut Vec::new()).unwrap_err().kind(), &Kind::Unavailable);
    assert_eq!(Asker::connect(&name, PATIENCE).err().unwrap().kind(), &Kind::Unavailable);
}

#[test]
fn a_rank_that_missed_an_answer_does_not_take_it_for_another() {
    let home = home(30);
    let feed = Arc::new(home.feed(&small(64 << 20)));
    home.server.faults().hold();
    feed.begin(0);
    let keeper = Keeper::start(feed.clone()).unwrap();
    let mut asker = Asker::connect(keeper.name(), Duration::from_millis(20)).unwrap();
    let mut bytes = Vec::new();
    let error = asker.read(0, &mut bytes).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().contains("not answered")),
        (&Kind::Unavailable, true),
        "{error}"
    );
    home.server.faults().release();
    // Its answer comes now, late, and whoever listened again would hear it as the answer to this.
    feed.sample(1).unwrap();
    for position in [2, 3] {
        let error = asker.read(position, &mut bytes).unwrap_err();
        assert!(error.to_string().contains("before"), "{position}: {error}");
    }
    assert_eq!(asker.ask(std::iter::once(4)).unwrap_err().kind(), &Kind::Unavailable);
}
