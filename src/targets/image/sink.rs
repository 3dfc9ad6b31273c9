//! [`ImageSink`]: the part beside an image that becomes it, or the image itself.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rustix::fs::XattrFlags;
use tokio::time::sleep;
use tracing::debug;

use super::super::raw::Raw;
use super::ImageState;
use super::descriptor::VmdkDescriptor;
use super::layout::{ImageReading, read_image};
use crate::block::{BlockIndex, BlockSet, Digest, Extent};
use crate::error::{Error, Result};
use crate::files::{FileMark, refuse_special, sync_folder};
use crate::formats::ImageFormat;
use crate::snapshot::Snapshot;
use crate::source::BlockSource;
use crate::target::{Mark, Published, Sink, SinkState, SourceInfo, Written};
use crate::targets::TWO_TICKS;

/// What the file of an image is to be.
pub(super) struct ImageFile {
    pub(super) format: ImageFormat,
    /// Bytes of the file.
    pub(super) size: u64,
    /// The file that names it.
    pub(super) descriptor: Option<VmdkDescriptor>,
}

/// An image being written.
pub(super) struct ImageSink {
    raw: Raw,
    file: ImageFile,
    /// What the part becomes; none in place.
    image: Option<Replaced>,
    /// The extended attributes that it gets.
    attributes: ImageAttributes,
    /// Whether blocks were flushed.
    has_flushed: AtomicBool,
    /// The time of the last write that it gets: the snapshot's.
    time: Option<SystemTime>,
}

/// Extended attributes by name. Those without a value are removed.
pub(super) type ImageAttributes = [(&'static str, Option<String>); 4];

/// The attributes of an image of no snapshot.
pub(super) const NO_ATTRIBUTES: ImageAttributes = [
    ("user.ebs.snapshot_id", None),
    ("user.ebs.volume_id", None),
    ("user.ebs.start_time", None),
    ("user.ebs.encrypted", None),
];

/// Sets extended attributes where the filesystem can: nothing depends on them.
pub(super) fn set_attributes(file: &File, attributes: &ImageAttributes) {
    for (name, value) in attributes {
        let set = match value {
            Some(value) => {
                rustix::fs::fsetxattr(file, *name, value.as_bytes(), XattrFlags::empty())
            }
            None => match rustix::fs::fremovexattr(file, *name) {
                Err(rustix::io::Errno::NODATA) => Ok(()),
                removed => removed,
            },
        };
        if let Err(error) = set {
            debug!("cannot set {name}: {error}");
        }
    }
}

/// The image that a part becomes, and what is in its place.
pub(super) struct Replaced {
    pub(super) path: PathBuf,
    /// As it was when the part was opened; none where there was nothing.
    pub(super) mark: Option<FileMark>,
}

impl Replaced {
    /// Gives the part the image's name, unless something else has written or made the image meanwhile.
    fn replace(&self, part: &Path, file: &File) -> std::io::Result<Result<()>> {
        let name = self.path.display().to_string();
        let Some(mark) = &self.mark else {
            return match rename_to_nothing(part, &self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    Ok(Err(crate::targets::changed(&name)))
                }
                renamed => renamed.map(Ok),
            };
        };
        match FileMark::flushed(&self.path) {
            Ok(now) if now == *mark => {}
            Ok(_) => return Ok(Err(crate::targets::changed(&name))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Err(crate::targets::changed(&name)));
            }
            Err(error) => return Err(error),
        }
        if mark.size > 0 {
            keep_access(&self.path, file)?;
            file.sync_all()?;
        }
        std::fs::rename(part, &self.path).map(Ok)
    }
}

/// Renames where nothing is at the new name. Where the kernel or the filesystem cannot guarantee that, it is checked just
/// before.
fn rename_to_nothing(from: &Path, to: &Path) -> std::io::Result<()> {
    let flags = RenameFlags::RENAME_NOREPLACE;
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
        Err(Errno::EINVAL | Errno::ENOSYS) if std::fs::symlink_metadata(to).is_err() => {
            std::fs::rename(from, to)
        }
        Err(Errno::EINVAL | Errno::ENOSYS) => Err(std::io::ErrorKind::AlreadyExists.into()),
        renamed => Ok(renamed?),
    }
}

impl std::fmt::Debug for ImageSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageSink({})", self.raw.path().display())
    }
}

