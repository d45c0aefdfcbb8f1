//! The passes of one step: the program of this rank's place in the pipeline, carried out. Without a pipeline a program is
//! forward and backward in turn.

use super::seams::StepSeams;
use super::{Learner, Microbatches};
use crate::batches;
use crate::mesh::Mesh;
use crate::pipeline::{Action, ActionKind, Direction, Instruction, Message, Program};
use crate::settings::ParallelSettings;
use crate::stage::Stage;
use gradus_collective::{Buffer, Collective, Handle, Memory};
use gradus_compute::IGNORED;
use gradus_error::Result;
use gradus_memory::Span;
use gradus_model::{Backward, Batch, LossSum, Unit};
use std::ops::Range;

/// The microbatches of a data rank.
#[derive(Debug, Clone)]
pub(super) struct Share {
    /// Those that it learns from.
    own: Range<usize>,
    /// Passes that it makes in a step: where collectives come with each microbatch, as many as all others.
    pub passes: usize,
}

impl Share {
    pub fn new(microbatches: usize, data_rank: usize, mesh: &Mesh, parallel: &ParallelSettings) -> Self {
        let own = batches::share(microbatches, data_rank, mesh.data_ranks());
        let in_step = parallel.shards_gradients() || parallel.shards_parameters();
        let passes = if in_step { microbatches.div_ceil(mesh.data_ranks()) } else { own.len() };
        Self { own, passes }
    }

    /// Which one is passed through as the microbatch of this number.
    fn index(&self, number: usize, microbatches: &dyn Microbatches) -> usize {
        let index = self.own.start + number;
        if self.own.contains(&index) { index } else { self.own.start.min(microbatches.count() - 1) }
    }

    /// Loads what is passed through as the microbatch of this number. One beyond what this rank learns from is one of its own
    /// again, of which no target counts: all gradients are zero.
    fn load<'a>(
        &self,
        number: usize,
        microbatches: &'a mut dyn Microbatches,
        ignored: &'a mut Vec<u32>,
    ) -> Result<Batch<'a>> {
        let index = self.index(number, microbatches);
        let batch = microbatches.load(index)?;
        if self.own.contains(&(self.own.start + number)) {
            return Ok(batch);
        }
        ignored.resize(batch.tokens.len(), IGNORED);
        Ok(Batch { targets: ignored, ..batch })
    }
}

/// What of a step's passes is under way.
pub(super) struct Passes {
    share: Share,
    ignored: Vec<u32>,
    receives: Vec<(Message, Handle)>,
    /// By chunk and slot that is sent from.
    sends: Vec<(usize, usize, Handle)>,
}

impl Passes {
    pub fn new(share: Share, program: &Program) -> Self {
        let most = program.instructions.len();
        Self {
            share,
            ignored: Vec::new(),
            receives: Vec::with_capacity(most),
            sends: Vec::with_capacity(most),
        }
    }
}

impl Learner {
    /// Runs this rank's passes; sums of gradients begin while the last ones go on. The loss of this rank's data, on the one
    /// rank that counts it.
    pub(super) fn run_passes(&mut self, microbatches: &mut dyn Microbatches) -> Result<LossSum> {
        self.begin_step();
        let mut loss = LossSum::default();
        for index in 0..self.program.instructions.len() {
            match self.program.instructions[index] {
                Instruction::Receive { message, slot } => self.receive(message, slot, microbatches)?,
                Instruction::Send { message, slot } => self.send(message, slot, microbatches)?,
                Instruction::Pass { message, from, to } => self.pass_on(message, from, to, microbatches)?,
                Instruction::Compute { action, slot } => loss += self.compute(action, slot, microbatches)?,
            }
        }
        while let Some((_, _, handle)) = self.passes.sends.pop() {
            self.pp.wait(handle)?;
        }
        self.tp.finish()?;
        Ok(if self.place.tp == 0 { loss } else { LossSum::default() })
    }

    fn begin_step(&mut self) {
        self.passes.receives.clear();
        self.passes.sends.clear();
        for (chunk, stage) in self.stages.iter().enumerate() {
            stage.reduction.clear();
            if let Some(gathering) = &stage.gathering {
                let own = self.program.computations().filter(|action| action.chunk == chunk);
                gathering.expect(own.flat_map(|action| visits(stage, action.kind)));
            }
        }
    }

