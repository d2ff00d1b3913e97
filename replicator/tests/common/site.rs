//! One node of the harness: its disk, and what was answered and told.

use super::*;

impl Site {
    pub(super) fn new(n: usize, all: NodeSet, member: bool) -> Self {
        Self::made(n, all, member, Incarnation(100 + n as u64))
    }

    pub(super) fn made(n: usize, all: NodeSet, member: bool, incarnation: Incarnation) -> Self {
        let layout = Layout::with_page(GEOMETRY, STORE_BYTES as u64, 7, 8, 512).unwrap();
        let mut superblock = Superblock {
            version: FORMAT_VERSION,
            cluster: 1,
            volume: VolumeId(7),
            node: NodeId(n as u8),
            geometry: GEOMETRY,
            capacity: GEOMETRY.blocks,
            tail_unknown: false,
            page_bytes: 512,
            incarnation,
            run: Run(0),
            boot_id: 0,
            clean: true,
            promised: Epoch(0),
            epoch: Epoch(0),
            disk: if member {
                DiskState::UpToDate
            } else {
                DiskState::Outdated
            },
            lineage: 0,
            log_slots: 8,
            log_floor: 0,
            peer_slots: [None; 7],
            seen: Default::default(),
            found: Default::default(),
            update: 0,
        };
        for peer in all.without(NodeId(n as u8)).iter() {
            superblock.give_slot(peer).unwrap();
        }
        let start = if member {
            BitmapStart::Clean
        } else {
            BitmapStart::AllDirty
        };
        let mut site = Self {
            replica: None,
            disk: vec![0; STORE_BYTES],
            end: STORE_BYTES as u64,
            most: u64::MAX,
            room: 0,
            answers: BTreeMap::new(),
            notes: Vec::new(),
            opened: None,
            drained: false,
            stopped: false,
            boot: 1,
            slow: false,
            late_zeroes: false,
            late: VecDeque::new(),
            zeroed: Vec::new(),
            saved: Vec::new(),
            save_answer: Ok("file".into()),
            frozen: false,
            inbox: VecDeque::new(),
            fail: Fail::No,
            distrust: None,
            proposed_self: 0,
            stranded: false,
            queue: VecDeque::new(),
            power: None,
            starts: 0,
            told: Told::default(),
        };
        for (offset, bytes) in initialise(&layout, &superblock, start).unwrap() {
            site.disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
        site
    }

    pub(super) fn submit(&mut self, io: IoId, op: DiskOp) {
        let name = self.starts << 32 | io.0;
        if let Some(power) = &mut self.power {
            match &op {
                DiskOp::Write { offset, data, .. } => power.write(name, *offset, data),
                DiskOp::Zero { offset, len, .. } => {
                    power.write(name, *offset, &vec![0; *len as usize])
                }
                DiskOp::Flush => power.flush(name),
                DiskOp::Read { .. } => {}
            }
        }
        if self.late_zeroes && matches!(op, DiskOp::Zero { .. }) {
            self.late.push_back((io, op));
            return;
        }
        self.queue.push_back((io, op));
    }

    pub(super) fn run(&mut self, io: IoId, op: &DiskOp) -> Result<Bytes, DiskError> {
        let block = BLOCK as u64;
        match (self.fail, op) {
            (Fail::Writes(e), DiskOp::Write { .. } | DiskOp::Zero { .. } | DiskOp::Flush) => {
                return Err(e);
            }
            (Fail::Reads, DiskOp::Read { .. }) => return Err(DiskError::Io),
            (Fail::Flushes, DiskOp::Flush) => return Err(DiskError::Io),
            (Fail::Block(bad) | Fail::BadBlock(bad), DiskOp::Read { offset, len })
                if *offset <= bad * block && bad * block < offset + u64::from(*len) =>
            {
                return Err(DiskError::Io);
            }
            (Fail::BadBlock(bad), DiskOp::Write { offset, data, .. })
                if *offset <= bad * block && bad * block < offset + data.len() as u64 =>
            {
                self.fail = Fail::No;
            }
            _ => {}
        }
        Ok(self.apply(io, op))
    }

    pub(super) fn apply(&mut self, io: IoId, op: &DiskOp) -> Bytes {
        let name = self.starts << 32 | io.0;
        if let Some(power) = &mut self.power {
            match op {
                DiskOp::Write { durable, .. } | DiskOp::Zero { durable, .. } => {
                    power.written(name, *durable)
                }
                DiskOp::Flush => power.flushed(name),
                DiskOp::Read { .. } => {}
            }
        }
        match op {
            DiskOp::Read { offset, len } => {
                let from = *offset as usize;
                return Bytes::copy_from_slice(&self.disk[from..from + *len as usize]);
            }
            DiskOp::Write { offset, data, .. } => {
                let from = *offset as usize;
                self.disk[from..from + data.len()].copy_from_slice(data);
            }
            DiskOp::Zero { offset, len, .. } => {
                let from = *offset as usize;
                self.disk[from..from + *len as usize].fill(0);
                self.zeroed.push((*offset, *len));
            }
            DiskOp::Flush => {}
        }
        Bytes::new()
    }

    /// Power is lost before any of the operations under way reaches the disk.
    pub fn drop_queue_io(&mut self) {
        self.queue.clear();
        self.slow = false;
    }
    pub(super) fn flush_queue(&mut self) {
        while let Some((io, op)) = self.queue.pop_front() {
            self.apply(io, &op);
        }
    }
}
