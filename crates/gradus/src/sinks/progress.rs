//! What a person watching a run sees: a bar on a terminal, lines elsewhere.
//!
//! Every figure comes from the events; the only clock is the `elapsed_s` that steps carry. In lines the first steps are
//! all shown, then one about every few seconds, and always the last.

use super::screen::Screen;
use super::sheet;
use super::tally::Tally;
use crate::wording;
use gradus_train::{DataRecord, EvaluationRecord, Event, Mesh, Observer, RunDescription, StepRecord};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

/// Steps of each life of a run that are all shown as lines.
const FIRST_STEPS: u64 = 10;

/// Time between lines from then on, seconds.
const BETWEEN_LINES_S: f64 = 5.0;

/// Once the run's length is known. Up to step 9,999 it fits a terminal of 80 columns; beyond, its end is cut.
const KNOWN: &str = " {bar:10.cyan/238} {prefix}  {wide_msg}";

/// Before that.
const UNKNOWN: &str = " {spinner:.cyan} {prefix}  {wide_msg}";

/// Shows a run's progress on stderr.
pub struct Progress {
    screen: Screen,
    /// What the last words name beside the model, by its label.
    paths: Vec<(String, PathBuf)>,
    peak_flops_per_s: f64,
    mesh: Mesh,
    tally: Tally,
    evaluation: Option<EvaluationRecord>,
    data: Option<DataRecord>,
    last: Option<StepRecord>,
    /// `elapsed_s` of the last line.
    shown_at_s: f64,
    is_last_shown: bool,
    checkpoint: Option<PathBuf>,
}

impl Progress {
    /// Progress on stderr; the last words name `paths`, each behind a label of at most ten letters (`report`, ...).
    pub fn new(paths: Vec<(String, PathBuf)>) -> Self {
        Self::on(Screen::stderr(), paths)
    }

    fn on(screen: Screen, paths: Vec<(String, PathBuf)>) -> Self {
        Self {
            screen,
            paths,
            peak_flops_per_s: 0.0,
            mesh: Mesh::default(),
            tally: Tally::default(),
            evaluation: None,
            data: None,
            last: None,
            shown_at_s: 0.0,
            is_last_shown: true,
            checkpoint: None,
        }
    }

    fn start(&mut self, run: &RunDescription) {
        self.peak_flops_per_s = run.peak_flops_per_s;
        self.mesh = run.mesh;
        let text = sheet::description(run, self.screen.paint());
        self.screen.say(&text);
    }

    fn step(&mut self, record: &StepRecord) {
        self.tally.add(record);
        self.last = Some(record.clone());
        self.is_last_shown = false;
        let paint = self.screen.paint();
        if let Screen::Terminal(bar) = &self.screen {
            draw(bar, record, &sheet::bar_message(record, self.tally.loss.mean(), paint));
        } else if self.wants_line(record) {
            self.show_last();
        }
    }

    fn wants_line(&self, record: &StepRecord) -> bool {
        let since = record.elapsed_s - self.shown_at_s;
        self.tally.steps <= FIRST_STEPS
            || record.skipped
            || record.step == record.total_steps
            || since >= BETWEEN_LINES_S
    }

    fn show_last(&mut self) {
        if let (Some(record), false) = (&self.last, self.is_last_shown) {
            self.shown_at_s = record.elapsed_s;
            self.is_last_shown = true;
            let line = sheet::step_line(record, self.peak_flops_per_s, &self.mesh);
            self.screen.say(&line);
        }
    }

    fn finish(&mut self, step: u64, model: &Path, interrupted: bool) {
        if matches!(self.screen, Screen::Lines(_)) {
            self.show_last();
        }
        self.screen.clear();
        let text = self.summary(step, model, interrupted);
        self.screen.say(&text);
    }

    fn summary(&self, step: u64, model: &Path, interrupted: bool) -> String {
        let shown = |path: &Path| path.display().to_string();
        let mut paths = Vec::new();
        match &self.checkpoint {
            Some(checkpoint) if interrupted => paths.push(("checkpoint", shown(checkpoint))),
            _ if !model.as_os_str().is_empty() => paths.push(("model", shown(model))),
            _ => {}
        }
        paths.extend(self.paths.iter().map(|(label, path)| (label.as_str(), shown(path))));
        let end = sheet::End {
            step,
            interrupted,
            tally: &self.tally,
            mesh: self.mesh,
            evaluation: self.evaluation.as_ref(),
            data: self.data.as_ref(),
            elapsed_s: self.last.as_ref().map_or(0.0, |record| record.elapsed_s),
            paths,
        };
        sheet::summary(&end, self.screen.paint())
    }
}

