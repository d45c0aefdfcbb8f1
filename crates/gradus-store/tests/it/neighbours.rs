//! What comes along with a sample, and what is held for its turn, by scripted orders out of a real S3 server.

use super::feed::{Home, PATIENCE, home_of, small};
use super::index::gzip;
use gradus_host::{Clock, RealClock};
use gradus_store::{Feed, FeedCounters, Order, Readers, Reading, Source};
use gradus_testbed::S3Server;
use std::sync::Arc;
use std::thread::yield_now;

/// Lines of many lengths, of which so many lie in a member of gzip's each.
fn packed_home(samples: usize, together: usize) -> Home {
    let server = S3Server::with_bucket("data").unwrap();
    // Digits that gzip does not make much shorter: splitmix64's.
    let digit = |at: u64| {
        let mixed = (at ^ at >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) >> 60
    };
    let line = |number: usize| {
        let first = (number as u64) << 20;
        let digits = (first..first + 400 + number as u64 * 7919 % 2000).map(|at| format!("{:x}", digit(at)));
        format!("[\"{number:06}{}\"]", digits.collect::<String>()).into_bytes()
    };
    let lines: Vec<Vec<u8>> = (0..samples).map(line).collect();
    let mut bytes = 0;
    for (number, part) in lines.chunks(samples.div_ceil(3)).enumerate() {
        let member = |lines: &[Vec<u8>]| gzip(&[&lines.join(&b'\n')[..], b"\n"].concat());
        let packed: Vec<u8> = part.chunks(together).flat_map(member).collect();
        bytes += packed.len() as u64;
        server.put("data", &format!("set/{number}.jsonl.gz"), &packed).unwrap();
    }
    Home { server, lines, bytes }
}

/// What a feed counted, once no page is on its way any more: whoever fetched a block lets go of it after its reader has it.
fn settled(feed: &Feed) -> FeedCounters {
    let clock = RealClock::new();
    let end = clock.now() + PATIENCE;
    loop {
        let counters = feed.counters();
        if counters.cache.transit_pages == 0 || clock.now() > end {
            return counters;
        }
        yield_now();
    }
}

impl Home {
    /// A feed of the samples at a script's positions.
    fn scripted(&self, script: &[u64], memory_bytes: u64) -> Feed {
        let bucket = self.bucket();
        let (index, readers) = (self.index(&bucket), Readers::alone());
        let (order, end) = (Arc::new(Scripted(script.to_vec())), Some(script.len() as u64));
        let reading = Reading { index, order, readers, end };
        let source = Source::Bucket(bucket);
        Feed::open(reading, &source, &small(memory_bytes), Arc::new(RealClock::new())).unwrap()
    }

    /// Reads what a script says, compares it, and returns how many requests it took and how many blocks came.
    fn read_script(&self, script: &[u64], memory_bytes: u64) -> (u64, u64) {
        let feed = self.scripted(script, memory_bytes);
        self.server.faults().reset_counts();
        feed.begin(0);
        for (position, sample) in (0..).zip(script) {
            assert_eq!(feed.sample(position).unwrap().to_vec(), self.lines[*sample as usize], "{position}");
        }
        (self.server.faults().counts().requests, feed.counters().cache.fetched_blocks)
    }
}

#[test]
fn samples_beside_one_come_with_it_if_there_is_memory_until_they_are_used() {
    // Each line is a block.
    let home = home_of(300, &|_| 4085);
    let roomy = 64 * 4096;
    assert_eq!(home.read_script(&[10, 50, 11, 51, 9], roomy), (2, 5), "9 to 11, 50 and 51");
    assert_eq!(home.read_script(&[10, 50, 12, 8, 52], roomy), (5, 5), "none lies beside another");
    let far: Vec<u64> = [10].into_iter().chain((0..20).map(|number| 20 + 2 * number)).chain([11]).collect();
    assert_eq!(home.read_script(&far, roomy), (21, 22));
    assert_eq!(home.read_script(&far, 8 * 4096), (22, 22), "others need the memory before it is used");
    let all: Vec<u64> = (0..64).collect();
    assert_eq!(home.read_script(&all, 256 * 4096), (1, 64), "256 KiB");
    let more: Vec<u64> = (0..100).collect();
    assert_eq!(home.read_script(&more, 256 * 4096), (2, 100), "all of an object");
}

#[test]
fn what_is_too_large_for_the_cache_does_not_come_along() {
    // Of 64 pages a sample may take half; the second takes 40.
    let home = home_of(300, &|number| if number == 1 { 39 * 4096 } else { 4085 });
    let feed = home.scripted(&[0, 50, 1], 64 * 4096);
    home.server.faults().reset_counts();
    feed.begin(0);
    for (position, sample) in [(0, 0), (1, 50), (2, 1)] {
        assert_eq!(feed.sample(position).unwrap().to_vec(), home.lines[sample], "{position}");
    }
    let bytes = home.server.faults().counts().bytes();
    assert!(bytes < 44 * 4096, "{bytes}: it was fetched twice");
}

