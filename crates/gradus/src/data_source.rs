//! Where a dataset is, and what is needed to read it: settings become a bucket, an index, a cache.

use crate::commands::environment;
use crate::run_settings::Settings;
use gradus_error::Result;
use gradus_store::{Address, Bucket, Index, IndexSettings, Source, Split};

/// A dataset at an address.
pub struct DataSource {
    address: Address,
    bucket: Bucket,
}

impl DataSource {
    /// Finds out how to reach it.
    ///
    /// # Errors
    /// `Invalid` for what is no address or a bad setting; `Denied` where no credentials are found.
    pub fn open(address: &str, settings: &Settings) -> Result<Self> {
        let address = Address::parse(address)?;
        let bucket = Bucket::open(&address, &settings.bucket, &environment)?;
        Ok(Self { address, bucket })
    }

    /// The address, as it is written.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether it lies in a bucket, which all hosts see.
    pub fn is_remote(&self) -> bool {
        self.address.is_remote()
    }

    /// What its objects are reached through.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// The dataset's description: as it was written down beside it, if that still holds, or made now.
    ///
    /// # Errors
    /// What [`Index::find`] says.
    pub fn index(&self) -> Result<Index> {
        Index::find(&self.bucket, &IndexSettings::default())
    }

    /// The description of prepared tokens, of which their manifest says all.
    ///
    /// # Errors
    /// What [`Index::build`] says.
    pub fn index_of_tokens(&self, split: Split) -> Result<Index> {
        let settings = IndexSettings { split, ..IndexSettings::default() };
        Index::build(&self.bucket, &self.address(), &settings, &|_| ())
    }

    /// Where a feed gets its bytes.
    pub fn source(&self) -> Source {
        match self.address {
            Address::File(_) => Source::Files,
            Address::S3 { .. } => Source::Bucket(self.bucket.clone()),
        }
    }
}
