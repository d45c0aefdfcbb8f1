//! Programs among neighbours against what can be reckoned by hand.

use super::*;
use crate::one_sided::{Act, OneSided, Program, Reach, Sum};
use gradus_error::Kind;
use proptest::prelude::*;

const STAGED: Reach = Reach { registered: false, reads_private: false };

fn sum(len: usize) -> Sum {
    Sum { len, element_bytes: 4, in_place: true, mean: false }
}

fn ground(len: usize, registered: bool) -> Ground {
    Ground { element_bytes: 4, buffer_bytes: 4 * len as u64, registered }
}

fn seconds(kind: OneSided, ranks: usize, len: usize, figures: &NeighbourFigures) -> f64 {
    let ground = ground(len, kind == OneSided::Push);
    price_of_programs(&kind.programs(ranks, sum(len)), ground, figures).unwrap().unwrap().seconds
}

fn is_near(got: f64, want: f64) -> bool {
    (got / want - 1.0).abs() < 1e-9
}

/// Rates that do not depend on the size: own 50, staged 20 and registered 25 GB/s each way.
fn even() -> NeighbourFigures {
    let mut figures = NeighbourFigures::default();
    let touches = &mut figures.bytes_per_s;
    touches.own = Curve::uniform(50e9);
    touches.staged_combined = Curve::uniform(20e9);
    touches.registered_combined = Curve::uniform(25e9);
    touches.registered_given = Curve::uniform(25e9);
    figures
}

#[test]
fn two_ranks_cost_their_formula() {
    let (figures, bytes) = (even(), 4.0 * 4096.0);
    let hop = (2.0 * figures.signal_us + figures.hop_us) * 1e-6;
    let flat = figures.start_us * 1e-6 + bytes / 50e9 + hop + bytes / 20e9;
    let got = seconds(OneSided::Flat, 2, 4096, &figures);
    assert!(is_near(got, flat), "{got} against {flat}");
    // Half of the buffer each, combined and given back, between two hops.
    let push = figures.start_us * 1e-6 + 2.0 * hop + bytes / 25e9;
    let got = seconds(OneSided::Push, 2, 4096, &figures);
    assert!(is_near(got, push), "{got} against {push}");
    let barrier = figures.start_us * 1e-6 + hop;
    assert!(is_near(seconds(OneSided::Barrier, 2, 1, &figures), barrier));
}

#[test]
fn ranks_of_one_processor_work_one_after_another() {
    let shared = NeighbourFigures { processors: 1, switch_us: 0.0, signal_us: 0.0, ..even() };
    let (bytes, start) = (4.0 * 4096.0, shared.start_us * 1e-6);
    let want = 2.0 * (start + bytes / 50e9 + bytes / 20e9);
    let got = seconds(OneSided::Flat, 2, 4096, &shared);
    assert!(is_near(got, want), "{got} against {want}");
    // The second rank begins, goes through as the first has signalled, and hands back.
    let switching = NeighbourFigures { switch_us: 3.0, ..shared };
    let got = seconds(OneSided::Flat, 2, 4096, &switching);
    assert!(got >= want + 3e-6 && got < want + 10e-6, "{got}");
}

#[test]
fn what_is_not_known_is_not_priced_and_what_is_no_program_is_refused() {
    let mut figures = NeighbourFigures::default();
    figures.bytes_per_s.registered_given = Curve(Vec::new());
    let of = |kind: OneSided, figures: &NeighbourFigures| {
        price_of_programs(&kind.programs(2, sum(4096)), ground(4096, true), figures)
    };
    assert_eq!(of(OneSided::Push, &figures).unwrap(), None);
    assert!(of(OneSided::Flat, &figures).unwrap().is_some());
    figures.bytes_per_s.own = Curve(vec![(8, 1e9), (8, 1e9)]);
    assert_eq!(*of(OneSided::Flat, &figures).unwrap_err().kind(), Kind::Invalid);
    for act in [Act::Hear { peer: 1, to: None }, Act::Signal { peer: 7, carries: None }] {
        let programs = [Program { acts: vec![act] }, Program::default()];
        let error = price_of_programs(&programs, ground(1, false), &even()).unwrap_err();
        assert_eq!(*error.kind(), Kind::Invalid, "{act:?}");
    }
}

#[test]
fn figures_that_none_are_like_are_refused() {
    let spoil: [fn(&mut NeighbourFigures); 5] = [
        |figures| figures.start_us = -1.0,
        |figures| figures.signal_us = f64::NAN,
        |figures| figures.switch_us = f64::INFINITY,
        |figures| figures.bytes_per_s.own = Curve::uniform(0.0),
        |figures| figures.bytes_per_s.private_copied = Curve((0..65).map(|size| (size, 1e9)).collect()),
    ];
    for spoil in spoil {
        let mut figures = NeighbourFigures::default();
        spoil(&mut figures);
        assert_eq!(*figures.validate().unwrap_err().kind(), Kind::Invalid, "{figures:?}");
    }
}

#[test]
fn rates_change_evenly_between_sizes_and_stay_beyond_them() {
    let curve = Curve(vec![(1 << 10, 1e9), (1 << 20, 5e8)]);
    for (bytes, want) in [(0, 1.0), (1 << 10, 1.0), (1 << 15, 1.5), (1 << 20, 2.0), (u64::MAX, 2.0)] {
        let got = curve.seconds_per_byte(bytes).unwrap() * 1e9;
        assert!((got - want).abs() < 1e-9, "{bytes}: {got}");
    }
    assert_eq!(Curve(Vec::new()).seconds_per_byte(1), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn more_bytes_and_slower_signals_never_cost_less(
        ranks in 2usize..9, len in 1usize..16_000, processors in 1usize..9, registered: bool
    ) {
        let figures = NeighbourFigures { processors, ..even() };
        let slower = NeighbourFigures { hop_us: figures.hop_us * 3.0, switch_us: 5.0, ..figures.clone() };
        let reach = Reach { registered, ..STAGED };
        for kind in OneSided::possible(ranks, 4 * len, reach) {
            let price = seconds(kind, ranks, len, &figures);
            prop_assert!(price.is_finite() && price > 0.0);
            // Who waits for a processor may be luckier when another is slower.
            prop_assert!(seconds(kind, ranks, len, &slower) >= price * 0.9, "{}", kind);
            prop_assert!(seconds(kind, ranks, len * 2, &figures) >= price * 0.95, "{}", kind);
        }
    }
}
