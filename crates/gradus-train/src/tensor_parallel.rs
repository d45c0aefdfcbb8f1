//! Tensor and sequence parallelism (Shoeybi et al. 2019, section 3; Korthikanti et al. 2022, section 4.2): what the ranks that
//! share out each layer exchange in the midst of it. Compute waits for all of it.

use crate::axis::{AxisRanks, Failure};
use gradus_collective::{Collective, Memory, Reduction as How};
use gradus_compute::{Device, Matrix};
use gradus_error::Result;
use gradus_memory::Span;
use gradus_model::Combine;
use std::cell::RefCell;

/// The ranks of `tp`, and what passes ask of them.
pub(crate) struct TensorParallel {
    ranks: AxisRanks,
    failure: Failure,
    /// How rows are exchanged: made once for each shape, for a step allocates nothing.
    exchanges: RefCell<Vec<(Exchange, Collective)>>,
}

/// An exchange of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exchange {
    gathers: bool,
    rows: usize,
    /// Elements of a row, as they are sent.
    width: usize,
}

impl TensorParallel {
    pub fn new(ranks: AxisRanks) -> Self {
        Self { ranks, failure: Failure::default(), exchanges: RefCell::default() }
    }

    /// Ranks that share out each layer.
    pub fn size(&self) -> usize {
        self.ranks.size()
    }

    /// Time that compute has waited for them.
    pub fn waited_ns(&self) -> u64 {
        self.ranks.waited_ns()
    }

    /// Reports what has failed in a pass.
    pub fn finish(&self) -> Result<()> {
        self.failure.take()
    }

    /// See [`Seams::gather_rows`](gradus_model::Seams::gather_rows).
    pub fn gather_rows(&self, device: &dyn Device, all: Matrix, rows: usize, width: usize) {
        // Bits are only moved: rows of pairs go as words.
        let width = all.format.places(width);
        self.exchange(device, all.span, Exchange { gathers: true, rows, width });
    }

    /// See [`Seams::sum_rows`](gradus_model::Seams::sum_rows).
    pub fn sum_rows(&self, device: &dyn Device, partial: Span, rows: usize, width: usize) {
        self.exchange(device, partial, Exchange { gathers: false, rows, width });
    }

    /// See [`Seams::combine`](gradus_model::Seams::combine).
    pub fn combine(&self, device: &dyn Device, values: Span, how: Combine) {
        let how = match how {
            Combine::Sum => How::Sum,
            Combine::Max => How::Max,
        };
        self.run(device, values, &Collective::all_reduce(how));
    }

    /// Adds up what each rank has of sums over its own rows.
    pub fn sum(&self, device: &dyn Device, values: Span) {
        self.run(device, values, &Collective::all_reduce(How::Sum));
    }

    /// Brings what each rank has, as long on all of them, together: one after the other, by rank.
    pub fn gather(&self, device: &dyn Device, own: Span, all: Span) {
        self.failure.guard(|| {
            let memory = Memory::Apart { input: device.raw(own).into(), output: device.raw(all).into() };
            // SAFETY: as in `run`.
            let handle = unsafe { self.ranks.start(&Collective::all_gather(), memory) }?;
            self.ranks.wait(handle)
        });
    }

    fn exchange(&self, device: &dyn Device, span: Span, exchange: Exchange) {
        let mut known = self.exchanges.borrow_mut();
        let index = known.iter().position(|(other, _)| *other == exchange).unwrap_or_else(|| {
            known.push((exchange, exchange.collective(self.ranks.size())));
            known.len() - 1
        });
        self.run(device, span.part(0, exchange.rows * exchange.width), &known[index].1);
    }

    fn run(&self, device: &dyn Device, span: Span, what: &Collective) {
        self.failure.guard(|| {
            let memory = Memory::InPlace(device.raw(span).into());
            // SAFETY: it is waited for at once, and the pass that asks for it does nothing else meanwhile.
            let handle = unsafe { self.ranks.start(what, memory) }?;
            self.ranks.wait(handle)
        });
    }
}

impl Exchange {
    fn collective(self, ranks: usize) -> Collective {
        let own = |rank: usize| self.rows * (rank + 1) / ranks - self.rows * rank / ranks;
        let counts = (0..ranks).map(|rank| own(rank) * self.width).collect();
        match self.gathers {
            true => Collective::all_gather().with_counts(counts),
            false => Collective::reduce_scatter(How::Sum).with_counts(counts),
        }
    }
}
