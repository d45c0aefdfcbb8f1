//! `metrics.jsonl`: every event of a run as one line of JSON, written as it happens.
//!
//! The file reads as one run however often the run was resumed: when it goes on after step `n`, what an earlier life
//! wrote about later steps is dropped, and with it a last line that a kill cut in half. JSON has no word for numbers that
//! are not finite: they are written as `null`, and read back as not-a-number.

use gradus_error::{Error, IoContext, Result};
use gradus_host::disk::{self, write_atomically};
use gradus_train::{Event, Observer};
use serde::Deserialize;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// No event is longer: a bound on what is read on a file's word.
const LONGEST_LINE_BYTES: u64 = 16 << 20;

/// Writes `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    /// `None` once writing has failed.
    file: Option<File>,
}

impl MetricsFile {
    /// Opens `path` for appending, making it if need be. Nothing is dropped before the run says where it starts.
    ///
    /// # Errors
    /// The system's failure to open the file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), file: Some(open_end(path)?) })
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        if let Event::Started(description) = event {
            keep_until(&self.path, description.resumed_from)?;
            self.file = Some(open_end(&self.path)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = serde_json::to_vec(event)
            .map_err(|error| Error::internal("an event is no JSON").with_source(error))?;
        line.push(b'\n');
        // One write without a buffer: what a kill can cut in half is this line at most.
        file.write_all(&line).context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Observer for MetricsFile {
    fn observe(&mut self, event: &Event) {
        if self.file.is_none() {
            return;
        }
        if let Err(error) = self.write(event) {
            tracing::warn!("{error}; the run goes on without its metrics file");
            self.file = None;
        }
    }
}

fn open_end(path: &Path) -> Result<File> {
    let describe = || format!("cannot open {}", path.display());
    // Opening a named pipe would wait for whoever reads it.
    if path.exists() {
        disk::open_regular(path).context(describe)?;
    }
    OpenOptions::new().create(true).append(true).open(path).context(describe)
}

/// Rewrites the file at `path` without lines that are no JSON objects or that speak of steps after `last_step`; a run
/// that starts afresh, at 0, starts an empty file.
fn keep_until(path: &Path, last_step: u64) -> Result<()> {
    let lines = if last_step == 0 { None } else { Some(Lines::open(path)?) };
    write_atomically(path, |out| {
        for line in lines.into_iter().flatten() {
            let line = line?;
            if keeps(&line, last_step) {
                out.write_all(line.trim_ascii_end())
                    .and_then(|()| out.write_all(b"\n"))
                    .context(|| format!("cannot write {}", path.display()))?;
            }
        }
        Ok(())
    })
}

/// Unknown events are kept: a later version may have written them.
fn keeps(line: &[u8], last_step: u64) -> bool {
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(fields)) => {
            fields.get("step").and_then(Value::as_u64).is_none_or(|step| step <= last_step)
        }
        _ => false,
    }
}

/// The events in the file at `path`, in order. Lines that are no event that this version knows are passed over.
///
/// # Errors
/// The system's failure to read.
pub fn read_events(path: &Path) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    for line in Lines::open(path)? {
        events.extend(parse(&line?));
    }
    Ok(events)
}

/// One event, or nothing.
fn parse(line: &[u8]) -> Option<Event> {
    let value: Value = serde_json::from_slice(line).ok()?;
    Event::deserialize(with_not_a_number(value)?).ok()
}

/// The same value with not-a-number for every null; TOML's values can hold it where JSON's cannot. No field of an event
/// is optional, so a null has no other meaning. `None` for a whole number beyond 63 bits.
fn with_not_a_number(value: Value) -> Option<toml::Value> {
    Some(match value {
        Value::Null => toml::Value::Float(f64::NAN),
        Value::Bool(value) => toml::Value::Boolean(value),
        Value::String(text) => toml::Value::String(text),
        Value::Number(number) if number.is_f64() => toml::Value::Float(number.as_f64()?),
        Value::Number(number) => toml::Value::Integer(number.as_i64()?),
        Value::Array(elements) => {
            toml::Value::Array(elements.into_iter().map(with_not_a_number).collect::<Option<_>>()?)
        }
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| Some((key, with_not_a_number(value)?)));
            toml::Value::Table(fields.collect::<Option<_>>()?)
        }
    })
}

