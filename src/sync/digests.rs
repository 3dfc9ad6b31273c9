//! [`Digests`]: the SHA-256 of every block of a target, in a sparse file tied to one run.
//!
//! ```text
//! 0        8   magic "ebsfsdig"
//! 8        4   version, 2
//! 12      64   run id, ASCII, zero padded
//! 76       8   bytes of the volume
//! 84       4   flags; bit 0: whole
//! 88      32   SHA-256 of bytes 0..88
//! 4096    32   entry of block 0: all 00 = hole, all ff = zero, all fe = unknown, else the SHA-256 of the block
//! 4128    32   entry of block 1 ...
//! ```
//! Numbers are little-endian. In memory the entries of 64 TiB would be 4 GiB. A file is one generation: a run that changes a
//! target clones it, changes the clone and publishes that under the old name.
//!
//! A hole means that the block was never held and reads as zeroes; a short file ends in holes. That is safe: where the target
//! has bytes the comparison finds a difference. An I/O error is never a hole.

mod file;
mod header;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tracing::warn;

use self::file::Temporary;
use self::header::{HEADER_BYTES, decode_header, encode_header};
use crate::block::{BlockIndex, Change, Delta, Digest, Extent, Geometry};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::{self, blocking, copy_data, data_after, punch, read_padded};
use crate::source::{HeldDigest, HeldDigests};
use crate::target::Stop;

/// Entries read at once: 32 KiB.
const PIECE: u32 = 1024;

/// The offset of the first entry: a page, so that a clone can share what follows.
const HEADER: u64 = 4096;
const ENTRY: u64 = 32;
const HOLE: Digest = [0x00; 32];
// No known bytes have one of these as their SHA-256.
const ZERO: Digest = [0xff; 32];
const UNKNOWN: Digest = [0xfe; 32];

/// The entry of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DigestEntry {
    /// Never held: it reads as zeroes.
    Hole,
    /// Held or zeroed: it reads as zeroes.
    Zero,
    /// The run does not know what it holds.
    Unknown,
    /// It holds bytes with this SHA-256.
    Data(Digest),
}

impl DigestEntry {
    fn of_bytes(bytes: Digest) -> Self {
        match bytes {
            HOLE => Self::Hole,
            ZERO => Self::Zero,
            UNKNOWN => Self::Unknown,
            digest => Self::Data(digest),
        }
    }

    fn bytes(self) -> Digest {
        match self {
            Self::Hole => HOLE,
            Self::Zero => ZERO,
            Self::Unknown => UNKNOWN,
            Self::Data(digest) => digest,
        }
    }
}

impl From<DigestEntry> for HeldDigest {
    fn from(entry: DigestEntry) -> Self {
        match entry {
            DigestEntry::Hole | DigestEntry::Zero => Self::Zero,
            DigestEntry::Unknown => Self::Unknown,
            DigestEntry::Data(digest) => Self::Data(digest),
        }
    }
}

impl HeldDigests for Digests {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn held_digests(&self, extent: Extent) -> BoxFuture<'_, Result<Vec<HeldDigest>>> {
        let digests = self.clone();
        Box::pin(async move {
            let entries = blocking(move || digests.read(extent)).await?;
            Ok(entries.into_iter().map(HeldDigest::from).collect())
        })
    }
}

impl From<Option<Digest>> for DigestEntry {
    fn from(digest: Option<Digest>) -> Self {
        digest.map_or(Self::Zero, Self::Data)
    }
}

/// An open digests file. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Digests {
    file: Arc<File>,
    path: Arc<Path>,
    run: Arc<str>,
    geometry: Geometry,
    is_whole: bool,
}

impl Digests {
    /// Makes a file of holes at `path`, in place of what is there. `is_whole`: it speaks of every block of the target, not of
    /// a plan's blocks only.
    ///
    /// # Errors
    /// `Invalid` when something else than a regular file is at `path`, or for a run id that is empty, longer than 64 bytes or
    /// not ASCII; `NoSpace`; the system's error.
    pub(crate) fn create(
        path: &Path,
        run: &str,
        geometry: Geometry,
        is_whole: bool,
    ) -> Result<Self> {
        let new = Temporary::create(path)?;
        Self::finish(new, path, run, geometry, is_whole)
    }

