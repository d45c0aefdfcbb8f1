//! What the terminal says, as text: the first block, the line of a step, the last block.

use super::screen::Paint;
use super::tally::Tally;
use crate::wording;
use gradus_train::{DataRecord, EvaluationRecord, Mesh, RunDescription, StepRecord};

/// Columns of the labels of a block.
const LABEL_WIDTH: usize = 10;

/// Lines of a sample that are shown.
const SAMPLE_LINES: usize = 16;

/// Labels and values, one pair on each line.
pub fn block(title: &str, rows: &[(&str, String)], paint: Paint) -> String {
    let mut text = format!("\n  {}\n", paint.bold(title));
    for (label, value) in rows {
        let label = format!("{label:LABEL_WIDTH$}");
        text.push_str(&format!("  {}  {}\n", paint.dim(&label), wording::printable(value)));
    }
    text
}

/// What is known before the first step.
pub fn description(run: &RunDescription, paint: Paint) -> String {
    let mut rows = vec![
        ("model", format!("{}, {} parameters", run.model, wording::quantity(run.parameters as f64))),
        ("data", data(run)),
        ("step", format!("{} tokens", wording::grouped(run.tokens_per_step as u64))),
        ("ranks", wording::ranks(run.world_size, &run.transport)),
        ("device", run.device.clone()),
    ];
    if run.mesh.world_size() > 1 {
        rows.insert(4, ("mesh", run.mesh.describe()));
    }
    if !run.mixture.is_empty() {
        rows.insert(2, ("mixture", wording::mixture(&run.mixture)));
    }
    if run.peak_flops_per_s > 0.0 {
        rows.push(("peak", format!("{}FLOP/s in matrix products, measured", flops(run.peak_flops_per_s))));
    }
    if run.resumed_from > 0 {
        rows.push(("resumed", format!("after step {}", wording::grouped(run.resumed_from))));
    }
    block(concat!("gradus ", env!("CARGO_PKG_VERSION")), &rows, paint)
}

fn data(run: &RunDescription) -> String {
    let train = wording::quantity(run.train_tokens as f64);
    let held_out = wording::quantity(run.held_out_tokens as f64);
    let mut text = format!("{train} tokens to train on, {held_out} held out");
    if run.bytes_per_token > 0.0 {
        text.push_str(&format!(", {:.2} bytes each", run.bytes_per_token));
    }
    text
}

/// A rate of FLOP/s with its prefix, in three digits, for a unit that follows.
fn flops(value: f64) -> String {
    let text = wording::quantity(value);
    // 10^9 is a billion of things, but giga of a unit.
    match text.strip_suffix('B') {
        Some(number) => format!("{number} G"),
        None if text.ends_with(['T', 'M', 'k']) => {
            format!("{} {}", &text[..text.len() - 1], &text[text.len() - 1..])
        }
        None => format!("{text} "),
    }
}

/// A part of a time, and what it is made of on axes with more than one rank.
fn exposed(part: f64, by_axis: &str) -> String {
    if by_axis.is_empty() {
        wording::percent(part)
    } else {
        format!("{} ({by_axis})", wording::percent(part))
    }
}

/// One line for a step, in the field's words.
pub fn step_line(record: &StepRecord, peak_flops_per_s: f64, mesh: &Mesh) -> String {
    let by_axis = wording::by_axis(&record.exposed_by_axis_s, mesh, record.step_s);
    let skipped = if record.skipped { "  skipped: its gradient was not finite" } else { "" };
    let data = wording::data_wait(&record.data_wait_by_cause_s, record.step_s);
    let data = data.map_or(String::new(), |waited| format!("  data: {waited}"));
    format!(
        "step: {}  loss: {}  grad_norm: {:.2}  memory: {}  tps: {}  tflops: {:.2}  mfu: {}  exposed: {}{data}{skipped}",
        record.step,
        wording::loss(record.loss),
        record.gradient_norm,
        wording::memory(record.memory_bytes),
        wording::grouped(record.tokens_per_s.round() as u64),
        record.mfu * peak_flops_per_s / 1e12,
        wording::percent(record.mfu),
        exposed(record.exposed_communication_s / record.step_s, &by_axis),
    )
}

