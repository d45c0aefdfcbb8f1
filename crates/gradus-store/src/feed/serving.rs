//! What other nodes ask of this one.
//!
//! A thread takes what is asked from the one that moves bytes, which must not wait. A block that the walk has accessed for
//! the asker is waiting; one that it has not come to yet it walks on to; one that it has passed is in the cache, or fetched
//! again. What cannot be walked to yet, for want of pages, is asked anew when there are some.
//!
//! A block whose home is in another rack may be asked of its rack's home: that asks the home, and shares what comes with
//! whoever else of the rack asks soon.
//!
//! Invariants: only blocks of this dataset that have their home here, or their rack's, are fetched for others; nothing that is asked makes
//! the walk go further than its own readers would let it, within a bound, or takes more than a bounded place.

use super::Core;
use super::stalls::Cause;
use super::unit::What;
use crate::blocks::Block;
use crate::cache::Held;
use crate::peers::{Answer, Asked, Serve};
use gradus_error::{IoContext, Result};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Asks that wait for the thread, and asks that wait for the walk: more are told that there is too much to do.
const MOST_WAITING: usize = 1024;

/// Positions that are walked over while readers wait at most.
const STRIDE: u64 = 256;

/// What the thread is told.
pub(super) enum Job {
    Ask(Asked, Answer),
    /// The walk has gone on: what waits for it may be there.
    Again,
    End,
}

/// Where asks come in.
pub(super) struct Door(SyncSender<Job>);

impl Serve for Door {
    fn serve(&self, asked: Asked, answer: Answer) {
        // Whoever has ended has nothing.
        if let Err(TrySendError::Full(Job::Ask(_, answer))) = self.0.try_send(Job::Ask(asked, answer)) {
            answer.busy();
        }
    }
}

/// The thread that answers; it ends when this is dropped.
pub(super) struct Server {
    jobs: SyncSender<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Begins to answer.
    ///
    /// # Errors
    /// The system's failure to make a thread.
    pub fn start(core: Arc<Core>) -> Result<(Self, Arc<Door>)> {
        let (jobs, taken) = sync_channel(MOST_WAITING);
        let again = jobs.clone();
        let thread = std::thread::Builder::new()
            .name("gradus-serve".into())
            .spawn(move || work(&core, &taken, &again))
            .context(|| "cannot start to answer other nodes".to_owned())?;
        Ok((Self { jobs: jobs.clone(), thread: Some(thread) }, Arc::new(Door(jobs))))
    }

    /// Says that the walk has gone on.
    pub fn nudge(&self) {
        // A queue that is full is worked on.
        let _ = self.jobs.try_send(Job::Again);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(core: &Core, jobs: &Receiver<Job>, again: &SyncSender<Job>) {
    let mut waiting: VecDeque<(Asked, Answer)> = VecDeque::new();
    let is_called = Arc::new(AtomicBool::new(false));
    for job in jobs {
        match job {
            Job::Ask(asked, answer) => serve(core, asked, answer, &mut waiting),
            Job::Again => {
                for (asked, answer) in std::mem::take(&mut waiting) {
                    serve(core, asked, answer, &mut waiting);
                }
            }
            Job::End => return,
        }
        if waiting.len() > MOST_WAITING {
            waiting.pop_front().into_iter().for_each(|(_, answer)| answer.busy());
        }
        core.note_waiting(!waiting.is_empty(), again, &is_called);
    }
}

fn serve(core: &Core, asked: Asked, answer: Answer, waiting: &mut VecDeque<(Asked, Answer)>) {
    let Some(block) = core.plan.map.find(asked.key) else { return answer.not_here() };
    match core.look_up(block, asked.position) {
        Found::Block(what) => core.hand_over(what, answer),
        Found::Later => waiting.push_back((asked, answer)),
        Found::TooMuch => answer.busy(),
        Found::Nothing => answer.not_here(),
    }
}

/// What a block that is asked for comes to.
enum Found {
    Block(What),
    /// The walk is to come to it yet.
    Later,
    TooMuch,
    Nothing,
}

impl Core {
    fn look_up(&self, block: Block, position: u64) -> Found {
        let Some(tier) = &self.tier else { return Found::Nothing };
        loop {
            let mut walk = self.walk();
            let Some(company) = walk.company().cloned() else { return Found::Later };
            if !company.is_home(block) {
                return match tier.peek(block) {
                    Some(held) => Found::Block(What::Coming(held, Cause::Peer)),
                    None if !company.is_rack_home(block) => Found::Nothing,
                    None => walk.relay(tier, &company, block, position).map_or(Found::TooMuch, Found::Block),
                };
            }
            walk.was_asked(&self.plan, position);
            if walk.has_passed(position) {
                return match walk.give(tier, self.origin.as_ref(), block, position) {
                    Some(what) => Found::Block(what),
                    None => Found::TooMuch,
                };
            }
            if !walk.reaches(&self.plan, position) {
                return Found::TooMuch;
            }
            let stride = walk.stride_to(position, STRIDE);
            if !walk.advance_to(&self.plan, self.tier.as_ref(), self.origin.as_ref(), stride) {
                return Found::Later;
            }
        }
    }

    /// Sends a block as soon as it is there.
    fn hand_over(&self, what: What, answer: Answer) {
        let held = match what {
            What::Coming(held, _) => held,
            What::OnDisk(loading) => {
                loading.carry_out(self.origin.as_ref());
                loading.held()
            }
        };
        let sent = held.clone();
        held.when_ready(Box::new(move || match sent.try_ready() {
            Some(Ok(())) => answer.block(Box::new(Sent(sent))),
            _ => answer.not_here(),
        }));
    }

    /// Asks wait for the walk, or none do. What waits for pages is told when there are some.
    fn note_waiting(&self, some: bool, again: &SyncSender<Job>, is_called: &Arc<AtomicBool>) {
        self.is_waited_for.store(some, Relaxed);
        let Some(tier) = self.tier.as_ref().filter(|tier| some && tier.is_full()) else { return };
        // One call is enough, however much is asked until pages are free.
        if !is_called.swap(true, Relaxed) {
            let (again, is_called) = (again.clone(), is_called.clone());
            tier.when_free(Box::new(move || {
                is_called.store(false, Relaxed);
                _ = again.try_send(Job::Again);
            }));
        }
    }
}

/// A block that is held until it is sent.
struct Sent(Held);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}
