//! The cache against a model that keeps every block for ever: whatever happens, every byte is right.

use super::*;
use crate::blocks::{Block, BlockMap, ObjectInfo};
use gradus_error::{Error, Kind};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

const BLOCK: u64 = 4096;

/// Two objects of `blocks` blocks together, whose last ones are short.
fn map(blocks: u64) -> Arc<BlockMap> {
    let object = |name: &str, blocks: u64| ObjectInfo {
        address: format!("s3://b/{name}"),
        bytes: (blocks * BLOCK).saturating_sub(100),
        etag: "1".to_owned(),
    };
    Arc::new(BlockMap::new(vec![object("a", blocks / 2), object("b", blocks - blocks / 2)], BLOCK).unwrap())
}

fn content(block: Block, len: usize) -> Vec<u8> {
    (0..len as u64).map(|place| (place / 3 + block.0 * 31) as u8).collect()
}

fn settings(folder: Option<&Path>, memory_blocks: u64, disk_blocks: u64) -> CacheSettings {
    CacheSettings {
        folder: folder.map_or_else(String::new, |folder| folder.display().to_string()),
        disk_bytes: disk_blocks * BLOCK,
        memory_bytes: memory_blocks * BLOCK,
        block_bytes: BLOCK,
        policy: PolicyKind::default(),
        share: true,
    }
}

fn open(map: &Arc<BlockMap>, settings: &CacheSettings, window: u64) -> Tier0 {
    let tier = Tier0::open(map.clone(), settings, window).unwrap();
    tier.begin(&mut |block| Some(block.0));
    tier
}

fn fill(mut fill: Fill) -> Held {
    let held = fill.held();
    let bytes = content(fill.block(), fill.space().len());
    fill.space().copy_from_slice(&bytes);
    fill.complete();
    held
}

/// The block, however it comes; nothing when memory is full.
fn get(access: Access) -> Option<Held> {
    let held = match access {
        Access::Held(held) => held,
        Access::Missing(missing) => fill(missing),
        Access::OnDisk(load) => match load.load() {
            Loaded::Ready(held) => held,
            Loaded::Damaged(missing) => fill(missing),
        },
        Access::Full => return None,
    };
    held.wait().unwrap();
    assert_eq!(held.bytes(), content(held.block(), held.bytes().len()));
    Some(held)
}

#[test]
fn a_block_is_fetched_once_for_all_who_want_it() {
    let map = map(4);
    let cache = open(&map, &settings(None, 4, 0), 1);
    let Access::Missing(missing) = cache.access(Block(1), || None) else { panic!("nothing is there") };
    let Access::Held(shared) = cache.access(Block(1), || None) else { panic!("it is on its way") };
    assert!(shared.try_ready().is_none() && cache.peek(Block(2)).is_none());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| shared.wait().map(|()| shared.bytes().to_vec()));
        fill(missing);
        assert_eq!(waits.join().unwrap().unwrap(), content(Block(1), BLOCK as usize - 100));
    });
    let counters = cache.counters();
    assert_eq!((counters.misses, counters.memory_hits, counters.fetched_blocks), (1, 1, 1));
    assert_eq!(counters.fetched_bytes, BLOCK - 100);
}

#[test]
fn a_fetch_that_fails_is_told_to_all_and_tried_anew() {
    let cache = open(&map(4), &settings(None, 4, 0), 1);
    let Access::Missing(missing) = cache.access(Block(0), || None) else { panic!("nothing is there") };
    let shared = missing.held();
    missing.fail(Error::denied("no"));
    assert_eq!(*shared.wait().unwrap_err().kind(), Kind::Denied);
    let Access::Missing(missing) = cache.access(Block(0), || None) else { panic!("it is tried anew") };
    let shared = missing.held();
    drop(missing);
    assert_eq!(*shared.wait().unwrap_err().kind(), Kind::Unavailable);
    assert!(matches!(cache.access(Block(0), || None), Access::Missing(_)));
    assert_eq!(cache.counters().failed_fetches, 3);
}

#[test]
fn memory_that_is_in_use_is_not_reused_and_its_release_is_told() {
    let cache = open(&map(10), &settings(None, 3, 0), 2);
    let held: Vec<Held> =
        (0..3).map(|block| get(cache.access(Block(block), || Some(9 - block))).unwrap()).collect();
    assert!(matches!(cache.access(Block(7), || Some(20)), Access::Full));
    assert_eq!(cache.counters().accesses, 3);
    let (sender, freed) = std::sync::mpsc::channel();
    cache.when_free(Box::new(move || sender.send(()).unwrap()));
    assert!(freed.try_recv().is_err());
    held.iter()
        .zip(0..)
        .for_each(|(held, block)| assert_eq!(held.bytes(), content(Block(block), held.bytes().len())));
    drop(held);
    freed.recv().unwrap();
    assert!(get(cache.access(Block(7), || Some(20))).is_some());
    // The memory tier has one page, which the block has that is used first.
    assert!(cache.peek(Block(2)).is_some() && cache.peek(Block(0)).is_none());
}

#[test]
fn passing_blocks_evict_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(&map(10), &settings(Some(folder.path()), 4, 2), 2);
    get(cache.access(Block(0), || Some(50)));
    for block in 1..10 {
        assert!(matches!(cache.pass(Block(block)), Access::Missing(_)));
        get(cache.pass(Block(block))).unwrap();
    }
    let counters = cache.counters();
    assert_eq!((counters.accesses, counters.memory_blocks, counters.disk_blocks), (1, 1, 1));
    assert!(matches!(cache.pass(Block(0)), Access::Held(_)));
}

