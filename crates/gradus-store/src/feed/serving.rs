//! What other nodes ask of this one.
//!
//! A thread takes what is asked from the one that moves bytes, which must not wait. A block that the walk has accessed for
//! the asker is waiting; one that it has not come to yet it walks on to; one that it has passed is in the cache, or fetched
//! again. What cannot be walked to yet, for want of pages, is asked anew when there are some, and whenever readers have
//! walked on.
//!
//! A block whose home is in another rack may be asked of its rack's home: that asks the home, and shares what comes with
//! whoever else of the rack asks soon.
//!
//! Invariants: only blocks of this dataset that have their home here, or their rack's, are fetched for others; nothing that is asked makes
//! the walk go further than its own readers would let it, within a bound, or takes more than a bounded place.

use super::Core;
use super::mailbox::{Job, Mailbox};
use super::stalls::Cause;
use super::unit::What;
use crate::blocks::Block;
use crate::cache::Held;
use crate::peers::{Answer, Asked, Serve};
use gradus_error::{IoContext, Result};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

/// Asks that wait for the thread, and asks that wait for the walk: more are told that there is too much to do.
const MOST_WAITING: usize = 1024;

/// Positions that are walked over while readers wait at most.
const STRIDE: u64 = 256;

/// What was asked, and where the answer goes.
type Question = (Asked, Answer);

/// Where asks come in.
pub(super) struct Door(Arc<Mailbox<Question>>);

impl Serve for Door {
    fn serve(&self, asked: Asked, answer: Answer) {
        if let Err((_, answer)) = self.0.put((asked, answer)) {
            answer.busy();
        }
    }
}

/// The thread that answers; it ends when this is dropped.
pub(super) struct Server {
    mailbox: Arc<Mailbox<Question>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Begins to answer.
    ///
    /// # Errors
    /// The system's failure to make a thread.
    pub fn start(core: Arc<Core>) -> Result<(Self, Arc<Door>)> {
        let mailbox = Arc::new(Mailbox::new(MOST_WAITING));
        let own = mailbox.clone();
        let thread = std::thread::Builder::new()
            .name("gradus-serve".into())
            .spawn(move || work(&core, &own))
            .context(|| "cannot start to answer other nodes".to_owned())?;
        Ok((Self { mailbox: mailbox.clone(), thread: Some(thread) }, Arc::new(Door(mailbox))))
    }

    /// Says that the walk has gone on.
    pub fn nudge(&self) {
        self.mailbox.moved();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.mailbox.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(core: &Core, mailbox: &Arc<Mailbox<Question>>) {
    let mut waiting: VecDeque<Question> = VecDeque::new();
    let is_called = Arc::new(AtomicBool::new(false));
    while let Some(job) = mailbox.next(!waiting.is_empty()) {
        let questions = match job {
            Job::Ask(question) => VecDeque::from([question]),
            Job::Again => std::mem::take(&mut waiting),
        };
        for (asked, answer) in questions {
            match serve(core, &asked, answer) {
                Served::Over => {}
                Served::Later(answer) => waiting.push_back((asked, answer)),
                Served::WantsPage(answer) => {
                    waiting.push_back((asked, answer));
                    core.call_when_free(mailbox, &is_called);
                }
            }
        }
        if waiting.len() > MOST_WAITING {
            waiting.pop_front().into_iter().for_each(|(_, answer)| answer.busy());
        }
    }
}

/// What becomes of an ask.
enum Served {
    Over,
    /// The walk does not come to it yet: whoever moves it says so.
    Later(Answer),
    /// Nor can it be walked to, for want of a page.
    WantsPage(Answer),
}

fn serve(core: &Core, asked: &Asked, answer: Answer) -> Served {
    match core.plan.map.find(asked.key).map_or(Found::Nothing, |block| core.look_up(block, asked.position)) {
        Found::Block(what) => core.hand_over(what, answer),
        Found::TooMuch => answer.busy(),
        Found::Nothing => answer.not_here(),
        Found::Later => return Served::Later(answer),
        Found::WantsPage => return Served::WantsPage(answer),
    }
    Served::Over
}

/// What a block that is asked for comes to.
enum Found {
    Block(What),
    /// Nobody walks yet.
    Later,
    /// The walk is to come to it yet, and has no page.
    WantsPage,
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
                return Found::WantsPage;
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

    /// Has it told to the mailbox once a page is free, if one is by now at once.
    fn call_when_free(&self, mailbox: &Arc<Mailbox<Question>>, is_called: &Arc<AtomicBool>) {
        let Some(tier) = &self.tier else { return };
        // One call is enough, however much is asked until pages are free.
        if !is_called.swap(true, Relaxed) {
            let (mailbox, is_called) = (mailbox.clone(), is_called.clone());
            tier.when_free(Box::new(move || {
                is_called.store(false, Relaxed);
                mailbox.moved();
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
