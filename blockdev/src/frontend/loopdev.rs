//! Loop devices over a FUSE volume file, with direct I/O, by the loop driver's ioctls.
//!
//! Invariants
//! - a device is attached with autoclear: when its last user closes it (and we do, or die), it
//!   detaches by itself;
//! - detaching and closing may flush the device's cache through FUSE: never do it on the volume
//!   loop's thread.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Sector sizes tried for a device, in bytes, best first.
const BLOCK_BYTES_TRIED: [u32; 2] = [4096, 512];
/// Others may grab the free device before us: attempts before giving up.
const ATTACH_ATTEMPTS: usize = 16;
/// Major number of loop devices.
const LOOP_MAJOR: u64 = 7;
/// Bytes of a name in the kernel's structure.
const NAME_BYTES: usize = 64;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_BYTES],
    crypt_name: [u8; NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// Why a loop device could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// It does not take the new size of its file.
    #[error("{path} does not take the new size of its file: {source}")]
    Size {
        /// The device.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// No loop driver, or no right to use it.
    #[error("cannot use /dev/loop-control: {0}; is the loop driver loaded, and is this root?")]
    Control(#[source] io::Error),
    /// The device's node is missing and cannot be made.
    #[error("cannot open or create {path}: {source}")]
    Node {
        /// The node.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file to attach cannot be opened.
    #[error("cannot open the volume file {path}: {source}")]
    Backing {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The driver refused.
    #[error("cannot attach {file} to {path}: {source}")]
    Attach {
        /// The file.
        file: PathBuf,
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The driver refused to let go.
    #[error("cannot detach {path}: {source}")]
    Detach {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An attached loop device. Dropping it lets the kernel detach it when its last user has closed it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: File,
    block_bytes: u32,
}

impl LoopDevice {
    /// Attach a free device to `file`. Opens `file` and waits for FUSE to answer that.
    pub fn attach(file: &Path) -> Result<Self, LoopError> {
        let backing = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_DIRECT)
            .open(file)
            .map_err(|source| LoopError::Backing {
                path: file.to_owned(),
                source,
            })?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/loop-control")
            .map_err(LoopError::Control)?;
        let mut last = None;
        for _ in 0..ATTACH_ATTEMPTS {
            let number =
                ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0).map_err(LoopError::Control)?;
            let (path, device) = open_node(number as u64)?;
            for block_bytes in BLOCK_BYTES_TRIED {
                let config = LoopConfig::new(backing.as_raw_fd(), block_bytes, file);
                match configure(&device, &config) {
                    Ok(()) => {
                        return Ok(Self {
                            path,
                            device,
                            block_bytes,
                        });
                    }
                    Err(source) => last = Some((path.clone(), source)),
                }
            }
            // EBUSY: somebody was faster; another device then. Anything else will not get better.
            if !matches!(&last, Some((_, source)) if source.raw_os_error() == Some(libc::EBUSY)) {
                break;
            }
        }
        let (path, source) = last.unwrap_or_else(|| {
            (
                PathBuf::from("/dev/loop-control"),
                io::Error::from(io::ErrorKind::ResourceBusy),
            )
        });
        Err(LoopError::Attach {
            file: file.to_owned(),
            path,
            source,
        })
    }

    /// The block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its sector size in bytes.
    pub const fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Takes the size its file has now.
    pub fn take_size(&self) -> Result<(), LoopError> {
        ioctl(self.device.as_raw_fd(), LOOP_SET_CAPACITY, 0)
            .map(|_| ())
            .map_err(|source| LoopError::Size {
                path: self.path.clone(),
                source,
            })
    }

    /// Detach. While others have it open, the kernel does so when the last of them closes it.
    pub fn detach(self) -> Result<(), LoopError> {
        clear(&self.device, &self.path)
    }
}

/// A loop device found attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The block device.
    pub path: PathBuf,
    /// What the kernel calls its backing file.
    pub backing: PathBuf,
}

/// Loop devices whose backing file lies under `dir`. Looks only at sysfs, never at the files.
pub fn find_under(dir: &Path) -> io::Result<Vec<Attached>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.file_name().as_bytes().starts_with(b"loop") {
            continue;
        }
        // Absent for a device that is not attached; it may also be detached while we look.
        let Ok(mut backing) = fs::read(entry.path().join("loop/backing_file")) else {
            continue;
        };
        while backing.last() == Some(&b'\n') {
            backing.pop();
        }
        let backing = PathBuf::from(OsString::from_vec(backing));
        if backing.starts_with(dir) {
            found.push(Attached {
                path: Path::new("/dev").join(entry.file_name()),
                backing,
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Detach every loop device whose backing file lies under `dir`: what a daemon that died has left.
pub fn detach_under(dir: &Path) -> Result<Vec<Attached>, LoopError> {
    let found = find_under(dir).map_err(LoopError::Control)?;
    for attached in &found {
        let device = open_device(&attached.path).map_err(|source| LoopError::Node {
            path: attached.path.clone(),
            source,
        })?;
        clear(&device, &attached.path)?;
    }
    Ok(found)
}

impl LoopConfig {
    fn new(fd: RawFd, block_size: u32, file: &Path) -> Self {
        let mut file_name = [0; NAME_BYTES];
        // Zero-terminated; only for people who look at it.
        for (to, from) in file_name[..NAME_BYTES - 1]
            .iter_mut()
            .zip(file.as_os_str().as_bytes())
        {
            *to = *from;
        }
        let info = LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
            file_name,
            crypt_name: [0; NAME_BYTES],
            encrypt_key: [0; 32],
            init: [0; 2],
        };
        Self {
            fd: fd as u32,
            block_size,
            info,
            reserved: [0; 8],
        }
    }
}

fn open_device(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
}

/// The node of loop device `number`, made if the system has no udev to do it.
fn open_node(number: u64) -> Result<(PathBuf, File), LoopError> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let is_device = fs::metadata(&path).is_ok_and(|node| node.file_type().is_block_device());
    if !is_device {
        let kind = nix::sys::stat::SFlag::S_IFBLK;
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o660);
        let number = nix::sys::stat::makedev(LOOP_MAJOR, number);
        match nix::sys::stat::mknod(&path, kind, mode, number) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => {
                return Err(LoopError::Node {
                    path,
                    source: errno.into(),
                });
            }
        }
    }
    match open_device(&path) {
        Ok(device) => Ok((path, device)),
        Err(source) => Err(LoopError::Node { path, source }),
    }
}

fn clear(device: &File, path: &Path) -> Result<(), LoopError> {
    match ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) {
        Ok(_) => Ok(()),
        // ENXIO: detached already.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(source) => Err(LoopError::Detach {
            path: path.to_owned(),
            source,
        }),
    }
}

fn ioctl(fd: RawFd, request: libc::Ioctl, arg: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: only called with requests whose argument is a plain number or none; `fd` is open.
    match unsafe { libc::ioctl(fd, request, arg) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn configure(device: &File, config: &LoopConfig) -> io::Result<()> {
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which `LoopConfig` mirrors (its size is
    // asserted above) and which lives through the call; `device` is open.
    match unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            LOOP_CONFIGURE,
            std::ptr::from_ref(config),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
