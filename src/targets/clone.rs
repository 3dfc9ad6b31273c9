//! The data of one file copied to another: by reference where the filesystem can, holes left out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

/// Bytes copied at once where the kernel cannot do it alone.
const PIECE: usize = 1 << 20;

/// Gives `to` what `from` holds between two offsets and leaves its holes out: there `to` must read as zeroes already. What
/// lies beyond the end of `from` is a hole.
pub(super) fn copy_data(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let end = end.min(from.metadata()?.len());
    let mut at = start;
    while at < end {
        let Some(data) = seek(from, at, Whence::SeekData)?.filter(|data| *data < end) else {
            return Ok(());
        };
        let hole = seek(from, data, Whence::SeekHole)?.unwrap_or(end).min(end);
        copy(from, to, data, hole)?;
        at = hole.max(data + 1);
    }
    Ok(())
}

/// The next data or hole; none when there is no more. Where the filesystem cannot tell, all is data.
fn seek(file: &File, at: u64, whence: Whence) -> io::Result<Option<u64>> {
    let offset = i64::try_from(at).map_err(io::Error::other)?;
    let is_data = matches!(whence, Whence::SeekData);
    match lseek(file, offset, whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(is_data.then_some(at)),
        Err(error) => Err(error.into()),
    }
}

fn copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let number = |at: u64| i64::try_from(at).map_err(io::Error::other);
    let (mut read, mut write) = (number(start)?, number(start)?);
    let end_number = number(end)?;
    while read < end_number {
        let left = usize::try_from(end_number - read).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Other filesystems, or one that cannot (copy_file_range(2)).
            Err(
                Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM,
            ) => return copy_by_hand(from, to, read.unsigned_abs(), end),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = start;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let Some(piece) = piece.get_mut(..len) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        from.read_exact_at(piece, at)?;
        to.write_all_at(piece, at)?;
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_by_hand_and_by_the_kernel_are_alike_and_holes_stay_holes() {
        use std::os::unix::fs::MetadataExt;
        let file = || tempfile::tempfile().unwrap();
        let old = file();
        old.set_len(40 << 20).unwrap();
        for at in [0u64, 7 << 20, (39 << 20) + 4096] {
            old.write_all_at(&vec![7; 300_000], at).unwrap();
        }
        let (cloned, by_hand) = (file(), file());
        for new in [&cloned, &by_hand] {
            new.set_len(50 << 20).unwrap();
        }
        // Beyond the end of the old one: nothing.
        copy_data(&old, &cloned, 0, 20 << 20).unwrap();
        copy_data(&old, &cloned, 20 << 20, 50 << 20).unwrap();
        copy_by_hand(&old, &by_hand, 0, 40 << 20).unwrap();
        let read = |file: &File| {
            let mut bytes = vec![1; 50 << 20];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&cloned) == read(&by_hand));
        assert_eq!(
            read(&cloned).iter().filter(|byte| **byte == 7).count(),
            900_000
        );
        assert!(cloned.metadata().unwrap().blocks() * 512 < 4 << 20);
    }
}