    fn compute(
        &mut self,
        action: Action,
        slot: usize,
        microbatches: &mut dyn Microbatches,
    ) -> Result<LossSum> {
        let Action { kind, chunk, .. } = action;
        let stage_number = self.shape.stage(self.place.pp, chunk);
        if let Some(needed) = Message::needed_by(self.shape, stage_number, action) {
            self.wait_for(needed)?;
        }
        if kind == ActionKind::Forward && stage_number == 0 {
            self.clear_slot(chunk, slot)?;
        }
        let begun = self.begin_work();
        let loss = self.pass(action, slot, microbatches)?;
        self.end_pass(begun, chunk, kind);
        Ok(loss)
    }

    /// A computation for which everything is there.
    fn pass(
        &mut self,
        Action { kind, microbatch, chunk }: Action,
        slot: usize,
        microbatches: &mut dyn Microbatches,
    ) -> Result<LossSum> {
        let batch = self.passes.share.load(microbatch, microbatches, &mut self.passes.ignored)?;
        let stage = &self.stages[chunk];
        let (workspace, seams) = (&stage.slots[slot], StepSeams { stage, tp: &self.tp });
        let Some(how) = backward(kind) else {
            stage.model.forward(workspace, batch, &seams)?;
            return Ok(LossSum::default());
        };
        let gradients = stage.reduction.begin(microbatch + 1 == self.passes.share.passes);
        let loss = stage.model.backward(workspace, batch, how, gradients, &seams)?;
        if self.stages.len() > 1 && kind.ends() && microbatch + 1 == self.passes.share.passes {
            // Chunks share their replicas: the sums of one begin before those of the next, on all of them.
            stage.reduction.settle();
        }
        Ok(loss)
    }

    /// Waits for what a computation needs, where it comes from another rank.
    fn wait_for(&mut self, message: Message) -> Result<()> {
        let receives = &mut self.passes.receives;
        match receives.iter().position(|(known, _)| *known == message) {
            Some(index) => self.pp.wait(receives.swap_remove(index).1),
            None => Ok(()),
        }
    }

    /// Waits until what was sent from a slot has left it.
    fn clear_slot(&mut self, chunk: usize, slot: usize) -> Result<()> {
        let is_of_it = |send: &(usize, usize, Handle)| (send.0, send.1) == (chunk, slot);
        while let Some(index) = self.passes.sends.iter().position(is_of_it) {
            let (_, _, handle) = self.passes.sends.swap_remove(index);
            self.pp.wait(handle)?;
        }
        Ok(())
    }

    /// Tokens of a microbatch.
    fn rows(&self, microbatch: usize, microbatches: &mut dyn Microbatches) -> Result<usize> {
        microbatches.tokens(self.passes.share.index(microbatch, microbatches))
    }

    /// Where a message lies that a chunk of this rank receives.
    fn inbox(&self, message: Message, slot: usize, rows: usize) -> Span {
        let workspace = &self.stages[self.shape.chunk_of(message.to_stage())].slots[slot];
        match message.direction {
            Direction::Activation => workspace.received(rows, &self.config),
            Direction::Gradient => workspace.received_gradient(rows, &self.config),
        }
    }

    /// Where a message lies that a chunk of this rank sends.
    fn outbox(&self, message: Message, slot: usize, rows: usize) -> Span {
        let workspace = &self.stages[self.shape.chunk_of(message.from_stage())].slots[slot];
        match message.direction {
            Direction::Activation => workspace.sent(rows, &self.config),
            Direction::Gradient => workspace.sent_gradient(rows, &self.config),
        }
    }

    fn receive(&mut self, message: Message, slot: usize, microbatches: &mut dyn Microbatches) -> Result<()> {
        let rows = self.rows(message.microbatch, microbatches)?;
        if message.direction == Direction::Activation {
            self.clear_slot(self.shape.chunk_of(message.to_stage()), slot)?;
        }
        let memory = Memory::InPlace(self.device().raw(self.inbox(message, slot, rows)).into());
        let from = self.shape.rank_of(message.from_stage());
        // SAFETY: by the program's order nobody touches this memory before the message is waited for; the learner drops its
        // communicators before the device's memory.
        let handle = unsafe { self.pp.start(&Collective::receive(from), memory) }?;
        self.passes.receives.push((message, handle));
        Ok(())
    }

    fn send(&mut self, message: Message, slot: usize, microbatches: &mut dyn Microbatches) -> Result<()> {
        let rows = self.rows(message.microbatch, microbatches)?;
        let input = Buffer::from(self.device().raw(self.outbox(message, slot, rows)));
        let memory = Memory::Apart { input, output: Buffer::empty::<f32>() };
        let to = self.shape.rank_of(message.to_stage());
        // SAFETY: nobody writes this memory before the slot is cleared; as in `receive`.
        let handle = unsafe { self.pp.start(&Collective::send(to), memory) }?;
        self.passes.sends.push((self.shape.chunk_of(message.from_stage()), slot, handle));
        self.pp.progress()
    }

