//! A rank fails in the middle of a collective: in each, over each transport, in each way that ranks fail.
//!
//! The victim strikes itself, at a moment that is drawn: in some round, after some calls that make progress. What every
//! survivor must come to is one rule for the whole table ([`judge`]), and nothing may be left ([`crate::leaks`]).

use crate::leaks::{MARK, assert_nothing_left, descriptors, inboxes};
use crate::namespaces::Namespaces;
use crate::processes::{KINDS, Rank, start, transport_as_rank};
use crate::world::PATIENCE;
use gradus_collective::{Buffer, Collective, Communicator, Memory, Reduction};
use gradus_error::{Error, Kind};
use gradus_fabric::TransportKind;
use gradus_host::random;
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread::yield_now;
use std::time::Duration;

/// The rank that fails.
const VICTIM: usize = 1;

/// Elements that each rank brings for each other: more than a ring or a socket holds, so that a rank whose peer is gone
/// cannot be done.
const LEN: usize = 400_000;

/// Within what time a stall is found where nothing else tells: longer than any rank of a loaded machine stands still.
const STALL: Duration = Duration::from_secs(4);

/// Rounds and calls within which the moment is drawn.
const ROUNDS: u64 = 4;
const CALLS: u64 = 40;

/// Variables that tell a rank its part.
const WHAT: &str = "GRADUS_TEST_COLLECTIVE";
const FAULT: &str = "GRADUS_TEST_FAULT";
const MOMENT: &str = "GRADUS_TEST_MOMENT";

const COLLECTIVES: [&str; 10] = [
    "all-reduce",
    "reduce",
    "broadcast",
    "reduce-scatter",
    "all-gather",
    "gather",
    "scatter",
    "all-to-all",
    "barrier",
    "message",
];

/// How a rank fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Its process is killed.
    Killed,
    /// Its process stands still (SIGSTOP).
    Stopped,
    /// Its host's cable is taken out.
    Cut,
    /// All processes are killed at once.
    AllKilled,
}

impl Fault {
    const ALL: [(Self, &str); 4] = [
        (Self::Killed, "killed"),
        (Self::Stopped, "stopped"),
        (Self::Cut, "cut"),
        (Self::AllKilled, "all killed"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(fault, _)| *fault == self).unwrap().1
    }

    fn from_environment() -> Self {
        let name = std::env::var(FAULT).unwrap();
        Self::ALL.iter().find(|(_, word)| *word == name).unwrap().0
    }

    /// How long a rank waits for bytes: where nobody tells of the fault, the stall limit must.
    fn stall_limit(self) -> Duration {
        if matches!(self, Self::Stopped | Self::Cut) { STALL } else { PATIENCE }
    }
}

// What a rank does.

/// Plays this process' part, if it was started as a rank; whether it was.
fn played() -> bool {
    let before = descriptors();
    let Some(transport) = transport_as_rank() else { return false };
    let fault = Fault::from_environment();
    let mut communicator = Communicator::new(transport, fault.stall_limit());
    say("inboxes", inboxes(Path::new("/proc/self")).iter().map(u64::to_string).collect::<Vec<_>>().join(" "));
    let error = until_it_fails(&mut communicator, fault);
    say("ended", format!("{:?} {}", error.kind(), error.to_string().replace('\n', " ")));
    assert_eq!(communicator.barrier().unwrap_err().kind(), error.kind(), "an error is for ever");
    drop(communicator);
    assert_eq!(descriptors(), before);
    assert_eq!(inboxes(Path::new("/proc/self")), BTreeSet::new());
    true
}

/// A line for the test, apart from what its harness prints.
fn say(word: &str, rest: impl std::fmt::Display) {
    println!("\n{word} {rest}");
}

/// The same collective over and over.
fn until_it_fails(communicator: &mut Communicator, fault: Fault) -> Error {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let what = collective(&std::env::var(WHAT).unwrap(), rank, world_size);
    let moment = std::env::var(MOMENT).unwrap();
    let (fatal_round, calls) = moment.split_once(' ').unwrap();
    let (fatal_round, calls): (u64, u64) = (fatal_round.parse().unwrap(), calls.parse().unwrap());
    let only_own = what == Collective::gather(0) && rank != 0
        || what == Collective::scatter(VICTIM) && rank != VICTIM
        || what == Collective::barrier();
    let mut data = vec![1i32; if only_own { LEN } else { LEN * world_size }];
    for round in 0.. {
        let strike = (rank == VICTIM && round == fatal_round).then_some(calls);
        let result = once(communicator, &what, &mut data, strike.map(|calls| (calls, fault)));
        // Ranks that only send or only receive, and are not the victim's neighbours, hear of it here.
        if let Err(error) = result.and_then(|()| communicator.barrier()) {
            return error;
        }
    }
    unreachable!("rounds have no end")
}

