//! The FUSE connections of a machine, which must be cut before its processes are killed: a daemon whose filesystem is
//! mounted on a loop device over its own FUSE file would leave the kernel waiting for itself when the last of them ends.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};

use crate::mount::unescape;
use crate::sys;

/// A FUSE mount: its device (`major:minor`) and where it is.
type Found = (Vec<u8>, CString);

/// Runs a closure on a thread inside a mount namespace, with the list of its mounts.
fn inside<T: Send>(mounts: &File, act: impl FnOnce(Vec<Found>) -> T + Send) -> io::Result<T> {
    let namespace = mounts.as_raw_fd();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // The machine's /proc does not know this thread, and is not there any more when its holder has ended.
            let own = File::open("/proc/thread-self")?;
            // SAFETY: changes the root, working directory and mount namespace of this thread, which ends here.
            unsafe {
                sys::check(libc::unshare(libc::CLONE_FS))?;
                sys::check(libc::setns(namespace, libc::CLONE_NEWNS))?;
            }
            // SAFETY: a C string and an open directory; a new descriptor or -1 comes back.
            let list = sys::check(unsafe {
                libc::openat(
                    own.as_raw_fd(),
                    c"mountinfo".as_ptr(),
                    libc::O_RDONLY | libc::O_CLOEXEC,
                )
            })?;
            // SAFETY: the descriptor has just been made and is owned by nobody else.
            let mut list = unsafe { File::from_raw_fd(list) };
            let mut text = Vec::new();
            list.read_to_end(&mut text)?;
            Ok(act(fuse_mounts(&text)))
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the machine panicked")))
    })
}

/// The FUSE mounts in a mountinfo.
fn fuse_mounts(text: &[u8]) -> Vec<Found> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let device = fields.nth(2)?.to_vec();
        let point = CString::new(unescape(fields.nth(1)?)).ok()?;
        let kind = fields.skip_while(|f| *f != b"-").nth(1)?;
        let fuse = kind == b"fuse" || kind == b"fuseblk" || kind.starts_with(b"fuse.");
        fuse.then_some((device, point))
    };
    text.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// Devices of the FUSE mounts there are.
pub(super) fn devices(mounts: &File) -> io::Result<BTreeSet<Vec<u8>>> {
    inside(mounts, |found| found.into_iter().map(|(d, _)| d).collect())
}

/// Aborts every FUSE connection except those of the devices in `spare`: each waiting and further request fails. Returns
/// how many there were.
pub(super) fn abort(mounts: &File, spare: &BTreeSet<Vec<u8>>) -> io::Result<usize> {
    inside(mounts, |found| {
        let mut aborted = 0;
        for (_, point) in found.iter().filter(|(d, _)| !spare.contains(d)) {
            // The connection is aborted even where the mount is busy and stays.
            // SAFETY: `point` is a C string that outlives the call.
            unsafe { libc::umount2(point.as_ptr(), libc::MNT_FORCE | libc::UMOUNT_NOFOLLOW) };
            aborted += 1;
        }
        aborted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fuse_is_found() {
        let text = b"22 1 0:21 / /sys/fs/fuse/connections rw - fusectl none rw\n\
            23 1 0:52 / /srv/a\\040b rw,nosuid shared:1 - fuse.volume holdfast rw\n\
            24 1 7:0 / /srv/data rw - ext4 /dev/loop0 rw\n";
        assert_eq!(
            fuse_mounts(text),
            [(b"0:52".to_vec(), c"/srv/a b".to_owned())]
        );
    }
}
