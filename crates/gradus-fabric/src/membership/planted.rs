//! Bugs that tests plant, to see that the checker of the simulation finds them.

/// A bug; outside of this crate's own tests there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Planted {
    /// As it should be.
    #[default]
    Nothing,
    /// The coordinator announces an epoch first and stores it then.
    AnnouncesBeforeStoring,
    /// The coordinator lets members act in an epoch that not all have acknowledged.
    GoesWithoutAcknowledgements,
    /// The coordinator lets members act while the lease of one that is excluded still runs.
    GoesBeforeLeasesEnd,
    /// The coordinator forgets a group that has become empty, and with it whose leases still run.
    ForgetsEmptiedGroups,
    /// The coordinator takes nobody for dead.
    DeclaresNobody,
    /// The coordinator says everything once.
    SaysOnce,
    /// The coordinator begins in the term of its earlier life.
    KeepsItsTerm,
    /// A member acts on when its lease has ended.
    ForgetsItsLease,
    /// A member believes coordinators of an older term.
    BelievesOldTerms,
    /// A member believes tables of an older epoch.
    BelievesOldEpochs,
}

impl Planted {
    /// Whether this is the bug `bug`: never, where no test could have planted one.
    pub(super) fn is(self, bug: Self) -> bool {
        cfg!(test) && self == bug
    }
}
