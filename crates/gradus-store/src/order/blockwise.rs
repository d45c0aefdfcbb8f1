//! Shuffling that stays near: runs of samples in random order, and samples in random order within a window of runs.
//!
//! What: for each epoch, the runs of `block_samples` consecutive samples are put in a random order; this order is cut
//! into windows of at most `window_blocks` runs, as even as can be; within each window the samples are put in a random
//! order. Why: a reader touches the samples of one window at a time, so that a cache of about a window reads every byte
//! about once an epoch, where a whole shuffle reads nearly every sample anew. How: both steps are keyed bijections
//! ([`SampleOrder`]), so that the whole is one, with its inverse, in O(1) memory.
//!
//! The last run may be short. It stands where the order of the runs has put it, in another window each epoch, and all
//! behind it moves up; so no sample is nearer to the end of an epoch than others.
//!
//! Invariant: each epoch is a bijection, whatever the number of samples, the length of runs and windows.

use super::SampleOrder;
use super::epochs::Epochs;
use gradus_host::random::{Stream, philox};
use std::ops::Range;

/// Names the stream that the keys of this order are drawn from, apart from every other use of the same seed.
const PURPOSE: u64 = 0x626c_6f63_6b73;

/// Every epoch in a random order that moves from window to window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blockwise {
    samples: u64,
    run_samples: u64,
    /// Samples of the last run, as they are stored: 1 to `run_samples`.
    last_samples: u64,
    runs: SampleOrder,
    windows: u64,
    window_key: u64,
}

impl Blockwise {
    /// The order of `samples` samples under `seed`.
    ///
    /// # Panics
    /// If a number is 0.
    pub fn new(seed: u64, samples: u64, block_samples: u64, window_blocks: u64) -> Self {
        let least = samples.min(block_samples).min(window_blocks);
        assert!(least > 0, "{samples} samples in runs of {block_samples} and windows of {window_blocks}");
        let runs = samples.div_ceil(block_samples);
        let mut keys = Stream::new(seed, PURPOSE);
        Self {
            samples,
            run_samples: block_samples,
            last_samples: samples - (runs - 1) * block_samples,
            runs: SampleOrder::keyed(keys.next_u64(), runs),
            windows: runs.div_ceil(window_blocks),
            window_key: keys.next_u64(),
        }
    }

    /// How the runs of an epoch lie.
    fn laid(&self, epoch: u64) -> Laid<'_> {
        let last = self.runs.samples() - 1;
        // Where no run is short, it does not matter which one is taken for it.
        let any = self.last_samples == self.run_samples;
        Laid { order: self, epoch, short: if any { last } else { self.runs.position_of(epoch, last) } }
    }

    /// The runs of a window, by their places in the order of runs: windows differ by one run at most.
    fn runs_of(&self, window: u64) -> Range<u64> {
        let (runs, larger) = self.even_windows();
        let start = |window: u64| window * runs + window.min(larger);
        start(window)..start(window + 1)
    }

    /// The window of the run at a place in the order of runs.
    fn window_of(&self, place: u64) -> u64 {
        let (runs, larger) = self.even_windows();
        let in_larger = larger * (runs + 1);
        if place < in_larger { place / (runs + 1) } else { larger + (place - in_larger) / runs }
    }

    /// Runs of a window, and how many windows, the first ones, have one more.
    fn even_windows(&self) -> (u64, u64) {
        (self.runs.samples() / self.windows, self.runs.samples() % self.windows)
    }
}

impl Epochs for Blockwise {
    fn epoch_samples(&self) -> u64 {
        self.samples
    }

    fn sample_in(&self, epoch: u64, place: u64) -> u64 {
        let laid = self.laid(epoch);
        let (window, start) = laid.window_at(place);
        let (run, within) = laid.run_at(start + window.sample_at(epoch, place - start));
        self.runs.sample_at(epoch, run) * self.run_samples + within
    }

    fn samples_in(&self, epoch: u64, places: &mut [u64]) {
        let (laid, mut rest) = (self.laid(epoch), places);
        while let Some(first) = rest.first() {
            let (window, start) = laid.window_at(*first);
            let count = rest.partition_point(|place| *place < start + window.samples());
            let (within, later) = rest.split_at_mut(count);
            laid.samples_of(&window, start, within);
            rest = later;
        }
    }

    fn place_in(&self, epoch: u64, sample: u64) -> u64 {
        let laid = self.laid(epoch);
        let run = self.runs.position_of(epoch, sample / self.run_samples);
        let place = laid.start_of(run) + sample % self.run_samples;
        let (window, start) = laid.window_at(place);
        start + window.position_of(epoch, place - start)
    }
}

/// The runs of one epoch, one behind another in their random order, before samples are shuffled.
struct Laid<'a> {
    order: &'a Blockwise,
    epoch: u64,
    /// Where the run stands that may be short.
    short: u64,
}

