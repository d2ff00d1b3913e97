//! The rules of DESIGN part 4 that a test can switch off.
//!
//! Each has a schedule in which the naive behaviour loses data (the simulator's `schedules` play them, each with its
//! rule and without). A [`crate::Config`] names at most one rule that is off; in production none is, and all
//! a rule costs is the look at that option. Where a rule is off, the code does what one would do who never heard of
//! the schedule; assertions that state what the rule guarantees hold only while it is on.

/// A rule that a test can switch off. The number is the schedule's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A write is acknowledged when every counted replica has it (Write).
    AckByAll,
    /// A flush is acknowledged when every counted replica has flushed (Flush).
    FlushByAll,
    /// A write that waits for a lost member is completed when its removal is committed, not before (28).
    ShrinkFirst,
    /// Dirty bits are cleared by answers or equal hashes only (G4).
    BitsUntilAnswered,
    /// A candidate stores its promise before it is proposed, and answers no older frame from then on (1).
    PromiseFirst,
    /// A primary opens when every member of the committed set was heard or removed by commit (2).
    HearAll,
    /// Unclosed writes are reported after an orderly step-down too (3).
    ReportAlways,
    /// A write is open, and its extent stays in the log, until it is closed (4).
    KeepOpen,
    /// A close becomes dirty bits for everyone outside its set (4).
    CloseSet,
    /// An extent is evicted only after its data is flushed and its bits are saved (4).
    EvictTrace,
    /// A replica counts from before the proposal that makes it a member (5).
    CountEarly,
    /// A replica flushes before it is proposed as a member (6).
    GrowFlush,
    /// A restarted primary takes the next epoch instead of going on in its own (7).
    NewEpoch,
    /// A member that runs anew, or stopped uncleanly, is removed and resynced first; its former answers are void (8, 10).
    RunsCount,
    /// An uncleanly stopped member is promoted only when all are known unclean (9).
    CleanFirst,
    /// A read waits for overlapping writes (11).
    ReadLock,
    /// Every replica applies overlapping writes in their order (12).
    ReplicaOrder,
    /// Resync holds the block's lock from read to answer (13).
    ResyncLock,
    /// A resynced block passes the target's activity log (14).
    ResyncLogged,
    /// A new member takes over the bitmaps for absent replicas (15).
    CopyBits,
    /// These bitmaps are durable before the proposal (15).
    CopyDurable,
    /// Promotion turns what is in doubt into bits for everyone, not for the members alone (16).
    PromotionBits,
    /// After a crash the extents of the activity log become bits for every other replica (16).
    CrashBits,
    /// What clears bits on a third node travels in order with writes (17). Kept by the wire's lanes.
    GrownInOrder,
    /// Local writes of older epochs end before a promise, a new session or a new lead (18).
    EndOldWrites,
    /// A new run waits for the disk operations of the old one (19). Kept by the interpreter's claim on the store.
    Claim,
    /// The last member is never removed (23).
    LastMember,
    /// An orderly stop turns open writes into durable bits before the clean mark (24).
    CleanStop,
    /// A member that reconnects is sent again what it has not answered (27).
    Resend,
    /// Requests are split so that each fits the smallest activity log (29).
    SplitLarge,
    /// On a secondary no write passes another that waits for slots (30).
    SlotsInOrder,
    /// A disk that says less of itself than was seen of it is compared whole (31).
    SeenDisks,
    /// A syncing replica says so on its disk before its first resync block (32).
    MarkSyncing,
    /// A block in doubt is served only when it is equal on all members (33).
    ReconcileFirst,
    /// The cut replaces a new member's bits for the other members too (34).
    MembersBits,
    /// Nothing is answered without a lease (35).
    LeaseCheck,
    /// A hand-over waits until everything is closed on the members (36).
    DrainFirst,
    /// A voter without its state is a new one (37).
    FreshVoter,
    /// A removed member is taken in again only after a while that doubles (39).
    Damping,
}
