//! Two replicas, byte for byte, read from their backing files while nothing runs. Where both files have a
//! hole, both read as zero, and nothing is read.

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes compared at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The first byte below `len` where they differ; `None`: identical.
pub(super) fn first_difference(a: &Path, b: &Path, len: u64) -> anyhow::Result<Option<u64>> {
    let open = |path: &Path| -> anyhow::Result<File> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let has = file.metadata()?.len();
        ensure!(
            has >= len,
            "{} has {has} bytes, the volume {len}",
            path.display()
        );
        Ok(file)
    };
    let (file_a, file_b) = (open(a)?, open(b)?);
    let (mut of_a, mut of_b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    while at < len {
        let data = [&file_a, &file_b].map(|file| next_data(file, at));
        let [data_a, data_b] = data;
        match data_a?.into_iter().chain(data_b?).min() {
            Some(next) if next < len => at = next,
            _ => break,
        }
        let now = CHUNK_BYTES.min(usize::try_from(len - at).unwrap_or(CHUNK_BYTES));
        let (part_a, part_b) = (&mut of_a[..now], &mut of_b[..now]);
        file_a
            .read_exact_at(part_a, at)
            .with_context(|| format!("reading {}", a.display()))?;
        file_b
            .read_exact_at(part_b, at)
            .with_context(|| format!("reading {}", b.display()))?;
        if part_a != part_b {
            let first = part_a.iter().zip(part_b.iter()).position(|(a, b)| a != b);
            return Ok(Some(at + first.unwrap_or(0) as u64));
        }
        at += now as u64;
    }
    Ok(None)
}

/// Where the first byte at or after `at` is that does not lie in a hole.
fn next_data(file: &File, at: u64) -> anyhow::Result<Option<u64>> {
    match lseek(file, i64::try_from(at)?, Whence::SeekData) {
        Ok(next) => Ok(Some(u64::try_from(next)?)),
        Err(Errno::ENXIO) => Ok(None),
        // A block device, or a filesystem that cannot tell.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error).context("looking for data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeroes() {
        let folder = tempfile::tempdir().expect("folder");
        let len = 64 * CHUNK_BYTES as u64;
        let sparse = |name: &str, at: u64, byte: u8| {
            let path = folder.path().join(name);
            let file = File::create(&path).expect("file");
            file.set_len(len).expect("length");
            file.write_all_at(&[byte; 10], at).expect("write");
            path
        };
        let (far, zero) = (40 * CHUNK_BYTES as u64 + 77, sparse("zero", 5, 0));
        let one = sparse("one", far, 1);
        assert_eq!(first_difference(&zero, &one, len).expect("read"), Some(far));
        assert_eq!(first_difference(&zero, &one, far).expect("read"), None);
        let also_zero = sparse("also zero", far, 0);
        assert_eq!(
            first_difference(&zero, &also_zero, len).expect("read"),
            None
        );
    }

    #[test]
    fn one_byte_is_seen_and_what_lies_behind_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let len = CHUNK_BYTES as u64 + 5000;
        let mut bytes = vec![7; len as usize + 100];
        std::fs::write(&a, &bytes).expect("a");
        // Metadata behind the data may differ.
        bytes[len as usize] = 1;
        std::fs::write(&b, &bytes).expect("b");
        assert_eq!(first_difference(&a, &b, len).expect("read"), None);
        bytes[len as usize - 1] = 1;
        std::fs::write(&b, &bytes).expect("b");
        assert_eq!(first_difference(&a, &b, len).expect("read"), Some(len - 1));
        bytes[3] = 1;
        std::fs::write(&b, &bytes).expect("b");
        assert_eq!(first_difference(&a, &b, len).expect("read"), Some(3));
        assert!(first_difference(&a, &b, len + 101).is_err());
    }
}
