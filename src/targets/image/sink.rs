//! [`ImageSink`]: the part beside an image that becomes it, or the image itself.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;

use super::super::raw::Raw;
use super::ImageState;
use crate::block::{BlockIndex, BlockSet, Digest, Extent};
use crate::error::{Error, Result};
use crate::files::{FileMark, refuse_special, sync_folder};
use crate::source::{BlockSource, DiskSource};
use crate::target::{Mark, Published, Sink, SinkState, Written};
use crate::targets::TWO_TICKS;

/// An image being written.
pub(super) struct ImageSink {
    raw: Raw,
    /// What the part becomes; none in place.
    image: Option<PathBuf>,
}

impl std::fmt::Debug for ImageSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageSink({})", self.raw.path().display())
    }
}

impl ImageSink {
    pub(super) fn new(raw: Raw, image: Option<PathBuf>) -> Self {
        Self { raw, image }
    }

    /// What tells the file from others, and whether it is written from now on.
    pub(super) fn state(&self) -> Result<SinkState> {
        let path = self.raw.path();
        let mark = std::fs::metadata(path).map(|metadata| FileMark::from(&metadata));
        let mark = mark.map_err(|error| Error::of_file(path, "cannot look at", error))?;
        Ok(SinkState::of(&ImageState { mark }))
    }

    /// Where the image is once it is published.
    fn path(&self) -> &Path {
        self.image.as_deref().unwrap_or(self.raw.path())
    }

    async fn publish(&self) -> Result<Published> {
        let size = self.raw.geometry().size();
        let part = self.raw.path().to_owned();
        let image = self.image.clone();
        if let Some(image) = &image {
            refuse_special(image)?;
        }
        self.raw
            .with("cannot finish", move |file| {
                cut_to(file, size)?;
                let Some(image) = image else {
                    return file.sync_all();
                };
                keep_access(&image, file)?;
                file.sync_all()?;
                std::fs::rename(&part, &image)?;
                sync_folder(&image)
            })
            .await?;
        let path = self.path();
        let failed = |error| Error::of_file(path, "cannot look at", error);
        let mark = FileMark::flushed(path).map_err(failed)?;
        // A write in the clock tick of the last one would leave the mark as it is.
        sleep(TWO_TICKS).await;
        let later = FileMark::flushed(path).map_err(failed)?;
        Ok(Published {
            mark: (mark == later).then_some(Mark::Image(later)),
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
            self.state()
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

    fn publish<'a>(
        &'a self,
        _written: Written,
        _damaged: &'a BlockSet,
    ) -> BoxFuture<'a, Result<Published>> {
        self.publish().boxed()
    }
}

/// Gives a file its size, and leaves one alone that has it: its mark is what an unfinished run is known by.
pub(super) fn cut_to(file: &File, size: u64) -> std::io::Result<()> {
    if file.metadata()?.len() == size {
        return Ok(());
    }
    file.set_len(size)
}

/// Whoever may read the image that is replaced may read the new one: mode, and owner as far as this user may give it.
fn keep_access(image: &Path, new: &File) -> std::io::Result<()> {
    let Ok(old) = std::fs::metadata(image) else {
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
