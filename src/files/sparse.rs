//! Sparse files: their data, their holes, and a copy that keeps both.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};

use crate::error::{Error, Result};

/// Bytes copied between two calls of `check`: some 50 ms of a disk.
const COPY: u64 = 16 << 20;
/// Bytes copied at once where the kernel cannot copy alone.
const COPY_BY_HAND: usize = 1 << 20;

/// Fills `bytes` from `offset` on; what lies beyond the end of the file becomes zero.
///
/// # Errors
/// The system's error.
pub(crate) fn read_padded(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut rest = bytes;
    let mut at = offset;
    while !rest.is_empty() {
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => {
                at += read as u64;
                rest = rest.get_mut(read..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    rest.fill(0);
    Ok(())
}

/// The first bytes at or after `at` that the file holds. Where the filesystem does not report holes, all up to the end.
///
/// # Errors
/// The system's error.
pub(crate) fn data_after(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    let len = file.metadata()?.len();
    if at >= len {
        return Ok(None);
    }
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(io::Error::other)?;
        match lseek(file, at, whence) {
            Ok(found) => Ok(Some(found.unsigned_abs())),
            Err(Errno::ENXIO) => Ok(None),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(Some(match whence {
                Whence::SeekHole => len,
                _ => at.unsigned_abs(),
            })),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    let Some(start) = seek(at, Whence::SeekData)? else {
        return Ok(None);
    };
    let end = seek(start, Whence::SeekHole)?.unwrap_or(len);
    Ok((start < end).then_some(start..end))
}

/// Gives `to` what `from` holds in `range`, by reference where the filesystem can. Holes of `from`, and what lies beyond its
/// end, are left out: there `to` must read as zeroes. `check` is called every 16 MiB; its error ends the copy.
///
/// # Errors
/// The system's error, with the file that it is about as far as that is known; the error of `check`.
pub(crate) fn copy_data(
    from: &File,
    from_path: &Path,
    to: &File,
    to_path: &Path,
    range: Range<u64>,
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let unread = |error| Error::of_file(from_path, "cannot read", error);
    let unwritten = |error| Error::of_file(to_path, "cannot write", error);
    let mut at = range.start;
    while at < range.end {
        let Some(data) = data_after(from, at).map_err(unread)? else {
            return Ok(());
        };
        at = data.start;
        let end = data.end.min(range.end);
        while at < end {
            check()?;
            let copied = copy(from, to, at, COPY.min(end - at)).map_err(unwritten)?;
            if copied == 0 {
                return Ok(());
            }
            at += copied;
        }
    }
    Ok(())
}

/// Copies up to `len` bytes at the same offset; 0 at the end of `from`.
fn copy(from: &File, to: &File, at: u64, len: u64) -> io::Result<u64> {
    let offset = i64::try_from(at).map_err(io::Error::other)?;
    let (mut read, mut write) = (offset, offset);
    let most = usize::try_from(len).unwrap_or(COPY_BY_HAND);
    match copy_file_range(from, Some(&mut read), to, Some(&mut write), most) {
        Ok(copied) => Ok(copied as u64),
        // Other filesystems, or one that cannot (copy_file_range(2)).
        Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => {
            copy_by_hand(from, to, at, most)
        }
        Err(Errno::EINTR) => copy_by_hand(from, to, at, most),
        Err(error) => Err(error.into()),
    }
}

fn copy_by_hand(from: &File, to: &File, at: u64, len: usize) -> io::Result<u64> {
    let mut bytes = vec![0; len.min(COPY_BY_HAND)];
    let read = from.read_at(&mut bytes, at)?;
    to.write_all_at(bytes.get(..read).unwrap_or_default(), at)?;
    Ok(read as u64)
}

/// Makes a range a hole; false where the filesystem cannot.
///
/// # Errors
/// The system's error.
pub(crate) fn punch(file: &File, start: u64, len: u64) -> io::Result<bool> {
    let number = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        return match fallocate(file, flags, number(start)?, number(len)?) {
            Ok(()) => Ok(true),
            Err(Errno::EINTR) => continue,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_by_hand_and_by_the_kernel_are_alike() {
        let file = || tempfile::tempfile().unwrap();
        let (old, by_kernel, by_hand) = (file(), file(), file());
        old.write_all_at(&vec![7; 3_000_000], 5_000).unwrap();
        for (new, most) in [(&by_kernel, 100), (&by_hand, 0)] {
            let mut at = 4096;
            loop {
                let copied = match most {
                    0 => copy_by_hand(&old, new, at, 1 << 20).unwrap(),
                    _ => copy(&old, new, at, 1 << 20).unwrap(),
                };
                at += copied;
                if copied == 0 {
                    break;
                }
            }
        }
        let read = |file: &File| {
            let mut bytes = vec![1; 3_010_000];
            read_padded(file, &mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&by_kernel) == read(&by_hand));
        assert_eq!(
            read(&by_kernel).iter().filter(|byte| **byte == 7).count(),
            3_000_000
        );
    }
}
