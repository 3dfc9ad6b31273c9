//! [`Raw`]: blocks and zeroes at offsets of an open file or device.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

use crate::block::{BLOCK_SIZE, BlockIndex, Extent, Geometry, ZEROES};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;
use crate::formats::{PackedQcow2, Qcow2Layout};

/// Bytes that one call zeroes: where they must be read for that, a run stops within a second even at 64 MiB/s.
const ZEROED_AT_ONCE: u64 = 64 << 20;

/// Bytes of the smallest piece that is written as zeroes: a page, and a sector of every disk.
const PIECE: usize = 4096;

/// An open file or device that a volume of a geometry is written into.
pub(super) struct Raw {
    path: PathBuf,
    file: Arc<File>,
    geometry: Geometry,
    kind: RawKind,
    places: BlockPlaces,
}

/// Where blocks are in a file.
#[derive(Clone, Debug)]
pub(super) enum BlockPlaces {
    /// Each at its own offset.
    Own,
    /// One behind the other.
    Qcow2(Arc<Qcow2Layout>),
    /// One behind the other as they come, compressed.
    Packed(Arc<PackedQcow2>),
}

/// What is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawKind {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

impl Raw {
    /// A file that is open for reading and writing. `path` is for messages and for reading back.
    pub(super) fn new(path: &Path, file: File, geometry: Geometry, kind: RawKind) -> Self {
        Self {
            path: path.to_owned(),
            file: Arc::new(file),
            geometry,
            kind,
            places: BlockPlaces::Own,
        }
    }

    /// The same, with blocks at other places.
    pub(super) fn with_places(self, places: BlockPlaces) -> Self {
        Self { places, ..self }
    }

    /// The compressed blocks, if they are.
    pub(super) fn packed(&self) -> Option<Arc<PackedQcow2>> {
        match &self.places {
            BlockPlaces::Packed(packed) => Some(Arc::clone(packed)),
            _ => None,
        }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The volume that is written into it.
    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Does something with the open file on a thread that may wait. `what` begins the message of a failure: `cannot VERB`.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        blocking(move || work(&file).map_err(|error| Error::of_file(&path, what, error))).await
    }

    /// Writes a block.
    pub(super) async fn write_block(&self, index: BlockIndex, bytes: Bytes) -> Result<()> {
        let offset = match &self.places {
            BlockPlaces::Own => self.geometry.offset(index),
            BlockPlaces::Packed(packed) => {
                let packed = Arc::clone(packed);
                let write = move |file: &File| packed.write(file, index, &bytes);
                return self.with("cannot write", write).await;
            }
            BlockPlaces::Qcow2(layout) => layout.offset_of(index).ok_or_else(|| {
                let path = self.path.display();
                let what = format!("cannot write {path}: block {index} has no place in it");
                Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart)
            })?,
        };
        self.with("cannot write", move |file| {
            file.write_all_at(&bytes, offset)
        })
        .await
    }

    /// Makes blocks read as zeroes, whatever was there.
    pub(super) async fn write_zeroes(&self, extent: Extent) -> Result<()> {
        let layout = match &self.places {
            BlockPlaces::Own => {
                let start = self.geometry.offset(extent.start());
                return self.zero(start, self.geometry.offset(extent.end())).await;
            }
            BlockPlaces::Packed(packed) => {
                let packed = Arc::clone(packed);
                let zero = move |file: &File| packed.zero(file, extent);
                return self.with("cannot write zeroes to", zero).await;
            }
            BlockPlaces::Qcow2(layout) => layout,
        };
        // A block without a place reads as zeroes.
        let runs: Vec<_> = layout
            .data()
            .runs_in(extent.start(), extent.end())
            .collect();
        for run in runs {
            if let Some(start) = layout.offset_of(run.start()) {
                let len = u64::from(run.count()) * u64::from(BLOCK_SIZE);
                self.zero(start, start + len).await?;
            }
        }
        Ok(())
    }

    /// Zeroes bytes of the file.
    async fn zero(&self, start: u64, end: u64) -> Result<()> {
        let (mut at, kind) = (start, self.kind);
        while at < end {
            let len = (end - at).min(ZEROED_AT_ONCE);
            self.with("cannot write zeroes to", move |file| {
                zero(file, kind, at, len)
            })
            .await?;
            at += len;
        }
        Ok(())
    }

    /// What was written so far survives a crash.
    pub(super) async fn flush(&self) -> Result<()> {
        if let Some(packed) = self.packed() {
            let extend = move |file: &File| packed.extend(file);
            self.with("cannot write", extend).await?;
        }
        self.with("cannot flush", File::sync_data).await
    }
}

/// Zeroes by a hole: of a block device the kernel unmaps and zeroes, or it fails; it never leaves other bytes
/// (`blkdev_fallocate`, BLKDEV_ZERO_NOFALLBACK). Where there are no holes, what is not zero is overwritten.
fn zero(file: &File, kind: RawKind, start: u64, len: u64) -> io::Result<()> {
    let number = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let (from, count) = (number(start)?, number(len)?);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        return match fallocate(file, flags, from, count) {
            Err(Errno::EINTR) => continue,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                if kind == RawKind::Device {
                    // A disk and its partitions have a page cache each: what is read here must come from the disk.
                    let _ = file.sync_data();
                    let dropped = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                    let _ = posix_fadvise(file, from, count, dropped);
                }
                overwrite(file, start, len)
            }
            done => Ok(done?),
        };
    }
}

/// Reads, and writes zeroes over what is not zero: a thin or sparse target stays as it is.
fn overwrite(file: &File, start: u64, len: u64) -> io::Result<()> {
    let size = usize::try_from(len.min(u64::from(BLOCK_SIZE))).map_err(io::Error::other)?;
    let mut buffer = vec![0; size];
    let mut done = 0;
    while done < len {
        let count = usize::try_from(len - done).map_or(size, |rest| rest.min(size));
        let bytes = buffer.get_mut(..count).unwrap_or_default();
        file.read_exact_at(bytes, start + done)?;
        for (first, end) in not_zero(bytes) {
            let zeroes = ZEROES.get(..end - first).unwrap_or_default();
            file.write_all_at(zeroes, start + done + first as u64)?;
        }
        done += count as u64;
    }
    Ok(())
}

/// The runs of pieces that are not all zeroes, first byte and end.
fn not_zero(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    for piece in bytes.chunks(PIECE) {
        let end = at + piece.len();
        if piece.iter().any(|byte| *byte != 0) {
            match runs.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests;