fn collective(name: &str, rank: usize, world_size: usize) -> Collective {
    match name {
        "all-reduce" => Collective::all_reduce(Reduction::Max),
        "reduce" => Collective::reduce(0, Reduction::Sum),
        "broadcast" => Collective::broadcast(VICTIM),
        "reduce-scatter" => Collective::reduce_scatter(Reduction::Sum),
        "all-gather" => Collective::all_gather(),
        "gather" => Collective::gather(0),
        "scatter" => Collective::scatter(VICTIM),
        "all-to-all" => Collective::all_to_all(),
        "barrier" => Collective::barrier(),
        // Between pairs, the victim's own and another.
        _ if rank.is_multiple_of(2) => Collective::send((rank + 1) % world_size),
        _ => Collective::receive(rank - 1),
    }
}

/// One collective; with `strike`, the fault comes after so many calls.
fn once(
    communicator: &mut Communicator,
    what: &Collective,
    data: &mut [i32],
    strike: Option<(u64, Fault)>,
) -> Result<(), Error> {
    // SAFETY: the data are borrowed until this returns, and by then the collective is over or has failed.
    let handle = unsafe { communicator.start(what, Memory::InPlace(Buffer::of(data))) }?;
    if let Some((calls, fault)) = strike {
        (0..calls).try_for_each(|_| communicator.progress())?;
        say("the moment has come", "");
        match fault {
            Fault::Killed => kill_process(getpid(), Signal::KILL).unwrap(),
            Fault::Stopped => kill_process(getpid(), Signal::STOP).unwrap(),
            // The test does it.
            Fault::Cut | Fault::AllKilled => {}
        }
    }
    communicator.wait(handle)
}

// What the test does.

/// One world of the table.
struct World {
    what: &'static str,
    fault: Fault,
    /// All that is needed to see this again.
    title: String,
    mark: String,
    ranks: Vec<Rank>,
    inboxes: BTreeSet<u64>,
}

/// Draws the moments: the seed is new each time, and named where something fails.
struct Moments(u64, random::Stream);

impl Moments {
    fn draw() -> Self {
        let named = std::env::var("GRADUS_TEST_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = named.unwrap_or_else(random::seed_from_system);
        Self(seed, random::Stream::new(seed, 0))
    }
}

impl World {
    /// Starts a world by `ranks`, which is told the world's size and what its ranks must be told.
    fn start(
        what: &'static str,
        fault: Fault,
        over: &str,
        moments: &mut Moments,
        ranks: impl FnOnce(usize, &[(&str, &str)]) -> Vec<Rank>,
    ) -> Self {
        // Messages pass between pairs.
        let world_size = if what == "message" { 4 } else { 3 };
        let moment = format!("{} {}", moments.1.next_below(ROUNDS), moments.1.next_below(CALLS));
        let title =
            format!("{what} over {over}, {} at {moment} (GRADUS_TEST_SEED={})", fault.name(), moments.0);
        let mark = format!("{:016x}", random::seed_from_system());
        let told = [(WHAT, what), (FAULT, fault.name()), (MOMENT, &moment), (MARK, &mark)];
        let ranks = ranks(world_size, &told);
        Self { what, fault, title, mark, ranks, inboxes: BTreeSet::new() }
    }

    /// Waits until the victim is in the middle.
    fn reaches_the_moment(&mut self) {
        for rank in &mut self.ranks {
            let numbers = rank.says("inboxes").expect("a rank begins");
            self.inboxes.extend(numbers.split_whitespace().map(|number| number.parse::<u64>().unwrap()));
        }
        assert!(self.ranks[VICTIM].says("the moment has come").is_some(), "{}", self.title);
    }

