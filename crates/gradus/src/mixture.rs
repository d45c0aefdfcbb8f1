//! Data that are mixed: the tables `[[data.mixture]]` become datasets held against each other.

use crate::data_section::MixtureSource;
use crate::data_source::DataSource;
use crate::run_settings::Settings;
use gradus_error::Result;
use gradus_store::{Address, Dataset, Mixed, MixedPart};

/// Opens all data that are mixed, and says where each lies.
///
/// # Errors
/// `Invalid` for settings that cannot be, where nothing was prepared, and for data that do not go together, naming which;
/// `Corrupt` for what was altered; what a bucket says.
pub fn open(settings: &Settings) -> Result<(Mixed, Vec<DataSource>)> {
    settings.data.check()?;
    let found = settings.data.mixture.iter().map(|source| {
        find(source, settings).map_err(|error| error.within(format!("data.mixture: {}", source.prepared)))
    });
    let (sources, parts) = found.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let mixed = Mixed::new(parts, &settings.order, settings.run.seed);
    Ok((mixed.map_err(|error| error.within("data.mixture"))?, sources))
}

/// What was prepared where a source says.
fn find(source: &MixtureSource, settings: &Settings) -> Result<(DataSource, MixedPart)> {
    let place = DataSource::open(&source.prepared, settings)?;
    let dataset = match source.address()? {
        Address::File(folder) => Dataset::open(&folder)?,
        Address::S3 { .. } => Dataset::find(place.bucket(), &place.address())?,
    };
    Ok((place, MixedPart { name: source.prepared.clone(), dataset, weight: source.weight }))
}
