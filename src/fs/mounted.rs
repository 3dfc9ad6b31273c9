//! A mount from outside: its settings in the kernel, its end, and why there is none.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use tokio::sync::watch;
use tracing::debug;

use super::unmount::unmount;
use crate::block::BLOCK_SIZE;
use crate::error::{Error, Kind, Result};

/// A mounted tree. Dropping it does not unmount: the caller says how.
#[derive(Debug)]
pub struct Mounted {
    pub(super) mountpoint: PathBuf,
    pub(super) draining: watch::Sender<bool>,
    pub(super) ended: watch::Receiver<Option<Result<()>>>,
}

impl Mounted {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Waits until the kernel has let go of the mount, whoever unmounted it.
    ///
    /// # Errors
    /// `Io` when the connection to the kernel broke.
    pub async fn ended(&self) -> Result<()> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// While draining, whoever waits gets EIO, and so does whoever would have to wait.
    pub fn drain(&self, draining: bool) {
        self.draining.send_replace(draining);
    }

    /// Unmounts. `false`: something still uses it, and it stays mounted.
    ///
    /// # Errors
    /// `Io` when it cannot be unmounted for another reason.
    pub fn unmount(&self) -> Result<bool> {
        unmount(&self.mountpoint, false)
    }

    /// Takes the mount out of sight, whatever still uses it.
    ///
    /// # Errors
    /// `Io` when that cannot be done.
    pub fn detach(&self) -> Result<()> {
        unmount(&self.mountpoint, true).map(drop)
    }
}

/// Lets the kernel ask for a whole block at once where we may (root): its default of 128 KiB makes four requests of it. Not
/// more than a block: a lone read of 1 MiB would bring up to 1 MiB more with it, each block of which is a request to EBS.
///
/// <https://docs.kernel.org/admin-guide/abi-testing.html#abi-sys-class-bdi-bdi-read-ahead-kb>
pub(super) fn raise_readahead(mountpoint: &Path) {
    let Ok(metadata) = std::fs::metadata(mountpoint) else {
        return;
    };
    let (major, minor) = (major(metadata.dev()), minor(metadata.dev()));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&setting, (BLOCK_SIZE / 1024).to_string()) {
        debug!("{setting}: {error}");
    }
}

/// Why it cannot be mounted, with what to do about it.
pub(super) fn cannot_mount(mountpoint: &Path, error: io::Error) -> Error {
    let what = format!("cannot mount at {}", mountpoint.display());
    let hint = if !Path::new("/dev/fuse").exists() {
        "; there is no /dev/fuse: load the module (modprobe fuse), or give the container the device"
    } else if let Err(device) = OpenOptions::new().read(true).write(true).open("/dev/fuse")
        && device.kind() == io::ErrorKind::PermissionDenied
    {
        "; this user may not open /dev/fuse, which everybody may where the package fuse3 has set it up"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "; --allow-other and --allow-root need user_allow_other in /etc/fuse.conf"
    } else if error.kind() == io::ErrorKind::NotFound {
        "; mounting without being root needs fusermount3 (package fuse3)"
    } else {
        ""
    };
    Error::with_source(Kind::Io, format!("{what}{hint}"), error)
}
