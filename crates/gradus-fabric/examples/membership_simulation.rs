//! Membership under simulated faults: `--seed N` replays one seed and prints all that happens in it, `--seeds COUNT`
//! runs as many, from `--first N` on, and names those that violate an invariant. `cargo x sim` runs it.

use gradus_error::{Error, Result};
use gradus_fabric::membership::simulation::{Report, run};
use gradus_host::simulation::Recording;
use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "give --seed N, or --seeds COUNT [--first N]";

/// Writes a line; a reader that has seen enough (`| head`) ends nothing else.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The numbers that follow the flags.
#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    seeds: Option<u64>,
    first: u64,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut arguments = Arguments::default();
    while let Some(flag) = words.next() {
        let number = words.next().and_then(|word| word.parse().ok());
        let number: u64 = number.ok_or_else(|| Error::invalid(format!("{flag} needs a number: {USAGE}")))?;
        match flag.as_str() {
            "--seed" => arguments.seed = Some(number),
            "--seeds" => arguments.seeds = Some(number),
            "--first" => arguments.first = number,
            _ => return Err(Error::invalid(format!("{flag} is unknown: {USAGE}"))),
        }
    }
    Ok(arguments)
}

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
    verdict(seed, &report)
}

fn verdict(seed: u64, report: &Report) -> bool {
    for violation in &report.violations {
        say(format_args!("seed {seed} VIOLATES: {violation}"));
    }
    report.violations.is_empty()
}

/// Whether nothing was violated.
fn many(first: u64, count: u64) -> bool {
    let (mut failed, mut epochs) = (0, 0);
    for seed in first..first.saturating_add(count) {
        let report = run(seed, Recording::Nothing);
        failed += u64::from(!verdict(seed, &report));
        epochs += report.epochs;
    }
    say(format_args!("{count} seeds from {first} on, {epochs} epochs: {failed} seeds violate an invariant"));
    failed == 0
}

fn main() -> ExitCode {
    let well = match parse(std::env::args().skip(1)) {
        Ok(Arguments { seed: Some(seed), seeds: None, .. }) => replay(seed),
        Ok(Arguments { seed: None, seeds: Some(count), first }) => many(first, count),
        Ok(_) => {
            eprintln!("{USAGE}");
            false
        }
        Err(error) => {
            eprintln!("{error}");
            false
        }
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