    /// Makes the next generation of `old` at `path`, by reference where the filesystem can; holes stay holes. Entries beyond
    /// the end of the new volume are cut off; blocks that the old volume did not have are holes. A last block whose length
    /// changes is unknown.
    ///
    /// # Errors
    /// As for [`Digests::create`]; `Stopped`. Nothing is left of a clone that fails.
    pub(crate) fn clone_of(
        old: &Self,
        path: &Path,
        run: &str,
        geometry: Geometry,
        stop: &Stop,
    ) -> Result<Self> {
        let new = Temporary::create(path)?;
        let shared = old.geometry.block_count().min(geometry.block_count());
        let end = offset(BlockIndex(shared));
        copy_data(&old.file, &old.path, new.file(), path, HEADER..end, &|| {
            stop.check()
        })?;
        let new = Self::finish(new, path, run, geometry, old.is_whole)?;
        let last = BlockIndex(shared.saturating_sub(1));
        if old.geometry.block_len(last) != geometry.block_len(last) {
            new.write_entries(&[(last, DigestEntry::Unknown)])?;
        }
        Ok(new)
    }

    /// Opens a file for reading and, where the filesystem allows, writing. `None` where there is none or, with a warning,
    /// where it is not ours or its header is damaged.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        // A read-only filesystem still verifies.
        let opened = files::open_ours(path, true).or_else(|_| files::open_ours(path, false))?;
        let Some(file) = opened else {
            return Ok(None);
        };
        let mut header = [0; HEADER_BYTES];
        read_padded(&file, &mut header, 0)
            .map_err(|error| Error::of_file(path, "cannot read", error))?;
        let Some((run, geometry, is_whole)) = decode_header(&header) else {
            warn!(
                "ignoring {}: its header is damaged or of another version",
                path.display()
            );
            return Ok(None);
        };
        Ok(Some(Self {
            file: Arc::new(file),
            path: path.into(),
            run: run.into(),
            geometry,
            is_whole,
        }))
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn remove(path: &Path) -> Result<()> {
        files::remove_if_there(path)
    }

    fn finish(
        new: Temporary,
        path: &Path,
        run: &str,
        geometry: Geometry,
        is_whole: bool,
    ) -> Result<Self> {
        let header = encode_header(run, geometry, is_whole)?;
        let end = offset(BlockIndex(geometry.block_count()));
        let write = || {
            new.file().write_all_at(&header, 0)?;
            new.file().set_len(end)?;
            new.file().sync_all()
        };
        write().map_err(|error| Error::of_file(path, "cannot write", error))?;
        Ok(Self {
            file: Arc::new(new.rename(path)?),
            path: path.into(),
            run: run.into(),
            geometry,
            is_whole,
        })
    }

    /// The run that wrote it.
    pub(crate) fn run(&self) -> &str {
        &self.run
    }

    /// The volume that it speaks of.
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes of that volume.
    pub(crate) fn volume_bytes(&self) -> u64 {
        self.geometry.size()
    }

    /// Whether it speaks of every block of the target, not of a plan's blocks only.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Where it was created, opened or published.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the digests of blocks, none for zeroes. They survive a crash when this returns.
    ///
    /// # Errors
    /// `NoSpace`; `Invalid` for a block beyond the volume; the system's error.
    pub(crate) fn write(&self, digests: &[(BlockIndex, Option<Digest>)]) -> Result<()> {
        self.write_all(
            digests
                .iter()
                .map(|(index, digest)| (*index, (*digest).into())),
        )
    }

    /// Writes entries. They survive a crash when this returns.
    ///
    /// # Errors
    /// As for [`Digests::write`].
    pub(crate) fn write_entries(&self, entries: &[(BlockIndex, DigestEntry)]) -> Result<()> {
        self.write_all(entries.iter().copied())
    }

