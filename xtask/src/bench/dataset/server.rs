//! The S3 server that all arms of a case read from: `gradus-testbed serve`, a process of its own.
//!
//! Its first line names its endpoint; it ends when its stdin does. What it has sent is what it has read of its files, by the
//! kernel's count of bytes in the read calls of the process; what comes and goes by sockets is not in it.

use crate::shell;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// What the server accepts, unless told otherwise.
const ACCESS_KEY: &str = "AKIDTESTBED";
const SECRET_KEY: &str = "testbed/secret+key";

/// A running server; it ends when this is dropped.
pub struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    endpoint: String,
}

/// Builds the server's program and names it.
///
/// # Errors
/// When the build fails.
pub fn build() -> Result<PathBuf> {
    shell::run(shell::cargo(&["build", "--release", "--package", "gradus-testbed"]))?;
    Ok(shell::target().join("release/gradus-testbed"))
}

impl Server {
    /// Serves the folders of `root` as buckets; each request waits for `latency_ms` first. On one core alone, if it is named.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(
        program: &Path,
        root: &Path,
        latency_ms: u64,
        core: Option<&str>,
        log: &Path,
    ) -> Result<Self> {
        let stderr = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = shell::command(program, &["serve", "--root"]);
        command.arg(root).args(["--latency-ms", &latency_ms.to_string()]);
        command.args(core.into_iter().flat_map(|core| ["--cpu", core]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().context("stdout was asked to be a pipe")?);
        let mut server = Self { child, stdin, endpoint: String::new() };
        stdout.read_line(&mut server.endpoint).context("cannot read from the S3 server")?;
        server.endpoint.truncate(server.endpoint.trim_end().len());
        ensure!(
            server.endpoint.starts_with("http://"),
            "the S3 server did not start (log: {})",
            shell::relative(log)
        );
        Ok(server)
    }

    /// Bytes of bodies that it has sent so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn sent_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/io", self.child.id());
        let text =
            fs::read_to_string(&path).with_context(|| format!("the S3 server has ended: no {path}"))?;
        read_bytes(&text).with_context(|| format!("no count of bytes in {path}"))
    }

    /// Tells `command` where the server is and with which keys, by the names that clients of S3 look for.
    pub fn introduce(&self, command: &mut Command) {
        // The last two: mosaicml-streaming's own name for the endpoint, and what Rust's object_store wants for want of TLS.
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "S3_ENDPOINT_URL"] {
            command.env(name, &self.endpoint);
        }
        command.env("AWS_ALLOW_HTTP", "true").env("NO_PROXY", "127.0.0.1");
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.env("AWS_REGION", "us-east-1").env("AWS_DEFAULT_REGION", "us-east-1");
    }
}

/// Of a process' /proc/PID/io: bytes that its read calls gave it.
fn read_bytes(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_counted() {
        assert_eq!(read_bytes("rchar: 1234\nwchar: 5\nread_bytes: 4096\n"), Some(1234));
        assert_eq!(read_bytes("read_bytes: 4096\n"), None);
    }
}
