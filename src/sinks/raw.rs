//! Bytes at offsets of an open file or device.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::block::{BlockIndex, Extent, Geometry, ZEROES};
use crate::disk::blocking;
use crate::error::{Error, Result};

/// An open file or device that a volume of a geometry is written into.
pub(super) struct Raw {
    path: PathBuf,
    file: Arc<File>,
    geometry: Geometry,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file, where zeroes are holes.
    File,
    /// A block device: zeroes are zeroes, for what is discarded may read as anything.
    Device,
}

impl Raw {
    pub(super) fn new(path: &Path, file: File, geometry: Geometry, kind: Kind) -> Self {
        Self {
            path: path.to_owned(),
            file: Arc::new(file),
            geometry,
            kind,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Does something with the open file on a thread that may wait.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&File) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || work(&file).map_err(|error| Error::of_file(&path, what, error))).await
    }

    pub(super) async fn write_block(&self, index: BlockIndex, bytes: Bytes) -> Result<()> {
        let offset = self.geometry.offset(index);
        self.with("cannot write", move |file| {
            file.write_all_at(&bytes, offset)
        })
        .await
    }

    pub(super) async fn write_zeroes(&self, extent: Extent) -> Result<()> {
        let start = self.geometry.offset(extent.start());
        let len = self.geometry.offset(extent.end()) - start;
        let kind = self.kind;
        self.with("cannot write zeroes to", move |file| {
            zero(file, kind, start, len)
        })
        .await
    }

    /// What was written so far survives a crash.
    pub(super) async fn flush(&self) -> Result<()> {
        self.with("cannot flush", File::sync_data).await
    }
}

fn zero(file: &File, kind: Kind, start: u64, len: u64) -> std::io::Result<()> {
    let how = match kind {
        Kind::File => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        // On a block device that is BLKZEROOUT, without unmapping.
        Kind::Device => FallocateFlags::FALLOC_FL_ZERO_RANGE,
    };
    let flags = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let number = |n: u64| i64::try_from(n).map_err(std::io::Error::other);
    match fallocate(file, flags, number(start)?, number(len)?) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {}
        done => return Ok(done?),
    }
    let mut at = start;
    while at < start + len {
        let piece = usize::try_from(start + len - at).unwrap_or(ZEROES.len());
        let piece = ZEROES.get(..piece).unwrap_or(&ZEROES);
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}