/// What stands beside the bar.
pub fn bar_message(record: &StepRecord, smoothed_loss: Option<f64>, paint: Paint) -> String {
    let loss = wording::loss(smoothed_loss.unwrap_or(f64::NAN));
    let time = match record.left_s {
        left if left > 0.0 => format!("{} left", wording::duration(left)),
        _ if record.total_steps == 0 => "measuring speed".to_owned(),
        _ => format!("{} so far", wording::duration(record.elapsed_s)),
    };
    let waited = wording::data_wait(&record.data_wait_by_cause_s, record.step_s);
    let data = waited.map_or(String::new(), |_| {
        format!("data {}  ", wording::percent(record.data_wait_s / record.step_s))
    });
    // What matters least stands last, where a narrow terminal cuts.
    format!(
        "loss {}  {time}  {} tok/s  MFU {:.0}%  {data}{}",
        paint.bold(&loss),
        wording::quantity(record.tokens_per_s),
        record.mfu * 100.0,
        wording::memory(record.memory_bytes),
    )
}

/// One line for an evaluation.
pub fn evaluation_line(record: &EvaluationRecord) -> String {
    let mut text = format!("step: {}  held-out loss: {}", record.step, wording::loss(record.loss));
    if record.nats_per_byte > 0.0 {
        text.push_str(&format!("  nats per byte: {:.4}", record.nats_per_byte));
    }
    text
}

/// A sample, its prompt set off, each line behind a rule; long ones are cut.
pub fn sample(step: u64, prompt: &str, text: &str, paint: Paint) -> String {
    let (prompt, text) = (wording::printable(prompt), wording::printable(text));
    let prompt_lines: Vec<_> = prompt.split('\n').map(|line| paint.bold(line)).collect();
    let whole = format!("{}{text}", prompt_lines.join("\n"));
    let mut shown = format!("step: {step}  a sample:\n");
    for line in whole.lines().take(SAMPLE_LINES) {
        shown.push_str(&format!("  {} {line}\n", paint.dim("│")));
    }
    if whole.lines().count() > SAMPLE_LINES {
        shown.push_str(&format!("  {}\n", paint.dim("│ ...")));
    }
    shown.truncate(shown.trim_end().len());
    shown
}

/// The end of a run.
#[derive(Debug)]
pub struct End<'a> {
    /// Steps done.
    pub step: u64,
    /// Whether a signal ended it.
    pub interrupted: bool,
    /// Sums over its steps.
    pub tally: &'a Tally,
    /// How its ranks split the work.
    pub mesh: Mesh,
    /// The last evaluation.
    pub evaluation: Option<&'a EvaluationRecord>,
    /// What was read in all, if it was counted.
    pub data: Option<&'a DataRecord>,
    /// Wall time since training began, seconds.
    pub elapsed_s: f64,
    /// What was written, by name.
    pub paths: Vec<(&'a str, String)>,
}

/// The last words.
pub fn summary(end: &End<'_>, paint: Paint) -> String {
    let title = match end.interrupted {
        true => format!("interrupted after step {}", wording::grouped(end.step)),
        false => format!("done, {}", wording::counted(end.step, "step")),
    };
    let tally = end.tally;
    let mut rows = Vec::new();
    if let (Some(first), Some(last)) = (tally.first_loss, tally.loss.mean()) {
        rows.push(("loss", format!("{} -> {}", wording::loss(first), wording::loss(last))));
    }
    if let Some(evaluation) = end.evaluation {
        rows.push(("held out", held_out(evaluation)));
    }
    if tally.steps > 0 {
        let rate = wording::quantity(tally.tokens_per_s());
        rows.push(("tokens", format!("{}, {rate} per second", wording::quantity(tally.tokens as f64))));
        rows.push(("time", wording::duration(end.elapsed_s)));
        rows.push(("mfu", wording::percent(tally.mfu())));
        let by_axis = tally.exposed_by_axis(&end.mesh);
        let by_axis = if by_axis.is_empty() { by_axis } else { format!(": {by_axis}") };
        let part = wording::percent(tally.exposed());
        rows.push(("exposed", format!("{part} of the time waiting for other ranks{by_axis}")));
        rows.extend(tally.data_wait().map(|part| ("data wait", format!("{part} of the time"))));
    }
    rows.extend(end.data.map(|record| ("data", wording::data_read(record))));
    let mixture = end.data.map(|record| &record.mixture).filter(|mixture| !mixture.is_empty());
    rows.extend(mixture.map(|mixture| ("mixture", wording::mixture(mixture))));
    if tally.skipped > 0 {
        rows.push(("skipped", wording::counted(tally.skipped, "step") + ": a gradient was not finite"));
    }
    rows.extend(end.paths.iter().map(|(label, path)| (*label, path.clone())));
    block(&title, &rows, paint)
}

