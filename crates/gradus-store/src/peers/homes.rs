//! Which node of several is the home of a block: the one that fetches it from the bucket and keeps it for all.
//!
//! A keyed bijection (that of the order of samples, under a fixed seed) sends block numbers to places, and each member has
//! a run of places as long as its capacity allows. So homes are exactly balanced, where hashing would give some member
//! more than it can hold even though all together hold the dataset; and neighbours have different homes, so that an
//! object that is read from end to end is asked of all nodes. It takes O(members) memory, and no exchange: every node comes
//! to the same answer from members and blocks alone.
//!
//! The price of exact balance without memory is that runs shift when members come or go: between a quarter and a half of
//! all blocks then have another home, where consistent hashing would move one in as many as there are members. What is
//! already on disk can decide instead: [`Homes::with_holdings`] leaves blocks where they are and deals out only what
//! nobody has, or has room for.
//!
//! Racks: a block whose home is in another rack has a *rack home* as well, by the same rule among the members of the
//! asking rack in proportion to their spare room. It is asked first, and asks the home for all of its rack. Copies that it
//! would keep have to fit its spare room: a member keeps room for its own share first, for what a home lets go of comes from
//! the bucket again.

use super::holdings::Holdings;
use crate::blocks::Block;
use crate::order::SampleOrder;
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The seed of the bijection: any would do, and all nodes need the same.
const SEED: u64 = 0x6772_6164_7573;

/// Most members: their numbers fit 16 bits in the table of [`Homes::with_holdings`].
const MOST_MEMBERS: usize = 1 << 15;

/// One node that keeps blocks for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, no other's.
    pub node: String,
    /// The rack that it stands in; those that name none stand in one.
    pub rack: String,
    /// Blocks that it can keep.
    pub capacity_blocks: u64,
}

/// Whom to ask for a block, in this order; then the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The member of the asking rack that asks for all of it, where the home is in another rack and this one has spare room; it
    /// may be who asks.
    pub rack_home: Option<usize>,
    /// The home; it may be who asks.
    pub home: usize,
}

/// The homes of a dataset's blocks.
#[derive(Debug, Clone)]
pub struct Homes {
    members: Vec<Member>,
    order: Option<SampleOrder>,
    /// Members' runs of places: those of all of them.
    all: Runs,
    /// For each member, its rack among `racks`.
    rack_of: Vec<usize>,
    /// For each rack its members' numbers, and their runs where they have spare room.
    racks: Vec<Rack>,
    /// Homes that what is on disk has decided, by block.
    found: Option<Vec<u16>>,
}

#[derive(Debug, Clone, Default)]
struct Rack {
    members: Vec<usize>,
    spare: Option<Runs>,
}

/// Runs of places, one for each of some members: where each ends.
#[derive(Debug, Clone, Default)]
struct Runs(Vec<u64>);

impl Runs {
    /// Deals `places` out in proportion to `weights`, each share rounded to one of the two whole numbers beside it: by
    /// largest remainder, the earlier of equal ones first. Where all weights are 0, evenly.
    fn deal(places: u64, weights: &[u64]) -> Self {
        let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        let (weight, total): (Box<dyn Fn(usize) -> u128>, u128) = match total {
            0 => (Box::new(|_| 1), weights.len() as u128),
            total => (Box::new(|member| u128::from(weights[member])), total),
        };
        let exact = |member| u128::from(places) * weight(member);
        let mut shares: Vec<u128> = (0..weights.len()).map(|member| exact(member) / total).collect();
        let left = u128::from(places) - shares.iter().sum::<u128>();
        let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
        by_remainder.sort_by_key(|member| std::cmp::Reverse(exact(*member) % total));
        // Fewer are left than there are members with a remainder.
        by_remainder.iter().take(left as usize).for_each(|member| shares[*member] += 1);
        let mut end = 0;
        let ends = shares.iter().map(|share| {
            end += share;
            end as u64
        });
        Self(ends.collect())
    }

    fn at(&self, place: u64) -> usize {
        self.0.partition_point(|end| *end <= place)
    }

    fn length(&self, member: usize) -> u64 {
        self.0[member] - if member == 0 { 0 } else { self.0[member - 1] }
    }
}

impl Homes {
    /// The homes of `blocks` blocks among `members`, in whatever order they are given; the numbers of members are those of
    /// [`Homes::members`].
    ///
    /// # Errors
    /// `Invalid` without a member, with too many, or when two have one name.
    pub fn new(members: &[Member], blocks: u64) -> Result<Self> {
        let mut members = members.to_vec();
        members.sort_by(|one, other| one.node.cmp(&other.node));
        if let Some(pair) = members.windows(2).find(|pair| pair[0].node == pair[1].node) {
            return Err(Error::invalid(format!(
                "two nodes are called {}: give each another name (network.node_id)",
                pair[0].node
            )));
        }
        if !(1..=MOST_MEMBERS).contains(&members.len()) {
            return Err(Error::invalid(format!(
                "blocks have homes among 1 to {MOST_MEMBERS} nodes, not {}",
                members.len()
            )));
        }
        let capacities: Vec<u64> = members.iter().map(|member| member.capacity_blocks).collect();
        let all = Runs::deal(blocks, &capacities);
        let order = (blocks > 0).then(|| SampleOrder::new(SEED, blocks));
        let mut homes = Self { members, order, all, rack_of: Vec::new(), racks: Vec::new(), found: None };
        homes.form_racks(blocks);
        Ok(homes)
    }

