//! Lies of the interpreters: each makes the simulated daemon, disk or host break its contract in one way, so that a
//! checker whose rule no bug of the state machines alone would break can be seen to catch it.

/// One lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Something that is no function of the seed decides when a message arrives.
    Wobble,
    /// A durable write of metadata is reported done when it is only on its way.
    EarlyMeta,
    /// The control state is reported durable when it is only on its way.
    VoteForgotten,
    /// Resync carries zeroes instead of what the primary has read.
    ResyncOfNothing,
    /// The address stays when it is removed.
    VipStays,
    /// A machine that lost its power says it never did.
    SameBoot,
    /// A replica may count on its lease for longer than it has it.
    LeaseStretched,
    /// A replica believes that its activity log has twice the slots.
    MoreSlots,
    /// The status says that no peer lacks anything.
    StatusLies,
    /// Once the faults have ended, bitmaps are not written any more.
    BitmapsKept,
}

impl Mutation {
    /// Every lie, with the beginning of what the checker says whose rule it breaks.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Wobble, "determinism: "),
        (Self::EarlyMeta, "order: "),
        (Self::VoteForgotten, "consensus: "),
        (Self::VipStays, "G5: services: "),
        (Self::ResyncOfNothing, "direction: "),
        (Self::SameBoot, "G3: "),
        (Self::LeaseStretched, "G5: "),
        (Self::MoreSlots, "bounds: "),
        (Self::StatusLies, "observability: "),
        (Self::BitmapsKept, "G7: "),
    ];

    /// The lie of this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .map(|(m, _)| m)
            .find(|m| format!("{m:?}") == name)
    }
}

/// Counts what the process did before: different in each run.
static WOBBLE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// A number that no seed determines.
pub(crate) fn wobble() -> u64 {
    WOBBLE.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