#[test]
fn a_block_that_is_passed_over_goes_when_others_are_used_sooner() {
    let folder = tempfile::tempdir().unwrap();
    for disk_blocks in [0, 2] {
        let place = (disk_blocks > 0).then(|| folder.path());
        let cache = open(&map(10), &settings(place, 4, disk_blocks), 2);
        get(cache.access(Block(1), || Some(1)));
        get(cache.access(Block(2), || Some(20)));
        // Its time came, and nobody accessed it.
        cache.pass_over(Block(1), || Some(30));
        // Of one that is not here nothing is remembered.
        cache.pass_over(Block(9), || Some(2));
        get(cache.access(Block(3), || Some(25)));
        cache.flush();
        let stays = |block| cache.peek(Block(block)).is_some() || cache.on_disk().contains(&Block(block));
        assert_eq!([1, 2, 3, 9].map(stays), [false, true, true, false], "{:?}", cache.counters());
    }
}

#[test]
fn with_room_for_all_no_next_use_is_worked_out() {
    let cache = open(&map(4), &settings(None, 4, 0), 3);
    (0..4).for_each(|block| drop(get(cache.access(Block(block), || panic!("it is of no use")))));
    assert_eq!(cache.counters().memory_blocks, 4);
}

#[test]
fn settings_that_cannot_be_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let try_open = |settings: &CacheSettings, window| {
        let error = Tier0::open(map(8), settings, window).err().unwrap();
        assert_eq!(*error.kind(), Kind::Invalid);
        error.to_string()
    };
    assert!(try_open(&settings(Some(folder.path()), 8, 0), 1).contains("cache.disk_bytes"));
    let small = settings(Some(folder.path()), 8, 8);
    let least = small.least_memory_bytes(8);
    assert!(try_open(&small, 8).contains(&least.to_string()));
    assert!(Tier0::open(map(8), &CacheSettings { memory_bytes: least, ..small }, 8).is_ok());
    let other = CacheSettings { block_bytes: 2 * BLOCK, ..settings(None, 8, 0) };
    assert!(try_open(&other, 1).contains("cache.block_bytes"));
}

#[derive(Debug, Clone)]
enum Step {
    Access { block: u64, next_use: u64, holds: bool },
    Pass { block: u64 },
    Fail { block: u64 },
    Damage { at: u64 },
    LetGo,
    Restart { disk_blocks: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let block = 0u64..12;
    let step = prop_oneof![
        12 => (block.clone(), 0u64..40, any::<bool>())
            .prop_map(|(block, next_use, holds)| Step::Access { block, next_use, holds }),
        2 => block.clone().prop_map(|block| Step::Pass { block }),
        1 => block.prop_map(|block| Step::Fail { block }),
        1 => (0..12 * BLOCK).prop_map(|at| Step::Damage { at }),
        3 => Just(Step::LetGo),
        1 => (1u64..13).prop_map(|disk_blocks| Step::Restart { disk_blocks }),
    ];
    prop::collection::vec(step, 0..120)
}

fn damage(folder: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file =
        std::fs::File::options().read(true).write(true).open(folder.join("gradus-cache.blocks")).unwrap();
    let mut byte = [0];
    if file.read_exact_at(&mut byte, at).is_ok() {
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
}

proptest! {
    #[test]
    fn every_byte_is_right_whatever_happens(
        steps in steps(), policy in prop::sample::select(vec![PolicyKind::Clairvoyant, PolicyKind::Lru, PolicyKind::S3Fifo]),
        memory_blocks in 4u64..16, disk_blocks in 1u64..13, has_disk: bool,
    ) {
        let (map, folder) = (map(12), tempfile::tempdir().unwrap());
        let with = |disk_blocks| CacheSettings {
            policy, ..settings(has_disk.then_some(folder.path()), memory_blocks, disk_blocks)
        };
        let mut cache = Some(open(&map, &with(disk_blocks), 3));
        let mut held: Vec<Held> = Vec::new();
        for (now, step) in (0..).zip(steps) {
            let tier = cache.as_ref().unwrap();
            match step {
                Step::Access { block, next_use, holds } => {
                    let access = tier.access(Block(block), || (next_use < 35).then_some(now + 1 + next_use));
                    held.extend(get(access).filter(|_| holds));
                }
                Step::Pass { block } => held.extend(get(tier.pass(Block(block)))),
                Step::Fail { block } => if let Access::Missing(fill) = tier.access(Block(block), || None) {
                    fill.fail(Error::unavailable("no"));
                },
                Step::Damage { at } if has_disk => damage(folder.path(), at),
                Step::Damage { .. } => {}
                Step::LetGo => held.clear(),
                Step::Restart { disk_blocks } => {
                    // What is held outlives the cache.
                    drop(cache.take());
                    cache = Some(open(&map, &with(disk_blocks), 3));
                }
            }
            for held in &held {
                prop_assert_eq!(held.bytes(), content(held.block(), held.bytes().len()));
            }
            let counters = cache.as_ref().unwrap().counters();
            prop_assert!(counters.pages <= memory_blocks && counters.disk_blocks <= 12);
            prop_assert_eq!(counters.accesses, counters.memory_hits + counters.disk_hits + counters.misses);
        }
        held.clear();
        let counters = cache.as_ref().unwrap().counters();
        // The writer may still hold a page or two.
        prop_assert!(has_disk || counters.pages - counters.free_pages == counters.memory_blocks);
    }
}
