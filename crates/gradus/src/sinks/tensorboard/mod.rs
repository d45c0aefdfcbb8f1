//! A run's figures as TensorBoard reads them.
//!
//! Each life of a run writes a file of its own; a resumed one first declares void what earlier files say of the steps
//! that it does again, so that curves do not run back and forth. Tags: `train/loss`, `train/learning_rate`,
//! `train/gradient_norm`, `train/tokens_per_s`, `train/mfu`, `train/exposed_communication`, `train/exposed/pp`
//! and the like (axes with more than one rank), `train/data_wait`, `eval/loss`,
//! `eval/nats_per_byte`, `data/memory_hit_rate` and the like (where they are counted), and `sample` in the text tab.

mod proto;
mod record;

use gradus_error::{IoContext, Result};
use gradus_host::{Clock, RealClock};
use gradus_train::{DataRecord, EvaluationRecord, Event, Mesh, Observer, StepRecord};
use proto::Message;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Writes an event file.
pub struct TensorBoard {
    path: PathBuf,
    /// `None` once writing has failed.
    file: Option<File>,
    clock: Box<dyn Clock>,
    /// How the run's ranks split the work.
    mesh: Mesh,
}

impl TensorBoard {
    /// Makes `directory` and a new event file in it, named by time, host and process.
    ///
    /// # Errors
    /// The system's failure to make or write it.
    pub fn create(directory: &Path) -> Result<Self> {
        Self::create_with(directory, Box::new(RealClock::new()))
    }

    fn create_with(directory: &Path, clock: Box<dyn Clock>) -> Result<Self> {
        fs::create_dir_all(directory).context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(file_name(clock.calendar().as_secs()));
        let file = File::create(&path).context(|| format!("cannot make {}", path.display()))?;
        let mut sink = Self { path, file: Some(file), clock, mesh: Mesh::default() };
        sink.write(&proto::file_version(sink.wall_time_s()))?;
        Ok(sink)
    }

    fn wall_time_s(&self) -> f64 {
        self.clock.calendar().as_secs_f64()
    }

    fn write(&mut self, message: &Message) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        record::write_record(file, &message.0).context(|| format!("cannot write {}", self.path.display()))
    }

    fn message(&self, event: &Event) -> Option<Message> {
        let now = self.wall_time_s();
        match event {
            Event::Started(run) if run.resumed_from > 0 => {
                Some(proto::session_start(now, run.resumed_from + 1))
            }
            Event::Step(record) => Some(proto::scalars(now, record.step, &step_scalars(record, &self.mesh))),
            Event::Evaluation(record) => Some(proto::scalars(now, record.step, &evaluation_scalars(record))),
            Event::Data(record) => Some(proto::scalars(now, record.step, &data_scalars(record))),
            Event::Sample { step, prompt, text } => {
                Some(proto::text(now, *step, "sample", &as_markdown(prompt, text)))
            }
            _ => None,
        }
    }
}

impl Observer for TensorBoard {
    fn observe(&mut self, event: &Event) {
        if let Event::Started(run) = event {
            self.mesh = run.mesh;
        }
        let Some(message) = self.message(event) else { return };
        if let Err(error) = self.write(&message) {
            tracing::warn!("{error}; the run goes on without TensorBoard's file");
            self.file = None;
        }
    }
}

/// TensorBoard finds files by `tfevents` in their name and reads them in the order of their names.
fn file_name(seconds: u64) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().replace(['/', '\0'], "_");
    format!("events.out.tfevents.{seconds:010}.{host}.{}.0", std::process::id())
}

fn step_scalars(record: &StepRecord, mesh: &Mesh) -> Vec<(&'static str, f64)> {
    let by_axis = record.exposed_by_axis_s.along(mesh);
    let by_axis = by_axis.map(|(axis, time_s)| (exposed_tag(axis), time_s / record.step_s));
    let of_all = [
        ("train/loss", record.loss),
        ("train/learning_rate", record.learning_rate),
        ("train/gradient_norm", record.gradient_norm),
        ("train/tokens_per_s", record.tokens_per_s),
        ("train/mfu", record.mfu),
        ("train/exposed_communication", record.exposed_communication_s / record.step_s),
        ("train/data_wait", record.data_wait_s / record.step_s),
    ];
    of_all.into_iter().chain(by_axis).collect()
}

fn exposed_tag(axis: &str) -> &'static str {
    match axis {
        "pp" => "train/exposed/pp",
        "dp" => "train/exposed/dp",
        "fsdp" => "train/exposed/fsdp",
        "tp" => "train/exposed/tp",
        _ => "train/exposed/vote",
    }
}

