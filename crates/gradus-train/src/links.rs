//! What a run's collectives are chosen by.
//!
//! Sums over more than two ranks round differently from one algorithm to another, so whatever algorithms are chosen by
//! decides the bits of a run. Links are measured where the settings ask for it, once in the life of a run, and recorded
//! among its conditions; a resumed run takes them from there, on whatever links it finds itself.

use crate::checkpoint::{self, TrainingState};
use crate::conditions::{Conditions, LINKS, NODES};
use crate::trainer::RunSettings;
use gradus_collective::Communicator;
use gradus_collective::algorithm::Nodes;
use gradus_collective::cost::LinkProfile;
use gradus_error::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// Has algorithms chosen by the links that rank 0's checkpoint knows, or else by those measured now, if the settings ask for
/// it, or else by how the ranks lie on several nodes; what they are chosen by, as conditions of the run: none by default. All
/// ranks call this.
///
/// # Errors
/// `Corrupt` where the checkpoint's links are none; those of collectives.
pub(crate) fn settle(
    communicator: &mut Communicator,
    nodes: &Nodes,
    settings: &RunSettings,
) -> Result<Conditions> {
    let first = communicator.rank() == 0;
    let resume = settings.resume.as_deref().filter(|_| first);
    let recorded = resume
        .map(links_of_checkpoint)
        .transpose()
        .inspect_err(|error| communicator.give_up(error))?
        .flatten();
    let mut known = [u8::from(recorded.is_some())];
    communicator.broadcast(0, &mut known)?;
    let profile = match (known == [1], settings.train.measure_links) {
        (true, _) => communicator.use_links(&recorded.unwrap_or_default(), nodes)?,
        (false, true) => communicator.measure_links(nodes)?,
        // Figures that nobody measured still tell near from far, where both are.
        (false, false) if has_near_and_far(nodes) => {
            communicator.use_links(&LinkProfile::default(), nodes)?
        }
        (false, false) => return Ok(Vec::new()),
    };
    Ok(vec![(LINKS.to_owned(), as_text(&profile)?), (NODES.to_owned(), as_text(nodes)?)])
}

fn has_near_and_far(nodes: &Nodes) -> bool {
    nodes.members().len() > 1 && nodes.members().iter().any(|ranks| ranks.len() > 1)
}

fn as_text(known: &impl Serialize) -> Result<String> {
    let failed = |error| Error::internal("what is known of links has no JSON form").with_source(error);
    serde_json::to_string(known).map_err(failed)
}

/// The links that a checkpoint knows: those that its run measured, if it did.
///
/// # Errors
/// `Corrupt` where they are none; those of reading the checkpoint.
pub fn links_of_checkpoint(folder: &Path) -> Result<Option<LinkProfile>> {
    in_state(&checkpoint::read_state(folder)?, folder)
}

/// The links that a checkpoint's state knows; `folder` is only named in messages.
pub(crate) fn in_state(state: &TrainingState, folder: &Path) -> Result<Option<LinkProfile>> {
    let Some((_, text)) = state.conditions.iter().find(|(name, _)| name == LINKS) else { return Ok(None) };
    let wrong = |error| {
        Error::corrupt(format!("the links of the checkpoint {} cannot be read", folder.display()))
            .with_source(error)
    };
    serde_json::from_str(text).map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    fn checkpoint_with(conditions: Vec<(String, String)>) -> tempfile::TempDir {
        let state = TrainingState {
            format: TrainingState::FORMAT,
            step: 1,
            updates: 1,
            total_steps: 2,
            tokens: 3,
            skipped: 0,
            conditions,
        };
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&state).unwrap();
        std::fs::write(folder.path().join(checkpoint::STATE_FILE), text).unwrap();
        folder
    }

    fn condition(text: String) -> Vec<(String, String)> {
        vec![(LINKS.to_owned(), text)]
    }

    #[test]
    fn what_a_checkpoint_knows_of_links_comes_back_as_it_was() {
        let mut profile = LinkProfile::default();
        profile.figures.inside.latency_us = 4.25;
        let text = as_text(&profile).unwrap();
        let folder = checkpoint_with(condition(text.clone()));
        let found = links_of_checkpoint(folder.path()).unwrap().unwrap();
        assert_eq!((as_text(&found).unwrap(), found), (text, profile));
        assert_eq!(links_of_checkpoint(checkpoint_with(Vec::new()).path()).unwrap(), None);
    }

    #[test]
    fn links_that_cannot_be_read_are_told_apart_from_none() {
        let error = links_of_checkpoint(checkpoint_with(condition("{}".to_owned())).path()).unwrap_err();
        assert_eq!(*error.kind(), Kind::Corrupt);
    }
}
