//! From a schedule to each rank's program: where messages are started, and in which memory a microbatch lies.
//!
//! A communicator wants the messages between two ranks started in the same order at both ends, over both directions
//! together. So all messages of a step are put into one order, the same on every rank: that in which the schedule makes them
//! when all passes take the same time and transfers next to none (gradients first, then by microbatch and boundary, where two
//! are made at once).
//! Every rank starts its own in that order: a message that it makes when it has made it, one that it receives at the
//! latest before the first later one of its own, and before the computation that needs it.
//!
//! Receiving that late takes the least memory, but then transfers only begin when their messages are needed. So a program is made
//! twice: first as late as can be, which says how many slots it takes; then with every receive that may come next started before
//! a computation, beside which it travels, as long as there is a slot for it among these (and one more, if a chunk alone has
//! no more than the schedule has in flight).
//!
//! That never waits in a circle: at the time at which a rank makes a message, in the schedule as it was laid out, every
//! earlier one has been made, so a rank that posts or sends in this order waits only for what was made before; and whoever
//! needs a message began after it, so that everything its rank makes before it is made. Who takes a slot waits for a gradient that
//! left from there to have been received, and the other end starts to receive it before anything that needs what is later in the order.
//! Real passes may take any time: the order stays what it is.

mod slots;

use super::message::{Direction, Message};
use super::program::{Instruction, Program, Sharing};
use super::schedule::{Action, ActionKind, Schedule, Shape};
use super::simulate::{Costs, simulate};
use gradus_error::{Error, Result};
use slots::Slots;
use std::collections::VecDeque;

/// What a transfer takes beside a pass when messages are put in order: no more than tells which of two comes first where passes
/// alone would make them at once. A power of two, so that times are exact, and the order the same wherever it is found.
const HAIR: f64 = 1.0 / 1024.0;

/// The program of every rank.
///
/// # Errors
/// `Internal` for a schedule that [`check`](super::check) refuses.
pub fn lower(schedule: &Schedule, sharing: Sharing) -> Result<Vec<Program>> {
    let lanes = queues(schedule)?.into_iter().zip(&schedule.actions).enumerate();
    let lower = |(rank, (queue, actions)): (usize, (VecDeque<_>, &Vec<_>))| {
        let late = Lane::new(schedule.shape, rank, queue.clone(), sharing).lower(actions)?;
        // With none to spare nothing could come ahead: then there is one more. Several chunks gain nothing by that.
        let none = schedule.shape.chunks_per_rank == 1 && late.most_slots <= schedule.most_in_flight[rank];
        let spare = usize::from(none);
        let slots = late.slots.iter().map(|count| count + spare).collect();
        let ahead = Ahead { slots, activations: rank > 0 || sharing == Sharing::Chunk };
        Lane { ahead: Some(ahead), ..Lane::new(schedule.shape, rank, queue, sharing) }.lower(actions)
    };
    lanes.map(lower).collect()
}

/// What a rank may start to receive before it must.
struct Ahead {
    /// Slots that it has for that: of each chunk, or of all together.
    slots: Vec<usize>,
    /// Whether activations too, not only gradients. Not where the first stage takes slots among them, out of the order of messages.
    activations: bool,
}

/// For each rank, the messages that it sends or receives, in the one order of all.
fn queues(schedule: &Schedule) -> Result<Vec<VecDeque<Message>>> {
    let shape = schedule.shape;
    let mut queues = vec![VecDeque::new(); shape.ranks];
    for message in in_order(schedule)? {
        for stage in [message.from_stage(), message.to_stage()] {
            queues[shape.rank_of(stage)].push_back(message);
        }
    }
    Ok(queues)
}

/// All messages between ranks, in the order in which they are made.
fn in_order(schedule: &Schedule) -> Result<Vec<Message>> {
    let shape = schedule.shape;
    let mut costs = Costs::unit(shape);
    costs.stages.iter_mut().for_each(|stage| stage.transfer = HAIR);
    let timeline = simulate(schedule, &costs)?;
    let mut made = Vec::with_capacity(Message::count(shape));
    for (rank, (actions, periods)) in schedule.actions.iter().zip(&timeline.periods).enumerate() {
        let messages =
            actions.iter().map(|action| Message::made_by(shape, shape.stage(rank, action.chunk), *action));
        let timed = messages.zip(periods).filter_map(|(message, period)| Some((period.end, message?)));
        made.extend(timed.filter(|(_, message)| message.crosses(shape)));
    }
    made.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Ok(made.into_iter().map(|(_, message)| message).collect())
}

