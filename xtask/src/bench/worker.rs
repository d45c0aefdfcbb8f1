//! A long-lived process that works when told, and sleeps otherwise.
//!
//! The protocol, the same for every engine: the worker prints `ready {...}` when warm; for each line that it reads (such
//! as `step K`, to run K steps) it prints one line of JSON; at the end of its stdin it ends. Other lines that it prints before
//! `ready` are passed over. Its stderr goes to a log file, whose end is shown when it fails.

use crate::shell;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Compiling thirty layers takes PyTorch three minutes on one core that others use too, and leaves them in a cache.
const PATIENCE_TO_WARM_UP: Duration = Duration::from_secs(900);
/// A warm worker that says nothing for this long hangs.
const PATIENCE: Duration = Duration::from_secs(600);
/// Ranks are taken down, files are closed.
const PATIENCE_AT_END: Duration = Duration::from_secs(30);

/// One worker process; it ends when this is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    log: PathBuf,
    ready: Value,
}

impl Worker {
    /// Starts `command` and waits until it is warm.
    ///
    /// # Errors
    /// When it cannot be started, or ends or is silent for long before it is ready; it is ended then.
    pub fn start(command: Command, log: &Path) -> Result<Self> {
        Self::start_within(PATIENCE_TO_WARM_UP, command, log)
    }

    fn start_within(patience: Duration, mut command: Command, log: &Path) -> Result<Self> {
        let stderr = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = pipes.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let stdin = child.stdin.take();
        let lines = read_lines(BufReader::new(child.stdout.take().context("stdout was asked to be a pipe")?));
        let mut worker = Self { child, stdin, lines, log: log.to_owned(), ready: Value::Null };
        let ready = worker.wait_until_ready(patience);
        worker.ready = ready.context("it did not become warm")?;
        Ok(worker)
    }

    /// What it said of itself when it was warm.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// Tells it something and waits for the answer.
    ///
    /// # Errors
    /// As [`Worker::tell`] and [`Worker::answer`].
    pub fn ask(&mut self, line: impl Display) -> Result<Value> {
        self.tell(line)?;
        self.answer()
    }

    /// Tells it something, such as `step 3`; the answer is had by [`Worker::answer`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, line: impl Display) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is open until the worker is dropped")?;
        let told = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        told.map_err(|error| anyhow!("{error}; {}", self.log_end()))
    }

    /// Waits for what came of it.
    ///
    /// # Errors
    /// When it ends, falls silent, says no JSON, or reports an error.
    pub fn answer(&mut self) -> Result<Value> {
        let line = self.next_line(PATIENCE)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        match answer.get("error") {
            Some(error) => bail!("the worker says: {error}"),
            None => Ok(answer),
        }
    }

    fn wait_until_ready(&self, patience: Duration) -> Result<Value> {
        loop {
            let line = self.next_line(patience)?;
            if let Some(facts) = line.strip_prefix("ready") {
                return serde_json::from_str(facts.trim()).with_context(|| format!("not JSON: {line}"));
            }
        }
    }

    fn next_line(&self, patience: Duration) -> Result<String> {
        self.lines.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("silent for {patience:?}; {}", self.log_end()),
            RecvTimeoutError::Disconnected => anyhow!("it ended; {}", self.log_end()),
        })
    }

    fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("{last} (log: {})", shell::relative(&self.log))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // Its stdout closes when it ends; a worker that does not take the hint is killed.
        while self.lines.recv_timeout(PATIENCE_AT_END).is_ok() {}
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines as they come; the channel closes with the pipe.
fn read_lines(pipe: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || pipe.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = r#"echo noise; echo 'ready {"warmup_steps": 1}'; while read -r word steps; do
        if [ "$steps" = 3 ]; then echo '{"error": "three"}'; elif [ "$steps" = 4 ]; then echo oops >&2; exit 1;
        else echo "{\"tokens\": $steps}"; fi; done"#;

    fn start(script: &str, folder: &Path) -> Result<Worker> {
        let mut command = Command::new("bash");
        command.args(["-c", script]);
        Worker::start(command, &folder.join("log"))
    }

    #[test]
    fn steps_are_told_and_answered() {
        let folder = tempfile::tempdir().unwrap();
        let mut worker = start(WORKER, folder.path()).unwrap();
        assert_eq!(worker.ready()["warmup_steps"], 1);
        worker.tell("step 7").unwrap();
        assert_eq!(worker.answer().unwrap()["tokens"], 7);
        worker.tell("step 3").unwrap();
        assert!(worker.answer().unwrap_err().to_string().contains("three"));
        worker.tell("step 4").unwrap();
        assert!(worker.answer().unwrap_err().to_string().contains("oops"));
    }

    #[test]
    fn one_that_ends_before_it_is_ready_is_named_with_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let error = start("echo starting; echo no such option >&2; exit 2", folder.path()).unwrap_err();
        assert!(format!("{error:#}").contains("no such option"), "{error:#}");
    }

    #[test]
    fn one_that_is_never_ready_is_given_up_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("bash");
        // It ends when its stdin does, as one that compiles would once it reads it.
        command.args(["-c", "read -r line"]);
        let log = folder.path().join("log");
        let error = Worker::start_within(Duration::from_millis(1), command, &log).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.starts_with("it did not become warm: silent for 1ms"), "{error}");
    }
}
