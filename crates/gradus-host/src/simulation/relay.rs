//! Programs that block, in virtual time.
//!
//! A [`Machine`](crate::machine::Machine) is stepped; a program that calls and waits cannot be left half-way without its
//! stack. So each program here (a *runner*) has a thread, and a baton goes round: who holds it runs, until it waits or
//! lets time pass; then what is due next happens, in the order of virtual time, and the baton goes to the runner whose
//! moment has come. Threads are used for their stacks only: never do two run at once, so what the system's scheduler
//! does changes nothing, and code that blocks runs as it is, its naps and limits included.
//!
//! Invariants: every runner that has not ended, but for the one that runs, has a moment planned at which it goes on; what
//! runners share ([`Course`]) is touched only by who holds the baton, and by what comes due.

use super::queue::Queue;
use super::trace::{Recording, Trace};
use crate::clock::Clock;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What runners share: it changes as they act on it, and as what was planned comes due.
pub trait Course: Send + 'static {
    /// What can be planned.
    type Event: Send;

    /// Something that was planned comes due.
    fn happen(&mut self, event: Self::Event, plans: &mut Plans<Self::Event>);
}

enum Due<E> {
    Event(E),
    /// A runner goes on, if it was not woken before: `number` counts its plans.
    Resume {
        runner: usize,
        number: u64,
    },
}

/// A runner that waits.
#[derive(Default)]
struct Rest {
    number: u64,
    can_be_woken: bool,
    /// It stands still until then, whatever wakes it.
    held_until: Duration,
}

/// The time, and all that is to come.
pub struct Plans<E> {
    now: Duration,
    queue: Queue<Due<E>>,
    rests: Vec<Rest>,
    trace: Trace,
}

impl<E> Plans<E> {
    /// The time now.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Has something happen at a time, or now if that has passed.
    pub fn plan(&mut self, at: Duration, event: E) {
        self.queue.plan(at.max(self.now), Due::Event(event));
    }

    /// Lets a runner that waits to be woken go on now; others are not disturbed.
    pub fn wake(&mut self, runner: usize) {
        if self.rests[runner].can_be_woken {
            self.resume(runner, self.now);
        }
    }

    /// Has a runner stand still until a time.
    pub fn hold(&mut self, runner: usize, until: Duration) {
        let rest = &mut self.rests[runner];
        rest.held_until = rest.held_until.max(until);
    }

    /// Records what happens to a runner.
    pub fn record(&mut self, runner: usize, what: fmt::Arguments<'_>) {
        self.trace.record(self.now, runner, 1, what);
    }

    fn resume(&mut self, runner: usize, at: Duration) {
        let rest = &mut self.rests[runner];
        rest.number += 1;
        rest.can_be_woken = false;
        self.queue.plan(at.max(self.now), Due::Resume { runner, number: rest.number });
    }

    /// Whether a plan to resume stands; one for a runner that is held is put off.
    fn may_go_on(&mut self, runner: usize, number: u64) -> bool {
        let Rest { number: current, held_until, .. } = self.rests[runner];
        if number != current {
            return false;
        }
        if held_until > self.now {
            self.resume(runner, held_until);
            return false;
        }
        true
    }
}

struct State<C: Course> {
    course: C,
    plans: Plans<C::Event>,
    /// Who holds the baton; nobody before the first has started and after the last has ended.
    turn: Option<usize>,
    /// Runners that have not ended.
    running: usize,
}

impl<C: Course> State<C> {
    /// Lets time pass until a runner's moment has come. When there is none left, the time is over: what was planned for later
    /// does not happen.
    fn pass_on(&mut self) {
        self.turn = None;
        while self.running > 0
            && let Some((at, due)) = self.plans.queue.next(Duration::MAX)
        {
            self.plans.now = at;
            match due {
                Due::Event(event) => self.course.happen(event, &mut self.plans),
                Due::Resume { runner, number } if self.plans.may_go_on(runner, number) => {
                    self.turn = Some(runner);
                    return;
                }
                Due::Resume { .. } => {}
            }
        }
    }
}

struct Relay<C: Course> {
    state: Mutex<State<C>>,
    turns: Vec<Condvar>,
}

