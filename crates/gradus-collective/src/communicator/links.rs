//! What a communicator knows of the links between its ranks, and chooses algorithms by.

use super::Communicator;
use crate::algorithm::Nodes;
use crate::choose::Links;
use crate::collective::Collective;
use crate::cost::LinkProfile;
use crate::element::{Element, Reduction};
use crate::memory::{Buffer, Memory};
use crate::select::{Neighbourhood, Way, may_use_registered};
use crate::tuner::{self, Choice};
use gradus_error::{Error, Result};
use std::sync::PoisonError;
use std::time::Duration;

impl Communicator {
    /// Measures the links between all ranks of the transport, and chooses algorithms by that from now on, in all groups.
    /// `nodes` says which ranks share a node. All ranks call this, on the communicator of all, with nothing in flight; it
    /// takes a second or so. Returns what rank 0 has found, the same bits on every rank:
    /// whoever wants the same choices again keeps it and calls [`Communicator::use_links`]. Blocks.
    ///
    /// # Errors
    /// `Invalid` when `nodes` are of another world, or something is in flight, or the times measured are those of no links;
    /// those of [`Communicator::wait`].
    pub fn measure_links(&mut self, nodes: &Nodes) -> Result<LinkProfile> {
        self.check_quiet()?;
        let profile = tuner::measure(self, nodes)?;
        self.know(profile, nodes)
    }

    /// Chooses algorithms by what rank 0 knows of links; what others give does not count. All ranks call this, as
    /// [`Communicator::measure_links`]. Blocks.
    ///
    /// # Errors
    /// `Invalid` when the profile is of no links, or `nodes` are of another world, or something is in flight; those of
    /// [`Communicator::wait`].
    pub fn use_links(&mut self, profile: &LinkProfile, nodes: &Nodes) -> Result<LinkProfile> {
        self.check_quiet()?;
        if nodes.world_size() != self.world_size() {
            return Err(tuner::strange_nodes(nodes, self.world_size()));
        }
        let ours = (self.rank() == 0).then(|| profile.validate().map(|()| profile.clone())).transpose();
        let profile = tuner::agree(self, ours)?;
        self.know(profile, nodes)
    }

    fn know(&mut self, profile: LinkProfile, nodes: &Nodes) -> Result<LinkProfile> {
        let several = nodes.members().len() > 1;
        let links = Links { profile: profile.clone(), nodes: several.then(|| nodes.clone()) };
        self.core().know(links);
        Ok(profile)
    }

    fn check_quiet(&self) -> Result<()> {
        let core = self.core();
        if core.executor.is_idle() && self.world_size() == core.executor.transport().world_size() {
            return Ok(());
        }
        Err(Error::invalid(
            "links are learnt by all ranks of a transport at once, while nothing is in flight",
        ))
    }

    /// Which way `len` elements are summed, what it is predicted to take, and why it was chosen; `registered` says whether
    /// they lie in memory of the [heap](Communicator::heap). `None` where nothing was measured and ranks of one host sum
    /// from memory to memory: that is chosen by size then.
    ///
    /// # Panics
    /// If the buffer has more bytes than can be counted.
    pub fn choice_for_all_reduce(
        &mut self,
        len: usize,
        element: Element,
        registered: bool,
    ) -> Option<Choice> {
        assert!(len.checked_mul(element.bytes()).is_some(), "bytes can be counted");
        let memory = Memory::InPlace(Buffer { start: std::ptr::null_mut(), len, element });
        let shape = Collective::all_reduce(Reduction::Sum).shape(self.rank(), self.world_size(), &memory);
        let mut shape = shape.expect("any length can be summed in place");
        shape.registered = registered && may_use_registered(&shape);
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        shape.layout = core.layout(&mut self.group);
        core.choice(&shape)
    }

    /// What ranks of one host know of each other, where all are.
    pub(crate) fn surroundings(&self) -> Option<Neighbourhood> {
        self.core().neighbourhood()
    }

    /// Has sums of `data` carried out another way, until links are known.
    ///
    /// # Errors
    /// Those of [`Communicator::start`].
    pub(crate) fn stand_in_for_all_reduce(&mut self, data: &mut [f32], way: Way) -> Result<()> {
        let memory = Memory::InPlace(Buffer::of(data));
        let mut shape =
            Collective::all_reduce(Reduction::Sum).shape(self.rank(), self.world_size(), &memory)?;
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        shape.layout = core.layout(&mut self.group);
        core.stand_in(shape, &memory, way);
        Ok(())
    }

    /// The time by which waits are measured.
    pub(crate) fn now(&self) -> Duration {
        self.core().clock.now()
    }
}
