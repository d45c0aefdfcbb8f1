//! A plan's steps, numbered through, and who waits for whom.

use crate::dependencies::dependencies;
use crate::plan::{Plan, Step};

/// See the module. Steps are listed rank by rank.
pub(crate) struct Graph<'a> {
    pub(crate) steps: Vec<&'a Step>,
    pub(crate) ranks: Vec<u32>,
    /// Places in their rank's list.
    pub(crate) places: Vec<u32>,
    /// Earlier steps of the rank that a step follows.
    pub(crate) follows: Vec<Vec<u32>>,
    /// The step before it in its stream.
    pub(crate) before: Vec<Option<u32>>,
    /// The send that a receive takes from.
    pub(crate) source: Vec<Option<u32>>,
    /// Who waits for it.
    pub(crate) waiters: Vec<Vec<u32>>,
    /// For how many it waits.
    pub(crate) waits: Vec<u32>,
}

/// Two ranks do not agree on the messages that one sends the other.
pub(crate) struct Unmatched {
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// From a rank to another.
type Stream = (u32, u32);

impl<'a> Graph<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Result<Self, Unmatched> {
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

    fn link_streams(&mut self) -> Result<(), Unmatched> {
        let (sends, receives) = (self.in_streams(true), self.in_streams(false));
        let span = |step: u32| self.steps[step as usize].span();
        if let Some((from, to)) = one_sided(&sends, &receives) {
            return Err(Unmatched { from: from as usize, to: to as usize });
        }
        for ((stream, send), (_, receive)) in sends.iter().zip(&receives) {
            if span(*send).len != span(*receive).len {
                return Err(Unmatched { from: stream.0 as usize, to: stream.1 as usize });
            }
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

/// The first stream that has more messages at one end than at the other.
fn one_sided(sends: &[(Stream, u32)], receives: &[(Stream, u32)]) -> Option<Stream> {
    let differ = sends.iter().zip(receives).find(|(send, receive)| send.0 != receive.0);
    let longer = if sends.len() > receives.len() { sends } else { receives };
    match differ {
        Some((send, receive)) => Some(send.0.min(receive.0)),
        None => longer.get(sends.len().min(receives.len())).map(|end| end.0),
    }
}
