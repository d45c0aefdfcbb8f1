//! What programs that run seeds have in common: `--seed N` replays one and prints all that happens in it, `--seeds COUNT`
//! runs as many, from `--first N` on, and names those that violate an invariant.

use gradus_error::{Error, Result};
use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "give --seed N, or --seeds COUNT [--first N]";

/// Writes a line; a reader that has seen enough (`| head`) ends nothing else.
pub fn say(line: impl std::fmt::Display) {
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

/// Whether nothing was violated in a seed; what was is shown.
pub fn verdict(seed: u64, violations: &[String]) -> bool {
    for violation in violations {
        say(format_args!("seed {seed} VIOLATES: {violation}"));
    }
    violations.is_empty()
}

/// Does what the command line asks for: `replay` shows a seed, `many` runs some from a first one on; both tell whether
/// nothing was violated.
pub fn main(replay: impl FnOnce(u64) -> bool, many: impl FnOnce(u64, u64) -> bool) -> ExitCode {
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
