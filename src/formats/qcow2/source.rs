//! [`Qcow2Source`]: reads back the blocks of a qcow2 image that was written here, by its own tables.
//!
//! Something else may have written the image since. So nothing of it is believed: an offset outside the file, or a feature that
//! this program does not write, is an error and never a block.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::packed::packed_place;
use super::{
    CLUSTER, CLUSTER_BITS, COMPRESSED, COMPRESSION_TYPE, ENTRIES, MAGIC, OFFSET, ONCE,
    PACKED_HEADER, REFCOUNT_ORDER, VERSION, ZERO, ZSTD,
};
use crate::block::{BLOCK_SIZE, Block, BlockIndex, Extent, Geometry};
use crate::digest::Digester;
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::source::{BlockSource, size_of};

/// Bits of an L2 entry that must be clear: reserved ones, and offsets that are no multiple of a cluster.
const WRONG: u64 = 0x3f00_0000_0000_0000 | ((CLUSTER - 1) & !ZERO);

/// What fills a block that is not whole, and its digest, which no block has.
const NO_BLOCK: u8 = 0xdb;

/// Blocks of a qcow2 image.
pub(crate) struct Qcow2Source {
    tables: Arc<Qcow2Tables>,
    /// Whether a block whose place is wrong reads as something that no block is.
    is_half_written: bool,
    digester: Digester,
}

/// The open file, and what its header says.
struct Qcow2Tables {
    path: PathBuf,
    file: File,
    /// Bytes of the file.
    size: u64,
    geometry: Geometry,
    /// Where the L1 table is, and how many entries it has.
    l1: (u64, u32),
    /// Whether compressed blocks are frames of zstd.
    has_frames: bool,
}

impl std::fmt::Debug for Qcow2Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Qcow2Source({})", self.tables.path.display())
    }
}

impl Qcow2Source {
    /// A volume of `geometry` in the qcow2 image at `path`; blocks behind the end of the image read as zeroes. What is read
    /// comes from the disk and not from the page cache.
    ///
    /// # Errors
    /// The system's error; `Invalid` when it is no such image, or has features that this program does not write.
    pub(crate) fn open_past_cache(path: &Path, geometry: Geometry) -> Result<Self> {
        let failed = |error| Error::of_file(path, "cannot read", error);
        let file = File::open(path).map_err(failed)?;
        let size = size_of(path, &file)?;
        // Pages that were written can be dropped; the kernel drops no others.
        let flush = |error| Error::of_file(path, "cannot flush", error);
        file.sync_all().map_err(flush)?;
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        // A file without compression is longer than this too.
        let mut header = [0; PACKED_HEADER as usize];
        let read = file.read_exact_at(&mut header, 0);
        let (l1, has_frames) = read
            .map_err(|_| "it is too short")
            .and_then(|()| checked(&header, size))
            .map_err(|why| unusable(path, why))?;
        Ok(Self {
            tables: Arc::new(Qcow2Tables {
                path: path.to_owned(),
                file,
                size,
                geometry,
                l1,
                has_frames,
            }),
            is_half_written: false,
            digester: Digester::new(),
        })
    }

    /// The same of an image whose run was killed: a block that is not where its entry says, or is not whole, is no error but
    /// differs from every block.
    pub(crate) fn half_written(self) -> Self {
        Self {
            is_half_written: true,
            ..self
        }
    }
}

fn unusable(path: &Path, why: &str) -> Error {
    let what = format!(
        "cannot read {} as the qcow2 image that was written: {why}",
        path.display()
    );
    Error::new(Kind::Invalid, what)
}

/// Checks a header. Returns where the L1 table is and how many entries it has, and whether blocks are compressed with zstd.
fn checked(header: &[u8], file_size: u64) -> std::result::Result<((u64, u32), bool), &'static str> {
    let u32_at = |at: usize| {
        let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
        u32::from_be_bytes(bytes.copied().unwrap_or_default())
    };
    let u64_at = |at: usize| (u64::from(u32_at(at)) << 32) | u64::from(u32_at(at + 4));
    if !header.starts_with(&MAGIC) || u32_at(4) != VERSION {
        return Err("it is no qcow2 image of version 3");
    }
    if u64_at(8) != 0 {
        return Err("it has a backing file");
    }
    if u32_at(20) != CLUSTER_BITS || u32_at(96) != REFCOUNT_ORDER {
        return Err("its clusters have another size");
    }
    if u32_at(32) != 0 {
        return Err("it is encrypted");
    }
    if u32_at(60) != 0 {
        return Err("it has snapshots");
    }
    let has_frames = match u64_at(72) {
        0 => false,
        COMPRESSION_TYPE => {
            if u32_at(100) < PACKED_HEADER || u32_at(104) >> 24 != u32::from(ZSTD) {
                return Err("its blocks are not compressed with zstd");
            }
            true
        }
        _ => return Err("something has it open, or it has features of a newer version"),
    };
    let (l1_entries, l1) = (u32_at(36), u64_at(40));
    if l1_entries > ENTRIES || l1 % CLUSTER != 0 || l1.saturating_add(CLUSTER) > file_size {
        return Err("its L1 table is not in the file");
    }
    Ok(((l1, l1_entries), has_frames))
}

impl Qcow2Tables {
    fn wrong(&self, index: BlockIndex, why: &str) -> Error {
        unusable(&self.path, &format!("block {index} {why}"))
    }

