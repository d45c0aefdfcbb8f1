//! Thousands of seeds, and bugs that some of them must find.

use super::*;

const SEEDS: u64 = 2000;

#[test]
fn no_seed_violates_an_invariant() {
    let mut epochs = 0;
    for seed in 0..SEEDS {
        let report = run(seed, Recording::Nothing);
        assert!(
            report.violations.is_empty(),
            "seed {seed} (cargo x sim membership --seed {seed}): {:#?}",
            report.violations
        );
        epochs += report.epochs as u64;
    }
    assert!(epochs > 5 * SEEDS, "{epochs} epochs in {SEEDS} seeds: next to nothing happens");
}

#[test]
fn the_same_seed_gives_the_same_trace_here_and_everywhere() {
    let digest = |seed, recording| run(seed, recording).trace.digest();
    assert_eq!(digest(14, Recording::Digest), digest(14, Recording::Lines));
    assert_ne!(digest(14, Recording::Digest), digest(15, Recording::Digest));
    // Changes when, and only when, the protocol or what a seed means changes.
    assert_eq!(digest(14, Recording::Digest), 0x042afba65cda9345);
}

/// Whether some seed finds a planted bug by a violation that has `sign` in it.
fn finds(planted: Planted, sign: &str) {
    let found = (0..SEEDS).find(|seed| {
        run_planted(*seed, Recording::Nothing, planted)
            .violations
            .iter()
            .any(|violation| violation.contains(sign))
    });
    assert!(found.is_some(), "no seed finds {planted:?}");
}

#[test]
fn two_tables_of_one_epoch_would_be_found() {
    finds(Planted::AnnouncesBeforeStoring, "two tables");
}

#[test]
fn an_epoch_that_goes_back_would_be_found() {
    finds(Planted::AnnouncesBeforeStoring, "comes after");
}

#[test]
fn acting_before_all_have_acknowledged_would_be_found() {
    finds(Planted::GoesWithoutAcknowledgements, "after somebody acted");
}

#[test]
fn acting_while_an_excluded_member_may_act_would_be_found() {
    finds(Planted::GoesBeforeLeasesEnd, "after somebody acted");
}

#[test]
fn an_emptied_group_that_forgets_whose_leases_run_would_be_found() {
    finds(Planted::ForgetsEmptiedGroups, "after somebody acted");
}

#[test]
fn acting_without_a_lease_would_be_found() {
    finds(Planted::ForgetsItsLease, "after somebody acted");
}

#[test]
fn a_term_that_begins_twice_would_be_found() {
    finds(Planted::KeepsItsTerm, "begins after");
}

#[test]
fn believing_an_old_term_would_be_found() {
    finds(Planted::BelievesOldTerms, "old term");
}

#[test]
fn believing_an_old_epoch_would_be_found() {
    finds(Planted::BelievesOldEpochs, "old epoch");
}

#[test]
fn a_dead_member_that_is_not_declared_would_be_found() {
    finds(Planted::DeclaresNobody, "not declared");
}

#[test]
fn members_that_never_come_together_would_be_found() {
    finds(Planted::SaysOnce, "should, together");
}
