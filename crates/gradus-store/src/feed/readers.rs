//! Who reads which position.
//!
//! What: positions are consumed batch by batch; a batch is cut into microbatches, which are shared out over the data ranks
//! in runs as even as can be; the ranks that hold one model between them read the same ones, and lie on one node or several.
//! A pure function of these sizes, so that every node knows what every other reads, and when.

/// How the positions of a run are dealt to nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readers {
    batch: u64,
    microbatch: u64,
    /// Of each data rank: the nodes on which it is read, and by how many.
    on: Vec<Vec<(usize, u32)>>,
    own: usize,
}

impl Readers {
    /// One reader of everything, on the only node.
    pub fn alone() -> Self {
        Self::new(1, 1, vec![vec![(0, 1)]], 0)
    }

    /// Batches of `batch` positions in microbatches of `microbatch`, whose data ranks are read on the nodes that `on` lists
    /// for each, with the number of readers there; this is node `own`.
    ///
    /// # Panics
    /// If one of the sizes is 0, or there is no data rank: settings are checked before.
    pub fn new(batch: u64, microbatch: u64, on: Vec<Vec<(usize, u32)>>, own: usize) -> Self {
        assert!(batch > 0 && microbatch > 0 && !on.is_empty(), "batches of {batch} in {microbatch}");
        Self { batch, microbatch, on, own }
    }

    /// This node's number.
    pub fn own(&self) -> usize {
        self.own
    }

    /// The nodes on which a position is read, and by how many.
    pub fn of(&self, position: u64) -> &[(usize, u32)] {
        &self.on[self.data_rank(position)]
    }

    /// How many read a position on this node.
    pub fn here(&self, position: u64) -> u32 {
        self.of(position).iter().find(|(node, _)| *node == self.own).map_or(0, |(_, readers)| *readers)
    }

    /// On how many other nodes a position is read.
    pub(super) fn elsewhere(&self, position: u64) -> usize {
        self.of(position).iter().filter(|(node, readers)| *node != self.own && *readers > 0).count()
    }

    /// Whether any position is read on this node.
    pub(super) fn read_here(&self) -> bool {
        self.on.iter().flatten().any(|(node, readers)| *node == self.own && *readers > 0)
    }

    /// Positions of a batch.
    pub(super) fn batch(&self) -> u64 {
        self.batch
    }

    /// Which data rank learns from a position. Of `m` microbatches rank `r` of `w` has those from `m r / w` on (rounded
    /// down), so microbatch `i` is the greatest `r`'s with `m r < (i + 1) w`.
    fn data_rank(&self, position: u64) -> usize {
        let microbatches = u128::from(self.batch.div_ceil(self.microbatch));
        let microbatch = u128::from(position % self.batch / self.microbatch);
        let ranks = self.on.len() as u128;
        (((microbatch + 1) * ranks - 1) / microbatches) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// As training shares microbatches out.
        #[test]
        fn each_position_is_its_data_ranks(batch in 1u64..60, microbatch in 1u64..8, ranks in 1usize..9, step in 0u64..4) {
            let readers = Readers::new(batch, microbatch, (0..ranks).map(|rank| vec![(rank, 1)]).collect(), 0);
            let microbatches = batch.div_ceil(microbatch) as usize;
            for rank in 0..ranks {
                for index in microbatches * rank / ranks..microbatches * (rank + 1) / ranks {
                    let first = index as u64 * microbatch;
                    for position in first..(first + microbatch).min(batch) {
                        prop_assert_eq!(readers.of(step * batch + position), &[(rank, 1)]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_position_may_be_read_on_several_nodes_or_elsewhere() {
        let readers = Readers::new(4, 1, vec![vec![(0, 1), (1, 2)], vec![(2, 3)]], 1);
        assert_eq!([0, 1, 2, 3, 4].map(|position| readers.here(position)), [2, 2, 0, 0, 2]);
        assert_eq!(Readers::alone().here(7), 1);
    }
}
