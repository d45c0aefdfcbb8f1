//! Policies against an oracle that knows nothing of them, on random traces and on epochs dealt over ranks.

use super::super::directory::{Directory, Verdict};
use super::PolicyKind;
use crate::blocks::Block;
use crate::order::{Order, Shuffled};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const KINDS: [PolicyKind; 3] = [PolicyKind::Clairvoyant, PolicyKind::Lru, PolicyKind::S3Fifo];

/// Accesses in their order: at which position, to which block.
type Trace = Vec<(u64, u64)>;

/// For each access, the position of the next one to the same block.
fn next_uses(trace: &Trace) -> Vec<Option<u64>> {
    let mut seen = BTreeMap::new();
    let mut uses: Vec<_> =
        trace.iter().rev().map(|(position, block)| seen.insert(*block, *position)).collect();
    uses.reverse();
    uses
}

/// Misses of a directory, which never holds more than it may.
fn misses(kind: PolicyKind, capacity: u64, trace: &Trace) -> u64 {
    let mut directory = Directory::new(kind, capacity, u64::MAX);
    let mut residents = BTreeSet::new();
    let mut misses = 0;
    for ((_, block), next_use) in trace.iter().zip(next_uses(trace)) {
        let verdict = directory.access(Block(*block), next_use);
        assert_eq!(verdict == Verdict::Hit, residents.contains(block), "{kind:?}: it says where blocks are");
        misses += u64::from(verdict != Verdict::Hit);
        if let Verdict::Miss { admitted, evicted } = verdict {
            assert!(
                evicted.is_none_or(|evicted| residents.remove(&evicted.0)),
                "{kind:?}: only residents go"
            );
            assert!(!admitted || residents.insert(*block));
        }
        assert_eq!(directory.len(), residents.len() as u64);
        assert!(directory.len() <= capacity, "{kind:?}");
    }
    misses
}

/// Belady's misses by looking ahead through the trace at every miss.
fn oracle(capacity: usize, trace: &Trace) -> u64 {
    let mut residents: Vec<u64> = Vec::new();
    let mut misses = 0;
    for (now, (_, block)) in trace.iter().enumerate() {
        if residents.contains(block) {
            continue;
        }
        misses += 1;
        let distance =
            |block: u64| trace[now + 1..].iter().position(|(_, later)| *later == block).unwrap_or(usize::MAX);
        residents.push(*block);
        if residents.len() > capacity {
            let farthest = (0..residents.len()).max_by_key(|place| distance(residents[*place]));
            residents.remove(farthest.unwrap());
        }
    }
    misses
}

/// The fewest misses that any choices lead to, by trying them all.
fn optimum(capacity: u32, trace: &Trace) -> u64 {
    // Fewest misses so far for each set of residents.
    let mut best = BTreeMap::from([(0u32, 0u64)]);
    for (_, block) in trace {
        let bit = 1u32 << block;
        let mut next: BTreeMap<u32, u64> = BTreeMap::new();
        let mut reach = |residents: u32, misses: u64| {
            if residents.count_ones() <= capacity {
                let known = next.entry(residents).or_insert(misses);
                *known = misses.min(*known);
            }
        };
        for (residents, misses) in best {
            if residents & bit != 0 {
                reach(residents, misses);
                continue;
            }
            reach(residents, misses + 1);
            reach(residents | bit, misses + 1);
            (0..32)
                .filter(|other| residents & 1 << other != 0)
                .for_each(|other| reach((residents & !(1 << other)) | bit, misses + 1));
        }
        best = next;
    }
    best.into_values().min().unwrap()
}

fn plain(blocks: Vec<u64>) -> Trace {
    (0..).zip(blocks).collect()
}

/// What a node accesses whose ranks are `ranks` of a world, in which the microbatches of a step go round.
#[derive(Debug)]
struct Epochs {
    samples: u64,
    /// Bytes of a sample, where a block has 100.
    sample_bytes: u64,
    epochs: u64,
    rows: u64,
    world: u64,
    ranks: std::ops::Range<u64>,
}

impl Epochs {
    fn trace(&self, seed: u64) -> Trace {
        let order = Shuffled::new(seed, self.samples);
        let total = self.samples * self.epochs;
        let mut trace = Vec::new();
        for step in 0..total.div_ceil(self.world * self.rows) {
            for rank in self.ranks.clone() {
                let first = (step * self.world + rank) * self.rows;
                for position in (first..first + self.rows).filter(|position| *position < total) {
                    let start = order.sample_at(position) * self.sample_bytes;
                    let blocks = start / 100..(start + self.sample_bytes).div_ceil(100);
                    trace.extend(blocks.map(|block| (position, block)));
                }
            }
        }
        trace
    }

    fn blocks(&self) -> u64 {
        (self.samples * self.sample_bytes).div_ceil(100)
    }
}