impl Observer for Progress {
    fn observe(&mut self, event: &Event) {
        match event {
            Event::Started(run) => self.start(run),
            Event::Calibrated { total_steps } => {
                self.screen.say(&format!("the run takes {} steps", wording::grouped(*total_steps)));
            }
            Event::Step(record) => self.step(record),
            Event::Straggling(record) => {
                self.screen.say(&format!("step: {}  {}", record.step, wording::straggling(record)));
            }
            Event::Evaluation(record) => {
                self.screen.say(&sheet::evaluation_line(record));
                self.evaluation = Some(record.clone());
            }
            Event::Data(record) => self.data = Some(record.clone()),
            Event::Sample { step, prompt, text } => {
                let text = sheet::sample(*step, prompt, text, self.screen.paint());
                self.screen.say(&text);
            }
            Event::Checkpoint { step, path } => {
                self.screen.say(&format!("step: {step}  checkpoint: {}", path.display()));
                self.checkpoint = Some(path.clone());
            }
            Event::Finished { step, model, interrupted } => self.finish(*step, model, *interrupted),
        }
    }
}

fn draw(bar: &ProgressBar, record: &StepRecord, message: &str) {
    let step = wording::grouped(record.step);
    let (template, prefix) = match record.total_steps {
        0 => (UNKNOWN, format!("step {step}")),
        total => (KNOWN, format!("{step}/{}", wording::grouped(total))),
    };
    let style = ProgressStyle::with_template(template).expect("the template is fixed and sound");
    // The builder's calls set what `set_style` and its like would, without drawing: the last line draws all at once.
    let bar = bar
        .clone()
        .with_style(style.progress_chars("━╸─"))
        .with_prefix(prefix)
        .with_message(message.to_owned());
    if record.total_steps > 0 && bar.length() != Some(record.total_steps) {
        bar.set_length(record.total_steps);
    }
    bar.set_position(record.step);
}

#[cfg(test)]
mod tests {
    use super::super::{examples, screen::fake::Memory};
    use super::*;

    fn run(progress: &mut Progress) {
        progress.observe(&Event::Started(examples::description()));
        progress.observe(&Event::Step(StepRecord { total_steps: 0, left_s: 0.0, ..examples::step(1) }));
        progress.observe(&Event::Calibrated { total_steps: 100 });
        for step in 2..=33 {
            progress.observe(&Event::Step(examples::step(step)));
        }
        progress.observe(&examples::straggling(33));
        progress.observe(&examples::evaluation(33));
        progress.observe(&Event::Data(examples::data(33)));
        progress.observe(&Event::Sample { step: 33, prompt: "Once".into(), text: " upon".into() });
        progress.observe(&Event::Checkpoint { step: 33, path: "runs/a/checkpoints/33".into() });
    }

    fn steps_shown(text: &str) -> Vec<u64> {
        let lines = text.lines().filter(|line| line.contains("grad_norm"));
        lines.filter_map(|line| line.strip_prefix("step: ")?.split(' ').next()?.parse().ok()).collect()
    }

    #[test]
    fn lines_thin_out_and_end_with_the_last_step() {
        let memory = Memory::default();
        let mut progress = Progress::on(memory.lines(), vec![("report".into(), "runs/a/report.html".into())]);
        run(&mut progress);
        assert_eq!(steps_shown(&memory.text()), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 30]);
        progress.observe(&examples::finished(33));
        let text = memory.text();
        assert_eq!(steps_shown(&text).last(), Some(&33));
        assert!(text.contains("step: 33  rank 1 (dp 1) on ada is 18% of a step"), "{text}");
        assert!(text.contains("step: 33  held-out loss: 3.4100  nats per byte: 0.9412\n"), "{text}");
        assert!(
            text.contains("  │ Once upon\n") && text.contains("checkpoint: runs/a/checkpoints/33\n"),
            "{text}"
        );
        assert!(text.contains("done, 33 steps\n  loss        8.0000 -> "), "{text}");
        assert!(text.contains("  held out    3.4100 nats per token, 0.9412 per byte\n"), "{text}");
        assert!(text.contains("  data        12.3GB read: memory 61%, disk 30%, bucket 9% ("), "{text}");
        assert!(text.contains("  tokens      135k, 4.10k per second\n"), "{text}");
        assert!(
            text.contains("  report      runs/a/report.html\n") && text.contains("runs/a/model"),
            "{text}"
        );
        assert!(!text.contains('\x1b'), "no colours but on a terminal");
    }

    #[test]
    fn an_interrupted_run_names_its_checkpoint() {
        let memory = Memory::default();
        let mut progress = Progress::on(memory.lines(), Vec::new());
        run(&mut progress);
        progress.observe(&Event::Finished { step: 33, model: PathBuf::new(), interrupted: true });
        assert!(memory.text().contains("interrupted after step 33\n"));
        assert!(memory.text().contains("  checkpoint  runs/a/checkpoints/33\n"));
    }

    #[test]
    fn a_terminal_has_a_bar_and_the_same_words_above_it() {
        let memory = Memory::default();
        let mut progress = Progress::on(memory.terminal(), Vec::new());
        run(&mut progress);
        progress.observe(&examples::finished(33));
        let text = memory.text();
        assert!(text.contains("1/100") || text.contains("33/100") || text.contains("2/100"), "{text}");
        assert!(text.contains("held-out loss: 3.4100") && text.contains("done, 33 steps"), "{text}");
        assert_eq!(steps_shown(&text), Vec::<u64>::new(), "steps are the bar's business");
    }
}
