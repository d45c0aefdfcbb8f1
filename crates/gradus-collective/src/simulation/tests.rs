//! Many seeds, and bugs that some of them must find.

use super::*;
use gradus_error::Error;

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

#[test]
fn another_kind_than_a_loss_would_be_found() {
    finds(Planted::MistakesTheKind, "no fault explains");
}

#[test]
fn failing_without_need_would_be_found() {
    finds(Planted::HasNoPatience, "nothing harmful happened");
}

/// What the judge says of a world of two in which rank 1 crashes, or nothing happens, and rank 0 ends with an error.
fn sentence(crashed: bool, error: Error) -> Vec<String> {
    let program = Program::draw(&mut Stream::new(1, PROGRAM));
    let crash = Strike { at: HEAL, fault: Fault::Crash { node: 1, power_loss: false, down: None } };
    let faults = Faults { strikes: if crashed { vec![crash] } else { Vec::new() }, ..Faults::none() };
    let ending = |error| Ending { at: HEAL, done: 0, wrong: Vec::new(), error };
    judge(&program, &faults, true, &[ending(Some(error)), ending(None)])
}

#[test]
fn an_error_without_a_place_or_a_cause_is_found() {
    let lost = |text| Error::peer_lost(1, text);
    assert_eq!(sentence(true, lost("in barrier number 3: rank 1 has died")), Vec::<String>::new());
    assert!(sentence(true, lost("rank 1 has died"))[0].contains("does not say in which collective"));
    let waited = Error::unavailable("in barrier number 3: rank 0 waits for rank 1");
    assert!(sentence(false, waited)[0].contains("nothing went wrong"));
}

#[test]
fn a_cut_excuses_only_who_blames_the_other_side() {
    let program = Program::draw(&mut Stream::new(1, PROGRAM));
    let cut = Fault::Cut { side: vec![0, 1], one_way: false, length: HARMFUL };
    let faults = Faults { strikes: vec![Strike { at: Duration::ZERO, fault: cut }], ..Faults::none() };
    let blames = |lost| {
        let ending = |at, error| Ending { at, done: 0, wrong: Vec::new(), error };
        let error = Error::peer_lost(lost, "in barrier number 3: it has died");
        let well = || ending(HEAL * 2, None);
        judge(&program, &faults, true, &[ending(HEAL, Some(error)), well(), well()])
    };
    assert_eq!(blames(2), Vec::<String>::new());
    assert!(blames(1)[0].contains("blames who did well"));
}
