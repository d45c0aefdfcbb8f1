//! Orders of which every epoch holds each sample once.
//!
//! Invariant: the positions of epoch `e` are `e * samples .. (e + 1) * samples`.

use super::{Order, SampleOrder};
use std::fmt::Debug;

/// An order that goes through all samples, each once, before it begins again.
pub(super) trait Epochs: Send + Sync + Debug {
    /// Number of samples in an epoch, at least one.
    fn epoch_samples(&self) -> u64;

    /// The sample at a place below [`Epochs::epoch_samples`] of an epoch.
    fn sample_in(&self, epoch: u64, place: u64) -> u64;

    /// The samples at some places of an epoch, one behind another, in their stead.
    fn samples_in(&self, epoch: u64, places: &mut [u64]) {
        places.iter_mut().for_each(|place| *place = self.sample_in(epoch, *place));
    }

    /// The place of a sample in an epoch: the inverse of [`Epochs::sample_in`].
    fn place_in(&self, epoch: u64, sample: u64) -> u64;
}

impl<E: Epochs> Order for E {
    fn samples(&self) -> u64 {
        self.epoch_samples()
    }

    fn sample_at(&self, position: u64) -> u64 {
        let samples = self.epoch_samples();
        self.sample_in(position / samples, position % samples)
    }

    fn samples_from(&self, from: u64, samples: &mut [u64]) {
        let all = self.epoch_samples();
        let (mut epoch, mut place, mut rest) = (from / all, from % all, samples);
        while !rest.is_empty() {
            let count = rest.len().min(usize::try_from(all - place).unwrap_or(usize::MAX));
            let (places, later) = rest.split_at_mut(count);
            places.iter_mut().zip(place..).for_each(|(slot, place)| *slot = place);
            self.samples_in(epoch, places);
            (epoch, place, rest) = (epoch.saturating_add(1), 0, later);
        }
    }

    fn next_position(&self, sample: u64, from: u64) -> Option<u64> {
        let samples = self.epoch_samples();
        if sample >= samples {
            return None;
        }
        let position = |epoch: u64| epoch.checked_mul(samples)?.checked_add(self.place_in(epoch, sample));
        let epoch = from / samples;
        let in_this = position(epoch).filter(|position| *position >= from);
        in_this.or_else(|| position(epoch.checked_add(1)?))
    }
}

/// Every epoch in a random order of its own, out of all there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffled(SampleOrder);

impl Shuffled {
    /// The shuffle of `samples` samples under `seed`.
    ///
    /// # Panics
    /// If `samples` is 0: a data set that opens has at least one.
    pub fn new(seed: u64, samples: u64) -> Self {
        Self(SampleOrder::new(seed, samples))
    }
}

impl Epochs for Shuffled {
    fn epoch_samples(&self) -> u64 {
        self.0.samples()
    }

    fn sample_in(&self, epoch: u64, place: u64) -> u64 {
        self.0.sample_at(epoch, place)
    }

    fn samples_in(&self, epoch: u64, places: &mut [u64]) {
        self.0.samples_at(epoch, places);
    }

    fn place_in(&self, epoch: u64, sample: u64) -> u64 {
        self.0.position_of(epoch, sample)
    }
}

/// Every epoch in the order in which the samples are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequential(u64);

impl Sequential {
    /// The order of `samples` samples.
    ///
    /// # Panics
    /// If `samples` is 0: a data set that opens has at least one.
    pub fn new(samples: u64) -> Self {
        assert!(samples > 0, "an order needs at least one sample");
        Self(samples)
    }
}

impl Epochs for Sequential {
    fn epoch_samples(&self) -> u64 {
        self.0
    }

    fn sample_in(&self, _: u64, place: u64) -> u64 {
        place
    }

    fn place_in(&self, _: u64, sample: u64) -> u64 {
        sample
    }
}
