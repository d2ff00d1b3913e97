//! Block history: which contents each piece of the volume may have. (G1, G6)
//!
//! The unit is a *cell* of [`CELL_BYTES`], smaller than a sector, so that a cell never tears. A cell's content names the
//! write it came from. In true time a write has an interval: from its request until it is answered, or until
//! nothing can bring it into effect any more (its application is gone, or a newer epoch's device has opened).
//!
//! - A write *precedes* another if its interval ends before the other begins. A content that precedes an
//!   acknowledged write of the cell is *stale*: it must not be read again, nor rest on a member when the
//!   write is acknowledged.
//! - A read returns a candidate: the initial zeroes or any write that is not stale. It then *pins*: whatever else
//!   had ended before the read began is no candidate any more. So what was read stays, but for newer writes.
//! - A write that a read proved never to have happened must not be acknowledged later.
//!
//! Only a permitted loss widens the candidates again: when every member has lost its cache, what was
//! not flushed may be gone ([`History::rollback`]).

/// Bytes of a cell.
pub const CELL_BYTES: u64 = 16;
/// Its interval has not ended.
const OPEN: u64 = u64::MAX;

/// Names a write; zero is the volume's first content.
pub type WriteId = u32;

#[derive(Clone, Debug)]
struct Write {
    begun: u64,
    end: u64,
    acked: Option<u64>,
    first: u64,
    cells: u64,
    zero: bool,
    epoch: u64,
    /// A read proved that it never happened.
    refuted: bool,
}

#[derive(Clone, Debug, Default)]
struct Cell {
    candidates: Vec<WriteId>,
    /// No candidates any more, with the time since when.
    removed: Vec<(WriteId, u64)>,
    /// Latest beginning of an acknowledged write.
    acked: u64,
    /// Latest beginning of a write that a flush made stable.
    stable: u64,
    /// Writes that began in this time were acknowledged and may be lost, after the first and up to the last.
    lost: Option<(u64, u64)>,
}

/// Everything the application did and saw.
#[derive(Clone, Debug)]
pub struct History {
    writes: Vec<Write>,
    cells: Vec<Cell>,
}

/// What a cell's bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Zero,
    Of(WriteId),
    Garbage,
}

/// The bytes of a cell written by `id`.
pub fn stamp(id: WriteId, cell: u64) -> [u8; CELL_BYTES as usize] {
    let mut out = [0; CELL_BYTES as usize];
    out[..8].copy_from_slice(&u64::from(id).to_le_bytes());
    out[8..].copy_from_slice(&crate::rng::split_mix(u64::from(id) << 32 ^ cell).to_le_bytes());
    out
}

fn content(bytes: &[u8], cell: u64) -> Content {
    if bytes.iter().all(|&b| b == 0) {
        return Content::Zero;
    }
    let id = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
    match u32::try_from(id) {
        Ok(id) if bytes == stamp(id, cell) => Content::Of(id),
        _ => Content::Garbage,
    }
}

impl History {
    /// Of a volume of `cells` zero cells.
    pub fn new(cells: u64) -> Self {
        let first = Write {
            begun: 0,
            end: 0,
            acked: Some(0),
            first: 0,
            cells,
            zero: true,
            epoch: 0,
            refuted: false,
        };
        let cell = Cell {
            candidates: vec![0],
            ..Cell::default()
        };
        Self {
            writes: vec![first],
            cells: vec![cell; cells as usize],
        }
    }

    /// The application asks to write `cells` from `first`; `zero` if it is zeroes.
    pub fn begin(&mut self, now: u64, epoch: u64, first: u64, cells: u64, zero: bool) -> WriteId {
        let id = self.writes.len() as WriteId;
        self.writes.push(Write {
            begun: now,
            end: OPEN,
            acked: None,
            first,
            cells,
            zero,
            epoch,
            refuted: false,
        });
        for cell in &mut self.cells[first as usize..(first + cells) as usize] {
            cell.candidates.push(id);
        }
        id
    }

