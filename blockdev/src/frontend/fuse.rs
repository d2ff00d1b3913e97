//! A volume as one regular file `volume` in a FUSE filesystem: the block path where the kernel has
//! neither ublk nor nbd. A loop device with direct I/O sits on top ([`super::loopdev`]).
//!
//! Invariants
//! - a request is answered only by the volume loop's answer: while the volume is held, it waits. The loop
//!   driver neither retries nor times out, so any error is final for the filesystem above;
//! - the FUSE thread only translates and submits; answers leave from the volume loop's thread, and
//!   writing them to the FUSE descriptor never blocks;
//! - nothing here, and nothing on the volume loop's thread, touches the mounted directory: that
//!   would wait for itself. [`FuseMount::unmount`] and dropping belong on another thread.

use super::port::{PortError, PortSender};
use super::{Op, PREFERRED_BLOCK_BYTES};
use bytes::Bytes;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};
use holdfast_uring::{AlignedBuf, BufPool};
use nix::mount::{MntFlags, umount2};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name of the file that is the volume.
pub const VOLUME_FILE: &str = "volume";
/// Requests the kernel may have under way in the background (all of the loop device's).
const BACKGROUND_REQUESTS_MAX: u16 = 256;
/// Largest single read or write in bytes; the kernel lowers it to its own limit.
const WRITE_BYTES_MAX: u32 = 16 << 20;
/// Bytes of write buffers kept between requests.
const BUFFERS_RETAINED_BYTES: usize = 16 << 20;
/// How long the kernel may remember names and attributes: only [`FuseMount::resize`] changes one while mounted.
const ATTR_TTL: Duration = Duration::from_secs(3600);
/// Longest file name in bytes, for statfs.
const NAME_BYTES_MAX: u32 = 255;
/// The volume file's inode.
const VOLUME_INODE: INodeNo = INodeNo(2);

/// A mounted volume file. Dropping it aborts what is under way and unmounts.
#[derive(Debug)]
pub struct FuseMount {
    dir: PathBuf,
    size: Arc<AtomicU64>,
    session: Option<BackgroundSession>,
}

impl FuseMount {
    /// Mount at `dir` (an existing directory) a file of `size` bytes that forwards to `port`.
    pub fn mount(dir: &Path, port: PortSender, size: u64) -> io::Result<Self> {
        let dir = dir.canonicalize()?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("holdfast".to_owned()),
            MountOption::Subtype("holdfast".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
            MountOption::NoExec,
            MountOption::NoSuid,
            MountOption::NoDev,
        ];
        // Only root may let others in without a line in /etc/fuse.conf; file modes keep guarding.
        config.acl = if nix::unistd::geteuid().is_root() {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        let size = Arc::new(AtomicU64::new(size));
        let session = Session::new(VolumeFs::new(port, size.clone()), &dir, &config)?.spawn()?;
        Ok(Self {
            dir,
            size,
            session: Some(session),
        })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The volume file.
    pub fn file(&self) -> PathBuf {
        self.dir.join(VOLUME_FILE)
    }

    /// The volume has this size now. The kernel, which was told to remember the old one, hears of it by a change that
    /// it asks for itself.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        self.size.store(size, Ordering::Release);
        std::fs::OpenOptions::new()
            .write(true)
            .open(self.file())?
            .set_len(size)
    }

    /// Unmount if nobody uses it; with [`io::ErrorKind::ResourceBusy`] it stays mounted.
    pub fn unmount(&mut self) -> io::Result<()> {
        if self.session.is_some() {
            match umount2(&self.dir, MntFlags::empty()) {
                // EINVAL: somebody else has unmounted it.
                Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
                Err(nix::errno::Errno::EPERM) => return self.abort(),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.join()
    }

    /// Fail everything under way, then unmount, users or not.
    pub fn abort(&mut self) -> io::Result<()> {
        if self.session.is_none() {
            return Ok(());
        }
        // MNT_FORCE aborts the connection even if it then finds the mount busy.
        if umount2(&self.dir, MntFlags::MNT_FORCE).is_ok() {
            return self.join();
        }
        match umount2(&self.dir, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => self.join(),
            // Unprivileged: the library unmounts through the setuid helper.
            Err(_) => self
                .session
                .take()
                .map_or(Ok(()), BackgroundSession::umount_and_join),
        }
    }

    fn join(&mut self) -> io::Result<()> {
        self.session.take().map_or(Ok(()), BackgroundSession::join)
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if let Err(error) = self.abort() {
            tracing::warn!(dir = %self.dir.display(), %error, "FUSE mount was not removed");
        }
    }
}

/// Unmount what a daemon that died has left at `dir`, aborting it first. True if there was something.
/// Detach its loop devices before ([`super::loopdev::detach_under`]): once it is unmounted, the
/// kernel does not tell where their file was.
pub fn clear_leftover(dir: &Path) -> bool {
    umount2(dir, MntFlags::MNT_FORCE).is_ok() || umount2(dir, MntFlags::MNT_DETACH).is_ok()
}

fn errno(error: PortError) -> Errno {
    match error {
        PortError::Range => Errno::EINVAL,
        PortError::Io | PortError::NotPrimary | PortError::Gone => Errno::EIO,
    }
}

/// The filesystem: a directory with one file in it.
#[derive(Debug)]
struct VolumeFs {
    port: PortSender,
    /// Writes are copied out of the FUSE buffer once, to where disk and peers can take them from.
    buffers: BufPool,
    size: Arc<AtomicU64>,
    uid: u32,
    gid: u32,
}

impl VolumeFs {
    fn new(port: PortSender, size: Arc<AtomicU64>) -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        let gid = nix::unistd::getegid().as_raw();
        Self {
            port,
            buffers: BufPool::new(BUFFERS_RETAINED_BYTES),
            size,
            uid,
            gid,
        }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size, nlink) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o755, 0, 2),
            VOLUME_INODE => (FileType::RegularFile, 0o600, self.size(), 1),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: PREFERRED_BLOCK_BYTES,
            flags: 0,
        })
    }

    fn copy(&self, data: &[u8]) -> Bytes {
        self.buffers
            .copy_from(data)
            .map_or_else(|_| Bytes::copy_from_slice(data), AlignedBuf::freeze)
    }

    /// Submit `op`; the answer goes out from the volume loop's thread.
    fn forward(&self, op: Op, reply: ReplyEmpty) {
        self.port.submit(op, move |result| match result {
            Ok(_) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        });
    }
}

