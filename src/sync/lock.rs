//! One run a target: taken before anything that is known of the target is read, and held to the end.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The lock of a target, held while this lives.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock that is a file at `path`.
    ///
    /// # Errors
    /// `Io` when another run has it.
    pub fn take(path: &Path) -> Result<Self> {
        let failed = |error| Error::of_file(path, "cannot lock", error);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let what = format!("another run is at it: {} is locked", path.display());
                    return Err(Error::new(Kind::Io, what));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // Who had it before may have removed the file that was opened here.
            let held = file.metadata().map_err(failed)?.ino();
            if std::fs::metadata(path).is_ok_and(|found| found.ino() == held) {
                return Ok(Self {
                    path: path.to_owned(),
                    _file: file,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked: nobody else has it, and who waits for it looks whether it is still there.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_has_it_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::take(&path).unwrap();
        assert_eq!(Lock::take(&path).unwrap_err().kind(), Kind::Io);
        drop(lock);
        drop(Lock::take(&path).unwrap());
        assert!(!path.exists());
    }
}
