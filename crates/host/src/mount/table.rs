//! The kernel's list of mounts: what is mounted where in this mount namespace.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result, sys};

/// A line of mountinfo.
pub(super) struct Mounted {
    pub(super) device: (u32, u32),
    pub(super) source: PathBuf,
}

/// The topmost mount at `target`.
pub(super) fn find(target: &Path) -> Result<Option<Mounted>> {
    const LIST: &str = "/proc/self/mountinfo";
    let text =
        std::fs::read(LIST).map_err(|e| Error::system("read the list of mounts", LIST, e))?;
    let wanted = absolute(target);
    let mut found = None;
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b' ');
        let Some(device) = fields.nth(2).and_then(parse_device) else {
            continue;
        };
        let Some(point) = fields.nth(1) else { continue };
        if unescape(point) != wanted.as_os_str().as_bytes() {
            continue;
        }
        // After the separator: type, source.
        let source = fields.skip_while(|f| *f != b"-").nth(2).unwrap_or_default();
        found = Some(Mounted {
            device,
            source: PathBuf::from(OsStr::from_bytes(&unescape(source))),
        });
    }
    Ok(found)
}

/// The path as mountinfo shows it. The last component is not resolved, because it may be a dead FUSE mount.
fn absolute(target: &Path) -> PathBuf {
    let parent = target.parent().and_then(|p| p.canonicalize().ok());
    match (parent, target.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => target.to_path_buf(),
    }
}

fn parse_device(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Octal escapes (`\040` for a space) of mountinfo.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    unescape_into(field, |b| out.push(b));
    out
}

fn unescape_into(field: &[u8], mut put: impl FnMut(u8)) {
    let mut at = 0;
    while at < field.len() {
        let digits = field
            .get(at + 1..at + 4)
            .filter(|d| field[at] == b'\\' && d.iter().all(|c| (b'0'..b'8').contains(c)));
        match digits {
            Some(d) => {
                put(((d[0] - b'0') << 6) | ((d[1] - b'0') << 3) | (d[2] - b'0'));
                at += 4;
            }
            None => {
                put(field[at]);
                at += 1;
            }
        }
    }
}

/// `is_mounted` for the fencer: absolute path, no allocation; true when the list cannot be read.
pub(crate) fn is_mounted_raw(path: &[u8]) -> bool {
    let Ok(fd) = sys::open(c"/proc/self/mountinfo", libc::O_RDONLY) else {
        return true;
    };
    // A line holds two paths and options; one that is longer than half the buffer is skipped.
    let mut buffer = [0; 16 << 10];
    let mut have = 0;
    loop {
        let Ok(got) = sys::read(fd.as_fd(), &mut buffer[have..]) else {
            return true;
        };
        if got == 0 {
            return false;
        }
        have += got;
        let whole = buffer[..have]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1);
        if buffer[..whole]
            .split(|b| *b == b'\n')
            .any(|line| points_at(line, path))
        {
            return true;
        }
        buffer.copy_within(whole..have, 0);
        have -= whole;
        if have == buffer.len() {
            return true;
        }
    }
}

pub(super) fn points_at(line: &[u8], path: &[u8]) -> bool {
    let Some(point) = line.split(|b| *b == b' ').nth(4) else {
        return false;
    };
    let (mut at, mut same) = (0, true);
    unescape_into(point, |b| {
        same &= path.get(at) == Some(&b);
        at += 1;
    });
    same && at == path.len()
}
