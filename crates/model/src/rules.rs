//! The rules of the protocol that can be switched off, one by one.
//!
//! A rule is here because the protocol as built has it as a separate decision. Its number is that of the finding (a
//! schedule that breaks the protocol without it) as DESIGN part 4 and the simulation scenarios use it; 40 and above
//! were found by this model.

/// A rule of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A candidate stores the promise of the next epoch before it proposes itself.
    PromiseFirst,
    /// A promise is taken back only when the proposal is known to be dead.
    DefiniteWithdraw,
    /// A new primary opens only when every member of the committed set has reported.
    HearAll,
    /// What is open is reported at every connect and kept in doubt by a demoted primary, crash or not.
    ReportAlways,
    /// An extent with an open write is not evicted from the activity log.
    HoldOpen,
    /// A close names the set that holds the write; its receiver sets bits for everybody else.
    CloseSet,
    /// A syncing peer counts from its cut on, before its membership is proposed.
    CountFromCut,
    /// A syncing peer flushes at its cut.
    FlushAtCut,
    /// A restarted primary takes a new epoch; it does not resume the old one.
    RestartNewEpoch,
    /// A member that runs anew is removed before any of its answers counts.
    MemberRuns,
    /// A grow commits only for the run of the peer that was made equal.
    GrowLife,
    /// A member that stopped uncleanly is promoted only if all members are known to have.
    CleanFirst,
    /// A read waits for an overlapping write in flight.
    ReadsWait,
    /// A replica applies overlapping writes in their order.
    ReplicaOrder,
    /// Resync holds the block's lock on the primary from read to answer.
    ResyncLock,
    /// A resync block passes the target's activity log.
    ResyncLogged,
    /// The cut hands over the bitmaps of absent peers.
    CutBitmaps,
    /// They are durable before the cut is confirmed.
    CutDurable,
    /// What is in doubt at a promotion gets bits for data nodes outside the set too.
    DoubtBits,
    /// Those bits are durable before the device opens.
    MarkDurable,
    /// The end of a reconciliation sets bits on the members for everybody outside the set.
    ReconcileSet,
    /// After a crash the extents of the activity log become bits.
    CrashExtents,
    /// Blocks in doubt are made equal on all members before they are served.
    ReconcileFirst,
    /// A block in doubt is not copied to a syncing peer.
    ResyncSettled,
    /// What a syncing peer has got by resync is told to the members before any close that could set bits for it.
    SyncedBeforeClose,
    /// And before the close that a reconnect repeats.
    SyncedBeforeResend,
    /// News that clears bits on a third node travels in the write lane.
    GrownLane,
    /// Local writes of an older session or epoch have ended before a new one is answered or promised.
    Drain,
    /// A new run waits for the disk writes of the former one.
    StoreClaim,
    /// Frames of an ended session are void.
    SessionStamp,
    /// An answer clears a bit only if no newer write of that block is on its way.
    ClearLatest,
    /// An orderly stop turns open writes into durable bits before the clean mark.
    CleanStopBits,
    /// Answers are per frame, and what is unanswered is sent again at a reconnect.
    PerFrameAnswers,
    /// A member counts until its removal is known to be committed.
    RemovalCommitted,
    /// Whoever stops counting gets bits for every write that is not settled.
    MarkUnsettled,
    /// A write sets bits at once for whoever does not count.
    MarkAbsent,
}

use Rule as R;

impl Rule {
    /// All of them.
    pub const ALL: [Self; 36] = [
        R::PromiseFirst,
        R::DefiniteWithdraw,
        R::HearAll,
        R::ReportAlways,
        R::HoldOpen,
        R::CloseSet,
        R::CountFromCut,
        R::FlushAtCut,
        R::RestartNewEpoch,
        R::MemberRuns,
        R::GrowLife,
        R::CleanFirst,
        R::ReadsWait,
        R::ReplicaOrder,
        R::ResyncLock,
        R::ResyncLogged,
        R::CutBitmaps,
        R::CutDurable,
        R::DoubtBits,
        R::MarkDurable,
        R::ReconcileSet,
        R::CrashExtents,
        R::ReconcileFirst,
        R::ResyncSettled,
        R::SyncedBeforeClose,
        R::SyncedBeforeResend,
        R::GrownLane,
        R::Drain,
        R::StoreClaim,
        R::SessionStamp,
        R::ClearLatest,
        R::CleanStopBits,
        R::PerFrameAnswers,
        R::RemovalCommitted,
        R::MarkUnsettled,
        R::MarkAbsent,
    ];

    /// The number of the finding it comes from.
    pub fn number(self) -> u8 {
        match self {
            R::PromiseFirst | R::DefiniteWithdraw => 1,
            R::HearAll => 2,
            R::ReportAlways => 3,
            R::HoldOpen | R::CloseSet => 4,
            R::CountFromCut => 5,
            R::FlushAtCut => 6,
            R::RestartNewEpoch => 7,
            R::MemberRuns | R::GrowLife => 8,
            R::CleanFirst => 9,
            R::ReadsWait => 11,
            R::ReplicaOrder => 12,
            R::ResyncLock => 13,
            R::ResyncLogged => 14,
            R::CutBitmaps | R::CutDurable => 15,
            R::DoubtBits | R::MarkDurable | R::ReconcileSet | R::CrashExtents => 16,
            R::GrownLane => 17,
            R::Drain => 18,
            R::StoreClaim => 19,
            R::SessionStamp | R::ClearLatest => 21,
            R::CleanStopBits => 24,
            R::PerFrameAnswers => 27,
            R::RemovalCommitted | R::MarkUnsettled | R::MarkAbsent => 28,
            R::ReconcileFirst => 33,
            R::ResyncSettled => 40,
            R::SyncedBeforeClose | R::SyncedBeforeResend => 41,
        }
    }

    /// The rule of this name, as [`std::fmt::Debug`] writes it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| format!("{r:?}") == name)
    }
}

/// Which rules are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules(u64);

impl Rules {
    /// Every rule.
    pub fn all() -> Self {
        Self(u64::MAX)
    }

    /// All of these but one.
    #[must_use]
    pub fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u8))
    }

    /// Is it in force?
    pub fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }
}
