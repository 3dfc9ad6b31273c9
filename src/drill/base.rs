//! [`MountedDisks`]: the disks of a drill as files that cannot be written: a mount of ebsfs, read only, over the sources.
//!
//! The kernel refuses each write there, whatever a program tries. Sources are images, snapshots and repositories alike, and the
//! blocks that several programs read are fetched once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::future::{BoxFuture, FutureExt, ready};

use super::DrillDisk;
use super::isolation::Isolation;
use super::scratch::Scratch;
use crate::cache::{Cache, CachedCatalog};
use crate::error::{Error, Kind, Result};
use crate::fs::{Access, Mounted, Needs, Ownership, Provenance, Tree, Unmounted};
use crate::image::ReadaheadBudget;
use crate::snapshot::{Snapshot, SnapshotId};
use crate::source::{BlockSource, Catalog, Changes};

/// Blocks, cached and in flight together.
const MEMORY: ByteSize = ByteSize::mib(128);
const IN_FLIGHT: u32 = 64;
/// Threads of the mount, and of what reads disks here.
const THREADS: usize = 12;
/// Descriptors besides those of requests in flight: the session, programs' pipes, the log.
const DESCRIPTORS: u64 = 48;
/// How long programs may take to close the disks after they were ended.
const CLOSING: Duration = Duration::from_secs(5);

/// The mounted disks. Dropping it detaches the mount.
#[derive(Debug)]
pub(crate) struct MountedDisks {
    mounted: Mounted,
    disks: usize,
}

/// The disks as snapshots of a catalog, by the name of [`disk_id`].
struct DrillCatalog(Vec<Arc<dyn BlockSource>>);

/// What the mount calls a disk.
fn disk_id(number: usize) -> Result<SnapshotId> {
    format!("snap-{:017x}", number + 1).parse()
}

impl DrillCatalog {
    fn find(&self, id: &SnapshotId) -> Result<(Snapshot, Arc<dyn BlockSource>)> {
        for (number, blocks) in self.0.iter().enumerate() {
            if disk_id(number)? == *id {
                let snapshot = Snapshot {
                    volume_size: Some(blocks.geometry().size()),
                    ..Snapshot::unknown(id.clone())
                };
                return Ok((snapshot, Arc::clone(blocks)));
            }
        }
        Err(Error::new(Kind::NotFound, format!("no disk {id}")))
    }
}

impl Catalog for DrillCatalog {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Arc<Snapshot>>>> {
        let ids = (0..self.0.len()).map(disk_id);
        let found = ids.map(|id| self.find(&id?).map(|(snapshot, _)| Arc::new(snapshot)));
        ready(found.collect()).boxed()
    }

    fn open<'a>(
        &'a self,
        id: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<(Snapshot, Arc<dyn BlockSource>)>> {
        ready(self.find(id)).boxed()
    }

    fn delta<'a>(
        &'a self,
        _base: &'a SnapshotId,
        _head: &'a SnapshotId,
    ) -> BoxFuture<'a, Result<Changes>> {
        let what = "the disks of a drill are not compared";
        ready(Err(Error::new(Kind::Unrelated, what))).boxed()
    }
}

impl MountedDisks {
    /// Mounts the disks in the scratch folder, for the user of the drill's programs alone.
    ///
    /// # Errors
    /// `Io` when the limits of the process or the system do not allow it.
    pub(crate) fn mount(
        disks: &[DrillDisk],
        scratch: &Scratch,
        isolation: &Isolation,
        timeout: Duration,
    ) -> Result<Self> {
        crate::fs::reserve(Needs {
            threads: THREADS,
            descriptors: u64::from(IN_FLIGHT) + DESCRIPTORS,
            memory: MEMORY.as_u64(),
        })?;
        let sources = disks.iter().map(|disk| Arc::clone(&disk.blocks)).collect();
        let cache = Cache::new(MEMORY, IN_FLIGHT)?;
        let readahead = ReadaheadBudget::new(cache.max_readahead());
        let (uid, gid) = isolation.user.map_or_else(
            || {
                (
                    nix::unistd::geteuid().as_raw(),
                    nix::unistd::getegid().as_raw(),
                )
            },
            |user| (user, user),
        );
        let tree = Tree::new(
            Arc::new(CachedCatalog::new(cache, Arc::new(DrillCatalog(sources)))),
            Ownership {
                uid,
                gid,
                mode: 0o400,
            },
            readahead,
            timeout,
            Provenance::default(),
        );
        let access = match isolation.user {
            Some(_) => Access::AllUsers,
            None => Access::Owner,
        };
        let mounted = crate::fs::mount(tree, &scratch.folder("disks")?, "ebsfs", access)?;
        Ok(Self {
            mounted,
            disks: disks.len(),
        })
    }

    /// The file of a disk.
    pub(crate) fn disk(&self, number: usize) -> Result<PathBuf> {
        let id = disk_id(number.min(self.disks))?;
        let folder = self.mounted.mountpoint().join("snapshots");
        Ok(folder.join(id.as_str()).join("disk.raw"))
    }

    /// Reads that failed so far: what a program then says of a disk is not about the disk.
    pub(super) fn failed_reads(&self) -> u64 {
        self.mounted.activity().counts().failures.values().sum()
    }

    /// Detaches the mount: files that are open stay readable, and the mount ends with the last of them.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn hide(&self) -> Result<()> {
        self.mounted.detach().map(drop)
    }

    /// Waits until the kernel has ended the mount.
    ///
    /// # Errors
    /// `Io` when the connection to the kernel broke.
    pub(crate) async fn ended(&self) -> Result<()> {
        self.mounted.ended().await
    }

    /// Unmounts the disks when their readers have closed them; detaches them if that takes long.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn unmount(self) -> Result<()> {
        self.mounted.drain(true);
        let until = tokio::time::Instant::now() + CLOSING;
        while tokio::time::Instant::now() < until {
            let unmounted = tokio::task::block_in_place(|| self.mounted.unmount())?;
            if unmounted != Unmounted::Busy {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The drop detaches it.
        Ok(())
    }
}

impl Drop for MountedDisks {
    fn drop(&mut self) {
        self.mounted.drain(true);
        // It may be unmounted already.
        let _ = self.mounted.detach();
    }
}

/// Reads up to so many bytes of a file; fewer only at its end.
///
/// # Errors
/// What the system says.
pub(crate) fn read_file(path: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
