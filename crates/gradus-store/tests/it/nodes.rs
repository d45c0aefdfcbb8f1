//! Feeds of several nodes share blocks over loopback: each byte leaves the bucket as seldom as their caches allow, and
//! every sample is right, whoever is slow or gone.

use super::bucket::{keys as environment, quick};
use gradus_error::{Kind, Result};
use gradus_fabric::service::{Keys, Listener};
use gradus_fabric::{NetworkSettings, Secret};
use gradus_host::RealClock;
use gradus_store::bucket::{Address, Bucket};
use gradus_store::order::Shuffled;
use gradus_store::peers::{Answer, Ask, Asked, Homes, Member, Peers, PeersSettings, Place, Serve, Wanted};
use gradus_store::{
    Block, BlockKey, BlockMap, CacheSettings, Feed, Index, IndexSettings, Joining, Order, OrderSettings,
    Readers, Reading, Shuffle, Source,
};
use gradus_testbed::S3Server;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use tempfile::TempDir;

const BLOCK: u64 = 4096;
const SAMPLES: u64 = 320;
const BATCH: u64 = 8;
/// Batches of three epochs.
const BATCHES: u64 = 3 * SAMPLES / BATCH;

/// JSON lines of many lengths in three objects of a bucket.
struct Home {
    server: S3Server,
    lines: Vec<Vec<u8>>,
    bytes: u64,
    index: Arc<Index>,
    secret: Secret,
}

fn home() -> Home {
    home_of(&|number| 20 + number * 7919 % 3000)
}

fn home_of(length: &dyn Fn(usize) -> usize) -> Home {
    let server = S3Server::with_bucket("data").unwrap();
    let line = |number| format!("[\"{number:06}{}\"]", "x".repeat(length(number))).into_bytes();
    let lines: Vec<Vec<u8>> = (0..SAMPLES as usize).map(line).collect();
    let mut bytes = 0;
    for (number, part) in lines.chunks(lines.len().div_ceil(3)).enumerate() {
        let text = part.join(&b'\n');
        bytes += text.len() as u64;
        server.put("data", &format!("set/{number}.jsonl"), &text).unwrap();
    }
    let bucket = bucket_of(&server);
    let address = bucket.address().to_string();
    let index = Arc::new(Index::build(&bucket, &address, &IndexSettings::default(), &|_| ()).unwrap());
    Home { server, lines, bytes, index, secret: Secret::make() }
}

fn bucket_of(server: &S3Server) -> Bucket {
    Bucket::open(&Address::parse("s3://data/set").unwrap(), &quick(server), &environment).unwrap()
}

fn whole() -> Arc<dyn Order> {
    Arc::new(Shuffled::new(5, SAMPLES))
}

/// Far beyond what any answer takes here.
fn patient() -> PeersSettings {
    let generous = Duration::from_secs(60);
    PeersSettings { least_patience: generous, most_patience: generous, ..PeersSettings::default() }
}

/// Gives up soon on who does not answer.
fn hasty() -> PeersSettings {
    PeersSettings {
        least_patience: Duration::from_millis(50),
        most_patience: Duration::from_millis(200),
        first_pause: Duration::from_secs(30),
        ..PeersSettings::default()
    }
}

fn memory(blocks: u64) -> CacheSettings {
    CacheSettings { block_bytes: BLOCK, memory_bytes: blocks * BLOCK, ..CacheSettings::default() }
}

fn disk(folder: &TempDir, node: usize, blocks: u64) -> CacheSettings {
    let path = folder.path().join(node.to_string());
    CacheSettings { folder: path.to_str().unwrap().to_owned(), disk_bytes: blocks * BLOCK, ..memory(40) }
}

fn name(node: usize) -> String {
    format!("node{node}")
}

/// Node `own` of `nodes`, each of which reads a part of every batch.
fn readers(nodes: usize, own: usize) -> Readers {
    Readers::new(BATCH, BATCH / nodes as u64, (0..nodes).map(|node| vec![(node, 1)]).collect(), own)
}

impl Home {
    fn joining(&self, node: usize, settings: PeersSettings) -> Joining {
        let keys = Keys::new(&self.secret, &NetworkSettings::default(), 0).unwrap();
        let listener = Listener::open(&keys, &NetworkSettings::default(), "", "127.0.0.1:1").unwrap();
        Joining { node: name(node), rack: String::new(), keys, listener, settings }
    }

