//! [`FileSink`]: a sparse raw image that appears whole or not at all, or is changed where it is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::clone::copy_data;
use super::identity::mark_of;
use super::raw::{self, Raw};
use crate::block::{BlockIndex, Digest, Extent, Geometry};
use crate::disk::{DiskSource, Mark, folder_of, remove_if_there, sync_folder, with_ending};
use crate::error::{Error, Kind, Result};
use crate::sink::{Sink, Written};
use crate::source::BlockSource;

/// Bytes of an old image copied between two moments at which they are safe.
const CLONED_AT_ONCE: u64 = 256 << 20;

/// The part beside an image that becomes it.
#[derive(Clone, Debug)]
pub struct Part {
    target: PathBuf,
    part: PathBuf,
}

impl Part {
    /// The part of an image.
    pub fn of(target: &Path) -> Self {
        Self {
            target: target.to_owned(),
            part: with_ending(target, ".ebsfs-part"),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.part
    }

    /// Whether the part that a checkpoint speaks of, by [`Sink::flush`]'s answer, is still there.
    pub fn is_left(&self, state: &Value) -> bool {
        inode(&self.part).is_some_and(|inode| state["inode"] == inode)
    }

    /// Whether an image in place is the one that a checkpoint speaks of.
    pub fn is_same_image(&self, state: &Value) -> bool {
        inode(&self.target).is_some_and(|inode| state["inode"] == inode)
    }

    /// Forgets the part, for the image is changed itself.
    ///
    /// # Errors
    /// `Io` when it cannot be removed.
    pub fn remove(&self) -> Result<()> {
        remove_if_there(&self.part)
    }

    /// Whether that part has become the image already, and nothing has written it since.
    pub fn is_published(&self, state: &Value) -> bool {
        let mark = mark_of(&self.target);
        !self.part.exists() && mark.is_some_and(|mark| state["mark"] == mark)
    }
}

/// A raw image being written: its part, or itself in place.
pub struct FileSink {
    id: String,
    raw: Raw,
    /// What the part becomes; none in place.
    target: Option<PathBuf>,
}

impl std::fmt::Debug for FileSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileSink({})", self.id)
    }
}

impl FileSink {
    /// An empty part, in place of whatever part there was: all of it reads as zeroes.
    ///
    /// # Errors
    /// `Io` when it cannot be made.
    pub fn new_part(part: &Part, geometry: Geometry) -> Result<Self> {
        Self::open_part(part, geometry, true)
    }

    /// Gives the part what the image holds from byte `from` on, as much as is worth making safe at once: what
    /// [`FileSink::cloned`] wants to know to go on from there. The part is new, or is one that this was begun with.
    ///
    /// # Errors
    /// `Io`, or `NoSpace` when it does not fit.
    pub async fn clone_some(&self, from: u64) -> Result<Value> {
        let size = self.raw.geometry().size();
        let end = from.saturating_add(CLONED_AT_ONCE).min(size);
        let Some(target) = self.target.clone() else {
            let what = format!("{} is changed in place: nothing is cloned", self.id);
            return Err(Error::new(Kind::Invalid, what));
        };
        self.raw
            .with("cannot copy the old image to", move |new| {
                copy_data(&File::open(&target)?, new, from, end)?;
                new.sync_all()?;
                let metadata = new.metadata()?;
                Ok(json!({"inode": metadata.ino(), "mark": Mark::from(metadata), "cloned": end}))
            })
            .await
    }

    /// How much of the image is in a part that is still being cloned, by what [`FileSink::clone_some`] said; none when it
    /// all is.
    pub fn cloned(state: &Value, geometry: Geometry) -> Option<u64> {
        state["cloned"].as_u64().filter(|at| *at < geometry.size())
    }

    /// The part that an earlier run left.
    ///
    /// # Errors
    /// `Io` when it is not there.
    pub fn resumed_part(part: &Part, geometry: Geometry) -> Result<Self> {
        Self::open_part(part, geometry, false)
    }

    /// The image that a part has become: there is nothing to write.
    ///
    /// # Errors
    /// `NotFound`, `Denied` or `Io` when it cannot be opened.
    pub fn published(part: &Part, geometry: Geometry) -> Result<Self> {
        Self::in_place(&part.target, geometry, |_| Ok(()))
    }

