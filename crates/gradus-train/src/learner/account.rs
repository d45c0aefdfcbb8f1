//! What a rank computes in its steps, and how long that takes: kept for those who ask for it, by a clock that they pass in. The
//! costs of a pipeline's stages are read from it.

use super::Learner;
use crate::pipeline::ActionKind;
use gradus_host::Clock;
use std::sync::Arc;
use std::time::Duration;

/// Passes of one kind, and what they have taken without the time in which they waited for other ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// How many.
    pub passes: u64,
    /// Together.
    pub seconds: f64,
}

/// What a rank has computed since it began to keep account.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Computed {
    /// By chunk of this rank and by kind, in the order of [`ActionKind::ALL`].
    chunks: Vec<[Spent; ActionKind::ALL.len()]>,
    /// Updates of the weights, seconds.
    pub update_s: f64,
}

impl Computed {
    /// The passes of one kind of one of this rank's chunks.
    pub fn of(&self, chunk: usize, kind: ActionKind) -> Spent {
        self.chunks[chunk][kind as usize]
    }
}

/// The account, and its clock.
pub(super) struct Account {
    clock: Arc<dyn Clock>,
    computed: Computed,
}

/// When something began, and how long this rank had waited by then, seconds.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    at: Duration,
    waited_s: f64,
}

impl Learner {
    /// From now on keeps account of what this rank computes; anew, if it did already.
    pub fn keep_account(&mut self, clock: Arc<dyn Clock>) {
        let chunks = vec![[Spent::default(); ActionKind::ALL.len()]; self.stages.len()];
        self.account = Some(Account { clock, computed: Computed { chunks, update_s: 0.0 } });
    }

    /// What this rank has computed since [`Learner::keep_account`].
    pub fn computed(&self) -> Option<&Computed> {
        self.account.as_ref().map(|account| &account.computed)
    }

    /// Something begins; nothing is read off a clock where no account is kept.
    pub(super) fn begin_work(&self) -> Option<Begun> {
        let account = self.account.as_ref()?;
        Some(Begun { at: account.clock.now(), waited_s: self.waited_at_work() })
    }

    /// Waiting that may come in the middle of computing.
    fn waited_at_work(&self) -> f64 {
        let exposed = self.exposed();
        exposed.dp + exposed.fsdp + exposed.tp
    }

    /// What has begun is done: where it goes in the account.
    pub(super) fn end_work(&mut self, begun: Option<Begun>, enter: impl FnOnce(&mut Computed, f64)) {
        let Some(begun) = begun else { return };
        let waited_s = self.waited_at_work() - begun.waited_s;
        let account = self.account.as_mut().expect("nothing begins without an account");
        let took_s = account.clock.now().saturating_sub(begun.at).as_secs_f64();
        enter(&mut account.computed, (took_s - waited_s).max(0.0));
    }

    /// A pass that had begun is done.
    pub(super) fn end_pass(&mut self, begun: Option<Begun>, chunk: usize, kind: ActionKind) {
        self.end_work(begun, |computed, seconds| {
            let spent = &mut computed.chunks[chunk][kind as usize];
            spent.passes += 1;
            spent.seconds += seconds;
        });
    }
}
