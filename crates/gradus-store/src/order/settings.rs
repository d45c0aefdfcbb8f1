//! The settings of the order.

use super::{Blockwise, Mixture, Order, Sequential, Shuffled};
use gradus_error::{Error, Result};
use gradus_host::random::Stream;
use serde::{Deserialize, Serialize};

/// Names the stream that the seeds of a mixture's components are drawn from.
const PURPOSE: u64 = 0x7061_7274_7300;

/// How samples are shuffled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// Every epoch in a random order out of all there are.
    #[default]
    Whole,
    /// Runs of samples in a random order, and samples in a random order within windows of runs.
    Blocks,
    /// As they are stored.
    None,
}

/// In which order samples come: the section `[order]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrderSettings {
    /// How samples are shuffled: `whole`, `blocks`, or `none`.
    pub shuffle: Shuffle,
    /// For `blocks`: consecutive samples that stay together.
    pub block_samples: u64,
    /// For `blocks`: how many such runs are mixed at a time.
    pub window_blocks: u64,
}

impl Default for OrderSettings {
    fn default() -> Self {
        Self { shuffle: Shuffle::Whole, block_samples: 1024, window_blocks: 64 }
    }
}

impl OrderSettings {
    /// Checks each setting by itself.
    ///
    /// # Errors
    /// `Invalid`, naming the setting and what it may be.
    pub fn validate(&self) -> Result<()> {
        for (name, number) in [("block_samples", self.block_samples), ("window_blocks", self.window_blocks)] {
            if number == 0 {
                return Err(Error::invalid(format!("order.{name} is 0: choose 1 or more")));
            }
        }
        Ok(())
    }

    /// The same without what makes no difference: runs of samples where none are kept together.
    pub fn as_far_as_it_counts(&self) -> Self {
        if self.shuffle == Shuffle::Blocks {
            self.clone()
        } else {
            Self { shuffle: self.shuffle, ..Self::default() }
        }
    }

    /// The order of `samples` samples under `seed`.
    ///
    /// # Errors
    /// `Invalid` as of [`OrderSettings::validate`], or without samples.
    pub fn order(&self, seed: u64, samples: u64) -> Result<Box<dyn Order>> {
        self.validate()?;
        if samples == 0 {
            return Err(Error::invalid("there are no samples to be put in order"));
        }
        Ok(match self.shuffle {
            Shuffle::Whole => Box::new(Shuffled::new(seed, samples)),
            Shuffle::Blocks => {
                Box::new(Blockwise::new(seed, samples, self.block_samples, self.window_blocks))
            }
            Shuffle::None => Box::new(Sequential::new(samples)),
        })
    }

    /// The order of a mixture whose components, of so many samples and such a weight each, are ordered by these settings,
    /// each under a seed of its own.
    ///
    /// # Errors
    /// `Invalid` as of [`OrderSettings::order`] and [`Mixture::new`].
    pub fn mixture(&self, seed: u64, components: &[(u64, f64)]) -> Result<Mixture> {
        let mut seeds = Stream::new(seed, PURPOSE);
        let one = |(index, (samples, weight)): (usize, &(u64, f64))| {
            let order = self.order(seeds.next_u64(), *samples);
            let order =
                order.map_err(|error| error.within(format!("component {index} of the mixture (from 0)")))?;
            Ok((order, *weight))
        };
        Mixture::new(seed, components.iter().enumerate().map(one).collect::<Result<_>>()?)
    }
}