/// One rank's program in the making.
struct Lane {
    shape: Shape,
    rank: usize,
    /// Messages that are still to be started, in order.
    queue: VecDeque<Message>,
    /// By a message's number, whether it was started.
    started: Vec<bool>,
    slots: Slots,
    /// Nothing while it is found out how many slots it takes.
    ahead: Option<Ahead>,
    instructions: Vec<Instruction>,
}

impl Lane {
    fn new(shape: Shape, rank: usize, queue: VecDeque<Message>, sharing: Sharing) -> Self {
        let (started, slots) =
            (vec![false; Message::count(shape)], Slots::new(shape.chunks_per_rank, sharing));
        Self { shape, rank, queue, started, slots, ahead: None, instructions: Vec::new() }
    }

    fn lower(mut self, actions: &[Action]) -> Result<Program> {
        for action in actions {
            self.act(*action)?;
        }
        let (slots, most_slots) = self.slots.needed();
        Ok(Program { instructions: self.instructions, slots, most_slots })
    }

    /// An action, with what must be received before and sent after it.
    fn act(&mut self, action: Action) -> Result<()> {
        let Action { kind, microbatch, chunk } = action;
        let stage = self.shape.stage(self.rank, chunk);
        match Message::needed_by(self.shape, stage, action) {
            Some(needed) if needed.crosses(self.shape) => self.start_through(needed)?,
            None if kind == ActionKind::Forward => drop(self.slots.take(chunk, microbatch)),
            _ => {}
        }
        let slot = self.slots.of(chunk, microbatch)?;
        self.start_ahead()?;
        self.instructions.push(Instruction::Compute { action, slot });
        self.slots.rest();
        match Message::made_by(self.shape, stage, action) {
            Some(made) if made.crosses(self.shape) => self.start_through(made)?,
            Some(made) => self.pass(made)?,
            None => {}
        }
        // Not before the gradient is on its way: it leaves from this slot.
        if kind.ends() { self.slots.release(chunk, microbatch) } else { Ok(()) }
    }

    /// Starts all messages up to `last`; nothing where a later one made that necessary before.
    fn start_through(&mut self, last: Message) -> Result<()> {
        while !self.started[last.index(self.shape)] {
            let next = self.queue.pop_front();
            let next = next.filter(|next| *next == last || self.receives(*next));
            let next = next.ok_or_else(|| Error::internal(format!("{last} comes before it is made")))?;
            self.start(next)?;
        }
        Ok(())
    }

    /// Starts to receive what comes next, as far as there is memory.
    fn start_ahead(&mut self) -> Result<()> {
        while let Some(next) = self.queue.front().copied().filter(|next| self.receives(*next)) {
            let Some(Ahead { slots, activations }) = &self.ahead else { break };
            let chunk = self.shape.chunk_of(next.to_stage());
            let room = *activations && self.slots.has_rested(chunk, slots);
            if next.direction == Direction::Activation && !room {
                break;
            }
            self.queue.pop_front();
            self.start(next)?;
        }
        Ok(())
    }

    fn start(&mut self, message: Message) -> Result<()> {
        let (receives, microbatch) = (self.receives(message), message.microbatch);
        let stage = if receives { message.to_stage() } else { message.from_stage() };
        let chunk = self.shape.chunk_of(stage);
        let slot = match message.direction {
            Direction::Activation if receives => self.slots.take(chunk, microbatch),
            _ => self.slots.of(chunk, microbatch)?,
        };
        self.started[message.index(self.shape)] = true;
        self.instructions.push(match receives {
            true => Instruction::Receive { message, slot },
            false => Instruction::Send { message, slot },
        });
        Ok(())
    }

    fn receives(&self, message: Message) -> bool {
        self.shape.rank_of(message.to_stage()) == self.rank
    }

    /// Hands a message to another chunk of this rank.
    fn pass(&mut self, message: Message) -> Result<()> {
        let [from, to] = [message.from_stage(), message.to_stage()].map(|stage| self.shape.chunk_of(stage));
        let from = self.slots.of(from, message.microbatch)?;
        let to = match message.direction {
            Direction::Activation => self.slots.take(to, message.microbatch),
            Direction::Gradient => self.slots.of(to, message.microbatch)?,
        };
        self.instructions.push(Instruction::Pass { message, from, to });
        Ok(())
    }
}
