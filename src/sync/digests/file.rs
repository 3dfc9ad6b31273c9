//! A private new file under a random name, which replaces another one when it is whole.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;

/// A new file under a random name. If it is dropped before [`Temporary::rename`], it is removed.
pub(super) struct Temporary {
    file: File,
    name: TemporaryName,
}

/// A name that is removed when this is dropped.
struct TemporaryName {
    path: PathBuf,
    is_kept: bool,
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Temporary {
    /// Makes a file of mode 0600 beside `path`.
    ///
    /// # Errors
    /// `Invalid` when something else than a regular file is at `path`; the system's error.
    pub(super) fn create(path: &Path) -> Result<Self> {
        files::refuse_special(path)?;
        let temporary = files::with_ending(path, &format!(".{:016x}.tmp", fastrand::u64(..)));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)
            .map_err(|error| Error::of_file(path, "cannot write", error))?;
        let name = TemporaryName {
            path: temporary,
            is_kept: false,
        };
        Ok(Self { file, name })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name; the name survives a crash when this returns.
    ///
    /// # Errors
    /// The system's error: then the old file remains.
    pub(super) fn rename(mut self, path: &Path) -> Result<File> {
        let failed = |error| Error::of_file(path, "cannot write", error);
        files::refuse_special(path)?;
        std::fs::rename(&self.name.path, path).map_err(failed)?;
        self.name.is_kept = true;
        files::sync_folder(path).map_err(failed)?;
        Ok(self.file)
    }
}