    /// Waits for the end of all, and judges it.
    fn end(mut self) {
        let survives = |rank: usize| match self.fault {
            Fault::Killed | Fault::Stopped => rank != VICTIM,
            Fault::Cut => true,
            Fault::AllKilled => false,
        };
        let mut errors = Vec::new();
        for rank in (0..self.ranks.len()).filter(|rank| survives(*rank)) {
            let status = self.ranks[rank].end();
            let error = self.ranks[rank].says("ended").unwrap_or_default();
            assert!(status.success(), "{}: rank {rank}: {status}: {error}", self.title);
            errors.push(error);
        }
        judge(self.what, self.fault, &errors)
            .unwrap_or_else(|wrong| panic!("{}: {wrong}: {errors:#?}", self.title));
        self.bury_the_victim();
        let Self { mark, inboxes, .. } = self;
        assert_nothing_left(&mark, &inboxes);
    }

    fn bury_the_victim(&mut self) {
        let victim = &mut self.ranks[VICTIM];
        match self.fault {
            Fault::Stopped => {
                assert_eq!(state(&victim.child), 'T', "{}", self.title);
                victim.child.kill().unwrap();
                assert_eq!(victim.end().signal(), Some(Signal::KILL.as_raw()));
            }
            Fault::Killed => assert_eq!(victim.end().signal(), Some(Signal::KILL.as_raw()), "{}", self.title),
            Fault::Cut => {}
            Fault::AllKilled => {
                // Whoever saw another die before its own turn would end by itself.
                stand_still(&self.ranks);
                self.ranks.iter_mut().for_each(|rank| rank.child.kill().unwrap());
                let killed = Some(Signal::KILL.as_raw());
                self.ranks.iter_mut().for_each(|rank| assert_eq!(rank.end().signal(), killed));
            }
        }
    }
}

/// Stops ranks, and waits until none of them does anything more.
fn stand_still(ranks: &[Rank]) {
    ranks.iter().for_each(|rank| kill_process(Pid::from_child(&rank.child), Signal::STOP).unwrap());
    for rank in ranks {
        while !stands_still(&rank.child) {
            assert_ne!(state(&rank.child), 'Z', "it ended before");
            yield_now();
        }
    }
}

/// Whether all threads of a process have been stopped. One that has ended meanwhile ended running.
fn stands_still(child: &std::process::Child) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", Pid::from_child(child))).unwrap();
    threads.map(|thread| thread.unwrap().path()).all(|thread| {
        let line = std::fs::read_to_string(thread.join("stat"));
        line.is_ok_and(|line| line.rsplit_once(')').unwrap().1.starts_with(" T"))
    })
}

/// The letter by which the kernel tells what a process does.
fn state(child: &std::process::Child) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", Pid::from_child(child))).unwrap();
    stat.rsplit(')').next().unwrap().trim().chars().next().unwrap()
}

/// Whether all who survived ended as they must: with a kind that says what to do, the collective with its number, and a
/// rank; and among them somebody names the victim.
fn judge(what: &str, fault: Fault, errors: &[String]) -> Result<(), &'static str> {
    let lost = format!("{:?} ", Kind::PeerLost { rank: VICTIM });
    let right_kind = |error: &&String| match fault {
        Fault::Killed => error.starts_with(&lost),
        Fault::Stopped => error.starts_with("Unavailable ") || error.starts_with(&lost),
        // Each side loses the other.
        _ => error.starts_with("Unavailable ") || error.starts_with("PeerLost "),
    };
    let names_place = |error: &&String| {
        let number =
            error.split("number ").nth(1).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        number && (error.contains(what) || error.contains("barrier")) && error.contains("rank ")
    };
    if !errors.iter().all(|error| right_kind(&error)) {
        return Err("another kind");
    }
    if !errors.iter().all(|error| names_place(&error)) {
        return Err("no rank, or no collective with its number");
    }
    let names_victim = |error: &String| {
        let names = ["rank ", ", "].map(|before| format!("{before}{VICTIM}"));
        names.iter().any(|name| error.contains(name))
    };
    if !errors.is_empty() && !errors.iter().any(names_victim) {
        return Err("nobody names the victim");
    }
    Ok(())
}

