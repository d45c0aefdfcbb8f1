//! A feed's life among those of other nodes: it is reached, meets them, and asks and serves until it is dropped.

use super::Core;
use super::nodes::{Asking, Company, Joining};
use super::serving::Server;
use crate::peers::{Counters, Homes, Member, Peers, Place};
use gradus_error::{Error, Result};
use std::sync::Arc;

/// Batches that the walk may be ahead of readers at least, however little a window holds.
const LEAST_BATCHES: u64 = 4;

/// See the module.
pub(super) struct Society {
    peers: Peers,
    pub server: Server,
    pub asking: Arc<Asking>,
    pub place: Place,
}

impl Society {
    /// Begins to listen to others.
    ///
    /// # Errors
    /// `Invalid` where nothing is shared, or for impossible settings; the system's.
    pub fn found(core: &Arc<Core>, joining: Joining) -> Result<Self> {
        let Joining { node, rack, keys, listener, settings } = joining;
        let Some(tier) = &core.tier else {
            return Err(Error::invalid(
                "files of this host are read where they are: nodes share what comes from a bucket",
            ));
        };
        let member = Member { node, rack, capacity_blocks: tier.capacity_blocks() };
        let place = Place { member: member.clone(), address: listener.address() };
        let (server, door) = Server::start(core.clone())?;
        let peers = Peers::start(member, &core.plan.map.name(), keys, listener, door, &settings)?;
        let asking = Asking::new(
            peers.handle(),
            (core.origin.clone(), core.plan.map.clone()),
            (core.depth.clone(), core.clock.clone()),
            &settings,
        );
        Ok(Self { peers, server, asking, place })
    }

    /// Is among these from now on.
    ///
    /// # Errors
    /// `Invalid` when it is not.
    pub fn meet(&self, core: &Core, homes: Homes, places: Vec<Place>) -> Result<()> {
        let node = &self.place.member.node;
        let own = homes.find(node).ok_or_else(|| {
            Error::invalid(format!("node {node} is to share blocks with others, but is not among them"))
        })?;
        if let Some(tier) = &core.tier {
            tier.leave_to_others(|block| homes.home(block) == own);
        }
        // As many positions as fill the windows of all, were they as large as this one's.
        let window = core.depth().most() / (core.plan.map.bytes() / core.plan.index.samples().max(1)).max(1);
        let batch = core.plan.readers.batch();
        let reach = (window + LEAST_BATCHES).saturating_mul(homes.members().len() as u64);
        let reach = reach.max(batch.saturating_mul(LEAST_BATCHES));
        self.peers.update(places);
        core.walk().join(Company { homes, own, asking: self.asking.clone() }, reach, &core.plan.readers);
        Ok(())
    }

    pub fn counters(&self) -> Counters {
        self.peers.counters()
    }
}

impl Drop for Society {
    /// Asking ends first, then serving.
    fn drop(&mut self) {
        self.asking.end();
    }
}
