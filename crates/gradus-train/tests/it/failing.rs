//! A rank fails in the midst of a step: every other rank hears of it as an error, wherever its own pass is just then.

use crate::splits::{Data, RATE, Split, learner, model, of, split};
use gradus_collective::{Communicator, run_as_threads};
use gradus_error::{Error, Result};
use gradus_model::{Batch, Family};
use gradus_train::{Accumulate, FirstWeights, Microbatches, ParallelSettings};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const MICROBATCHES: usize = 4;
const CULPRIT: &str = "this microbatch cannot be read";

/// Data of which the first rank that asks for one microbatch of the second step cannot have it.
struct Torn<'a> {
    data: Data,
    at: usize,
    is_found: &'a AtomicBool,
}

impl Microbatches for Torn<'_> {
    fn count(&self) -> usize {
        self.data.count()
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        if self.data.step == 1 && index == self.at && !self.is_found.swap(true, Relaxed) {
            return Err(Error::invalid(CULPRIT));
        }
        self.data.load(index)
    }
}

/// What a rank's second step comes to.
fn second_step(family: Family, split: &Split, mut data: Torn<'_>, communicator: Communicator) -> Error {
    let mut learner = learner(&model(family, true), split, communicator);
    learner.begin_with(&FirstWeights::Seed(3)).unwrap();
    learner.step(&mut data, RATE, false).unwrap();
    data.data.step = 1;
    learner.step(&mut data, RATE, false).unwrap_err()
}

#[test]
fn a_failing_rank_is_an_error_on_all_ranks() {
    let sharded = |zero, accumulate, split| ParallelSettings { zero, accumulate, ..split };
    let splits = [
        of(2, 1, 1, 1),
        of(1, 1, 2, 1),
        sharded(3, Accumulate::Scatter, of(1, 2, 2, 1)),
        sharded(2, Accumulate::Scatter, of(1, 2, 1, 2)),
        sharded(3, Accumulate::Full, of(1, 2, 1, 2)),
        sharded(3, Accumulate::Scatter, of(2, 2, 1, 2)),
    ];
    for parallel in splits {
        for (family, at) in [Family::Gpt2, Family::Llama].into_iter().zip([1, MICROBATCHES - 1]) {
            let split = split(parallel.clone(), MICROBATCHES);
            let is_found = AtomicBool::new(false);
            let rank = |communicator: Communicator| {
                let data = Torn { data: Data::new(MICROBATCHES), at, is_found: &is_found };
                second_step(family, &split, data, communicator)
            };
            let errors = run_as_threads(split.ranks(), Duration::from_secs(120), rank).unwrap();
            for (rank, error) in errors.iter().enumerate() {
                assert!(error.to_string().contains(CULPRIT), "{parallel:?}: rank {rank}: {error}");
            }
        }
    }
}
