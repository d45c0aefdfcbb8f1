//! Whether an algorithm that was read from a record can serve a world.

use super::{Algorithm, AllReduce, Barrier, Nodes, Spread};
use gradus_error::{Error, Result};

impl Algorithm {
    /// Refuses what cannot be carried out among `world_size` ranks: steps of anything else can be made without panic.
    ///
    /// # Errors
    /// `Invalid`, naming the parameter: nodes of another world, blocks of nothing, a root that is no rank.
    pub fn validate(&self, world_size: usize) -> Result<()> {
        match self {
            Self::AllReduce(all_reduce) | Self::Barrier(Barrier::Sum(all_reduce)) => {
                all_reduce.validate(world_size)
            }
            Self::Reduce { spread, root } | Self::Broadcast { spread, root } => {
                let missing = || Error::invalid(format!("root {root} is none of a world of {world_size}"));
                (*root < world_size).then_some(()).ok_or_else(missing)?;
                spread.validate(world_size)
            }
            Self::Barrier(Barrier::Dissemination) => Ok(()),
        }
    }
}

impl AllReduce {
    fn validate(&self, world_size: usize) -> Result<()> {
        match self {
            Self::RecursiveDoubling | Self::Direct | Self::HalvingDoubling => Ok(()),
            Self::Ring { block } | Self::DoubleTree { block } => filled(*block),
            Self::ThereAndBack(spread) => spread.validate(world_size),
            Self::TwoLevel { nodes, inside, across, .. } => {
                of_world(nodes, world_size)?;
                nodes.members().iter().try_for_each(|ranks| inside.validate(ranks.len()))?;
                across.validate(nodes.members().len())
            }
        }
    }
}

impl Spread {
    fn validate(&self, world_size: usize) -> Result<()> {
        match self {
            Self::Direct | Self::Binomial | Self::Chain => Ok(()),
            Self::DoubleTree { block } => filled(*block),
            Self::TwoLevel { nodes, inside, across } => {
                of_world(nodes, world_size)?;
                nodes.members().iter().try_for_each(|ranks| inside.validate(ranks.len()))?;
                across.validate(nodes.members().len())
            }
        }
    }
}

fn filled(block: usize) -> Result<()> {
    if block > 0 { Ok(()) } else { Err(Error::invalid("blocks of 0 elements: choose 1 at least")) }
}

fn of_world(nodes: &Nodes, world_size: usize) -> Result<()> {
    if nodes.world_size() == world_size {
        return Ok(());
    }
    let known = nodes.world_size();
    Err(Error::invalid(format!(
        "nodes of {known} ranks cannot serve {world_size}: choose anew for this world"
    )))
}