    /// Neighbours go in one write.
    fn write_all(&self, entries: impl Iterator<Item = (BlockIndex, DigestEntry)>) -> Result<()> {
        let mut piece = Vec::new();
        let mut extent: Option<Extent> = None;
        for (index, entry) in entries {
            if index.0 >= self.geometry.block_count() {
                let what = format!(
                    "cannot write {}: the volume has no block {index}",
                    self.path.display()
                );
                return Err(Error::new(Kind::Invalid, what));
            }
            let grown = extent.filter(|run| run.end() == index && run.count() < PIECE);
            if let Some(run) = extent.filter(|_| grown.is_none()) {
                self.write_piece(run, &piece)?;
                piece.clear();
            }
            let start = grown.map_or(index, Extent::start);
            extent = Extent::new(start, BlockIndex(index.0.saturating_add(1)));
            piece.extend_from_slice(&entry.bytes());
        }
        if let Some(run) = extent {
            self.write_piece(run, &piece)?;
        }
        self.sync()
    }

    fn write_piece(&self, run: Extent, bytes: &[u8]) -> Result<()> {
        self.failed_write(self.file.write_all_at(bytes, offset(run.start())))
    }

    fn failed_write<T>(&self, done: io::Result<T>) -> Result<T> {
        done.map_err(|error| Error::of_file(&self.path, "cannot write", error))
    }

    fn sync(&self) -> Result<()> {
        self.failed_write(self.file.sync_data())
    }

    /// Makes the entries of blocks holes; what lies beyond the volume is left out. They survive a crash when this returns.
    ///
    /// # Errors
    /// `NoSpace`; the system's error.
    pub(crate) fn make_holes(&self, extents: &[Extent]) -> Result<()> {
        for extent in extents.iter().filter_map(|extent| self.within(*extent)) {
            let (start, end) = (offset(extent.start()), offset(extent.end()));
            if !self.failed_write(punch(&self.file, start, end - start))? {
                self.fill(extent, DigestEntry::Hole)?;
            }
        }
        self.sync()
    }

    /// Makes the entries of blocks unknown; what lies beyond the volume is left out. They survive a crash when this returns.
    ///
    /// # Errors
    /// As for [`Digests::make_holes`].
    #[cfg(test)]
    pub(crate) fn make_unknown(&self, extents: &[Extent]) -> Result<()> {
        for extent in extents.iter().filter_map(|extent| self.within(*extent)) {
            self.fill(extent, DigestEntry::Unknown)?;
        }
        self.sync()
    }

    fn fill(&self, extent: Extent, entry: DigestEntry) -> Result<()> {
        let bytes = entry.bytes().repeat(PIECE as usize);
        for piece in pieces(extent) {
            let len = usize::try_from(u64::from(piece.count()) * ENTRY).unwrap_or(0);
            self.write_piece(piece, bytes.get(..len).unwrap_or_default())?;
        }
        Ok(())
    }

    /// The part of a run of blocks that lies within the volume.
    fn within(&self, extent: Extent) -> Option<Extent> {
        let end = BlockIndex(self.geometry.block_count());
        Extent::new(extent.start(), extent.end().min(end))
    }

