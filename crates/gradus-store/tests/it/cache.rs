//! The cache of a node as its feed uses it: ahead of its readers, over restarts, and on disks that fail.

use gradus_error::Kind;
use gradus_store::cache::{Access, CacheCounters, CacheSettings, Fill, Held, Loaded, PolicyKind, Tier0};
use gradus_store::order::{Order, Shuffled};
use gradus_store::{Block, BlockMap, ObjectInfo};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 120;

/// A sample has a block and a half.
const SAMPLE: u64 = BLOCK * 3 / 2;
const SAMPLES: u64 = BLOCKS * BLOCK / SAMPLE;

/// The variable that makes a test play another process, with a folder.
const ROLE: &str = "GRADUS_TEST_CACHE";

fn map_of(etag: &str) -> Arc<BlockMap> {
    let object =
        ObjectInfo { address: "s3://b/data".to_owned(), bytes: BLOCKS * BLOCK, etag: etag.to_owned() };
    Arc::new(BlockMap::new(vec![object], BLOCK).unwrap())
}

fn settings(folder: &Path, disk_blocks: u64) -> CacheSettings {
    CacheSettings {
        folder: folder.display().to_string(),
        disk_bytes: disk_blocks * BLOCK,
        memory_bytes: 64 * BLOCK,
        block_bytes: BLOCK,
        policy: PolicyKind::Clairvoyant,
        share: true,
    }
}

/// The accesses of two epochs, each with the position of the next one.
struct Trace {
    accesses: Vec<(u64, Block, Option<u64>)>,
    /// The positions at which each block is used.
    uses: BTreeMap<Block, Vec<u64>>,
}

impl Trace {
    fn new() -> Self {
        let order = Shuffled::new(5, SAMPLES);
        let map = map_of("1");
        let blocks = |position: u64| {
            let start = order.sample_at(position) * SAMPLE;
            map.covering(0, start..start + SAMPLE).map(move |block| (position, block))
        };
        let plain: Vec<(u64, Block)> = (0..2 * SAMPLES).flat_map(blocks).collect();
        let mut uses: BTreeMap<Block, Vec<u64>> = BTreeMap::new();
        plain.iter().for_each(|(position, block)| uses.entry(*block).or_default().push(*position));
        let next = |position: u64, block: Block| {
            uses[&block].iter().copied().find(|candidate| *candidate > position)
        };
        let accesses =
            plain.iter().map(|(position, block)| (*position, *block, next(*position, *block))).collect();
        Self { accesses, uses }
    }

    /// Where a block is used first at or after `position`.
    fn first_use(&self, position: u64, block: Block) -> Option<u64> {
        self.uses[&block].iter().copied().find(|candidate| *candidate >= position)
    }

    /// Belady's misses, by looking ahead at every one, from `residents` on.
    fn fewest_misses(&self, capacity: usize, mut residents: Vec<Block>) -> u64 {
        let mut misses = 0;
        for (now, (_, block, _)) in self.accesses.iter().enumerate() {
            if residents.contains(block) {
                continue;
            }
            misses += 1;
            residents.push(*block);
            if residents.len() > capacity {
                let distance = |block: &Block| {
                    let later = self.accesses[now + 1..].iter().position(|(_, later, _)| later == block);
                    later.unwrap_or(usize::MAX)
                };
                let farthest = (0..residents.len()).max_by_key(|place| distance(&residents[*place])).unwrap();
                residents.remove(farthest);
            }
        }
        misses
    }
}

fn content(block: Block) -> Vec<u8> {
    (0..BLOCK).map(|place| (place / 5 + block.0 * 17) as u8).collect()
}

fn fill(mut fill: Fill) -> Held {
    let held = fill.held();
    let bytes = content(fill.block());
    fill.space().copy_from_slice(&bytes);
    fill.complete();
    held
}

fn get(access: Access) -> Held {
    let held = match access {
        Access::Held(held) => held,
        Access::Missing(missing) => fill(missing),
        Access::OnDisk(load) => match load.load() {
            Loaded::Ready(held) => held,
            Loaded::Damaged(missing) => fill(missing),
        },
        Access::Full => panic!("the window has its pages"),
    };
    held.wait().unwrap();
    assert_eq!(held.bytes(), content(held.block()));
    held
}

