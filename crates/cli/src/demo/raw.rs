//! Writers on the bare volume: through its block device where there is one, else through its NBD socket, on whichever
//! node serves it. Each has blocks of its own, and knows of each block what it was told and what it has seen.
//!
//! Invariants
//! - a block holds what was last acknowledged, or one of the writes tried since then and never answered;
//! - what was once read of a block stays, until a newer write: a reader never sees time go back.

use super::cluster::{RAW, RAW_BYTES, RESOURCE};
use super::workload::Writer;
use crate::client::Client as Api;
use anyhow::{Context, bail, ensure};
use holdfast_blockdev::frontend::nbd::client::{Client, ClientOptions};
use holdfast_node::api_types::Phase;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes of a block.
const BLOCK_BYTES: usize = 4096;
/// Blocks of one writer.
const BLOCKS: u64 = 512;
/// Most blocks of one write.
const RUN_BLOCKS_MAX: u64 = 16;
/// How long one answer may take, before the writer connects anew.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
/// How long a node may take to say what it serves.
const ASK_TIME_MAX: Duration = Duration::from_millis(500);
/// Between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Where the volume may be found.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The API sockets of the data nodes.
    pub(super) nodes: Vec<PathBuf>,
    /// It is a block device.
    pub(super) device: bool,
}

/// The volume, open.
#[derive(Debug)]
enum Volume {
    Nbd(Client),
    Device(File),
}

/// Memory that O_DIRECT takes.
#[repr(C, align(4096))]
struct Aligned([u8; BLOCK_BYTES * RUN_BLOCKS_MAX as usize]);

impl Volume {
    /// Opens it on the node that serves it now.
    fn open(places: &Places) -> anyhow::Result<Self> {
        for node in &places.nodes {
            let Ok(status) = Api::at(node.clone()).within(ASK_TIME_MAX).status() else {
                continue;
            };
            let resource = status.resources.into_iter().find(|r| r.name == RESOURCE);
            let Some(resource) = resource.filter(|r| r.here == Some(Phase::Primary)) else {
                continue;
            };
            let volume = resource.volumes.into_iter().find(|v| v.name == RAW);
            let kind = if places.device { "loop" } else { "nbd-unix" };
            let way = volume
                .into_iter()
                .flat_map(|v| v.frontends)
                .find(|way| way.kind == kind)
                .with_context(|| format!("the volume {RAW} has no {kind}"))?;
            if places.device {
                return Self::open_device(way.path);
            }
            let options = ClientOptions {
                timeout: Some(ANSWER_TIME_MAX),
                ..ClientOptions::default()
            };
            return Ok(Self::Nbd(Client::connect_unix(&way.path, &options)?));
        }
        bail!("no node serves the volume {RAW}")
    }

    fn open_device(path: PathBuf) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_DIRECT | nix::libc::O_DSYNC)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        // The device's number may be another volume's by now; while it is open it stays what it is.
        let size = file.seek(SeekFrom::End(0))?;
        ensure!(
            size == RAW_BYTES,
            "{} has {size} bytes: it is another volume's",
            path.display()
        );
        Ok(Self::Device(file))
    }

    fn write(&mut self, first: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let offset = first * BLOCK_BYTES as u64;
        match self {
            Self::Nbd(client) => Ok(client.write_at(offset, bytes, true)?),
            Self::Device(file) => {
                let mut buffer = Box::new(Aligned([0; BLOCK_BYTES * RUN_BLOCKS_MAX as usize]));
                let buffer = &mut buffer.0[..bytes.len()];
                buffer.copy_from_slice(bytes);
                Ok(file.write_all_at(buffer, offset)?)
            }
        }
    }

    fn read(&mut self, first: u64, blocks: u64) -> anyhow::Result<Vec<u8>> {
        let (offset, len) = (first * BLOCK_BYTES as u64, blocks as usize * BLOCK_BYTES);
        match self {
            Self::Nbd(client) => Ok(client.read_at(offset, u32::try_from(len)?)?),
            Self::Device(file) => {
                let mut buffer = Box::new(Aligned([0; BLOCK_BYTES * RUN_BLOCKS_MAX as usize]));
                let buffer = &mut buffer.0[..len];
                file.read_exact_at(buffer, offset)?;
                Ok(buffer.to_vec())
            }
        }
    }
}

