//! The flight recorder: what a rank has done lately, and who waits for whom when ranks' records are laid side by side.

mod analysis;
mod log;
mod recorder;

pub use analysis::{Analysis, Wait, Why, analyse};
pub use log::{FlightEntry, FlightLog, PeerState, read_logs};
pub(crate) use recorder::Recorder;
