//! Collectives in a simulated world.
//!
//! [`run`] draws from a seed a world, what its ranks do together and what goes wrong, lets it happen in virtual time over
//! [`gradus_fabric::simulated`], and reports what must not be. The communicator is the real one, with its executor, its
//! waits and its stall limit; only clock and transport are simulated. Two kinds of seeds take turns:
//!
//! - *harmless* ones (loss, cuts, pauses, slow ranks, all shorter than the stall limit): every collective must come to
//!   the sequential reference, on every rank, bit for bit;
//! - *harmful* ones (crashes, resets, and all of that at any length): whoever is not over with its program must end in bounded time with an
//!   error that says which collective, by number, and blames nobody who did well; what came out before must be right.

mod judge;
mod planted;
mod program;
mod rank;
#[cfg(test)]
mod tests;

use gradus_fabric::simulated::{self, Conditions};
use gradus_host::random::Stream;
use gradus_host::simulation::{Fault, FaultSettings, Faults, Recording, Strike, Trace, Weather};
use judge::judge;
use planted::Planted;
use program::Program;
use rank::Ending;
use std::time::Duration;

/// Purposes of the streams that say what ranks do and under what; those of the simulated host are small numbers.
const PROGRAM: u64 = 2000;
const CONDITIONS: u64 = 2001;

/// Until when things go wrong.
const HEAL: Duration = Duration::from_secs(60);

/// Strikes fall into this part of the time until all is healed: programs are over soon.
const STRIKES_WITHIN: u32 = 8;

/// The longest fault that harms nobody, and a stall limit that is never met then: what was lost while the network was not
/// yet healed is sent again in twice the time that it took to heal.
const HARMLESS: Duration = Duration::from_secs(3);
const PATIENT: Duration = Duration::from_secs(180);

/// The longest harmful fault: longer than the silence that a line of life allows.
const HARMFUL: Duration = Duration::from_secs(40);

/// By when all must have ended: the network is healed, whoever stood still goes on, and who waits meets its stall limit.
const BOUND: Duration = Duration::from_secs(240);

/// When simulated time ends.
const END: Duration = Duration::from_secs(3600);

/// What came of a seed.
pub struct Report {
    /// What must not be; empty when all is well.
    pub violations: Vec<String>,
    /// What the ranks did, and under what.
    pub story: Vec<String>,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// Collectives that came to their result, counted on every rank.
    pub done: usize,
    /// Ranks that ended with an error.
    pub failed: usize,
    /// What happened.
    pub trace: Trace,
}

/// Runs a seed.
pub fn run(seed: u64, recording: Recording) -> Report {
    run_planted(seed, recording, Planted::Nothing)
}

fn run_planted(seed: u64, recording: Recording, planted: Planted) -> Report {
    let program = Program::draw(&mut Stream::new(seed, PROGRAM));
    let harmful = seed % 2 == 1;
    let chance = &mut Stream::new(seed, CONDITIONS);
    let stall_limit = if harmful { Duration::from_secs(5 + chance.next_below(30)) } else { PATIENT };
    let stall_limit = planted.stall_limit(stall_limit);
    let faults = draw_faults(seed, harmful, program.world_size);
    let conditions =
        Conditions { priority_levels: program.levels, ..draw_conditions(seed, chance, faults, recording) };
    let finish = simulated::run(program.world_size, &conditions, |transport, clock| {
        rank::play(&program, planted.break_it(transport, &clock), clock, stall_limit)
    });
    let story = tell(&program, &conditions, stall_limit, &finish.results);
    Report {
        violations: judge(&program, &conditions.faults, harmful, &finish.results),
        story,
        done: finish.results.iter().map(|ending| ending.done).sum(),
        failed: finish.results.iter().filter(|ending| ending.error.is_some()).count(),
        faults: conditions.faults,
        trace: finish.trace,
    }
}

fn draw_faults(seed: u64, harmful: bool, nodes: usize) -> Faults {
    let longest = if harmful { HARMFUL } else { HARMLESS };
    let settings =
        FaultSettings { nodes, expendable: 0, heal: HEAL, longest, longest_delay: Duration::from_millis(80) };
    let mut faults = Faults::draw(seed, &settings);
    faults.strikes.retain(|strike| harmful || !kills(&strike.fault));
    faults.strikes.iter_mut().for_each(|strike: &mut Strike| strike.at /= STRIKES_WITHIN);
    faults
}

fn kills(fault: &Fault) -> bool {
    matches!(fault, Fault::Crash { .. } | Fault::Reset { .. })
}

/// Streams of a kilobyte to half a megabyte, networks of a megabyte a second to a gigabyte, and ranks that are slow to call.
fn draw_conditions(seed: u64, chance: &mut Stream, faults: Faults, recording: Recording) -> Conditions {
    let weather = Weather { duplication: 0.0, ..faults.weather };
    let call = (0..8).map(|_| Duration::from_nanos(200 << chance.next_below(9))).collect();
    Conditions {
        faults: Faults { weather, ..faults },
        seed,
        stream_bytes: 1000 << chance.next_below(10),
        bandwidth_bytes_per_s: 1_000_000 << chance.next_below(11),
        call,
        end: END,
        recording,
        ..Conditions::default()
    }
}

fn tell(
    program: &Program,
    conditions: &Conditions,
    stall_limit: Duration,
    endings: &[Ending],
) -> Vec<String> {
    let Conditions { stream_bytes, bandwidth_bytes_per_s, call, .. } = conditions;
    let mut story = vec![
        format!("{} ranks, {} levels, stall limit {stall_limit:?}", program.world_size, program.levels),
        format!("streams of {stream_bytes} bytes, {bandwidth_bytes_per_s} bytes/s, calls {call:?}"),
    ];
    story.extend(program.tasks.iter().enumerate().map(|(number, task)| format!("task {number}: {task:?}")));
    story.extend(endings.iter().enumerate().map(|(rank, ending)| format!("rank {rank}: {ending}")));
    story
}
