//! Where records rest: a file, or a volume behind its NBD socket.

use anyhow::{Context, ensure};
use holdfast_blockdev::frontend::nbd::client::{Client, ClientOptions};
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that can be read, and written durably.
pub(super) trait Medium: Debug + Send {
    /// Bytes it holds at the most.
    fn capacity(&self) -> u64;
    /// Reads `len` bytes; what was never written reads as zeroes.
    fn read(&mut self, offset: u64, len: usize) -> anyhow::Result<Vec<u8>>;
    /// Writes, and returns once the bytes are durable.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> anyhow::Result<()>;
    /// Everything read so far is durable when this returns.
    fn sync(&mut self) -> anyhow::Result<()>;
}

/// A file that grows.
#[derive(Debug)]
pub(super) struct FileMedium(File);

impl FileMedium {
    /// Opens `path`, or creates it, durably.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let say = || format!("the log {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(say)?;
        file.sync_all().with_context(say)?;
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(folder)
                .and_then(|f| f.sync_all())
                .with_context(say)?;
        }
        Ok(Self(file))
    }
}

impl Medium for FileMedium {
    fn capacity(&self) -> u64 {
        // What a file offset can say; a full disk is an error of the write.
        i64::MAX as u64
    }

    fn read(&mut self, offset: u64, len: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match self.0.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("reading the log"),
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.0
            .write_all_at(bytes, offset)
            .context("writing the log")?;
        self.sync()
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        self.0.sync_data().context("making the log durable")
    }
}

/// A volume.
#[derive(Debug)]
pub(super) struct NbdMedium(Client);

impl NbdMedium {
    /// Connects to the first export behind `socket`.
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let client = Client::connect_unix(socket, &ClientOptions::default())
            .with_context(|| format!("the volume behind {}", socket.display()))?;
        Ok(Self(client))
    }
}

impl Medium for NbdMedium {
    fn capacity(&self) -> u64 {
        self.0.size()
    }

    fn read(&mut self, offset: u64, len: usize) -> anyhow::Result<Vec<u8>> {
        let readable = usize::try_from(self.0.size().saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(len);
        let mut bytes = Vec::new();
        if readable > 0 {
            bytes = self
                .0
                .read_at(offset, u32::try_from(readable)?)
                .context("reading the volume")?;
            ensure!(
                bytes.len() == readable,
                "the volume answered a read of {readable} bytes with {}",
                bytes.len()
            );
        }
        bytes.resize(len, 0);
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.0
            .write_at(offset, bytes, true)
            .context("writing the volume")
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        self.0.flush().context("flushing the volume")
    }
}
