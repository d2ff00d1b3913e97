//! Files with the blocks of a line of history that was given up: written before anything is lost, read back at will.
//!
//! A header of [`HEADER_BYTES`] that says whose blocks these are, then records: a head with the first block, the number
//! of blocks and a checksum, and the blocks (none for zeroes); at the end a record that counts them all. Numbers are
//! little-endian.
//!
//! Invariants
//! - a file under its name is whole and durable: it is written under another one first, and removed on any error;
//! - reading checks every checksum before a byte is believed or written anywhere.

use holdfast_replicator::Save;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Directory in the state directory.
pub const SAVED_DIR: &str = "saved";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 512;
/// Blocks of a record at the most.
const RECORD_BLOCKS_MAX: u64 = 256;
const MAGIC: [u8; 8] = *b"HFSAVED1";
const RECORD_BYTES: usize = 24;
const NAME_BYTES_MAX: usize = 200;
const ZEROES: u32 = 0;
const DATA: u32 = 1;
const END: u32 = 2;

/// Whose blocks they are.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Header {
    /// `resource/volume`.
    pub name: String,
    /// The volume's identity.
    pub volume: u64,
    /// The node they were on.
    pub node: u8,
    /// Bytes per block.
    pub block_bytes: u32,
    /// Blocks of the volume.
    pub blocks: u64,
    /// The line of history that was given up.
    pub lost: u64,
    /// The one that was kept.
    pub keep: u64,
    /// Last epoch of the lost line there.
    pub epoch: u64,
}

/// What a whole file holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Whose.
    pub header: Header,
    /// Blocks in all.
    pub saved_blocks: u64,
    /// Of them zeroes, which take no room.
    pub zero_blocks: u64,
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Header {
    fn encode(&self) -> io::Result<[u8; HEADER_BYTES]> {
        let name = self.name.as_bytes();
        if name.len() > NAME_BYTES_MAX {
            return Err(bad("the volume's name is too long"));
        }
        let mut b = [0; HEADER_BYTES];
        b[..8].copy_from_slice(&MAGIC);
        b[8] = self.node;
        b[9] = name.len() as u8;
        b[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        let numbers = [self.volume, self.blocks, self.lost, self.keep, self.epoch];
        for (at, number) in b[16..56].chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        b[56..56 + name.len()].copy_from_slice(name);
        let crc = crc32fast::hash(&b[..HEADER_BYTES - 4]);
        b[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        Ok(b)
    }

    fn decode(b: &[u8; HEADER_BYTES]) -> io::Result<Self> {
        if b[..8] != MAGIC {
            return Err(bad("this is no file of saved blocks"));
        }
        if crc32fast::hash(&b[..HEADER_BYTES - 4]).to_le_bytes() != b[HEADER_BYTES - 4..] {
            return Err(bad("its header is damaged"));
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| b[at + i]));
        let block_bytes = u32::from_le_bytes(std::array::from_fn(|i| b[12 + i]));
        let name = b.get(56..56 + usize::from(b[9])).unwrap_or_default();
        if !(512..=1 << 20).contains(&block_bytes) || usize::from(b[9]) > NAME_BYTES_MAX {
            return Err(bad("its header names an impossible size"));
        }
        Ok(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            volume: number(16),
            node: b[8],
            block_bytes,
            blocks: number(24),
            lost: number(32),
            keep: number(40),
            epoch: number(48),
        })
    }
}

fn record(first: u64, count: u32, kind: u32, data: &[u8]) -> [u8; RECORD_BYTES] {
    let mut b = [0; RECORD_BYTES];
    b[..8].copy_from_slice(&first.to_le_bytes());
    b[8..12].copy_from_slice(&count.to_le_bytes());
    b[12..16].copy_from_slice(&kind.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&b[..16]);
    crc.update(data);
    b[16..20].copy_from_slice(&crc.finalize().to_le_bytes());
    b
}

