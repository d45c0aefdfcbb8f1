//! Many seeds, and bugs that some of them must find.

use super::*;

const SEEDS: u64 = 1000;

#[test]
fn no_seed_violates_an_invariant() {
    let (mut done, mut failed) = (0, 0);
    for seed in 0..SEEDS {
        let report = run(seed, Recording::Nothing);
        let violations = &report.violations;
        assert!(violations.is_empty(), "seed {seed} (cargo x sim collective --seed {seed}): {violations:#?}");
        done += report.done as u64;
        failed += report.failed as u64;
    }
    assert!(done > 10 * SEEDS, "{done} collectives in {SEEDS} seeds: next to nothing happens");
    assert!(failed > SEEDS / 2, "{failed} ranks failed in {SEEDS} seeds: next to nothing goes wrong");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let digest = |seed, recording| {
        let report = run(seed, recording);
        (report.trace.digest(), report.done, report.failed)
    };
    for seed in [4, 5] {
        assert_eq!(digest(seed, Recording::Digest), digest(seed, Recording::Lines));
    }
    assert_ne!(digest(4, Recording::Digest).0, digest(5, Recording::Digest).0);
}

/// Whether some seed finds a planted bug by a violation that has `sign` in it.
fn finds(planted: Planted, sign: &str) {
    let found = (0..SEEDS).any(|seed| {
        let violations = run_planted(seed, Recording::Nothing, planted).violations;
        violations.iter().any(|violation| violation.contains(sign))
    });
    assert!(found, "no seed finds {planted:?}");
}

#[test]
fn a_wrong_result_would_be_found() {
    finds(Planted::TurnsABit, "wrong result");
}

#[test]
fn blaming_the_innocent_would_be_found() {
    finds(Planted::BlamesTheNext, "blames who did well");
}

#[test]
fn waiting_for_ever_would_be_found() {
    finds(Planted::WaitsForEver, "ended only after");
}
