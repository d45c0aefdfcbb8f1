//! Ranks that share out each layer, as threads of one process, against the whole model.

use crate::model::{model_on, small};
use crate::parts::{read, three_parts, through_stages, visited, whole};
use gradus_compute::{CpuDevice, Device, IGNORED, Matrix, Precision, Reference};
use gradus_memory::{Layout, Span};
use gradus_model::{
    Batch, Combine, Family, LossSum, ModelConfig, Part, Run, Seams, StageMemory, Transformer, Workspace,
    WorkspaceSize,
};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// A rank's lines to all ranks, itself among them; one who panics hangs up, and nobody waits for it.
struct Lines {
    to: Vec<Sender<Vec<f32>>>,
    from: Vec<Receiver<Vec<f32>>>,
}

impl Lines {
    /// Those of all ranks.
    fn lay(ranks: usize) -> Vec<Self> {
        let mut lines: Vec<_> = (0..ranks).map(|_| Self { to: Vec::new(), from: Vec::new() }).collect();
        for sender in 0..ranks {
            for receiver in 0..ranks {
                let (to, from) = channel();
                lines[sender].to.push(to);
                lines[receiver].from.push(from);
            }
        }
        lines
    }

    /// What each rank has for this one.
    fn exchange(&self, what: impl Fn(usize) -> Vec<f32>) -> Vec<Vec<f32>> {
        self.to.iter().enumerate().for_each(|(rank, line)| line.send(what(rank)).unwrap());
        self.from.iter().map(|line| line.recv().unwrap()).collect()
    }
}

/// Exchanges what a pass asks for, and leaves nothing in what is undefined.
struct Exchange<'a> {
    lines: Lines,
    device: &'a dyn Device,
    rank: usize,
}

impl Exchange<'_> {
    /// The rows of a rank in their place.
    fn rows(&self, all: Matrix, rank: usize, rows: usize, width: usize) -> Span {
        let ranks = self.lines.to.len();
        let part =
            Part { layers: 0..0, embedding: false, head: false, tensor_rank: rank, tensor_ranks: ranks };
        let own = part.rows(rows);
        all.part(own.start * width, own.len() * width).span
    }
}

impl Seams for Exchange<'_> {
    fn gather_rows(&self, all: Matrix, rows: usize, width: usize) {
        let own = read(self.device, self.rows(all, self.rank, rows, width));
        for (rank, theirs) in self.lines.exchange(|_| own.clone()).iter().enumerate() {
            self.device.write(self.rows(all, rank, rows, width), theirs);
        }
    }

    fn sum_rows(&self, partial: Span, rows: usize, width: usize) {
        let of = |rank| self.rows(partial.into(), rank, rows, width);
        let summands = self.lines.exchange(|rank| read(self.device, of(rank)));
        self.device.fill(partial, f32::NAN);
        self.device.write(of(self.rank), &folded(&summands, |a, b| a + b));
    }

    fn combine(&self, values: Span, how: Combine) {
        let all = self.lines.exchange(|_| read(self.device, values));
        let combined = match how {
            Combine::Sum => folded(&all, |a, b| a + b),
            Combine::Max => folded(&all, f32::max),
        };
        self.device.write(values, &combined);
    }
}

fn folded(all: &[Vec<f32>], fold: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    (0..all[0].len()).map(|i| all.iter().map(|one| one[i]).reduce(&fold).unwrap()).collect()
}

/// What is cut, and how it is run.
#[derive(Debug, Clone)]
struct Case {
    config: ModelConfig,
    ranks: usize,
    staged: bool,
    memory: StageMemory,
    precision: Precision,
    cpu: bool,
    prepared: bool,
    visits: bool,
}

impl Case {
    /// A model that so many ranks can share out, on the reference, kept in f32.
    fn new(family: Family, tied: bool, ranks: usize, vocabulary: usize) -> Self {
        let (heads, kv_heads) = (2 * ranks, if family == Family::Gpt2 { 2 * ranks } else { ranks });
        let sizes = ModelConfig { vocabulary, heads, kv_heads, width: 4 * heads, ..small(family, tied) };
        let config = ModelConfig { feed_forward: 6 * ranks, layers: 4, ..sizes };
        let memory = StageMemory { rows: 10, recompute: false, split_backward: false, slots: 2 };
        Self {
            config,
            ranks,
            staged: false,
            memory,
            precision: Precision::F32,
            cpu: false,
            prepared: false,
            visits: false,
        }
    }

    fn device(&self) -> Arc<dyn Device> {
        match self.cpu {
            true => Arc::new(CpuDevice::new(1, self.precision, 1 << 23).unwrap()),
            false => Arc::new(Reference::new(self.precision, 1 << 20).unwrap()),
        }
    }

