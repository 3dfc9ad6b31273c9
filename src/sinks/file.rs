//! [`FileSink`]: a sparse raw image that appears whole or not at all, or is changed where it is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};
use serde_json::{Value, json};

use super::raw::Raw;
use crate::block::{BlockIndex, Digest, Extent, Geometry};
use crate::disk::DiskSource;
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
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
        let mut part = target.as_os_str().to_owned();
        part.push(".ebsfs-part");
        Self {
            target: target.to_owned(),
            part: part.into(),
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

    /// Whether that part has become the image already.
    pub fn is_published(&self, state: &Value) -> bool {
        !self.part.exists() && inode(&self.target).is_some_and(|inode| state["inode"] == inode)
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
        let sink = Self::open_part(part, geometry, true)?;
        Ok(sink)
    }

    /// A part that holds what the image holds: by reference where the filesystem can, else a copy, from byte `from` on.
    /// `keep` hears how far that is safe, with what [`Part::is_left`] wants to know the part again.
    ///
    /// # Errors
    /// As for [`FileSink::new_part`]; `NoSpace` when it does not fit; what `keep` says.
    pub fn cloned_part(
        part: &Part,
        geometry: Geometry,
        from: u64,
        mut keep: impl FnMut(Value) -> Result<()>,
    ) -> Result<Self> {
        let sink = Self::open_part(part, geometry, from == 0)?;
        let failed = |error| Error::of_file(&part.part, "cannot copy the old image to", error);
        let old = File::open(&part.target)
            .map_err(|error| Error::of_file(&part.target, "cannot read", error))?;
        let new = OpenOptions::new()
            .write(true)
            .open(&part.part)
            .map_err(failed)?;
        let inode = new.metadata().map_err(failed)?.ino();
        let mut at = from;
        while at < geometry.size() {
            let end = at.saturating_add(CLONED_AT_ONCE).min(geometry.size());
            copy_data(&old, &new, at, end).map_err(failed)?;
            new.sync_all().map_err(failed)?;
            at = end;
            keep(json!({"inode": inode, "cloned": at}))?;
        }
        Ok(sink)
    }

    /// How much of the image is in a part that is still being cloned, by what `keep` heard; none when it all is.
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

    /// The image itself.
    ///
    /// # Errors
    /// `NotFound`, `Denied` or `Io` when it cannot be opened.
    pub fn in_place(target: &Path, geometry: Geometry) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(target)
            .map_err(|error| Error::of_file(target, "cannot write", error))?;
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        if len < geometry.size() {
            let failed = |error| Error::of_file(target, "cannot grow", error);
            file.set_len(geometry.size()).map_err(failed)?;
        }
        Ok(Self {
            id: Self::id_of(target)?,
            raw: Raw::file(target, file, geometry),
            target: None,
        })
    }

    /// The image's full path: the same file has one name, whichever folder the program is in.
    ///
    /// # Errors
    /// `NotFound` when its folder does not exist.
    pub fn id_of(target: &Path) -> Result<String> {
        let failed = |error| Error::of_file(target, "cannot find the folder of", error);
        let folder = target
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder
            .unwrap_or(Path::new("."))
            .canonicalize()
            .map_err(failed)?;
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
            match std::fs::remove_file(&part.part) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(anew)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&part.part)
            .map_err(failed)?;
        file.set_len(geometry.size()).map_err(failed)?;
        Ok(Self {
            id: Self::id_of(&part.target)?,
            raw: Raw::file(&part.part, file, geometry),
            target: Some(part.target.clone()),
        })
    }

    async fn publish(&self) -> Result<()> {
        let size = self.raw.geometry().size();
        self.raw
            .with("cannot finish", move |file| {
                file.set_len(size)?;
                file.sync_all()
            })
            .await?;
        let Some(target) = self.target.clone() else {
            return Ok(());
        };
        let part = self.raw.path().to_owned();
        self.raw
            .with("cannot rename", move |_| {
                std::fs::rename(&part, &target)?;
                let folder = target
                    .parent()
                    .filter(|folder| !folder.as_os_str().is_empty());
                File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
            })
            .await
    }
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
            let inode = self
                .raw
                .with("cannot look at", |file| Ok(file.metadata()?.ino()));
            Ok(json!({"inode": inode.await?, "in_place": self.target.is_none()}))
        }
        .boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Arc<dyn BlockSource>>> {
        async {
            let disk = DiskSource::open_past_cache(self.raw.path(), self.raw.geometry())?;
            Ok(Arc::new(disk) as Arc<dyn BlockSource>)
        }
        .boxed()
    }

    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        self.publish().boxed()
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// Copies what is not a hole of a range; the kernel shares the blocks where the filesystem can (btrfs, xfs).
fn copy_data(from: &File, to: &File, start: u64, end: u64) -> std::io::Result<()> {
    let number = |at| i64::try_from(at).map_err(std::io::Error::other);
    let (mut at, end) = (number(start)?, number(end)?);
    while at < end {
        let data = match lseek(from, at, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(()),
            data => data?,
        };
        let hole = lseek(from, data, Whence::SeekHole)?.min(end);
        let (mut read, mut write) = (data, data);
        while read < hole {
            let left = usize::try_from(hole - read).unwrap_or(0);
            if copy_file_range(from, Some(&mut read), to, Some(&mut write), left)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = hole.max(data + 1);
    }
    Ok(())
}
