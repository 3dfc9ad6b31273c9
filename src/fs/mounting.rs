//! Mounting: as root by the system call, as anyone else by `fusermount3`, which hands the descriptor over.
//!
//! fuser's own mount is not used: at the end of the session it unmounts the path, also where another mount is there by then.

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
use crate::error::{Error, Kind, Result};

/// Source of the mount, and subtype of its filesystem: they identify mounts of ebsfs in the mount table.
const NAME: &str = "ebsfs";
/// How long to wait while another process mounts at the same folder. A lock held for longer has another purpose.
const OTHERS: Duration = Duration::from_secs(2);

/// Mounts at an absolute path without links. Returns the connection to the kernel; the mount answers once a session serves it.
///
/// # Errors
/// `Io` with the reason and the remedy.
pub(super) fn mount_at(mountpoint: &Path, allows_others: bool) -> Result<(OwnedFd, MountIdentity)> {
    // Of two processes that start at once, the second one finds the mount of the first and refuses.
    let _alone = lock(mountpoint);
    check_mountpoint(mountpoint)?;
    let connection = mount_as_root(mountpoint, allows_others)
        .and_then(|mounted| match mounted {
            Some(connection) => Ok(connection),
            None => mount_as_user(mountpoint, allows_others),
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
fn mount_as_root(mountpoint: &Path, allows_others: bool) -> io::Result<Option<OwnedFd>> {
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
        Some(NAME),
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
fn mount_as_user(mountpoint: &Path, allows_others: bool) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut options =
        format!("fsname={NAME},subtype={NAME},default_permissions,ro,nodev,nosuid,noexec,noatime");
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

/// The error of a failed mount, with its remedy.
fn cannot_mount(mountpoint: &Path, allows_others: bool, error: io::Error) -> Error {
    let what = format!("cannot mount at {}", mountpoint.display());
    let hint = if !Path::new("/dev/fuse").exists() {
        "; there is no /dev/fuse: load the module (modprobe fuse), or give the container the device"
    } else if let Err(device) = OpenOptions::new().read(true).write(true).open("/dev/fuse")
        && device.kind() == io::ErrorKind::PermissionDenied
    {
        "; this user may not open /dev/fuse: the package fuse3 gives it to all users"
    } else if allows_others && error.kind() == io::ErrorKind::PermissionDenied {
        "; --allow-other and --allow-root need user_allow_other in /etc/fuse.conf"
    } else if error.kind() == io::ErrorKind::NotFound {
        "; mounting without being root needs fusermount3 (package fuse3)"
    } else {
        ""
    };
    Error::with_source(Kind::Io, format!("{what}{hint}"), error)
}