    fn parts(&self, rank: usize) -> Vec<Part> {
        if self.staged {
            return three_parts(rank, self.ranks).into();
        }
        vec![Part { tensor_rank: rank, tensor_ranks: self.ranks, ..Part::whole(&self.config) }]
    }

    /// The whole model, no element of which is zero.
    fn model(&self) -> Transformer {
        let model = model_on(self.config.clone(), self.device());
        for tensor in model.parameters().layout.tensors().iter().filter(|tensor| tensor.shape.len() == 1) {
            let shift = |(i, x)| x + 0.3 * (i as f32 + tensor.name.len() as f32).sin();
            let shifted: Vec<f32> = model.get(tensor.span()).into_iter().enumerate().map(shift).collect();
            model.put(tensor.span(), &shifted);
        }
        model
    }

    /// What a rank comes to.
    fn run(&self, lines: Lines, rank: usize, batches: [Batch; 2]) -> Outcome {
        let of = self.model();
        let device = of.device();
        let seams = Exchange { lines, device: device.as_ref(), rank };
        let (loss, stages) =
            through_stages(&of, &self.parts(rank), (self.memory, self.prepared), batches, &seams);
        if let [only] = &stages[..] {
            let held_out = batches.map(|batch| only.model.loss(&only.slots[0], batch, &seams).unwrap());
            assert_eq!(held_out[0].nats + held_out[1].nats, loss.nats);
        }
        let gradients = stages.iter().map(|stage| {
            let parameters = stage.model.parameters();
            let sums = if self.visits { visited(&stage.model, batches, &seams).1 } else { stage.gradients };
            for norm in parameters.partial_gradients(Span::new(0, parameters.layout.len())) {
                seams.combine(sums.part(norm.start, norm.len), Combine::Sum);
            }
            (parameters.runs(&of.parameters().layout), read(device.as_ref(), sums))
        });
        Outcome { loss, stages: gradients.collect() }
    }

    /// Compares all ranks with the whole.
    fn check(&self, tolerance: f64) {
        let rows = self.memory.rows as u32;
        let tokens: Vec<u32> = (0..=rows).map(|i| (i * 47 + 3) % self.config.vocabulary as u32).collect();
        let ignored = |i: usize| if i % 10 == 5 { IGNORED } else { tokens[i] };
        let targets: Vec<u32> = (1..tokens.len()).map(ignored).collect();
        let documents: Vec<u32> = (0..rows).map(|i| i / 3).collect();
        let batches = [Some(&documents[..]), None].map(|documents| Batch {
            batch: targets.len() / 5,
            sequence: 5,
            tokens: &tokens[..targets.len()],
            targets: &targets,
            documents,
        });
        let model = self.model();
        let (loss, gradients) = whole(&model, batches);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let lines = Lines::lay(self.ranks).into_iter().enumerate();
            let ranks = lines.map(|(rank, lines)| scope.spawn(move || self.run(lines, rank, batches)));
            ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for outcome in &outcomes {
            assert_eq!(outcome.loss, outcomes[0].loss);
            assert_eq!(outcome.loss.targets, loss.targets);
        }
        let apart = (outcomes[0].loss.nats - loss.nats).abs();
        assert!(apart <= tolerance * loss.nats, "{self:?}: losses differ by {apart}");
        let layout = &model.parameters().layout;
        let sums = gathered(&outcomes, layout);
        for tensor in layout.tensors() {
            let of = |all: &[f32]| tensor.span().of(all);
            let [expected, got] = [&gradients, &sums].map(|all| of(all));
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let differences = &mut expected.iter().zip(&got).map(|(a, b)| f64::from(a - b));
            let (apart, of) = (norm(differences), norm(&mut expected.iter().map(|x| f64::from(*x))));
            assert!(apart <= tolerance * of, "{self:?} {}: {apart} of {of}", tensor.name);
        }
    }
}

/// A part of a layout's values.
trait Of {
    fn of(&self, all: &[f32]) -> Vec<f32>;
}

impl Of for Span {
    fn of(&self, all: &[f32]) -> Vec<f32> {
        all[self.start..self.end()].to_vec()
    }
}

/// What a rank came to: its loss, and the gradients of each stage, with their places in the whole layout.
struct Outcome {
    loss: LossSum,
    stages: Vec<(Vec<Run>, Vec<f32>)>,
}

