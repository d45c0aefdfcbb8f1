//! What a rank reads: the samples of a run and those that are held out, in their orders, from wherever they lie.
//!
//! Prepared data are a folder of this host, or lie in a bucket. Of a bucket one rank of each node reads for all of them: it
//! has the feed and its cache, and the others ask it; feeds of several nodes share what they have fetched.

use crate::found_data::FoundData;
use crate::gathered::texts;
use crate::holdings;
use crate::run_settings::Settings;
use gradus_collective::Communicator;
use gradus_collective::algorithm::Nodes;
use gradus_error::{Error, Result};
use gradus_fabric::service::{Keys, Listener, meeting_place};
use gradus_fabric::{Launch, NetworkSettings};
use gradus_host::{Clock, RealClock};
use gradus_store::peers::{self, PeersSettings};
use gradus_store::{
    Asker, CacheSettings, Feed, FeedTokens, FileTokens, Index, Joining, Keeper, Order, Readers, Reading,
    Source, Split, Tokens, chosen_block_bytes, known_block_bytes,
};
use gradus_train::Mesh;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Bytes of what a rank says of its feed: the name of a keeper, and where other nodes find it.
const LONGEST_WORD: usize = 512;

/// Digits of two of the greatest numbers of 64 bits, and a blank.
const LONGEST_SIZES: usize = 41;

/// What a rank says of its feed.
#[derive(Default, Serialize, Deserialize)]
struct Word {
    /// By which the other ranks of its node find it; empty where it does not read for them.
    keeper: String,
    /// Where other nodes find it, if blocks are shared.
    place: Option<peers::Place>,
    /// Bytes in which it tells what it has on disk; none where it has nothing.
    holdings_bytes: usize,
}

/// Both parts of the data.
pub struct RunData {
    /// To learn from.
    pub train: Box<dyn Tokens>,
    /// To evaluate on, if anything is held out.
    pub held_out: Option<Box<dyn Tokens>>,
    /// Answer the other ranks of this node, where this one reads for them.
    pub keepers: Vec<Keeper>,
}

/// Where a rank stands among those that read.
pub struct Place<'a> {
    /// All ranks.
    pub communicator: &'a mut Communicator,
    /// Which of them share a node.
    pub nodes: &'a Nodes,
    /// How ranks reach each other; the node's name, where it has one that is not its host's.
    pub network: &'a NetworkSettings,
    /// Who this process is, if it is one of several.
    pub launch: Option<&'a Launch>,
}

impl RunData {
    /// Of what was found. All ranks call it together.
    ///
    /// # Errors
    /// What is wrong with the data, the bucket, or a setting of cache and order.
    pub fn open(found: &FoundData, settings: &Settings, place: &mut Place) -> Result<Self> {
        match found {
            FoundData::One { source: None, .. } => Self::of_folder(found, settings),
            _ => Self::of_addresses(found, settings, place),
        }
    }

    /// Of a folder: what is there is read where it is.
    fn of_folder(found: &FoundData, settings: &Settings) -> Result<Self> {
        let read = |split| -> Result<Option<Box<dyn Tokens>>> {
            let Some(order) = found.order(split, settings)? else { return Ok(None) };
            Ok(Some(Box::new(FileTokens::new(found.dataset().files(split)?, order))))
        };
        let train = read(Split::Train)?.ok_or_else(nothing_to_learn_from)?;
        Ok(Self { train, held_out: read(Split::HeldOut)?, keepers: Vec::new() })
    }

    fn of_addresses(found: &FoundData, settings: &Settings, place: &mut Place) -> Result<Self> {
        let mut opening = Opening { found, settings, place, keepers: Vec::new() };
        let train = &settings.train;
        let shares = settings.parallel.shares(&opening.mesh()?);
        let microbatch = train.microbatch_sequences(shares) as u64;
        let order = found.order(Split::Train, settings)?.ok_or_else(nothing_to_learn_from)?;
        let read = opening.tokens(Split::Train, order, (train.global_batch as u64, microbatch))?;
        let held_out = match found.order(Split::HeldOut, settings)? {
            None => None,
            Some(order) => {
                let samples = order.samples();
                Some(opening.tokens(Split::HeldOut, order, (samples, microbatch))?)
            }
        };
        Ok(Self { train: read, held_out, keepers: opening.keepers })
    }
}

