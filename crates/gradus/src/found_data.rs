//! What a run reads, found before it is read: one dataset, or several that are mixed.

use crate::commands::prepare;
use crate::data_source::DataSource;
use crate::mixture;
use crate::run_settings::Settings;
use gradus_collective::Communicator;
use gradus_error::{Error, Result};
use gradus_store::index::Format;
use gradus_store::order::Selection;
use gradus_store::{DataSummary, Dataset, Index, Mixed, Order, Source, Split};
use gradus_train::evaluated_samples;
use std::sync::Arc;

/// See the module.
pub enum FoundData {
    /// One dataset, with its source where it has an address.
    One {
        /// What was prepared.
        dataset: Box<Dataset>,
        /// Where it is, if it has an address.
        source: Option<DataSource>,
    },
    /// Several.
    Mixed {
        /// What was prepared, and how it is mixed.
        mixed: Mixed,
        /// Where each of them is.
        sources: Vec<DataSource>,
    },
}

impl FoundData {
    /// Finds what was prepared; makes it now if it is not there yet and there is an input. A folder is each host's own,
    /// unless they share it, and processes take turns at it; into a bucket rank 0 prepares for all. All ranks call it together.
    ///
    /// # Errors
    /// What is wrong with data, bucket or settings.
    pub fn find(settings: &Settings, communicator: &mut Communicator) -> Result<Self> {
        if settings.data.is_mixed() {
            let (mixed, sources) = mixture::open(settings)?;
            return Ok(Self::Mixed { mixed, sources });
        }
        if !prepare::is_addressed(settings) {
            let dataset = Box::new(Dataset::open(&prepare::run(settings)?.folder)?);
            return Ok(Self::One { dataset, source: None });
        }
        let source = DataSource::open(&settings.data.prepare.prepared, settings)?;
        if !settings.data.prepare.input.is_empty() {
            if communicator.rank() == 0 || !source.is_remote() {
                prepare::run(settings)?;
            }
            communicator.patient_barrier()?;
        }
        let dataset = Box::new(Dataset::find(source.bucket(), &source.address())?);
        Ok(Self::One { dataset, source: Some(source) })
    }

    /// The dataset, or the first of those that are mixed: whose tokens and lengths are those of all.
    pub fn dataset(&self) -> &Dataset {
        match self {
            Self::One { dataset, .. } => dataset,
            Self::Mixed { mixed, .. } => &mixed.parts()[0].dataset,
        }
    }

    /// What the trainer is to know.
    ///
    /// # Errors
    /// `Invalid` for an impossible sequence length.
    pub fn summary(&self, settings: &Settings) -> Result<DataSummary> {
        Ok(match self {
            Self::One { dataset, .. } => dataset.as_ref().into(),
            Self::Mixed { mixed, .. } => mixed.summary(most_evaluated(settings)?),
        })
    }

    /// In which order a run reads one part of it, if it reads anything.
    ///
    /// # Errors
    /// `Invalid` for settings of the order that cannot be.
    pub fn order(&self, split: Split, settings: &Settings) -> Result<Option<Arc<dyn Order>>> {
        match (self, split) {
            (Self::One { dataset, .. }, split) => order_of_part(dataset, settings, split),
            (Self::Mixed { mixed, .. }, Split::Train) => Ok(Some(mixed.order())),
            (Self::Mixed { mixed, .. }, Split::HeldOut) => {
                let chosen = mixed.held_out(most_evaluated(settings)?);
                Ok(chosen.map(|order| Arc::new(order) as Arc<dyn Order>))
            }
        }
    }

    /// Where the samples of one part are, and what they are read from.
    ///
    /// # Errors
    /// `Invalid` where something else is described than prepared tokens; what [`Index::build`] says.
    pub fn index(&self, split: Split) -> Result<(Index, Source)> {
        let (mut indexes, mut places) = (Vec::new(), Vec::new());
        for (source, dataset) in self.sources(split) {
            let index = index_of_tokens(source, dataset, split)?;
            places.push((index.objects().len(), source.source()));
            indexes.push(index);
        }
        Ok((Index::join(indexes)?, Source::Several(places)))
    }

    /// Where those are that have samples of one part.
    fn sources(&self, split: Split) -> Vec<(&DataSource, &Dataset)> {
        match self {
            Self::One { source, dataset } => source.iter().map(|source| (source, dataset.as_ref())).collect(),
            Self::Mixed { mixed, sources } => {
                let parts = sources.iter().zip(mixed.parts().iter().map(|part| &part.dataset));
                parts.filter(|(_, dataset)| dataset.split(split).samples() > 0).collect()
            }
        }
    }
}

/// Where the samples of a part of `dataset` are, which was found at `source` before.
fn index_of_tokens(source: &DataSource, dataset: &Dataset, split: Split) -> Result<Index> {
    let index = source.index_of_tokens(split)?;
    if let Format::Tokens { sequence_length, .. } = index.format() {
        let samples = dataset.split(split).samples();
        if index.samples() == samples && *sequence_length == dataset.sequence_length() as u64 {
            return Ok(index);
        }
        return Err(Error::corrupt(format!(
            "{} was prepared anew while this run began ({} samples, {samples} before): start it again",
            source.address(),
            index.samples()
        )));
    }
    Err(Error::invalid(format!(
        "{} is described as {}, not as prepared tokens: remove the index that lies there",
        source.address(),
        index.format().title()
    )))
}

/// What a run reads of one part of a dataset, if it reads anything.
///
/// # Errors
/// `Invalid` for settings of the order that cannot be.
fn order_of_part(dataset: &Dataset, settings: &Settings, split: Split) -> Result<Option<Arc<dyn Order>>> {
    let all = dataset.split(split).samples();
    match split {
        Split::Train => Ok(Some(settings.order.order(settings.run.seed, all)?.into())),
        Split::HeldOut => {
            let chosen = all.min(most_evaluated(settings)?);
            Ok((all > 0).then(|| Arc::new(Selection::new(chosen, all)) as Arc<dyn Order>))
        }
    }
}

/// Samples that an evaluation reads at most.
fn most_evaluated(settings: &Settings) -> Result<u64> {
    Ok(evaluated_samples(u64::MAX, settings.train.evaluate_tokens, settings.sequence_length()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use std::fs;

    #[test]
    fn data_that_are_prepared_anew_while_a_run_begins_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let (corpus, prepared) = (home.path().join("corpus.txt"), home.path().join("prepared"));
        let mut settings = Settings::default();
        settings.data.prepare.input = vec![corpus.display().to_string()];
        settings.data.prepare.prepared = format!("file://{}", prepared.display());
        settings.data.prepare.vocabulary = 300;
        settings.data.prepare.sequence_length = 32;
        let prepare = |words: usize| {
            fs::write(&corpus, "a word and another, ".repeat(words)).unwrap();
            prepare::run(&settings).unwrap();
        };
        prepare(1000);
        let source = DataSource::open(&settings.data.prepare.prepared, &settings).unwrap();
        let dataset = Box::new(Dataset::find(source.bucket(), &source.address()).unwrap());
        let found = FoundData::One { dataset, source: Some(source) };
        assert_eq!(
            found.index(Split::Train).unwrap().0.samples(),
            found.dataset().split(Split::Train).samples()
        );
        prepare(2000);
        let error = found.index(Split::Train).err().unwrap();
        assert_eq!(*error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains("prepared anew"), "{error}");
    }
}