/// The lines of a file, each of bounded length; one that is longer is skipped.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let file = disk::open_regular(path).context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file) })
    }

    /// The next line or part of one, at most [`LONGEST_LINE_BYTES`]; empty at the end.
    fn part(&mut self) -> Result<Vec<u8>> {
        let mut part = Vec::new();
        let mut bounded = self.reader.by_ref().take(LONGEST_LINE_BYTES);
        bounded.read_until(b'\n', &mut part).context(|| format!("cannot read {}", self.path.display()))?;
        Ok(part)
    }

    /// The next line with its line feed; empty at the end. Of one that is too long only the line feed is left.
    fn line(&mut self) -> Result<Vec<u8>> {
        let line = self.part()?;
        if (line.len() as u64) < LONGEST_LINE_BYTES || line.ends_with(b"\n") {
            return Ok(line);
        }
        loop {
            let part = self.part()?;
            if part.is_empty() || part.ends_with(b"\n") {
                return Ok(vec![b'\n']);
            }
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.line() {
            Ok(line) if line.is_empty() => None,
            other => Some(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::examples;
    use super::*;
    use gradus_train::{RunDescription, StepRecord};
    use proptest::prelude::*;
    use std::fs;

    fn started(resumed_from: u64) -> Event {
        Event::Started(RunDescription { resumed_from, ..examples::description() })
    }

    fn write(path: &Path, events: impl IntoIterator<Item = Event>) {
        let mut file = MetricsFile::open(path).unwrap();
        events.into_iter().for_each(|event| file.observe(&event));
    }

    fn steps(path: &Path) -> Vec<u64> {
        let step = |event: &Event| if let Event::Step(record) = event { Some(record.step) } else { None };
        read_events(path).unwrap().iter().filter_map(step).collect()
    }

    #[test]
    fn each_event_is_a_line_at_once_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let mut file = MetricsFile::open(&path).unwrap();
        let sample = Event::Sample { step: 1, prompt: "a\n".into(), text: "\u{1f600}\"".into() };
        let events = [
            started(0),
            Event::Step(examples::step(1)),
            examples::evaluation(1),
            Event::Data(examples::data(1)),
            sample,
            examples::finished(1),
        ];
        for (index, event) in events.iter().enumerate() {
            file.observe(event);
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), index + 1);
        }
        let again: Vec<_> = read_events(&path).unwrap().iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(again, events.map(|event| format!("{event:?}")));
    }

    #[test]
    fn a_resumed_run_reads_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let life = |first: u64, last: u64| {
            std::iter::once(started(first))
                .chain((first + 1..=last).map(|step| Event::Step(examples::step(step))))
        };
        write(&path, life(0, 7));
        // A kill in the middle of a line.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"event\":\"step\",\"st").unwrap();
        write(&path, life(4, 6));
        assert_eq!(steps(&path), [1, 2, 3, 4, 5, 6]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 8, "two starts and six steps");
        write(&path, life(0, 2));
        assert_eq!(steps(&path), [1, 2]);
    }

    #[test]
    fn what_is_not_finite_reads_back_as_not_a_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        write(&path, [Event::Step(StepRecord { loss: f64::INFINITY, mfu: f64::NAN, ..examples::step(1) })]);
        let Event::Step(record) = &read_events(&path).unwrap()[0] else { panic!("a step was written") };
        assert!(record.loss.is_nan() && record.mfu.is_nan());
        assert_eq!(record.step_s, 1.0);
    }

    #[test]
    fn lines_of_other_versions_are_kept_and_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        fs::write(&path, "{\"event\":\"later\",\"step\":2}\nnonsense\n{\"event\":\"later\",\"step\":9}\n")
            .unwrap();
        write(&path, [started(5)]);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"event\":\"later\",\"step\":2}\n{\"event\":\"started\""), "{text}");
        assert_eq!(read_events(&path).unwrap().len(), 1);
    }

    #[test]
    fn lines_of_versions_that_knew_no_axes_are_read() {
        let without = |event: &Event, key: &str| {
            let mut value = serde_json::to_value(event).unwrap();
            assert!(value.as_object_mut().unwrap().remove(key).is_some());
            parse(&serde_json::to_vec(&value).unwrap())
        };
        let step = without(&Event::Step(examples::step(3)), "exposed_by_axis_s");
        assert!(matches!(step, Some(Event::Step(record)) if record.exposed_by_axis_s.total() == 0.0));
        for key in ["data_wait_s", "data_wait_by_cause_s"] {
            let step = without(&Event::Step(examples::step(3)), key);
            assert!(matches!(step, Some(Event::Step(record)) if record.step == 3), "{key}");
        }
        let started = without(&Event::Started(examples::description()), "mesh");
        assert!(matches!(started, Some(Event::Started(run)) if run.mesh.world_size() == 1));
    }

    #[test]
    fn a_line_beyond_the_bound_is_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.jsonl");
        let mut text = vec![b'x'; LONGEST_LINE_BYTES as usize * 2 + 5];
        text.extend_from_slice(b"\n{\"event\":\"calibrated\",\"total_steps\":3}\n");
        fs::write(&path, text).unwrap();
        assert!(matches!(read_events(&path).unwrap()[..], [Event::Calibrated { total_steps: 3 }]));
    }

    proptest! {
        #[test]
        fn no_line_panics(text in "\\PC{0,40}|\\{\"event\":\"(step|sample|started)\",\"step\":[0-9]{0,25}\\}") {
            let _ = parse(text.as_bytes());
            let _ = keeps(text.as_bytes(), 3);
        }
    }
}
