//! Samples on their way to whoever reads them, ahead of time.
//!
//! A [`Feed`] walks the order of samples ahead of its readers (`walk`), as far as latency and rate ask for (`depth`), has
//! the cache decide which blocks stay, fetches what is missing from where it is (`origin`), and hands samples out in the
//! pages that they lie in ([`Sample`]). It has no thread of its own: whoever reads moves the walk on.
//!
//! Invariants: a sample's bytes are those that were indexed, or there is an error; what a reader waits for is counted by
//! cause; no reader waits for what another reader has yet to do.

mod awaited;
mod block_size;
mod brought;
mod buffers;
mod depth;
mod hints;
mod mailbox;
mod nodes;
mod origin;
mod readers;
mod sample;
mod samples;
mod serving;
mod several;
mod share;
mod society;
mod stalls;
mod unit;
mod walk;
mod warm;

pub use block_size::{cache_for, chosen_block_bytes, known_block_bytes};
pub use brought::Brought;
pub use nodes::{Fallbacks, Joining};
pub use origin::Source;
pub use readers::Readers;
pub use sample::Sample;
pub use samples::Samples;
pub use share::{Asker, Keeper};
pub use stalls::{Cause, Stalls};
pub use warm::{Warmed, warm};

use crate::blocks::BlockMap;
use crate::cache::{CacheCounters, CacheSettings, Tier0};
use crate::index::Index;
use crate::order::{Mine, Order, Uses};
use crate::peers::{Holdings, Homes, Place};
use depth::Depth;
use gradus_error::{Error, Result};
use gradus_host::Clock;
use society::Society;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use unit::Origin;
use walk::{Plan, Walk};

/// Bytes that are read ahead before anything is known of latency and rate.
const FIRST_DEPTH_BYTES: u64 = 32 << 20;

/// Longest time that a reader waits for memory in which its sample would have a place. A disk that is written to gives
/// pages back much sooner.
const PAGE_PATIENCE: Duration = Duration::from_secs(1);

/// Part of the memory budget that may wait for readers; the rest is the memory tier's, if data are larger than it.
const WINDOW_PART: u64 = 2;

/// Bytes that may wait for readers.
fn window_bytes(cache: &CacheSettings) -> u64 {
    (cache.memory_bytes / WINDOW_PART).max(cache.block_bytes)
}

/// What is read, in which order, by whom.
pub struct Reading {
    /// Where the samples are.
    pub index: Arc<Index>,
    /// In which order they are read; of as many as the index has.
    pub order: Arc<dyn Order>,
    /// Who reads which position.
    pub readers: Readers,
    /// The position at which the order ends, if it does: nothing is kept for what is behind.
    pub end: Option<u64>,
}

/// What a feed has done so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedCounters {
    /// Samples that readers took.
    pub samples: u64,
    /// Their bytes.
    pub bytes: u64,
    /// For what readers waited, those of other ranks included.
    pub stalls: Stalls,
    /// Where the bytes of samples were found.
    pub brought: Brought,
    /// Bytes that are to be read ahead, as things stand.
    pub depth_bytes: u64,
    /// Bytes that wait for readers or are on their way to them.
    pub waiting_bytes: u64,
    /// What the cache did; all zeros where data are local files.
    pub cache: CacheCounters,
    /// What the bucket was asked for, by whoever reads through the same [`crate::Bucket`]; all zeros where data are local
    /// files.
    pub bucket: crate::bucket::BucketCounters,
    /// What was exchanged with other nodes.
    pub peers: crate::peers::Counters,
    /// What came from the bucket since a peer did not have it, or not in time.
    pub fallbacks: Fallbacks,
}

/// Hands samples out by position. Any number of threads may read at once.
pub struct Feed {
    /// Ends before what it works with.
    society: Option<Society>,
    core: Arc<Core>,
}

/// What readers and those who serve other nodes share.
struct Core {
    plan: Plan,
    tier: Option<Tier0>,
    origin: Arc<dyn Origin>,
    depth: Arc<Mutex<Depth>>,
    walk: Mutex<Walk>,
    clock: Arc<dyn Clock>,
}

