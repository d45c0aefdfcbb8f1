//! A bucket is handed to the communicator, and its first bytes leave, before the backward pass has ended.

use super::*;
use crate::settings::{GradientFormat, OptimizerKind};
use gradus_collective::{Communicator, run_as_threads_apart};
use gradus_compute::{CpuDevice, Precision};
use gradus_host::{Clock, RealClock};
use gradus_model::{Batch, ModelConfig, PRESETS, Seams, Transformer, Workspace};
use half::bf16;
use std::time::Duration;

/// Bytes of a bucket.
const BUCKET: usize = 1 << 16;
/// For bytes that are free to leave.
const PATIENCE: Duration = Duration::from_secs(60);
/// Units: the final norm, three blocks, the embedding.
const UNITS: usize = 5;
const TOKENS: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const TARGETS: [u32; 8] = [2, 3, 4, 5, 6, 7, 8, 9];

fn model() -> Transformer {
    let (_, preset) = PRESETS.iter().find(|(name, _)| *name == "llama-tiny").unwrap();
    let config = ModelConfig { layers: 3, vocabulary: 50, context: 8, ..preset.clone() };
    let model =
        Transformer::new(config, Arc::new(CpuDevice::new(1, Precision::F32, 1 << 24).unwrap())).unwrap();
    model.initialise(1);
    model
}

/// Notes, each time that more becomes final, how many buckets had been started, how many bytes this rank had sent, and
/// whether it was the end. Before the last it stands still until bytes have left, or for [`PATIENCE`]: a busy machine may
/// give the thread that sends no turn as long as this small pass takes.
struct Watch<'a> {
    sum: &'a Reduction,
    bytes_sent: &'a dyn Fn() -> u64,
    /// Bytes that need nobody's answer to leave: half of the first bucket, none in a group of one.
    free_to_leave: u64,
    end: usize,
    seen: RefCell<Vec<Seen>>,
}

#[derive(Debug)]
struct Seen {
    started: usize,
    bytes_sent: u64,
    last: bool,
}

impl Seams for Watch<'_> {
    fn between_operations(&self) {
        self.sum.progress();
    }

    fn finished(&self, unit: Unit, range: Span) {
        self.sum.finished(unit, range);
        if self.seen.borrow().len() == UNITS - 2 {
            self.wait_for_bytes();
        }
        let (started, bytes_sent) = (self.sum.started(), (self.bytes_sent)());
        self.seen.borrow_mut().push(Seen { started, bytes_sent, last: range.end() == self.end });
    }
}

impl Watch<'_> {
    fn wait_for_bytes(&self) {
        let clock = RealClock::new();
        let begun = clock.now();
        while (self.bytes_sent)() < self.free_to_leave && clock.now().saturating_sub(begun) < PATIENCE {
            // As between the operations of a longer pass.
            self.sum.progress();
            clock.sleep(Duration::from_millis(1));
        }
    }
}

fn read(device: &dyn Device, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len];
    device.read(span, &mut values);
    values
}

/// One rank's backward pass.
struct Pass {
    /// What was seen while it went on.
    seen: Vec<Seen>,
    /// Its own gradients.
    alone: Vec<f32>,
    /// The sum of all ranks'.
    summed: Vec<f32>,
    /// Until the sum was there.
    bytes_sent: u64,
}

