//! Unmounting: as root by the system call, as anyone else by `fusermount3`.

use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, umount2};

use crate::error::{Error, Kind, Result};

/// Unmounts a path as root does, or as `fusermount3` does for who mounted it. `false`: it is busy.
///
/// # Errors
/// `Io` when it cannot be unmounted for another reason.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<bool> {
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
    let output = Command::new("fusermount3")
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(mountpoint)
        .output()
        .map_err(|error| {
            Error::with_source(
                Kind::Io,
                format!("{what}: fusermount3 (package fuse3)"),
                error,
            )
        })?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(true)
    } else if said.contains("busy") {
        Ok(false)
    } else {
        Err(Error::new(Kind::Io, format!("{what}: {}", said.trim())))
    }
}
