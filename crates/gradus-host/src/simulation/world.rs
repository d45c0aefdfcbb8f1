//! Time passes from event to event; faults strike; machines take their steps.

use super::clock::LocalClock;
use super::disk::{SimulatedDisk, Step};
use super::faults::{Fault, Faults, part_of};
use super::network::Network;
use super::process::Process;
use super::queue::Queue;
use super::trace::{Recording, Trace};
use super::{Purpose, SimulatedClock};
use crate::machine::{Action, ActionOf, Event, EventOf, Machine, Peer};
use crate::random::Stream;
use gradus_error::{Error, Result};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::time::Duration;

/// Which machines make up the world, and who looks on.
pub trait Scenario {
    /// What runs on every node. What one says, others hear.
    type Machine: Machine<Incoming = Self::Message, Outgoing = Self::Message, Command: Debug, Note: Debug>;
    /// What nodes say to each other.
    type Message: Clone + Debug;

    /// Nodes of the world; each is the [`Peer`] of its number.
    fn nodes(&self) -> usize;

    /// The process that runs in a life (from 1) of a node, given what its disk holds.
    ///
    /// # Errors
    /// Why it cannot start: it is told to [`Scenario::observe`], and the node stays down.
    fn start(&mut self, node: usize, life: u64, stored: Option<&[u8]>) -> Result<Self::Machine>;

    /// What the program around a node's machine asks for now, if anything.
    fn command(
        &mut self,
        at: Duration,
        machine: &Self::Machine,
        chance: &mut Stream,
    ) -> Option<<Self::Machine as Machine>::Command>;

