//! The activity log as the roles use it: slots taken before a write, given back after, evicted only when the data is
//! flushed and its trace is saved (rule 4).

use super::*;

impl Ctx {
    // ---- activity log

    /// Asks for the extents under `range`; false: a [`Wake::Log`] comes.
    pub(crate) fn acquire(&mut self, user: LogUser, range: Option<BlockRange>) -> bool {
        let granted = self.log.acquire(user, range);
        if !granted {
            self.pump_log();
        }
        granted
    }

    pub(crate) fn release(&mut self, range: BlockRange) {
        let granted = self.log.release(range);
        self.wakes.extend(granted.into_iter().map(Wake::Log));
        self.pump_log();
    }

    pub(super) fn log_written(&mut self) {
        let granted = self.log.written();
        if !self.disk_failed() {
            self.log_number = self.log.durable();
        }
        self.wakes.extend(granted.into_iter().map(Wake::Log));
        self.wakes.push_back(Wake::LogWritten);
        self.pump_log();
    }

    pub(crate) fn pump_log(&mut self) {
        if self.is_moving() {
            return;
        }
        if let Some(step) = self.log.step() {
            self.log_step(step);
        }
    }

    pub(crate) fn log_step(&mut self, step: Step) {
        match step {
            Step::Evict(_) if self.disk_failed() || self.off(Rule::EvictTrace) => {
                let step = self.log.traced();
                self.log_step(step);
            }
            Step::Write { .. } if self.disk_failed() => self.log_written(),
            Step::Evict(_) => {
                self.trace_flush = true;
                self.trace_saved = false;
                self.disk(Purpose::TraceFlush, DiskOp::Flush);
                self.save_bits(Unsaved::Set, After::Trace);
            }
            Step::Write { number, active } => {
                self.log_writes += 1;
                let transaction = Transaction {
                    number,
                    incarnation: self.superblock.incarnation,
                    run: self.superblock.run,
                    active,
                };
                let (offset, data) = transaction
                    .write(&self.layout)
                    .expect("the log has no more slots than a page");
                self.disk(
                    Purpose::LogWrite,
                    DiskOp::Write {
                        offset,
                        data,
                        durable: true,
                    },
                );
            }
        }
    }

    /// The bits under the leaving extents are saved.
    pub(crate) fn trace_saved(&mut self) {
        self.trace_saved = true;
        self.try_evict();
    }

    pub(super) fn try_evict(&mut self) {
        if !self.trace_flush && self.trace_saved {
            self.trace_saved = false;
            let step = self.log.traced();
            self.log_step(step);
        }
    }
}