    /// The entries of a run of blocks, 32 bytes of memory each; beyond the volume they are holes.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn read(&self, extent: Extent) -> Result<Vec<DigestEntry>> {
        let count = usize::try_from(extent.count()).unwrap_or(0);
        let mut bytes = vec![HOLE; count];
        if let Some(within) = self.within(extent) {
            let there = usize::try_from(within.count()).unwrap_or(0);
            let there = bytes.get_mut(..there).unwrap_or_default();
            read_padded(&self.file, there.as_flattened_mut(), offset(within.start()))
                .map_err(|error| Error::of_file(&self.path, "cannot read", error))?;
        }
        Ok(bytes.into_iter().map(DigestEntry::of_bytes).collect())
    }

    /// The entries of a run of blocks, in pieces of at most 1,024.
    pub(crate) fn read_pieces(
        &self,
        extent: Extent,
    ) -> impl Iterator<Item = Result<(Extent, Vec<DigestEntry>)>> + Send + use<> {
        let digests = self.clone();
        pieces(extent).map(move |piece| Ok((piece, digests.read(piece)?)))
    }

    /// The first run of blocks at or after `from` that the file has bytes for: all others are holes.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn next_data(&self, from: BlockIndex) -> Result<Option<Extent>> {
        let count = self.geometry.block_count();
        if from.0 >= count {
            return Ok(None);
        }
        let found = data_after(&self.file, offset(from))
            .map_err(|error| Error::of_file(&self.path, "cannot seek in", error))?;
        let Some(data) = found else {
            return Ok(None);
        };
        let index = |at: u64| u32::try_from(at / ENTRY).unwrap_or(u32::MAX).min(count);
        let start = index(data.start.saturating_sub(HEADER)).max(from.0);
        let end = index(data.end.saturating_sub(HEADER).saturating_add(ENTRY - 1));
        Ok(Extent::new(BlockIndex(start), BlockIndex(end)))
    }

    /// What a plan has written, by its blocks: none for the zeroed. It is what [`crate::target::Written`] is made of.
    ///
    /// An item is `Corrupt` for a block to be written that has no digest: then it is not known what was written.
    pub(crate) fn of_plan(
        &self,
        plan: Arc<Delta>,
    ) -> impl Iterator<Item = Result<(BlockIndex, Option<Digest>)>> + Send + use<> {
        let digests = self.clone();
        let mut at = Some(BlockIndex(0));
        let runs = std::iter::from_fn(move || {
            let (run, change) = plan.next_run(at?)?;
            let end = run
                .end()
                .min(BlockIndex(run.start().0.saturating_add(PIECE)));
            at = Some(end);
            Some((Extent::new(run.start(), end)?, change))
        });
        runs.flat_map(move |(extent, change)| digests.written(extent, change))
    }

    fn written(&self, extent: Extent, change: Change) -> Vec<Result<(BlockIndex, Option<Digest>)>> {
        if change == Change::Zero {
            return extent.blocks().map(|index| Ok((index, None))).collect();
        }
        let entries = match self.read(extent) {
            Ok(entries) => entries,
            Err(error) => return vec![Err(error)],
        };
        let known = |(index, entry)| match entry {
            DigestEntry::Data(digest) => Ok((index, Some(digest))),
            DigestEntry::Zero => Ok((index, None)),
            DigestEntry::Hole | DigestEntry::Unknown => Err(self.missing(index)),
        };
        extent.blocks().zip(entries).map(known).collect()
    }

    fn missing(&self, index: BlockIndex) -> Error {
        let what = format!(
            "cannot use {}: it has no digest of block {index}, which was written",
            self.path.display()
        );
        Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart)
    }

    /// Gives the file its final name, in place of the generation before; both survive a crash when this returns.
    ///
    /// # Errors
    /// `Invalid` when something else than a regular file has that name; the system's error. Then the file stays where it is.
    pub(crate) fn publish(mut self, path: &Path) -> Result<Self> {
        let failed = |error| Error::of_file(path, "cannot write", error);
        self.file.sync_all().map_err(failed)?;
        files::refuse_special(path)?;
        std::fs::rename(&self.path, path).map_err(failed)?;
        files::sync_folder(path).map_err(failed)?;
        self.path = path.into();
        Ok(self)
    }
}

/// A run of blocks in pieces of at most 1,024.
fn pieces(extent: Extent) -> impl Iterator<Item = Extent> + Send + use<> {
    let mut at = extent.start();
    std::iter::from_fn(move || {
        let end = BlockIndex(at.0.saturating_add(PIECE)).min(extent.end());
        let piece = Extent::new(at, end)?;
        at = end;
        Some(piece)
    })
}

fn offset(index: BlockIndex) -> u64 {
    HEADER + u64::from(index.0) * ENTRY
}

#[cfg(test)]
mod tests;
