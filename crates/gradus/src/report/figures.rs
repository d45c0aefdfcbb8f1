//! The figures of a run: its loss, and small ones of what went on beside it.

use super::axis::{Axis, Spread, Unit};
use super::figure::{Curve, Figure, Stroke};
use super::ink::Ink;
use super::run::Run;
use super::series::{Point, smoothed};
use gradus_train::StepRecord;

/// What is drawn of each step in a small figure: its title, its unit and whether the axis starts at nothing.
type Beside = (&'static str, Unit, bool, fn(&StepRecord) -> f64);

/// More dots than this would hide the curves behind them.
const MOST_DOTS: usize = 60;

/// Bytes.
const GIBIBYTE: f64 = (1u64 << 30) as f64;

/// The title of what is drawn only of runs that waited.
const DATA: &str = "Waiting for data";

const BESIDE: [Beside; 7] = [
    ("Tokens per second", Unit::Plain, true, |record| record.tokens_per_s),
    ("Model FLOP utilisation", Unit::Percent, true, |record| record.mfu),
    ("Exposed communication", Unit::Percent, true, |record| record.exposed_communication_s / record.step_s),
    (DATA, Unit::Percent, true, |record| record.data_wait_s / record.step_s),
    ("Learning rate", Unit::Scientific, true, |record| record.learning_rate),
    ("Gradient norm", Unit::Plain, false, |record| record.gradient_norm),
    ("Memory of rank 0", Unit::Gibibytes, true, |record| record.memory_bytes as f64 / GIBIBYTE),
];

fn points(run: &Run, value: fn(&StepRecord) -> f64) -> Vec<Point> {
    run.steps.iter().map(|record| (record.step as f64, value(record))).collect()
}

/// From the first step that is known to the last.
fn step_axis(run: &Run, ticks: usize) -> Axis {
    let of_steps = run.steps.iter().map(|record| record.step);
    let of_evaluations = run.evaluations.iter().map(|record| record.step);
    let steps = of_steps.chain(of_evaluations);
    let high = steps.max().unwrap_or(1) as f64;
    let mut axis = Axis::over([0.0, high].into_iter(), Spread::Linear, Unit::Plain, ticks).tight(0.0, high);
    axis.ticks.retain(|tick| tick.fract() == 0.0);
    axis
}

/// Loss over steps: of each step, smoothed, and held out.
pub fn loss(run: &Run) -> Figure {
    let raw = points(run, |record| record.loss);
    let held_out: Vec<Point> =
        run.evaluations.iter().map(|record| (record.step as f64, record.loss)).collect();
    let shown = raw.iter().chain(&held_out).map(|point| point.1);
    let y = Axis::over(shown, Spread::Logarithmic, Unit::Plain, 6);
    let curve = |label: &str, ink, stroke, points| Curve { label: label.to_owned(), ink, stroke, points };
    let mut curves = vec![
        curve("each step", Ink::Raw, Stroke::Thin, raw.clone()),
        curve("smoothed", Ink::First, Stroke::Line, smoothed(&raw)),
    ];
    if !held_out.is_empty() {
        let stroke = if held_out.len() <= MOST_DOTS { Stroke::Dots } else { Stroke::Thin };
        curves.push(curve("held out", Ink::Second, stroke, held_out));
    }
    Figure {
        title: "Loss, nats per token".to_owned(),
        x_label: "step".to_owned(),
        width: 960,
        height: 400,
        x: step_axis(run, 8),
        y,
        curves,
    }
}

/// The small figures.
pub fn beside(run: &Run) -> Vec<Figure> {
    let has_waited = run.steps.iter().any(|record| record.data_wait_s > 0.0);
    let shown = BESIDE.iter().filter(|(title, ..)| has_waited || *title != DATA);
    shown.map(|what| small(run, what)).collect()
}

fn small(run: &Run, (title, unit, starts_at_zero, value): &Beside) -> Figure {
    let raw = points(run, *value);
    let shown = raw.iter().map(|point| point.1);
    let y = if *starts_at_zero {
        Axis::from_zero(shown, *unit, 4)
    } else {
        Axis::over(shown, Spread::Logarithmic, *unit, 4)
    };
    let curve = |ink, stroke, points| Curve { label: String::new(), ink, stroke, points };
    // A schedule has no noise to smooth.
    let curves = if *unit == Unit::Scientific {
        vec![curve(Ink::First, Stroke::Line, raw)]
    } else {
        vec![curve(Ink::Raw, Stroke::Thin, raw.clone()), curve(Ink::First, Stroke::Line, smoothed(&raw))]
    };
    Figure {
        title: (*title).to_owned(),
        x_label: String::new(),
        width: 400,
        height: 210,
        x: step_axis(run, 4),
        y,
        curves,
    }
}
