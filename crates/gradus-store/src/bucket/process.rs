//! Credentials that a program prints: `credential_process` of a profile.

use super::credentials::Found;
use super::issued;
use super::profile::Profile;
use gradus_error::{Error, IoContext, Result};
use gradus_host::{Clock, RealClock};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
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
        None => Err(Error::denied(format!("{described} has not ended in {} s", PATIENCE.as_secs()))),
        Some((status, _)) if !status.success() => {
            Err(Error::denied(format!("{described} failed ({status})")))
        }
        Some((_, printed)) => issued::read(&printed, who),
    }
}

/// How a program ended, and what it printed; nothing if it took longer than `patience`, and was ended.
fn run(command: &str, patience: Duration) -> std::io::Result<Option<(ExitStatus, Vec<u8>)>> {
    let mut shell = Command::new("/bin/sh");
    // What it says when it fails is for the person at the terminal.
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = shell.spawn()?;
    let printed = child.stdout.take();
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        printed.map_or(Ok(0), |printed| printed.take(PRINTED_BYTES).read_to_end(&mut bytes)).map(|_| bytes)
    });
    let Some(status) = end_of(&mut child, patience)? else {
        // Who reads what it prints ends with whatever it has started.
        return Ok(None);
    };
    let printed = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(Some((status, printed)))
}

fn end_of(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let clock = RealClock::new();
    let begun = clock.now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if clock.now().saturating_sub(begun) >= patience {
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
}