#[test]
fn epochs_are_kept_as_well_as_can_be_and_better_than_by_looking_back() {
    println!("misses of Belady, clairvoyant, LRU, S3-FIFO");
    for (samples, sample_bytes, epochs, rows, world, ranks) in [
        (120, 100, 3, 4, 1, 0..1),
        (90, 250, 3, 2, 2, 0..1),
        (200, 37, 4, 3, 4, 1..3),
        (60, 130, 5, 1, 8, 0..8),
        (301, 20, 3, 5, 3, 2..3),
    ] {
        let epochs = Epochs { samples, sample_bytes, epochs, rows, world, ranks };
        for tenths in [1, 3, 6, 9] {
            let capacity = (epochs.blocks() * tenths / 10).max(1);
            let trace = epochs.trace(tenths);
            let expected = oracle(capacity as usize, &trace);
            let [best, lru, s3] = KINDS.map(|kind| misses(kind, capacity, &trace));
            println!(
                "{expected:5} {best:5} {lru:5} {s3:5} of {}: {capacity} of {} blocks, {epochs:?}",
                trace.len(),
                epochs.blocks()
            );
            assert_eq!(best, expected);
            assert!(best <= lru && best <= s3);
        }
    }
}

#[test]
fn blocks_used_often_survive_a_scan_in_three_queues() {
    // Ten blocks over and over, and between the rounds blocks that are used once.
    let round =
        |round: u64| (0..3).flat_map(|_| 0..10).chain((0..30).map(move |once| 100 + round * 30 + once));
    let trace = plain((0..20).flat_map(round).collect());
    let [_, lru, s3] = KINDS.map(|kind| misses(kind, 20, &trace));
    assert!(s3 < lru, "{s3} and {lru}");
}

#[test]
fn without_room_nothing_is_taken_in() {
    for kind in KINDS {
        assert_eq!(misses(kind, 0, &plain(vec![1, 1, 2, 1])), 4);
    }
}

#[test]
fn with_room_for_all_nothing_is_foreseen() {
    let foresees = |kind, capacity| Directory::new(kind, capacity, 10).foresees();
    assert!(foresees(PolicyKind::Clairvoyant, 9));
    assert!(!foresees(PolicyKind::Clairvoyant, 10) && !foresees(PolicyKind::Clairvoyant, 0));
    assert!(!foresees(PolicyKind::Lru, 5) && !foresees(PolicyKind::S3Fifo, 5));
}

#[test]
fn of_blocks_found_again_those_used_first_stay() {
    let mut directory = Directory::new(PolicyKind::Clairvoyant, 3, 10);
    assert_eq!(directory.restore((0..4).map(Block)), [Block(3)]);
    for (block, next_use) in [(0, Some(9)), (1, Some(3)), (2, Some(5)), (7, Some(1))] {
        directory.foresee(Block(block), next_use);
    }
    assert_eq!(directory.len(), 3);
    let evicted = [(4, 4), (5, 3)].map(|(block, position)| directory.access(Block(block), Some(position)));
    assert_eq!(evicted.map(Verdict::evicted), [Some(Block(0)), Some(Block(2))]);
    assert_eq!(directory.access(Block(1), None), Verdict::Hit);
    directory.close();
    assert_eq!(directory.access(Block(7), Some(4)), Verdict::Miss { admitted: false, evicted: None });
    directory.forget(Block(1));
    assert_eq!(directory.len(), 2);
}

proptest! {
    #[test]
    fn nobody_misses_less_than_the_clairvoyant(
        blocks in prop::collection::vec(0u64..6, 0..24), capacity in 0u32..5,
    ) {
        let trace = plain(blocks);
        prop_assert_eq!(misses(PolicyKind::Clairvoyant, u64::from(capacity), &trace), optimum(capacity, &trace));
    }

    #[test]
    fn the_clairvoyant_misses_as_the_oracle_does(
        blocks in prop::collection::vec(0u64..40, 0..400), capacity in 0usize..45,
    ) {
        let trace = plain(blocks);
        let expected = oracle(capacity, &trace);
        let [best, lru, s3] = KINDS.map(|kind| misses(kind, capacity as u64, &trace));
        prop_assert_eq!(best, expected);
        prop_assert!(lru >= expected && s3 >= expected);
    }

    #[test]
    fn the_clairvoyant_misses_as_the_oracle_does_over_epochs(
        seed: u64, samples in 1u64..60, sample_bytes in 1u64..350, epochs in 1u64..4, rows in 1u64..4, world in 1u64..5,
        first in 0u64..5, count in 1u64..5, tenths in 0u64..11,
    ) {
        let first = first % world;
        let ranks = first..(first + count).min(world);
        let epochs = Epochs { samples, sample_bytes, epochs, rows, world, ranks };
        let (trace, capacity) = (epochs.trace(seed), epochs.blocks() * tenths / 10);
        prop_assert_eq!(misses(PolicyKind::Clairvoyant, capacity, &trace), oracle(capacity as usize, &trace));
    }

    /// Blocks forgotten in between are misses once more, and room for others.
    #[test]
    fn forgetting_leaves_every_policy_sound(
        steps in prop::collection::vec((0u64..12, prop::bool::weighted(0.2)), 0..200), capacity in 0u64..8,
    ) {
        for kind in KINDS {
            let mut directory = Directory::new(kind, capacity, 100);
            let mut residents = BTreeSet::new();
            for (now, (block, forgets)) in (0..).zip(&steps) {
                if *forgets {
                    directory.forget(Block(*block));
                    residents.remove(block);
                    continue;
                }
                let verdict = directory.access(Block(*block), Some(now + 1 + block * 7 % 5));
                prop_assert_eq!(verdict == Verdict::Hit, residents.contains(block));
                prop_assert!(verdict.evicted().is_none_or(|evicted| residents.remove(&evicted.0)));
                if verdict.is_resident() {
                    residents.insert(*block);
                }
                prop_assert!(residents.len() as u64 <= capacity && directory.len() == residents.len() as u64);
            }
        }
    }
}
