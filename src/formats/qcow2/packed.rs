//! [`PackedQcow2`]: where compressed blocks are in a qcow2 image that is being written.
//!
//! A block takes as many sectors as its zstd frame has, and one that does not shrink a cluster of its own. So the place of a block
//! is known only when it is written: blocks are appended, and each gets its L2 entry in the file at once. The tables before the
//! data have their places by the plan, as without compression. Refcounts are made of the L2 tables at the end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{CLUSTER, COMPRESSED, ENTRIES, OFFSET, ONCE, Qcow2Layout, REFCOUNT_BLOCKS, REFCOUNTS};
use crate::block::{BLOCK_SIZE, BlockIndex, Extent};

/// Bits of an L2 entry of a compressed block that are its offset; those above are its sectors but the first.
pub(super) const PACKED_OFFSET_BITS: u32 = 51;
/// Bytes of a sector, at which compressed blocks begin.
const SECTOR: u64 = 512;
/// Level of zstd: 200 MB/s a core, as qemu-img has it.
const LEVEL: i32 = 3;
/// Refcounts that are counted at once: 16 MiB, of 4 TiB of the file.
const WINDOW: u64 = 8 << 20;

/// The compressed blocks of an image that is being written.
#[derive(Debug)]
pub(crate) struct PackedQcow2 {
    layout: Arc<Qcow2Layout>,
    cursor: Mutex<PackedCursor>,
}

/// Where the next block goes. Frames fill a cluster while others take whole ones.
#[derive(Clone, Copy, Debug)]
struct PackedCursor {
    /// The next frame, if there is room for it in its cluster.
    frame: u64,
    /// The first cluster that is free.
    end: u64,
}

impl PackedCursor {
    /// Takes the place of a frame of whole sectors, smaller than a cluster.
    fn take_frame(&mut self, len: u64) -> u64 {
        let stop = self.frame.next_multiple_of(CLUSTER);
        let has_room = len <= stop - self.frame;
        // A frame can go on in the next cluster if that is free.
        if !has_room && (stop == self.frame || stop != self.end) {
            self.frame = self.end;
        }
        let offset = self.frame;
        self.frame += len;
        self.end = self.end.max(self.frame.next_multiple_of(CLUSTER));
        offset
    }

    /// Takes a whole cluster.
    fn take_cluster(&mut self) -> u64 {
        let offset = self.end;
        self.end += CLUSTER;
        offset
    }
}

/// A block as it is written.
enum PackedBlock {
    /// A frame of zstd, filled up to a whole sector.
    Frame(Vec<u8>),
    /// The bytes of a cluster: a frame would be no smaller.
    Whole(Vec<u8>),
}

impl PackedQcow2 {
    /// The blocks behind `end`, where an earlier run has stopped; none for a run that begins.
    pub(crate) fn new(layout: Arc<Qcow2Layout>, end: Option<u64>) -> Self {
        let first = layout.tables_size();
        let end = end.map_or(first, |end| end.max(first));
        let end = end.next_multiple_of(CLUSTER);
        Self {
            cursor: Mutex::new(PackedCursor { frame: end, end }),
            layout,
        }
    }

    /// Bytes of the file so far, whole clusters: what comes next goes behind them.
    pub(crate) fn size(&self) -> u64 {
        self.cursor.lock().end
    }

