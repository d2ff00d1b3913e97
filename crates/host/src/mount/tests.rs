use std::path::Path;

use nix::mount::MsFlags;

use super::table::{points_at, unescape};
use super::*;

#[test]
fn options_are_flags_or_data() {
    let (flags, data) = split_options("defaults,noatime, nodev,data=ordered,ro,errors=remount-ro");
    assert_eq!(
        flags,
        MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_RDONLY
    );
    assert_eq!(data, "data=ordered,errors=remount-ro");
    assert_eq!(split_options(""), (MsFlags::empty(), String::new()));
}

#[test]
fn names_with_blanks_are_found_in_the_list() {
    assert_eq!(unescape(br"/a\040b\134c\0"), br"/a b\c\0");
    let line = br"36 25 0:31 / /mnt/a\040b rw,relatime shared:1 - ext4 /dev/loop0 rw";
    assert!(points_at(line, b"/mnt/a b"));
    assert!(
        !points_at(line, b"/mnt/a") && !points_at(line, b"/mnt/a b/c") && !points_at(b"", b"/mnt")
    );
}

#[test]
fn the_list_is_read_both_ways() {
    for (place, mounted) in [
        ("/", true),
        ("/proc", true),
        ("/proc/self", false),
        ("/nonexistent/place", false),
    ] {
        assert_eq!(
            is_mounted(Path::new(place)).expect("list"),
            mounted,
            "{place}"
        );
        assert_eq!(is_mounted_raw(place.as_bytes()), mounted, "{place}");
    }
    assert_eq!(
        mounted_source(Path::new("/proc")).expect("list").as_deref(),
        Some(Path::new("proc"))
    );
}

#[test]
fn only_a_blank_device_is_formatted() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("disk");
    let file = File::create(&image).expect("create");
    file.set_len(8 << 20).expect("size");
    assert_eq!(first_data(&image).expect("read"), None);
    // Beyond the first MiB there is no header of anything.
    std::os::unix::fs::FileExt::write_at(&file, b"x", BLANK_BYTES).expect("write");
    assert_eq!(first_data(&image).expect("read"), None);
    std::os::unix::fs::FileExt::write_at(&file, b"x", BLANK_BYTES - 1).expect("write");
    assert_eq!(first_data(&image).expect("read"), Some(BLANK_BYTES - 1));
    let error = make(&image, Fs::Ext4, "data").expect_err("it has data");
    assert!(
        matches!(error, Error::NotBlank { offset, .. } if offset == BLANK_BYTES - 1),
        "{error}"
    );
    let error = make(Path::new("/nonexistent/disk"), Fs::Ext4, "data").expect_err("no such device");
    assert!(error.to_string().contains("/nonexistent/disk"), "{error}");
}

#[test]
fn an_unknown_filesystem_is_named() {
    assert_eq!("ext4".parse::<Fs>().expect("known"), Fs::Ext4);
    assert_eq!("xfs".parse::<Fs>().expect("known"), Fs::Xfs);
    let error = "ext9".parse::<Fs>().expect_err("unknown").to_string();
    assert!(error.contains("ext9") && error.contains("xfs"), "{error}");
}

#[test]
fn what_is_not_mounted_is_unmounted() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let place = dir.path().join("nothing");
    assert!(holders(&place).expect("list").is_empty());
    if nix::unistd::geteuid().is_root() {
        assert_eq!(
            unmount(&place, &Policy::default()).expect("nothing to do"),
            Unmounted::default()
        );
        abort_fuse(&place).expect("nothing to do");
    } else {
        eprintln!("skip: unmounting what is not mounted: only root may ask for it");
    }
}
