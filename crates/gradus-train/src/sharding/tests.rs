use super::*;
use gradus_memory::LayoutBuilder;
use proptest::prelude::*;

/// Rows of matrices (none: a plain tensor), and columns.
type Shape = (Vec<usize>, usize);

/// A layout of units of tensors, and its units.
fn layout(units: &[Vec<Shape>]) -> (Layout, Vec<Span>) {
    let (mut builder, mut ends) = (LayoutBuilder::default(), vec![0]);
    for tensors in units {
        for (rows, columns) in tensors {
            let span = match rows.as_slice() {
                [] => builder.push("plain", &[*columns], false),
                rows => builder.push_matrices("matrices", rows, *columns),
            };
            ends.push(span.end().next_multiple_of(Layout::ALIGNMENT));
        }
    }
    let counts = units.iter().scan(0, |end, tensors| {
        *end += tensors.len();
        Some(*end)
    });
    let mut start = 0;
    let spans = counts.map(|count| {
        let span = Span::new(start, ends[count] - start);
        start = span.end();
        span
    });
    let spans = spans.collect();
    (builder.finish(), spans)
}

fn shape() -> impl Strategy<Value = Shape> {
    (prop::collection::vec(1..6usize, 0..4), 1..60usize)
}

fn units(most: usize) -> impl Strategy<Value = Vec<Vec<Shape>>> {
    prop::collection::vec(prop::collection::vec(shape(), 1..5), 1..most)
}

/// Every place where a unit may be cut, straight from the rule.
fn places(layout: &Layout, unit: Span, kind: OptimizerKind) -> Vec<usize> {
    let matrices: Vec<(Span, bool)> = layout
        .tensors()
        .iter()
        .filter(|_| kind == OptimizerKind::Muon)
        .flat_map(|tensor| tensor.each_matrix().map(|(span, _)| (span, span.end() == tensor.span().end())))
        .collect();
    let may = |place: &usize| {
        let at = unit.start + place;
        let whole = !matrices.iter().any(|(span, _)| span.start < at && at < span.end());
        let between = matrices.iter().any(|(span, last)| span.end() == at && !last);
        *place == unit.len || whole && (place.is_multiple_of(Layout::ALIGNMENT) || between)
    };
    (0..=unit.len).filter(may).collect()
}

/// The smallest that the largest of so many ranges between places can be, by trying all.
fn smallest_largest(places: &[usize], ranks: usize) -> usize {
    let end = places[places.len() - 1];
    let mut largest: Vec<usize> = places.iter().map(|place| end - place).collect();
    for _ in 1..ranks {
        largest = (0..places.len())
            .map(|from| {
                (from..places.len()).map(|to| (places[to] - places[from]).max(largest[to])).min().unwrap()
            })
            .collect();
    }
    largest[0]
}

fn kinds() -> impl Strategy<Value = OptimizerKind> {
    prop_oneof![Just(OptimizerKind::AdamW), Just(OptimizerKind::Muon)]
}

proptest! {
    #[test]
    fn every_element_has_one_owner_and_every_cut_its_place(units in units(4), ranks in 1..9usize, kind in kinds()) {
        let (layout, units) = layout(&units);
        let sharding = Sharding::new(&layout, &units, ranks, kind);
        prop_assert_eq!((sharding.ranks(), sharding.units()), (ranks, units.as_slice()));
        for (number, unit) in units.iter().enumerate() {
            let mut end = unit.start;
            let allowed = places(&layout, *unit, kind);
            for (rank, count) in sharding.counts(number).into_iter().enumerate() {
                let own = sharding.own(number, rank);
                prop_assert_eq!((own.start, own.len), (end, count));
                prop_assert!(allowed.contains(&(end - unit.start)));
                end = own.end();
            }
            prop_assert_eq!((end, sharding.cuts(number).len()), (unit.end(), ranks + 1));
            let optimum = smallest_largest(&allowed, ranks);
            prop_assert_eq!(sharding.largest(number), optimum, "of {:?}", allowed);
        }
        let owned: usize = (0..ranks).flat_map(|rank| sharding.owned(rank)).map(|span| span.len).sum();
        prop_assert_eq!(owned, layout.len());
    }

    #[test]
    fn ranges_go_where_the_sum_of_squares_grows_least(
        shares in prop::collection::vec(1..50usize, 0..5),
        owned in prop::collection::vec(0..50usize, 5..8),
    ) {
        let growth = |takes: &dyn Fn(usize) -> bool| {
            let takers = (0..owned.len()).filter(|rank| takes(*rank));
            takers.zip(&shares).map(|(rank, share)| (owned[rank] + share).pow(2) - owned[rank].pow(2)).sum::<usize>()
        };
        let found = takers(&shares, &owned);
        prop_assert_eq!(found.iter().filter(|takes| **takes).count(), shares.len());
        let all = (0..1u32 << owned.len()).filter(|set| set.count_ones() as usize == shares.len());
        let least = all.map(|set| growth(&|rank| set >> rank & 1 == 1)).min();
        prop_assert_eq!(Some(growth(&|rank| found[rank])), least);
    }
}

#[test]
fn adamw_is_cut_into_even_cache_lines() {
    let (layout, units) = layout(&[vec![(vec![], 100)], vec![(vec![8], 16)]]);
    let sharding = Sharding::new(&layout, &units, 4, OptimizerKind::AdamW);
    assert_eq!([sharding.counts(0), sharding.counts(1)], [vec![32, 32, 32, 16], vec![32; 4]]);
    assert_eq!(sharding.owned(3), [Span::new(96, 16), Span::new(208, 32)]);
}

#[test]
fn ranks_take_turns_where_matrices_are_few() {
    let block = vec![(vec![4], 16), (vec![4], 16)];
    let (layout, units) = layout(&vec![block; 6]);
    let sharding = Sharding::new(&layout, &units, 4, OptimizerKind::Muon);
    let totals = (0..4).map(|rank| sharding.owned(rank).iter().map(|span| span.len).sum::<usize>());
    assert_eq!(totals.collect::<Vec<_>>(), [192; 4], "three matrices each");
}

/// The first and the last stage of a pipeline have one table, behind other units: the gradients of both are added up shard by
/// shard.
#[test]
fn a_unit_without_matrices_is_cut_alike_whatever_comes_before_it() {
    let table: Vec<Shape> = vec![(vec![], 16 * 5)];
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        let cut = |before: Vec<Vec<Shape>>| {
            let number = before.len();
            let (layout, units) = layout(&[before, vec![table.clone()]].concat());
            Sharding::new(&layout, &units, 7, kind).counts(number)
        };
        let alone = cut(Vec::new());
        assert_eq!(alone.iter().sum::<usize>(), 16 * 5);
        assert_eq!(cut(vec![vec![(vec![3, 2], 30)], vec![(vec![], 40)]]), alone, "{kind:?}");
        assert_eq!(cut(vec![vec![(vec![], 100)], vec![(vec![1], 59), (vec![4], 7)]]), alone, "{kind:?}");
    }
}