    /// Reads exactly these bytes.
    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|error| Error::of_file(&self.path, "cannot read", error))
    }

    /// The L2 entries from that of `index` on, up to `most` of them and to the end of its table; none where there is no table.
    fn entries(&self, index: BlockIndex, most: u32) -> Result<Option<Vec<u64>>> {
        let (l1, count) = self.l1;
        let (number, first) = (index.0 / ENTRIES, index.0 % ENTRIES);
        if number >= count {
            return Ok(None);
        }
        let mut entry = [0; 8];
        self.read(&mut entry, l1 + u64::from(number) * 8)?;
        let table = u64::from_be_bytes(entry) & OFFSET;
        if table == 0 {
            return Ok(None);
        }
        if !table.is_multiple_of(CLUSTER) || table.saturating_add(CLUSTER) > self.size {
            return Err(self.wrong(index, "has its L2 table outside of the file"));
        }
        let len = most.min(ENTRIES - first) as usize * 8;
        let mut bytes = vec![0; len];
        self.read(&mut bytes, table + u64::from(first) * 8)?;
        let entries = bytes.chunks_exact(8).map(|bytes| {
            let bytes = bytes.first_chunk().copied().unwrap_or_default();
            u64::from_be_bytes(bytes)
        });
        Ok(Some(entries.collect()))
    }

    /// The bytes of a block; none for one that reads as zeroes.
    fn block(&self, index: BlockIndex) -> Result<Option<BytesMut>> {
        let entries = self.entries(index, 1)?;
        let entry = entries.and_then(|entries| entries.first().copied());
        let Some(entry) = entry.filter(|entry| holds(*entry)) else {
            return Ok(None);
        };
        if entry & COMPRESSED != 0 {
            return self.unpacked(index, entry);
        }
        let offset = entry & OFFSET;
        if entry & WRONG != 0 || offset.saturating_add(CLUSTER) > self.size {
            return Err(self.wrong(index, "is outside of the file"));
        }
        let mut bytes = BytesMut::zeroed(self.geometry.block_len(index));
        self.read(&mut bytes, offset)?;
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        Ok((!is_zero).then_some(bytes))
    }

    /// The bytes of a compressed block; none for zeroes.
    fn unpacked(&self, index: BlockIndex, entry: u64) -> Result<Option<BytesMut>> {
        let (offset, len) = packed_place(entry);
        if !self.has_frames || entry & ONCE != 0 {
            return Err(self.wrong(index, "is compressed otherwise"));
        }
        if len > CLUSTER || offset.saturating_add(len) > self.size {
            return Err(self.wrong(index, "is outside of the file"));
        }
        let mut frame = vec![0; usize::try_from(len).unwrap_or_default()];
        self.read(&mut frame, offset)?;
        let mut bytes = BytesMut::zeroed(BLOCK_SIZE as usize);
        // What fills the last sector is behind the frame.
        let frames = zstd::zstd_safe::find_frame_compressed_size(&frame).ok();
        let frame = frames.and_then(|len| frame.get(..len));
        let read = frame.map(|frame| zstd::bulk::decompress_to_buffer(frame, &mut bytes[..]));
        if !matches!(read, Some(Ok(len)) if len == BLOCK_SIZE as usize) {
            return Err(self.wrong(index, "cannot be decompressed"));
        }
        bytes.truncate(self.geometry.block_len(index));
        let is_zero = bytes.iter().all(|byte| *byte == 0);
        Ok((!is_zero).then_some(bytes))
    }

    fn extent_at(&self, from: BlockIndex) -> Result<Option<Extent>> {
        let end = self.geometry.block_count();
        let mut at = from.0;
        while at < end {
            let entries = self.entries(BlockIndex(at), ENTRIES)?;
            let entries = entries.unwrap_or_default();
            if let Some(skipped) = entries.iter().position(|entry| holds(*entry)) {
                let held = entries.iter().skip(skipped);
                let held = held.take_while(|entry| holds(**entry)).count();
                let start = at.saturating_add(u32::try_from(skipped).unwrap_or(0));
                let stop = start.saturating_add(u32::try_from(held).unwrap_or(1));
                let run = Extent::new(BlockIndex(start), BlockIndex(stop.min(end)));
                return Ok(run);
            }
            at = (at - at % ENTRIES).saturating_add(ENTRIES);
        }
        Ok(None)
    }
}

/// Whether an L2 entry stands for bytes in the file.
fn holds(entry: u64) -> bool {
    entry & COMPRESSED != 0 || (entry & ZERO == 0 && entry & OFFSET != 0)
}

impl BlockSource for Qcow2Source {
    fn geometry(&self) -> Geometry {
        self.tables.geometry
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        let tables = Arc::clone(&self.tables);
        async move {
            if index.0 >= tables.geometry.block_count() {
                let what = format!(
                    "cannot read {}: it has no block {index}",
                    tables.path.display()
                );
                return Err(Error::new(Kind::Invalid, what));
            }
            let read = match blocking(move || tables.block(index)).await {
                Err(error) if self.is_half_written && error.kind() == Kind::Invalid => {
                    let bytes = vec![NO_BLOCK; self.tables.geometry.block_len(index)];
                    return Ok(Block::Data(bytes.into(), [NO_BLOCK; 32]));
                }
                read => read?,
            };
            let Some(bytes) = read else {
                return Ok(Block::Zero);
            };
            let bytes = bytes.freeze();
            // At low priority: a comparison reads many blocks at once, so one may wait to be hashed with others.
            let digest = self.digester.digest(&bytes, false).await;
            Ok(Block::Data(bytes, digest))
        }
        .boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let tables = Arc::clone(&self.tables);
        blocking(move || tables.extent_at(from)).boxed()
    }

    fn is_known_zero(&self, _index: BlockIndex) -> bool {
        false
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}
