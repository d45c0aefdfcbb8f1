//! What a rank reads: the samples of a run and those that are held out, in their orders, from wherever they lie.
//!
//! Prepared data are a folder of this host, or lie in a bucket. Of a bucket one rank of each node reads for all of them: it
//! has the feed and its cache, and the others ask it; feeds of several nodes share what they have fetched.

use crate::data_source::{DataSource, cache_for, known_block_bytes};
use crate::gathered::texts;
use crate::run_settings::Settings;
use gradus_collective::Communicator;
use gradus_collective::algorithm::Nodes;
use gradus_error::{Error, Result};
use gradus_fabric::service::{Keys, Listener, meeting_place};
use gradus_fabric::{Launch, NetworkSettings};
use gradus_host::{Clock, RealClock};
use gradus_store::index::Format;
use gradus_store::order::Selection;
use gradus_store::peers::{self, PeersSettings};
use gradus_store::{
    Asker, CacheSettings, Dataset, Feed, FeedTokens, FileTokens, Joining, Keeper, Order, Readers, Reading,
    Split, Tokens,
};
use gradus_train::{Mesh, evaluated_samples};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Bytes of what a rank says of its feed: the name of a keeper, and where other nodes find it.
const LONGEST_WORD: usize = 512;

/// Digits of the greatest number of 64 bits.
const LONGEST_NUMBER: usize = 20;

/// What a rank says of its feed.
#[derive(Default, Serialize, Deserialize)]
struct Word {
    /// By which the other ranks of its node find it; empty where it does not read for them.
    keeper: String,
    /// Where other nodes find it, if blocks are shared.
    place: Option<peers::Place>,
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
    /// Of a folder: what is there is read where it is.
    ///
    /// # Errors
    /// The system's failure to open a shard.
    pub fn of_folder(dataset: &Dataset, settings: &Settings) -> Result<Self> {
        let read = |split, order| -> Result<Box<dyn Tokens>> {
            Ok(Box::new(FileTokens::new(dataset.files(split)?, order)))
        };
        let held_out = evaluation_order(dataset, settings)?.map(|order| read(Split::HeldOut, order));
        let train = read(Split::Train, training_order(dataset, settings)?)?;
        Ok(Self { train, held_out: held_out.transpose()?, keepers: Vec::new() })
    }

    /// Of a bucket. All ranks call it together.
    ///
    /// # Errors
    /// What is wrong with the data, the bucket, or a setting of cache and order.
    pub fn of_bucket(
        source: &DataSource,
        dataset: &Dataset,
        settings: &Settings,
        place: &mut Place,
    ) -> Result<Self> {
        let mut opening = Opening { source, dataset, settings, place, keepers: Vec::new() };
        let train = &settings.train;
        let shares = settings.parallel.shares(&opening.mesh()?);
        let microbatch = train.microbatch_sequences(shares) as u64;
        let order = training_order(dataset, settings)?;
        let read = opening.tokens(Split::Train, order, (train.global_batch as u64, microbatch))?;
        let held_out = match evaluation_order(dataset, settings)? {
            None => None,
            Some(order) => {
                let samples = order.samples();
                Some(opening.tokens(Split::HeldOut, order, (samples, microbatch))?)
            }
        };
        Ok(Self { train: read, held_out, keepers: opening.keepers })
    }
}