    fn feed(
        &self,
        readers: Readers,
        order: &Arc<dyn Order>,
        cache: &CacheSettings,
        settings: PeersSettings,
    ) -> Feed {
        self.feed_as(self.joining(readers.own(), settings), readers, order, cache)
    }

    fn feed_as(
        &self,
        joining: Joining,
        readers: Readers,
        order: &Arc<dyn Order>,
        cache: &CacheSettings,
    ) -> Feed {
        let reading =
            Reading { index: self.index.clone(), order: order.clone(), readers, end: Some(BATCHES * BATCH) };
        let source = Source::Bucket(bucket_of(&self.server));
        Feed::open_among(reading, &source, cache, joining, Arc::new(RealClock::new())).unwrap()
    }

    /// Feeds of as many nodes as there are caches, that have met and begun.
    fn feeds(&self, order: &Arc<dyn Order>, caches: &[CacheSettings], settings: &PeersSettings) -> Vec<Feed> {
        let node = |(own, cache)| self.feed(readers(caches.len(), own), order, cache, settings.clone());
        let feeds: Vec<Feed> = caches.iter().enumerate().map(node).collect();
        self.meet(&feeds.iter().collect::<Vec<_>>(), &[]);
        feeds
    }

    fn meet(&self, feeds: &[&Feed], others: &[Place]) {
        let places = feeds.iter().map(|feed| feed.place().unwrap().clone()).chain(others.iter().cloned());
        let places: Vec<Place> = places.collect();
        feeds.iter().for_each(|feed| feed.meet(places.clone()).unwrap());
        self.server.faults().reset_counts();
        feeds.iter().for_each(|feed| feed.begin(0));
    }

    /// The nodes that are there read batches in step, and compare each sample.
    fn read(&self, feeds: &[Feed], nodes: usize, order: &Arc<dyn Order>, batches: Range<u64>) {
        self.read_as(feeds, &|own| readers(nodes, own), order, batches);
    }

    fn read_as(
        &self,
        feeds: &[Feed],
        readers: &dyn Fn(usize) -> Readers,
        order: &Arc<dyn Order>,
        batches: Range<u64>,
    ) {
        let barrier = Barrier::new(feeds.len());
        std::thread::scope(|scope| {
            for (own, feed) in feeds.iter().enumerate() {
                let (barrier, batches, readers) = (&barrier, batches.clone(), readers(own));
                scope.spawn(move || {
                    for position in batches.start * BATCH..batches.end * BATCH {
                        if position % BATCH == 0 {
                            barrier.wait();
                        }
                        if readers.here(position) > 0 {
                            let sample = feed.sample(position).unwrap().to_vec();
                            let expected = &self.lines[order.sample_at(position) as usize];
                            assert!(sample == *expected, "node {own}, position {position}");
                        }
                    }
                });
            }
        });
    }

    fn fetched(&self) -> u64 {
        self.server.faults().counts().bytes()
    }

    fn map(&self) -> BlockMap {
        BlockMap::new(self.index.objects().to_vec(), BLOCK).unwrap()
    }
}

fn fallbacks(feeds: &[Feed]) -> u64 {
    feeds.iter().map(|feed| feed.counters().fallbacks.blocks).sum()
}

#[test]
fn where_all_caches_hold_the_data_every_byte_leaves_the_bucket_once() {
    let home = home();
    let folder = tempfile::tempdir().unwrap();
    let blocks = home.map().blocks();
    let two: Vec<_> = (0..2).map(|node| disk(&folder, node, blocks.div_ceil(2))).collect();
    let four = vec![memory(2 * blocks.div_ceil(4) + 2); 4];
    for caches in [two, four] {
        let feeds = home.feeds(&whole(), &caches, &patient());
        home.read(&feeds, caches.len(), &whole(), 0..BATCHES);
        let counters: Vec<_> = feeds.iter().map(Feed::counters).collect();
        assert_eq!((home.fetched(), fallbacks(&feeds)), (home.bytes, 0), "{counters:#?}");
        let [sent, came] = [0, 1].map(|which| {
            let all = counters.iter().map(|counters| &counters.peers.in_rack);
            all.map(|peers| [peers.served_bytes, peers.received_bytes][which]).sum::<u64>()
        });
        assert_eq!(sent, came);
        assert!(came > 0 && counters.iter().all(|counters| counters.waiting_bytes == 0));
    }
}