fn nothing_to_learn_from() -> Error {
    Error::internal("the part to learn from has no order")
}

struct Opening<'a, 'p> {
    found: &'a FoundData,
    settings: &'a Settings,
    place: &'a mut Place<'p>,
    keepers: Vec<Keeper>,
}

impl Opening<'_, '_> {
    fn mesh(&self) -> Result<Mesh> {
        Mesh::from_settings(&self.settings.parallel, self.place.communicator.world_size())
    }

    /// The samples of one part, whose batches and microbatches have so many.
    fn tokens(
        &mut self,
        split: Split,
        order: Arc<dyn Order>,
        (batch, microbatch): (u64, u64),
    ) -> Result<Box<dyn Tokens>> {
        let rank = self.place.communicator.rank();
        let (node, place) = self.place.nodes.place(rank);
        let cache = cache_of_part(self.settings.cache.clone(), &self.place.network.node_id, split);
        let found = if place == 0 { Some(self.found.index(split)?) } else { None };
        let block_bytes = self.agreed_block_bytes(found.as_ref(), &cache)?;
        let cache = CacheSettings { block_bytes, ..cache };
        let (feed, word, held) = match found {
            Some(found) => {
                let readers = Readers::new(batch, microbatch, readers(&self.mesh()?, self.place.nodes), node);
                self.feed(found, order, readers, (self.end(split, batch), &cache))?
            }
            None => Default::default(),
        };
        let own = serde_json::to_string(&word)
            .map_err(|error| Error::internal("what a rank says of its feed is no JSON").with_source(error))?;
        let words = texts(self.place.communicator, &own, LONGEST_WORD)?;
        let words = words.iter().map(|word| understood(word)).collect::<Result<Vec<Word>>>()?;
        let lengths: Vec<usize> = words.iter().map(|word| word.holdings_bytes).collect();
        let held = holdings::exchange(self.place.communicator, &held, &lengths)?;
        if let Some(feed) = feed {
            meet(&feed, words, held)?;
            return Ok(Box::new(FeedTokens::own(feed, self.found.dataset())));
        }
        let keeper = self.place.nodes.members()[node][0];
        let asker = Asker::connect(&words[keeper].keeper, self.settings.stall_timeout()?)?;
        Ok(Box::new(FeedTokens::far(asker, self.found.dataset())))
    }

    /// Size of blocks, one for all nodes: they share blocks. What the first has that knows one, else what the first would
    /// choose that reads for its node. All ranks call it together.
    fn agreed_block_bytes(&mut self, found: Option<&(Index, Source)>, cache: &CacheSettings) -> Result<u64> {
        let own = found.map_or((0, 0), |(index, source)| {
            let nodes = if self.shares(source) { self.place.nodes.members().len() } else { 1 };
            let chosen = chosen_block_bytes(index, cache, self.settings.order.shuffle, nodes as u64);
            (known_block_bytes(cache).unwrap_or(0), chosen)
        });
        let told = texts(self.place.communicator, &format!("{} {}", own.0, own.1), LONGEST_SIZES)?;
        let sizes: Vec<(u64, u64)> = told.iter().filter_map(|text| sizes_in(text)).collect();
        let known = sizes.iter().map(|(known, _)| *known).find(|bytes| *bytes > 0);
        let chosen = || sizes.iter().map(|(_, chosen)| *chosen).find(|bytes| *bytes > 0);
        known.or_else(chosen).ok_or_else(|| Error::internal("no rank reads for its node"))
    }

