//! One turn of an arm: a process that prints a line of JSON for each epoch, watched from outside.
//!
//! The contract of every arm: after each epoch one line `{"epoch", "seconds", "samples", "bytes", "sum", ...}` on stdout; after
//! the last one it keeps what it holds until its stdin ends. Other lines are passed over; its stderr goes to a log, whose
//! end is shown when it fails. A process that is silent for too long is killed with all that it started, by number.

use super::memory::{self, Memory};
use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// How often memory is looked at while a line is waited for.
const TICK: Duration = Duration::from_millis(100);
/// Workers are taken down, caches are closed.
const PATIENCE_AT_END: Duration = Duration::from_secs(10);

/// What one epoch gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// From the first request for a batch to the last byte of the last; the first holds opening the set.
    pub seconds: f64,
    /// How many samples came.
    pub samples: u64,
    /// How many bytes they had.
    pub bytes: u64,
    /// Their words' sum.
    pub sum: u64,
    /// What the S3 server has sent in it; `None` where there is none.
    pub sent_bytes: Option<u64>,
    /// All that the arm said.
    pub answer: Value,
}

/// What a turn gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// In order.
    pub epochs: Vec<Epoch>,
    /// The most that the processes held; `None` where nobody looked.
    pub memory: Option<Memory>,
}

impl Turn {
    /// How long all epochs took.
    pub fn seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.seconds).sum()
    }
}

/// How a turn is run.
pub struct Watch<'a> {
    /// Where stderr goes.
    pub log: &'a Path,
    /// How many epochs there are.
    pub epochs: usize,
    /// How long one may take.
    pub patience: Duration,
    /// Whether to look at memory, which costs the arm time.
    pub memory: bool,
    /// Bytes that the server has sent so far.
    pub sent_bytes: &'a mut dyn FnMut() -> Result<Option<u64>>,
}

/// Why a turn gave no figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An epoch took longer than anybody waits.
    Slow(Duration),
    /// It could not be started, ended early, or said what is no epoch.
    Broken(String),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(format!("{error:#}"))
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started, ends early, is silent for too long, or says what is no epoch.
pub fn run(command: Command, watch: &mut Watch) -> Result<Turn, Failure> {
    let running = Running::start(command, watch.log)?;
    let mut turn = Turn { epochs: Vec::new(), memory: watch.memory.then(Memory::default) };
    let mut sent = (watch.sent_bytes)()?;
    while turn.epochs.len() < watch.epochs {
        let answer = running.next_answer(watch.patience, &mut turn.memory)?;
        let now = (watch.sent_bytes)()?;
        let sent_bytes = now.zip(sent).map(|(now, before)| now.saturating_sub(before));
        sent = now;
        turn.epochs.push(Epoch::of(answer, turn.epochs.len() + 1, sent_bytes)?);
    }
    if let Some(memory) = &mut turn.memory {
        memory.look(running.child.id());
    }
    Ok(turn)
}

impl Epoch {
    fn of(answer: Value, number: usize, sent_bytes: Option<u64>) -> Result<Self> {
        let count = |key: &str| answer[key].as_u64().with_context(|| format!("no count `{key}` in {answer}"));
        if count("epoch")? != number as u64 {
            bail!("epoch {number} was expected: {answer}");
        }
        let seconds = answer["seconds"].as_f64().filter(|seconds| *seconds > 0.0);
        let seconds = seconds.with_context(|| format!("no time in {answer}"))?;
        let (samples, bytes, sum) = (count("samples")?, count("bytes")?, count("sum")?);
        Ok(Self { seconds, samples, bytes, sum, sent_bytes, answer })
    }
}

/// A started arm; it ends, with all that it started, when this is dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Running {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let stderr = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let started = command.spawn();
        let mut child = started.with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let stdout = BufReader::new(child.stdout.take().context("stdout was asked to be a pipe")?);
        let (sender, lines) = channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, lines, log: log.to_owned() })
    }

    /// The next line that tells of an epoch.
    fn next_answer(&self, patience: Duration, memory: &mut Option<Memory>) -> Result<Value, Failure> {
        let mut waited = Duration::ZERO;
        loop {
            match self.lines.recv_timeout(TICK) {
                Ok(line) => {
                    if let Some(answer) = epoch_line(&line) {
                        return Ok(answer);
                    }
                }
                Err(RecvTimeoutError::Timeout) if waited < patience => waited += TICK,
                Err(RecvTimeoutError::Timeout) => return Err(Failure::Slow(patience)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Broken(format!("it ended; {}", self.log_end())));
                }
            }
            if let Some(memory) = memory {
                memory.look(self.child.id());
            }
        }
    }

    fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("{last} (log: {})", shell::relative(&self.log))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let started = memory::descendants(self.child.id());
        drop(self.child.stdin.take());
        let mut waited = Duration::ZERO;
        while waited < PATIENCE_AT_END {
            match self.lines.recv_timeout(TICK) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => waited += TICK,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Workers end by themselves when they miss their parent; those that have not are ended.
        let left =
            started.into_iter().filter(|process| memory::is_running(*process)).map(|id| id.to_string());
        let left: Vec<String> = left.collect();
        if !left.is_empty() {
            let _ = Command::new("kill").arg("-9").args(left).stderr(Stdio::null()).status();
        }
    }
}

fn epoch_line(line: &str) -> Option<Value> {
    let answer: Value = serde_json::from_str(line).ok()?;
    answer.get("epoch").is_some().then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: &str = r#"echo noise; echo '{"epoch": 1, "seconds": 0.5, "samples": 2, "bytes": 16, "sum": 18446744073709551615}'"#;

    fn turn(script: &str, epochs: usize, patience: Duration) -> Result<Turn, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("bash");
        command.args(["-c", script]);
        let mut sent = [100, 130].into_iter();
        run(
            command,
            &mut Watch {
                log: &folder.path().join("log"),
                epochs,
                patience,
                memory: true,
                sent_bytes: &mut || Ok(sent.next()),
            },
        )
    }

    #[test]
    fn epochs_are_read_and_what_was_sent_is_counted() {
        let turn = turn(&format!("{EPOCH}; read -r end"), 1, Duration::from_secs(60)).unwrap();
        let epoch = &turn.epochs[0];
        assert_eq!((epoch.samples, epoch.bytes, epoch.sum), (2, 16, u64::MAX));
        assert_eq!((epoch.seconds, epoch.sent_bytes), (0.5, Some(30)));
        assert!(turn.memory.is_some_and(|memory| memory.whole > 0));
    }

    #[test]
    fn one_that_ends_early_is_named_with_its_last_words() {
        let script = format!("{EPOCH}; echo no such bucket >&2");
        let Err(Failure::Broken(reason)) = turn(&script, 2, Duration::from_secs(60)) else {
            panic!("it goes on")
        };
        assert!(reason.contains("no such bucket"), "{reason}");
    }

    #[test]
    fn one_that_is_silent_is_given_up() {
        assert_eq!(turn("read -r end", 1, Duration::ZERO), Err(Failure::Slow(Duration::ZERO)));
    }

    #[test]
    fn an_epoch_out_of_order_or_without_a_sum_is_refused() {
        let second = EPOCH.replace("\"epoch\": 1", "\"epoch\": 2");
        assert!(turn(&second, 1, Duration::from_secs(60)).is_err());
        let without = EPOCH.replace("\"sum\"", "\"total\"");
        assert!(turn(&without, 1, Duration::from_secs(60)).is_err());
    }
}