/// The gradients of all ranks in the whole layout: the same bits where several ranks have an element, the sum where several
/// stages have one.
fn gathered(outcomes: &[Outcome], layout: &Layout) -> Vec<f32> {
    let mut sums = vec![0.0; layout.len()];
    for stage in 0..outcomes[0].stages.len() {
        let mut known = vec![None; layout.len()];
        for (runs, values) in outcomes.iter().map(|outcome| &outcome.stages[stage]) {
            for run in runs {
                let own = &values[run.local..][..run.whole.len];
                for (known, own) in known[run.whole.start..run.whole.end()].iter_mut().zip(own) {
                    assert!(known.is_none_or(|known: f32| known.to_bits() == own.to_bits()));
                    *known = Some(*own);
                }
            }
        }
        sums.iter_mut().zip(known).for_each(|(sum, known)| *sum += known.unwrap_or(0.0));
    }
    sums
}

/// Of all kinds, and with a vocabulary of one block, and of three.
fn cases(ranks: usize) -> impl Iterator<Item = Case> {
    let kinds = [(Family::Gpt2, true), (Family::Gpt2, false), (Family::Llama, true), (Family::Llama, false)];
    let each = move |vocabulary| kinds.map(|(family, tied)| Case::new(family, tied, ranks, vocabulary));
    [21, 150].into_iter().flat_map(each)
}

#[test]
fn ranks_that_share_out_layers_come_to_the_whole_models_gradients() {
    (1..=4).flat_map(cases).for_each(|case| case.check(1e-5));
}

#[test]
fn nothing_changes_where_forward_runs_again_or_weights_wait() {
    for case in cases(2).chain(cases(3)) {
        for (recompute, split_backward) in [(true, false), (false, true), (true, true)] {
            let memory = StageMemory { recompute, split_backward, ..case.memory };
            Case { memory, ..case.clone() }.check(1e-5);
        }
    }
}

#[test]
fn stages_may_be_shared_out_too() {
    for case in cases(2).chain(cases(3)) {
        for (recompute, split_backward) in [(false, false), (true, true)] {
            let memory = StageMemory { recompute, split_backward, ..case.memory };
            Case { memory, staged: true, ..case.clone() }.check(1e-5);
        }
    }
}

#[test]
fn fast_kernels_know_shares_too_and_round_to_pairs_about_alike() {
    for case in cases(2).chain(cases(4)) {
        Case { cpu: true, ..case.clone() }.check(1e-5);
        for (cpu, prepared) in [(false, false), (true, false), (true, true)] {
            // What is kept in bf16 is off by up to 2^-9 of it, each time.
            Case { cpu, prepared, precision: Precision::Bf16, ..case.clone() }.check(1.0 / 32.0);
        }
    }
}

#[test]
fn weights_may_come_and_gradients_go_unit_by_unit() {
    for case in cases(2).chain(cases(4)) {
        Case { visits: true, ..case }.check(1e-5);
    }
}

#[test]
fn what_waits_for_the_way_back_is_shared_out() {
    let case = Case::new(Family::Llama, true, 4, 150);
    for (recompute, split_backward) in [(false, false), (true, true)] {
        let memory = StageMemory { rows: 64, recompute, split_backward, slots: 2 };
        let size = |rank, ranks| {
            let part = Part { tensor_rank: rank, tensor_ranks: ranks, ..Part::whole(&case.config) };
            Workspace::size_of_stage(&case.config, &part, memory, Precision::F32)
        };
        let (WorkspaceSize { slot: whole, .. }, WorkspaceSize { slot: share, .. }) = (size(0, 1), size(3, 4));
        // With the backward pass in halves, gradients of all rows wait in between.
        let most = if split_backward { whole * 2 / 3 } else { whole / 4 };
        assert!(share <= most, "{share} of {whole} with {memory:?}");
    }
}

#[test]
fn shares_that_cut_a_head_and_batches_of_fewer_rows_than_ranks_are_refused() {
    let case = Case::new(Family::Llama, true, 2, 21);
    let of = |ranks| {
        let part = Part { tensor_rank: 1, tensor_ranks: ranks, ..Part::whole(&case.config) };
        Transformer::of_part(case.config.clone(), part, case.device())
    };
    assert_eq!(*of(3).err().unwrap().kind(), gradus_error::Kind::Invalid);
    let model = of(2).unwrap();
    let slots =
        Workspace::for_stage(model.device().as_ref(), &case.config, model.part(), case.memory).unwrap();
    let one = Batch { batch: 1, sequence: 1, tokens: &[1], targets: &[2], documents: None };
    let refused = model.forward(&slots[0], one, &()).unwrap_err();
    assert_eq!(*refused.kind(), gradus_error::Kind::Invalid);
}

#[test]
fn more_rows_than_go_at_once_come_to_the_same() {
    for family in [Family::Gpt2, Family::Llama] {
        let mut case = Case { cpu: true, ..Case::new(family, true, 2, 10_000) };
        (case.memory.rows, case.config.layers) = (4105, 1);
        case.check(1e-5);
    }
}