/// Belady's misses of one home, by looking ahead at every one.
fn fewest_misses(trace: &[Block], capacity: usize) -> u64 {
    let mut next = vec![usize::MAX; trace.len()];
    let mut last = BTreeMap::new();
    for (now, block) in trace.iter().enumerate().rev() {
        next[now] = last.insert(*block, now).unwrap_or(usize::MAX);
    }
    let mut residents: BTreeMap<Block, usize> = BTreeMap::new();
    let mut misses = 0;
    for (now, block) in trace.iter().enumerate() {
        if residents.insert(*block, next[now]).is_none() {
            misses += 1;
        }
        if residents.len() > capacity {
            let farthest = *residents.iter().max_by_key(|(_, next)| **next).unwrap().0;
            residents.remove(&farthest);
        }
    }
    misses
}

/// The accesses that each home sees.
fn traces(home: &Home, order: &Arc<dyn Order>, homes: &Homes) -> Vec<Vec<Block>> {
    let map = home.map();
    let mut traces = vec![Vec::new(); homes.members().len()];
    for position in 0..BATCHES * BATCH {
        let place = home.index.sample(order.sample_at(position));
        let blocks = map.covering(place.object as usize, place.unit);
        blocks.for_each(|block| traces[homes.home(block)].push(block));
    }
    traces
}

/// Three epochs out of caches that hold less than half of it all: each home's misses are the fewest that there can be.
/// Runs of samples in windows that fit the caches keep an epoch's misses to about one of each block.
#[test]
fn where_caches_hold_less_each_home_misses_as_seldom_as_can_be() {
    let home = home();
    let settings = OrderSettings { shuffle: Shuffle::Blocks, block_samples: 16, window_blocks: 3 };
    let order: Arc<dyn Order> = settings.order(7, SAMPLES).unwrap().into();
    for nodes in [2, 4] {
        let caches = vec![memory(48 / nodes as u64 + 20); nodes];
        let feeds = home.feeds(&order, &caches, &patient());
        home.read(&feeds, nodes, &order, 0..BATCHES);
        let members: Vec<Member> = feeds.iter().map(|feed| feed.place().unwrap().member.clone()).collect();
        let homes = Homes::new(&members, home.map().blocks()).unwrap();
        let mut misses = 0;
        for (trace, feed) in traces(&home, &order, &homes).iter().zip(&feeds) {
            let member = &feed.place().unwrap().member;
            let fewest = fewest_misses(trace, member.capacity_blocks as usize);
            let cache = feed.counters().cache;
            assert_eq!(cache.misses, fewest, "{} of {nodes}: {cache:?}", member.node);
            misses += fewest;
        }
        assert_eq!(fallbacks(&feeds), 0);
        let fetched = home.fetched();
        assert!(
            fetched <= misses * BLOCK && fetched <= 3 * home.bytes * 102 / 100,
            "{fetched} of {}",
            home.bytes
        );
        assert!(fetched > home.bytes);
    }
}

#[test]
fn where_hardly_anything_is_kept_every_sample_is_right() {
    let home = home();
    for blocks in [2, 5, 12] {
        let settings = PeersSettings { first_pause: Duration::from_millis(1), ..hasty() };
        let feeds = home.feeds(&whole(), &vec![memory(blocks); 2], &settings);
        home.read(&feeds, 2, &whole(), 0..BATCHES);
        assert!(feeds.iter().all(|feed| feed.counters().waiting_bytes == 0));
    }
}

/// What a stranger asks for, one after the other: how it ended.
struct Page {
    bytes: Vec<u8>,
    tell: SyncSender<(Vec<u8>, Result<()>)>,
}