fn held_out(evaluation: &EvaluationRecord) -> String {
    let mut text = format!("{} nats per token", wording::loss(evaluation.loss));
    if evaluation.nats_per_byte > 0.0 {
        text.push_str(&format!(", {:.4} per byte", evaluation.nats_per_byte));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::examples;
    use super::*;
    use gradus_train::DataWaits;

    const PLAIN: Paint = Paint(false);

    #[test]
    fn a_step_is_one_line_in_the_field_s_words() {
        let record = StepRecord { tokens_per_s: 10_512.4, ..examples::step(100) };
        let line = step_line(&record, 1e12, &Mesh::default());
        assert_eq!(
            line,
            "step: 100  loss: 2.0600  grad_norm: 0.81  memory: 0.41GiB  tps: 10,512  tflops: 0.31  mfu: 31.2%  \
             exposed: 0.8%"
        );
        let line = step_line(&record, 1e12, &Mesh { pp: 2, dp: 2, ..Mesh::default() });
        assert!(line.ends_with("exposed: 0.8% (pp 0.5%, dp 0.1%, vote 0.2%)"), "{line}");
        let waits = DataWaits { peer: 0.25, ..DataWaits::default() };
        let waiting = StepRecord { data_wait_s: 0.25, data_wait_by_cause_s: waits, ..record };
        let line = step_line(&waiting, 1e12, &Mesh::default());
        assert!(line.ends_with("exposed: 0.8%  data: 25.0% (peer 25.0%)"), "{line}");
        assert!(bar_message(&waiting, None, PLAIN).contains("data 25.0%"));
        let skipped = StepRecord { skipped: true, loss: f64::NAN, step_s: 0.0, ..examples::step(1) };
        assert!(step_line(&skipped, 0.0, &Mesh::default()).ends_with("skipped: its gradient was not finite"));
    }

    #[test]
    fn the_first_block_states_what_is_known() {
        let text = description(&RunDescription { resumed_from: 1200, ..examples::description() }, PLAIN);
        assert!(text.contains("  model       gpt2: 6 layers, 384 wide, 13.9M parameters\n"), "{text}");
        assert!(
            text.contains("  data        4.20M tokens to train on, 210k held out, 3.62 bytes each\n"),
            "{text}"
        );
        assert!(text.contains("  mesh        dp 2\n"), "{text}");
        assert!(text.contains("  peak        2.31 TFLOP/s") && text.contains("after step 1,200"), "{text}");
        assert_eq!([3e9, 5e5, 7.0].map(flops), ["3.00 G", "500 k", "7 "]);
    }

    #[test]
    fn the_last_block_of_a_run_without_steps_states_nothing_unknown() {
        let tally = Tally::default();
        let end = End {
            step: 0,
            interrupted: true,
            tally: &tally,
            mesh: Mesh::default(),
            evaluation: None,
            data: None,
            elapsed_s: 0.0,
            paths: Vec::new(),
        };
        assert_eq!(summary(&end, PLAIN), "\n  interrupted after step 0\n");
    }

    #[test]
    fn a_sample_is_cut_and_cannot_move_the_cursor() {
        let text = sample(3, "Once", " upon\x1b[2J\na", PLAIN);
        assert_eq!(text, "step: 3  a sample:\n  │ Once upon\u{fffd}[2J\n  │ a");
        assert!(sample(3, "", &"x\n".repeat(40), PLAIN).ends_with("│ ..."));
        assert!(sample(3, "", "", PLAIN).ends_with("a sample:"));
    }
}