struct Opening<'a, 'p> {
    source: &'a DataSource,
    dataset: &'a Dataset,
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
        let block_bytes = self.agreed_block_bytes((place == 0).then_some(&cache))?;
        let opened = match place {
            0 => Some(self.feed(
                split,
                order,
                (batch, microbatch),
                (node, CacheSettings { block_bytes, ..cache }),
            )?),
            _ => None,
        };
        let own = opened.as_ref().map(|(_, word)| word);
        let own = serde_json::to_string(&own.unwrap_or(&Word::default()))
            .map_err(|error| Error::internal("what a rank says of its feed is no JSON").with_source(error))?;
        let words = texts(self.place.communicator, &own, LONGEST_WORD)?;
        let words = words.iter().map(|word| understood(word)).collect::<Result<Vec<Word>>>()?;
        if let Some((feed, _)) = opened {
            let places: Vec<_> = words.into_iter().filter_map(|word| word.place).collect();
            if !places.is_empty() {
                feed.meet(places)?;
            }
            return Ok(Box::new(FeedTokens::own(feed, self.dataset)));
        }
        let keeper = self.place.nodes.members()[node][0];
        let asker = Asker::connect(&words[keeper].keeper, self.settings.stall_timeout()?)?;
        Ok(Box::new(FeedTokens::far(asker, self.dataset)))
    }

    /// Size of blocks where a node knows it, which is one for all: they share blocks. What the first has that knows one; 0 if
    /// it is to be chosen. Who reads for its node brings its cache. All ranks call it together.
    fn agreed_block_bytes(&mut self, cache: Option<&CacheSettings>) -> Result<u64> {
        let own = cache.and_then(known_block_bytes).unwrap_or(0).to_string();
        let told = texts(self.place.communicator, &own, LONGEST_NUMBER)?;
        Ok(told.iter().filter_map(|bytes| bytes.parse().ok()).find(|bytes| *bytes > 0).unwrap_or(0))
    }

    /// This node's feed, and what others are to know of it.
    fn feed(
        &mut self,
        split: Split,
        order: Arc<dyn Order>,
        (batch, microbatch): (u64, u64),
        (node, cache): (usize, CacheSettings),
    ) -> Result<(Arc<Feed>, Word)> {
        let index = Arc::new(self.source.index(split)?);
        if !matches!(index.format(), Format::Tokens { .. }) {
            return Err(Error::invalid(format!(
                "{} is described as {}, not as prepared tokens: remove the index that lies there",
                self.source.address(),
                index.format().title()
            )));
        }
        let cache = cache_for(&index, cache, self.settings.order.shuffle);
        let mesh = self.mesh()?;
        let readers = Readers::new(batch, microbatch, readers(&mesh, self.place.nodes), node);
        let reading = Reading { index, order, readers, end: self.end(split, batch) };
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let source = self.source.source();
        let feed = match self.joining(node)? {
            Some(joining) => Feed::open_among(reading, &source, &cache, joining, clock)?,
            None => Feed::open(reading, &source, &cache, clock)?,
        };
        let feed = Arc::new(feed);
        let mut word = Word { keeper: String::new(), place: feed.place().cloned() };
        if self.place.nodes.members()[node].len() > 1 {
            let keeper = Keeper::start(feed.clone())?;
            keeper.name().clone_into(&mut word.keeper);
            self.keepers.push(keeper);
        }
        Ok((feed, word))
    }

    /// The position at which the run ends, if that is known.
    fn end(&self, split: Split, batch: u64) -> Option<u64> {
        let steps = self.settings.train.steps;
        (split == Split::Train && steps > 0).then(|| steps.saturating_mul(batch))
    }

    /// What this node needs to share blocks with others, if there are any and they are to.
    fn joining(&self, node: usize) -> Result<Option<Joining>> {
        let Place { nodes, network, launch, .. } = &*self.place;
        // Files of a host are not fetched, so there is nothing to share.
        let shares = nodes.members().len() > 1 && self.settings.cache.share && self.source.is_remote();
        let Some(launch) = launch.filter(|_| shares) else { return Ok(None) };
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

/// What a run reads of one part of prepared data, if it reads anything.
///
/// # Errors
/// `Invalid` for settings of the order that cannot be.
pub fn order_of_part(dataset: &Dataset, settings: &Settings, split: Split) -> Result<Option<Arc<dyn Order>>> {
    match split {
        Split::Train => training_order(dataset, settings).map(Some),
        Split::HeldOut => evaluation_order(dataset, settings),
    }
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

fn training_order(dataset: &Dataset, settings: &Settings) -> Result<Arc<dyn Order>> {
    let samples = dataset.split(Split::Train).samples();
    Ok(settings.order.order(settings.run.seed, samples)?.into())
}

/// What evaluations read, if there is anything.
fn evaluation_order(dataset: &Dataset, settings: &Settings) -> Result<Option<Arc<dyn Order>>> {
    let all = dataset.split(Split::HeldOut).samples();
    let chosen = evaluated_samples(all, settings.train.evaluate_tokens, settings.sequence_length()?);
    Ok((all > 0).then(|| Arc::new(Selection::new(chosen, all)) as Arc<dyn Order>))
}
