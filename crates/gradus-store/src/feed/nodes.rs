//! A feed among those of other nodes: whose a block is, and how it is asked of them.
//!
//! A block that is another's is asked of its rack's home, if there is one, and of its home, once each, and comes from the
//! bucket whenever that fails. No more is asked of
//! a node at a time than it takes: the others wait here, each with its page, in the order in which they are used.
//!
//! Invariant: every fill that is taken in ends, by what a peer sends or by what the bucket says, whatever the peer does.

use super::depth::Depth;
use super::unit::Origin;
use crate::blocks::{Block, BlockMap};
use crate::cache::Fill;
use crate::peers::{Ask, Handle, Homes, PeersSettings, Route, Wanted};
use gradus_error::{Error, Result};
use gradus_fabric::service::{Keys, Listener};
use gradus_host::Clock;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a feed needs to be one among several.
pub struct Joining {
    /// This node's name, no other's.
    pub node: String,
    /// The rack that it stands in; those that name none stand in one.
    pub rack: String,
    /// What connections are proven with.
    pub keys: Keys,
    /// Where others come to.
    pub listener: Listener,
    /// Bounds of asking and serving.
    pub settings: PeersSettings,
}

/// What could not be had of a peer, and came from the bucket in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fallbacks {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whom this node is among, once they have met.
pub(super) struct Company {
    pub homes: Homes,
    /// This node's number among the members.
    pub own: usize,
    pub asking: Arc<Asking>,
}

impl Company {
    /// Whether a block's home is this node.
    pub fn is_home(&self, block: Block) -> bool {
        self.homes.home(block) == self.own
    }

    /// Whether this node asks a block's home on behalf of its rack.
    pub fn is_rack_home(&self, block: Block) -> bool {
        self.homes.route(self.own, block).rack_home == Some(self.own)
    }

    /// Asks those whom this node is to ask for a block, one after the other.
    pub fn ask(&self, fill: Fill, position: u64) {
        let Route { rack_home, home } = self.homes.route(self.own, fill.block());
        let whom = rack_home.filter(|node| ![self.own, home].contains(node)).into_iter().chain([home]);
        let whom = whom.map(|node| self.homes.members()[node].node.clone()).collect();
        self.asking.ask(Errand { whom, fill, position });
    }
}

/// Asks of all other nodes.
pub(super) struct Asking {
    handle: Handle,
    origin: Arc<dyn Origin>,
    map: Arc<BlockMap>,
    depth: Arc<Mutex<Depth>>,
    clock: Arc<dyn Clock>,
    /// Asks that one node may have at a time.
    at_once: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By name.
    nodes: BTreeMap<String, Node>,
    fallbacks: Fallbacks,
    ended: bool,
}

/// One other node.
#[derive(Default)]
struct Node {
    under_way: usize,
    waiting: VecDeque<Errand>,
    /// Somebody sends what waits, and will send what comes.
    is_attended: bool,
}

/// A block that is to be had.
struct Errand {
    /// Of whom; then of the bucket.
    whom: VecDeque<String>,
    fill: Fill,
    position: u64,
}

impl Asking {
    pub fn new(
        handle: Handle,
        (origin, map): (Arc<dyn Origin>, Arc<BlockMap>),
        (depth, clock): (Arc<Mutex<Depth>>, Arc<dyn Clock>),
        settings: &PeersSettings,
    ) -> Arc<Self> {
        // More would be refused, there or here.
        let unsent = usize::try_from(settings.unsent_bytes / map.block_bytes()).unwrap_or(usize::MAX);
        let at_once = settings.asks_per_peer.min(unsent.max(1));
        Arc::new(Self { handle, origin, map, depth, clock, at_once, state: Mutex::default() })
    }

    pub fn fallbacks(&self) -> Fallbacks {
        self.lock().fallbacks
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the next who is to be asked, as soon as it may be; the bucket if nobody is left.
    fn ask(self: &Arc<Self>, mut errand: Errand) {
        let Some(node) = errand.whom.pop_front() else { return self.fall_back(errand.fill) };
        self.lock().nodes.entry(node.clone()).or_default().waiting.push_back(errand);
        self.attend(&node);
    }

    /// Sends what waits for a node and may be sent. Asks may end while they are begun: whoever is here already goes on, so
    /// that they are never nested.
    fn attend(self: &Arc<Self>, name: &str) {
        let mut state = self.lock();
        if state.nodes.get_mut(name).is_none_or(|node| std::mem::replace(&mut node.is_attended, true)) {
            return;
        }
        while let Some(node) = state.nodes.get_mut(name) {
            let next = if node.under_way < self.at_once { node.waiting.pop_front() } else { None };
            let Some(errand) = next else {
                node.is_attended = false;
                return;
            };
            node.under_way += 1;
            drop(state);
            self.send(name, errand);
            state = self.lock();
        }
    }

    fn send(self: &Arc<Self>, name: &str, errand: Errand) {
        let (node, key, position) = (name.to_owned(), self.map.key_of(errand.fill.block()), errand.position);
        let (asking, begun) = (self.clone(), self.clock.now());
        let wanted = Box::new(Coming { errand: Some(errand), node: node.clone(), asking, begun });
        self.handle.ask(Ask { node, key, position, wanted });
    }

    fn over(self: &Arc<Self>, name: &str) {
        if let Some(node) = self.lock().nodes.get_mut(name) {
            node.under_way -= 1;
        }
        self.attend(name);
    }

    /// Nobody reads any more: what is under way is not fetched from the bucket.
    pub fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        let waiting: Vec<_> =
            state.nodes.values_mut().map(|node| std::mem::take(&mut node.waiting)).collect();
        drop(state);
        drop(waiting);
    }

    fn fall_back(&self, fill: Fill) {
        let mut state = self.lock();
        if state.ended {
            drop(state);
            return fill.fail(Error::closed("nobody reads any more"));
        }
        state.fallbacks.blocks += 1;
        state.fallbacks.bytes += fill.room() as u64;
        drop(state);
        self.origin.begin(vec![fill]);
    }
}

/// A block that a peer was asked for.
struct Coming {
    /// Taken when it is over.
    errand: Option<Errand>,
    node: String,
    asking: Arc<Asking>,
    begun: Duration,
}

impl Coming {
    fn end(&mut self, outcome: Result<()>) {
        let Some(errand) = self.errand.take() else { return };
        match outcome {
            Ok(()) => {
                let latency = self.asking.clock.now().saturating_sub(self.begun);
                self.asking.depth.lock().unwrap_or_else(PoisonError::into_inner).fetched(latency);
                errand.fill.complete();
            }
            Err(error) => {
                tracing::debug!("a block is to come from elsewhere: {error}");
                self.asking.ask(errand);
            }
        }
        self.asking.over(&self.node);
    }
}

impl Wanted for Coming {
    fn page(&mut self) -> &mut [u8] {
        self.errand.as_mut().map(|errand| errand.fill.space()).unwrap_or_default()
    }

    fn done(mut self: Box<Self>, outcome: Result<()>) {
        self.end(outcome);
    }
}

impl Drop for Coming {
    /// An ask that is dropped without a word has failed as well.
    fn drop(&mut self) {
        self.end(Err(Error::closed("an ask was dropped")));
    }
}
