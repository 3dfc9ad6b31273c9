//! Checks of a mountpoint: where `ebsfs mount` may mount, and which mount `ebsfs umount` may unmount.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::mount_table::{MountIdentity, MountTable};
use crate::error::{Error, Kind, Result};

/// Time limit for looking into a mount of ebsfs; one that takes longer hangs.
const ANSWER: Duration = Duration::from_secs(2);

/// What is found at a mountpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountpointContent {
    Missing,
    NoFolder,
    Dead,
    Empty,
    NotEmpty,
}

/// Checks that a path is an empty folder. Something may be mounted there, a tmpfs or a subvolume, but no mount of ebsfs.
///
/// # Errors
/// `Io` when it is missing, not a folder, not empty, a mount of ebsfs, or a mount whose process died.
pub(crate) fn check_mountpoint(path: &Path) -> Result<()> {
    let failed = |error| {
        let what = format!("cannot mount at {}", path.display());
        Error::with_source(Kind::Io, what, error)
    };
    let table = MountTable::read()?;
    let is_ours = absolute(path).is_ok_and(|path| {
        let mount = table.mounted_at(&path);
        mount.is_some_and(|mount| mount.is_ours)
    });
    let found = match is_ours {
        true => look_in_time(path),
        false => look(path),
    };
    let found = found.map_err(failed)?;
    match wrong(found, is_ours) {
        None => Ok(()),
        Some(what) => {
            let what = format!("cannot mount at {}: {what}", path.display());
            Err(Error::new(Kind::Io, what))
        }
    }
}

/// Like [`look`], with a time limit: a mount of ebsfs that hangs counts as not empty.
fn look_in_time(path: &Path) -> std::io::Result<MountpointContent> {
    let path = path.to_path_buf();
    let looked = ask_mount(move || look(&path))?;
    looked.unwrap_or(Ok(MountpointContent::NotEmpty))
}

/// Whether a path is a mount whose program has died. A mount that hangs is none.
pub(crate) fn is_dead_mount(path: &Path) -> bool {
    let path = path.to_path_buf();
    let looked = ask_mount(move || look(&path));
    matches!(looked, Ok(Some(Ok(MountpointContent::Dead))))
}

/// Runs work that a mount of ebsfs may never answer; `None` after [`ANSWER`]. Its thread then waits until the mount is unmounted.
///
/// # Errors
/// When the thread cannot start.
pub(super) fn ask_mount<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Option<T>> {
    let (send, received) = mpsc::channel();
    std::thread::Builder::new().spawn(move || send.send(work()))?;
    Ok(received.recv_timeout(ANSWER).ok())
}

fn look(path: &Path) -> std::io::Result<MountpointContent> {
    // The kernel may still cache attributes of a mount whose process died; reading its names fails.
    let looked = std::fs::metadata(path).and_then(|metadata| {
        if !metadata.is_dir() {
            return Ok(MountpointContent::NoFolder);
        }
        match std::fs::read_dir(path)?.next() {
            None => Ok(MountpointContent::Empty),
            Some(first) => first.map(|_| MountpointContent::NotEmpty),
        }
    });
    match looked {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(MountpointContent::Missing)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(MountpointContent::Dead),
        looked => looked,
    }
}

fn wrong(found: MountpointContent, is_ours: bool) -> Option<&'static str> {
    match (found, is_ours) {
        (MountpointContent::Missing, _) => Some("it does not exist: make it with mkdir"),
        (MountpointContent::NoFolder, _) => Some("it is not a folder"),
        (MountpointContent::Dead, _) => {
            Some("it is a mount whose program has died: unmount it with fusermount3 -u")
        }
        (_, true) => Some("ebsfs has mounted there already: unmount it with ebsfs umount"),
        (MountpointContent::NotEmpty, _) => Some("it is not empty"),
        (MountpointContent::Empty, false) => None,
    }
}

/// The mount of ebsfs at a path, of any process.
///
/// # Errors
/// `Io` when ebsfs has mounted nothing there.
pub(super) fn ours_at(path: &Path) -> Result<MountIdentity> {
    let at = absolute(path)?;
    let table = MountTable::read()?;
    match table.mounted_at(&at).filter(|mount| mount.is_ours) {
        Some(mount) => Ok(mount.identity()),
        None => {
            let what = format!(
                "cannot unmount {}: it is not a mount of ebsfs",
                path.display()
            );
            Err(Error::new(Kind::Io, what))
        }
    }
}

/// The path as the mount table has it. It does not access the mount itself, which may hang.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let shown = path.display().to_string();
    let failed = |error| Error::with_source(Kind::Io, shown.clone(), error);
    let mut path = std::path::absolute(path).map_err(failed)?;
    // The kernel follows at most 40 links.
    for _ in 0..40 {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            break;
        };
        path = parent.canonicalize().map_err(failed)?.join(name);
        match std::fs::read_link(&path) {
            Ok(target) => {
                path = path.parent().unwrap_or(Path::new("/")).join(target);
                // A path that ends in `..` has no name.
                if path.file_name().is_none() {
                    path = path.canonicalize().map_err(failed)?;
                }
            }
            Err(_) => break,
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_folder_without_a_mount_of_ours_will_do() {
        let all = [
            MountpointContent::Missing,
            MountpointContent::NoFolder,
            MountpointContent::Dead,
            MountpointContent::Empty,
            MountpointContent::NotEmpty,
        ];
        for found in all {
            for is_ours in [false, true] {
                let good = found == MountpointContent::Empty && !is_ours;
                assert_eq!(wrong(found, is_ours).is_none(), good, "{found:?} {is_ours}");
            }
        }
    }
}