impl Wanted for Page {
    fn page(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn done(self: Box<Self>, outcome: Result<()>) {
        let _ = self.tell.send((self.bytes, outcome));
    }
}

/// Has nothing itself.
struct Nothing;

impl Serve for Nothing {
    fn serve(&self, _: Asked, answer: Answer) {
        answer.not_here();
    }
}

#[test]
fn whatever_is_asked_is_answered_and_walks_nowhere_far() {
    let home = home();
    let map = home.map();
    let feeds = home.feeds(&whole(), &vec![memory(100); 2], &patient());
    let joining = home.joining(7, patient());
    let member = Member { node: name(7), rack: String::new(), capacity_blocks: 1 };
    let Joining { keys, listener, settings, .. } = joining;
    let stranger = Peers::start(member, &map.name(), keys, listener, Arc::new(Nothing), &settings).unwrap();
    stranger.update(feeds.iter().map(|feed| feed.place().unwrap().clone()).collect());
    let ask = |node: usize, key: BlockKey, position: u64, length: usize| {
        let (tell, told) = sync_channel(1);
        let wanted = Box::new(Page { bytes: vec![0; length], tell });
        stranger.ask(Ask { node: name(node), key, position, wanted });
        told.recv().unwrap()
    };
    let members: Vec<Member> = feeds.iter().map(|feed| feed.place().unwrap().member.clone()).collect();
    let homes = Homes::new(&members, map.blocks()).unwrap();
    let length = |block| (map.range_of(block).end - map.range_of(block).start) as usize;
    let unknown = BlockKey { object: [9; 16], number: 3 };
    for node in 0..2 {
        let block = (0..map.blocks()).map(Block).find(|block| homes.home(*block) == node).unwrap();
        let key = map.key_of(block);
        for (key, position, length) in [
            (unknown, 0, 4096),
            (BlockKey { number: u64::MAX, ..key }, 0, 4096),
            (key, u64::MAX, length(block)),
            (key, BATCHES * BATCH - 1, length(block)),
            (key, 0, length(block) - 1),
        ] {
            assert_eq!(ask(node, key, position, length).1.unwrap_err().kind(), &Kind::Unavailable);
        }
        let (bytes, outcome) = ask(node, key, 0, length(block));
        outcome.unwrap();
        let object = &map.objects()[map.object_of(block)];
        let mut expected = vec![0; bytes.len()];
        bucket_of(&home.server).read_at(object, map.range_of(block).start, &mut expected).unwrap();
        assert!(bytes == expected);
    }
    home.read(&feeds, 2, &whole(), 0..BATCHES);
}

/// Many samples lie in one block.
#[test]
fn a_block_of_many_small_samples_leaves_the_bucket_once() {
    let home = home_of(&|number| number * 31 % 200);
    let feeds = home.feeds(&whole(), &vec![memory(8); 4], &patient());
    assert!(home.map().blocks() == 9, "{}", home.map().blocks());
    home.read(&feeds, 4, &whole(), 0..BATCHES);
    assert_eq!((home.fetched(), fallbacks(&feeds)), (home.bytes, 0));
    // What a window shares is asked for once.
    let asked: u64 = feeds.iter().map(|feed| feed.counters().peers.in_rack.asked_blocks).sum();
    assert!(asked < BATCHES * BATCH / 4, "{asked} asks");
}

#[test]
fn a_node_that_ends_in_mid_run_costs_no_more_than_its_part() {
    let home = home();
    let blocks = home.map().blocks();
    let mut feeds = home.feeds(&whole(), &vec![memory(2 * blocks.div_ceil(4) + 2); 4], &hasty());
    home.read(&feeds, 4, &whole(), 0..BATCHES / 3);
    drop(feeds.pop());
    home.server.faults().reset_counts();
    home.read(&feeds, 4, &whole(), BATCHES / 3..BATCHES);
    // Its blocks come from the bucket for each sample that needs one: two epochs, three readers.
    let accesses = 2 * (SAMPLES + 2 * blocks) * 3 / 4;
    assert!(fallbacks(&feeds) > 0 && fallbacks(&feeds) < accesses / 2, "{} of {accesses}", fallbacks(&feeds));
    assert!(home.fetched() <= (accesses / 2) * BLOCK);
}

/// Positions are read on two nodes of a rack each, as by a model that lies on both.
#[test]
fn a_block_crosses_from_rack_to_rack_once_for_those_who_read_together() {
    let home = home();
    let order = whole();
    let on = vec![vec![(0, 1), (1, 1)], vec![(2, 1), (3, 1)]];
    let rack = |node: usize| ["near", "far"][node / 2];
    let across = [false, true].map(|named| {
        let feed = |own| {
            let mut joining = home.joining(own, patient());
            if named {
                rack(own).clone_into(&mut joining.rack);
            }
            let readers = Readers::new(BATCH, 2, on.clone(), own);
            home.feed_as(joining, readers, &order, &memory(100))
        };
        let feeds: Vec<Feed> = (0..4).map(feed).collect();
        home.meet(&feeds.iter().collect::<Vec<_>>(), &[]);
        home.read_as(&feeds, &|own| Readers::new(BATCH, 2, on.clone(), own), &order, 0..BATCHES);
        assert_eq!((home.fetched(), fallbacks(&feeds)), (home.bytes, 0));
        let came = |(own, feed): (usize, &Feed)| {
            let by_node = feed.counters().peers.by_node;
            let far = (0..4).filter(|node| rack(*node) != rack(own));
            far.map(|node| by_node.get(&name(node)).map_or(0, |peer| peer.received_bytes)).sum::<u64>()
        };
        feeds.iter().enumerate().map(came).sum::<u64>()
    });
    assert!(across[1] > 0 && across[1] < across[0] * 7 / 10, "{across:?}");
}

/// A node that lets others connect and then answers nothing.
fn silent(home: &Home, node: usize) -> Place {
    let mut joining = home.joining(node, patient());
    let member = Member { node: name(node), rack: String::new(), capacity_blocks: 1 << 20 };
    let place = Place { member, address: joining.listener.address() };
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while poll(&mut [PollFd::new(&joining.listener, PollFlags::IN)], None).is_ok() {
            for mut arrival in joining.listener.arrivals() {
                let welcome = BTreeMap::from([("come", BTreeMap::from([("node", name(node))]))]);
                arrival.connection.say(&welcome).unwrap();
                kept.push(arrival);
            }
        }
    });
    place
}

