//! Short texts that each rank tells all.

use crate::wording;
use gradus_collective::{Collective, Communicator};
use gradus_error::Result;

/// What every rank says, in the order of ranks; of each the first `longest` bytes. All ranks call it together.
///
/// # Errors
/// The collective's.
pub fn texts(communicator: &mut Communicator, own: &str, longest: usize) -> Result<Vec<String>> {
    let mut told = vec![0u8; longest];
    let len = own.len().min(longest);
    told[..len].copy_from_slice(&own.as_bytes()[..len]);
    let mut all = vec![0u8; longest * communicator.world_size()];
    communicator.run(&Collective::all_gather(), &told, &mut all)?;
    let shown = |text: &[u8]| wording::printable(String::from_utf8_lossy(text).trim_end_matches('\0'));
    Ok(all.chunks(longest).map(shown).collect())
}
