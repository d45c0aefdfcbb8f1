//! From times of trials to figures of neighbours.
//!
//! Trials run on the model as on the machine; each figure is the one with which a trial takes as long on the model as it
//! took, given the figures before it. Times of the model grow with every figure, and evenly for as long as the order of
//! what happens stays the same, so a few steps along the secant find it.

use super::fit::rounded;
use super::trials::{FEW, HOPS, Trial};
use crate::cost::{Curve, Ground, NeighbourFigures, Touches, price_of_programs};
use gradus_error::{Error, Result};

/// Seconds of trials on so many bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timed<const N: usize> {
    pub(super) bytes: u64,
    pub(super) seconds: [f64; N],
}

/// Seconds of all trials, by growing size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NeighbourTimes {
    pub(super) ranks: usize,
    /// That the ranks share; 0: each has its own.
    pub(super) processors: usize,
    pub(super) one: f64,
    pub(super) hops: f64,
    /// Of pairs: one meeting, and [`HOPS`].
    pub(super) pairs: Vec<f64>,
    /// [`Trial::Stage`], [`Trial::StageAndCombine`], [`Trial::Staged`].
    pub(super) staged: Vec<Timed<3>>,
    /// [`Trial::ReachRegistered`], [`Trial::Push`].
    pub(super) registered: Vec<Timed<2>>,
    /// [`Trial::ReachPrivate`], [`Trial::Pull`].
    pub(super) private: Vec<Timed<2>>,
}

/// What a signal takes where it cannot be told from a hop: of two ranks, it does not matter.
const SIGNAL_US: f64 = 0.02;

/// What a hop takes where it is hidden by ranks that wait for processors.
const HOP_US: f64 = 0.1;

/// Seconds for a byte below which nobody moves it.
const LEAST_SECONDS_PER_BYTE: f64 = 1e-12;

const FEW_BYTES: u64 = (FEW * size_of::<f32>()) as u64;

/// Steps along the secant.
const SECANTS: usize = 6;

/// The figures.
///
/// # Errors
/// `Invalid` for times that no ranks have.
pub(super) fn fit_neighbours(times: &NeighbourTimes) -> Result<NeighbourFigures> {
    times.check()?;
    let figures = NeighbourFigures { processors: times.processors, ..NeighbourFigures::unknown() };
    let mut fit = Fit { times, figures };
    fit.hops()?;
    fit.staged()?;
    fit.registered()?;
    fit.private()?;
    fit.figures.validate()?;
    Ok(fit.figures)
}

impl NeighbourTimes {
    fn check(&self) -> Result<()> {
        let staged = self.staged.iter().flat_map(|timed| timed.seconds);
        let reached = self.registered.iter().chain(&self.private).flat_map(|timed| timed.seconds);
        let mut all = staged.chain(reached).chain([self.one, self.hops]).chain(self.pairs.iter().copied());
        match all.find(|time| !(*time > 0.0 && time.is_finite())) {
            None => Ok(()),
            Some(time) => Err(Error::invalid(format!("a trial took {time} s, which is no time"))),
        }
    }
}

struct Fit<'a> {
    times: &'a NeighbourTimes,
    figures: NeighbourFigures,
}