    /// Something happened, at a true time.
    fn observe(&mut self, at: Duration, node: usize, happening: Happening<'_, Self>);
}

/// What an onlooker sees.
pub enum Happening<'a, S: Scenario + ?Sized> {
    /// A process begins.
    Started,
    /// A process could not begin.
    Failed(&'a Error),
    /// The process has ended without a word.
    Crashed,
    /// The process stands still and will not be this node's any more: another takes over.
    TakenOver,
    /// The process stands still.
    Paused,
    /// The process goes on.
    Resumed,
    /// The node's current machine tells something.
    Noted(&'a <S::Machine as Machine>::Note),
    /// A machine whose node another has taken over tells something.
    GhostNoted(&'a <S::Machine as Machine>::Note),
}

/// What is left of a run.
pub struct Outcome<S> {
    /// The onlooker.
    pub scenario: S,
    /// What happened.
    pub trace: Trace,
}

enum Due<M> {
    Arrival { from: usize, to: usize, message: M },
    Closed { node: usize, peer: usize },
    Wake { process: usize },
    Command { process: usize },
    Stored { process: usize, step: usize, bytes: Vec<u8> },
    Strike(Fault),
    Start { node: usize },
    Resume { process: usize },
    End { process: usize },
}

struct Node {
    current: Option<usize>,
    lives: u64,
    disk: SimulatedDisk,
}

/// How often, on average, the program around a machine may ask for something.
const COMMAND_PERIOD: Duration = Duration::from_millis(100);

/// The longest that one step of a disk takes.
const DISK_STEP: Duration = Duration::from_millis(5);

/// How long a ghost walks.
const GHOST_HOUR: Duration = Duration::from_secs(2);

/// The resolution of timers: a machine that asks for the past is woken this much later.
const TICK: Duration = Duration::from_micros(50);

/// Nodes, network, disks and time.
pub struct World<S: Scenario> {
    scenario: S,
    trace: Trace,
    clock: SimulatedClock,
    now: Duration,
    heal: Duration,
    queue: Queue<Due<S::Message>>,
    nodes: Vec<Node>,
    /// Every life there was; `None` once it has ended.
    processes: Vec<Option<Process<S::Machine>>>,
    network: Network,
    disk_chance: Stream,
    application_chance: Stream,
    clock_chance: Stream,
}

impl<S: Scenario> World<S> {
    /// A world in which all nodes start at once and `faults` will strike.
    pub fn new(scenario: S, faults: Faults, seed: u64, recording: Recording) -> Self {
        let node = |_| Node { current: None, lives: 0, disk: SimulatedDisk::default() };
        let mut world = Self {
            nodes: (0..scenario.nodes()).map(node).collect(),
            scenario,
            trace: Trace::new(recording),
            clock: SimulatedClock::new(),
            now: Duration::ZERO,
            heal: faults.heal,
            queue: Queue::new(),
            processes: Vec::new(),
            network: Network::new(faults.weather, faults.heal, seed),
            disk_chance: Purpose::Disk.stream(seed),
            application_chance: Purpose::Application.stream(seed),
            clock_chance: Purpose::Clocks.stream(seed),
        };
        (0..world.nodes.len()).for_each(|node| world.queue.plan(Duration::ZERO, Due::Start { node }));
        faults.strikes.into_iter().for_each(|strike| world.queue.plan(strike.at, Due::Strike(strike.fault)));
        world
    }

    /// A clock that shows this world's time.
    pub fn clock(&self) -> SimulatedClock {
        self.clock.clone()
    }

    /// Lets time pass until `until`.
    pub fn run(mut self, until: Duration) -> Outcome<S> {
        while let Some((at, due)) = self.queue.next(until) {
            self.now = at;
            self.clock.advance_to(at);
            self.happen(due);
        }
        Outcome { scenario: self.scenario, trace: self.trace }
    }

    fn happen(&mut self, due: Due<S::Message>) {
        match due {
            Due::Arrival { from, to, message } => self.arrive(from, to, message),
            Due::Closed { node, peer } => self.tell_node(node, Event::Closed { peer: peer as Peer }),
            Due::Wake { process } => self.wake(process),
            Due::Command { process } => self.command(process),
            Due::Stored { process, step, bytes } => self.stored(process, step, bytes),
            Due::Strike(fault) => self.strike(fault),
            Due::Start { node } => self.start(node),
            Due::Resume { process } => self.resume(process),
            Due::End { process } => self.processes[process] = None,
        }
    }

    fn observe(&mut self, node: usize, happening: Happening<'_, S>) {
        self.scenario.observe(self.now, node, happening);
    }

    fn record(&mut self, node: usize, what: std::fmt::Arguments<'_>) {
        self.trace.record(self.now, node, self.nodes[node].lives, what);
    }

    // Lives.

    fn start(&mut self, node: usize) {
        if self.nodes[node].current.is_some() {
            return;
        }
        self.nodes[node].lives += 1;
        let life = self.nodes[node].lives;
        match self.scenario.start(node, life, self.nodes[node].disk.read()) {
            Err(error) => {
                self.record(node, format_args!("cannot start: {error}"));
                self.observe(node, Happening::Failed(&error));
            }
            Ok(machine) => self.begin(node, machine),
        }
    }

    fn begin(&mut self, node: usize, machine: S::Machine) {
        let clock = LocalClock::draw(&mut self.clock_chance);
        let id = self.processes.len();
        self.processes.push(Some(Process::new(node, machine, clock)));
        self.nodes[node].current = Some(id);
        self.record(node, format_args!("starts"));
        self.observe(node, Happening::Started);
        self.deliver(id, Event::Wake);
        self.plan_command(id);
    }

    fn strike(&mut self, fault: Fault) {
        let until = |length: Duration| self.now + length;
        match fault {
            Fault::Crash { node, power_loss, down } => self.crash(node, power_loss, down),
            Fault::Pause { node, length } => self.pause(node, length),
            Fault::TakeOver { node, length } => self.take_over(node, length),
            Fault::Cut { side, one_way, length } => self.network.cut(side, one_way, until(length)),
            Fault::Slow { node, delay, length } => self.network.slow_down(node, delay, until(length)),
            Fault::Reset { node, peer } => self.tell_node(node, Event::Closed { peer: peer as Peer }),
        }
    }

    fn crash(&mut self, node: usize, power_loss: bool, down: Option<Duration>) {
        let Some(id) = self.nodes[node].current.take() else { return };
        self.processes[id] = None;
        self.record(node, format_args!("crashes (power lost: {power_loss}, down for {down:?})"));
        if power_loss {
            self.nodes[node].disk.lose_power(&mut self.disk_chance);
        } else {
            self.close_connections(node);
        }
        self.observe(node, Happening::Crashed);
        if let Some(down) = down {
            self.queue.plan(self.now + down, Due::Start { node });
        }
    }

    /// A kernel that lives on tells the others that a process's connections have ended.
    fn close_connections(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if let Some(at) = self.network.arrivals(self.now, node, other).first() {
                self.queue.plan(*at, Due::Closed { node: other, peer: node });
            }
        }
    }

    fn pause(&mut self, node: usize, length: Duration) {
        let Some(id) = self.nodes[node].current else { return };
        let Some(process) = self.processes[id].as_mut().filter(|process| !process.paused) else { return };
        process.paused = true;
        self.record(node, format_args!("stands still for {length:?}"));
        self.observe(node, Happening::Paused);
        self.queue.plan(self.now + length, Due::Resume { process: id });
    }

    fn take_over(&mut self, node: usize, length: Duration) {
        self.pause(node, length);
        let Some(id) = self.nodes[node].current.take() else { return };
        if let Some(process) = &mut self.processes[id] {
            process.ghost = true;
        }
        self.queue.plan(self.now + length + GHOST_HOUR, Due::End { process: id });
        self.observe(node, Happening::TakenOver);
        self.start(node);
    }

    fn resume(&mut self, id: usize) {
        let Some(process) = &mut self.processes[id] else { return };
        process.paused = false;
        let (node, ghost) = (process.node, process.ghost);
        self.record(node, format_args!("{}", if ghost { "its ghost wakes" } else { "goes on" }));
        if !ghost {
            self.observe(node, Happening::Resumed);
        }
        self.deliver(id, Event::Wake);
    }

    // Events.

    fn arrive(&mut self, from: usize, to: usize, message: S::Message) {
        self.record(to, format_args!("hears from {from}: {message:?}"));
        self.tell_node(to, Event::Message { from: from as Peer, message });
    }

    fn tell_node(&mut self, node: usize, event: EventOf<S::Machine>) {
        if let Some(id) = self.nodes[node].current {
            self.deliver(id, event);
        }
    }

    fn wake(&mut self, id: usize) {
        let now = self.now;
        let Some(process) = self.processes[id].as_mut().filter(|p| p.wake_at == Some(now)) else { return };
        process.wake_at = None;
        if !process.paused {
            self.deliver(id, Event::Wake);
        }
    }

    fn plan_command(&mut self, id: usize) {
        let pause = COMMAND_PERIOD / 2 + part_of(&mut self.application_chance, COMMAND_PERIOD);
        self.queue.plan(self.now + pause, Due::Command { process: id });
    }

    fn command(&mut self, id: usize) {
        let Some(process) = &self.processes[id] else { return };
        let (node, chance) = (process.node, &mut self.application_chance);
        if let Some(command) = self.scenario.command(self.now, &process.machine, chance) {
            self.record(node, format_args!("is asked: {command:?}"));
            self.deliver(id, Event::Command(command));
        }
        self.plan_command(id);
    }

    fn deliver(&mut self, id: usize, event: EventOf<S::Machine>) {
        if let Some(process) = &mut self.processes[id] {
            process.backlog.push_back(event);
            self.work(id);
        }
    }

    fn work(&mut self, id: usize) {
        while let Some(actions) = self.processes[id].as_mut().and_then(|p| p.next_actions(self.now)) {
            self.carry_out(id, actions);
        }
        self.plan_wake(id);
    }

    fn plan_wake(&mut self, id: usize) {
        let soonest = self.now + TICK;
        let Some(process) = self.processes[id].as_mut().filter(|p| !p.paused && !p.storing) else { return };
        let Some(at) = process.deadline(soonest) else { return };
        if process.wake_at.is_none_or(|planned| at < planned || planned <= self.now) {
            process.wake_at = Some(at);
            self.queue.plan(at, Due::Wake { process: id });
        }
    }

    // Actions.

    fn carry_out(&mut self, id: usize, mut actions: VecDeque<ActionOf<S::Machine>>) {
        let Some(process) = &self.processes[id] else { return };
        let (node, ghost) = (process.node, process.ghost);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send { to, message } => self.send(node, to as usize, &message),
                Action::Note(note) => self.note(node, ghost, &note),
                Action::Persist(bytes) => return self.store(id, bytes, actions),
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &S::Message) {
        if to >= self.nodes.len() {
            return;
        }
        for at in self.network.arrivals(self.now, from, to) {
            self.queue.plan(at, Due::Arrival { from, to, message: message.clone() });
        }
    }

    fn note(&mut self, node: usize, ghost: bool, note: &<S::Machine as Machine>::Note) {
        self.record(node, format_args!("{}notes: {note:?}", if ghost { "(ghost) " } else { "" }));
        let happening = if ghost { Happening::GhostNoted(note) } else { Happening::Noted(note) };
        self.observe(node, happening);
    }

    fn store(&mut self, id: usize, bytes: Vec<u8>, rest: VecDeque<ActionOf<S::Machine>>) {
        let Some(process) = &mut self.processes[id] else { return };
        process.storing = true;
        process.unfinished = rest;
        self.plan_disk(id, 0, bytes);
    }

    fn plan_disk(&mut self, id: usize, step: usize, bytes: Vec<u8>) {
        let limit = if self.now < self.heal { DISK_STEP } else { DISK_STEP / 5 };
        let at = self.now + part_of(&mut self.disk_chance, limit);
        self.queue.plan(at, Due::Stored { process: id, step, bytes });
    }

    /// A step of a disk is done, unless its process has ended meanwhile or the disk is another's now.
    fn stored(&mut self, id: usize, step: usize, bytes: Vec<u8>) {
        let Some(process) = self.processes[id].as_mut().filter(|process| !process.ghost) else { return };
        self.nodes[process.node].disk.take(Step::ALL[step], &bytes);
        if step + 1 < Step::ALL.len() {
            return self.plan_disk(id, step + 1, bytes);
        }
        process.storing = false;
        self.work(id);
    }
}
