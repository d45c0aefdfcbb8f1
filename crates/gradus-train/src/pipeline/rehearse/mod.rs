//! Programs carried out without model and wire, to prove that they are the schedule, that messages meet, and that nobody
//! waits for ever.
//!
//! Starting a message never waits, and the k-th that a rank starts with a peer meets the k-th that the peer starts with it; its
//! transfer begins when both have started it, the latest that a communicator may need. A computation waits for what it
//! needs, and memory that is taken for what was sent from it. Ranks go on in any order, for nothing that one does can take
//! away what another waits for: if one order ends, all do, and each thing at the same time in all of them.

mod memory;

use super::message::{Direction, Message};
use super::program::{Instruction, Program};
use super::schedule::{Action, ActionKind, Schedule, Shape};
use super::simulate::{Costs, Period, Timeline};
use gradus_error::{Error, Result};
use memory::{Came, Memory, Ticket};

/// Proves that `programs` carry out `schedule`; returns when they do, if passes and transfers take `costs` and nothing else
/// takes time.
///
/// Unlike [`simulate`](super::simulate), which has every transfer begin as soon as there is what it carries, this counts what ranks
/// wait for because the other end starts to receive later.
///
/// # Errors
/// `Internal`, naming rank and instruction, for programs that do not: that compute something else, that use memory or a message
/// which is not there, that start messages in different orders at both ends, or wait for ever.
///
/// # Panics
/// If there are not as many costs as stages.
pub fn rehearse(schedule: &Schedule, programs: &[Program], costs: &Costs) -> Result<Timeline> {
    let shape = schedule.shape;
    if programs.len() != shape.ranks {
        return Err(Error::internal(format!("{} programs for {} ranks", programs.len(), shape.ranks)));
    }
    for (rank, (program, actions)) in programs.iter().zip(&schedule.actions).enumerate() {
        if !program.computations().eq(actions.iter().copied()) {
            return Err(Error::internal(format!("the program of rank {rank} computes something else")));
        }
    }
    Stage::new(shape, programs, costs).play()
}

/// Where programs are carried out.
struct Stage<'a> {
    shape: Shape,
    programs: &'a [Program],
    costs: &'a Costs,
    /// How far each rank has come.
    positions: Vec<usize>,
    /// What time it is for each rank.
    now: Vec<f64>,
    /// By `rank * ranks + peer`: what a rank has started with a peer, and when.
    started: Vec<Vec<(Message, f64)>>,
    memories: Vec<Memory>,
    timeline: Timeline,
}

impl<'a> Stage<'a> {
    fn new(shape: Shape, programs: &'a [Program], costs: &'a Costs) -> Self {
        assert_eq!(costs.stages.len(), shape.stages(), "every stage has its costs");
        let memories = programs.iter().map(|program| Memory::new(&program.slots)).collect();
        let started = vec![Vec::new(); shape.ranks * shape.ranks];
        let timeline = Timeline { periods: vec![Vec::new(); shape.ranks] };
        let (positions, now) = (vec![0; shape.ranks], vec![0.0; shape.ranks]);
        Self { shape, programs, costs, positions, now, started, memories, timeline }
    }

    fn play(mut self) -> Result<Timeline> {
        while (0..self.shape.ranks).try_fold(false, |moved, rank| Ok(self.follow(rank)? || moved))? {}
        for rank in 0..self.shape.ranks {
            if let Some(instruction) = self.next(rank) {
                return Err(Error::internal(format!("rank {rank} waits for ever with {instruction:?}")));
            }
            for peer in 0..rank {
                self.check_lengths(rank, peer)?;
            }
        }
        Ok(self.timeline)
    }

    fn next(&self, rank: usize) -> Option<Instruction> {
        self.programs[rank].instructions.get(self.positions[rank]).copied()
    }

    /// Goes on with `rank` until it waits or ends; returns whether it did anything.
    fn follow(&mut self, rank: usize) -> Result<bool> {
        let before = self.positions[rank];
        while let Some(instruction) = self.next(rank) {
            let done = self.step(rank, instruction);
            if !done.map_err(|error| error.within(format!("rank {rank}, {instruction:?}")))? {
                break;
            }
            self.positions[rank] += 1;
        }
        Ok(self.positions[rank] > before)
    }

    /// Does one thing; returns `false` where it must wait.
    fn step(&mut self, rank: usize, instruction: Instruction) -> Result<bool> {
        match instruction {
            Instruction::Receive { message, slot } => self.receive(rank, message, slot),
            Instruction::Compute { action, slot } => self.compute(rank, action, slot),
            Instruction::Send { message, slot } => self.send(rank, message, slot).map(|()| true),
            Instruction::Pass { message, from, to } => self.pass(rank, message, from, to),
        }
    }

