//! Which algorithm serves which collective: the one with the lowest predicted time.
//!
//! A choice is a pure function of the collective, the nodes and the figures of their links: equal on every rank that is
//! asked the same, and in every run. It can be recorded, and it holds what it was made from: every candidate with its
//! price. Where prices are closer to each other than predictions are good, the candidate that comes first in the list
//! wins: lists begin with what is robust.
//!
//! Figures are measured once, by [`Communicator::measure_links`](crate::Communicator::measure_links), and the same on all
//! ranks; or given; or [`LinkFigures::default`].

mod candidates;
mod exchange;
mod fit;
mod measure;
mod neighbour_fit;
mod neighbours;
pub(crate) mod pipe;
mod scheme;
mod trials;

pub(crate) use candidates::{rings, two_level};
#[cfg(feature = "fuzzing")]
pub(crate) use measure::decode as decode_profile;
pub(crate) use measure::{agree, measure, strange_nodes};
pub use scheme::{Neighbourhood, Scheme};
pub(crate) use scheme::{eligible, one_sided_candidates};

use crate::algorithm::{Algorithm, Nodes};
use crate::cost::{LinkFigures, Price, price};
use gradus_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Prices nearer to the lowest than this part of it count as equal.
const MARGIN: f64 = 0.03;

/// What is to be done with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The sum of all ranks', to all.
    AllReduce,
    /// The sum of all ranks', to one.
    Reduce {
        /// Who gets it.
        root: usize,
    },
    /// What one rank has, to all.
    Broadcast {
        /// Who has it.
        root: usize,
    },
    /// All wait for all; no buffer.
    Barrier,
}

/// A collective among ranks of nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What is to be done.
    pub purpose: Purpose,
    /// By whom.
    pub nodes: Nodes,
    /// Elements of the buffer.
    pub len: usize,
    /// Bytes of each.
    pub element_bytes: usize,
    /// Over what links.
    pub figures: LinkFigures,
    /// And among what neighbours, if ranks of one host are to reach each other's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Neighbourhood>,
}

/// An algorithm and what it would cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The algorithm, or the program.
    pub algorithm: Scheme,
    /// Its price.
    pub price: Price,
}

/// A choice, and what it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Whom it serves.
    pub case: Case,
    /// What was chosen.
    pub chosen: Candidate,
    /// All that was priced, the cheapest first.
    pub candidates: Vec<Candidate>,
    /// What has too many steps to run on a model, and no formula.
    pub unpriced: Vec<Algorithm>,
}

/// Chooses an algorithm. Takes milliseconds for worlds of tens of ranks, seconds for thousands.
///
/// # Errors
/// `Invalid` when a figure is none, the root is none of the world, or the buffer has more bytes than can be counted.
pub fn choose(case: Case) -> Result<Choice> {
    case.validate()?;
    let (mut candidates, mut unpriced) = (one_sided_candidates(&case)?, Vec::new());
    let programs = candidates.len();
    for algorithm in candidates::of(&case) {
        match price(&algorithm, &case.nodes, case.len, case.element_bytes, &case.figures)? {
            Some(price) => candidates.push(Candidate { algorithm: Scheme::Streams(algorithm), price }),
            None => unpriced.push(algorithm),
        }
    }
    let eligible = eligible(&candidates, programs);
    let chosen = first_of_the_cheapest(eligible, |candidate| candidate.price.seconds)
        .ok_or_else(|| Error::internal("every purpose has a candidate that is cheap to price"))?
        .clone();
    candidates.sort_by(|one, other| one.price.seconds.total_cmp(&other.price.seconds));
    Ok(Choice { case, chosen, candidates, unpriced })
}

/// The first that costs as little as any, or hardly more.
pub(crate) fn first_of_the_cheapest<T>(all: &[T], seconds: impl Fn(&T) -> f64) -> Option<&T> {
    let least = all.iter().map(&seconds).min_by(f64::total_cmp)?;
    all.iter().find(|one| seconds(one) <= least * (1.0 + MARGIN))
}

impl Case {
    fn validate(&self) -> Result<()> {
        self.figures.validate()?;
        self.neighbours.as_ref().map_or(Ok(()), |neighbours| neighbours.figures.validate())?;
        let world_size = self.nodes.world_size();
        if let Purpose::Reduce { root } | Purpose::Broadcast { root } = self.purpose
            && root >= world_size
        {
            return Err(Error::invalid(format!("root {root} is none of a world of {world_size}")));
        }
        // No algorithm sends the buffer more than 64 times for each rank: what all send can be counted in 64 bits.
        let most = (1usize << 58) / world_size;
        if self.element_bytes == 0
            || self.len.checked_mul(self.element_bytes).is_none_or(|bytes| bytes > most)
        {
            return Err(Error::invalid(format!(
                "{} elements of {} bytes among {world_size} ranks: choose 1 to {most} bytes",
                self.len, self.element_bytes
            )));
        }
        Ok(())
    }
}

impl Choice {
    /// Why, in a sentence.
    pub fn why(&self) -> String {
        let Candidate { algorithm, price } = &self.chosen;
        let others = || self.candidates.iter().filter(|other| other.algorithm != *algorithm);
        let Some(next) = others().next() else { return format!("{algorithm} is all there is") };
        let next_seconds = next.price.seconds;
        let part = if next_seconds > 0.0 { price.seconds / next_seconds } else { 1.0 };
        if part > 1.0 + MARGIN {
            return format!("{algorithm} reaches memory where it is, and {} would copy it", next.algorithm);
        }
        if part >= 1.0 - MARGIN {
            return format!(
                "{algorithm} and {} differ by less than predictions are good for, and the first is more robust",
                next.algorithm
            );
        }
        format!(
            "{algorithm} is predicted to take {:.0}% of the time of {}, the next",
            part * 100.0,
            next.algorithm
        )
    }
}

#[cfg(test)]
mod tests;