    /// When the write was asked for.
    pub fn begun(&self, id: WriteId) -> u64 {
        self.writes[id as usize].begun
    }

    /// First cell and number of cells of a write.
    #[cfg(test)]
    pub fn extent(&self, id: WriteId) -> (u64, u64) {
        let w = &self.writes[id as usize];
        (w.first, w.cells)
    }

    /// The write is acknowledged.
    pub fn ack(&mut self, now: u64, id: WriteId) -> Result<(), String> {
        let w = &mut self.writes[id as usize];
        w.acked = Some(now);
        w.end = w.end.min(now);
        let (begun, first, cells) = (w.begun, w.first, w.cells);
        if w.refuted {
            return Err(format!(
                "G2: write {id} of epoch {} is acknowledged although a read showed that it never happened",
                w.epoch
            ));
        }
        let writes = &self.writes;
        for cell in &mut self.cells[first as usize..(first + cells) as usize] {
            cell.acked = cell.acked.max(begun);
            cell.remove(now, |u| writes[u as usize].end < begun);
        }
        Ok(())
    }

    /// The write failed, or its application is gone: it may or may not have happened, but will not from now on.
    pub fn forget(&mut self, now: u64, id: WriteId) {
        let w = &mut self.writes[id as usize];
        w.end = w.end.min(now);
    }

    /// A newer epoch's device opened: nothing of an older epoch can come into effect any more.
    pub fn opened(&mut self, now: u64, epoch: u64) {
        for w in self
            .writes
            .iter_mut()
            .rev()
            .filter(|w| w.end == OPEN && w.epoch < epoch)
        {
            w.end = now;
        }
    }

    /// A read that was asked for at `begun` returned `bytes` from cell `first` on.
    pub fn read(&mut self, now: u64, begun: u64, first: u64, bytes: &[u8]) -> Result<(), String> {
        for (at, bytes) in (first..).zip(bytes.chunks(CELL_BYTES as usize)) {
            self.read_cell(now, begun, at, bytes)?;
        }
        Ok(())
    }