impl Laid<'_> {
    /// Where the run at a place in the order of runs begins; where the last ends for the number of runs.
    fn start_of(&self, run: u64) -> u64 {
        let Blockwise { run_samples, last_samples, .. } = *self.order;
        if run <= self.short { run * run_samples } else { (run - 1) * run_samples + last_samples }
    }

    /// The place of the run that holds what lies at `place`, and where in the run it lies.
    fn run_at(&self, place: u64) -> (u64, u64) {
        let behind_short = self.start_of(self.short + 1);
        let (first, past) =
            if place < behind_short { (0, place) } else { (self.short + 1, place - behind_short) };
        (first + past / self.order.run_samples, past % self.order.run_samples)
    }

    /// The samples at some places of a window, in their stead.
    fn samples_of(&self, window: &SampleOrder, start: u64, places: &mut [u64]) {
        places.iter_mut().for_each(|place| *place -= start);
        window.samples_at(self.epoch, places);
        let (mut runs, within): (Vec<u64>, Vec<u64>) =
            places.iter().map(|place| self.run_at(start + place)).unzip();
        self.order.runs.samples_at(self.epoch, &mut runs);
        for (place, (run, within)) in places.iter_mut().zip(runs.into_iter().zip(within)) {
            *place = run * self.order.run_samples + within;
        }
    }

    /// The order of the samples of the window in which `place` is, and where the window begins.
    fn window_at(&self, place: u64) -> (SampleOrder, u64) {
        let window = self.order.window_of(self.run_at(place).0);
        let runs = self.order.runs_of(window);
        let (start, end) = (self.start_of(runs.start), self.start_of(runs.end));
        let key = philox(self.order.window_key, u128::from(self.epoch) << 64 | u128::from(window));
        (SampleOrder::keyed(u64::from(key[0]) << 32 | u64::from(key[1]), end - start), start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The samples of an epoch, cut into its windows.
    fn windows(order: &Blockwise, epoch: u64) -> Vec<Vec<u64>> {
        let laid = order.laid(epoch);
        let of = |window| {
            let runs = order.runs_of(window);
            let places = laid.start_of(runs.start)..laid.start_of(runs.end);
            places.map(|place| order.sample_in(epoch, place)).collect()
        };
        (0..order.windows).map(of).collect()
    }

    #[test]
    fn the_short_run_stands_anywhere_equally_often() {
        let order = Blockwise::new(9, 10, 4, 1);
        let mut counts = [0u32; 3];
        for epoch in 0..6000 {
            let window = windows(&order, epoch).iter().position(|samples| samples.contains(&9)).unwrap();
            counts[window] += 1;
        }
        // 6000 draws of probability 1/3: mean 2000, deviation 37; six deviations are 219.
        assert!(counts.iter().all(|count| count.abs_diff(2000) < 219), "{counts:?}");
    }

    #[test]
    fn within_a_window_any_place_meets_any_sample() {
        let order = Blockwise::new(9, 5, 3, 2);
        let mut counts = [[0u32; 5]; 5];
        for epoch in 0..5000 {
            for place in 0..5 {
                counts[place as usize][order.sample_in(epoch, place) as usize] += 1;
            }
        }
        // 5000 draws of probability 1/5: mean 1000, deviation 28; six deviations are 170.
        assert!(counts.iter().flatten().all(|count| count.abs_diff(1000) < 170), "{counts:?}");
    }

    #[test]
    fn windows_are_shuffled_each_in_its_own_way() {
        let order = Blockwise::new(3, 2000, 10, 10);
        let ways: BTreeSet<Vec<u64>> = windows(&order, 0)
            .into_iter()
            .map(|samples| samples.into_iter().map(|sample| sample % 10).collect())
            .collect();
        assert_eq!(ways.len(), 20);
    }

    proptest! {
        #[test]
        fn a_window_holds_whole_runs(
            seed: u64, epoch: u64, samples in 1u64..500, block_samples in 1u64..60, window_blocks in 1u64..20,
        ) {
            let order = Blockwise::new(seed, samples, block_samples, window_blocks);
            let windows = windows(&order, epoch);
            for samples in &windows {
                let runs: BTreeSet<u64> = samples.iter().map(|sample| sample / block_samples).collect();
                prop_assert!((1..=window_blocks).contains(&(runs.len() as u64)));
                let whole = runs.iter().flat_map(|run| run * block_samples..((run + 1) * block_samples).min(order.samples));
                prop_assert_eq!(samples.iter().copied().collect::<BTreeSet<_>>(), whole.collect::<BTreeSet<_>>());
            }
            prop_assert_eq!(windows.iter().map(Vec::len).sum::<usize>() as u64, samples);
            for place in 0..samples {
                prop_assert_eq!(order.place_in(epoch, order.sample_in(epoch, place)), place);
            }
        }
    }
}
