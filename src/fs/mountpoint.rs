//! Where `ebsfs mount` may mount, and what `ebsfs umount` may unmount.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::mount_table::{MountIdentity, MountTable};
use crate::error::{Error, Kind, Result};

/// How long a mount may take to show whether it is dead.
const ANSWER: Duration = Duration::from_secs(2);

/// What is found at a mountpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FoundThere {
    Missing,
    NoFolder,
    Dead,
    Empty,
    NotEmpty,
}

/// Checks that a path is an empty folder. Something may be mounted there, a tmpfs or a subvolume, but no mount of ebsfs.
///
/// # Errors
/// `Io` with what is wrong with it.
pub fn check_mountpoint(path: &Path) -> Result<()> {
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

/// A mount of ebsfs that hangs is one that is there.
fn look_in_time(path: &Path) -> std::io::Result<FoundThere> {
    let (tell, told) = mpsc::channel();
    let path = path.to_path_buf();
    std::thread::Builder::new().spawn(move || tell.send(look(&path)))?;
    told.recv_timeout(ANSWER)
        .unwrap_or(Ok(FoundThere::NotEmpty))
}

fn look(path: &Path) -> std::io::Result<FoundThere> {
    // Attributes may still be cached of a mount whose program has died; its names cannot be read.
    let looked = std::fs::metadata(path).and_then(|metadata| {
        if !metadata.is_dir() {
            return Ok(FoundThere::NoFolder);
        }
        match std::fs::read_dir(path)?.next() {
            None => Ok(FoundThere::Empty),
            Some(first) => first.map(|_| FoundThere::NotEmpty),
        }
    });
    match looked {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(FoundThere::Missing),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(FoundThere::Dead),
        looked => looked,
    }
}

fn wrong(found: FoundThere, is_ours: bool) -> Option<&'static str> {
    match (found, is_ours) {
        (FoundThere::Missing, _) => Some("it does not exist: make it with mkdir"),
        (FoundThere::NoFolder, _) => Some("it is not a folder"),
        (FoundThere::Dead, _) => {
            Some("it is a mount whose program has died: unmount it with fusermount3 -u")
        }
        (_, true) => Some("ebsfs has mounted there already: unmount it with ebsfs umount"),
        (FoundThere::NotEmpty, _) => Some("it is not empty"),
        (FoundThere::Empty, false) => None,
    }
}

/// A mount of ebsfs at a path, whichever process serves it.
///
/// # Errors
/// `Io` when ebsfs has mounted nothing there.
pub(super) fn ours_at(path: &Path) -> Result<MountIdentity> {
    let at = absolute(path)?;
    let table = MountTable::read()?;
    match table.mounted_at(&at).filter(|mount| mount.is_ours) {
        Some(mount) => Ok(MountIdentity {
            id: mount.id,
            device: mount.device.clone(),
        }),
        None => {
            let what = format!(
                "cannot unmount {}: it is not a mount of ebsfs",
                path.display()
            );
            Err(Error::new(Kind::Io, what))
        }
    }
}

/// The path as the mount table has it. What is mounted there is not touched: it may not answer.
fn absolute(path: &Path) -> Result<PathBuf> {
    let shown = path.display().to_string();
    let failed = |error| Error::with_source(Kind::Io, shown.clone(), error);
    let mut path = std::path::absolute(path).map_err(failed)?;
    // As deep as the kernel follows links.
    for _ in 0..40 {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            break;
        };
        path = parent.canonicalize().map_err(failed)?.join(name);
        match std::fs::read_link(&path) {
            Ok(target) => {
                path = path.parent().unwrap_or(Path::new("/")).join(target);
                // `a/..` is not an end that has a name.
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
            FoundThere::Missing,
            FoundThere::NoFolder,
            FoundThere::Dead,
            FoundThere::Empty,
            FoundThere::NotEmpty,
        ];
        for found in all {
            for is_ours in [false, true] {
                let good = found == FoundThere::Empty && !is_ours;
                assert_eq!(wrong(found, is_ours).is_none(), good, "{found:?} {is_ours}");
            }
        }
    }
}
