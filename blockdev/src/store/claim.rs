//! Getting hold of a backing file or device, for one process at a time.
//!
//! The claim is on the very file description that does the I/O (flock on a file, O_EXCL on a block
//! device), and the kernel keeps that description alive while an operation of a dead process is
//! still on its way. So whoever gets the claim knows that no write of an earlier run can land any
//! more (rule 19).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_uring::BufPool;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::{BLOCK_BYTES, OpenError};

/// How often a claim held by another process is tried again.
const CLAIM_RETRY: Duration = Duration::from_millis(10);
/// Mode of a new backing file: nobody else's business.
const FILE_MODE: u32 = 0o600;

/// A file or device that is ours.
pub(super) struct Claimed {
    pub(super) file: File,
    /// Whole blocks.
    pub(super) size: u64,
    pub(super) direct: bool,
    pub(super) note: Option<String>,
}

/// What [`create_file`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its size in bytes.
    pub bytes: u64,
    /// Every byte reads as zero: a full sync of blank replicas is not needed.
    pub all_zero: bool,
}

fn os(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Os {
        what,
        path: path.to_path_buf(),
        source,
    }
}

/// Creates a sparse file of `size` bytes and makes it and its name durable.
///
/// # Errors
/// It is there already, the size is not whole blocks, or the filesystem refuses; then no file is left behind.
pub fn create_file(path: &Path, size: u64) -> Result<Created, OpenError> {
    if size == 0 || !size.is_multiple_of(BLOCK_BYTES) {
        return Err(OpenError::Size {
            path: path.to_path_buf(),
            bytes: size,
        });
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => OpenError::Exists {
                path: path.to_path_buf(),
            },
            _ => os("create", path)(source),
        })?;
    let filled = file
        .set_len(size)
        .and_then(|()| file.sync_all())
        .map_err(os("set the size of", path));
    let named = filled.and_then(|()| sync_parent(path));
    if let Err(error) = named {
        // Ours a moment ago and of no use; the first error is the one to tell.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(Created {
        bytes: size,
        all_zero: true,
    })
}

fn sync_parent(path: &Path) -> Result<(), OpenError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(os("sync the directory", parent))
}

/// Opens and claims `path`, waiting up to `wait` for the process that has it.
pub(super) fn claim(path: &Path, wait: Duration, pool: &BufPool) -> Result<Claimed, OpenError> {
    let started = Instant::now();
    loop {
        let kind = fs::metadata(path).map_err(os("open", path))?.file_type();
        let got = if kind.is_file() {
            claim_file(path, pool)?
        } else if kind.is_block_device() {
            claim_device(path, pool)?
        } else {
            return Err(OpenError::Kind {
                path: path.to_path_buf(),
            });
        };
        if let Some(claimed) = got {
            if claimed.size == 0 {
                return Err(OpenError::TooSmall {
                    path: path.to_path_buf(),
                    bytes: 0,
                });
            }
            return Ok(claimed);
        }
        if started.elapsed() >= wait {
            return Err(OpenError::InUse {
                path: path.to_path_buf(),
                waited_ms: wait.as_millis() as u64,
            });
        }
        thread::sleep(CLAIM_RETRY.min(wait));
    }
}

/// `None`: somebody has it.
fn claim_file(path: &Path, pool: &BufPool) -> Result<Option<Claimed>, OpenError> {
    let (file, direct) = open_direct(path, 0, pool)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(os("lock", path)(source)),
    }
    // The name may have been given to another file between open and lock.
    let (ours, named) = (
        file.metadata().map_err(os("stat", path))?,
        fs::metadata(path).map_err(os("stat", path))?,
    );
    if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
        return Ok(None);
    }
    claimed(file, ours.len(), direct, path).map(Some)
}

/// `None`: somebody has it.
fn claim_device(path: &Path, pool: &BufPool) -> Result<Option<Claimed>, OpenError> {
    let (mut file, direct) = match open_direct(path, libc::O_EXCL, pool) {
        Ok(opened) => opened,
        Err(OpenError::Os { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let size = file
        .seek(SeekFrom::End(0))
        .map_err(os("find the size of", path))?;
    claimed(file, size, direct, path).map(Some)
}

fn claimed(file: File, bytes: u64, direct: bool, path: &Path) -> Result<Claimed, OpenError> {
    let size = bytes - bytes % BLOCK_BYTES;
    if size == 0 {
        return Err(OpenError::TooSmall {
            path: path.to_path_buf(),
            bytes,
        });
    }
    let in_memory = fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
    let note = if in_memory {
        Some(format!(
            "{} is on tmpfs, in memory: its content does not survive a restart of this machine",
            path.display()
        ))
    } else if !direct {
        Some(format!(
            "{} is used through the page cache: its filesystem refuses O_DIRECT",
            path.display()
        ))
    } else {
        None
    };
    Ok(Claimed {
        file,
        size,
        direct,
        note,
    })
}

/// Opens with O_DIRECT if that works in blocks of ours, else without.
fn open_direct(path: &Path, flags: i32, pool: &BufPool) -> Result<(File, bool), OpenError> {
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
    };
    match open(flags | libc::O_DIRECT) {
        Ok(file) => {
            // Some filesystems take the flag and refuse the I/O; some disks have larger sectors.
            let probed = match pool.get(BLOCK_BYTES as usize) {
                Ok(mut block) => file.read_at(&mut block, 0),
                Err(error) => Err(io::Error::other(error)),
            };
            match probed {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => drop(file),
                _ => return Ok((file, true)),
            }
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
        Err(error) => return Err(os("open", path)(error)),
    }
    open(flags)
        .map(|file| (file, false))
        .map_err(os("open", path))
}