    fn read_cell(&mut self, now: u64, begun: u64, at: u64, bytes: &[u8]) -> Result<(), String> {
        let got = content(bytes, at);
        let matches = |writes: &[Write], u: WriteId| match got {
            Content::Zero => writes[u as usize].zero,
            Content::Of(id) => u == id,
            Content::Garbage => false,
        };
        let writes = &self.writes;
        let cell = &self.cells[at as usize];
        let live = cell.candidates.iter().any(|&u| matches(writes, u));
        if !live
            && !cell
                .removed
                .iter()
                .any(|&(u, when)| when >= begun && matches(writes, u))
        {
            return Err(format!(
                "G1/G6: read of cell {at} returned {}; possible were {}",
                self.describe(got),
                cell.candidates
                    .iter()
                    .map(|&u| self.describe_write(u))
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        if !live {
            return Ok(());
        }
        // Pin. What had ended before the read began, and is not what was read, is over.
        let seen_acked = match got {
            Content::Of(id) => writes[id as usize].acked,
            Content::Zero | Content::Garbage => None,
        };
        let mut refuted = Vec::new();
        let cell = &mut self.cells[at as usize];
        cell.remove(now, |u| {
            let gone = !matches(writes, u) && writes[u as usize].end < begun;
            if gone && seen_acked.is_some_and(|acked| acked < writes[u as usize].begun) {
                refuted.push(u);
            }
            gone
        });
        for u in refuted {
            if self.writes[u as usize].acked.is_none() {
                self.writes[u as usize].refuted = true;
            }
        }
        Ok(())
    }

    /// What makes these bytes of cell `at` stale with regard to a write (or flush) begun at `floor`.
    fn stale(&self, at: u64, bytes: &[u8], floor: u64) -> Option<String> {
        let got = content(bytes, at);
        let fresh = match got {
            Content::Garbage => false,
            Content::Of(id) => self
                .writes
                .get(id as usize)
                .is_some_and(|w| w.end >= floor && w.first <= at && at < w.first + w.cells),
            Content::Zero => {
                let cell = &self.cells[at as usize];
                let all = cell
                    .candidates
                    .iter()
                    .copied()
                    .chain(cell.removed.iter().map(|&(u, _)| u));
                all.into_iter()
                    .any(|u| self.writes[u as usize].zero && self.writes[u as usize].end >= floor)
            }
        };
        (!fresh).then(|| self.describe(got))
    }

    /// Does a replica's `image` hold this acknowledged write, or something newer, in all its cells?
    pub fn holds(&self, id: WriteId, image: &[u8]) -> Result<(), String> {
        let w = &self.writes[id as usize];
        for at in w.first..w.first + w.cells {
            if let Some(stale) = self.stale(at, cell_of(image, at), w.begun) {
                return Err(format!(
                    "{} is acknowledged, but cell {at} holds {stale}",
                    self.describe_write(id)
                ));
            }
        }
        Ok(())
    }

    /// Per cell, the latest beginning of a write acknowledged by now: what a flush asked for now must make stable.
    pub fn flush_begins(&self) -> Vec<u64> {
        self.cells.iter().map(|c| c.acked).collect()
    }

    /// Does the `stable` image hold what this flush covers?
    pub fn holds_flushed(&self, covered: &[u64], stable: &[u8]) -> Result<(), String> {
        for (at, &floor) in covered.iter().enumerate() {
            if let Some(stale) = self.stale(at as u64, cell_of(stable, at as u64), floor) {
                return Err(format!(
                    "writes begun by {floor} are flushed, but cell {at} holds {stale} on stable storage"
                ));
            }
        }
        Ok(())
    }

    /// May a replica with these images become a member? It must hold all that is acknowledged, and on stable storage
    /// all that is flushed.
    pub fn holds_all(&self, cached: &[u8], stable: &[u8]) -> Result<(), String> {
        for (at, cell) in (0..).zip(&self.cells) {
            if let Some(stale) = self.stale(at, cell_of(cached, at), cell.acked) {
                return Err(format!(
                    "writes begun by {} are acknowledged, but cell {at} holds {stale}",
                    cell.acked
                ));
            }
            if let Some(stale) = self.stale(at, cell_of(stable, at), cell.stable) {
                return Err(format!(
                    "writes begun by {} are flushed, but cell {at} holds {stale} on stable storage",
                    cell.stable
                ));
            }
        }
        Ok(())
    }

    /// Is what is `held` in these cells nowhere older than what `data` brought there?
    pub fn not_older(&self, first: u64, held: &[u8], data: &[u8]) -> Result<(), String> {
        let pairs = held
            .chunks(CELL_BYTES as usize)
            .zip(data.chunks(CELL_BYTES as usize));
        for (at, (held, data)) in (first..)
            .zip(pairs)
            .filter(|(_, (held, data))| held != data)
        {
            if let Content::Of(id) = content(data, at)
                && let Some(w) = self.writes.get(id as usize)
                && let Some(stale) = self.stale(at, held, w.begun)
            {
                return Err(format!(
                    "holds {stale} in cell {at}, not {}",
                    self.describe_write(id)
                ));
            }
        }
        Ok(())
    }

    /// Do these cells hold everything that is acknowledged there?
    pub fn holds_acknowledged(&self, first: u64, bytes: &[u8]) -> Result<(), String> {
        for (at, bytes) in (first..).zip(bytes.chunks(CELL_BYTES as usize)) {
            let floor = self.cells[at as usize].acked;
            if let Some(stale) = self.stale(at, bytes, floor) {
                return Err(format!(
                    "writes begun by {floor} are acknowledged, and cell {at} has {stale}"
                ));
            }
        }
        Ok(())
    }

    /// Does `bytes` replace, in any cell, something newer that matters: a write at or below the last acknowledged one?
    pub fn replaces_newer(&self, first: u64, bytes: &[u8], held: &[u8]) -> Result<(), String> {
        let pairs = bytes
            .chunks(CELL_BYTES as usize)
            .zip(held.chunks(CELL_BYTES as usize));
        for (at, (new, old)) in (first..).zip(pairs).filter(|(_, (new, old))| new != old) {
            let Content::Of(id) = content(old, at) else {
                continue;
            };
            let Some(w) = self.writes.get(id as usize) else {
                continue;
            };
            let cell = &self.cells[at as usize];
            let lost = cell
                .lost
                .is_some_and(|(from, to)| from < w.begun && w.begun <= to);
            let matters = w.acked.is_some() && w.begun <= cell.acked && !lost;
            if let Some(stale) = self.stale(at, new, w.begun).filter(|_| matters) {
                return Err(format!(
                    "{stale} replaces the newer {} in cell {at}",
                    self.describe_write(id)
                ));
            }
        }
        Ok(())
    }

    /// The flush is acknowledged.
    pub fn flushed(&mut self, covered: &[u64]) {
        for (cell, &floor) in self.cells.iter_mut().zip(covered) {
            cell.stable = cell.stable.max(floor);
        }
    }

    /// A write with FUA is acknowledged.
    pub fn stable(&mut self, id: WriteId) {
        let w = &self.writes[id as usize];
        let begun = w.begun;
        for cell in &mut self.cells[w.first as usize..(w.first + w.cells) as usize] {
            cell.stable = cell.stable.max(begun);
        }
    }

    /// Every member lost its cache: what no flush made stable may be gone.
    pub fn rollback(&mut self) {
        let writes = &self.writes;
        for cell in &mut self.cells {
            let stable = cell.stable;
            let candidates = &mut cell.candidates;
            cell.removed.retain(|&(u, _)| {
                let back = writes[u as usize].end >= stable;
                if back {
                    candidates.push(u);
                }
                !back
            });
            if cell.acked > stable {
                let from = cell.lost.map_or(stable, |(from, _)| from.min(stable));
                cell.lost = Some((from, cell.acked));
            }
            // What is lost asks nothing of later flushes.
            cell.acked = stable;
        }
    }

    /// Is every cell of the image a candidate? For the end of a run.
    pub fn check_image(&mut self, now: u64, image: &[u8]) -> Result<(), String> {
        let end = self.cells.len() * CELL_BYTES as usize;
        self.read(now, now, 0, &image[..end])
    }

    fn describe(&self, content: Content) -> String {
        match content {
            Content::Zero => "zeroes".into(),
            Content::Garbage => "garbage".into(),
            Content::Of(id) if (id as usize) < self.writes.len() => self.describe_write(id),
            Content::Of(id) => format!("write {id}, which was never issued"),
        }
    }

    fn describe_write(&self, id: WriteId) -> String {
        let w = &self.writes[id as usize];
        let state = match (w.acked, w.end) {
            (Some(at), _) => format!("acked {at}"),
            (None, OPEN) => "open".into(),
            (None, end) => format!("in doubt, ended {end}"),
        };
        let kind = if w.zero { "zero" } else { "write" };
        format!(
            "{kind} {id} (epoch {}, begun {}, {state})",
            w.epoch, w.begun
        )
    }
}

fn cell_of(image: &[u8], at: u64) -> &[u8] {
    let from = (at * CELL_BYTES) as usize;
    &image[from..from + CELL_BYTES as usize]
}

impl Cell {
    fn remove(&mut self, now: u64, mut gone: impl FnMut(WriteId) -> bool) {
        let removed = &mut self.removed;
        self.candidates.retain(|&u| {
            let gone = gone(u);
            if gone {
                removed.push((u, now));
            }
            !gone
        });
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