impl Feed {
    /// A feed of samples that lie where `source` says, kept as `cache` says. Nothing is read before [`Feed::begin`].
    ///
    /// # Errors
    /// `Invalid` for settings that cannot be, naming the key, or an order of other samples than the index has; what
    /// [`Tier0::open`] says.
    pub fn open(
        reading: Reading,
        source: &Source,
        cache: &CacheSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let own = reading.readers.clone();
        let mine: Mine = Arc::new(move |position| own.here(position) > 0);
        Ok(Self { society: None, core: Arc::new(Core::open(reading, source, cache, mine, clock)?) })
    }

    /// A feed that shares blocks with those of other nodes. They are told each other's [`Feed::place`] and met by
    /// [`Feed::meet`] before reading begins; without that, this one reads as if it were alone.
    ///
    /// # Errors
    /// As [`Feed::open`]; `Invalid` for local files, which are not shared, and impossible settings of `joining`; the
    /// system's.
    pub fn open_among(
        reading: Reading,
        source: &Source,
        cache: &CacheSettings,
        joining: Joining,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let core = Arc::new(Core::open(reading, source, cache, Arc::new(|_| true), clock)?);
        Ok(Self { society: Some(Society::found(&core, joining)?), core })
    }

    /// Where other nodes find this one, if blocks are shared.
    pub fn place(&self) -> Option<&Place> {
        self.society.as_ref().map(|society| &society.place)
    }

    /// What this node has on disk, for [`Feed::meet_with_holdings`].
    pub fn holdings(&self) -> Holdings {
        let mut holdings = Holdings::none(self.core.plan.map.blocks());
        let blocks = self.core.tier.as_ref().map(Tier0::on_disk).unwrap_or_default();
        blocks.into_iter().for_each(|block| holdings.add(block));
        holdings
    }

    /// Says who shares blocks, this node among them. All are to be told the same, before they begin.
    ///
    /// # Errors
    /// `Invalid` when this node does not share, or is not among them, or two have one name.
    pub fn meet(&self, places: Vec<Place>) -> Result<()> {
        let members: Vec<_> = places.iter().map(|place| place.member.clone()).collect();
        let homes = Homes::new(&members, self.core.plan.map.blocks())?;
        self.society()?.meet(&self.core, homes, places)
    }

    /// The same, but blocks that are on somebody's disk have their home there.
    ///
    /// # Errors
    /// As [`Feed::meet`]; `Invalid` when what somebody holds is of another dataset.
    pub fn meet_with_holdings(&self, nodes: Vec<(Place, Holdings)>) -> Result<()> {
        let (places, members): (Vec<_>, Vec<_>) =
            nodes.into_iter().map(|(place, holdings)| (place.clone(), (place.member, holdings))).unzip();
        let homes = Homes::with_holdings(&members, self.core.plan.map.blocks())?;
        self.society()?.meet(&self.core, homes, places)
    }

    fn society(&self) -> Result<&Society> {
        self.society.as_ref().ok_or_else(|| Error::invalid("this feed shares no blocks with other nodes"))
    }

    /// Begins to read ahead, from `position` on.
    pub fn begin(&self, position: u64) {
        let mut walk = self.core.walk();
        walk.begin(position);
        self.core.foresee(&mut walk, position);
        self.core.advance(&mut walk);
        self.core.leave(walk);
        self.nudge();
    }

    /// Tells those who serve other nodes that the walk has gone on.
    fn nudge(&self) {
        if let Some(society) = &self.society {
            society.server.nudge();
        }
    }

    /// The sample at a position. Blocks until it is there.
    ///
    /// Every reader asks for each of its positions once, in rising order; then the sample was on its way before. Any other
    /// position is read too, without the cache's taking notice.
    ///
    /// # Errors
    /// `Corrupt` when an object has changed since it was indexed, or does not decode; else what the store says when it was
    /// asked as often as the settings allow.
    pub fn sample(&self, position: u64) -> Result<Sample> {
        self.sample_waited(position, &mut Stalls::default())
    }

    /// The same, and counts in `waits` what was waited for it.
    ///
    /// # Errors
    /// As of [`Feed::sample`].
    pub fn sample_waited(&self, position: u64, waits: &mut Stalls) -> Result<Sample> {
        let mut samples = self.samples(position..position.saturating_add(1));
        let sample = samples.next();
        waits.add_stalls(samples.waits());
        sample.unwrap_or_else(|| Err(Error::invalid(format!("no order has a position {position}"))))
    }

