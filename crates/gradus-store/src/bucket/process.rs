//! Credentials that a program prints: `credential_process` of a profile.

use super::credentials::Found;
use super::issued;
use super::profile::Profile;
use gradus_error::{Error, IoContext, Result};
use std::process::{Command, Stdio};

/// Runs the program of a profile, as a shell would.
///
/// # Errors
/// `Denied` when it fails or prints no keys; the system's failure to run it.
pub(super) async fn find(command: &str, profile: &Profile) -> Result<Found> {
    let (command, who) = (command.to_owned(), profile.who());
    let described = format!("the credential_process of profile `{}` in {}", profile.name, profile.file);
    let run = move || {
        let mut shell = Command::new("/bin/sh");
        // What it says when it fails is for the person at the terminal.
        shell.args(["-c", &command]).stdin(Stdio::null()).stderr(Stdio::inherit()).output()
    };
    let output = tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| Error::internal("a program was not waited for").with_source(error))?
        .context(|| format!("cannot run {described}"))?;
    if !output.status.success() {
        return Err(Error::denied(format!("{described} failed ({})", output.status)));
    }
    issued::read(&output.stdout, who)
}
