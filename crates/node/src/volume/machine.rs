//! The one thing a volume loop needs of the replicator, so that the loop can be tested with a simpler one.

use holdfast_replicator::{Action, Event, Now, Replica, Status};

/// A state machine as the replicator's contract describes it.
pub trait Machine: Send {
    /// One thing happened; what is to be done is added to `actions`.
    fn handle(&mut self, now: Now, event: Event, actions: &mut Vec<Action>);
    /// When it wants [`Event::Tick`].
    fn deadline(&self) -> Option<Now>;
    /// How it is.
    fn status(&self) -> Status;
}

impl Machine for Replica {
    fn handle(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        Self::handle(self, now, event, actions);
    }
    fn deadline(&self) -> Option<Now> {
        Some(Self::deadline(self))
    }
    fn status(&self) -> Status {
        Self::status(self)
    }
}