#[test]
fn a_node_that_never_answers_delays_nobody_for_long() {
    let home = home();
    let cache = memory(40);
    let feeds: Vec<Feed> = (0..2).map(|own| home.feed(readers(4, own), &whole(), &cache, hasty())).collect();
    // Nearly all blocks are its.
    home.meet(&feeds.iter().collect::<Vec<_>>(), &[silent(&home, 3)]);
    home.read(&feeds, 4, &whole(), 0..BATCHES / 3);
    let late: u64 = feeds.iter().map(|feed| feed.counters().peers.in_rack.late).sum();
    assert!(late > 0 && fallbacks(&feeds) > late, "{late} late, {} in all", fallbacks(&feeds));
}

#[test]
fn after_a_restart_with_more_nodes_what_is_on_disk_stays_where_it_is() {
    let home = home();
    let folder = tempfile::tempdir().unwrap();
    let blocks = home.map().blocks();
    let caches: Vec<_> = (0..3).map(|node| disk(&folder, node, blocks.div_ceil(2))).collect();
    let order = whole();
    let feeds: Vec<Feed> =
        (0..2).map(|own| home.feed(readers(2, own), &order, &caches[own], patient())).collect();
    home.meet(&feeds.iter().collect::<Vec<_>>(), &[]);
    home.read(&feeds, 2, &order, 0..BATCHES);
    drop(feeds);
    let feeds: Vec<Feed> =
        (0..3).map(|own| home.feed(readers(3, own), &order, &caches[own], patient())).collect();
    let nodes: Vec<_> = feeds.iter().map(|feed| (feed.place().unwrap().clone(), feed.holdings())).collect();
    feeds.iter().for_each(|feed| feed.meet_with_holdings(nodes.clone()).unwrap());
    home.server.faults().reset_counts();
    feeds.iter().for_each(|feed| feed.begin(0));
    home.read(&feeds, 3, &order, 0..BATCHES / 3);
    assert_eq!(fallbacks(&feeds), 0);
    // A third of the blocks moves to who has nothing yet.
    assert!(home.fetched() <= home.bytes * 36 / 100, "{} of {}", home.fetched(), home.bytes);
}

#[test]
fn files_are_not_shared_and_who_meets_is_among_those_who_meet() {
    let home = home();
    let cache = memory(40);
    let feed = home.feed(readers(2, 0), &whole(), &cache, patient());
    assert_eq!(feed.meet(Vec::new()).unwrap_err().kind(), &Kind::Invalid);
    let place = feed.place().unwrap().clone();
    assert_eq!(feed.meet(vec![place.clone(), place]).unwrap_err().kind(), &Kind::Invalid);
    let reading = || Reading { index: home.index.clone(), order: whole(), readers: readers(2, 1), end: None };
    let clock = || Arc::new(RealClock::new());
    let joining = home.joining(1, patient());
    let refused = Feed::open_among(reading(), &Source::Files, &cache, joining, clock()).err().unwrap();
    assert_eq!(refused.kind(), &Kind::Invalid);
    let alone = Feed::open(reading(), &Source::Bucket(bucket_of(&home.server)), &cache, clock()).unwrap();
    assert!(alone.place().is_none());
    assert_eq!(alone.meet(Vec::new()).unwrap_err().kind(), &Kind::Invalid);
}
