//! What a process says on stderr: log lines and its last word, each with its rank where there are several.

use crate::exit;
use crate::launcher::last_word;
use gradus_error::{Error, Result};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use tracing::Level;

/// `[rank N] ` on rank 0 of several; the launcher prefixes the others' lines.
fn prefix() -> String {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    match (number("RANK"), number("WORLD_SIZE")) {
        (Some(0), Some(world_size)) if world_size > 1 => "[rank 0] ".to_owned(),
        _ => String::new(),
    }
}

/// Begins to show log lines of level `GRADUS_LOG` (error, warn, info, debug, trace; `warn` without it).
pub fn start() {
    let level = std::env::var("GRADUS_LOG").ok().and_then(|text| text.parse().ok()).unwrap_or(Level::WARN);
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        )
        .without_time()
        .with_target(false)
        .init();
}

/// Writes a line to stderr. If nobody can read it, nobody is left to tell.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes a line to stdout.
///
/// # Errors
/// `Closed` where the reader has gone, else the system's failure.
pub fn print(line: impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Error::closed("stdout was closed"),
        _ => Error::io("cannot write to stdout", error),
    })
}

/// Says why the process ends: to the launcher that started this rank, if one of ours did, else on stderr.
pub fn failure(error: &anyhow::Error) {
    let text = exit::message(error);
    let told = error.chain().find_map(|cause| cause.downcast_ref::<Error>()).is_some_and(Error::is_told);
    if !last_word::leave(&text, told) {
        say(format_args!("{}gradus: error: {text}", prefix()));
    }
}