/// Opens a cache with a window of ten blocks, to be used from `position` on.
fn open(settings: &CacheSettings, trace: &Trace, position: u64) -> Tier0 {
    let cache = Tier0::open(map_of("1"), settings, 10).unwrap();
    cache.begin(&mut |block| trace.first_use(position, block));
    cache
}

/// Walks accesses, `depth` of them ahead of the reader.
fn walk(cache: &Tier0, trace: &Trace, accesses: std::ops::Range<usize>, depth: usize) -> CacheCounters {
    let mut window = VecDeque::new();
    for (_, block, next_use) in &trace.accesses[accesses] {
        window.push_back(get(cache.access(*block, || *next_use)));
        if window.len() > depth {
            window.pop_front();
        }
        // However slow this machine's disk is: nothing is left out because it is behind.
        cache.flush();
    }
    cache.counters()
}

/// Walks all blocks once, without a thought of later.
fn sweep(cache: &Tier0) -> CacheCounters {
    (0..BLOCKS).for_each(|block| {
        drop(get(cache.access(Block(block), || Some(1000 + block))));
        cache.flush();
    });
    cache.counters()
}

fn file(folder: &Path, name: &str) -> File {
    File::options().read(true).write(true).open(folder.join(name)).unwrap()
}

#[test]
fn misses_are_the_fewest_possible_however_far_ahead_one_walks() {
    let trace = Trace::new();
    let all = trace.accesses.len();
    for (policy, memory_blocks) in
        [(PolicyKind::Clairvoyant, 30), (PolicyKind::Clairvoyant, 90), (PolicyKind::Lru, 30)]
    {
        let settings = CacheSettings {
            policy,
            folder: String::new(),
            memory_bytes: (memory_blocks + 10) * BLOCK,
            ..settings(Path::new(""), 0)
        };
        let counters = [0, 3, 9].map(|depth| walk(&open(&settings, &trace, 0), &trace, 0..all, depth));
        let fewest = trace.fewest_misses(memory_blocks as usize, Vec::new());
        for counted in counters {
            println!(
                "{policy:?}, {memory_blocks} blocks: {} misses, {fewest} at least, {counted:?}",
                counted.misses
            );
            assert_eq!(counted.misses, counters[0].misses);
            assert_eq!(counted.misses == fewest, policy == PolicyKind::Clairvoyant);
            assert_eq!(counted.fetched_blocks, counted.misses - counted.shared);
        }
    }
}

#[test]
fn a_restart_costs_nothing_but_what_was_in_memory() {
    let trace = Trace::new();
    let all = trace.accesses.len();
    let folder = tempfile::tempdir().unwrap();
    // Memory for the window only, so that the disk decides alone.
    let settings = CacheSettings { memory_bytes: 11 * BLOCK, ..settings(folder.path(), 50) };
    let mut misses = 0;
    let stops = [0, 100, 101, 170, all];
    for (from, to) in stops.into_iter().zip(stops.into_iter().skip(1)) {
        let cache = open(&settings, &trace, trace.accesses[from].0);
        let counters = walk(&cache, &trace, from..to, 5);
        assert_eq!((counters.skipped_writes, counters.damaged_blocks), (0, 0));
        misses += counters.misses;
    }
    assert_eq!(misses, trace.fewest_misses(50, Vec::new()));
}

#[test]
fn another_state_of_an_object_is_another_object() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), BLOCKS);
    let open = |etag| Tier0::open(map_of(etag), &settings, 4).unwrap();
    assert_eq!(sweep(&open("1")).misses, BLOCKS);
    assert_eq!(sweep(&open("1")).misses, 0);
    assert_eq!(open("2").counters().restored_blocks, 0);
    assert_eq!(sweep(&open("2")).misses, BLOCKS);
}

