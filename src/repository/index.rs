//! [`Index`]: which blocks a repository holds, by their digests, so that no content is sent that is there already. It is
//! a file of this machine, made of the segments of all snapshots; each segment is read once, and nothing is lost with it.
//!
//! It speaks of packs that some snapshot leads to: brought up to date after the run was put on record, for from then on nothing
//! goes that a snapshot led to then (see `prune`).

mod builder;
mod table;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use tracing::{info, warn};

use super::catalog::RepositoryCatalog;
use super::check::is_damage;
use super::pack::{Name, Spot};
use super::run::removed;
use super::segments;
use crate::block::Digest;
use crate::error::{Error, Kind, Result};
use crate::files::{blocking, make_folder_of, remove_if_there, with_ending};
use builder::Builder;
use table::Table;

/// The blocks of a repository.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    table: Table,
    is_damaged: AtomicBool,
}

impl Index {
    /// The index that is kept at `path`, of what the repository holds now. Whoever else brings it up to date is waited for.
    ///
    /// # Errors
    /// Why the repository cannot be read, or the index not be written. What is damaged there is left out.
    pub async fn update(catalog: &RepositoryCatalog, path: &Path) -> Result<Self> {
        match Self::brought_up_to_date(catalog, path).await {
            Err(error) if error.kind() == Kind::Corrupt => {
                warn!("made anew: {}", error.chain());
                remove_if_there(path)?;
                Self::brought_up_to_date(catalog, path).await
            }
            updated => updated,
        }
    }

    async fn brought_up_to_date(catalog: &RepositoryCatalog, path: &Path) -> Result<Self> {
        let wanted = live_segments(catalog).await?;
        let at = path.to_owned();
        let (lock, (mut builder, missing)) = blocking(move || {
            make_folder_of(&at)?;
            let lock = lock(&at)?;
            Ok((lock, Builder::open(&at, &wanted)?))
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

    /// Where a block of this digest is. One that cannot be read finds nothing any more, and is made anew next time.
    pub(super) fn find(&self, digest: &Digest) -> Option<(Name, Spot)> {
        if self.is_damaged.load(Ordering::Relaxed) {
            return None;
        }
        match self.table.find(digest) {
            Ok(found) => found,
            Err(error) => {
                if !self.is_damaged.swap(true, Ordering::Relaxed) {
                    let path = self.path.display();
                    warn!("{path} is not used any more, it is damaged: {error}");
                    if let Err(error) = remove_if_there(&self.path) {
                        warn!("{}", error.chain());
                    }
                }
                None
            }
        }
    }
}

/// Until it is dropped nobody else writes the index.
fn lock(path: &Path) -> Result<File> {
    let path = with_ending(path, "-lock");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(&path);
    let file = file.map_err(|error| Error::of_file(&path, "cannot open", error))?;
    if file.try_lock().is_err() {
        info!("another sync brings {} up to date: waiting", path.display());
        file.lock()
            .map_err(|error| Error::of_file(&path, "cannot lock", error))?;
    }
    Ok(file)
}

/// The segments of all snapshots but those that somebody has begun to remove.
async fn live_segments(catalog: &RepositoryCatalog) -> Result<BTreeSet<Name>> {
    let read = catalog.roots(catalog.names().await?, |root| root);
    let mut roots = Vec::new();
    for (_, root) in read.await? {
        match root {
            Ok(root) => roots.push(root),
            Err(error) if is_damage(&error) => warn!("left out of the index: {}", error.chain()),
            Err(error) => return Err(error),
        }
    }
    // After they were read: one that is removed from now on stays as long as the run that is on record.
    let gone = catalog.store().list("removed").await?;
    let gone: BTreeSet<String> = gone.into_iter().map(|object| object.name).collect();
    roots.retain(|root| !gone.contains(&removed(&root.name().to_string(), &root.run)));
    let segments = roots.iter().flat_map(|root| &root.segments);
    Ok(segments.map(|of| of.name).collect())
}