    /// Hands something from one chunk of this rank to another.
    fn pass_on(
        &mut self,
        message: Message,
        from: usize,
        to: usize,
        microbatches: &mut dyn Microbatches,
    ) -> Result<()> {
        let rows = self.rows(message.microbatch, microbatches)?;
        self.copy(self.outbox(message, from, rows), self.inbox(message, to, rows));
        Ok(())
    }

    fn copy(&self, from: Span, to: Span) {
        let mut values = vec![0.0; from.len];
        self.device().read(from, &mut values);
        self.device().write(to, &values);
    }

    /// The summed loss of microbatches that nobody learns from, the same on every rank; all ranks call it with the same.
    ///
    /// # Errors
    /// What the data say, and the communicator's.
    pub fn evaluate(&mut self, microbatches: &mut dyn Microbatches) -> Result<LossSum> {
        self.unless_over(|learner| learner.run_evaluation(microbatches))
    }

    fn run_evaluation(&mut self, microbatches: &mut dyn Microbatches) -> Result<LossSum> {
        let (data_rank, data_ranks) = (self.mesh.data_rank(self.world.rank()), self.mesh.data_ranks());
        let own = batches::share(microbatches.count(), data_rank, data_ranks);
        let in_step = self.stages.iter().any(|stage| stage.gathering.is_some());
        let passes = if in_step { microbatches.count().div_ceil(data_ranks) } else { own.len() };
        let training = std::mem::replace(&mut self.passes.share, Share { own, passes });
        let loss = self.run_forward(passes, microbatches);
        self.passes.share = training;
        let loss = loss?;
        let mut sums = [loss.nats, loss.targets as f64];
        self.world.all_reduce(&mut sums)?;
        Ok(LossSum { nats: sums[0], targets: sums[1] as u64 })
    }

    fn run_forward(&mut self, passes: usize, microbatches: &mut dyn Microbatches) -> Result<LossSum> {
        for stage in &self.stages {
            if let Some(gathering) = &stage.gathering {
                let each = || stage.model.forward_visits().into_iter().chain(stage.model.head_visits());
                gathering.expect((0..passes).flat_map(|_| each()));
            }
        }
        let mut loss = LossSum::default();
        for microbatch in 0..passes {
            for chunk in 0..self.stages.len() {
                loss += self.forward_through(chunk, microbatch, microbatches)?;
            }
        }
        for chunk in 0..self.stages.len() {
            self.clear_slot(chunk, 0)?;
            self.stages[chunk].finish()?;
        }
        self.tp.finish()?;
        Ok(if self.place.tp == 0 { loss } else { LossSum::default() })
    }

    /// One microbatch through one chunk: from the stage before, forward, to the stage behind.
    fn forward_through(
        &mut self,
        chunk: usize,
        microbatch: usize,
        microbatches: &mut dyn Microbatches,
    ) -> Result<LossSum> {
        let stage = self.shape.stage(self.place.pp, chunk);
        let crossing = |boundary| Message { direction: Direction::Activation, microbatch, boundary };
        self.clear_slot(chunk, 0)?;
        if let Some(before) = stage.checked_sub(1).map(crossing) {
            if before.crosses(self.shape) {
                self.receive(before, 0, microbatches)?;
                self.wait_for(before)?;
            } else {
                self.pass_on(before, 0, 0, microbatches)?;
            }
        }
        let batch = self.passes.share.load(microbatch, microbatches, &mut self.passes.ignored)?;
        let own = &self.stages[chunk];
        let (workspace, seams) = (&own.slots[0], StepSeams { stage: own, tp: &self.tp });
        own.model.forward(workspace, batch, &seams)?;
        let loss = own.model.held_out_loss(workspace, batch, &seams)?;
        if stage + 1 < self.shape.stages() && crossing(stage).crosses(self.shape) {
            self.send(crossing(stage), 0, microbatches)?;
        }
        Ok(loss)
    }
}

/// Which half of a backward pass an action is; none for forward.
fn backward(kind: ActionKind) -> Option<Backward> {
    match kind {
        ActionKind::Forward => None,
        ActionKind::Backward => Some(Backward::Whole),
        ActionKind::BackwardInput => Some(Backward::Input),
        ActionKind::BackwardWeight => Some(Backward::Weight),
    }
}

/// Units whose weights an action reads, in order.
fn visits(stage: &Stage, kind: ActionKind) -> Vec<Unit> {
    backward(kind).map_or_else(|| stage.model.forward_visits(), |how| stage.model.backward_visits(how))
}
