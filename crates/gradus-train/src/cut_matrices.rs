//! Muon where matrices are cut among the ranks of `tp`: an update is of a whole matrix, of which each rank has a slice.
//!
//! Weights, gradients and moment of one matrix after the other are gathered into scratch, every rank of `tp` updates the whole
//! alike, and takes its slice back: the same arithmetic as on one rank, for as many times the work, and three gathers.
//! Ranks of `tp` own the same matrices, since shards of matrices do not depend on how a vocabulary is cut.

use crate::optimizer::MatrixPart;
use crate::tensor_parallel::TensorParallel;
use gradus_compute::{Device, Rows};
use gradus_error::Result;
use gradus_memory::{Layout, Span};
use gradus_model::Parameters;

/// Scratch for whole matrices.
pub(crate) struct CutMatrices {
    /// Slices as they come, then weights, gradients and moment as they belong.
    scratch: [Span; 4],
    rank: usize,
    ranks: usize,
}

/// Elements of the scratch for matrices of this layout, cut among so many ranks.
pub(crate) fn scratch_len(layout: &Layout, ranks: usize) -> usize {
    4 * (largest(layout) * ranks).next_multiple_of(Layout::ALIGNMENT)
}

fn largest(layout: &Layout) -> usize {
    let matrices = layout.tensors().iter().flat_map(|tensor| tensor.each_matrix());
    matrices.map(|(span, _)| span.len).max().unwrap_or(0)
}

impl CutMatrices {
    /// Takes the scratch.
    ///
    /// # Errors
    /// `Exhausted` when the device has no room.
    pub fn new(device: &dyn Device, layout: &Layout, (rank, ranks): (usize, usize)) -> Result<Self> {
        let len = (largest(layout) * ranks).next_multiple_of(Layout::ALIGNMENT);
        let all = device.allocate(4 * len)?;
        Ok(Self { scratch: [0, 1, 2, 3].map(|index| all.part(index * len, len)), rank, ranks })
    }

    /// Updates this rank's slice of a matrix as a part of the whole.
    pub fn update(
        &self,
        device: &dyn Device,
        tp: &TensorParallel,
        parameters: &Parameters,
        part: &MatrixPart,
    ) {
        let by_columns = parameters.is_cut_by_columns(part.span);
        let slice = Slice { rows: part.rows, columns: part.span.len / part.rows, by_columns };
        let own = [part.weights.span, part.gradients, part.moment];
        let whole: Vec<Span> = own
            .into_iter()
            .zip(&self.scratch[1..])
            .map(|(own, to)| self.gather(device, tp, slice, own, to.part(0, own.len * self.ranks)))
            .collect();
        let (rows, columns) = match by_columns {
            true => (slice.rows, slice.columns * self.ranks),
            false => (slice.rows * self.ranks, slice.columns),
        };
        device.muon((part.update)(rows, columns), whole[0].into(), whole[1], whole[2]);
        self.take_back(device, slice, whole[0], own[0]);
        self.take_back(device, slice, whole[2], own[2]);
    }

    /// Brings the slices of all ranks to where they belong in the whole.
    fn gather(&self, device: &dyn Device, tp: &TensorParallel, slice: Slice, own: Span, to: Span) -> Span {
        if !slice.by_columns {
            tp.gather(device, own, to);
            return to;
        }
        let came = self.scratch[0].part(0, to.len);
        tp.gather(device, own, came);
        for rank in 0..self.ranks {
            let from = came.part(rank * own.len, own.len);
            device.copy_rows(slice.rows, slice.columns, slice.all(from), self.columns(slice, to, rank));
        }
        to
    }

    fn take_back(&self, device: &dyn Device, slice: Slice, whole: Span, own: Span) {
        let from = match slice.by_columns {
            true => self.columns(slice, whole, self.rank),
            false => slice.all(whole.part(self.rank * own.len, own.len)),
        };
        device.copy_rows(slice.rows, slice.columns, from, slice.all(own));
    }

    /// A rank's columns of the whole.
    fn columns(&self, slice: Slice, whole: Span, rank: usize) -> Rows {
        Rows::columns(whole, slice.rows, slice.columns * self.ranks, rank * slice.columns, slice.columns)
    }
}

/// What each rank has of a matrix.
#[derive(Clone, Copy)]
struct Slice {
    rows: usize,
    columns: usize,
    /// Whether the whole has more columns, else more rows.
    by_columns: bool,
}

impl Slice {
    fn all(self, span: Span) -> Rows {
        Rows::columns(span, self.rows, self.columns, 0, self.columns)
    }
}
