//! How a simulated rank goes through its program.

use super::program::{Program, Task};
use crate::communicator::{Communicator, Handle};
use crate::memory::{Buffer, Memory};
use gradus_error::{Error, Result};
use gradus_fabric::Transport;
use gradus_host::Clock;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How a rank has ended.
pub(super) struct Ending {
    /// When.
    pub(super) at: Duration,
    /// Collectives whose result it has seen.
    pub(super) done: usize,
    /// Those of them whose result was wrong, by number.
    pub(super) wrong: Vec<usize>,
    /// Why it did not come to the end of its program.
    pub(super) error: Option<Error>,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} collectives until {:?}", self.done, self.at)?;
        match &self.error {
            Some(error) => write!(f, ", then {error:?}"),
            None => Ok(()),
        }
    }
}

/// A collective in flight, with its memory.
struct InFlight<'a> {
    task: &'a Task,
    number: usize,
    /// Kept until the collective is over.
    _input: Vec<i32>,
    output: Vec<i32>,
    expected: Vec<i32>,
    handle: Handle,
}

/// Goes through the program, with a communicator for each level of priority.
pub(super) fn play(
    program: &Program,
    transport: Box<dyn Transport>,
    clock: Arc<dyn Clock>,
    stall_limit: Duration,
) -> Ending {
    let mut world = Communicator::with_clock(transport, stall_limit, Arc::clone(&clock));
    let levels = 0..program.levels;
    let mut levels: Vec<_> = levels.map(|level| world.at_priority(level).expect("it is there")).collect();
    let mut ending = Ending { at: Duration::ZERO, done: 0, wrong: Vec::new(), error: None };
    for first in (0..program.tasks.len()).step_by(program.at_once) {
        let last = program.tasks.len().min(first + program.at_once);
        if let Err(error) = batch(program, first..last, &mut levels, &*clock, &mut ending) {
            ending.error = Some(error);
            break;
        }
    }
    ending.at = clock.now();
    ending
}

/// Starts some collectives, one after the other with what is computed between them, and waits for the last one first.
fn batch(
    program: &Program,
    numbers: std::ops::Range<usize>,
    levels: &mut [Communicator],
    clock: &dyn Clock,
    ending: &mut Ending,
) -> Result<()> {
    let rank = levels[0].rank();
    let mut in_flight = Vec::new();
    for number in numbers {
        clock.sleep(program.pauses[number][rank]);
        // Whatever fails, nothing of a batch may be in flight when its memory goes; what is refused has not failed yet.
        let task = &program.tasks[number];
        let communicator = &mut levels[task.level];
        let started = start(task, number, communicator);
        in_flight.extend(started.inspect_err(|error| communicator.give_up(error))?);
    }
    while let Some(InFlight { task, number, output, expected, handle, .. }) = in_flight.pop() {
        // Any communicator of a transport waits for all of its collectives.
        levels[0].wait(handle)?;
        ending.done += 1;
        if task.kind != super::program::Kind::Barrier && output != expected {
            ending.wrong.push(number);
        }
    }
    Ok(())
}

/// Starts a collective, if this rank takes part in it.
fn start<'a>(task: &'a Task, number: usize, communicator: &mut Communicator) -> Result<Option<InFlight<'a>>> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let Some(what) = task.collective(rank, world_size) else { return Ok(None) };
    let (input, expected) = (task.input(rank, world_size), task.expected(rank, world_size));
    let barrier = task.kind == super::program::Kind::Barrier;
    // What was not written shows.
    let mut output = vec![i32::MIN + 7; if barrier { 1 } else { expected.len() }];
    let memory = match barrier {
        true => Memory::InPlace(Buffer::of(&mut output)),
        false => Memory::Apart { input: Buffer::input(&input), output: Buffer::of(&mut output) },
    };
    // SAFETY: both vectors' memory stays where it is while they are moved, and lives in the batch until this handle was
    // waited for or the communicator has failed, after which it touches no memory.
    let handle = unsafe { communicator.start(&what, memory) }?;
    Ok(Some(InFlight { task, number, _input: input, output, expected, handle }))
}
