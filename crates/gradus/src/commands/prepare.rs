//! `gradus prepare`: raw text becomes token shards, once.

use super::environment;
use crate::data_source::DataSource;
use crate::mixture;
use crate::run_settings::Settings;
use crate::sinks::Preparation;
use gradus_error::{Error, Result};
use gradus_store::{Bucket, Dataset, PreparePhase, PrepareProgress, Prepared, Split, prepare_with_buckets};

/// Prepares the data of `settings`, or finds that nothing has changed.
///
/// # Errors
/// What [`prepare`] says of inputs, tokenizer and disk.
pub fn run(settings: &Settings) -> Result<Prepared> {
    if settings.data.is_mixed() {
        return Err(Error::invalid(
            "data.mixture names data that were prepared before: prepare each by itself, with its data.input and data.prepared",
        ));
    }
    let mut screen = Screen { preparation: Preparation::new(), phase: None };
    let open = |address: &_| Bucket::open(address, &settings.bucket, &environment);
    let prepared =
        prepare_with_buckets(&settings.data_settings()?, &open, &mut |progress| screen.show(progress))?;
    screen.preparation.end();
    Ok(prepared)
}

/// The vocabulary of the data: of what is prepared now, or of what is there where no input is given, or several are mixed.
///
/// # Errors
/// As of [`run`]; `Invalid` where nothing was prepared.
pub fn vocabulary(settings: &Settings) -> Result<usize> {
    if settings.data.is_mixed() {
        return Ok(mixture::open(settings)?.0.parts()[0].dataset.vocabulary());
    }
    if !settings.data.prepare.input.is_empty() || !is_addressed(settings) {
        return Ok(run(settings)?.manifest.vocabulary);
    }
    let source = DataSource::open(&settings.data.prepare.prepared, settings)?;
    Ok(Dataset::find(source.bucket(), &source.address())?.vocabulary())
}

/// Whether the data lie at an address, which need not be a folder of this host.
pub fn is_addressed(settings: &Settings) -> bool {
    settings.data.prepare.prepared.contains("://")
}

/// What was prepared, in a sentence.
pub fn describe(prepared: &Prepared) -> String {
    let manifest = &prepared.manifest;
    let tokens = |split: Split| manifest.split(split).tokens;
    format!(
        "{} {}: {} tokens to learn from, {} held out, vocabulary {}",
        if prepared.changed { "prepared" } else { "nothing changed in" },
        prepared.folder.display(),
        tokens(Split::Train),
        tokens(Split::HeldOut),
        manifest.vocabulary
    )
}

/// Shows phases as they follow one another.
struct Screen {
    preparation: Preparation,
    phase: Option<PreparePhase>,
}

impl Screen {
    fn show(&mut self, progress: PrepareProgress) {
        let name = match progress.phase {
            // Over in a moment, and all that there is when nothing has changed.
            PreparePhase::Finding => return,
            PreparePhase::Waiting => "waiting for another process that prepares the same data",
            PreparePhase::Tokenizer => "training the tokenizer",
            PreparePhase::Encoding => "encoding",
            PreparePhase::Finishing => "writing",
            PreparePhase::Uploading => "uploading",
        };
        // A phase begins without a size; the bar waits for it.
        let sized = progress.total_bytes > 0 || progress.phase == PreparePhase::Waiting;
        if self.phase != Some(progress.phase) && sized {
            self.preparation.begin(name, progress.total_bytes);
            self.phase = Some(progress.phase);
        }
        if self.phase == Some(progress.phase) {
            self.preparation.advance(progress.done_bytes);
        }
    }
}
