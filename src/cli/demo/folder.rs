//! [`DemoFolder`]: everything that a demo writes. Only its owner can enter it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use tracing::warn;

use crate::error::{Error, Kind, Remedy, Result};
use crate::files::safe_parent;

/// Space for a volume, its copy, two snapshots and what the filesystem is made of: some 110 MB.
const SPACE: ByteSize = ByteSize::mib(256);

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(super) struct DemoFolder(PathBuf);

impl DemoFolder {
    /// Makes one in `parent`, with a random name; an existing one is an error.
    ///
    /// # Errors
    /// `Invalid` when another user could replace what is in `parent`; what the system says.
    pub(super) fn make(parent: &Path) -> Result<Self> {
        let with_remedy = |error: Error| {
            error.with_remedy(Remedy::Do(
                "set TMPDIR to a folder that you can write and others cannot".into(),
            ))
        };
        let parent = safe_parent(parent).map_err(with_remedy)?;
        let path = parent.join(format!("ebsfs-demo-{:016x}", fastrand::u64(..)));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| with_remedy(Error::of_file(&path, "cannot make", error)))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Fails where the demo would not fit.
    ///
    /// # Errors
    /// `NoSpace`; what the system says.
    pub(super) fn check_space(&self) -> Result<()> {
        let at = self.0.display();
        let found = rustix::fs::statvfs(&self.0)
            .map_err(|error| Error::with_source(Kind::Io, format!("cannot look at {at}"), error))?;
        let free = ByteSize::b(found.f_bavail.saturating_mul(found.f_frsize));
        if free >= SPACE {
            return Ok(());
        }
        let what = format!("cannot make the demo in {at}: it needs {SPACE}, and {free} are free");
        let remedy = Remedy::Do("set TMPDIR to a folder with more space".into());
        Err(Error::new(Kind::NoSpace, what).with_remedy(remedy))
    }

    /// Makes the mountpoint in it.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn mountpoint(&self) -> Result<PathBuf> {
        let path = self.mountpoint_path();
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Error::of_file(&path, "cannot make", error))?;
        Ok(path)
    }

    fn mountpoint_path(&self) -> PathBuf {
        self.0.join("mnt")
    }

    /// The variables by which other programs reach the emulator, for a shell.
    pub(super) fn environment(&self) -> PathBuf {
        self.0.join("environment")
    }

    /// The volume as it was at the first snapshot.
    pub(super) fn before(&self) -> PathBuf {
        self.0.join("before.raw")
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        let mountpoint = self.mountpoint_path();
        let at = self.0.display();
        // A mount that stayed keeps its mountpoint, and nothing in it is touched.
        let removed = match fs::remove_dir(&mountpoint) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => fs::remove_dir_all(&self.0),
        };
        if let Err(error) = removed {
            warn!(
                "cannot remove {at}: {error}; ebsfs umount --lazy {}; rm -r {at}",
                mountpoint.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_private_and_ends_with_the_demo() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let folder = DemoFolder::make(parent.path()).unwrap();
        let path = folder.path().to_owned();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        folder.check_space().unwrap();
        folder.mountpoint().unwrap();
        fs::write(folder.environment(), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
        let absent = DemoFolder::make(&parent.path().join("absent")).unwrap_err();
        assert!(absent.remedy().is_some(), "{absent:?}");
    }

    #[test]
    fn a_mountpoint_that_is_not_empty_keeps_the_folder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = DemoFolder::make(parent.path()).unwrap();
        let file = folder.mountpoint().unwrap().join("a");
        fs::write(&file, "x").unwrap();
        drop(folder);
        assert!(file.exists());
    }
}
