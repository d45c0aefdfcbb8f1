//! Progress before training: downloading, tokenizing, packing. Phases follow one another, each with a number of bytes.

use super::screen::Screen;
use crate::wording;
use indicatif::{ProgressBar, ProgressStyle};

/// A phase on a terminal.
const BAR: &str =
    "  {bar:16.cyan/238} {prefix}  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";

/// One whose size is unknown.
const SPINNER: &str = "  {spinner:.cyan} {prefix}  {binary_bytes}  {binary_bytes_per_sec}";

/// Shows what is done before the first step.
pub struct Preparation {
    screen: Screen,
    phase: Option<Phase>,
}

struct Phase {
    name: String,
    total_bytes: u64,
    done_bytes: u64,
    /// Tenths of the whole that lines have told of.
    tenths: u64,
}

impl Preparation {
    /// Preparation on stderr.
    pub fn new() -> Self {
        Self::on(Screen::stderr())
    }

    fn on(screen: Screen) -> Self {
        Self { screen, phase: None }
    }

    /// Ends the phase before, if any, and begins phase `name` of `total_bytes` (0 where unknown).
    pub fn begin(&mut self, name: &str, total_bytes: u64) {
        self.end();
        self.phase = Some(Phase { name: name.to_owned(), total_bytes, done_bytes: 0, tenths: 0 });
        match &self.screen {
            Screen::Terminal(bar) => begin_bar(bar, name, total_bytes),
            Screen::Lines(_) if total_bytes > 0 => {
                self.screen.say(&format!("{name}: {}", wording::memory(total_bytes)));
            }
            Screen::Lines(_) => self.screen.say(name),
        }
    }

    /// The phase has done `done_bytes` in all. Lines tell of each tenth.
    pub fn advance(&mut self, done_bytes: u64) {
        let Some(phase) = &mut self.phase else { return };
        phase.done_bytes = done_bytes;
        match &mut self.screen {
            Screen::Terminal(bar) => bar.set_position(done_bytes),
            lines => {
                let tenths =
                    (u128::from(done_bytes) * 10).checked_div(phase.total_bytes.into()).unwrap_or(0) as u64;
                if tenths > phase.tenths && tenths < 10 {
                    phase.tenths = tenths;
                    lines.say(&format!("{}: {}%", phase.name, tenths * 10));
                }
            }
        }
    }

    /// Ends the last phase, saying how much it did.
    pub fn end(&mut self) {
        if let Some(phase) = self.phase.take() {
            self.screen.clear();
            match phase.done_bytes {
                0 => self.screen.say(&format!("{}: done", phase.name)),
                bytes => self.screen.say(&format!("{}: done, {}", phase.name, wording::memory(bytes))),
            }
        }
    }
}

impl Default for Preparation {
    fn default() -> Self {
        Self::new()
    }
}

fn begin_bar(bar: &ProgressBar, name: &str, total_bytes: u64) {
    let template = if total_bytes > 0 { BAR } else { SPINNER };
    let style = ProgressStyle::with_template(template).expect("the template is fixed and sound");
    // The builder's calls set what `set_style` and `set_prefix` would, without drawing a half-made bar.
    drop(bar.clone().with_style(style.progress_chars("━╸─")).with_prefix(name.to_owned()));
    bar.reset();
    match total_bytes {
        0 => bar.unset_length(),
        bytes => bar.set_length(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::screen::fake::Memory;
    use super::*;

    fn prepare(preparation: &mut Preparation) {
        preparation.begin("tokenizing", 20 << 20);
        (0..=20).for_each(|mebibytes| preparation.advance(mebibytes << 20));
        preparation.begin("packing", 0);
        preparation.advance(5 << 20);
        preparation.end();
        preparation.end();
    }

    #[test]
    fn lines_tell_of_each_tenth_once() {
        let memory = Memory::default();
        prepare(&mut Preparation::on(memory.lines()));
        let tenths: String = (1..10).map(|tenth| format!("tokenizing: {tenth}0%\n")).collect();
        let expected = format!(
            "tokenizing: 20.0MiB\n{tenths}tokenizing: done, 20.0MiB\npacking\npacking: done, 5.0MiB\n"
        );
        assert_eq!(memory.text(), expected);
    }

    #[test]
    fn a_terminal_keeps_one_line_for_each_phase() {
        let memory = Memory::default();
        prepare(&mut Preparation::on(memory.terminal()));
        let text = memory.text();
        assert!(
            text.contains("tokenizing: done, 20.0MiB") && text.contains("packing: done, 5.0MiB"),
            "{text}"
        );
        assert!(text.contains("20.00 MiB/20.00 MiB") || text.contains("0 B/20.00 MiB"), "{text}");
    }
}