fn data_scalars(record: &DataRecord) -> [(&'static str, f64); 6] {
    [
        ("data/memory_hit_rate", record.memory_hit_rate),
        ("data/disk_hit_rate", record.disk_hit_rate),
        ("data/bucket_bytes", record.bucket_bytes as f64),
        ("data/requests", record.requests as f64),
        ("data/retries", record.retries as f64),
        ("data/cost", record.cost),
    ]
}

fn evaluation_scalars(record: &EvaluationRecord) -> Vec<(&'static str, f64)> {
    let mut scalars = vec![("eval/loss", record.loss)];
    if record.nats_per_byte > 0.0 {
        scalars.push(("eval/nats_per_byte", record.nats_per_byte));
    }
    scalars
}

/// The text tab renders Markdown: indented by four it shows text as it is.
fn as_markdown(prompt: &str, text: &str) -> String {
    format!("{prompt}{text}").lines().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::examples;
    use super::*;
    use gradus_train::RunDescription;
    use std::time::Duration;

    /// A moment that stands still.
    struct Still;

    impl Clock for Still {
        fn now(&self) -> Duration {
            Duration::ZERO
        }

        fn calendar(&self) -> Duration {
            Duration::from_millis(1_700_000_000_500)
        }

        fn sleep(&self, _: Duration) {}
    }

    /// The records of a file, their checksums verified.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        let mut take = |count: usize| {
            let (taken, after) = rest.split_at_checked(count)?;
            rest = after;
            Some(taken.to_vec())
        };
        while let Some(length) = take(8) {
            assert_eq!(take(4).unwrap(), record::masked_crc32c(&length).to_le_bytes());
            let data = take(u64::from_le_bytes(length.try_into().unwrap()) as usize).unwrap();
            assert_eq!(take(4).unwrap(), record::masked_crc32c(&data).to_le_bytes());
            records.push(data);
        }
        records
    }

    /// The fields of a message: numbers, and for length-delimited ones the bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..64).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7F) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    fields.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        fields
    }

    fn field(bytes: &[u8], number: u64) -> Option<Vec<u8>> {
        fields(bytes).into_iter().find(|(field, _)| *field == number).map(|(_, value)| value)
    }

    fn written(events: &[Event]) -> Vec<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let mut sink =
            TensorBoard::create_with(&directory.path().join("tensorboard"), Box::new(Still)).unwrap();
        events.iter().for_each(|event| sink.observe(event));
        let name = sink.path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("events.out.tfevents.1700000000.") && name.ends_with(".0"), "{name}");
        records(&sink.path)
    }

    #[test]
    fn scalars_read_back_with_their_tags() {
        let records = written(&[
            Event::Started(examples::description()),
            Event::Step(examples::step(7)),
            examples::evaluation(7),
            Event::Data(examples::data(7)),
            examples::finished(7),
        ]);
        assert_eq!(records.len(), 4);
        assert_eq!(field(&records[0], 3).unwrap(), b"brain.Event:2");
        assert_eq!(field(&records[1], 1).unwrap(), 1_700_000_000.5f64.to_le_bytes());
        assert_eq!(field(&records[1], 2).unwrap(), 7u64.to_le_bytes());
        let summary = field(&records[1], 5).unwrap();
        let scalars: Vec<_> = fields(&summary)
            .iter()
            .map(|(number, value)| {
                assert_eq!(*number, 1);
                let scalar = f32::from_le_bytes(field(value, 2).unwrap().try_into().unwrap());
                (String::from_utf8(field(value, 1).unwrap()).unwrap(), scalar)
            })
            .collect();
        let expected: Vec<_> = step_scalars(&examples::step(7), &examples::description().mesh)
            .iter()
            .map(|(tag, value)| ((*tag).to_owned(), *value as f32))
            .collect();
        assert_eq!(scalars, expected);
        assert_eq!(scalars[7..], [("train/exposed/dp".into(), 0.001), ("train/exposed/vote".into(), 0.002)]);
        assert_eq!(fields(&field(&records[2], 5).unwrap()).len(), 2);
        assert_eq!(fields(&field(&records[3], 5).unwrap()).len(), 6);
    }

    #[test]
    fn a_resumed_run_voids_the_steps_it_does_again() {
        let resumed =
            |resumed_from| Event::Started(RunDescription { resumed_from, ..examples::description() });
        assert_eq!(written(&[resumed(0)]).len(), 1);
        let records = written(&[resumed(40)]);
        assert_eq!(field(&records[1], 2).unwrap(), 41u64.to_le_bytes());
        assert_eq!(field(&field(&records[1], 7).unwrap(), 1).unwrap(), 1u64.to_le_bytes());
    }

    #[test]
    fn samples_are_text() {
        let records =
            written(&[Event::Sample { step: 3, prompt: "Once".into(), text: " upon\na *time*".into() }]);
        let value = field(&field(&records[1], 5).unwrap(), 1).unwrap();
        assert_eq!(field(&value, 1).unwrap(), b"sample");
        assert_eq!(field(&field(&value, 8).unwrap(), 8).unwrap(), b"    Once upon\n    a *time*\n");
        assert_eq!(field(&field(&field(&value, 9).unwrap(), 1).unwrap(), 1).unwrap(), b"text");
    }
}