/// What is known of a block. Zero: never written.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The newest write that was acknowledged, or seen by a read.
    is: u64,
    /// Later ones that were tried and not answered.
    maybe: Vec<u64>,
}

/// A writer.
#[derive(Debug)]
pub(super) struct RawWriter {
    places: Places,
    volume: Option<Volume>,
    first: u64,
    blocks: Vec<Known>,
    sequence: u64,
    random: u64,
    acknowledged: u64,
    /// Blocks found with something they must not hold.
    wrong: Option<String>,
}

impl RawWriter {
    /// How many find room beside one another.
    pub(super) const MOST: u64 = RAW_BYTES / BLOCK_BYTES as u64 / BLOCKS;

    /// The writer with this number; nothing is opened yet.
    pub(super) fn new(places: Places, number: u64) -> Self {
        assert!(number < Self::MOST, "there is no room for writer {number}");
        Self {
            places,
            volume: None,
            first: number * BLOCKS,
            blocks: vec![Known::default(); BLOCKS as usize],
            sequence: 0,
            random: holdfast_node::clock::random_u64() | 1,
            acknowledged: 0,
            wrong: None,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    /// Reads some of its blocks and holds them to what is known.
    fn look(&mut self, at: u64, count: u64) -> anyhow::Result<()> {
        let volume = match &mut self.volume {
            Some(volume) => volume,
            empty => empty.insert(Volume::open(&self.places)?),
        };
        let bytes = match volume.read(self.first + at, count) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.volume = None;
                return Err(error);
            }
        };
        for (i, found) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let block = self.first + at + i as u64;
            let known = &mut self.blocks[at as usize + i];
            let number = u64::from_le_bytes(found[..8].try_into().unwrap_or_default());
            let whole = found == pattern(block, number);
            if whole && number == known.is {
                continue;
            }
            if whole && known.maybe.contains(&number) {
                known.is = number;
                known.maybe.retain(|m| *m > number);
                continue;
            }
            let told = if whole { "" } else { ", and not all of it" };
            self.wrong.get_or_insert(format!(
                "block {block} of {RAW} holds write {number}{told}; it must hold {} or one of {:?}",
                known.is, known.maybe
            ));
        }
        Ok(())
    }

    fn try_write(&mut self, at: u64, count: u64) -> anyhow::Result<()> {
        let volume = match &mut self.volume {
            Some(volume) => volume,
            empty => empty.insert(Volume::open(&self.places)?),
        };
        self.sequence += 1;
        let sequence = self.sequence;
        let bytes: Vec<u8> = (at..at + count)
            .flat_map(|b| pattern(self.first + b, sequence))
            .collect();
        let written = volume.write(self.first + at, &bytes);
        for known in &mut self.blocks[at as usize..(at + count) as usize] {
            match &written {
                Ok(()) => {
                    *known = Known {
                        is: sequence,
                        maybe: Vec::new(),
                    }
                }
                Err(_) => known.maybe.push(sequence),
            }
        }
        if let Err(error) = written {
            self.volume = None;
            return Err(error);
        }
        self.acknowledged += 1;
        Ok(())
    }

    fn insist(
        &mut self,
        deadline: Instant,
        mut what: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while let Err(error) = what(self) {
            if Instant::now() >= deadline {
                return Err(error).context("the bare volume does not answer");
            }
            std::thread::sleep(RETRY_PAUSE);
        }
        Ok(())
    }
}

