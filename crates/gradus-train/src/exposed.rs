//! Exposed communication: time in which compute had to wait for other ranks, by the axis that it waited for.

use crate::mesh::{Axis, Mesh};
use serde::{Deserialize, Serialize};
use std::ops::{Add, AddAssign};

/// Time that a rank's compute has waited for others, by the axis that it waited for, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exposed {
    /// For other stages.
    pub pp: f64,
    /// For replicas.
    pub dp: f64,
    /// For shards.
    pub fsdp: f64,
    /// For other slices of a layer.
    pub tp: f64,
    /// For all, in the vote.
    pub vote: f64,
}

impl Exposed {
    /// For whomever.
    pub fn total(&self) -> f64 {
        self.pp + self.dp + self.fsdp + self.tp + self.vote
    }

    /// What has come since an earlier reading; clocks that are measured ever better may seem to go back.
    pub fn since(&self, before: &Self) -> Self {
        self.zip(before, |now, before| (now - before).max(0.0))
    }

    /// The axes along which there is more than one rank, from the outermost, and the vote; nothing for a single rank.
    pub fn along(&self, mesh: &Mesh) -> impl Iterator<Item = (&'static str, f64)> + use<> {
        let times = [self.pp, self.dp, self.fsdp, self.tp];
        let mesh = *mesh;
        let axes = Axis::ALL.into_iter().zip(times).filter(move |(axis, _)| mesh.size(*axis) > 1);
        let vote = (mesh.world_size() > 1).then_some(("vote", self.vote));
        axes.map(|(axis, time)| (axis.name(), time)).chain(vote)
    }

    fn zip(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            pp: of(self.pp, other.pp),
            dp: of(self.dp, other.dp),
            fsdp: of(self.fsdp, other.fsdp),
            tp: of(self.tp, other.tp),
            vote: of(self.vote, other.vote),
        }
    }
}

impl AddAssign for Exposed {
    fn add_assign(&mut self, more: Self) {
        *self = self.zip(&more, Add::add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_only_axes_that_there_are_are_shown() {
        let before = Exposed { pp: 1.0, vote: 0.5, ..Exposed::default() };
        let mut sum = Exposed { pp: 3.0, dp: 0.25, vote: 0.25, ..Exposed::default() }.since(&before);
        assert_eq!(sum, Exposed { pp: 2.0, dp: 0.25, ..Exposed::default() });
        sum += before;
        assert_eq!(sum.total(), 3.75);
        let shown: Vec<_> = sum.along(&Mesh { pp: 2, fsdp: 2, ..Mesh::default() }).collect();
        assert_eq!(shown, [("pp", 3.0), ("fsdp", 0.0), ("vote", 0.5)]);
        assert_eq!(sum.along(&Mesh::default()).count(), 0);
    }
}
