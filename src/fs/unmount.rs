//! Unmounting: as root by the system call, as any other user by `fusermount3`. It unmounts only mounts of ebsfs, at the path that
//! the mount table has for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use super::mount_table::{MountIdentity, MountLocation, MountTable};
use crate::error::{Error, Kind, Result};

/// The program that mounts and unmounts for a user other than root (package fuse3).
pub(super) const FUSERMOUNT: &str = "fusermount3";

/// The result of an attempt to unmount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unmounted {
    /// The mount is no longer at its path.
    Done,
    /// Something still uses it, and it stays mounted.
    Busy,
    /// Another mount lies over this path; both stay.
    Covered(PathBuf),
    /// The mount is not in this mount namespace any more; another namespace or open files may hold it.
    Absent,
}

/// Unmounts this mount at its present path, and never another mount. `lazy` detaches a busy one.
pub(crate) fn unmount(identity: &MountIdentity, lazy: bool) -> Result<Unmounted> {
    match MountTable::read()?.place(identity) {
        MountLocation::Reachable(path) => {
            if !unmount_path(&path, lazy)? {
                return Ok(Unmounted::Busy);
            }
            // A mount that a user namespace has inherited is locked: the kernel calls it no mountpoint.
            match MountTable::read()?.place(identity) {
                MountLocation::Reachable(path) => Err(Error::new(
                    Kind::Io,
                    format!("cannot unmount {}: it is locked here", path.display()),
                )),
                _ => Ok(Unmounted::Done),
            }
        }
        MountLocation::Covered(path) => Ok(Unmounted::Covered(path)),
        MountLocation::Absent => Ok(Unmounted::Absent),
    }
}

/// `false`: it is busy.
fn unmount_path(mountpoint: &Path, lazy: bool) -> Result<bool> {
    let flags = if lazy {
        MntFlags::MNT_DETACH
    } else {
        MntFlags::empty()
    };
    match umount2(mountpoint, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(true),
        Err(nix::errno::Errno::EBUSY) => Ok(false),
        Err(nix::errno::Errno::EPERM) => fusermount(mountpoint, lazy),
        Err(error) => Err(Error::with_source(
            Kind::Io,
            format!("cannot unmount {}", mountpoint.display()),
            error,
        )),
    }
}

fn fusermount(mountpoint: &Path, lazy: bool) -> Result<bool> {
    let what = format!("cannot unmount {}", mountpoint.display());
    let output = Command::new(FUSERMOUNT)
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(mountpoint)
        .output()
        .map_err(|error| {
            Error::with_source(
                Kind::Io,
                format!("{what}: {FUSERMOUNT} (package fuse3)"),
                error,
            )
        })?;
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(true)
    } else if message.contains("busy") {
        Ok(false)
    } else {
        Err(Error::new(Kind::Io, format!("{what}: {}", message.trim())))
    }
}
