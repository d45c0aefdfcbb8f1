//! A run as its metrics tell it.

use crate::sinks::{Tally, read_events};
use gradus_error::{Error, Result};
use gradus_train::{DataRecord, EvaluationRecord, Event, RunDescription, StepRecord, Straggling};
use std::path::{Path, PathBuf};

/// Text that the model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Steps done.
    pub step: u64,
    /// What it was given.
    pub prompt: String,
    /// What it wrote.
    pub text: String,
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its last step is done; the folder that Hugging Face tools open.
    Done(PathBuf),
    /// A signal ended it.
    Interrupted,
    /// It goes on, or it was killed.
    Open,
}

/// All that `metrics.jsonl` says.
#[derive(Debug)]
pub struct Run {
    /// What was known before the first step, of the last life.
    pub description: Option<RunDescription>,
    /// Steps after which it was resumed.
    pub resumed_after: Vec<u64>,
    /// Its steps, in order.
    pub steps: Vec<StepRecord>,
    /// Its evaluations, in order.
    pub evaluations: Vec<EvaluationRecord>,
    /// What was read in the last life that counted it.
    pub data: Option<DataRecord>,
    /// Ranks that were waited for, in order.
    pub straggling: Vec<Straggling>,
    /// What it wrote, in order.
    pub samples: Vec<Sample>,
    /// How far it has come.
    pub state: State,
    /// Sums over its steps.
    pub tally: Tally,
}

impl Run {
    /// The run whose metrics are in the file at `path`.
    ///
    /// # Errors
    /// `Invalid` if the file is missing or holds no event; the system's failure to read it.
    pub fn read(path: &Path) -> Result<Self> {
        let events = read_events(path)?;
        if events.is_empty() {
            return Err(Error::invalid(format!("{} holds no event of a run", path.display())));
        }
        Ok(Self::from_events(events))
    }

    fn from_events(events: Vec<Event>) -> Self {
        let mut run = Self {
            description: None,
            resumed_after: Vec::new(),
            steps: Vec::new(),
            evaluations: Vec::new(),
            data: None,
            straggling: Vec::new(),
            samples: Vec::new(),
            state: State::Open,
            tally: Tally::default(),
        };
        events.into_iter().for_each(|event| run.add(event));
        run
    }

    fn add(&mut self, event: Event) {
        match event {
            Event::Started(description) => {
                self.state = State::Open;
                if description.resumed_from > 0 {
                    self.resumed_after.push(description.resumed_from);
                }
                self.description = Some(description);
            }
            Event::Step(record) => {
                self.tally.add(&record);
                self.steps.push(record);
            }
            Event::Evaluation(record) => self.evaluations.push(record),
            Event::Data(record) => self.data = Some(record),
            Event::Straggling(record) => self.straggling.push(record),
            Event::Sample { step, prompt, text } => self.samples.push(Sample { step, prompt, text }),
            Event::Finished { interrupted: true, .. } => self.state = State::Interrupted,
            Event::Finished { model, .. } => self.state = State::Done(model),
            Event::Calibrated { .. } | Event::Checkpoint { .. } => {}
        }
    }

    /// Steps done.
    pub fn last_step(&self) -> u64 {
        self.steps.last().map_or(0, |record| record.step)
    }

    /// Training tokens seen after `step`, as far as is known.
    pub fn tokens_at(&self, step: u64) -> Option<u64> {
        let index = self.steps.binary_search_by_key(&step, |record| record.step).ok()?;
        Some(self.steps[index].tokens)
    }

    /// For each prompt the first and the last text, at most `most` prompts, in the order in which they came.
    pub fn first_and_last_samples(&self, most: usize) -> Vec<(&Sample, &Sample)> {
        let mut pairs: Vec<(&Sample, &Sample)> = Vec::new();
        for sample in &self.samples {
            match pairs.iter().position(|(first, _)| first.prompt == sample.prompt) {
                Some(index) => pairs[index].1 = sample,
                None if pairs.len() < most => pairs.push((sample, sample)),
                None => {}
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::examples;
    use gradus_error::Kind;

    #[test]
    fn the_last_life_decides_the_state() {
        let resumed = RunDescription { resumed_from: 2, ..examples::description() };
        let run = Run::from_events(vec![
            Event::Started(examples::description()),
            Event::Step(examples::step(1)),
            Event::Step(examples::step(2)),
            Event::Finished { step: 2, model: PathBuf::new(), interrupted: true },
            Event::Started(resumed),
            Event::Step(examples::step(3)),
        ]);
        assert_eq!(run.state, State::Open);
        assert_eq!((run.resumed_after.as_slice(), run.last_step()), ([2].as_slice(), 3));
        assert_eq!((run.tokens_at(2), run.tokens_at(9)), (Some(8192), None));
    }

    #[test]
    fn samples_are_paired_by_prompt() {
        let sample =
            |step, prompt: &str| Event::Sample { step, prompt: prompt.into(), text: step.to_string() };
        let run = Run::from_events(vec![
            sample(0, "a"),
            sample(0, "b"),
            sample(0, "c"),
            sample(5, "a"),
            sample(9, "a"),
        ]);
        let pairs = run.first_and_last_samples(2);
        let steps: Vec<_> = pairs.iter().map(|(first, last)| (first.step, last.step)).collect();
        assert_eq!(steps, [(0, 9), (0, 0)]);
    }

    #[test]
    fn no_events_are_bad_input() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        assert_eq!(*Run::read(&path).unwrap_err().kind(), Kind::Invalid);
        std::fs::write(&path, "nonsense\n").unwrap();
        assert_eq!(*Run::read(&path).unwrap_err().kind(), Kind::Invalid);
    }
}
