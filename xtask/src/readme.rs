//! The README's test command: written down once, for people, and read from there.

use crate::shell;
use anyhow::{Context, Result};
use std::fs;

const TEST_COMMAND: &str = "cargo test --workspace";

/// The first line of a code block of README.md that begins with `cargo test --workspace`.
///
/// # Errors
/// When README.md is missing or has no such line.
pub fn test_command() -> Result<String> {
    let path = shell::root().join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    find_test_command(&text)
        .with_context(|| format!("no code block of README.md has a line `{TEST_COMMAND} ...`"))
}

/// Looks into fenced code blocks only: a sentence that mentions the command is not it.
fn find_test_command(text: &str) -> Option<String> {
    let mut in_block = false;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block && (line == TEST_COMMAND || line.starts_with(&format!("{TEST_COMMAND} "))) {
            return Some(line.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_taken_from_a_code_block_word_for_word() {
        let text = "cargo test --workspace in a sentence\n```sh\ncargo build\n  cargo test --workspace --locked\n```\n";
        assert_eq!(find_test_command(text).as_deref(), Some("cargo test --workspace --locked"));
    }

    #[test]
    fn without_a_code_block_there_is_none() {
        assert_eq!(find_test_command("cargo test --workspace\n```\ncargo test --workspaces\n```\n"), None);
        assert_eq!(find_test_command("```\n```\ncargo test --workspace\n"), None);
    }
}
