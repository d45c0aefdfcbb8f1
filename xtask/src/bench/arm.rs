//! What takes turns in a measurement: one engine, in one mode, on one layout of processes and threads.

use super::worker::Worker;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt;
use std::path::Path;
use std::process::Command;

/// Whose code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The peer.
    Torch,
    /// Ours.
    Gradus,
}

/// How an arm is spread over the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One process of so many threads.
    Threads(usize),
    /// So many ranks of one thread that train one model together.
    Ranks(usize),
    /// So many processes of one thread that know nothing of each other: what ranks could reach if communication and
    /// waiting cost nothing, with the memory bus shared as they share it.
    Copies(usize),
}

impl Layout {
    /// Ranks are held against copies, so they take turns with them.
    pub fn is_measured_with(self, other: Self) -> bool {
        let spread = |layout| matches!(layout, Self::Ranks(_) | Self::Copies(_));
        self == other || (spread(self) && spread(other))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads(1) => write!(f, "1 thread"),
            Self::Threads(threads) => write!(f, "{threads} threads"),
            Self::Ranks(ranks) => write!(f, "{ranks} ranks x 1 thread"),
            Self::Copies(copies) => write!(f, "{copies} copies x 1 thread"),
        }
    }
}

/// Which arms there are: plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Whose code.
    pub engine: Engine,
    /// The engine's own name for its mode; it begins with the precision.
    pub mode: &'static str,
    /// Threads, ranks or copies.
    pub layout: Layout,
}

impl Plan {
    /// `f32` or `bf16`: arms of one precision and layout are compared with each other.
    pub fn precision(&self) -> &'static str {
        self.mode.split('-').next().unwrap_or(self.mode)
    }

    /// Whether results of `other` are to be held against this one's.
    pub fn is_peer_of(&self, other: &Self) -> bool {
        self.engine != other.engine && self.precision() == other.precision() && self.layout == other.layout
    }

    /// Processes that the runner starts; ranks are started by rank 0.
    fn processes(&self) -> usize {
        if let Layout::Copies(copies) = self.layout { copies } else { 1 }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = if self.engine == Engine::Torch { "torch" } else { "gradus" };
        write!(f, "{engine} {}, {}", self.mode, self.layout)
    }
}

/// Every way in which PyTorch trains in one process.
const TORCH_MODES: &[&str] =
    &["f32-eager", "f32-compiled", "bf16-autocast-eager", "bf16-autocast-compiled", "bf16-pure"];
/// Under DDP; its documentation recommends no other.
const TORCH_RANK_MODES: &[&str] =
    &["f32-eager", "f32-compiled", "bf16-autocast-eager", "bf16-autocast-compiled"];
/// The control needs one mode of each precision.
const TORCH_COPY_MODES: &[&str] = &["f32-eager", "bf16-autocast-compiled"];
const GRADUS_MODES: &[&str] = &["f32", "bf16"];

/// Every arm of the training measurement, ours beside their peers; those measured together stand together.
pub fn plans() -> Vec<Plan> {
    let layouts = [
        (Layout::Threads(1), TORCH_MODES),
        (Layout::Threads(2), TORCH_MODES),
        (Layout::Ranks(2), TORCH_RANK_MODES),
        (Layout::Copies(2), TORCH_COPY_MODES),
    ];
    let arms = |(layout, torch): (Layout, &'static [&'static str])| {
        let engines = [(Engine::Torch, torch), (Engine::Gradus, GRADUS_MODES)];
        engines
            .into_iter()
            .flat_map(move |(engine, modes)| modes.iter().map(move |mode| Plan { engine, mode, layout }))
    };
    layouts.into_iter().flat_map(arms).collect()
}

/// What one turn of an arm gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Of all its processes together.
    pub tokens_per_s: f64,
    /// The last step's, before its update; of the first process.
    pub loss: f64,
    /// Since the initial weights; `None` when the worker does not say.
    pub steps_done: Option<u64>,
    /// Each process' own answer.
    pub answers: Vec<Value>,
}

/// A started arm.
#[derive(Debug)]
pub struct Arm {
    workers: Vec<Worker>,
}

impl Arm {
    /// Starts the processes of `plan`, one after the other; `command` makes one.
    ///
    /// # Errors
    /// When one does not get ready.
    pub fn start(plan: &Plan, command: impl Fn() -> Command, log: &Path) -> Result<Self> {
        let log = |process| log.with_extension(format!("{process}.log"));
        let start = |process| Worker::start(command(), &log(process));
        Ok(Self { workers: (0..plan.processes()).map(start).collect::<Result<_>>()? })
    }

    /// What the first process said of itself.
    pub fn ready(&self) -> &Value {
        self.workers[0].ready()
    }

    /// Asks the first process what memory it holds.
    ///
    /// # Errors
    /// As [`Arm::turn`].
    pub fn memory(&mut self) -> Result<Value> {
        self.workers[0].ask("memory")
    }

    /// Runs `steps` on every process at once and waits for all.
    ///
    /// # Errors
    /// When one ends, falls silent or answers nonsense.
    pub fn turn(&mut self, steps: usize) -> Result<Turn> {
        for worker in &mut self.workers {
            worker.tell(format_args!("step {steps}"))?;
        }
        let answers = self.workers.iter_mut().map(Worker::answer).collect::<Result<Vec<_>>>()?;
        Turn::of(answers)
    }
}

impl Turn {
    /// What the processes answered; copies count together as long as the slowest of them took.
    ///
    /// # Errors
    /// When a number is missing.
    pub fn of(answers: Vec<Value>) -> Result<Self> {
        let number = |answer: &Value, key: &str| {
            answer
                .get(key)
                .and_then(Value::as_f64)
                .with_context(|| format!("the answer {answer} has no number `{key}`"))
        };
        let (mut tokens, mut seconds) = (0.0, 0.0_f64);
        for answer in &answers {
            tokens += number(answer, "tokens")?;
            seconds = seconds.max(number(answer, "seconds")?);
        }
        ensure!(seconds > 0.0, "no time passed: {answers:?}");
        let steps_done = answers[0].get("steps_done").and_then(Value::as_u64);
        Ok(Self { tokens_per_s: tokens / seconds, loss: number(&answers[0], "loss")?, steps_done, answers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_arm_of_ours_has_a_peer() {
        let plans = plans();
        for ours in plans.iter().filter(|plan| plan.engine == Engine::Gradus) {
            assert!(plans.iter().any(|plan| plan.is_peer_of(ours)), "{ours}");
        }
    }

    #[test]
    fn copies_count_together_by_the_slowest() {
        let answer = |seconds| json!({"tokens": 100, "seconds": seconds, "loss": 2.5, "steps_done": 4});
        let turn = Turn::of(vec![answer(1.0), answer(4.0)]).unwrap();
        assert_eq!((turn.tokens_per_s, turn.loss, turn.steps_done), (50.0, 2.5, Some(4)));
        assert!(Turn::of(vec![json!({"tokens": 100, "seconds": 0, "loss": 2.5})]).is_err());
        assert!(Turn::of(vec![json!({"tokens": 100, "loss": 2.5})]).is_err());
    }
}
