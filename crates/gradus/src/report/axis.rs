//! Axes: a range that holds the data, and ticks at numbers that people would choose.

use crate::wording;

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Evenly.
    Linear,
    /// By ratio, for losses: only values above zero can be shown.
    Logarithmic,
}

/// How ticks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// As many places as the distance between ticks needs, large ones as `10k`.
    Plain,
    /// In percent of one.
    Percent,
    /// As powers of ten, for learning rates.
    Scientific,
    /// GiB.
    Gibibytes,
}

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// The lowest and highest value that has room.
    pub range: (f64, f64),
    /// Where ticks are.
    pub ticks: Vec<f64>,
    spread: Spread,
    unit: Unit,
}

/// Numbers between two decades that are good ticks on a logarithmic axis of a given ratio.
const FINE: [f64; 9] = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];
const COARSE: [f64; 3] = [1.0, 2.0, 5.0];

impl Axis {
    /// An axis of about `count` ticks that holds all of `values` that are finite; with none it is 0 to 1.
    pub fn over(values: impl Iterator<Item = f64> + Clone, spread: Spread, unit: Unit, count: usize) -> Self {
        let shown = values.filter(|value| value.is_finite() && (spread == Spread::Linear || *value > 0.0));
        let low = shown.clone().fold(f64::INFINITY, f64::min);
        let high = shown.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        // Where all values lie close together a logarithmic axis is a linear one.
        if spread == Spread::Logarithmic && low > 0.0 && high > low * 1.5 {
            return Self::logarithmic(low, high, unit);
        }
        Self::linear(low, high, unit, count)
    }

    /// Axis from zero, for shares and speeds, whose distance from nothing matters.
    pub fn from_zero(values: impl Iterator<Item = f64> + Clone, unit: Unit, count: usize) -> Self {
        Self::over(values.chain(std::iter::once(0.0)), Spread::Linear, unit, count)
    }

    fn linear(low: f64, high: f64, unit: Unit, count: usize) -> Self {
        let (low, high) = if high > low { (low, high) } else { widened(low) };
        let step = nice((high - low) / count.max(1) as f64);
        // An end that is nearly on a tick moves there; one that is on zero must not go below it.
        let range = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        let first = (range.0 / step).round() as i64;
        let last = (range.1 / step).round() as i64;
        let ticks = (first..=last.min(first.saturating_add(50))).map(|index| index as f64 * step).collect();
        Self { range, ticks, spread: Spread::Linear, unit }
    }

    fn logarithmic(low: f64, high: f64, unit: Unit) -> Self {
        // Kept finite and above zero: from infinity on there would be decades without end.
        let range = ((low / 1.04).max(f64::MIN_POSITIVE), (high * 1.04).min(f64::MAX));
        let ratio = range.1 / range.0;
        let mantissas: &[f64] = if ratio < 30.0 {
            &FINE
        } else if ratio < 1e4 {
            &COARSE
        } else {
            &[1.0]
        };
        let decades = range.0.log10().floor() as i32..=range.1.log10().ceil() as i32;
        let all =
            decades.flat_map(|decade| mantissas.iter().map(move |mantissa| mantissa * 10f64.powi(decade)));
        let ticks = all.filter(|tick| (range.0..=range.1).contains(tick)).collect();
        Self { range, ticks, spread: Spread::Logarithmic, unit }
    }

    /// The same axis without room beyond the data, for steps.
    pub fn tight(self, low: f64, high: f64) -> Self {
        let range = if high > low { (low, high) } else { widened(low) };
        let ticks = self.ticks.into_iter().filter(|tick| (range.0..=range.1).contains(tick)).collect();
        Self { range, ticks, ..self }
    }