    /// The samples at positions that follow one another, one by one, such as those of a batch: as [`Feed::sample`] gives
    /// them, but readers on several threads are less in each other's way. Ends behind a position that is behind the end of
    /// the order.
    pub fn samples(&self, positions: Range<u64>) -> Samples<'_> {
        Samples::new(self, positions)
    }

    /// What is read, in which order.
    pub fn index(&self) -> &Arc<Index> {
        &self.core.plan.index
    }

    /// What was done so far.
    pub fn counters(&self) -> FeedCounters {
        let walk = self.core.walk();
        FeedCounters {
            samples: walk.samples,
            bytes: walk.bytes,
            stalls: walk.stalls,
            brought: walk.brought,
            depth_bytes: self.core.depth().bytes(),
            waiting_bytes: walk.waiting_bytes(),
            cache: self.core.tier.as_ref().map(Tier0::counters).unwrap_or_default(),
            bucket: self.core.origin.counters(),
            peers: self.society.as_ref().map(Society::counters).unwrap_or_default(),
            fallbacks: self.society.as_ref().map(|society| society.asking.fallbacks()).unwrap_or_default(),
        }
    }
}

impl Core {
    fn open(
        reading: Reading,
        source: &Source,
        cache: &CacheSettings,
        mine: Mine,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let Reading { index, order, readers, end } = reading;
        if order.samples() > index.samples() {
            return Err(Error::invalid(format!(
                "an order of {} samples for a dataset of {}",
                order.samples(),
                index.samples()
            )));
        }
        let map = Arc::new(BlockMap::new(index.objects().to_vec(), cache.block_bytes)?);
        let uses = Uses::new(order.clone(), mine, end);
        let window_bytes = window_bytes(cache);
        let depth = Arc::new(Mutex::new(Depth::new(FIRST_DEPTH_BYTES, window_bytes)));
        let tier = source.is_remote().then(|| {
            let window_blocks = (window_bytes / cache.block_bytes).min(map.blocks());
            Tier0::open(map.clone(), cache, window_blocks)
        });
        let tier = tier.transpose()?;
        let origin = source.origin(map.clone(), depth.clone(), clock.clone());
        let plan = Plan { index, map, order, readers, end };
        Ok(Self { plan, tier, origin, depth, walk: Mutex::new(Walk::new(uses)), clock })
    }

    /// Tells the cache when what it has is used, now that it is known where reading begins.
    fn foresee(&self, walk: &mut Walk, position: u64) {
        let Some(tier) = &self.tier else { return };
        let Plan { index, map, .. } = &self.plan;
        tier.begin(&mut |block| {
            let samples = index.samples_in(map.object_of(block) as u32, map.range_of(block));
            walk.uses.first(block, samples, position)
        });
    }

    /// Waits until a page is free; not for long, since whoever has them all may not let go of one.
    fn wait_for_page(&self) -> bool {
        self.tier.as_ref().is_some_and(|tier| tier.wait_until_free(PAGE_PATIENCE))
    }

    fn advance(&self, walk: &mut Walk) {
        let depth = self.depth().clone();
        walk.advance(&self.plan, self.tier.as_ref(), self.origin.as_ref(), &depth);
    }

    /// Lets others at the walk, then tells the origin what it has come to expect.
    fn leave(&self, mut walk: MutexGuard<'_, Walk>) {
        let expected = walk.take_expected();
        drop(walk);
        expected.into_iter().for_each(|(object, range)| self.origin.expect(object, range));
    }

    /// Among others, a reader's position is walked to however far that is: the blocks before it are theirs as well.
    fn advance_to(&self, walk: &mut Walk, position: u64) {
        if walk.company().is_none() || !walk.reaches(&self.plan, position) {
            return;
        }
        while !walk.advance_to(&self.plan, self.tier.as_ref(), self.origin.as_ref(), position)
            && walk.is_stuck_at(&self.plan, position)
            && walk.give_up_one()
        {}
    }

    fn walk(&self) -> MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn depth(&self) -> MutexGuard<'_, Depth> {
        self.depth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