/// Runs the whole row of a fault over a transport: the worlds run side by side where each waits for its stall limit.
fn row(test: &str, fault: Fault, kind: TransportKind) {
    let mut moments = Moments::draw();
    let over = format!("{kind:?}");
    let begin = |what: &&'static str| {
        let mut world = World::start(what, fault, &over, &mut moments, |world_size, told| {
            start(test, world_size, kind, told)
        });
        world.reaches_the_moment();
        world
    };
    let worlds = COLLECTIVES.iter().map(begin);
    match fault {
        Fault::Stopped => worlds.collect::<Vec<_>>().into_iter().for_each(World::end),
        _ => worlds.for_each(World::end),
    }
}

#[test]
fn a_rank_killed_in_any_collective_is_named_by_every_survivor() {
    if !played() {
        let test = "faults::a_rank_killed_in_any_collective_is_named_by_every_survivor";
        KINDS.into_iter().for_each(|kind| row(test, Fault::Killed, kind));
    }
}

#[test]
fn a_rank_stopped_in_any_collective_over_shared_memory_ends_the_wait_of_all() {
    if !played() {
        let test = "faults::a_rank_stopped_in_any_collective_over_shared_memory_ends_the_wait_of_all";
        row(test, Fault::Stopped, TransportKind::SharedMemory);
    }
}

#[test]
fn a_rank_stopped_in_any_collective_over_tcp_ends_the_wait_of_all() {
    if !played() {
        row(
            "faults::a_rank_stopped_in_any_collective_over_tcp_ends_the_wait_of_all",
            Fault::Stopped,
            TransportKind::Tcp,
        );
    }
}

#[test]
fn ranks_that_are_all_killed_in_any_collective_leave_nothing() {
    if !played() {
        let test = "faults::ranks_that_are_all_killed_in_any_collective_leave_nothing";
        KINDS.into_iter().for_each(|kind| row(test, Fault::AllKilled, kind));
    }
}

/// Runs some collectives on hosts, each in a world of its own, cuts the victim's host off in the middle of all, and judges
/// how they end. Plays this process' part where it was started as a rank; does nothing where there can be no hosts.
pub fn cut_off<H>(
    test: &str,
    collectives: &[&'static str],
    make: impl FnOnce() -> Option<H>,
    hosts: impl Fn(&H) -> &Namespaces,
    cut: impl FnOnce(&H, usize),
) {
    if played() {
        return;
    }
    let Some(made) = make() else { return };
    let mut moments = Moments::draw();
    let begin = |(index, what): (usize, &&'static str)| {
        let ranks = |world_size: usize, told: &[(&str, &str)]| {
            let rank = |rank: usize| {
                let mut command = hosts(&made).command(rank, rank, world_size, 29500 + index as u16);
                command.envs(told.iter().copied());
                Rank::start(command, test, TransportKind::Tcp)
            };
            (0..world_size).map(rank).collect()
        };
        World::start(what, Fault::Cut, "TCP between hosts", &mut moments, ranks)
    };
    let mut worlds: Vec<World> = collectives.iter().enumerate().map(begin).collect();
    worlds.iter_mut().for_each(World::reaches_the_moment);
    cut(&made, VICTIM);
    worlds.into_iter().for_each(World::end);
}

/// Memory is shared within a host only, so there is no cable to take out.
#[test]
fn a_host_cut_off_in_any_collective_over_tcp_ends_the_wait_of_all() {
    let test = "faults::a_host_cut_off_in_any_collective_over_tcp_ends_the_wait_of_all";
    cut_off(test, &COLLECTIVES, || Namespaces::joined(4), |hosts| hosts, Namespaces::cut);
}

#[test]
fn the_judge_finds_what_is_wrong() {
    let good = "PeerLost { rank: 1 } in gather number 3 of 7 i32 to rank 0: rank 1 has died".to_owned();
    assert_eq!(judge("gather", Fault::Killed, std::slice::from_ref(&good)), Ok(()));
    let wrong = [
        (good.replace("rank: 1", "rank: 2"), "another kind"),
        (good.replace("number 3", "some"), "no rank, or no collective with its number"),
        (good.replace("gather", "reduce"), "no rank, or no collective with its number"),
        (good.replace("rank 1 has", "rank 2 has"), "nobody names the victim"),
    ];
    for (error, reason) in wrong {
        assert_eq!(judge("gather", Fault::Killed, &[error]), Err(reason));
    }
}