impl Writer for RawWriter {
    fn write(&mut self, deadline: Instant) -> anyhow::Result<()> {
        let count = 1 + self.random(RUN_BLOCKS_MAX);
        let at = self.random(BLOCKS - count + 1);
        // After a failed write its blocks are looked at, wherever they are served now: from then on they must stay.
        self.insist(deadline, |this| {
            if this.blocks[at as usize..(at + count) as usize]
                .iter()
                .any(|k| !k.maybe.is_empty())
            {
                this.look(at, count)?;
            }
            this.try_write(at, count)
        })?;
        if self.random(4) == 0 {
            let count = 1 + self.random(RUN_BLOCKS_MAX);
            let at = self.random(BLOCKS - count + 1);
            self.insist(deadline, |this| this.look(at, count))?;
        }
        match &self.wrong {
            None => Ok(()),
            Some(wrong) => bail!("{wrong}"),
        }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    fn lost(&mut self, deadline: Instant) -> anyhow::Result<u64> {
        let before = self.wrong.take();
        let mut lost = 0;
        for block in 0..BLOCKS {
            self.insist(deadline, |this| this.look(block, 1))?;
            lost += u64::from(self.wrong.take().is_some());
        }
        self.wrong = before;
        Ok(lost)
    }

    fn check(&mut self, _deadline: Instant) -> anyhow::Result<Option<String>> {
        Ok(self.wrong.clone())
    }
}

/// Different in every block and for every write; the write's number comes first. Never written: zeroes.
fn pattern(block: u64, sequence: u64) -> Vec<u8> {
    if sequence == 0 {
        return vec![0; BLOCK_BYTES];
    }
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    let mut state = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sequence.rotate_left(40) | 1;
    while bytes.len() < BLOCK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// A writer on a plain file.
    fn writer(file: &File) -> RawWriter {
        let places = Places {
            nodes: Vec::new(),
            device: true,
        };
        let mut writer = RawWriter::new(places, 0);
        writer.volume = Some(Volume::Device(file.try_clone().expect("file")));
        writer
    }

    #[test]
    fn a_lost_write_and_a_torn_block_are_noticed() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(RAW_BYTES).expect("length");
        let mut writer = writer(&file);
        writer.try_write(3, 4).expect("written");
        let before = pattern(writer.first + 3, 1);
        writer.try_write(3, 1).expect("written");
        let soon = Instant::now() + Duration::from_secs(1);
        assert_eq!(writer.lost(soon).expect("read"), 0);
        // The last write of block 3 is gone.
        file.write_all_at(&before, 3 * BLOCK_BYTES as u64)
            .expect("write");
        assert_eq!(writer.lost(soon).expect("read"), 1);
        // Half of block 4 as well.
        let half = vec![0; BLOCK_BYTES / 2];
        file.write_all_at(&half, 4 * BLOCK_BYTES as u64 + BLOCK_BYTES as u64 / 2)
            .expect("write");
        assert_eq!(writer.lost(soon).expect("read"), 2);
    }

    #[test]
    fn an_unanswered_write_may_be_there_or_not_but_once_seen_it_stays() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(RAW_BYTES).expect("length");
        let mut writer = writer(&file);
        writer.try_write(0, 1).expect("written");
        writer.blocks[0].maybe.push(2);
        writer.look(0, 1).expect("read");
        assert!(writer.wrong.is_none());
        let old = pattern(0, 1);
        file.write_all_at(&pattern(0, 2), 0).expect("write");
        writer.look(0, 1).expect("read");
        assert!(writer.wrong.is_none());
        file.write_all_at(&old, 0).expect("write");
        writer.look(0, 1).expect("read");
        assert!(writer.wrong.is_some(), "time went back");
    }

    #[test]
    fn a_device_of_another_size_is_not_touched() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(&[0; BLOCK_BYTES]).expect("write");
        assert!(Volume::open_device(file.path().into()).is_err());
    }
}
