//! Mounting: as root by the system call, as anyone else by `fusermount3`, which hands the descriptor over.
//!
//! fuser's own mount is not used: at the end of the session it unmounts the path, also where another mount is there by then.

mod ready;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{getegid, geteuid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::mount_table::{MountIdentity, MountTable};
use super::mountpoint::check_mountpoint;
use super::unmount;
use crate::error::{Error, Kind, Remedy, Result};

pub(crate) use ready::check_mounting;

/// Subtype of the filesystem: it identifies mounts of ebsfs in the mount table.
const NAME: &str = "ebsfs";
/// How long to wait while another process mounts at the same folder. A lock held for longer has another purpose.
const OTHERS: Duration = Duration::from_secs(2);

/// Mounts at an absolute path without links; the mount table shows `source`. Returns the connection to the kernel; the mount answers once a session serves it.
///
/// # Errors
/// `Io` with the reason and the remedy.
pub(super) fn mount_at(
    mountpoint: &Path,
    source: &str,
    allows_others: bool,
) -> Result<(OwnedFd, MountIdentity)> {
    // Of two processes that start at once, the second one finds the mount of the first and refuses.
    let _alone = lock(mountpoint);
    check_mountpoint(mountpoint)?;
    let connection = mount_as_root(mountpoint, source, allows_others)
        .and_then(|mounted| match mounted {
            Some(connection) => Ok(connection),
            None => mount_as_user(mountpoint, source, allows_others),
        })
        .map_err(|error| cannot_mount(mountpoint, allows_others, error))?;
    let table = MountTable::read()?;
    let Some(line) = table.mounted_at(mountpoint).filter(|line| line.is_ours) else {
        let what = format!(
            "cannot mount at {}: something else was mounted there meanwhile",
            mountpoint.display()
        );
        return Err(Error::new(Kind::Io, what));
    };
    let identity = line.identity();
    Ok((connection, identity))
}

/// The folder, locked if possible within [`OTHERS`].
fn lock(mountpoint: &Path) -> Option<File> {
    let folder = File::open(mountpoint).ok()?;
    let until = Instant::now() + OTHERS;
    while let Err(TryLockError::WouldBlock) = folder.try_lock()
        && Instant::now() < until
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(folder)
}

/// `None` where only root may mount.
fn mount_as_root(
    mountpoint: &Path,
    source: &str,
    allows_others: bool,
) -> io::Result<Option<OwnedFd>> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    // Without default_permissions neither fuser nor the kernel checks a mode.
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        geteuid(),
        getegid(),
        if allows_others { ",allow_other" } else { "" }
    );
    let flags = MsFlags::MS_RDONLY
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NOEXEC
        | MsFlags::MS_NOATIME;
    let kind = format!("fuse.{NAME}");
    match mount(
        Some(source),
        mountpoint,
        Some(kind.as_str()),
        flags,
        Some(options.as_str()),
    ) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `fusermount3` mounts, and sends the descriptor through the socket that `_FUSE_COMMFD` names: its stdin.
fn mount_as_user(mountpoint: &Path, source: &str, allows_others: bool) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut options = format!(
        "fsname={},subtype={NAME},default_permissions,ro,nodev,nosuid,noexec,noatime",
        escaped(source)
    );
    if allows_others {
        options.push_str(",allow_other");
    }
    let child = Command::new(unmount::FUSERMOUNT)
        .args(["-o", &options, "--"])
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let received = receive_descriptor(&ours);
    drop(ours);
    let output = child.wait_with_output()?;
    match received? {
        Some(connection) => Ok(connection),
        None => {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let kind = if message.contains("user_allow_other") {
                io::ErrorKind::PermissionDenied
            } else {
                io::ErrorKind::Other
            };
            Err(io::Error::new(kind, message))
        }
    }
}

/// A value as `fusermount3` takes it: behind a backslash a comma ends no option.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// `None` when the other side ends without sending one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

/// What opening `/dev/fuse` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FuseDevice {
    Usable,
    /// There is no such file.
    Missing,
    /// The file is there, and no driver behind it.
    NoDriver,
    /// Its permissions forbid it to this user.
    Denied,
    /// The device rules of a container forbid it to everyone in it.
    Forbidden,
    /// Another error, or another file.
    Other,
}

