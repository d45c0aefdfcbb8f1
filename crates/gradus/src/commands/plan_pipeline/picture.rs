//! Schedules as a picture: one above the other on one axis of time, a line for each rank, a box for each pass.

use super::Case;
use super::lines::letter;
use super::show::short;
use crate::report::axis::{Axis, Unit};
use crate::report::ink::{self, Ink};
use crate::wording::percent;
use gradus_error::{Error, Result};
use gradus_train::pipeline::{Action, ActionKind, Period};
use std::fmt::Write;

/// More boxes make a file that no viewer likes, of more than they are pixels wide.
const MOST_BOXES: usize = 50_000;
/// Pixels.
const WIDTH: f64 = 1000.0;
/// Where time begins and ends, in pixels.
const PLOT: (f64, f64) = (64.0, WIDTH - 16.0);
/// From the top of the picture to the first schedule: the legend.
const HEAD: f64 = 44.0;
/// A schedule's title.
const TITLE: f64 = 24.0;
/// Between schedules.
const GAP: f64 = 14.0;
/// Under the last: the axis.
const FOOT: f64 = 44.0;
/// A digit of the numbers in boxes.
const DIGIT: f64 = 6.0;

/// What there is to draw, its colour on light and dark paper alike, and its name. White numbers are read on all of them.
const KINDS: [(ActionKind, &str, &str); 4] = [
    (ActionKind::Forward, "#2F6FC1", "forward"),
    (ActionKind::Backward, "#B4432A", "backward"),
    (ActionKind::BackwardInput, "#C96A12", "backward, input"),
    (ActionKind::BackwardWeight, "#3A8557", "backward, weights"),
];

/// The picture, as an SVG file.
///
/// # Errors
/// `Invalid` where there is too much to draw.
pub(super) fn draw(cases: &[Case]) -> Result<String> {
    let boxes: usize = cases.iter().flat_map(|case| &case.timeline.periods).map(Vec::len).sum();
    if boxes > MOST_BOXES {
        return Err(Error::invalid(format!(
            "--svg: {boxes} passes are too many to draw, choose --ranks and --microbatches for at most {MOST_BOXES}"
        )));
    }
    let mut picture = Picture::new(cases);
    picture.legend(cases);
    cases.iter().for_each(|case| picture.schedule(case));
    picture.axis();
    Ok(picture.finish())
}

/// A picture in the making.
struct Picture {
    svg: String,
    time: Axis,
    /// Pixels of a rank's line.
    line: f64,
    /// How far down the picture is drawn.
    y: f64,
}

impl Picture {
    fn new(cases: &[Case]) -> Self {
        let ends = cases.iter().map(|case| case.timeline.makespan());
        let longest = ends.clone().fold(0.0, f64::max);
        let time = Axis::from_zero(ends, Unit::Plain, 10).tight(0.0, longest);
        let ranks = cases.iter().map(|case| case.timeline.periods.len()).max().unwrap_or(1);
        // Tall lines for few ranks, down to a few pixels for many.
        let line = (176.0 / ranks as f64).clamp(6.0, 22.0);
        Self { svg: String::new(), time, line, y: HEAD }
    }

    fn x(&self, time: f64) -> f64 {
        PLOT.0 + (PLOT.1 - PLOT.0) * self.time.place(time)
    }

    /// The colours of what appears.
    fn legend(&mut self, cases: &[Case]) {
        let mut actions = cases.iter().flat_map(|case| &case.schedule.actions[0]);
        let kinds: Vec<_> =
            KINDS.into_iter().filter(|kind| actions.clone().any(|action| action.kind == kind.0)).collect();
        let mut x = PLOT.0;
        for (kind, colour, name) in kinds {
            let label = format!("{} {name}", letter(kind));
            self.rect((x, 14.0), (12.0, 12.0), colour, 1.0);
            self.text((x + 18.0, 24.0), Ink::Muted, "start", 12, &label);
            x += 42.0 + 6.4 * label.len() as f64;
        }
        self.rect((x, 14.0), (12.0, 12.0), &hex(Ink::Grid), 1.0);
        let interleaved = actions.any(|action| action.chunk > 0);
        let label = if interleaved { "waiting     (paler: a rank's later stages)" } else { "waiting" };
        self.text((x + 18.0, 24.0), Ink::Muted, "start", 12, label);
    }

    fn schedule(&mut self, case: &Case) {
        let (makespan, bubble) = (case.timeline.makespan(), case.timeline.bubble());
        let shape = case.schedule.shape;
        let stages = match shape.chunks_per_rank {
            1 => String::new(),
            chunks => format!(" of {chunks} stages"),
        };
        let title = format!(
            "{}: {} ranks{stages}, {} microbatches, {} long, {} of it waiting",
            case.kind,
            shape.ranks,
            shape.microbatches,
            short(makespan),
            percent(bubble)
        );
        self.text((PLOT.0, self.y + 14.0), Ink::Text, "start", 13, &title);
        self.y += TITLE;
        for (rank, (actions, periods)) in case.schedule.actions.iter().zip(&case.timeline.periods).enumerate()
        {
            self.lane(rank, makespan, actions.iter().zip(periods));
        }
        self.y += GAP;
    }

