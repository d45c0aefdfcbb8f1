use super::*;
use gradus_error::Kind;
use gradus_host::random::Stream;
use proptest::prelude::*;

fn member(node: usize, rack: usize, capacity_blocks: u64) -> Member {
    Member { node: format!("n{node:03}"), rack: format!("r{rack}"), capacity_blocks }
}

/// Members of `racks` racks with these capacities.
fn members(capacities: &[u64], racks: usize) -> Vec<Member> {
    capacities.iter().enumerate().map(|(node, blocks)| member(node, node % racks, *blocks)).collect()
}

fn counted(homes: &Homes, blocks: u64) -> Vec<u64> {
    let mut counted = vec![0; homes.members().len()];
    (0..blocks).for_each(|block| counted[homes.home(Block(block))] += 1);
    counted
}

#[test]
fn two_of_one_name_or_nobody_are_refused() {
    let twice = [member(1, 0, 1), member(1, 1, 2)];
    assert_eq!(*Homes::new(&twice, 5).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(*Homes::new(&[], 5).unwrap_err().kind(), Kind::Invalid);
    let other = [(member(1, 0, 1), Holdings::none(4))];
    assert_eq!(*Homes::with_holdings(&other, 5).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn holdings_of_another_number_of_blocks_are_refused() {
    for (bytes, blocks) in [(1, 9), (2, 8), (1, 0), (0, 1)] {
        assert_eq!(*Holdings::from_bytes(vec![0; bytes], blocks).unwrap_err().kind(), Kind::Corrupt);
    }
    assert_eq!(*Holdings::from_bytes(vec![0x80], 7).unwrap_err().kind(), Kind::Corrupt);
    let mut holdings = Holdings::none(9);
    holdings.add(Block(8));
    assert_eq!(Holdings::from_bytes(holdings.as_bytes().to_vec(), 9).unwrap(), holdings);
    assert!(holdings.has(8) && !holdings.has(7));
}

#[test]
fn neighbouring_blocks_are_spread_over_all_members() {
    let homes = Homes::new(&members(&[100; 8], 1), 800).unwrap();
    // Of any 80 blocks in a row each member would have 10.
    for start in (0..800).step_by(80) {
        let mut run = [0; 8];
        (start..start + 80).for_each(|block| run[homes.home(Block(block))] += 1);
        assert!(run.iter().all(|count| (1..=30).contains(count)), "{run:?}");
    }
}

#[test]
fn a_member_that_goes_takes_half_of_the_homes_along_at_most() {
    let all = members(&[100; 9], 1);
    let before = Homes::new(&all, 9_000).unwrap();
    for gone in 0..9 {
        let mut left = all.clone();
        left.remove(gone);
        let after = Homes::new(&left, 9_000).unwrap();
        let name = |homes: &Homes, block| homes.members()[homes.home(Block(block))].node.clone();
        let moved = (0..9_000).filter(|block| name(&before, *block) != name(&after, *block)).count();
        // Half of those of the others, and its own.
        assert!((1_000..=5_000).contains(&moved), "{moved} without {gone}");
    }
}

// The bytes that a cluster moves.

/// Nodes whose caches keep what they are the homes of, as far as there is room, and never let it go: what is admitted first
/// is as good as any, where each block is used once in an epoch.
struct Cluster {
    homes: Homes,
    blocks: u64,
    /// Blocks that each member keeps.
    kept: Vec<std::collections::BTreeSet<u64>>,
    from_bucket: u64,
    between_racks: u64,
}

impl Cluster {
    fn new(members: &[Member], blocks: u64) -> Self {
        let homes = Homes::new(members, blocks).unwrap();
        let kept = vec![Default::default(); members.len()];
        Self { homes, blocks, kept, from_bucket: 0, between_racks: 0 }
    }

    /// A member gets what it keeps, or from further on; and keeps it if it has room: what it is the home of takes none from
    /// copies for its rack, nor they from it.
    fn fetch(&mut self, at: usize, block: u64, further: impl FnOnce(&mut Self)) {
        if self.kept[at].contains(&block) {
            return;
        }
        further(self);
        let (capacity, share) = (self.homes.members()[at].capacity_blocks, self.homes.share(at));
        let is_own = self.homes.home(Block(block)) == at;
        let alike = self.kept[at].iter().filter(|kept| (self.homes.home(Block(**kept)) == at) == is_own);
        let room = if is_own { share.min(capacity) } else { capacity.saturating_sub(share) };
        if (alike.count() as u64) < room {
            self.kept[at].insert(block);
        }
    }

    fn consume(&mut self, from: usize, block: u64) {
        let Route { rack_home, home } = self.homes.route(from, Block(block));
        let from_home = |cluster: &mut Self| {
            cluster.between_racks += u64::from(!cluster.homes.share_rack(from, home));
            cluster.fetch(home, block, |cluster| cluster.from_bucket += 1);
        };
        match rack_home {
            Some(near) => self.fetch(near, block, from_home),
            None => from_home(self),
        }
    }

    /// Every block is used once, by a node that chance chooses.
    fn epoch(&mut self, number: u64) {
        let order = SampleOrder::new(7, self.blocks);
        let mut chance = Stream::new(number, 1);
        for position in 0..self.blocks {
            let from = chance.next_below(self.kept.len() as u64) as usize;
            self.consume(from, order.sample_at(number, position));
        }
    }
}

#[test]
fn a_rack_with_room_for_all_hears_of_each_block_once() {
    // Two racks of two, each of which could hold everything.
    let mut cluster = Cluster::new(&members(&[100; 4], 2), 200);
    (0..6).for_each(|epoch| cluster.epoch(epoch));
    assert_eq!(cluster.from_bucket, 200);
    assert!(cluster.between_racks <= 200, "{}", cluster.between_racks);
    // Without rack homes each use in the other rack crosses: half of all.
    let mut flat = Cluster::new(&members(&[50; 4], 2), 200);
    (0..6).for_each(|epoch| flat.epoch(epoch));
    assert_eq!(flat.from_bucket, 200);
    assert!(
        flat.between_racks > 2 * cluster.between_racks,
        "{} {}",
        flat.between_racks,
        cluster.between_racks
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn shares_are_exact(capacities in prop::collection::vec(0u64..50, 1..9), blocks in 0u64..300) {
        let homes = Homes::new(&members(&capacities, 2), blocks).unwrap();
        let total: u64 = capacities.iter().sum();
        let counted = counted(&homes, blocks);
        for (member, count) in counted.iter().enumerate() {
            prop_assert_eq!(*count, homes.share(member));
            // One of the two whole numbers beside the exact share.
            let (weight, of) = if total == 0 { (1, capacities.len() as u64) } else { (capacities[member], total) };
            prop_assert!((count * of).abs_diff(blocks * weight) < of);
            // Who can hold the dataset together holds it.
            prop_assert!(blocks > total || *count <= capacities[member]);
        }
    }

    #[test]
    fn homes_do_not_depend_on_the_order_in_which_members_are_told(
        capacities in prop::collection::vec(0u64..50, 1..9), turn in 0usize..9, blocks in 0u64..100,
    ) {
        let one = members(&capacities, 3);
        let mut other = one.clone();
        other.rotate_left(turn % one.len());
        let (one, other) = (Homes::new(&one, blocks).unwrap(), Homes::new(&other, blocks).unwrap());
        for block in (0..blocks).map(Block) {
            for from in 0..capacities.len() {
                prop_assert_eq!(one.route(from, block), other.route(from, block));
            }
        }
    }

    #[test]
    fn rack_homes_stand_in_the_askers_rack_and_have_spare_room(
        capacities in prop::collection::vec(0u64..50, 1..9), racks in 1usize..4, blocks in 1u64..100,
    ) {
        let homes = Homes::new(&members(&capacities, racks), blocks).unwrap();
        for block in (0..blocks).map(Block) {
            for from in 0..capacities.len() {
                let Route { rack_home, home } = homes.route(from, block);
                prop_assert_eq!(home, homes.home(block));
                if let Some(near) = rack_home {
                    prop_assert!(homes.share_rack(near, from) && !homes.share_rack(near, home));
                    prop_assert!(homes.members()[near].capacity_blocks > homes.share(near));
                }
            }
        }
    }

    #[test]
    fn what_is_held_stays_up_to_each_ones_share_and_shares_stay_exact(
        held in prop::collection::vec(prop::collection::vec(any::<bool>(), 120), 1..6),
    ) {
        let blocks = 120;
        let told: Vec<(Member, Holdings)> = held.iter().enumerate().map(|(node, held)| {
            let mut holdings = Holdings::none(blocks);
            (0..blocks).filter(|block| held[*block as usize]).for_each(|block| holdings.add(Block(block)));
            (member(node, 0, 10 + node as u64), holdings)
        }).collect();
        let homes = Homes::with_holdings(&told, blocks).unwrap();
        let counted = counted(&homes, blocks);
        prop_assert!((0..held.len()).all(|member| counted[member] == homes.share(member)));
        // A block that somebody holds is elsewhere only if all of its holders keep as much as their share.
        for block in 0..blocks {
            let home = homes.home(Block(block));
            if held[home][block as usize] { continue }
            for holder in (0..held.len()).filter(|member| held[*member][block as usize]) {
                let keeps = (0..blocks).filter(|block| {
                    homes.home(Block(*block)) == holder && held[holder][*block as usize]
                });
                prop_assert_eq!(keeps.count() as u64, homes.share(holder));
            }
        }
        let mut turned = told.clone();
        turned.reverse();
        let other = Homes::with_holdings(&turned, blocks).unwrap();
        prop_assert!((0..blocks).map(Block).all(|block| homes.home(block) == other.home(block)));
    }

    #[test]
    fn the_bucket_gives_each_block_once_where_all_caches_together_hold_the_dataset(
        capacities in prop::collection::vec(0u64..60, 1..9), racks in 1usize..4, blocks in 1u64..200, epochs in 1u64..4,
    ) {
        let mut cluster = Cluster::new(&members(&capacities, racks), blocks);
        for epoch in 0..epochs {
            let before = cluster.from_bucket;
            cluster.epoch(epoch);
            prop_assert!(cluster.from_bucket - before <= blocks);
        }
        if capacities.iter().sum::<u64>() >= blocks {
            prop_assert_eq!(cluster.from_bucket, blocks);
        }
        prop_assert!(cluster.between_racks <= epochs * blocks);
    }
}
