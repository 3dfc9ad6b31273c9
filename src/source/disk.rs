//! [`DiskSource`]: a raw image or a block device of this machine as a [`BlockSource`].

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

use crate::block::{Block, BlockIndex, Extent, Geometry};
use crate::digest::Digester;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::source::BlockSource;

/// A raw image or a block device. Holes are where the filesystem says that they are; a device has none.
pub struct DiskSource {
    path: PathBuf,
    file: Arc<File>,
    /// Bytes that there are.
    size: u64,
    geometry: Geometry,
    digester: Digester,
}

impl std::fmt::Debug for DiskSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskSource({})", self.path.display())
    }
}

impl DiskSource {
    /// Opens an image or a device for reading.
    ///
    /// # Errors
    /// `NotFound` or `Denied` as the system says; `Invalid` when it is neither, or empty.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::of_file(path, "cannot read", error);
        // O_NONBLOCK: a FIFO without a writer would hang here; `size_of` refuses it.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(failed)?;
        let size = size_of(path, &file)?;
        let geometry =
            Geometry::new(size).map_err(|error| error.context(path.display().to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            size,
            geometry,
            digester: Digester::new(),
        })
    }

    /// Rounds the volume up to whole GiB, as EBS requires. Bytes beyond the end of the file read as zeroes.
    ///
    /// # Errors
    /// `Invalid` beyond 64 TiB.
    pub(crate) fn padded_to_gib(mut self) -> Result<Self> {
        self.geometry = self.geometry.rounded_to_gib()?;
        Ok(self)
    }

    /// A volume of `geometry` at the beginning of an image or device, which may be larger; of a smaller one what lies behind its
    /// end reads as zeroes. What is read comes from the disk and not from the page cache.
    ///
    /// # Errors
    /// As for [`DiskSource::open`]; `Io` when what is not written yet cannot be.
    pub fn open_past_cache(path: &Path, geometry: Geometry) -> Result<Self> {
        let mut source = Self::open(path)?;
        source.geometry = geometry;
        // Pages that were written can be dropped; the kernel drops no others.
        let failed = |error| Error::of_file(path, "cannot flush", error);
        source.file.sync_all().map_err(failed)?;
        let _ = posix_fadvise(&source.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(source)
    }

    fn extent_at(&self, from: BlockIndex) -> Result<Option<Extent>> {
        let offset = self.geometry.offset(from);
        if offset >= self.geometry.size() {
            return Ok(None);
        }
        let seek = |at: u64, whence| {
            let at = i64::try_from(at).unwrap_or(i64::MAX);
            match lseek(&*self.file, at, whence) {
                Ok(found) => Ok(u64::try_from(found).ok()),
                // No more data.
                Err(Errno::ENXIO) => Ok(None),
                // The filesystem does not support SEEK_DATA: all is data.
                Err(Errno::EINVAL) => Ok(Some(match whence {
                    Whence::SeekHole => self.geometry.size(),
                    _ => at.unsigned_abs(),
                })),
                Err(error) => Err(Error::of_file(&self.path, "cannot seek in", error.into())),
            }
        };
        // What lies behind the volume is not its: the footer of a VHD.
        let data = seek(offset, Whence::SeekData)?;
        let Some(data) = data.filter(|data| *data < self.geometry.size()) else {
            return Ok(None);
        };
        let hole = seek(data, Whence::SeekHole)?.unwrap_or(self.geometry.size());
        let start = self
            .geometry
            .block_at(data)
            .map_or(from, |start| start.max(from));
        let last = self.geometry.block_at(hole.saturating_sub(1).max(data));
        let end = last.map_or(start.0 + 1, |last| last.0.max(start.0) + 1);
        Ok(Extent::new(
            start,
            BlockIndex(end.min(self.geometry.block_count())),
        ))
    }
}

impl BlockSource for DiskSource {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let (offset, len) = (self.geometry.offset(index), self.geometry.block_len(index));
        let size = self.size;
        async move {
            if len == 0 {
                let what = format!("cannot read {}: it has no block {index}", path.display());
                return Err(Error::new(Kind::Invalid, what));
            }
            let read = blocking(move || {
                let mut bytes = BytesMut::zeroed(len);
                // What lies behind the end stays zero.
                let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(len);
                let there = bytes.get_mut(..there.min(len)).unwrap_or_default();
                file.read_exact_at(there, offset)
                    .map_err(|error| Error::of_file(&path, "cannot read", error))?;
                let is_zero = bytes.iter().all(|byte| *byte == 0);
                Ok((!is_zero).then(|| bytes.freeze()))
            });
            let Some(bytes) = read.await? else {
                return Ok(Block::Zero);
            };
            // At low priority: a copy reads many blocks at once, so one may wait to be hashed with others.
            let digest = self.digester.digest(&bytes, false).await;
            Ok(Block::Data(bytes, digest))
        }
        .boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        std::future::ready(self.extent_at(from)).boxed()
    }

    fn is_known_zero(&self, _index: BlockIndex) -> bool {
        false
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}

/// Bytes of a regular file or a block device.
///
/// # Errors
/// `Invalid` when it is neither.
pub fn size_of(path: &Path, mut file: &File) -> Result<u64> {
    let failed = |error| Error::of_file(path, "cannot tell the size of", error);
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!(
            "cannot use {}: it is neither a regular file nor a block device",
            path.display()
        );
        return Err(Error::new(Kind::Invalid, what));
    }
    file.seek(SeekFrom::End(0)).map_err(failed)
}
