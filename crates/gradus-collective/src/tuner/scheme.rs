//! How a collective is carried out: over streams, or among neighbours.

use super::{Candidate, Case, Purpose};
use crate::algorithm::Algorithm;
use crate::cost::{Ground, NeighbourFigures, Price, price_of_programs};
use crate::one_sided::{MOST_AT_ONCE, OneSided, Reach, Sum};
use crate::plan::Step;
use gradus_error::Result;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What carries out a collective.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scheme {
    /// An algorithm's steps, over streams.
    Streams(Algorithm),
    /// A program among ranks that reach each other's memory.
    Neighbours(OneSided),
}

impl Scheme {
    /// The program, if it is one.
    pub const fn one_sided(&self) -> Option<OneSided> {
        match self {
            Self::Streams(_) => None,
            Self::Neighbours(kind) => Some(*kind),
        }
    }

    /// The steps of one rank; none for a program.
    pub fn steps(&self, rank: usize, world_size: usize, len: usize) -> Vec<Step> {
        match self {
            Self::Streams(algorithm) => algorithm.steps(rank, world_size, len),
            Self::Neighbours(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Streams(algorithm) => algorithm.fmt(f),
            Self::Neighbours(kind) => kind.fmt(f),
        }
    }
}

/// Ranks of one host that reach each other's memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbourhood {
    /// What that costs.
    pub figures: NeighbourFigures,
    /// What they reach of the memory that is worked on.
    pub reach: Reach,
}

/// The programs that could serve, with their prices: none where ranks are of several hosts, or too many to work so, or no rate
/// is known.
///
/// # Errors
/// `Invalid` when a figure is none.
pub(crate) fn one_sided_candidates(case: &Case) -> Result<Vec<Candidate>> {
    let world_size = case.nodes.world_size();
    let Some(neighbours) = case.neighbours.as_ref().filter(|_| case.nodes.members().len() == 1) else {
        return Ok(Vec::new());
    };
    let bytes = case.len.saturating_mul(case.element_bytes);
    let kinds = match case.purpose {
        Purpose::AllReduce => OneSided::possible(world_size, bytes, neighbours.reach),
        Purpose::Barrier if (2..=MOST_AT_ONCE).contains(&world_size) => vec![OneSided::Barrier],
        _ => Vec::new(),
    };
    let mut candidates = Vec::new();
    for kind in kinds {
        if let Some(price) = price(kind, case, neighbours)? {
            candidates.push(Candidate { algorithm: Scheme::Neighbours(kind), price });
        }
    }
    Ok(candidates)
}

/// The candidates that may be chosen, of which so many programs stand first. What neighbours can do never goes over a stream,
/// which would copy it once more: where a price says otherwise, ranks were measured in different moods.
pub(crate) fn eligible(candidates: &[Candidate], programs: usize) -> &[Candidate] {
    if programs > 0 { &candidates[..programs] } else { candidates }
}

fn price(kind: OneSided, case: &Case, neighbours: &Neighbourhood) -> Result<Option<Price>> {
    let Case { len, element_bytes, ref nodes, .. } = *case;
    let sum = Sum { len, element_bytes, in_place: true, mean: false };
    let ground = Ground {
        element_bytes,
        buffer_bytes: len.saturating_mul(element_bytes) as u64,
        registered: neighbours.reach.registered,
    };
    price_of_programs(&kind.programs(nodes.world_size(), sum), ground, &neighbours.figures)
}
