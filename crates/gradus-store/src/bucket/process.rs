//! Credentials that a program prints: `credential_process` of a profile.

use super::credentials::Found;
use super::issued;
use super::profile::Profile;
use gradus_error::{Error, IoContext, Result};
use gradus_host::{Clock, RealClock};
use std::io::Read;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Longest time that a program may take: it may ask a person, or a service.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often is looked whether it has ended.
const GLANCE: Duration = Duration::from_millis(10);

/// Most bytes that are read of what it prints.
const PRINTED_BYTES: u64 = 64 << 10;

/// Runs the program of a profile, as a shell would.
///
/// # Errors
/// `Denied` when it fails, prints no keys or takes too long; the system's failure to run it.
pub(super) async fn find(command: &str, profile: &Profile) -> Result<Found> {
    let (command, who) = (command.to_owned(), profile.who());
    let described = format!("the credential_process of profile `{}` in {}", profile.name, profile.file);
    let output = tokio::task::spawn_blocking(move || run(&command, PATIENCE))
        .await
        .map_err(|error| Error::internal("a program was not waited for").with_source(error))?
        .context(|| format!("cannot run {described}"))?;
    match output {
        None => Err(Error::denied(format!(
            "{described} has not ended in {} s, or what it started holds its output",
            PATIENCE.as_secs()
        ))),
        Some((status, _)) if !status.success() => {
            Err(Error::denied(format!("{described} failed ({status})")))
        }
        Some((_, printed)) => issued::read(&printed, who),
    }
}

/// How a program ended, and what it printed; nothing if it took longer than `patience`, and was ended, or if what it started
/// still holds what it prints to then.
fn run(command: &str, patience: Duration) -> std::io::Result<Option<(ExitStatus, Vec<u8>)>> {
    let clock = RealClock::new();
    let begun = clock.now();
    let mut shell = Command::new("/bin/sh");
    // What it says when it fails is for the person at the terminal.
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = shell.spawn()?;
    let printed = reading(child.stdout.take());
    let left = || patience.saturating_sub(clock.now().saturating_sub(begun));
    let Some(status) = end_of(&mut child, &clock, &left)? else { return Ok(None) };
    match printed.recv_timeout(left()) {
        Ok(printed) => Ok(Some((status, printed?))),
        Err(_) => Ok(None),
    }
}

/// What is printed, once no process has the other end any more: a thread of its own waits for that, for it may be never.
fn reading(printed: Option<ChildStdout>) -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = printed.map_or(Ok(0), |printed| printed.take(PRINTED_BYTES).read_to_end(&mut bytes));
        // Nobody may be waiting any longer.
        let _ = sender.send(read.map(|_| bytes));
    });
    receiver
}

fn end_of(
    child: &mut Child,
    clock: &RealClock,
    left: &dyn Fn() -> Duration,
) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if left().is_zero() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        clock.sleep(GLANCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_heard_out_and_one_that_hangs_is_ended() {
        let (status, printed) = run("echo keys", PATIENCE).unwrap().unwrap();
        assert!(status.success() && printed == b"keys\n");
        assert!(!run("exit 3", PATIENCE).unwrap().unwrap().0.success());
        assert!(run("exec sleep 60", Duration::from_millis(50)).unwrap().is_none());
        let (_, printed) = run("head -c 100000 /dev/zero", PATIENCE).unwrap().unwrap();
        assert_eq!(printed.len() as u64, PRINTED_BYTES);
    }

    #[test]
    fn what_a_program_leaves_behind_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("left");
        let command = format!("sleep 60 & echo $! > '{}'; echo keys", left.display());
        // Long enough for the shell to get that far, and far less than what it leaves behind lasts.
        assert!(run(&command, Duration::from_secs(3)).unwrap().is_none());
        let number = std::fs::read_to_string(&left).unwrap();
        assert!(Command::new("kill").arg(number.trim()).status().unwrap().success());
        let (status, printed) = run("echo keys & wait", PATIENCE).unwrap().unwrap();
        assert!(status.success() && printed == b"keys\n", "what ends in time is heard out");
    }
}