    /// Makes the file as long as the blocks so far need: then only a block changes its size.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn extend(&self, file: &File) -> io::Result<()> {
        // Under the lock, so that nothing that was given a place meanwhile is cut off.
        let cursor = self.cursor.lock();
        match file.metadata()?.len() < cursor.end {
            true => file.set_len(cursor.end),
            false => Ok(()),
        }
    }

    /// Compresses and writes a block, and its L2 entry.
    ///
    /// # Errors
    /// The system's error; `StorageFull` when the refcount blocks do not reach so far, after many blocks that were written twice.
    pub(crate) fn write(&self, file: &File, index: BlockIndex, bytes: &[u8]) -> io::Result<()> {
        let packed = pack(bytes)?;
        let offset = {
            let mut cursor = self.cursor.lock();
            let offset = match &packed {
                PackedBlock::Frame(frame) => cursor.take_frame(frame.len() as u64),
                PackedBlock::Whole(_) => cursor.take_cluster(),
            };
            if cursor.end / CLUSTER > self.layout.refcount_blocks * REFCOUNTS {
                return Err(io::ErrorKind::StorageFull.into());
            }
            offset
        };
        let entry = match &packed {
            PackedBlock::Frame(frame) => {
                file.write_all_at(frame, offset)?;
                let sectors = frame.len() as u64 / SECTOR;
                COMPRESSED | ((sectors - 1) << PACKED_OFFSET_BITS) | offset
            }
            PackedBlock::Whole(bytes) => {
                file.write_all_at(bytes, offset)?;
                ONCE | offset
            }
        };
        match self.layout.entry_offset(index) {
            Some(at) => file.write_all_at(&entry.to_be_bytes(), at),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Makes blocks read as zeroes.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn zero(&self, file: &File, extent: Extent) -> io::Result<()> {
        for index in extent.blocks() {
            if let Some(at) = self.layout.entry_offset(index) {
                file.write_all_at(&[0; 8], at)?;
            }
        }
        Ok(())
    }

    /// Writes the refcounts of all clusters, by the L2 tables in the file, and cuts the file to its clusters. The time of its last
    /// write stays: by that the image is known again after a kill.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn finish(&self, file: &File) -> io::Result<()> {
        let time = file.metadata()?.modified()?;
        let size = self.size();
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        let clusters = size / CLUSTER;
        let tables = self.layout.tables_size() / CLUSTER;
        let mut start = 0;
        while start < clusters {
            let len = WINDOW.min(clusters - start);
            let mut counts = vec![0u16; usize::try_from(len).map_err(io::Error::other)?];
            let mut count = |cluster: u64| {
                let at = cluster
                    .checked_sub(start)
                    .and_then(|at| usize::try_from(at).ok());
                if let Some(count) = at.and_then(|at| counts.get_mut(at)) {
                    *count = count.saturating_add(1);
                }
            };
            (0..tables).for_each(&mut count);
            self.entries(file, |entry| {
                let (first, last) = extent_of(entry);
                (first..=last).for_each(&mut count);
            })?;
            let bytes: Vec<u8> = counts
                .iter()
                .flat_map(|count| count.to_be_bytes())
                .collect();
            file.write_all_at(&bytes, REFCOUNT_BLOCKS * CLUSTER + start * 2)?;
            start += len;
        }
        file.set_modified(time)
    }

    /// Calls `on` with each L2 entry of a block with data in the file.
    fn entries(&self, file: &File, mut on: impl FnMut(u64)) -> io::Result<()> {
        let mut bytes = vec![0; BLOCK_SIZE as usize];
        for table in 0..self.layout.tables.len() as u64 {
            file.read_exact_at(&mut bytes, (self.layout.first_table() + table) * CLUSTER)?;
            for entry in bytes.chunks_exact(8).take(ENTRIES as usize) {
                let entry = entry.first_chunk().copied().unwrap_or_default();
                let entry = u64::from_be_bytes(entry);
                if entry != 0 {
                    on(entry);
                }
            }
        }
        Ok(())
    }
}

/// The first and the last cluster that an L2 entry stands for.
fn extent_of(entry: u64) -> (u64, u64) {
    if entry & COMPRESSED == 0 {
        let cluster = (entry & OFFSET) / CLUSTER;
        return (cluster, cluster);
    }
    let (offset, len) = packed_place(entry);
    (offset / CLUSTER, (offset + len - 1) / CLUSTER)
}

/// Where a compressed block is, and how many bytes its sectors have.
pub(super) fn packed_place(entry: u64) -> (u64, u64) {
    let offset = entry & ((1 << PACKED_OFFSET_BITS) - 1);
    let sectors = ((entry & !(ONCE | COMPRESSED)) >> PACKED_OFFSET_BITS) + 1;
    (offset, sectors * SECTOR - offset % SECTOR)
}

/// Compresses a block, filled up to a cluster: QEMU expects one from each frame.
fn pack(bytes: &[u8]) -> io::Result<PackedBlock> {
    let mut whole = bytes.to_vec();
    whole.resize(BLOCK_SIZE as usize, 0);
    let mut frame = zstd::bulk::compress(&whole, LEVEL)?;
    let len = frame.len().next_multiple_of(512);
    if len >= BLOCK_SIZE as usize {
        return Ok(PackedBlock::Whole(whole));
    }
    frame.resize(len, 0);
    Ok(PackedBlock::Frame(frame))
}