    /// The image itself, once `name` has put on record that it is going to be changed, with what tells it from others. Before
    /// that it is only opened.
    ///
    /// # Errors
    /// `NotFound`, `Denied` or `Io` when it cannot be opened; what `name` says.
    pub fn in_place(
        target: &Path,
        geometry: Geometry,
        name: impl FnOnce(Value) -> Result<()>,
    ) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(target)
            .map_err(|error| Error::of_file(target, "cannot write", error))?;
        let failed = |error| Error::of_file(target, "cannot grow", error);
        let len = file.metadata().map_err(failed)?.len();
        let id = Self::id_of(target)?;
        name(state(&file).map_err(failed)?)?;
        if len < geometry.size() {
            file.set_len(geometry.size()).map_err(failed)?;
        }
        Ok(Self {
            id,
            raw: Raw::new(target, file, geometry, raw::Kind::File),
            target: None,
        })
    }

    /// The image's full path: the same file has one name, whichever folder the program is in.
    ///
    /// # Errors
    /// `NotFound` when its folder does not exist.
    pub fn id_of(target: &Path) -> Result<String> {
        let failed = |error| Error::of_file(target, "cannot find the folder of", error);
        let folder = folder_of(target).canonicalize().map_err(failed)?;
        let name = target.file_name().ok_or_else(|| {
            let what = format!("{} is no file name", target.display());
            Error::new(Kind::Invalid, what)
        })?;
        Ok(format!("file:{}", folder.join(name).display()))
    }

    fn open_part(part: &Part, geometry: Geometry, anew: bool) -> Result<Self> {
        let failed = |error| Error::of_file(&part.part, "cannot write", error);
        if anew {
            // Another inode: what spoke of the old part speaks of nothing.
            part.remove()?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(anew)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&part.part)
            .map_err(failed)?;
        cut_to(&file, geometry.size()).map_err(failed)?;
        Ok(Self {
            id: Self::id_of(&part.target)?,
            raw: Raw::new(&part.part, file, geometry, raw::Kind::File),
            target: Some(part.target.clone()),
        })
    }

    async fn publish(&self) -> Result<()> {
        let size = self.raw.geometry().size();
        let Some(target) = self.target.clone() else {
            let cut = move |file: &File| {
                cut_to(file, size)?;
                file.sync_all()
            };
            return self.raw.with("cannot finish", cut).await;
        };
        let part = self.raw.path().to_owned();
        self.raw
            .with("cannot finish", move |file| {
                cut_to(file, size)?;
                keep_access(&target, file)?;
                file.sync_all()?;
                std::fs::rename(&part, &target)?;
                sync_folder(&target)
            })
            .await
    }
}

/// Gives a file its size, and leaves one alone that has it: its time of change is what [`Part::is_published`] goes by.
fn cut_to(file: &File, size: u64) -> std::io::Result<()> {
    if file.metadata()?.len() == size {
        return Ok(());
    }
    file.set_len(size)
}

/// What tells a file from others, and whether it was written since: see [`Part`].
fn state(file: &File) -> std::io::Result<Value> {
    let metadata = file.metadata()?;
    Ok(json!({"inode": metadata.ino(), "mark": Mark::from(metadata)}))
}

/// Whoever may read the image that is replaced may read the new one: mode, and owner as far as this user may give it.
fn keep_access(target: &Path, new: &File) -> std::io::Result<()> {
    let Ok(old) = std::fs::metadata(target) else {
        return Ok(());
    };
    let now = new.metadata()?;
    if (old.uid(), old.gid()) != (now.uid(), now.gid())
        && std::os::unix::fs::fchown(new, Some(old.uid()), Some(old.gid())).is_err()
    {
        // Not for others than before, then.
        return Ok(());
    }
    new.set_permissions(old.permissions())
}

impl Sink for FileSink {
    fn id(&self) -> &str {
        &self.id
    }

    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        _digest: Digest,
    ) -> BoxFuture<'_, Result<()>> {
        self.raw.write_block(index, bytes).boxed()
    }

    fn write_zeroes(&self, extent: Extent) -> BoxFuture<'_, Result<()>> {
        self.raw.write_zeroes(extent).boxed()
    }

    fn flush(&self) -> BoxFuture<'_, Result<Value>> {
        async {
            self.raw.flush().await?;
            self.raw.with("cannot look at", state).await
        }
        .boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        async {
            let disk = DiskSource::open_past_cache(self.raw.path(), self.raw.geometry())?;
            Ok(Some(Arc::new(disk) as Arc<dyn BlockSource>))
        }
        .boxed()
    }

    fn finish(&self, _written: Written) -> BoxFuture<'_, Result<()>> {
        self.publish().boxed()
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}
