//! Where a run's events go: a file of metrics, TensorBoard, the terminal.
//!
//! Each sink watches the training loop through [`Observer`]. A sink that fails says so once in the log and falls silent:
//! a full disk under the metrics must not end a run that could still save its checkpoint elsewhere.

mod metrics_jsonl;
mod preparation;
mod progress;
mod screen;
mod sheet;
mod tally;
mod tensorboard;

pub use metrics_jsonl::{MetricsFile, read_events};
pub use preparation::Preparation;
pub use progress::Progress;
pub use tally::Tally;
pub use tensorboard::TensorBoard;

use gradus_train::{Event, Observer};

/// Several observers as one; each sees every event, in the order of the list.
pub struct Many(pub Vec<Box<dyn Observer>>);

impl Observer for Many {
    fn observe(&mut self, event: &Event) {
        self.0.iter_mut().for_each(|observer| observer.observe(event));
    }
}

#[cfg(test)]
pub mod examples {
    //! Events of a small run, for tests.

    use gradus_train::{
        BytesBySource, DataRecord, DataWaits, EvaluationRecord, Event, Exposed, Mesh, RunDescription,
        StepRecord, Straggling,
    };

    /// What is known before the first step.
    pub fn description() -> RunDescription {
        RunDescription {
            mesh: Mesh { dp: 2, ..Mesh::default() },
            world_size: 2,
            device: "cpu: AVX-512, 1 thread, bf16".into(),
            transport: "shm".into(),
            parameters: 13_900_000,
            model: "gpt2: 6 layers, 384 wide".into(),
            tokens_per_step: 4096,
            train_tokens: 4_200_000,
            held_out_tokens: 210_000,
            bytes_per_token: 3.62,
            peak_flops_per_s: 2.31e12,
            resumed_from: 0,
            mixture: Vec::new(),
        }
    }

    /// Step number `step` of 100, one second after the one before.
    pub fn step(step: u64) -> StepRecord {
        StepRecord {
            step,
            total_steps: 100,
            loss: 2.0 + 6.0 / step as f64,
            gradient_norm: 0.81,
            learning_rate: 3e-4,
            tokens: step * 4096,
            tokens_per_s: 4096.0,
            mfu: 0.312,
            step_s: 1.0,
            exposed_communication_s: 0.008,
            exposed_by_axis_s: Exposed { pp: 0.005, dp: 0.001, vote: 0.002, ..Exposed::default() },
            data_wait_s: 0.003,
            data_wait_by_cause_s: DataWaits { bucket: 0.002, decode: 0.001, ..DataWaits::default() },
            memory_bytes: 440_234_147,
            elapsed_s: step as f64,
            left_s: (100 - step.min(100)) as f64,
            skipped: false,
        }
    }

    /// An evaluation after `step`.
    pub fn evaluation(step: u64) -> Event {
        Event::Evaluation(EvaluationRecord { step, loss: 3.41, nats_per_byte: 0.9412, targets: 210_000 })
    }

    /// What was read until `step`.
    pub fn data(step: u64) -> DataRecord {
        DataRecord {
            step,
            samples: 4000,
            bytes: 12_300_000_000,
            bytes_by_source: BytesBySource { memory: 7_503, disk: 3_690, peer: 0, bucket: 1_107 },
            memory_hit_rate: 0.61,
            disk_hit_rate: 0.3,
            misses: 1100,
            fetched_bytes: 1_099_000_000,
            requests: 1234,
            retries: 3,
            bucket_bytes: 1_100_000_000,
            cost: 0.011,
            ..DataRecord::default()
        }
    }

    /// Rank 1 of the two is found slow after `step`.
    pub fn straggling(step: u64) -> Event {
        Event::Straggling(Straggling {
            step,
            ranks: vec![1],
            place: "dp 1".into(),
            hosts: vec!["ada".into()],
            waiting: vec![0],
            lag: 0.18,
            lag_s: 0.18,
        })
    }

    /// The end after `step`.
    pub fn finished(step: u64) -> Event {
        Event::Finished { step, model: "runs/a/model".into(), interrupted: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, rc::Rc};

    struct Recorder(char, Rc<RefCell<String>>);

    impl Observer for Recorder {
        fn observe(&mut self, _: &Event) {
            self.1.borrow_mut().push(self.0);
        }
    }

    #[test]
    fn every_observer_sees_every_event_in_order() {
        let seen = Rc::new(RefCell::new(String::new()));
        let recorder = |name| Box::new(Recorder(name, seen.clone())) as Box<dyn Observer>;
        let mut many = Many(vec![recorder('a'), recorder('b')]);
        many.observe(&Event::Calibrated { total_steps: 1 });
        many.observe(&examples::finished(1));
        assert_eq!(*seen.borrow(), "abab");
    }
}
