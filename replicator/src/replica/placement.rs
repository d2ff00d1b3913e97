//! A replica follows the record: who else holds one, and how large the volume is.

use super::{Replica, State};
use crate::View;

impl Replica {
    /// Goes by the committed data nodes. (A primary does that itself, amid the other changes of a record.)
    pub(super) fn place(&mut self, view: View) {
        if let State::Follower(f) = &mut self.state {
            for node in self.ctx.others().minus(view.data_nodes).iter() {
                f.peer_down(&mut self.ctx, node);
            }
        }
        if self.ctx.others() != view.data_nodes.without(self.ctx.cfg.me) {
            // What a primary said of members that were not known here yet has gone unheard: it says it again.
            self.told = None;
        }
        self.ctx.place(view.data_nodes);
    }

    /// More or less of the volume is served now.
    pub(super) fn resized(&mut self) {
        if let State::Primary(p) = &mut self.state {
            p.resized(&mut self.ctx);
        }
    }
}
