//! What must hold at the end of every seed.

use super::rank::Ending;
use super::{BOUND, Program};
use gradus_error::{Error, Kind};
use gradus_host::simulation::{Fault, Faults};

/// All that does not hold.
pub(super) fn judge(program: &Program, faults: &Faults, harmful: bool, endings: &[Ending]) -> Vec<String> {
    let mut violations = Vec::new();
    for (rank, ending) in endings.iter().enumerate() {
        let mut say = |what: String| violations.push(format!("rank {rank} {what}"));
        for number in &ending.wrong {
            say(format!("got a wrong result: {:?}", program.tasks[*number]));
        }
        if ending.at > BOUND {
            say(format!("ended only after {:?}", ending.at));
        }
        let Some(error) = &ending.error else { continue };
        if !harmful {
            say(format!("failed though nothing harmful happened: {error:?}"));
        } else if let Some(objection) = objection(faults, endings, rank, error) {
            say(format!("{objection}: {error:?}"));
        }
    }
    violations
}

fn crashes(faults: &Faults, rank: usize) -> bool {
    faults.strikes.iter().any(|strike| matches!(strike.fault, Fault::Crash { node, .. } if node == rank))
}

/// What is wrong with a rank's error. Who crashes hears of it in its own way, which nobody else sees.
fn objection(faults: &Faults, endings: &[Ending], rank: usize, error: &Error) -> Option<&'static str> {
    let text = error.to_string();
    let numbered = text.split(" number ").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    match error.kind() {
        _ if crashes(faults, rank) => None,
        Kind::PeerLost { rank: lost } if !is_lost(faults, endings, rank, *lost, error) => {
            Some("blames who did well")
        }
        Kind::Unavailable if faults.strikes.is_empty() => Some("has waited though nothing went wrong"),
        Kind::PeerLost { .. } | Kind::Unavailable if !numbered => Some("does not say in which collective"),
        Kind::PeerLost { .. } | Kind::Unavailable => None,
        _ => Some("failed in a way that no fault explains"),
    }
}

/// Whether a rank may say that another is lost: because it was told so by one that has found it out; or because that one has crashed,
/// or ended before, or a cut or a reset lies between them.
fn is_lost(faults: &Faults, endings: &[Ending], rank: usize, lost: usize, error: &Error) -> bool {
    let of = |ending: &Ending| {
        ending.error.as_ref().is_some_and(|other| !other.is_told() && other.kind() == error.kind())
    };
    let between = faults.strikes.iter().any(|strike| match &strike.fault {
        Fault::Cut { side, .. } => side.contains(&rank) != side.contains(&lost),
        Fault::Reset { node, peer } => [*node, *peer] == [rank, lost] || [*node, *peer] == [lost, rank],
        _ => false,
    });
    let told = error.is_told() && endings.iter().any(of);
    told || between || crashes(faults, lost) || endings[lost].at <= endings[rank].at
}