fn backward(mut communicator: Communicator, format: GradientFormat) -> Pass {
    let model = model();
    let device = Arc::clone(model.device());
    let layout_len = model.parameters().layout.len();
    let workspace = Workspace::for_training(device.as_ref(), model.config(), 8, false).unwrap();
    let batch = Batch { batch: 1, sequence: 8, tokens: &TOKENS, targets: &TARGETS, documents: None };
    let alone = device.allocate(layout_len).unwrap();
    model.forward_backward(&workspace, batch, alone, &()).unwrap();

    let units = model.parameters().units();
    let ranges: Vec<Span> = units.iter().map(|(_, range)| *range).collect();
    let sharding = Sharding::new(&model.parameters().layout, &ranges, 1, OptimizerKind::AdamW);
    // Memory that the other rank does not reach: bytes have to be sent.
    let memory = GradientMemory::kept(device.as_ref(), layout_len, &mut Communicator::alone()).unwrap();
    let summed = memory.place(Span::new(0, layout_len));
    let world: Vec<usize> = (0..communicator.world_size()).collect();
    let dp = AxisRanks::new(communicator.group(&world).unwrap());
    let fsdp = AxisRanks::new(communicator.group(&[communicator.rank()]).unwrap());
    let size = StagingSize::new(format, [dp.size(), 1], units, BUCKET);
    let rooms = |size| Staging::new(device.as_ref(), size, &mut Communicator::alone()).unwrap();
    let sum = Reduction::new(&device, units, &sharding, (dp, fsdp), (memory, size.map(rooms)), BUCKET);
    sum.clear();
    let halves = if format == GradientFormat::Bf16 { 4 } else { 2 };
    let watch = Watch {
        sum: &sum,
        bytes_sent: &|| communicator.counters().bytes_sent,
        free_to_leave: if communicator.world_size() > 1 { (BUCKET / halves) as u64 } else { 0 },
        end: layout_len,
        seen: RefCell::default(),
    };
    let gradients = sum.begin(true);
    model.forward_backward(&workspace, batch, gradients, &watch).unwrap();
    let seen = watch.seen.into_inner();
    sum.finish().unwrap();
    let [alone, summed] = [alone, summed].map(|span| read(device.as_ref(), span));
    Pass { seen, alone, summed, bytes_sent: communicator.counters().bytes_sent }
}

fn of_two(format: GradientFormat) -> Vec<Pass> {
    let pass = move |communicator: Communicator| backward(communicator, format);
    run_as_threads_apart(2, Duration::from_secs(120), pass).unwrap()
}

/// After the first block left, buckets are under way, and more after each.
fn assert_early(seen: &[Seen]) {
    assert_eq!(seen.len(), UNITS);
    assert!(seen[1].started > 0 && !seen[1].last && seen[UNITS - 1].last, "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].started <= pair[1].started), "{seen:?}");
    assert!(seen[3].started > seen[1].started, "{seen:?}");
}

#[test]
fn buckets_start_while_the_backward_pass_goes_on() {
    let Pass { seen, alone, summed, .. } = backward(Communicator::alone(), GradientFormat::F32);
    assert_early(&seen);
    assert_eq!(alone, summed, "one rank's sum is its own");
}

#[test]
fn bytes_leave_before_the_backward_pass_ends() {
    for Pass { seen, alone, summed, .. } in of_two(GradientFormat::F32) {
        assert_early(&seen);
        let before_the_last = &seen[UNITS - 2];
        // Headers of the meeting are a few hundred bytes.
        assert!(before_the_last.bytes_sent >= 1 << 15, "{seen:?}");
        let doubled: Vec<f32> = alone.iter().map(|x| x * 2.0).collect();
        assert_eq!(doubled, summed, "two ranks with the same batch");
    }
}

#[test]
fn halves_are_rounded_once_and_take_half_the_bytes() {
    let whole = of_two(GradientFormat::F32);
    for (pass, whole) in of_two(GradientFormat::Bf16).iter().zip(&whole) {
        assert_early(&pass.seen);
        let round = |x: &f32| bf16::from_f32(*x).to_f32();
        let doubled: Vec<f32> = pass.alone.iter().map(|x| round(x) * 2.0).collect();
        assert_eq!(doubled, pass.summed, "a number that is doubled needs no rounding");
        assert!(pass.bytes_sent < whole.bytes_sent * 11 / 20, "{} {}", pass.bytes_sent, whole.bytes_sent);
    }
}

#[test]
fn buckets_cover_the_layout_in_order() {
    assert_eq!(buckets(10, 4), [Span::new(0, 4), Span::new(4, 4), Span::new(8, 2)]);
    assert_eq!(buckets(0, 4), []);
    assert_eq!([bucket_len(0), bucket_len(16)], [1, 4]);
}
