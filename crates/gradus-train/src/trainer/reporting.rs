//! What a run tells its observers: what is known before the first step, each step, and who is waited for.

use super::Trainer;
use crate::events::{Event, Observer, RunDescription, StepRecord, Straggling};
use crate::exposed::Exposed;
use crate::learner::StepResult;
use crate::reading::{DataRecord, DataWaits};
use gradus_host::processors;
use gradus_store::MixtureProgress;

/// Times of one step on this rank, seconds.
#[derive(Clone, Copy)]
pub(super) struct StepTimes {
    pub step_s: f64,
    pub exposed: Exposed,
    pub data_waits: DataWaits,
    pub elapsed_s: f64,
    /// Steps that `elapsed_s` covers, with the evaluations and checkpoints among them.
    pub steps: usize,
}

impl Trainer {
    pub(super) fn describe(&mut self) -> RunDescription {
        let (train, held_out) = (self.data.train, self.data.held_out);
        let transport = self.learner.communicator().transport_name().to_owned();
        RunDescription {
            world_size: self.learner.mesh().world_size(),
            mesh: *self.learner.mesh(),
            device: self.learner.device().describe(),
            transport,
            parameters: self.learner.config().parameter_count(),
            model: self.learner.config().summary(),
            tokens_per_step: self.settings.train.global_batch * self.sequence,
            train_tokens: train.tokens,
            held_out_tokens: held_out.tokens,
            bytes_per_token: held_out.bytes_per_token.unwrap_or(0.0),
            peak_flops_per_s: self.peak_flops_per_s,
            resumed_from: self.state.step,
            mixture: self.mixture_progress(),
        }
    }

    pub(super) fn report_step(
        &mut self,
        observer: &mut dyn Observer,
        result: &StepResult,
        learning_rate: f64,
        times: StepTimes,
    ) {
        let tokens_per_s = result.loss.targets as f64 / times.step_s;
        let flops = self.learner.config().flops_per_token(self.sequence) * tokens_per_s;
        let left_steps = self.state.total_steps.saturating_sub(self.state.step) as f64;
        let known = self.state.total_steps > 0;
        observer.observe(&Event::Step(StepRecord {
            step: self.state.step,
            total_steps: self.state.total_steps,
            loss: result.loss.mean(),
            gradient_norm: result.gradient_norm,
            learning_rate,
            tokens: self.state.tokens,
            tokens_per_s,
            mfu: if self.peak_flops_per_s > 0.0 { flops / self.peak_flops_per_s } else { 0.0 },
            step_s: times.step_s,
            exposed_communication_s: times.exposed.total(),
            exposed_by_axis_s: times.exposed,
            data_wait_s: times.data_waits.total(),
            data_wait_by_cause_s: times.data_waits,
            memory_bytes: processors::resident_bytes().unwrap_or(0),
            elapsed_s: times.elapsed_s,
            left_s: if known { left_steps * times.elapsed_s / times.steps as f64 } else { 0.0 },
            skipped: result.skipped,
        }));
    }

    /// Tells what was read, where anybody counts it.
    pub(super) fn report_data(&self, observer: &mut dyn Observer) {
        let held_out = self.held_out.as_ref().and_then(|tokens| tokens.counters());
        if let Some(record) = DataRecord::of(self.state.step, [self.tokens.counters(), held_out]) {
            observer.observe(&Event::Data(DataRecord { mixture: self.mixture_progress(), ..record }));
        }
    }

    /// How far the run is with each dataset, if several are mixed.
    fn mixture_progress(&self) -> Vec<MixtureProgress> {
        let position = self.state.step * self.settings.train.global_batch as u64;
        self.data.mixture.as_ref().map(|order| order.progress(position)).unwrap_or_default()
    }

    /// A run that is over before its learning rate has risen is seldom what somebody wants.
    pub(super) fn warn_of_long_warmup(&mut self) {
        let (warmup, total) = (self.settings.optimizer.warmup_steps, self.state.total_steps);
        if total > 0 && warmup >= total && self.learner.communicator().rank() == 0 {
            tracing::warn!(
                "the run has {total} steps, all of them warm-up (optimizer.warmup_steps is {warmup}): the learning \
                 rate never reaches optimizer.learning_rate"
            );
        }
    }

    /// Tells of ranks that the others wait for.
    pub(super) fn report_stragglers(&mut self, observer: &mut dyn Observer, step_s: f64) {
        let Some(notice) = self.stragglers.step(step_s, self.learner.waits()) else { return };
        let mesh = self.learner.mesh();
        let mut hosts: Vec<String> = Vec::new();
        for host in notice.ranks.iter().filter_map(|rank| self.hosts.get(*rank)) {
            if !hosts.contains(host) {
                hosts.push(host.clone());
            }
        }
        observer.observe(&Event::Straggling(Straggling {
            step: self.state.step,
            place: mesh.common_place(&notice.ranks),
            hosts,
            waiting: (0..mesh.world_size()).filter(|rank| !notice.ranks.contains(rank)).collect(),
            ranks: notice.ranks,
            lag: notice.lag,
            lag_s: notice.lag_s,
        }));
    }
}