#[test]
fn what_comes_along_is_fetched_no_oftener_than_it_would_be() {
    // Each line is a block, so that no two positions of an epoch need the same: what is fetched is what was missed, but for a
    // block that comes round again while its page is still held by whoever fetched it.
    let home = home_of(300, &|_| 4085);
    for pages in [24, 60, 150, 299] {
        let feed = home.feed(&small(pages * 4096));
        home.check(&feed);
        let counts = home.server.faults().counts();
        let counters = settled(&feed);
        let (cache, brought) = (counters.cache, counters.brought);
        assert!(cache.fetched_blocks <= cache.misses, "{cache:?}");
        assert_eq!(brought.bucket, cache.fetched_blocks * 4095, "{cache:?}");
        assert!(counts.requests < cache.misses, "{} requests, {cache:?}", counts.requests);
        assert_eq!(cache.transit_pages, 0, "{cache:?}");
    }
}

#[test]
fn what_readers_take_out_of_turn_is_not_fetched_again_nor_held_for_long() {
    let home = home_of(300, &|_| 4085);
    let order = home.order();
    for (pages, batch) in [(40, 60), (100, 20), (100, 150), (299, 300)] {
        let feed = home.feed_until(Some(300), &small(pages * 4096));
        feed.begin(0);
        let read = |position: u64| {
            let sample = feed.sample(position).unwrap().to_vec();
            assert_eq!(sample, home.lines[order.sample_at(position) as usize], "position {position}");
        };
        // The later half of each batch before the other.
        for first in (0..300).step_by(batch as usize) {
            (first + batch / 2..(first + batch).min(300)).for_each(read);
            (first..(first + batch / 2).min(300)).for_each(read);
        }
        let counters = settled(&feed);
        assert_eq!(counters.cache.transit_pages, 0, "{pages} pages, batches of {batch}: {counters:?}");
        // What is read by itself is so without its newline.
        let bytes = home.server.faults().counts().bytes();
        assert!(
            (home.bytes - 300..=home.bytes).contains(&bytes),
            "{pages} pages, batches of {batch}: {bytes}"
        );
    }
}

/// The samples of its positions, one by one.
#[derive(Debug)]
struct Scripted(Vec<u64>);

impl Order for Scripted {
    fn samples(&self) -> u64 {
        300
    }

    fn sample_at(&self, position: u64) -> u64 {
        self.0[position as usize]
    }

    fn next_position(&self, sample: u64, from: u64) -> Option<u64> {
        let positions = (from..self.0.len() as u64).map(|position| (position, self.sample_at(position)));
        positions.into_iter().find_map(|(position, at)| (at == sample).then_some(position))
    }
}

#[test]
fn what_is_used_again_while_it_is_held_does_not_stay_for_that() {
    // Four lines a block, of which the first is read, and read again at once, while it is held. Of 24 pages half are the
    // window's: blocks that come again have more others between than it holds, and only the cache can have kept them.
    let home = home_of(300, &|_| 1013);
    let round = |round: u64| (30..36).chain(36 + 8 * round..44 + 8 * round);
    let blocks = (0..30).chain((0..3).flat_map(round));
    let script: Vec<u64> = blocks.flat_map(|block| [4 * block; 2]).collect();
    let feed = home.scripted(&script, 24 * 4096);
    feed.begin(0);
    for (position, sample) in (0..).zip(&script) {
        assert_eq!(feed.sample(position).unwrap().to_vec(), home.lines[*sample as usize], "{position}");
    }
    let cache = feed.counters().cache;
    assert_eq!(cache.fetched_blocks, 60, "{cache:?}");
}

#[test]
fn what_is_packed_together_comes_along_and_is_right() {
    let home = packed_home(300, 4);
    // What lies near is used soon, and often while what it is packed with is still held.
    let position = |step: u64| (step / 2 * 37 % 60 * 5 + step % 2 * (1 + step % 3) + step / 7 % 4) % 300;
    let script: Vec<u64> = (0..900).map(position).collect();
    let mut most = 0;
    for pages in [12, 40, 100, 400] {
        let feed = home.scripted(&script, pages * 4096);
        home.server.faults().reset_counts();
        feed.begin(0);
        for (position, sample) in (0..).zip(&script) {
            let found = feed.sample(position).unwrap().to_vec();
            assert_eq!(found, home.lines[*sample as usize], "{pages} pages, {position}");
        }
        let (counters, requests) = (settled(&feed), home.server.faults().counts().requests);
        let cache = counters.cache;
        // A block of two units is asked for by the second while it is on its way for the first.
        assert_eq!(cache.fetched_blocks + cache.shared, cache.misses, "{pages} pages: {cache:?}");
        assert_eq!(cache.transit_pages, 0, "{pages} pages: {cache:?}");
        most = most.max(cache.fetched_blocks.saturating_sub(requests));
    }
    assert!(most > 50, "at most {most} came along");
}
