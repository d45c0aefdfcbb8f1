//! There is one order in which every rank starts the collectives that it takes part in, however late any of them is: without it
//! ranks may wait for each other in a circle.

use crate::splits::{Data, RATE, Split, learner, model, of, split};
use gradus_collective::flight::FlightLog;
use gradus_collective::{Communicator, run_as_threads};
use gradus_error::Result;
use gradus_host::{Clock, RealClock};
use gradus_model::{Batch, Family};
use gradus_train::pipeline::Kind as Schedule;
use gradus_train::{Accumulate, FirstWeights, GradientFormat, Microbatches, ParallelSettings};
use std::collections::BTreeMap;
use std::time::Duration;

const MICROBATCHES: usize = 4;

/// Data that come to every rank at another time.
struct Late {
    data: Data,
    rank: u64,
}

impl Microbatches for Late {
    fn count(&self) -> usize {
        self.data.count()
    }

    fn load(&mut self, index: usize) -> Result<Batch<'_>> {
        let pause = (self.rank * 7 + index as u64 * 5) % 11;
        RealClock::new().sleep(Duration::from_micros(300 * pause));
        self.data.load(index)
    }
}

/// What one rank started in two steps.
fn started(split: &Split, communicator: Communicator) -> FlightLog {
    let rank = communicator.rank() as u64;
    let mut learner = learner(&model(Family::Llama, true), split, communicator);
    learner.begin_with(&FirstWeights::Seed(3)).unwrap();
    let mut late = Late { data: Data::new(MICROBATCHES), rank };
    for step in 0..2 {
        late.data.step = step;
        learner.step(&mut late, RATE, false).unwrap();
    }
    learner.communicator().flight()
}

/// Operations that no order of all has a place for: each comes after another of them on some rank.
fn without_a_place(logs: &[FlightLog]) -> Vec<String> {
    let mut names = BTreeMap::new();
    let mut before: Vec<Vec<usize>> = Vec::new();
    for log in logs {
        let mut last = None;
        for operation in &log.operations {
            let key = (operation.group, operation.message, operation.sequence);
            let next = names.len();
            let (index, _) = *names.entry(key).or_insert_with(|| {
                before.push(Vec::new());
                (next, format!("{} of ranks {:?}", operation.what, operation.ranks))
            });
            before[index].extend(last.replace(index));
        }
    }
    let mut open: Vec<usize> = (0..before.len()).collect();
    let mut placed = vec![false; before.len()];
    loop {
        let (free, waiting): (Vec<_>, Vec<_>) =
            open.iter().partition(|index| before[**index].iter().all(|earlier| placed[*earlier]));
        free.iter().for_each(|index: &usize| placed[*index] = true);
        open = waiting;
        if free.is_empty() {
            return names.into_values().filter(|(index, _)| !placed[*index]).map(|(_, name)| name).collect();
        }
    }
}

fn assert_one_order(parallel: &ParallelSettings) {
    let split = split(parallel.clone(), MICROBATCHES);
    let logs =
        run_as_threads(split.ranks(), Duration::from_secs(120), |ranks| started(&split, ranks)).unwrap();
    assert!(logs.iter().all(|log| !log.operations.is_empty()));
    let lost = without_a_place(&logs);
    assert!(
        lost.is_empty(),
        "{parallel:?}: {} without a place: {:#?}",
        lost.len(),
        &lost[..lost.len().min(8)]
    );
}

#[test]
fn collectives_of_all_axes_have_one_order() {
    for gradients in [GradientFormat::F32, GradientFormat::Bf16] {
        for zero in [1, 2, 3] {
            for accumulate in [Accumulate::Scatter, Accumulate::Full] {
                for parallel in [of(2, 2, 1, 1), of(2, 2, 1, 2)] {
                    assert_one_order(&ParallelSettings { zero, accumulate, gradients, ..parallel });
                }
            }
        }
    }
}

#[test]
fn collectives_and_messages_have_one_order() {
    let kinds = [
        (Schedule::GPipe, 1, Accumulate::Scatter),
        (Schedule::OneForwardOneBackward, 1, Accumulate::Scatter),
        (Schedule::Interleaved, 2, Accumulate::Scatter),
        (Schedule::ZeroBubble, 1, Accumulate::Full),
    ];
    for (schedule, stages_per_rank, accumulate) in kinds {
        for parallel in [of(2, 2, 2, 1), of(2, 1, 2, 2), of(1, 2, 2, 2)] {
            let zero = if parallel.fsdp > 1 { 3 } else { 1 };
            assert_one_order(&ParallelSettings { schedule, stages_per_rank, zero, accumulate, ..parallel });
        }
    }
}