impl FuseDevice {
    /// Opens the device and closes it again.
    fn look() -> Self {
        use std::os::unix::fs::FileTypeExt;
        let path = Path::new("/dev/fuse");
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(device) => {
                let found = device.metadata();
                match found.is_ok_and(|found| found.file_type().is_char_device()) {
                    true => Self::Usable,
                    false => Self::Other,
                }
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => Self::Missing,
                Some(libc::ENODEV | libc::ENXIO) => Self::NoDriver,
                Some(libc::EACCES) => Self::Denied,
                Some(libc::EPERM) => Self::Forbidden,
                _ => Self::Other,
            },
        }
    }
}

/// What is known of a mount that failed.
#[derive(Clone, Copy, Debug)]
struct FailedMount {
    device: FuseDevice,
    is_root: bool,
    allows_others: bool,
    has_fusermount: bool,
    reason: io::ErrorKind,
}

impl FailedMount {
    /// What a person can do about it, if that is known.
    fn remedy(self) -> Option<&'static str> {
        Some(match self.device {
            FuseDevice::Missing | FuseDevice::NoDriver => {
                "load the kernel module fuse (modprobe fuse); a container needs --device /dev/fuse --cap-add SYS_ADMIN"
            }
            FuseDevice::Denied => {
                "this user may not open /dev/fuse: install the package fuse3, which opens it to all users, or chmod 666 /dev/fuse"
            }
            FuseDevice::Forbidden => {
                "start the container with --device /dev/fuse --cap-add SYS_ADMIN"
            }
            _ if self.allows_others && self.reason == io::ErrorKind::PermissionDenied => {
                "a mount of a user other than root is shared only with the line user_allow_other in /etc/fuse.conf"
            }
            _ if self.is_root => match self.reason {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::Other => {
                    "root may mount only with CAP_SYS_ADMIN; start the container with --device /dev/fuse --cap-add SYS_ADMIN"
                }
                _ => return None,
            },
            _ if !self.has_fusermount => {
                "users other than root mount by fusermount3: install the package fuse3, or run this as root"
            }
            _ => return None,
        })
    }
}

/// The error of a failed mount, with its remedy.
fn cannot_mount(mountpoint: &Path, allows_others: bool, error: io::Error) -> Error {
    let failed = FailedMount {
        device: FuseDevice::look(),
        is_root: geteuid().is_root(),
        allows_others,
        // Of what this user runs, only fusermount3 can be missing.
        has_fusermount: error.kind() != io::ErrorKind::NotFound,
        reason: error.kind(),
    };
    let what = match failed.device {
        FuseDevice::Missing => "there is no /dev/fuse",
        FuseDevice::NoDriver => "/dev/fuse has no driver",
        _ if !failed.is_root && !failed.has_fusermount => "there is no fusermount3",
        _ => "",
    };
    let at = mountpoint.display();
    let failure = match what {
        "" => Error::with_source(Kind::Io, format!("cannot mount at {at}"), error),
        what => Error::new(Kind::Io, format!("cannot mount at {at}: {what}")),
    };
    match failed.remedy() {
        Some(remedy) => failure.with_remedy(Remedy::Do(remedy.into())),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_mount_names_the_package_the_module_or_the_option_of_the_container() {
        use FuseDevice::{Denied, Forbidden, Missing, NoDriver, Other, Usable};
        use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied};
        let reason_other = io::ErrorKind::Other;
        for (device, is_root, allows_others, reason, words) in [
            (Missing, true, false, NotFound, "modprobe fuse"),
            (Missing, false, false, NotFound, "--device /dev/fuse"),
            (NoDriver, true, false, reason_other, "modprobe fuse"),
            (Denied, false, false, PermissionDenied, "package fuse3"),
            (
                Forbidden,
                true,
                false,
                PermissionDenied,
                "start the container",
            ),
            (Usable, false, true, PermissionDenied, "user_allow_other"),
            (Usable, false, false, NotFound, "package fuse3"),
            // Without CAP_SYS_ADMIN the system call is refused, and fusermount3, where there is one, fails too.
            (Usable, true, false, NotFound, "CAP_SYS_ADMIN"),
            (Usable, true, false, reason_other, "CAP_SYS_ADMIN"),
            (Usable, false, false, reason_other, ""),
            (Other, true, false, InvalidInput, ""),
        ] {
            let failed = FailedMount {
                device,
                is_root,
                allows_others,
                has_fusermount: reason != NotFound,
                reason,
            };
            let remedy = failed.remedy().unwrap_or_default();
            assert!(remedy.contains(words), "{failed:?}: {remedy}");
            assert_eq!(remedy.is_empty(), words.is_empty(), "{failed:?}: {remedy}");
        }
    }
}
