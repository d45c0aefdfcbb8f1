//! Membership under simulated faults; `cargo x sim membership` runs it.

mod seeds;

use gradus_fabric::membership::simulation::{Report, run};
use gradus_host::simulation::Recording;
use seeds::{say, verdict};
use std::process::ExitCode;

fn show_faults(report: &Report) {
    say(format_args!("cast: {}", report.cast));
    say(format_args!("weather: {:?}", report.faults.weather));
    for strike in &report.faults.strikes {
        say(format_args!("{:11.6}  {:?}", strike.at.as_secs_f64(), strike.fault));
    }
}

/// Whether nothing was violated.
fn replay(seed: u64) -> bool {
    let report = run(seed, Recording::Lines);
    show_faults(&report);
    say(format_args!("healed at {:?}\n", report.faults.heal));
    report.trace.lines().iter().for_each(say);
    say(format_args!("\nseed {seed}: {} epochs, digest {:016x}", report.epochs, report.trace.digest()));
    verdict(seed, &report.violations)
}

/// Whether nothing was violated.
fn many(first: u64, count: u64) -> bool {
    let (mut failed, mut epochs) = (0, 0);
    for seed in first..first.saturating_add(count) {
        let report = run(seed, Recording::Nothing);
        failed += u64::from(!verdict(seed, &report.violations));
        epochs += report.epochs;
    }
    say(format_args!("{count} seeds from {first} on, {epochs} epochs: {failed} seeds violate an invariant"));
    failed == 0
}

fn main() -> ExitCode {
    seeds::main(replay, many)
}
