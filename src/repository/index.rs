//! [`Index`]: the dedup index, from a block's digest to its pack, so that no block is sent twice. It is a file of this machine,
//! made from the segments of all snapshots. Each segment is read once; a lost index is only made again.
//!
//! It names packs that some snapshot leads to. It is updated after the run was put on record: from then on `prune` keeps
//! everything that a snapshot led to at that time.

mod builder;
mod table;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;
use tracing::{info, warn};

use super::catalog::RepositoryCatalog;
use super::check::is_damage;
use super::pack::{Name, Spot};
use super::segments;
use super::settled::Unsettled;
use crate::block::Digest;
use crate::error::{Error, Kind, Result};
use crate::files::{blocking, make_folder_of, open_ours, remove_if_there, with_ending};
use crate::target::Stop;
use builder::Builder;
use table::IndexTable;

/// The blocks of a repository.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    table: IndexTable,
    is_damaged: AtomicBool,
}

impl Index {
    /// Opens the index at `path` and updates it with what the repository holds now. It waits for another process that updates
    /// it. It sees a stop within a second.
    ///
    /// # Errors
    /// Why the repository cannot be read, or the index not be written; `Stopped`. What is damaged there is left out.
    pub(crate) async fn update(
        catalog: &RepositoryCatalog,
        path: &Path,
        stop: &Stop,
    ) -> Result<Self> {
        match stop.unless(Self::updated(catalog, path, stop)).await {
            Err(error) if error.kind() == Kind::Corrupt => {
                warn!("making a new index: {}", error.chain());
                remove_if_there(path)?;
                stop.unless(Self::updated(catalog, path, stop)).await
            }
            updated => updated,
        }
    }

    async fn updated(catalog: &RepositoryCatalog, path: &Path, stop: &Stop) -> Result<Self> {
        let wanted = live_segments(catalog).await?;
        make_folder_of(path)?;
        let lock = lock(path).await?;
        let (at, stopping) = (path.to_owned(), stop.clone());
        let (lock, (mut builder, missing)) = blocking(move || {
            let builder = Builder::open(&at, &wanted, stopping)?;
            Ok((lock, builder))
        })
        .await?;
        if !missing.is_empty() {
            info!(
                "reading {} segments into the index of what {} holds",
                missing.len(),
                catalog.store().address()
            );
        }
        let store = catalog.store();
        let mut read = pin!(segments::read_all(store, missing));
        while let Some((name, segment)) = read.next().await {
            let segment = match segment {
                Err(error) if is_damage(&error) => {
                    warn!("left out of the index: {}", error.chain());
                    continue;
                }
                segment => segment?,
            };
            builder = blocking(move || {
                builder.add(name, &segment)?;
                Ok(builder)
            })
            .await?;
        }
        let table = blocking(move || {
            let table = builder.finish();
            drop(lock);
            table
        });
        Ok(Self {
            path: path.to_owned(),
            table: table.await?,
            is_damaged: AtomicBool::new(false),
        })
    }

    /// Where a block of this digest is. An index that cannot be read finds nothing any more; the next run makes a new one.
    pub(super) fn find(&self, digest: &Digest) -> Option<(Name, Spot)> {
        if self.is_damaged.load(Ordering::Relaxed) {
            return None;
        }
        match self.table.find(digest) {
            Ok(found) => found,
            Err(error) => {
                if !self.is_damaged.swap(true, Ordering::Relaxed) {
                    let path = self.path.display();
                    warn!("ignoring {path} from now on, it is damaged: {error}");
                    if let Err(error) = remove_if_there(&self.path) {
                        warn!("{}", error.chain());
                    }
                }
                None
            }
        }
    }
}

/// How often a lock that another process holds is tried.
const LOCK_EVERY: Duration = Duration::from_millis(100);

/// Locks the index. Until the lock is dropped, no other process writes it.
async fn lock(path: &Path) -> Result<File> {
    let path = with_ending(path, "-lock");
    let file = lock_file(&path)?;
    let mut is_said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(Error::of_file(&path, "cannot lock", error));
            }
            Err(std::fs::TryLockError::WouldBlock) if !is_said => {
                info!("waiting for another run that updates {}", path.display());
                is_said = true;
            }
            Err(std::fs::TryLockError::WouldBlock) => {}
        }
        // Not a blocking lock: a thread that waits for one cannot be stopped.
        sleep(LOCK_EVERY).await;
    }
}

/// The file that is locked. It is never replaced, so that two processes lock the same one.
fn lock_file(path: &Path) -> Result<File> {
    if let Some(file) = open_ours(path, true)? {
        return Ok(file);
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    match options.custom_flags(libc::O_NOFOLLOW).open(path) {
        // Another process has made it meanwhile, or it is not ours.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_ours(path, true)?
            .ok_or_else(|| {
                let what = format!("cannot lock {}: it is not ours", path.display());
                Error::new(Kind::Io, what)
            }),
        made => made.map_err(|error| Error::of_file(path, "cannot make", error)),
    }
}

/// The segments of all snapshots that a run may rely on.
async fn live_segments(catalog: &RepositoryCatalog) -> Result<BTreeSet<Name>> {
    let read = catalog.manifests(catalog.names().await?, |manifest| manifest);
    let mut manifests = Vec::new();
    for (_, manifest) in read.await? {
        match manifest {
            Ok(manifest) => manifests.push(manifest),
            Err(error) if is_damage(&error) => warn!("left out of the index: {}", error.chain()),
            Err(error) => return Err(error),
        }
    }
    let unsettled = Unsettled::among(catalog.store(), &manifests).await?;
    manifests.retain(|manifest| unsettled.why(manifest).is_none());
    let segments = manifests.iter().flat_map(|manifest| &manifest.segments);
    Ok(segments.map(|of| of.name).collect())
}
