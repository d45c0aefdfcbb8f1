//! The program's exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted with a checkpoint to resume from.

use gradus_error::{Error, Kind};

/// All that was asked for is done.
pub const DONE: u8 = 0;
/// Something failed.
pub const FAILED: u8 = 1;
/// The input is to be mended; clap uses the same number for flags that it does not know.
pub const BAD_INPUT: u8 = 2;
/// A signal ended the run, and a checkpoint to resume from stands (128 + SIGINT, as shells have it).
pub const INTERRUPTED: u8 = 130;

/// The exit code of a program that ends because of `error`: the first [`Error`] in its chain decides, any other failure
/// is [`FAILED`].
pub fn code(error: &anyhow::Error) -> u8 {
    let ours = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    match ours.map(Error::kind) {
        Some(Kind::Invalid) => BAD_INPUT,
        // Whoever read our output has had enough (`| head`).
        Some(Kind::Closed) => DONE,
        _ => FAILED,
    }
}

/// What is said of `error`, from the outside in. An [`Error`] already names what lies beneath it, so nothing is said
/// twice.
pub fn message(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        parts.push(cause.to_string());
        if cause.is::<Error>() {
            break;
        }
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn bad_input_is_found_beneath_further_context() {
        let failed: Result<(), Error> = Err(Error::invalid("no such key"));
        let error = failed.context("reading settings").unwrap_err();
        assert_eq!((code(&error), message(&error).as_str()), (BAD_INPUT, "reading settings: no such key"));
        assert_eq!(code(&Error::exhausted("disk").into()), FAILED);
        assert_eq!(code(&anyhow::anyhow!("other")), FAILED);
    }

    #[test]
    fn what_lies_beneath_is_said_once() {
        let source = std::io::Error::other("disk gone");
        let error = anyhow::Error::from(Error::io("cannot write a", source)).context("saving");
        assert_eq!(message(&error), "saving: cannot write a: disk gone");
    }
}
