//! A plan's steps, numbered through, and who waits for whom.

use crate::dependencies::dependencies;
use crate::plan::{Plan, Step};
use gradus_error::{Error, Result};

/// See the module. Steps are listed rank by rank.
pub(super) struct Graph<'a> {
    pub(super) steps: Vec<&'a Step>,
    pub(super) ranks: Vec<u32>,
    /// Places in their rank's list.
    pub(super) places: Vec<u32>,
    /// Earlier steps of the rank that a step follows.
    pub(super) follows: Vec<Vec<u32>>,
    /// The step before it in its stream.
    pub(super) before: Vec<Option<u32>>,
    /// The send that a receive takes from.
    pub(super) source: Vec<Option<u32>>,
    /// Who waits for it.
    pub(super) waiters: Vec<Vec<u32>>,
    /// For how many it waits.
    pub(super) waits: Vec<u32>,
}

/// From a rank to another.
type Stream = (u32, u32);

impl<'a> Graph<'a> {
    pub(super) fn new(plan: &'a Plan) -> Result<Self> {
        let steps: Vec<&Step> = plan.ranks.iter().flatten().collect();
        let mut graph = Self {
            ranks: Vec::with_capacity(steps.len()),
            places: Vec::with_capacity(steps.len()),
            follows: Vec::with_capacity(steps.len()),
            before: vec![None; steps.len()],
            source: vec![None; steps.len()],
            waiters: vec![Vec::new(); steps.len()],
            waits: vec![0; steps.len()],
            steps,
        };
        for (rank, steps) in plan.ranks.iter().enumerate() {
            let first = graph.ranks.len();
            let here = |follows: Vec<usize>| follows.into_iter().map(|step| (first + step) as u32).collect();
            graph.follows.extend(dependencies(steps).into_iter().map(here));
            graph.places.extend(0..steps.len() as u32);
            graph.ranks.extend(std::iter::repeat_n(rank as u32, steps.len()));
        }
        graph.link_streams()?;
        graph.count();
        Ok(graph)
    }

    /// Sends, or receives, by stream and in its order.
    fn in_streams(&self, sends: bool) -> Vec<(Stream, u32)> {
        let of = |step: usize| {
            let (rank, peer) = (self.ranks[step], self.steps[step].peer() as u32);
            (if sends { (rank, peer) } else { (peer, rank) }, step as u32)
        };
        let chosen = (0..self.steps.len()).filter(|step| self.steps[*step].sends() == sends);
        let mut streams: Vec<_> = chosen.map(of).collect();
        streams.sort_unstable();
        streams
    }

    fn link_streams(&mut self) -> Result<()> {
        let (sends, receives) = (self.in_streams(true), self.in_streams(false));
        let meet = |(send, receive): (&(Stream, u32), &(Stream, u32))| {
            let len = |step: u32| self.steps[step as usize].span().len;
            send.0 == receive.0 && len(send.1) == len(receive.1)
        };
        if sends.len() != receives.len() || !sends.iter().zip(&receives).all(meet) {
            return Err(Error::invalid("messages of the plan do not meet: check it before pricing it"));
        }
        for ((_, send), (_, receive)) in sends.iter().zip(&receives) {
            self.source[*receive as usize] = Some(*send);
        }
        for streams in [sends, receives] {
            for pair in streams.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                self.before[pair[1].1 as usize] = Some(pair[0].1);
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        for step in 0..self.steps.len() {
            let others = self.follows[step].iter().chain(&self.before[step]).chain(&self.source[step]);
            for other in others {
                self.waiters[*other as usize].push(step as u32);
                self.waits[step] += 1;
            }
        }
    }
}
