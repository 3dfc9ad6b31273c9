//! [`Scratch`]: the folder of one drill or attachment, for overlays and mountpoints, which ends with it. What a drill that was killed has left is
//! removed by the next one with the same `--scratch`.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};
use nix::unistd::geteuid;
use tracing::{info, warn};

use crate::error::{Error, Kind, Result};
use crate::files::{open_lock, safe_parent};
use crate::sysfs::unescaped;

/// How folders of drills begin; 16 hexadecimal digits follow.
const PREFIX: &str = "ebsfs-drill-";
/// The file that a drill holds locked.
const LOCK: &str = "lock";

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes a folder in `parent`. With `is_shared` other users can go through it by its name, which cannot be guessed: parsers
    /// have a user of their own.
    ///
    /// # Errors
    /// `Invalid` when another user could replace what is in `parent`; what the system says.
    pub(crate) fn make(parent: &Path, is_shared: bool) -> Result<Self> {
        let parent = safe_parent(parent)?;
        remove_left(&parent);
        let path = parent.join(format!("{PREFIX}{:016x}", fastrand::u64(..)));
        let mode = if is_shared { 0o711 } else { 0o700 };
        DirBuilder::new()
            .mode(mode)
            .create(&path)
            .map_err(|error| Error::of_file(&path, "cannot make", error))?;
        let lock = open_lock(&path.join(LOCK)).and_then(|lock| {
            lock.try_lock().map_err(std::io::Error::from)?;
            Ok(lock)
        });
        let lock = lock.map_err(|error| Error::of_file(&path, "cannot lock", error))?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes folders in `parent` whose processes were killed.
    pub(crate) fn remove_left(parent: &Path) {
        remove_left(parent);
    }

    /// Makes a folder in it: a mountpoint.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let made = DirBuilder::new().mode(0o711).create(&path);
        made.map_err(|error| Error::of_file(&path, "cannot make", error))?;
        Ok(path)
    }

    /// Makes an empty file in it, for its owner alone.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let made = File::create_new(&path).and_then(|file| {
            use std::os::unix::fs::PermissionsExt;
            file.set_permissions(std::fs::Permissions::from_mode(0o600))
        });
        made.map_err(|error| Error::of_file(&path, "cannot make", error))?;
        Ok(path)
    }

    /// Bytes that are free where it is, for this user.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn free(&self) -> Result<u64> {
        let found = rustix::fs::statvfs(&self.path).map_err(|error| {
            Error::with_source(
                Kind::Io,
                format!("cannot use {}", self.path.display()),
                error,
            )
        })?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Unmounts what is mounted in a folder, and removes it.
fn remove(path: &Path) {
    for point in mounts_below(path) {
        detach(&point);
    }
    if let Err(error) = std::fs::remove_dir_all(path) {
        let at = path.display();
        warn!("cannot remove {at}: {error}; umount --lazy {at}/* && rm -r {at}");
    }
}

/// Detaches a mount at a path.
pub(super) fn detach(point: &Path) {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    if umount2(point, flags) == Err(nix::errno::Errno::EPERM) {
        // A user other than root. If that fails, the folder cannot be removed, which is reported.
        let _ = Command::new("fusermount3")
            .args(["-uzq", "--"])
            .arg(point)
            .stdin(Stdio::null())
            .status();
    }
}

/// Removes folders of drills that do not run any more.
fn remove_left(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_named = name.to_str().is_some_and(is_drills_name);
        let is_ours = entry
            .metadata()
            .is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
        if !is_named || !is_ours {
            continue;
        }
        let path = entry.path();
        // Without a lock it is being made, or being removed.
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        match lock.try_lock() {
            Ok(()) => {
                info!("removing {}: its process was killed", path.display());
                remove(&path);
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

fn is_drills_name(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX);
    digits.is_some_and(|digits| {
        digits.len() == 16
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// What is mounted below a folder, the latest first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let points = table.split(|byte| *byte == b'\n').filter_map(mount_point);
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    found.reverse();
    found
}

/// Whether something is mounted at a path.
pub(super) fn is_mounted(path: &Path) -> bool {
    mounts_below(path).iter().any(|point| point == path)
}

/// The fifth field of a line of mountinfo, where blanks are octal.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(unescaped(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_read_with_its_blanks() {
        let line = b"42 27 0:39 / /tmp/a\\040b/p1.raw rw,nosuid - fuse /dev/fuse rw";
        assert_eq!(mount_point(line), Some("/tmp/a b/p1.raw".into()));
        assert_eq!(mount_point(b"42 27"), None);
    }

    #[test]
    fn only_a_folder_of_a_drill_that_has_ended_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        let running = Scratch::make(parent.path(), false).unwrap();
        let ended = at("ebsfs-drill-0123456789abcdef");
        let foreign = at("ebsfs-drill-mine");
        let unlocked = at("ebsfs-drill-00000000000000ff");
        for folder in [&ended, &foreign, &unlocked] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("overlay"), "x").unwrap();
        }
        std::fs::write(ended.join(LOCK), "").unwrap();
        std::fs::write(foreign.join(LOCK), "").unwrap();
        let next = Scratch::make(parent.path(), false).unwrap();
        assert!(!ended.exists());
        assert!(foreign.exists() && unlocked.exists() && running.path().exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