    /// Where `value` lies on the paper: 0 at the low end, 1 at the high one, never beyond.
    pub fn place(&self, value: f64) -> f64 {
        let spaced = |value: f64| match self.spread {
            Spread::Linear => value,
            Spread::Logarithmic => value.max(f64::MIN_POSITIVE).ln(),
        };
        let (low, high) = (spaced(self.range.0), spaced(self.range.1));
        ((spaced(value) - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// How the tick at `value` is written.
    pub fn label(&self, value: f64) -> String {
        let step = self.ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        let step = if step.is_finite() { step } else { value.abs().max(1e-6) };
        match self.unit {
            Unit::Plain if self.range.1 >= 10_000.0 => trimmed(&thousands(value, step)),
            Unit::Plain if value.abs() >= 1000.0 => wording::grouped(value.round().abs() as u64),
            Unit::Plain => trimmed(&fixed(value, step)),
            Unit::Percent => format!("{}%", fixed(value * 100.0, step * 100.0)),
            Unit::Gibibytes => format!("{} GiB", fixed(value, step)),
            Unit::Scientific => scientific(value, step),
        }
    }
}

/// A range around a single value.
fn widened(value: f64) -> (f64, f64) {
    if value == 0.0 { (0.0, 1.0) } else { (value.min(value * 2.0).min(0.0), value.max(value * 2.0).max(0.0)) }
}

/// The next of 1, 2, 2.5, 5 times a power of ten, not below `step`.
fn nice(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    let mantissa =
        [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|mantissa| mantissa * decade >= step * (1.0 - 1e-9));
    mantissa.unwrap_or(10.0) * decade
}

/// As many places as a distance of `step` needs.
fn fixed(value: f64, step: f64) -> String {
    let places = (0..9).find(|places| {
        let scaled = step * 10f64.powi(*places);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1e-3)
    });
    let text = format!("{value:.*}", places.unwrap_or(2) as usize);
    // A rounded negative nothing.
    if text.trim_start_matches(['-', '0', '.']).is_empty() {
        text.trim_start_matches('-').to_owned()
    } else {
        text
    }
}

/// In thousands, millions and so on, with as many places as a distance of `step` needs.
fn thousands(value: f64, step: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(scale, _)| value.abs() >= *scale) {
        Some((scale, unit)) => format!("{}{unit}", trimmed(&fixed(value / scale, step / scale))),
        None => fixed(value, step),
    }
}

/// A number without zeros at the end of its places.
fn trimmed(number: &str) -> String {
    if number.contains('.') && !number.ends_with(char::is_alphabetic) {
        return number.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    number.to_owned()
}

fn scientific(value: f64, step: f64) -> String {
    if value.abs() < step * 1e-6 {
        return "0".to_owned();
    }
    let exponent = value.abs().log10().floor();
    let mantissa = value / 10f64.powf(exponent);
    format!("{}e{exponent}", trimmed(&format!("{mantissa:.2}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.label(*tick)).collect()
    }

    #[test]
    fn the_largest_numbers_have_an_axis() {
        let axis = Axis::over([5e-324, f64::MAX].into_iter(), Spread::Logarithmic, Unit::Plain, 5);
        assert!(axis.range.1.is_finite() && axis.range.0 > 0.0 && axis.ticks.len() < 1000);
    }

    #[test]
    fn ticks_are_numbers_that_people_choose() {
        let axis = |low: f64, high: f64, unit| Axis::over([low, high].into_iter(), Spread::Linear, unit, 5);
        assert_eq!(
            labels(&axis(0.0, 5000.0, Unit::Plain)),
            ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]
        );
        assert_eq!(labels(&axis(0.0, 10_000.0, Unit::Plain)), ["0", "2k", "4k", "6k", "8k", "10k"]);
        assert_eq!(labels(&axis(0.0, 12e6, Unit::Plain)), ["0", "2.5M", "5M", "7.5M", "10M", "12.5M"]);
        assert_eq!(labels(&axis(0.0, 0.33, Unit::Percent)), ["0%", "10%", "20%", "30%", "40%"]);
        assert_eq!(labels(&axis(0.0, 3e-4, Unit::Scientific)), ["0", "1e-4", "2e-4", "3e-4"]);
        assert_eq!(labels(&axis(0.0, 0.41, Unit::Gibibytes)).last().unwrap(), "0.5 GiB");
        assert_eq!(labels(&axis(7.0, 7.0, Unit::Plain)), ["0", "5", "10", "15"]);
        assert_eq!(labels(&axis(0.0, 0.0, Unit::Plain)).last().unwrap(), "1");
    }

    #[test]
    fn losses_have_ticks_by_ratio() {
        let axis = Axis::over([8.3, 1.9, f64::NAN].into_iter(), Spread::Logarithmic, Unit::Plain, 5);
        assert_eq!(labels(&axis), ["2", "2.5", "3", "4", "5", "6", "8"]);
        let wide = Axis::over([0.01, 50.0].into_iter(), Spread::Logarithmic, Unit::Plain, 5);
        assert_eq!(wide.ticks.len(), 12);
    }

    #[test]
    fn nothing_to_show_is_still_an_axis() {
        let axis = Axis::over([f64::NAN, -1.0].into_iter(), Spread::Logarithmic, Unit::Plain, 5);
        assert_eq!((axis.range, axis.ticks.len()), ((0.0, 1.0), 6));
    }

    proptest! {
        #[test]
        fn every_axis_holds_its_values_and_has_few_ticks(
            values in proptest::collection::vec(any::<f64>(), 0..5),
            logarithmic in any::<bool>(),
        ) {
            let spread = if logarithmic { Spread::Logarithmic } else { Spread::Linear };
            let modest = values.iter().copied().filter(|value| value.abs() < 1e100 && (value.abs() > 1e-100 || *value == 0.0));
            let axis = Axis::over(modest.clone(), spread, Unit::Plain, 5);
            prop_assert!(axis.range.0 < axis.range.1);
            prop_assert!(axis.ticks.len() <= 500);
            for value in modest.filter(|value| !logarithmic || *value > 0.0) {
                let slack = (axis.range.1 - axis.range.0) * 1e-6;
                prop_assert!(value >= axis.range.0 - slack && value <= axis.range.1 + slack, "{} {:?}", value, axis.range);
            }
            axis.ticks.iter().for_each(|tick| drop(axis.label(*tick)));
        }

        #[test]
        fn no_axis_panics(values in proptest::collection::vec(any::<f64>(), 0..5), logarithmic in any::<bool>()) {
            let spread = if logarithmic { Spread::Logarithmic } else { Spread::Linear };
            let axis = Axis::over(values.into_iter(), spread, Unit::Scientific, 5);
            axis.ticks.iter().for_each(|tick| drop(axis.label(*tick)));
        }
    }
}
