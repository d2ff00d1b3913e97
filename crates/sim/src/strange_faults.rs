//! Faults of single parts of a machine that look like something else: sectors that cannot be read, a full backing, a disk that
//! lies, a clock that leaps. The budget is the one of [`crate::faults`].

use crate::disk::Errors;
use crate::scenario::{MS, S};
use crate::world::World;

impl World {
    /// A stretch of the data cannot be read until it is written over.
    pub(crate) fn bad_sector(&mut self, n: usize) {
        if !self.may_fail(n) {
            return;
        }
        let area = self.layout.geometry.bytes();
        let unit = crate::disk::DATA_SECTOR_BYTES;
        let first = self.rng.fault.below(area / unit) * unit;
        let end = (first + unit * self.rng.fault.between(1, 64)).min(area);
        self.trace.mark("bad sector");
        self.fail_disk(n, Errors::NONE, |disk| disk.unreadable = first..end);
    }

    /// The backing file cannot grow any more.
    pub(crate) fn no_space(&mut self, n: usize) {
        if self.may_fail(n) {
            self.trace.mark("no space");
            self.fail_disk(n, Errors::NONE, |disk| disk.full = true);
        }
    }

    /// A disk says that it has flushed, and has not. What it then loses with its power no protocol can know of: its operator,
    /// who does, replaces it before it serves again.
    pub(crate) fn lying_flush(&mut self, n: usize) {
        if self.expendable(n)
            && let Some(disk) = &mut self.nodes[n].disk
        {
            disk.lies = true;
            self.trace.mark("disk lies about flushes");
        }
    }

    /// A clock shows much more time than has passed, as after a restored snapshot of a virtual machine. Only where clocks are
    /// broken anyway.
    pub(crate) fn clock_leap(&mut self, n: usize) {
        let by = self.rng.fault.between(100 * MS, 5 * S);
        if self.scenario.wild_clocks {
            self.trace.mark("clock leapt");
            let clock = &mut self.nodes[n].clock;
            clock.ahead_ns += by;
        }
    }
}