    fn receive(&mut self, rank: usize, message: Message, slot: usize) -> Result<bool> {
        let [peer, own] = self.ends(message);
        expect(own == rank && peer != rank, "this rank does not receive that")?;
        let chunk = self.shape.chunk_of(message.to_stage());
        if message.direction == Direction::Activation && !self.empty(rank, chunk, slot)? {
            return Ok(false);
        }
        let ticket = self.start(rank, peer, message)?;
        self.memories[rank].arrive(chunk, slot, message, Came::By(ticket))?;
        Ok(true)
    }

    fn compute(&mut self, rank: usize, action: Action, slot: usize) -> Result<bool> {
        let stage = self.shape.stage(rank, action.chunk);
        let needed = Message::needed_by(self.shape, stage, action);
        if needed.is_none() && action.kind == ActionKind::Forward {
            if !self.empty(rank, action.chunk, slot)? {
                return Ok(false);
            }
            self.memories[rank].begin(action.chunk, slot, action.microbatch)?;
        }
        if let Some(message) = needed
            && let Some(ticket) = self.memories[rank].awaited(action.chunk, slot, message)?
            && !self.wait(rank, &[ticket])
        {
            return Ok(false);
        }
        self.memories[rank].compute(slot, action)?;
        let start = self.now[rank];
        self.now[rank] += self.costs.of(stage, action.kind);
        self.timeline.periods[rank].push(Period { start, end: self.now[rank] });
        Ok(true)
    }

    fn send(&mut self, rank: usize, message: Message, slot: usize) -> Result<()> {
        let [own, peer] = self.ends(message);
        expect(own == rank && peer != rank, "this rank does not send that")?;
        let chunk = self.shape.chunk_of(message.from_stage());
        self.memories[rank].check_made(chunk, slot, message)?;
        let ticket = self.start(rank, peer, message)?;
        self.memories[rank].leaving(chunk, slot)?.push(ticket);
        Ok(())
    }

    fn pass(&mut self, rank: usize, message: Message, from: usize, to: usize) -> Result<bool> {
        expect(!message.crosses(self.shape), "there is another rank to send that to")?;
        let [own, chunk] = [message.from_stage(), message.to_stage()].map(|stage| self.shape.chunk_of(stage));
        self.memories[rank].check_made(own, from, message)?;
        if message.direction == Direction::Activation && !self.empty(rank, chunk, to)? {
            return Ok(false);
        }
        self.memories[rank].arrive(chunk, to, message, Came::Here)?;
        Ok(true)
    }

    /// The ranks that send and receive `message`.
    fn ends(&self, message: Message) -> [usize; 2] {
        [message.from_stage(), message.to_stage()].map(|stage| self.shape.rank_of(stage))
    }

    /// Waits until everything that was sent from a slot has left it; returns `false` while that cannot be said.
    fn empty(&mut self, rank: usize, chunk: usize, slot: usize) -> Result<bool> {
        let leaving = self.memories[rank].leaving(chunk, slot)?.clone();
        Ok(self.wait(rank, &leaving))
    }

    /// Starts `message` at this end of the pair.
    fn start(&mut self, rank: usize, peer: usize, message: Message) -> Result<Ticket> {
        let ranks = self.shape.ranks;
        let own = &mut self.started[rank * ranks + peer];
        let index = own.len();
        own.push((message, self.now[rank]));
        match self.started[peer * ranks + rank].get(index) {
            Some((other, _)) if *other != message => {
                Err(Error::internal(format!("rank {peer} has started the {other} in its place")))
            }
            _ => Ok(Ticket { peer, index }),
        }
    }

    /// Lets a rank's time pass until messages are over; returns `false` while it is not known when.
    fn wait(&mut self, rank: usize, tickets: &[Ticket]) -> bool {
        let over = tickets.iter().map(|ticket| self.over(rank, *ticket)).collect::<Option<Vec<_>>>();
        let known = over.is_some();
        self.now[rank] = over.unwrap_or_default().into_iter().fold(self.now[rank], f64::max);
        known
    }

    /// When a message is over, if both ends have started it.
    fn over(&self, rank: usize, Ticket { peer, index }: Ticket) -> Option<f64> {
        let at = |rank: usize, peer: usize| self.started[rank * self.shape.ranks + peer].get(index).copied();
        let ((message, here), (_, there)) = (at(rank, peer)?, at(peer, rank)?);
        Some(here.max(there) + self.costs.stages[message.boundary].transfer)
    }

    fn check_lengths(&self, rank: usize, peer: usize) -> Result<()> {
        let [here, there] =
            [(rank, peer), (peer, rank)].map(|(a, b)| self.started[a * self.shape.ranks + b].len());
        let all_met =
            format!("rank {rank} starts {here} messages with rank {peer}, which starts {there} with it");
        expect(here == there, &all_met)
    }
}

