//! Where a dataset is, and what is needed to read it: settings become a bucket, an index, a cache.

use crate::commands::environment;
use crate::run_settings::Settings;
use gradus_error::{Kind, Result};
use gradus_store::index::{Format, INDEX_FILE, Objects};
use gradus_store::{Address, Bucket, Index, IndexSettings, ObjectInfo, Source, Split};

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
    /// What [`Index::build`] says.
    pub fn index(&self, split: Split) -> Result<Index> {
        let listed = Objects::list(&self.bucket, &self.address())?;
        match self.index_beside(&listed) {
            // What is described of prepared tokens depends on the split, and their manifest says all of it.
            Ok(Some(index)) if !matches!(index.format(), Format::Tokens { .. }) => return Ok(index),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Corrupt) => {
                tracing::warn!(
                    "the index beside the data is passed over, and they are indexed anew: {error}"
                );
            }
            Err(error) => return Err(error),
        }
        let settings = IndexSettings { split, ..IndexSettings::default() };
        Index::build_listed(&self.bucket, &self.address(), &listed, &settings, &|_| ())
    }

    /// The index among what lies at the address, if there is one.
    ///
    /// # Errors
    /// `Invalid` and `Corrupt` where it does not hold; the store's.
    fn index_beside(&self, listed: &[ObjectInfo]) -> Result<Option<Index>> {
        let beside = self.address.join(INDEX_FILE).to_string();
        let Some(file) = listed.iter().find(|object| object.address == beside) else { return Ok(None) };
        let index = Index::read_object(&self.bucket, file)?;
        index.check_objects(listed)?;
        Ok(Some(index))
    }

    /// Where a feed gets its bytes.
    pub fn source(&self) -> Source {
        match self.address {
            Address::File(_) => Source::Files,
            Address::S3 { .. } => Source::Bucket(self.bucket.clone()),
        }
    }
}
