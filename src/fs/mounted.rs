//! A mount from outside: its settings in the kernel, and its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tracing::debug;

use super::activity::Activity;
use super::mount_table::MountIdentity;
use super::unmount::{Unmounted, unmount};
use crate::block::BLOCK_SIZE;
use crate::error::Result;

/// A mounted tree. Dropping it does not unmount: the caller says how.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(super) mountpoint: PathBuf,
    pub(super) identity: MountIdentity,
    pub(super) draining: watch::Sender<bool>,
    pub(super) ended: watch::Receiver<Option<Result<()>>>,
    pub(super) activity: Arc<Activity>,
}

impl Mounted {
    /// Where it was mounted.
    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Counts of its readers' requests.
    pub(crate) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    /// Waits until the kernel has ended the connection: the last mount of it is unmounted, and its last file is closed.
    ///
    /// # Errors
    /// `Io` when the connection to the kernel broke.
    pub(crate) async fn ended(&self) -> Result<()> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// While draining, each request that waits gets EIO, and so does each that would have to wait.
    pub(crate) fn drain(&self, draining: bool) {
        self.draining.send_replace(draining);
    }

    /// Unmounts this mount, and nothing else that may be at its path.
    ///
    /// # Errors
    /// `Io` when it cannot be unmounted for another reason than those of [`Unmounted`].
    pub(crate) fn unmount(&self) -> Result<Unmounted> {
        unmount(&self.identity, false)
    }

    /// Detaches the mount from its path, also while its files are open.
    ///
    /// # Errors
    /// `Io` when the system refuses it.
    pub(crate) fn detach(&self) -> Result<Unmounted> {
        unmount(&self.identity, true)
    }
}

/// Sets the kernel's readahead to one block, if this user may (root): its default of 128 KiB makes four requests of a block.
/// Not more: a lone read of 1 MiB would read up to 1 MiB ahead, and each block of that is a request to EBS.
///
/// <https://docs.kernel.org/admin-guide/abi-testing.html#abi-sys-class-bdi-bdi-read-ahead-kb>
pub(super) fn raise_readahead(identity: &MountIdentity) {
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", identity.device);
    if let Err(error) = std::fs::write(&setting, (BLOCK_SIZE / 1024).to_string()) {
        debug!("{setting}: {error}");
    }
}