/// An error that says `otherwise` where something does not hold.
fn expect(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::internal(otherwise)) }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Sharing, lower};
    use super::*;
    use Instruction::{Compute, Receive, Send};

    /// What is found after `spoil` has had its way with the programs of 1F1B on three ranks.
    fn refused(spoil: impl FnOnce(&mut [Program])) -> String {
        let shape = Shape { ranks: 3, chunks_per_rank: 1, microbatches: 5 };
        let schedule = Kind::OneForwardOneBackward.generate(shape).unwrap();
        let mut programs = lower(&schedule, Sharing::Chunk).unwrap();
        let costs = Costs::unit(shape);
        rehearse(&schedule, &programs, &costs).unwrap();
        spoil(&mut programs);
        rehearse(&schedule, &programs, &costs).unwrap_err().to_string()
    }

    /// Where a program does, for the `nth` time, what `is` names.
    fn find(program: &Program, nth: usize, is: impl Fn(&Instruction) -> bool) -> usize {
        let found = program.instructions.iter().enumerate().filter(|(_, instruction)| is(instruction));
        found.map(|(index, _)| index).nth(nth).unwrap()
    }

    fn is_send(instruction: &Instruction) -> bool {
        matches!(instruction, Send { .. })
    }

    fn is_compute(instruction: &Instruction) -> bool {
        matches!(instruction, Compute { .. })
    }

    fn is_receive(instruction: &Instruction) -> bool {
        matches!(instruction, Receive { .. })
    }

    /// Moves the instruction at `from` to `to`.
    fn shift(program: &mut Program, from: usize, to: usize) {
        let instruction = program.instructions.remove(from);
        program.instructions.insert(to, instruction);
    }

    #[test]
    fn computing_something_else_is_found() {
        let cut = |programs: &mut [Program]| programs[1].instructions.retain(|one| !is_compute(one));
        assert!(refused(cut).contains("rank 1 computes something else"));
    }

    #[test]
    fn messages_in_different_orders_are_found() {
        let swap = |programs: &mut [Program]| {
            let [first, second] = [0, 1].map(|nth| find(&programs[0], nth, is_send));
            shift(&mut programs[0], first, second);
        };
        assert!(refused(swap).contains("has started the activations of microbatch"));
    }

    #[test]
    fn a_message_that_one_end_forgets_is_found() {
        let forget_last_send = |programs: &mut [Program]| {
            let last = programs[1].instructions.iter().rposition(is_send).unwrap();
            programs[1].instructions.remove(last);
        };
        assert!(refused(forget_last_send).contains("waits for ever"));
        let forget_receive = |programs: &mut [Program]| {
            let first = find(&programs[2], 0, is_receive);
            programs[2].instructions.remove(first);
        };
        assert!(refused(forget_receive).contains("rank 2"));
        let repeat = |programs: &mut [Program]| {
            let last = programs[0].instructions.iter().rposition(is_send).unwrap();
            let send = programs[0].instructions[last];
            programs[0].instructions.insert(last, send);
        };
        assert!(refused(repeat).contains("in its place"));
    }

    #[test]
    fn sending_before_it_is_made_is_found() {
        let early = |programs: &mut [Program]| {
            let send = find(&programs[0], 1, is_send);
            shift(&mut programs[0], send, send - 1);
        };
        assert!(refused(early).contains("the slot does not hold this microbatch"));
        let gradient = |programs: &mut [Program]| {
            let send = find(&programs[2], 0, is_send);
            shift(&mut programs[2], send, 2);
        };
        assert!(refused(gradient).contains("not made yet"));
    }

    #[test]
    fn memory_that_is_still_needed_is_found() {
        let crowd = |programs: &mut [Program]| {
            for instruction in &mut programs[1].instructions {
                let (Receive { slot, .. } | Send { slot, .. } | Compute { slot, .. }) = instruction else {
                    continue;
                };
                *slot = 0;
            }
        };
        assert!(refused(crowd).contains("the slot holds another microbatch"));
        assert!(refused(|programs| programs[0].slots[0] = 1).contains("no such slot"));
    }

    #[test]
    fn ranks_that_wait_in_a_circle_are_found() {
        // Rank 1 wants to compute its second chunk before its first, on which the second waits by way of ranks 2 and 0.
        let shape = Shape { ranks: 3, chunks_per_rank: 2, microbatches: 1 };
        let mut schedule = Kind::Interleaved.generate(shape).unwrap();
        let mut programs = lower(&schedule, Sharing::Chunk).unwrap();
        schedule.actions[1].swap(0, 1);
        let [receive, compute] = [find(&programs[1], 1, is_receive), find(&programs[1], 1, is_compute)];
        shift(&mut programs[1], compute, 1);
        shift(&mut programs[1], receive + 1, 1);
        let error = rehearse(&schedule, &programs, &Costs::unit(shape)).unwrap_err().to_string();
        assert!(error.contains("waits for ever"), "{error}");
    }
}