/// Writes the blocks of `save`, read from the volume's data in `from`.
fn write(out: &mut impl Write, header: &Header, save: &Save, from: &File) -> io::Result<u64> {
    out.write_all(&header.encode()?)?;
    let block = u64::from(header.block_bytes);
    let mut total = 0;
    for piece in save.ranges.iter().flat_map(|r| r.pieces(RECORD_BLOCKS_MAX)) {
        let mut data = vec![0; (piece.count * block) as usize];
        from.read_exact_at(&mut data, piece.first * block)?;
        let zero = data.iter().all(|&b| b == 0);
        if zero {
            data.clear();
        }
        let kind = if zero { ZEROES } else { DATA };
        out.write_all(&record(piece.first, piece.count as u32, kind, &data))?;
        out.write_all(&data)?;
        total += piece.count;
    }
    out.write_all(&record(total, 0, END, &[]))?;
    out.flush()?;
    Ok(total)
}

/// Saves blocks to a new file in `dir`; its path and what it holds, in words. On an error there is no file.
pub fn save(dir: &Path, header: &Header, save: &Save, backing: &Path) -> Result<String, String> {
    let stem = header.name.replace('/', "-");
    let path = dir.join(format!(
        "{stem}-line-{:016x}-epoch-{}.hfsaved",
        header.lost, header.epoch
    ));
    let part = path.with_extension("part");
    let attempt = || {
        std::fs::create_dir_all(dir)?;
        let from = File::open(backing)?;
        let mut out = BufWriter::new(File::create(&part)?);
        let blocks = write(&mut out, header, save, &from)?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        std::fs::rename(&part, &path)?;
        File::open(dir)?.sync_all()?;
        Ok(blocks)
    };
    match attempt() {
        Ok(blocks) => Ok(format!("{blocks} blocks are saved in {}", path.display())),
        Err(e) => {
            let e: io::Error = e;
            let _ = std::fs::remove_file(&part);
            Err(format!(
                "cannot save what would be lost in {}: {e}; nothing was changed",
                path.display()
            ))
        }
    }
}

/// Reads a whole file and hands each run of blocks to `each`: first block, number, data or zeroes.
fn read(
    path: &Path,
    mut each: impl FnMut(u64, u64, Option<&[u8]>) -> io::Result<()>,
) -> io::Result<Summary> {
    let mut from = BufReader::new(File::open(path)?);
    let mut b = [0; HEADER_BYTES];
    from.read_exact(&mut b)
        .map_err(|_| bad("this is no file of saved blocks"))?;
    let header = Header::decode(&b)?;
    let (mut saved_blocks, mut zero_blocks) = (0, 0);
    loop {
        let mut head = [0; RECORD_BYTES];
        from.read_exact(&mut head)
            .map_err(|_| bad("it ends too early"))?;
        let first = u64::from_le_bytes(std::array::from_fn(|i| head[i]));
        let count = u32::from_le_bytes(std::array::from_fn(|i| head[8 + i]));
        let kind = u32::from_le_bytes(std::array::from_fn(|i| head[12 + i]));
        let count = u64::from(count);
        if kind > END || count > RECORD_BLOCKS_MAX {
            return Err(bad("a record is damaged"));
        }
        let bytes = if kind == DATA {
            count * u64::from(header.block_bytes)
        } else {
            0
        };
        let mut data = vec![0; bytes as usize];
        from.read_exact(&mut data)
            .map_err(|_| bad("it ends too early"))?;
        if record(first, count as u32, kind, &data) != head {
            return Err(bad(format!("the record of block {first} is damaged")));
        }
        if kind == END {
            if first != saved_blocks {
                return Err(bad("records are missing"));
            }
            return Ok(Summary {
                header,
                saved_blocks,
                zero_blocks,
            });
        }
        if first
            .checked_add(count)
            .is_none_or(|end| end > header.blocks)
        {
            return Err(bad("a record lies outside the volume"));
        }
        saved_blocks += count;
        if kind == ZEROES {
            zero_blocks += count;
        }
        each(first, count, (kind == DATA).then_some(&data[..]))?;
    }
}

