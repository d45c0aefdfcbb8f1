//! The ways to split a step among ranks that are measured: plain data.

use std::fmt;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Ranks that the layers are cut among.
    pub pp: usize,
    /// Ranks that replicate.
    pub dp: usize,
    /// Ranks that shard.
    pub fsdp: usize,
    /// Ranks that each layer is cut among.
    pub tp: usize,
    /// What is sharded.
    pub zero: u8,
    /// Of a pipeline.
    pub schedule: &'static str,
    /// Chunks of layers of each rank.
    pub stages_per_rank: usize,
}

/// One rank does it all.
const ALONE: Split = Split { pp: 1, dp: 1, fsdp: 1, tp: 1, zero: 3, schedule: "1f1b", stages_per_rank: 1 };

const fn replicas(dp: usize) -> Split {
    Split { dp, ..ALONE }
}

const fn shards(fsdp: usize, zero: u8) -> Split {
    Split { fsdp, zero, ..ALONE }
}

const fn stages(schedule: &'static str, stages_per_rank: usize) -> Split {
    Split { pp: 2, schedule, stages_per_rank, ..ALONE }
}

/// What takes turns with each other: on so many ranks, beginning with one rank and with replicas, which the others are held
/// against.
pub const GROUPS: [&[Split]; 2] = [
    &[
        ALONE,
        replicas(2),
        shards(2, 1),
        shards(2, 2),
        shards(2, 3),
        stages("gpipe", 1),
        stages("1f1b", 1),
        stages("interleaved", 2),
        stages("zero-bubble", 1),
        Split { tp: 2, ..ALONE },
    ],
    &[
        ALONE,
        replicas(4),
        shards(4, 3),
        Split { dp: 2, ..shards(2, 3) },
        Split { dp: 2, ..stages("1f1b", 1) },
        Split { tp: 2, ..stages("1f1b", 1) },
    ],
];

impl Split {
    /// Ranks of all axes together.
    pub fn ranks(&self) -> usize {
        self.pp * self.dp * self.fsdp * self.tp
    }

    /// Whether others are held against it: one rank, and replicas.
    pub fn is_reference(&self) -> bool {
        self.ranks() == self.dp
    }

    /// As `gradus bench train` wants it said.
    pub fn words(&self) -> Vec<String> {
        let Self { pp, dp, fsdp, tp, zero, schedule, stages_per_rank } = self;
        format!(
            "--ranks {} --pp {pp} --dp {dp} --fsdp {fsdp} --tp {tp} --zero {zero} --schedule {schedule} \
             --stages-per-rank {stages_per_rank}",
            self.ranks()
        )
        .split(' ')
        .map(str::to_owned)
        .collect()
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes = [("pp", self.pp), ("dp", self.dp), ("fsdp", self.fsdp), ("tp", self.tp)];
        let longer = axes.iter().filter(|(_, size)| *size > 1);
        let mesh: Vec<String> = longer.map(|(name, size)| format!("{name} {size}")).collect();
        let ranks = self.ranks();
        if ranks == 1 {
            return write!(f, "1 rank");
        }
        write!(f, "{ranks} ranks, {}", mesh.join(" x "))?;
        if self.fsdp > 1 {
            write!(f, ", zero {}", self.zero)?;
        }
        if self.pp > 1 { write!(f, ", {}", self.schedule) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_what_it_is_held_against() {
        for (group, ranks) in GROUPS.iter().zip([2, 4]) {
            assert_eq!(group[0], ALONE);
            assert_eq!(group[1], replicas(ranks));
            assert!(group[1..].iter().all(|split| split.ranks() == ranks));
            assert_eq!(group.iter().filter(|split| split.is_reference()).count(), 2);
        }
    }

    #[test]
    fn names_tell_all_apart_and_schedules_have_their_stages() {
        for group in GROUPS {
            let mut names: Vec<String> = group.iter().map(Split::to_string).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), group.len());
            assert!(
                group.iter().all(|split| (split.schedule == "interleaved") == (split.stages_per_rank > 1))
            );
        }
        assert_eq!(Split { dp: 2, ..shards(2, 3) }.to_string(), "4 ranks, dp 2 x fsdp 2, zero 3");
        assert_eq!(stages("gpipe", 1).to_string(), "2 ranks, pp 2, gpipe");
    }

    #[test]
    fn a_split_is_said_in_words() {
        let said = stages("interleaved", 2).words().join(" ");
        let expected =
            "--ranks 2 --pp 2 --dp 1 --fsdp 1 --tp 1 --zero 3 --schedule interleaved --stages-per-rank 2";
        assert_eq!(said, expected);
    }
}