    /// One rank: waiting from end to end, and its passes upon that.
    fn lane<'a>(&mut self, rank: usize, end: f64, passes: impl Iterator<Item = (&'a Action, &'a Period)>) {
        let [start, end] = [0.0, end].map(|time| self.x(time));
        self.rect((start, self.y), (end - start, self.line - 1.0), &hex(Ink::Grid), 1.0);
        // Lines lower than a label are named now and then.
        if rank.is_multiple_of((11.0 / self.line).ceil() as usize) {
            let label = format!("rank {rank}");
            self.text((PLOT.0 - 8.0, self.y + self.line / 2.0 + 3.5), Ink::Muted, "end", 11, &label);
        }
        passes.for_each(|(action, period)| self.pass(action, period));
        self.y += self.line;
    }

    fn pass(&mut self, action: &Action, period: &Period) {
        let (left, right) = (self.x(period.start), self.x(period.end));
        let colour = KINDS.iter().find(|kind| kind.0 == action.kind).map_or("none", |kind| kind.1);
        // A hair of the lane stays between two boxes.
        let width = (right - left - 0.6).max(0.2);
        let opacity = (1.0 - 0.22 * action.chunk as f64).max(0.5);
        self.rect((left, self.y), (width, self.line - 1.0), colour, opacity);
        let number = action.microbatch.to_string();
        if self.line >= 14.0 && width >= DIGIT * number.len() as f64 + 3.0 {
            let place = (left + width / 2.0, self.y + self.line / 2.0 + 3.0);
            let _ = writeln!(
                self.svg,
                "<text x=\"{:.2}\" y=\"{:.2}\" text-anchor=\"middle\" font-size=\"10\" fill=\"white\">{number}</text>",
                place.0, place.1
            );
        }
    }

    fn axis(&mut self) {
        for tick in self.time.ticks.clone() {
            let (x, label) = (self.x(tick), self.time.label(tick));
            let colour = hex(Ink::Muted);
            let _ = writeln!(
                self.svg,
                "<line x1=\"{x:.2}\" y1=\"{:.2}\" x2=\"{x:.2}\" y2=\"{:.2}\" stroke=\"{colour}\"/>",
                self.y - 8.0,
                self.y - 4.0
            );
            self.text((x, self.y + 8.0), Ink::Muted, "middle", 11, &label);
        }
        self.text(((PLOT.0 + PLOT.1) / 2.0, self.y + 28.0), Ink::Muted, "middle", 11, "time");
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str, opacity: f64) {
        let pale = if opacity < 1.0 { format!(" fill-opacity=\"{opacity:.2}\"") } else { String::new() };
        let _ = writeln!(
            self.svg,
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"{colour}\"{pale}/>"
        );
    }

    fn text(&mut self, (x, y): (f64, f64), ink: Ink, anchor: &str, size: u32, text: &str) {
        let colour = hex(ink);
        let _ = writeln!(
            self.svg,
            "<text x=\"{x:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\" font-size=\"{size}\" xml:space=\"preserve\" fill=\"{colour}\">{text}</text>"
        );
    }

    fn finish(self) -> String {
        let height = self.y + FOOT;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" role=\"img\" aria-label=\"pipeline schedules\">\n\
             <style>{}</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\n{}</svg>\n",
            ink::figure_style(),
            ink::with_classes(&self.svg)
        )
    }
}

/// A colour as SVG writes it.
fn hex(ink: Ink) -> String {
    let colour = ink.light();
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

#[cfg(test)]
mod tests {
    use super::super::tests::arguments;
    use super::*;

    fn drawn(line: &str) -> Result<String> {
        draw(&arguments(line).cases().unwrap())
    }

    #[test]
    fn every_pass_is_a_box_and_every_rank_a_line() {
        let svg = drawn("--ranks 2 --microbatches 3 --schedule zero-bubble").unwrap();
        let count = |what: &str| svg.matches(what).count();
        // Each colour once more in the legend.
        assert_eq!(count("fill=\"#2F6FC1\""), 2 * 3 + 1);
        assert_eq!((count("fill=\"#3A8557\""), count("fill=\"#B4432A\"")), (2 * 3 + 1, 0));
        assert_eq!((count(">rank 0<"), count(">rank 1<"), count(">rank 2<")), (1, 1, 0));
        assert!(svg.contains("zero-bubble: 2 ranks, 3 microbatches, 10 long, 10.0% of it waiting"));
    }

    #[test]
    fn all_schedules_stand_on_one_axis() {
        let svg = drawn("--ranks 4 --microbatches 8").unwrap();
        assert!(
            ["gpipe:", "1f1b:", "interleaved: 4 ranks of 2 stages", "zero-bubble:"]
                .iter()
                .all(|title| svg.contains(title))
        );
        assert!(svg.contains("fill-opacity=\"0.78\"") && svg.matches(">time<").count() == 1);
    }

    #[test]
    fn a_picture_has_an_end() {
        let error = drawn("--ranks 64 --microbatches 512 --schedule 1f1b").unwrap_err();
        assert!(error.to_string().contains("--svg: 65536 passes"));
    }
}