impl ImageSink {
    pub(super) fn new(
        raw: Raw,
        file: ImageFile,
        image: Option<Replaced>,
        source: &SourceInfo,
    ) -> Self {
        let snapshot = source.snapshot.as_ref();
        Self {
            raw,
            file,
            image,
            has_flushed: AtomicBool::new(false),
            attributes: snapshot.map_or(NO_ATTRIBUTES, Snapshot::attributes),
            time: source.time(),
        }
    }

    /// What tells the file from others, and whether it is written from now on.
    pub(super) fn state(&self) -> Result<SinkState> {
        let path = self.raw.path();
        let mark = std::fs::metadata(path).map(|metadata| FileMark::from(&metadata));
        let mark = mark.map_err(|error| Error::of_file(path, "cannot look at", error))?;
        let time = self
            .time
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(SinkState::of(&ImageState {
            mark,
            time_ns: time.and_then(|time| i64::try_from(time.as_nanos()).ok()),
            end: self.raw.packed().map(|packed| packed.size()),
        }))
    }

    /// Where the image is once it is published.
    fn path(&self) -> &Path {
        self.image
            .as_ref()
            .map_or(self.raw.path(), |image| &image.path)
    }

    async fn publish(&self) -> Result<Published> {
        let (size, packed) = (self.file.size, self.raw.packed());
        let (attributes, time) = (self.attributes.clone(), self.time);
        self.raw
            .with("cannot finish", move |file| {
                match packed {
                    Some(packed) => packed.finish(file)?,
                    None => cut_to(file, size)?,
                }
                set_attributes(file, &attributes);
                if let Some(time) = time
                    && let Err(error) = file.set_modified(time)
                {
                    debug!("cannot set the time of the image: {error}");
                }
                file.sync_all()
            })
            .await?;
        if let Some(image) = &self.image {
            refuse_special(&image.path)?;
            let failed = |error| Error::of_file(&image.path, "cannot replace", error);
            let part = self.raw.path();
            let file = File::open(part).map_err(failed)?;
            image.replace(part, &file).map_err(failed)??;
            sync_folder(&image.path).map_err(failed)?;
            // After the image: the descriptor of one that is not replaced stays. A run that is killed before this line counts as
            // ended, and the next one repairs the descriptor.
            if let Some(descriptor) = &self.file.descriptor {
                descriptor.write()?;
            }
        }
        let path = self.path();
        let failed = |error| Error::of_file(path, "cannot look at", error);
        let mark = FileMark::flushed(path).map_err(failed)?;
        // A write in the clock tick of the last one would leave the mark as it is.
        sleep(TWO_TICKS).await;
        let later = FileMark::flushed(path).map_err(failed)?;
        Ok(Published {
            mark: (mark == later && later.proves_at(path)).then_some(Mark::Image(later)),
            ..Published::default()
        })
    }
}

impl Sink for ImageSink {
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

    fn flush(&self) -> BoxFuture<'_, Result<SinkState>> {
        async {
            self.raw.flush().await?;
            self.has_flushed.store(true, Ordering::Relaxed);
            self.state()
        }
        .boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        async {
            let path = self.raw.path();
            // What a run that was killed has not flushed may be half there: a comparison finds that it differs.
            let reading = match self.has_flushed.load(Ordering::Relaxed) {
                true => ImageReading::Strict,
                false => ImageReading::HalfWritten,
            };
            let read = read_image(self.file.format, reading, path, self.raw.geometry());
            read.await.map(Some)
        }
        .boxed()
    }

    fn publish<'a>(
        &'a self,
        _written: Written,
        _damaged: &'a BlockSet,
    ) -> BoxFuture<'a, Result<Published>> {
        self.publish().boxed()
    }
}

/// Sets the size of a file if it differs. An unneeded call would change the mark that proves an unfinished run's part.
pub(super) fn cut_to(file: &File, size: u64) -> std::io::Result<()> {
    if file.metadata()?.len() == size {
        return Ok(());
    }
    file.set_len(size)
}

/// Gives the new image the mode of the replaced one, and its owner as far as this user may.
fn keep_access(image: &Path, new: &File) -> std::io::Result<()> {
    let Ok(old) = std::fs::metadata(image) else {
        return Ok(());
    };
    let now = new.metadata()?;
    if (old.uid(), old.gid()) != (now.uid(), now.gid())
        && std::os::unix::fs::fchown(new, Some(old.uid()), Some(old.gid())).is_err()
    {
        // With another owner the old mode could open the image to other users: it stays 0600.
        return Ok(());
    }
    new.set_permissions(old.permissions())
}
