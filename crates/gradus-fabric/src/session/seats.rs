//! Who has which rank in a world.

use crate::membership::{Identity, Table};

/// Which member of an epoch has which rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As the coordinator deals them: survivors keep theirs, ranks of one host are neighbours.
    #[default]
    Dealt,
    /// By their names, shorter ones first, so that numbers at their ends need no padding: for groups whose members have
    /// been numbered by whoever started them.
    ByName,
}

impl Order {
    /// The rank of each member, by its place in the table.
    pub(super) fn ranks(self, table: &Table) -> Vec<usize> {
        let mut places: Vec<usize> = (0..table.members.len()).collect();
        if self == Self::ByName {
            places.sort_by_key(|place| {
                let name = &table.members[*place].name;
                (name.len(), name)
            });
        }
        let mut ranks = vec![0; places.len()];
        places.into_iter().enumerate().for_each(|(rank, place)| ranks[place] = rank);
        ranks
    }
}

/// The members by rank.
pub(super) fn members(table: &Table, ranks: &[usize]) -> Vec<Identity> {
    let mut seated: Vec<(usize, &Identity)> = ranks.iter().copied().zip(&table.members).collect();
    seated.sort_by_key(|(rank, _)| *rank);
    seated.into_iter().map(|(_, member)| member.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Epoch;

    fn table(names: &[&str]) -> Table {
        let member = |name: &&str| Identity {
            name: (*name).into(),
            incarnation: 1,
            host: "h".into(),
            address: "a".into(),
        };
        Table { epoch: Epoch(1), members: names.iter().map(member).collect() }
    }

    #[test]
    fn numbered_members_have_the_rank_of_their_number() {
        let table = table(&["rank-10", "rank-2", "rank-0"]);
        assert_eq!(Order::ByName.ranks(&table), [2, 1, 0]);
        assert_eq!(Order::Dealt.ranks(&table), [0, 1, 2]);
        let names =
            |order: Order| members(&table, &order.ranks(&table)).into_iter().map(|member| member.name);
        assert!(names(Order::ByName).eq(["rank-0", "rank-2", "rank-10"]));
        assert!(names(Order::Dealt).eq(["rank-10", "rank-2", "rank-0"]));
    }
}
