//! The section `[data]` of a run's settings: what is prepared, or what was prepared before and is mixed.

use gradus_error::{Error, Result};
use gradus_store::{Address, PrepareSettings};
use serde::{Deserialize, Serialize};

/// The settings of data: what is prepared, or what was prepared and is mixed. The section `[data]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSection {
    /// What is prepared, and how.
    #[serde(flatten)]
    pub prepare: PrepareSettings,
    /// Prepared data to be mixed, in place of `input` and `prepared`.
    pub mixture: Vec<MixtureSource>,
}

/// One of the data that are mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSource {
    /// The folder where they were prepared, or `s3://BUCKET/PREFIX`.
    pub prepared: String,
    /// How often they come, beside the weights of the others: any number above 0.
    pub weight: f64,
}

impl DataSection {
    /// Whether several data are mixed.
    pub fn is_mixed(&self) -> bool {
        !self.mixture.is_empty()
    }

    /// Checks what can be told without data.
    ///
    /// # Errors
    /// `Invalid`, naming the key and the culprit.
    pub fn check(&self) -> Result<()> {
        if !self.is_mixed() {
            return Ok(());
        }
        let refuse = |what: String| Err(Error::invalid(what));
        for (key, is_given) in [
            ("data.prepared", !self.prepare.prepared.is_empty()),
            ("data.input", !self.prepare.input.is_empty()),
        ] {
            if is_given {
                return refuse(format!(
                    "{key} and data.mixture are both given: a mixture is of data that were prepared before, each by itself; \
                     leave one out"
                ));
            }
        }
        for (index, source) in self.mixture.iter().enumerate() {
            let MixtureSource { prepared, weight } = source;
            if !(weight.is_finite() && *weight > 0.0) {
                return refuse(format!(
                    "data.mixture: the weight of {prepared} is {weight}: give a number above 0, or leave it out"
                ));
            }
            let address = source.address()?;
            let earlier = self.mixture[..index].iter().map(MixtureSource::address);
            if earlier.filter_map(Result::ok).any(|earlier| earlier == address) {
                return refuse(format!("data.mixture names {prepared} twice: give it one weight"));
            }
        }
        Ok(())
    }
}

impl MixtureSource {
    /// The same, understood.
    ///
    /// # Errors
    /// `Invalid` for what is no address.
    pub fn address(&self) -> Result<Address> {
        Address::parse(&self.prepared).map_err(|error| error.within("data.mixture"))
    }
}
