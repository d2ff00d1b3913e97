//! The application of the stage, and the end of a schedule: what was asked, what was answered, what must be there.

use super::*;

impl Stage {
    pub(in crate::schedules) fn request(
        &mut self,
        n: usize,
        request: Request,
        asked: Asked,
    ) -> u64 {
        let req = ReqId(self.next_req);
        self.next_req += 1;
        let epoch = self.sites[n].open.unwrap_or(self.view.epoch.0);
        self.sites[n].asked.insert(req, (epoch, asked));
        self.event(n, Event::Request { req, request });
        req.0
    }

    /// Writes a block.
    pub(in crate::schedules) fn write(&mut self, n: usize, block: u64) -> u64 {
        self.now.0 += STEP_NS;
        let (first, cells) = (block * CELLS_PER_BLOCK, CELLS_PER_BLOCK);
        let epoch = self.sites[n].open.unwrap_or(self.view.epoch.0);
        let id = self.history.begin(self.now.0, epoch, first, cells, false);
        let data: Vec<u8> = (first..first + cells).flat_map(|c| stamp(id, c)).collect();
        let request = Request::Write {
            offset: first * CELL_BYTES,
            data: data.into(),
            fua: false,
        };
        self.request(n, request, Asked::Write { id, fua: false })
    }

    /// Writes a block and waits for the answer.
    pub(in crate::schedules) fn written(&mut self, n: usize, block: u64) {
        let req = self.write(n, block);
        self.settle();
        let acked = self.acked(req);
        self.must(acked, "liveness: a write is not answered");
    }

    /// Zeroes blocks.
    pub(in crate::schedules) fn zero(&mut self, n: usize, block: u64, count: u64) -> u64 {
        self.now.0 += STEP_NS;
        let (first, cells) = (block * CELLS_PER_BLOCK, count * CELLS_PER_BLOCK);
        let epoch = self.sites[n].open.unwrap_or(self.view.epoch.0);
        let id = self.history.begin(self.now.0, epoch, first, cells, true);
        let request = Request::Zero {
            offset: first * CELL_BYTES,
            len: cells * CELL_BYTES,
            fua: false,
        };
        self.request(n, request, Asked::Write { id, fua: false })
    }

    /// Reads a block; what comes of it is the checkers' business.
    pub(in crate::schedules) fn read(&mut self, n: usize, block: u64) -> u64 {
        self.now.0 += STEP_NS;
        let asked = Asked::Read {
            begun: self.now.0,
            first: block * CELLS_PER_BLOCK,
            len: GEOMETRY.block_bytes,
        };
        let request = Request::Read {
            offset: block * u64::from(GEOMETRY.block_bytes),
            len: GEOMETRY.block_bytes,
        };
        let req = self.request(n, request, asked);
        self.settle();
        req
    }

    /// Flushes.
    pub(in crate::schedules) fn flush(&mut self, n: usize) -> u64 {
        self.now.0 += STEP_NS;
        let covered = self.history.flush_begins();
        let req = self.request(n, Request::Flush, Asked::Flush { covered });
        self.settle();
        req
    }

    pub(in crate::schedules) fn acked(&self, req: u64) -> bool {
        self.answers.get(&req) == Some(&Ok(()))
    }

    pub(in crate::schedules) fn answered(&self, req: u64) -> bool {
        self.answers.contains_key(&req)
    }

    pub(in crate::schedules) fn complete(
        &mut self,
        n: usize,
        req: ReqId,
        result: Result<Bytes, RequestError>,
    ) {
        let Some((epoch, asked)) = self.sites[n].asked.remove(&req) else {
            return;
        };
        self.answers.insert(req.0, result.clone().map(|_| ()));
        let Ok(bytes) = result else {
            if let Asked::Write { id, .. } = asked {
                self.history.forget(self.now.0, id);
            }
            return;
        };
        let now = self.now.0;
        let result = self.writer.completes(n, epoch);
        self.checked(result);
        let result = match asked {
            Asked::Read { begun, first, .. } => self.history.read(now, begun, first, &bytes),
            Asked::Write { id, .. } => {
                let one = self.writer.acks(n, epoch);
                let acked = one.and_then(|()| self.history.ack(now, id));
                let begun = self.history.begun(id);
                acked.and_then(|()| self.of_members(begun, |h, disk| h.holds(id, &disk.cached)))
            }
            Asked::Flush { covered } => {
                let held = self.of_members(now, |h, disk| h.holds_flushed(&covered, &disk.stable));
                self.history.flushed(&covered);
                held
            }
        };
        self.checked(result);
    }

    /// Checks every member's disk that has not lost its cache since `begun`.
    pub(in crate::schedules) fn of_members(
        &self,
        begun: u64,
        holds: impl Fn(&History, &Disk) -> Result<(), String>,
    ) -> Result<(), String> {
        for m in self.view.in_sync.iter() {
            let site = &self.sites[usize::from(m.0)];
            if site.lost_at < begun {
                holds(&self.history, &site.disk)
                    .map_err(|e| format!("G1: acknowledged, but member {m} lacks it: {e}"))?;
            }
        }
        Ok(())
    }

    // ---- the end

    /// Nothing is held any more, every node is up: the cluster must come to full redundancy (G7), with everything that
    /// was acknowledged.
    pub(in crate::schedules) fn heal(&mut self) {
        self.held_lanes.clear();
        self.apart.clear();
        self.commit_held();
        for n in 0..self.sites.len() {
            self.sites[n].deaf = false;
            self.release_disk(n);
            let given_up = self.sites[n]
                .replica
                .as_ref()
                .is_some_and(|r| r.status().trouble.is_some());
            let broken = std::mem::take(&mut self.sites[n].disk.broken);
            if broken || given_up || self.sites[n].stopped {
                self.kill(n);
                self.sites[n].stopped = false;
            }
            self.start(n);
        }
        self.publish();
        for _ in 0..HEAL_MS / 500 {
            let serves = (0..self.sites.len()).any(|n| {
                self.view.primary == Some(node(n))
                    && self.sites[n].open.is_some()
                    && self.is_open(n)
            });
            if !serves {
                let _ = (0..self.sites.len()).any(|n| self.promote(n));
            }
            self.pass(500);
        }
        self.compare();
        if self.view.in_sync != self.view.data_nodes {
            let what = format!("G7: in sync are only {:?} in the end", self.view.in_sync);
            return self.checked(Err(what));
        }
        self.all_equal();
    }

    pub(in crate::schedules) fn all_equal(&mut self) {
        let area = GEOMETRY.bytes() as usize;
        let first = self.sites[0].disk.cached[..area].to_vec();
        let result = self.history.check_image(self.now.0, &first);
        self.checked(result.map_err(|e| format!("at the end: {e}")));
        for n in 1..self.sites.len() {
            let own = &self.sites[n].disk.cached[..area];
            if let Some(block) = convergence::differ(&first, own, GEOMETRY.block_bytes as usize) {
                let what = format!("G7: block {block} differs between nodes 0 and {n} in the end");
                self.checked(Err(what));
            }
        }
        for n in 0..self.sites.len() {
            let bits = dirty::decode(&self.sites[n].disk.cached)
                .ok()
                .and_then(|r| convergence::dirty(&r));
            if let Some((peer, block)) = bits {
                let what = format!("G7: node {n} calls block {block} dirty for {peer} in the end");
                self.checked(Err(what));
            }
        }
    }
}