impl Fit<'_> {
    /// What a trial takes on the model with some figures.
    fn modelled(&self, trial: Trial, bytes: u64, figures: &NeighbourFigures) -> Result<f64> {
        let len = bytes as usize / size_of::<f32>();
        let registered = matches!(trial, Trial::ReachRegistered | Trial::Push);
        let ground = Ground { element_bytes: size_of::<f32>(), buffer_bytes: bytes, registered };
        let price = price_of_programs(&trial.programs(self.times.ranks, len), ground, figures)?;
        Ok(price
            .ok_or_else(|| Error::internal("rates are found in the order in which trials need them"))?
            .seconds)
    }

    /// The figure with which the model takes `seconds`; `put` puts one among all.
    fn find(
        &self,
        seconds: f64,
        first: f64,
        put: impl Fn(&mut NeighbourFigures, f64),
        model: impl Fn(&NeighbourFigures) -> Result<f64>,
    ) -> Result<f64> {
        let at = |figure: f64| {
            let mut figures = self.figures.clone();
            put(&mut figures, figure);
            model(&figures)
        };
        let (low, mut high) = ((0.0, at(0.0)?), (first, at(first)?));
        for _ in 0..SECANTS {
            if high.1 <= low.1 || seconds <= low.1 {
                break;
            }
            let next = (low.0 + (seconds - low.1) * (high.0 - low.0) / (high.1 - low.1)).max(0.0);
            if (next - high.0).abs() <= 1e-4 * next {
                break;
            }
            high = (next, at(next)?);
        }
        Ok(if seconds <= low.1 { 0.0 } else { high.0 })
    }

    /// What signals, hops or turns, and collectives as such cost.
    fn hops(&mut self) -> Result<()> {
        let NeighbourTimes { one, hops, ranks, .. } = *self.times;
        self.figures.signal_us = rounded(self.signal() * 1e6);
        let more = |figures: &NeighbourFigures| {
            let of = |hops| self.modelled(Trial::Meets(hops), FEW_BYTES, figures);
            Ok(of(HOPS)? - of(1)?)
        };
        if self.figures.processors_of(ranks) == ranks {
            let hop_us = self.find(hops - one, HOP_US, |figures, us| figures.hop_us = us, more)?;
            self.figures.hop_us = rounded(hop_us);
        } else {
            let put =
                |figures: &mut NeighbourFigures, us: f64| (figures.hop_us, figures.switch_us) = (HOP_US, us);
            let switch_us = self.find(hops - one, 1.0, put, more)?;
            (self.figures.hop_us, self.figures.switch_us) = (HOP_US, rounded(switch_us));
        }
        let start_us = self.find(
            one,
            HOP_US,
            |figures, us| figures.start_us = us,
            |figures| self.modelled(Trial::Meets(1), FEW_BYTES, figures),
        )?;
        self.figures.start_us = rounded(start_us);
        Ok(())
    }

    /// Seconds that a signal takes of either end: a meeting of all has more of them than one of pairs.
    fn signal(&self) -> f64 {
        let NeighbourTimes { one, hops, ref pairs, ranks, .. } = *self.times;
        let sharers = ranks.div_ceil(self.figures.processors_of(ranks)) as f64;
        let of_hop = |more: f64| (more / (HOPS - 1) as f64 / sharers).max(0.0);
        let (all, signals) = (of_hop(hops - one), 2.0 * (ranks - 1) as f64);
        match pairs[..] {
            [one, hops] if ranks > 2 => (all - of_hop(hops - one)) / (signals - 2.0),
            _ => SIGNAL_US * 1e-6,
        }
        .clamp(0.0, all / signals / 2.0)
    }

    fn staged(&mut self) -> Result<()> {
        let of =
            |which: usize| self.times.staged.iter().map(move |timed| (timed.bytes, timed.seconds[which]));
        self.curve(Trial::Stage, of(0), |touches| &mut touches.own)?;
        self.curve(Trial::StageAndCombine, of(1), |touches| &mut touches.staged_combined)?;
        self.curve(Trial::Staged, of(2), |touches| &mut touches.staged_copied)
    }

    fn registered(&mut self) -> Result<()> {
        let of =
            |which: usize| self.times.registered.iter().map(move |timed| (timed.bytes, timed.seconds[which]));
        self.curve(Trial::ReachRegistered, of(0), |touches| &mut touches.registered_combined)?;
        self.curve(Trial::Push, of(1), |touches| &mut touches.registered_given)
    }

    fn private(&mut self) -> Result<()> {
        let of =
            |which: usize| self.times.private.iter().map(move |timed| (timed.bytes, timed.seconds[which]));
        self.curve(Trial::ReachPrivate, of(0), |touches| &mut touches.private_combined)?;
        self.curve(Trial::Pull, of(1), |touches| &mut touches.private_copied)
    }

    /// Finds a rate for each size at which a trial was timed.
    fn curve(
        &mut self,
        trial: Trial,
        timed: impl Iterator<Item = (u64, f64)>,
        of: impl Fn(&mut Touches) -> &mut Curve,
    ) -> Result<()> {
        let rate = |seconds_per_byte: f64| 1.0 / seconds_per_byte.max(LEAST_SECONDS_PER_BYTE);
        let mut found = Vec::new();
        for (bytes, seconds) in timed {
            let put = |figures: &mut NeighbourFigures, seconds_per_byte: f64| {
                *of(&mut figures.bytes_per_s) = Curve::uniform(rate(seconds_per_byte));
            };
            let model = |figures: &NeighbourFigures| self.modelled(trial, bytes, figures);
            found.push((bytes, rounded(rate(self.find(seconds, 1e-10, put, model)?))));
        }
        *of(&mut self.figures.bytes_per_s) = Curve(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    /// A machine on which bytes of a kind cost the same at all sizes.
    fn machine(processors: usize, us: [f64; 4], bytes_per_s: [f64; 7]) -> NeighbourFigures {
        let [own, staged_copied, staged_combined, registered_combined, registered_given, combined, copied] =
            bytes_per_s.map(Curve::uniform);
        let bytes_per_s = Touches {
            own,
            staged_copied,
            staged_combined,
            registered_combined,
            registered_given,
            private_combined: combined,
            private_copied: copied,
        };
        let [start_us, signal_us, hop_us, switch_us] = us;
        NeighbourFigures { start_us, signal_us, hop_us, processors, switch_us, bytes_per_s }
    }

    /// What trials take on it.
    fn times(figures: &NeighbourFigures, ranks: usize) -> NeighbourTimes {
        let time = |trial: Trial, bytes: u64| {
            let registered = matches!(trial, Trial::ReachRegistered | Trial::Push);
            let ground = Ground { element_bytes: 4, buffer_bytes: bytes, registered };
            let programs = trial.programs(ranks, bytes as usize / 4);
            price_of_programs(&programs, ground, figures).unwrap().unwrap().seconds
        };
        let timed =
            |bytes: u64, trials: [Trial; 2]| Timed { bytes, seconds: trials.map(|trial| time(trial, bytes)) };
        let staged = [Trial::Stage, Trial::StageAndCombine, Trial::Staged];
        NeighbourTimes {
            ranks,
            processors: figures.processors,
            one: time(Trial::Meets(1), FEW_BYTES),
            hops: time(Trial::Meets(HOPS), FEW_BYTES),
            pairs: [1, HOPS].map(|hops| time(Trial::Pairs(hops), FEW_BYTES)).to_vec(),
            staged: [4096, 65536]
                .map(|bytes| Timed { bytes, seconds: staged.map(|trial| time(trial, bytes)) })
                .to_vec(),
            registered: [65536, 1 << 20]
                .map(|bytes| timed(bytes, [Trial::ReachRegistered, Trial::Push]))
                .to_vec(),
            private: [1 << 20].map(|bytes| timed(bytes, [Trial::ReachPrivate, Trial::Pull])).to_vec(),
        }
    }

    fn is_near(got: f64, want: f64, part: f64) -> bool {
        (got / want - 1.0).abs() < part
    }

    proptest! {
        /// A machine is found again from what trials take on it, and so is what programs cost that were no trials.
        #[test]
        fn a_machine_is_found_from_its_own_times(
            ranks in 2usize..6, start_us in 0.05f64..1.0, hop_us in 0.2f64..2.0, own in 1e10f64..1e11,
            reading in 5e9f64..5e10, writing in 5e9f64..5e10
        ) {
            let rates = [own, reading, reading / 1.5, reading, writing, reading / 2.0, writing / 2.0];
            let wanted = machine(0, [start_us, 0.02, hop_us, 0.0], rates);
            let found = fit_neighbours(&times(&wanted, ranks)).unwrap();
            let rate = |curve: &Curve| 1.0 / curve.seconds_per_byte(65536).unwrap();
            for (got, want) in [
                (found.hop_us, hop_us),
                (found.start_us, start_us),
                (rate(&found.bytes_per_s.own), own),
                (rate(&found.bytes_per_s.staged_copied), reading),
                (rate(&found.bytes_per_s.registered_combined), reading),
                (rate(&found.bytes_per_s.registered_given), writing),
                (rate(&found.bytes_per_s.private_copied), writing / 2.0),
            ] {
                prop_assert!(is_near(got, want, 0.05), "{} is not {}: {:?}", got, want, found);
            }
        }

        /// Ranks that share processors hide some of what they do from a clock; what programs take is found all the same.
        #[test]
        fn programs_cost_what_they_cost_on_the_machine(
            ranks in 3usize..6, switch_us in 0.5f64..4.0, own in 1e10f64..1e11, reading in 5e9f64..5e10
        ) {
            let rates = [own, reading, reading / 1.5, reading, reading, reading, reading];
            let wanted = machine(2, [0.3, 0.05, HOP_US, switch_us], rates);
            let found = fit_neighbours(&times(&wanted, ranks)).unwrap();
            let sum = crate::one_sided::Sum { len: 16384, element_bytes: 4, in_place: true, mean: false };
            for kind in crate::one_sided::OneSided::possible(ranks, 65536, Default::default()) {
                let ground = Ground { element_bytes: 4, buffer_bytes: 65536, registered: false };
                let on = |figures| price_of_programs(&kind.programs(ranks, sum), ground, figures).unwrap().unwrap();
                let (got, want) = (on(&found).seconds, on(&wanted).seconds);
                prop_assert!(is_near(got, want, 0.2), "{}: {} is not {}: {:?}", kind, got, want, found);
            }
        }

        #[test]
        fn no_times_panic(seconds in proptest::collection::vec(any::<f64>(), 6), ranks in 2usize..5) {
            let timed = Timed { bytes: 4096, seconds: [seconds[4], seconds[5]] };
            let times = NeighbourTimes {
                ranks,
                processors: 1,
                one: seconds[0],
                hops: seconds[1],
                pairs: seconds[2..4].to_vec(),
                staged: Vec::new(),
                registered: vec![timed],
                private: vec![timed],
            };
            if let Ok(figures) = fit_neighbours(&times) {
                prop_assert!(figures.validate().is_ok());
            }
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            hop_us in 0.05f64..50.0, own in 1e9f64..1e11, reading in 1e9f64..1e11, ranks in 2usize..5
        ) {
            let machine = machine(0, [0.1, 0.02, hop_us, 0.0], [own, reading, own, reading, own, reading, own]);
            let found = fit_neighbours(&times(&machine, ranks)).unwrap();
            let record = serde_json::to_string(&found).unwrap();
            prop_assert_eq!(serde_json::from_str::<NeighbourFigures>(&record).unwrap(), found);
        }
    }

    #[test]
    fn times_that_are_none_are_refused() {
        let mut bad = times(&NeighbourFigures::default(), 2);
        bad.staged[0].seconds[1] = f64::NAN;
        assert_eq!(*fit_neighbours(&bad).unwrap_err().kind(), Kind::Invalid);
    }
}
