//! The vote at the end of a step: what all ranks must know alike to take it or not, and how long each has waited.

use crate::axis::AxisRanks;
use gradus_collective::{Collective, Communicator, Reduction as How};
use gradus_error::Result;
use gradus_model::LossSum;

/// What a rank brings, and what all together have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ballot {
    pub loss: LossSum,
    /// Whether anybody is asked to stop.
    pub stop: bool,
    /// Sum of the squares of gradients.
    pub squares: f64,
}

/// Words of a ballot; behind them each rank has one of its own.
const BALLOT: usize = 4;

/// The vote among all ranks.
pub(super) struct Vote {
    ranks: AxisRanks,
    /// Of the last vote: the ballot, and each rank's time.
    words: Vec<f64>,
}

impl Vote {
    pub fn new(ranks: Communicator) -> Self {
        let words = vec![0.0; BALLOT + ranks.world_size()];
        Self { ranks: AxisRanks::new(ranks), words }
    }

    /// Adds up all ballots; every rank gets the same bits. Each rank's time travels with them: all others add zero to it.
    pub fn hold(&mut self, own: Ballot, waited_s: f64) -> Result<Ballot> {
        let Ballot { loss, stop, squares } = own;
        self.words.fill(0.0);
        self.words[..BALLOT].copy_from_slice(&[
            loss.nats,
            loss.targets as f64,
            f64::from(u8::from(stop)),
            squares,
        ]);
        self.words[BALLOT + self.ranks.rank()] = waited_s;
        self.ranks.run_in_place(&Collective::all_reduce(How::Sum), &mut self.words)?;
        let [nats, targets, stop, squares] = [0, 1, 2, 3].map(|word| self.words[word]);
        Ok(Ballot { loss: LossSum { nats, targets: targets as u64 }, stop: stop > 0.0, squares })
    }

    /// What each rank has brought as its time, by rank.
    pub fn waits(&self) -> &[f64] {
        &self.words[BALLOT..]
    }

    /// Time that compute has waited for the vote so far.
    pub fn waited_ns(&self) -> u64 {
        self.ranks.waited_ns()
    }
}