    /// The same, but what members hold already stays with them, up to their share: a block that several hold with the one
    /// that has most room left for such, the rest as [`Homes::new`] deals out. All nodes must give the same `holdings`, one
    /// for each member as it was given. Takes two bytes for each block.
    ///
    /// # Errors
    /// As [`Homes::new`]; `Invalid` when holdings are not as many as members, or not of as many blocks.
    pub fn with_holdings(members: &[(Member, Holdings)], blocks: u64) -> Result<Self> {
        let mut sorted: Vec<&(Member, Holdings)> = members.iter().collect();
        sorted.sort_by(|one, other| one.0.node.cmp(&other.0.node));
        if let Some((member, _)) = members.iter().find(|(_, holdings)| holdings.blocks() != blocks) {
            return Err(Error::invalid(format!(
                "node {} tells what it holds of another number of blocks than {blocks}",
                member.node
            )));
        }
        let plain: Vec<Member> = members.iter().map(|(member, _)| member.clone()).collect();
        let mut homes = Self::new(&plain, blocks)?;
        let holdings: Vec<&Holdings> = sorted.iter().map(|(_, holdings)| holdings).collect();
        homes.found = Some(homes.settle(&holdings, blocks));
        Ok(homes)
    }

    /// Homes by holdings, then the rest in the order of places.
    fn settle(&self, holdings: &[&Holdings], blocks: u64) -> Vec<u16> {
        const NOBODY: u16 = u16::MAX;
        let mut room: Vec<u64> = (0..holdings.len()).map(|member| self.all.length(member)).collect();
        let mut homes: Vec<u16> = Vec::new();
        for block in 0..blocks {
            let holders =
                (0..holdings.len()).filter(|member| room[*member] > 0 && holdings[*member].has(block));
            // Of equal ones the first, whatever the order in which they were given.
            let best = holders.max_by_key(|member| (room[*member], std::cmp::Reverse(*member)));
            homes.push(best.map_or(NOBODY, |member| member as u16));
            if let Some(member) = best {
                room[member] -= 1;
            }
        }
        let mut next = 0;
        for place in 0..blocks {
            let block = self.order.map_or(0, |order| order.position_of(0, place)) as usize;
            if homes[block] == NOBODY {
                next += room[next..].iter().position(|left| *left > 0).expect("shares sum to all blocks");
                room[next] -= 1;
                homes[block] = next as u16;
            }
        }
        homes
    }

    fn form_racks(&mut self, blocks: u64) {
        let mut names: Vec<&str> = self.members.iter().map(|member| member.rack.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let rack_of =
            |member: &Member| names.binary_search(&member.rack.as_str()).expect("it is one of these");
        self.rack_of = self.members.iter().map(rack_of).collect();
        self.racks = vec![Rack::default(); names.len()];
        for (member, rack) in self.rack_of.iter().enumerate() {
            self.racks[*rack].members.push(member);
        }
        for rack in &mut self.racks {
            let spare = |member: &usize| {
                self.members[*member].capacity_blocks.saturating_sub(self.all.length(*member))
            };
            let spare: Vec<u64> = rack.members.iter().map(spare).collect();
            rack.spare = spare.iter().any(|blocks| *blocks > 0).then(|| Runs::deal(blocks, &spare));
        }
    }

    /// The members, by name.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The number of the member of a name.
    pub fn find(&self, node: &str) -> Option<usize> {
        self.members.binary_search_by(|member| member.node.as_str().cmp(node)).ok()
    }

    /// Blocks whose home a member is.
    pub fn share(&self, member: usize) -> u64 {
        self.all.length(member)
    }

    /// Whether two members stand in one rack.
    pub fn share_rack(&self, one: usize, other: usize) -> bool {
        self.rack_of[one] == self.rack_of[other]
    }

    /// The home of a block.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn home(&self, block: Block) -> usize {
        match &self.found {
            Some(homes) => usize::from(homes[block.0 as usize]),
            None => self.all.at(self.place(block)),
        }
    }

    /// Whom the member `from` asks for a block.
    ///
    /// # Panics
    /// If there is no such block or member.
    pub fn route(&self, from: usize, block: Block) -> Route {
        let home = self.home(block);
        let rack = &self.racks[self.rack_of[from]];
        let runs = rack.spare.as_ref().filter(|_| !self.share_rack(from, home));
        Route { rack_home: runs.map(|runs| rack.members[runs.at(self.place(block))]), home }
    }

    fn place(&self, block: Block) -> u64 {
        let order = self.order.expect("there is a block, and so an order of blocks");
        order.sample_at(0, block.0)
    }
}

#[cfg(test)]
#[path = "homes_tests.rs"]
mod tests;