impl Filesystem for VolumeFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is a matter of speed; an old kernel may lack some.
        for flag in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_BIG_WRITES,
        ] {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!(?missing, "FUSE capability missing in this kernel");
            }
        }
        if let Err(most) = config.set_max_write(WRITE_BYTES_MAX) {
            tracing::debug!(most, "FUSE writes are smaller than asked for");
        }
        if config.set_max_background(BACKGROUND_REQUESTS_MAX).is_err() {
            tracing::debug!("FUSE background limit stays at its default");
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = parent == INodeNo::ROOT && name == VOLUME_FILE;
        match self.attr(VOLUME_INODE).filter(|_| found) {
            Some(attr) => reply.entry(&ATTR_TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&ATTR_TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Like a block device: times, owner and truncation are accepted and change nothing.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&ATTR_TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if ino != VOLUME_INODE {
            reply.error(Errno::EISDIR);
            return;
        }
        // No page cache below the loop device, and writes of the loop device side by side.
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.size().saturating_sub(offset)) as u32;
        if len == 0 {
            reply.data(&[]);
            return;
        }
        self.port
            .submit(Op::Read { offset, len }, move |result| match result {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(errno(error)),
            });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = (data.len() as u64).min(self.size().saturating_sub(offset)) as usize;
        if len == 0 {
            reply.error(Errno::ENOSPC);
            return;
        }
        // The kernel does not send an fsync of its own for O_SYNC and O_DSYNC on direct I/O everywhere.
        let fua = flags.0 & libc::O_DSYNC != 0;
        let op = Op::Write {
            offset,
            data: self.copy(&data[..len]),
            fua,
        };
        self.port.submit(op, move |result| match result {
            Ok(_) => reply.written(len as u32),
            Err(error) => reply.error(errno(error)),
        });
    }

    /// A close promises nothing, and must not hang while the volume is held.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.forward(Op::Flush, reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let punch = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        let zero = mode & libc::FALLOC_FL_ZERO_RANGE != 0;
        let known =
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        if !(punch || zero) || mode & !known != 0 {
            reply.error(Errno::EOPNOTSUPP);
            return;
        }
        let len = length.min(self.size().saturating_sub(offset));
        if len == 0 {
            reply.ok();
            return;
        }
        self.forward(
            Op::Zero {
                offset,
                len,
                fua: false,
                may_punch: punch,
            },
            reply,
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if ino != INodeNo::ROOT {
            reply.error(Errno::ENOTDIR);
            return;
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (VOLUME_INODE, FileType::RegularFile, VOLUME_FILE),
        ];
        for (next, (ino, kind, name)) in (1u64..).zip(entries) {
            if next > offset && reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let block = PREFERRED_BLOCK_BYTES;
        // The block size is what the loop device takes for its discard granularity.
        reply.statfs(
            self.size() / u64::from(block),
            0,
            0,
            1,
            0,
            block,
            NAME_BYTES_MAX,
            block,
        );
    }
}