    /// A feed for this node, what others are to know of it, and what it has on disk.
    fn feed(
        &mut self,
        (index, source): (Index, Source),
        order: Arc<dyn Order>,
        readers: Readers,
        (end, cache): (Option<u64>, &CacheSettings),
    ) -> Result<(Option<Arc<Feed>>, Word, Vec<u8>)> {
        let node = self.place.nodes.place(self.place.communicator.rank()).0;
        let reading = Reading { index: Arc::new(index), order, readers, end };
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let feed = match self.joining(node, &source)? {
            Some(joining) => Feed::open_among(reading, &source, cache, joining, clock)?,
            None => Feed::open(reading, &source, cache, clock)?,
        };
        let feed = Arc::new(feed);
        let place = feed.place().cloned();
        let held = place.as_ref().map(|_| holdings::bytes_of(&feed.holdings())).unwrap_or_default();
        let mut word = Word { keeper: String::new(), place, holdings_bytes: held.len() };
        if self.place.nodes.members()[node].len() > 1 {
            let keeper = Keeper::start(feed.clone())?;
            keeper.name().clone_into(&mut word.keeper);
            self.keepers.push(keeper);
        }
        Ok((Some(feed), word, held))
    }

    /// The position at which the run ends, if that is known.
    fn end(&self, split: Split, batch: u64) -> Option<u64> {
        let steps = self.settings.train.steps;
        (split == Split::Train && steps > 0).then(|| steps.saturating_mul(batch))
    }

    /// Whether nodes share blocks: files of a host are not fetched, so of them there is nothing to share.
    fn shares(&self, source: &Source) -> bool {
        self.place.nodes.members().len() > 1 && self.settings.cache.share && source.is_remote()
    }

    /// What this node needs to share blocks with others, if there are any and they are to.
    fn joining(&self, node: usize, source: &Source) -> Result<Option<Joining>> {
        let Place { network, launch, .. } = &*self.place;
        let Some(launch) = launch.filter(|_| self.shares(source)) else { return Ok(None) };
        let keys = Keys::new(&launch.secret, network, launch.rank)?;
        let listener = Listener::open(&keys, network, &launch.interfaces, &meeting_place(launch))?;
        Ok(Some(Joining {
            node: format!("node {node}"),
            rack: network.rack.clone(),
            keys,
            listener,
            settings: PeersSettings::default(),
        }))
    }
}

/// Two sizes, as one rank tells them to the others.
fn sizes_in(text: &str) -> Option<(u64, u64)> {
    let (known, chosen) = text.split_once(' ')?;
    Some((known.parse().ok()?, chosen.parse().ok()?))
}

/// Tells a feed of those of other nodes, if blocks are shared, and what each has `held` since an earlier run: so that homes keep it.
fn meet(feed: &Feed, words: Vec<Word>, held: Vec<Vec<u8>>) -> Result<()> {
    let blocks = feed.holdings().blocks();
    let node = |(word, held): (Word, Vec<u8>)| {
        word.place.map(|place| Ok((place, holdings::understood(held, blocks)?)))
    };
    let is_any = held.iter().any(|held| !held.is_empty());
    let nodes = words.into_iter().zip(held).filter_map(node).collect::<Result<Vec<_>>>()?;
    match nodes.is_empty() {
        true => Ok(()),
        // Homes that nothing was held against take no memory.
        false if !is_any => feed.meet(nodes.into_iter().map(|(place, _)| place).collect()),
        false => feed.meet_with_holdings(nodes),
    }
}

fn understood(word: &str) -> Result<Word> {
    serde_json::from_str(word)
        .map_err(|error| Error::internal("a rank said something else of its feed").with_source(error))
}

/// The cache of one part: nodes of one host and both parts have folders of their own.
pub fn cache_of_part(cache: CacheSettings, node_id: &str, split: Split) -> CacheSettings {
    if cache.folder.is_empty() {
        return cache;
    }
    let folder = Path::new(&cache.folder).join(node_id).join(split.name());
    CacheSettings { folder: folder.to_string_lossy().into_owned(), ..cache }
}

/// Of each data rank, the nodes on which it is read, and by how many ranks.
fn readers(mesh: &Mesh, nodes: &Nodes) -> Vec<Vec<(usize, u32)>> {
    let mut on = vec![Vec::new(); mesh.data_ranks()];
    for rank in 0..mesh.world_size() {
        let readers: &mut Vec<(usize, u32)> = &mut on[mesh.data_rank(rank)];
        let (node, _) = nodes.place(rank);
        match readers.iter_mut().find(|(known, _)| *known == node) {
            Some((_, count)) => *count += 1,
            None => readers.push((node, 1)),
        }
    }
    on
}