/// What a file holds; every checksum is checked.
pub fn show(path: &Path) -> io::Result<Summary> {
    read(path, |_, _, _| Ok(()))
}

/// Lays the saved blocks over `image`, a copy of the volume as it was kept: it reads as the lost line then. Nothing is
/// written before the whole file is known to be good.
pub fn extract(path: &Path, image: &Path) -> io::Result<Summary> {
    let header = show(path)?.header;
    let to = File::options().write(true).open(image)?;
    let block = u64::from(header.block_bytes);
    let summary = read(path, |first, count, data| match data {
        Some(data) => to.write_all_at(data, first * block),
        None => to.write_all_at(&vec![0; (count * block) as usize], first * block),
    })?;
    to.sync_all()?;
    Ok(summary)
}

/// The files in a directory, by name.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "hfsaved") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{BlockRange, Epoch};

    fn header() -> Header {
        Header {
            name: "data/main".into(),
            volume: 7,
            node: 1,
            block_bytes: 512,
            blocks: 1000,
            lost: 2,
            keep: 3,
            epoch: 4,
        }
    }

    fn job() -> Save {
        Save {
            save: 1,
            ranges: vec![BlockRange::new(3, 2), BlockRange::new(500, 400)],
            lost: 2,
            keep: 3,
            epoch: Epoch(4),
        }
    }

    fn image(fill: u8) -> Vec<u8> {
        vec![fill; 1000 * 512]
    }

    #[test]
    fn what_is_saved_laid_over_the_kept_copy_is_the_lost_one() {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("backing");
        let mut lost = image(1);
        lost[3 * 512..5 * 512].fill(9);
        lost[500 * 512..800 * 512].fill(0);
        std::fs::write(&backing, &lost).unwrap();
        let saved = dir.path().join(SAVED_DIR);
        let text = save(&saved, &header(), &job(), &backing).unwrap();
        assert!(text.starts_with("402 blocks"), "{text}");
        let files = list(&saved).unwrap();
        let [file] = &files[..] else {
            panic!("{files:?}")
        };
        let summary = show(file).unwrap();
        assert_eq!(summary.header, header());
        assert_eq!((summary.saved_blocks, summary.zero_blocks), (402, 256));
        let kept = dir.path().join("kept");
        let mut other = image(1);
        other[3 * 512..4 * 512].fill(5);
        other[600 * 512..900 * 512].fill(6);
        std::fs::write(&kept, &other).unwrap();
        extract(file, &kept).unwrap();
        assert!(std::fs::read(&kept).unwrap() == lost);
    }

    #[test]
    fn no_byte_of_a_file_may_change_or_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("backing");
        std::fs::write(&backing, image(1)).unwrap();
        let mut small = job();
        small.ranges = vec![BlockRange::new(3, 2)];
        save(dir.path(), &header(), &small, &backing).unwrap();
        let file = list(dir.path()).unwrap().remove(0);
        let good = std::fs::read(&file).unwrap();
        let kept = dir.path().join("kept");
        std::fs::write(&kept, image(2)).unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&file, &bad).unwrap();
            assert!(extract(&file, &kept).is_err(), "byte {at}");
            std::fs::write(&file, &good[..at]).unwrap();
            assert!(extract(&file, &kept).is_err(), "cut at {at}");
        }
        assert!(
            std::fs::read(&kept).unwrap() == image(2),
            "nothing was written"
        );
    }

    #[test]
    fn a_full_disk_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("backing");
        std::fs::write(&backing, image(1)).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let from = File::open(&backing).unwrap();
        let error = write(&mut &full, &header(), &job(), &from).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        std::fs::write(dir.path().join("taken"), "").unwrap();
        let error = save(&dir.path().join("taken"), &header(), &job(), &backing).unwrap_err();
        assert!(error.contains("nothing was changed"), "{error}");
    }
}
