//! `gradus prepare`: raw text becomes token shards, once.

use crate::run_settings::Settings;
use crate::sinks::Preparation;
use gradus_error::Result;
use gradus_store::{PreparePhase, PrepareProgress, Prepared, Split, prepare};

/// Prepares the data of `settings`, or finds that nothing has changed.
///
/// # Errors
/// What [`prepare`] says of inputs, tokenizer and disk.
pub fn run(settings: &Settings) -> Result<Prepared> {
    let mut screen = Screen { preparation: Preparation::new(), phase: None };
    let prepared = prepare(&settings.data_settings()?, &mut |progress| screen.show(progress))?;
    screen.preparation.end();
    Ok(prepared)
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