impl<C: Course> Relay<C> {
    fn lock(&self) -> MutexGuard<'_, State<C>> {
        // Whoever panicked did so in a course's own code; the others are to end and the panic to be seen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes the baton on, and wakes who has it now.
    fn pass_on(&self, state: &mut State<C>) {
        state.pass_on();
        if let Some(turn) = state.turn {
            self.turns[turn].notify_one();
        }
    }

    /// Blocks until a runner holds the baton.
    fn await_turn<'a>(&'a self, runner: usize, state: MutexGuard<'a, State<C>>) {
        let theirs = |state: &mut State<C>| state.turn != Some(runner);
        drop(self.turns[runner].wait_while(state, theirs).unwrap_or_else(PoisonError::into_inner));
    }
}

/// A program's hold on the world it runs in. Its copies speak for the same program.
pub struct Runner<C: Course> {
    number: usize,
    relay: Arc<Relay<C>>,
}

impl<C: Course> Clone for Runner<C> {
    fn clone(&self) -> Self {
        Self { number: self.number, relay: Arc::clone(&self.relay) }
    }
}

impl<C: Course> Runner<C> {
    /// Which it is.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Acts on what is shared; no time passes.
    pub fn act<R>(&self, act: impl FnOnce(&mut C, &mut Plans<C::Event>) -> R) -> R {
        let State { course, plans, .. } = &mut *self.relay.lock();
        act(course, plans)
    }

    /// Lets time pass. Blocks, in virtual time.
    pub fn spend(&self, span: Duration) {
        self.rest(|now| now.saturating_add(span), false);
    }

    /// Waits to be [woken](Plans::wake), until a time at most. Blocks, in virtual time.
    pub fn wait(&self, until: Duration) {
        self.rest(|_| until, true);
    }

    fn rest(&self, until: impl FnOnce(Duration) -> Duration, can_be_woken: bool) {
        let mut state = self.relay.lock();
        let until = until(state.plans.now);
        state.plans.resume(self.number, until);
        state.plans.rests[self.number].can_be_woken = can_be_woken;
        self.relay.pass_on(&mut state);
        self.relay.await_turn(self.number, state);
    }
}

/// The time that all runners share.
impl<C: Course> Clock for Runner<C> {
    fn now(&self) -> Duration {
        self.relay.lock().plans.now
    }

    fn calendar(&self) -> Duration {
        self.now()
    }

    fn sleep(&self, duration: Duration) {
        self.spend(duration);
    }
}

/// Passes the baton on when a runner ends, in whatever way.
struct Leg<'a, C: Course>(&'a Relay<C>);

impl<C: Course> Drop for Leg<'_, C> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        self.0.pass_on(&mut state);
    }
}

/// What came of a relay.
pub struct Finish<T> {
    /// What each runner returned.
    pub results: Vec<T>,
    /// What happened.
    pub trace: Trace,
    /// When the last runner ended.
    pub at: Duration,
}

