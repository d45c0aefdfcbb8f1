//! What happens between steps: evaluations, checkpoints, samples, and the end.

use super::{Outcome, Trainer};
use crate::checkpoint;
use crate::evaluate::{Evaluation, evaluated_samples};
use crate::events::{EvaluationRecord, Event, Observer};
use gradus_error::Result;
use std::path::PathBuf;

impl Trainer {
    pub(super) fn evaluate_and_save_when_due(
        &mut self,
        observer: &mut dyn Observer,
        interrupted: bool,
    ) -> Result<()> {
        let step = self.state.step;
        let last = interrupted || step == self.state.total_steps;
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        if due(self.settings.train.evaluate_every) || (last && !interrupted) {
            self.evaluate(observer)?;
        }
        if due(self.settings.checkpoint.every) || last {
            self.save(observer)?;
        }
        Ok(())
    }

    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let split = self.data.held_out;
        let Some(tokens) = self.held_out.as_deref_mut() else { return Ok(()) };
        let shares = self.settings.parallel.shares(self.learner.mesh());
        let mut evaluation = Evaluation {
            tokens,
            buffer: &mut self.buffer,
            before: self.evaluations,
            samples: evaluated_samples(split.samples, self.settings.train.evaluate_tokens, self.sequence),
            batch: self.settings.train.microbatch_sequences(shares),
            sequence: self.sequence,
            rule: self.documents,
            loaded: None,
        };
        self.evaluations += 1;
        let sum = self.learner.evaluate(&mut evaluation)?;
        let bytes_per_token = split.bytes_per_token.unwrap_or(0.0);
        observer.observe(&Event::Evaluation(EvaluationRecord {
            step: self.state.step,
            loss: sum.mean(),
            nats_per_byte: if bytes_per_token > 0.0 { sum.mean() / bytes_per_token } else { 0.0 },
            targets: sum.targets,
        }));
        self.report_data(observer);
        Ok(())
    }

    /// Rank 0 saves, once all ranks have found that they hold the same bits; the others wait for it.
    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        self.learner.check_agreement()?;
        if self.learner.communicator().rank() == 0 {
            self.write_checkpoint(observer)?;
        } else {
            self.learner.serve()?;
        }
        self.learner.communicator().patient_barrier()
    }

    fn write_checkpoint(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let folder = checkpoint::folder_of(&self.settings.folder, self.state.step);
        checkpoint::save(&folder, &mut self.learner, self.tokenizer.as_ref(), &self.state)?;
        checkpoint::prune(&self.settings.folder, self.settings.checkpoint.keep)?;
        observer.observe(&Event::Checkpoint { step: self.state.step, path: folder });
        Ok(())
    }

    pub(super) fn finish(&mut self, observer: &mut dyn Observer, interrupted: bool) -> Result<Outcome> {
        let mut model = PathBuf::new();
        if self.learner.communicator().rank() > 0 && !interrupted {
            self.learner.serve()?;
        } else if !interrupted {
            model = self.settings.folder.join("model");
            checkpoint::export_learned(&model, &mut self.learner, self.tokenizer.as_ref())?;
            self.write_sample(observer)?;
        }
        self.learner.communicator().patient_barrier()?;
        self.report_data(observer);
        observer.observe(&Event::Finished { step: self.state.step, model, interrupted });
        let checkpoint = checkpoint::folder_of(&self.settings.folder, self.state.step);
        Ok(Outcome { step: self.state.step, interrupted, checkpoint })
    }

    pub(super) fn write_sample(&mut self, observer: &mut dyn Observer) -> Result<()> {
        if let (Some(sampler), Some(tokenizer)) = (&mut self.sampler, &self.tokenizer) {
            let model = self.learner.whole_model().expect("who samples has the whole model");
            let (prompt, text) = sampler.write(model, tokenizer)?;
            observer.observe(&Event::Sample { step: self.state.step, prompt, text });
        }
        Ok(())
    }
}