#[test]
fn what_the_disk_altered_or_lost_is_fetched_again_and_mended() {
    let trace = Trace::new();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), BLOCKS);
    sweep(&open(&settings, &trace, 0));
    let data = file(folder.path(), "gradus-cache.blocks");
    let records = file(folder.path(), "gradus-cache.records");
    // A flipped bit; a block killed half-way, whose record was wiped before; one whose record outlived a power failure
    // that its data did not.
    data.write_all_at(&[content(Block(3))[7] ^ 4], 3 * BLOCK + 7).unwrap();
    records.write_all_at(&[0; 64], 64 * (1 + 20)).unwrap();
    data.write_all_at(&[0; BLOCK as usize], 40 * BLOCK).unwrap();
    let cache = open(&settings, &trace, 0);
    assert_eq!(cache.counters().restored_blocks, BLOCKS - 1);
    let counters = sweep(&cache);
    assert_eq!((counters.damaged_blocks, counters.misses, counters.fetched_blocks), (2, 1, 3));
    drop(cache);
    let counters = sweep(&open(&settings, &trace, 0));
    assert_eq!((counters.damaged_blocks, counters.misses), (0, 0));

    data.set_len(100 * BLOCK + 5).unwrap();
    let counters = sweep(&open(&settings, &trace, 0));
    assert_eq!((counters.damaged_blocks, counters.misses), (0, BLOCKS - 100));

    // While it runs, too.
    let cache = open(&settings, &trace, 0);
    data.set_len(50 * BLOCK).unwrap();
    let counters = sweep(&cache);
    assert_eq!((counters.damaged_blocks, counters.misses), (BLOCKS - 50, 0));
}

#[test]
fn a_disk_that_fills_up_ends_the_writing_and_not_the_run() {
    if std::env::var_os(ROLE).is_none() {
        // The signal of a file that grows too long is ignored, so that writing fails as on a full disk.
        let test = "cache::a_disk_that_fills_up_ends_the_writing_and_not_the_run";
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\" --nocapture"]);
        shell.arg(std::env::current_exe().unwrap()).arg(test).env(ROLE, "-");
        assert!(shell.status().unwrap().success());
        return;
    }
    let trace = Trace::new();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), BLOCKS);
    let cache = open(&settings, &trace, 0);
    let maximum = getrlimit(Resource::Fsize).maximum;
    // The eleventh block has room for its first half only.
    setrlimit(Resource::Fsize, Rlimit { current: Some(10 * BLOCK + BLOCK / 2), maximum }).unwrap();
    let counters = sweep(&cache);
    assert!(counters.disk_full);
    assert_eq!((counters.disk_writes, counters.disk_blocks, counters.misses), (10, 10, BLOCKS));
    drop(cache);
    setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum }).unwrap();
    let cache = open(&settings, &trace, 0);
    let counters = sweep(&cache);
    assert_eq!((counters.restored_blocks, counters.misses, counters.disk_full), (10, BLOCKS - 10, false));
}

#[test]
fn a_folder_has_one_keeper_and_a_killed_one_leaves_no_trace() {
    let trace = Trace::new();
    if let Some(folder) = std::env::var_os(ROLE) {
        let cache = open(&settings(Path::new(&folder), BLOCKS), &trace, 0);
        sweep(&cache);
        println!("\nit has the folder");
        // Until it is killed, or its parent is gone.
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "cache::a_folder_has_one_keeper_and_a_killed_one_leaves_no_trace";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ROLE, folder.path());
    let mut other = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(other.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "it has the folder"));
    let settings = settings(folder.path(), BLOCKS);
    let error = Tier0::open(map_of("1"), &settings, 10).err().unwrap();
    assert_eq!(*error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&format!("process {}", other.id())), "{error}");
    kill_process(Pid::from_child(&other), Signal::KILL).unwrap();
    other.wait().unwrap();
    assert_eq!(sweep(&open(&settings, &trace, 0)).misses, 0);
}

#[test]
fn a_folder_that_cannot_be_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::write(&taken, "x").unwrap();
    let error = Tier0::open(map_of("1"), &settings(&taken, 9), 10).err().unwrap();
    assert_eq!(*error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("cache.folder"), "{error}");
}