/// Runs as many programs as there are bodies to a course, each in a thread, until all have ended. `begin` sees the course
/// before the first starts, to plan what is to happen. Blocks, in real time, for as long as they compute.
///
/// A body that blocks on another in any other way than through its runner (a channel, a lock that another holds while it
/// waits) never ends.
///
/// # Panics
/// If a body does, once all others have ended.
pub fn relay<C: Course, T: Send>(
    mut course: C,
    runners: usize,
    recording: Recording,
    begin: impl FnOnce(&mut C, &mut Plans<C::Event>),
    body: impl Fn(Runner<C>) -> T + Sync,
) -> Finish<T> {
    let rests = (0..runners).map(|_| Rest::default()).collect();
    let mut plans = Plans { now: Duration::ZERO, queue: Queue::new(), rests, trace: Trace::new(recording) };
    begin(&mut course, &mut plans);
    (0..runners).for_each(|runner| plans.resume(runner, Duration::ZERO));
    let state = Mutex::new(State { course, plans, turn: None, running: runners });
    let relay = Arc::new(Relay { state, turns: (0..runners).map(|_| Condvar::new()).collect() });
    relay.pass_on(&mut relay.lock());
    // One at a time needs one processor: to wake a thread on another one takes twenty times as long.
    let processor = sched_getcpu();
    let results = std::thread::scope(|scope| {
        let start = |number: usize| {
            let (runner, body) = (Runner { number, relay: Arc::clone(&relay) }, &body);
            scope.spawn(move || {
                stay_on(processor);
                let relay = Arc::clone(&runner.relay);
                relay.await_turn(number, relay.lock());
                let _leg = Leg(&relay);
                body(runner)
            })
        };
        let threads: Vec<_> = (0..runners).map(start).collect();
        let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        joined.into_iter().map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut state = relay.lock();
    let trace = std::mem::replace(&mut state.plans.trace, Trace::new(Recording::Nothing));
    Finish { results, trace, at: state.plans.now }
}

/// Keeps this thread on a processor; where that is refused it costs time only.
fn stay_on(processor: usize) {
    let mut mask = CpuSet::new();
    if processor < CpuSet::MAX_CPU {
        mask.set(processor);
        let _ = sched_setaffinity(None, &mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters that runners and events leave.
    #[derive(Default)]
    struct Wall(String);

    impl Course for Wall {
        type Event = (char, Option<usize>);

        fn happen(&mut self, (letter, wakes): Self::Event, plans: &mut Plans<Self::Event>) {
            self.0.push(letter);
            if let Some(runner) = wakes {
                plans.record(runner, format_args!("is woken by {letter}"));
                plans.wake(runner);
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn write(runner: &Runner<Wall>, letter: char) -> String {
        runner.act(|wall, _| {
            wall.0.push(letter);
            wall.0.clone()
        })
    }

    #[test]
    fn runners_and_events_take_turns_in_the_order_of_time() {
        let plan = |_: &mut Wall, plans: &mut Plans<_>| plans.plan(SECOND * 3, ('x', None));
        let finish = relay(Wall::default(), 2, Recording::Nothing, plan, |runner| {
            let name = ['a', 'b'][runner.number()];
            for _ in 0..2 {
                runner.spend(SECOND * (runner.number() as u32 * 3 + 2));
                write(&runner, name);
            }
            (runner.now(), write(&runner, '.'))
        });
        // a at 2 and 4, x at 3, b at 5 and 10.
        assert_eq!(finish.results[0], (SECOND * 4, "axa.".to_owned()));
        assert_eq!(finish.results[1], (SECOND * 10, "axa.bb.".to_owned()));
        assert_eq!(finish.at, SECOND * 10);
    }

    #[test]
    fn with_the_last_runner_the_time_ends() {
        let plan = |_: &mut Wall, plans: &mut Plans<_>| {
            plans.plan(SECOND * 2, ('x', Some(0)));
            plans.plan(SECOND * 9, ('y', Some(0)));
        };
        let finish = relay(Wall::default(), 2, Recording::Lines, plan, |runner| {
            runner.wait(SECOND * 20);
            runner.spend(SECOND);
        });
        assert_eq!(finish.at, SECOND * 21);
        // Woken at 2: neither the moment that was planned for it nor what would happen at 9 comes.
        let lone = relay(Wall::default(), 1, Recording::Lines, plan, |runner| runner.wait(SECOND * 20));
        assert_eq!((lone.at, lone.trace.lines().len()), (SECOND * 2, 1));
    }

    #[test]
    fn who_waits_is_woken_or_goes_on_by_itself_and_who_is_held_does_neither() {
        let plan = |_: &mut Wall, plans: &mut Plans<_>| {
            plans.plan(SECOND, ('1', Some(0)));
            plans.plan(SECOND, ('2', Some(2)));
            plans.hold(2, SECOND * 7);
            plans.plan(SECOND * 2, ('3', Some(0)));
        };
        let finish = relay(Wall::default(), 3, Recording::Lines, plan, |runner| {
            runner.wait(SECOND * 5);
            let woken = runner.now();
            // Nobody is disturbed who does not wait.
            runner.spend(SECOND * 5);
            [woken, runner.now()]
        });
        assert_eq!(finish.results, [[1, 6], [5, 10], [7, 12]].map(|times| times.map(|time| SECOND * time)));
        assert_eq!(finish.trace.lines().len(), 3);
    }

    #[test]
    fn a_runner_that_panics_holds_nobody_up() {
        let others = std::sync::atomic::AtomicUsize::new(0);
        let run = || {
            relay(
                Wall::default(),
                3,
                Recording::Nothing,
                |_, _| {},
                |runner| {
                    runner.spend(SECOND);
                    assert!(runner.number() != 1, "on purpose");
                    runner.spend(SECOND);
                    others.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                },
            )
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        assert_eq!(others.into_inner(), 2);
    }
}
