//! Collectives under simulated faults; `cargo x sim collective` runs it.

#[path = "../../gradus-fabric/examples/seeds/mod.rs"]
mod seeds;

use gradus_collective::simulation::run;
use gradus_host::simulation::Recording;
use seeds::{say, verdict};
use std::process::ExitCode;

/// Whether nothing was violated.
fn replay(seed: u64) -> bool {
    let report = run(seed, Recording::Lines);
    say(format_args!("weather: {:?}", report.faults.weather));
    for strike in &report.faults.strikes {
        say(format_args!("{:11.6}  {:?}", strike.at.as_secs_f64(), strike.fault));
    }
    report.trace.lines().iter().for_each(say);
    report.story.iter().for_each(say);
    say(format_args!("seed {seed}: {} results, digest {:016x}", report.done, report.trace.digest()));
    verdict(seed, &report.violations)
}

/// Whether nothing was violated.
fn many(first: u64, count: u64) -> bool {
    let (mut violating, mut done, mut failed) = (0, 0, 0);
    for seed in first..first.saturating_add(count) {
        let report = run(seed, Recording::Nothing);
        violating += u64::from(!verdict(seed, &report.violations));
        done += report.done;
        failed += report.failed;
    }
    say(format_args!(
        "{count} seeds from {first} on, {done} results, {failed} ranks failed: {violating} seeds violate an invariant"
    ));
    violating == 0
}

fn main() -> ExitCode {
    seeds::main(replay, many)
}
