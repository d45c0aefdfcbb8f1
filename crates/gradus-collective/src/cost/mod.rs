//! What a plan costs: seconds on given links, and bytes on each level of them.
//!
//! [`LinkFigures`] say what links and ranks are like: latency, bandwidth, overhead of a message, the rate of adding, and
//! what ranks of a node share; a [`LinkProfile`] has them by the size of the buffer. A plan's time comes from letting it run on a model of them, which any plan can do, or, where
//! it has too many steps for that (a ring of thousands of ranks has tens of millions), from the algorithm's formula.
//! [`NeighbourFigures`] say what it costs ranks of one host to work on each other's memory, and programs among neighbours
//! are let run on a model of that. All is pure: equal input, equal price, on every rank and in every run.

#[cfg(test)]
mod act_tests;
mod acts;
mod closed_form;
mod figures;
mod neighbours;
mod profile;
mod simulate;
#[cfg(test)]
mod tests;
mod traffic;

pub use acts::{Ground, price_of_programs};
pub use figures::{Link, LinkFigures};
pub use neighbours::{Curve, NeighbourFigures, Touches};
pub use profile::{LinkProfile, Rates};
pub use traffic::Traffic;

use crate::algorithm::{Algorithm, Nodes};
use crate::plan::Plan;
use gradus_error::Result;
use serde::{Deserialize, Serialize};

/// Steps of all ranks up to which a plan is let run: some seconds of work, some hundreds of MB.
const MOST_STEPS: usize = 2_000_000;

/// How a price was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By letting the plan run on a model of the links.
    Simulated,
    /// By the algorithm's formula.
    ClosedForm,
}

/// What a collective costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// Seconds from the start of all ranks to the end of the last.
    pub seconds: f64,
    /// How they were found.
    pub method: Method,
    /// What goes over the links.
    pub traffic: Traffic,
}

/// The price of `len` elements of `element_bytes` each; `None` where the plan is too long to run and the algorithm has no
/// formula.
///
/// # Errors
/// `Invalid` when a figure is none, or the plan is none: see [`price_of_plan`].
pub fn price(
    algorithm: &Algorithm,
    nodes: &Nodes,
    len: usize,
    element_bytes: usize,
    figures: &LinkFigures,
) -> Result<Option<Price>> {
    if let Some(plan) = short_plan(algorithm, nodes.world_size(), len) {
        return price_of_plan(&plan, nodes, element_bytes, figures).map(Some);
    }
    figures.validate()?;
    Ok(price_by_formula(algorithm, nodes, len, element_bytes, figures))
}

/// The price by the algorithm's formula alone: arithmetic, whatever the size of the world. `None` for those without.
pub fn price_by_formula(
    algorithm: &Algorithm,
    nodes: &Nodes,
    len: usize,
    element_bytes: usize,
    figures: &LinkFigures,
) -> Option<Price> {
    let bytes = len as f64 * element_bytes as f64;
    let seconds = closed_form::closed_form(algorithm, nodes, bytes, element_bytes, figures)?;
    let traffic = traffic::of_formula(algorithm, nodes, len, element_bytes);
    Some(Price { seconds, method: Method::ClosedForm, traffic })
}

/// The price of any plan, by letting it run.
///
/// # Errors
/// `Invalid` when a figure is none, ranks of the plan are not those of `nodes`, its messages do not meet, or its steps wait
/// for each other in a circle.
pub fn price_of_plan(
    plan: &Plan,
    nodes: &Nodes,
    element_bytes: usize,
    figures: &LinkFigures,
) -> Result<Price> {
    figures.validate()?;
    traffic::same_world(plan, nodes)?;
    let seconds = simulate::simulate(plan, nodes, element_bytes, figures)?;
    Ok(Price { seconds, method: Method::Simulated, traffic: traffic::of_plan(plan, nodes, element_bytes) })
}

/// The whole plan, unless it is too long.
fn short_plan(algorithm: &Algorithm, world_size: usize, len: usize) -> Option<Plan> {
    if let Algorithm::AllReduce(all_reduce) = algorithm
        && all_reduce.most_steps(world_size, len) > MOST_STEPS
    {
        return None;
    }
    let mut steps = 0;
    let mut ranks = Vec::with_capacity(world_size);
    for rank in 0..world_size {
        let of_rank = algorithm.steps(rank, world_size, len);
        steps += of_rank.len();
        if steps > MOST_STEPS {
            return None;
        }
        ranks.push(of_rank);
    }
    Some(Plan { len, ranks })
}
