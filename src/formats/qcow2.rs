//! qcow2 version 3 with clusters as large as a block (docs/interop/qcow2.txt of QEMU).
//!
//! The clusters of the file are, in this order: header, refcount table, refcount blocks, L1 table, L2 tables, data. Every one is
//! in use once, and the data are the written blocks by their index. So all tables follow from the set of written blocks: they
//! are computed where they are read, and are never changed.
//!
//! With compression the place of a block is known only when it is written ([`PackedQcow2`]): the tables have the same places, but
//! L2 tables and refcounts are written as blocks come.

mod packed;
mod ranks;
mod source;

use bytes::Bytes;

pub(crate) use self::packed::PackedQcow2;
use self::ranks::Ranks;
pub(crate) use self::source::Qcow2Source;
use super::{Piece, SECTOR};
use crate::block::{BLOCK_SIZE, BlockIndex, BlockSet, Delta, Geometry};
use crate::error::{Error, Kind, Result};

/// A cluster is 2^19 bytes, the size of a block.
const CLUSTER_BITS: u32 = 19;
const CLUSTER: u64 = BLOCK_SIZE as u64;
const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
/// Bytes of the header without extensions.
const HEADER: u32 = 104;
/// Bytes of the header with the type of compression.
const PACKED_HEADER: u32 = 112;
/// The incompatible feature that the type of compression is not deflate.
const COMPRESSION_TYPE: u64 = 1 << 3;
/// Blocks are compressed with zstd. QEMU reads it since 5.1.
const ZSTD: u8 = 1;
/// A refcount has 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
/// Refcounts of a refcount block.
const REFCOUNTS: u64 = CLUSTER / 2;
/// Entries of a cluster of the refcount table, of the L1 table and of an L2 table.
const ENTRIES: u32 = BLOCK_SIZE / 8;
/// The refcount of what an entry points to is 1 (bit 63).
const ONCE: u64 = 1 << 63;
/// The cluster is compressed (bit 62).
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeroes (bit 0).
const ZERO: u64 = 1;
/// The bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The header extension with the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Longest name of a backing file.
const LONGEST_BACKING: usize = 1023;

/// Where the clusters before the data are.
const REFCOUNT_TABLE: u64 = 1;
const REFCOUNT_BLOCKS: u64 = 2;

/// The raw image that unallocated clusters are read from.
#[derive(Clone, Debug)]
pub(crate) struct Backing {
    /// Its path from the folder of the qcow2 file. It begins with `./` or `../`: QEMU takes `json:` and `nbd:` for protocols.
    path: String,
}

impl Backing {
    /// A raw image at a path.
    ///
    /// # Errors
    /// `Invalid` when QEMU would read the path as something else, or it is too long.
    pub(crate) fn raw(path: String) -> Result<Self> {
        let is_path = path.starts_with("./") || path.starts_with("../") || path.starts_with('/');
        if !is_path || path.len() > LONGEST_BACKING || path.contains('\0') {
            let what = format!("{path:?} cannot be the name of a backing file");
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(Self { path })
    }
}

/// A qcow2 image of some blocks.
#[derive(Clone, Debug)]
pub(crate) struct Qcow2Layout {
    geometry: Geometry,
    /// Blocks with data in the file.
    data: BlockSet,
    /// Blocks that read as zeroes, whatever the backing file holds.
    zero: BlockSet,
    ranks: Ranks,
    /// The numbers of the L2 tables in the file, ascending.
    tables: Vec<u32>,
    header: Bytes,
    refcount_blocks: u64,
    /// Whether blocks are compressed, so that L2 tables and refcounts do not follow from the sets.
    is_packed: bool,
}

impl Qcow2Layout {
    /// The image that has the written blocks of a delta, and zero clusters for its zeroed blocks; everything else is of the
    /// backing file, or reads as zeroes without one.
    pub(crate) fn new(delta: &Delta, backing: Option<&Backing>) -> Self {
        Self::make(delta, backing, false)
    }

    /// The tables of an image whose blocks are compressed: see [`PackedQcow2`].
    pub(crate) fn packed(delta: &Delta) -> Self {
        Self::make(delta, None, true)
    }

    fn make(delta: &Delta, backing: Option<&Backing>, is_packed: bool) -> Self {
        let geometry = delta.head();
        let (data, zero) = (delta.write().clone(), delta.zero().clone());
        let tables = (0..geometry.block_count().div_ceil(ENTRIES)).filter(|number| {
            let start = BlockIndex(number * ENTRIES);
            let end = BlockIndex(start.0.saturating_add(ENTRIES));
            let is_in = |set: &BlockSet| set.next_in(start).is_some_and(|first| first < end);
            is_in(&data) || is_in(&zero)
        });
        let mut layout = Self {
            geometry,
            ranks: Ranks::of(&data, geometry.block_count()),
            tables: tables.collect(),
            data,
            zero,
            header: Bytes::new(),
            refcount_blocks: 0,
            is_packed,
        };
        // The refcount blocks count themselves. Compressed blocks take no more clusters than others, but one that is written
        // twice takes two places.
        let twice = if is_packed { layout.data.len() } else { 0 };
        while layout.refcount_blocks * REFCOUNTS < layout.clusters() + twice {
            layout.refcount_blocks += 1;
        }
        layout.header = layout.make_header(backing).into();
        layout
    }

    /// Bytes of the file.
    pub(crate) fn size(&self) -> u64 {
        self.clusters() * CLUSTER
    }

    /// Bytes of the file before the data: the header and all tables.
    pub(crate) fn tables_size(&self) -> u64 {
        self.first_data() * CLUSTER
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.data.memory() + self.zero.memory() + self.ranks.memory()
    }

    /// Where a block is in the file; none of a block without data there. Blocks that follow each other and have data follow each
    /// other in the file.
    pub(crate) fn offset_of(&self, index: BlockIndex) -> Option<u64> {
        let rank = self.ranks.rank(&self.data, index);
        let is_in = self.data.contains(index);
        is_in.then_some((self.first_data() + u64::from(rank)) * CLUSTER)
    }

    /// The bytes of the file that are written before the blocks: all before the data, or with compression those of them that
    /// no block changes.
    pub(crate) fn fixed(&self) -> Vec<std::ops::Range<u64>> {
        match self.is_packed {
            false => std::iter::once(0..self.tables_size()).collect(),
            true => [0..REFCOUNT_BLOCKS, self.l1()..self.first_table()]
                .map(|clusters| clusters.start * CLUSTER..clusters.end * CLUSTER)
                .to_vec(),
        }
    }

    /// Where the L2 entry of a block with data is in the file.
    fn entry_offset(&self, index: BlockIndex) -> Option<u64> {
        let table = self.tables.binary_search(&(index.0 / ENTRIES)).ok()?;
        let entry = u64::from(index.0 % ENTRIES) * 8;
        let is_in = self.data.contains(index);
        is_in.then_some((self.first_table() + table as u64) * CLUSTER + entry)
    }

    /// Blocks with data in the file.
    pub(crate) fn data(&self) -> &BlockSet {
        &self.data
    }

    fn l1(&self) -> u64 {
        REFCOUNT_BLOCKS + self.refcount_blocks
    }

    fn first_table(&self) -> u64 {
        self.l1() + 1
    }

    fn first_data(&self) -> u64 {
        self.first_table() + self.tables.len() as u64
    }

    /// Clusters of the file.
    fn clusters(&self) -> u64 {
        self.first_data() + self.data.len()
    }

    fn make_header(&self, backing: Option<&Backing>) -> Vec<u8> {
        let mut extensions = Vec::new();
        if backing.is_some() {
            extensions.extend(BACKING_FORMAT.to_be_bytes());
            extensions.extend(3u32.to_be_bytes());
            extensions.extend(*b"raw\0\0\0\0\0");
        }
        extensions.extend([0; 8]);
        let path = backing.map_or("", |backing| &backing.path);
        let header_len = match self.is_packed {
            true => PACKED_HEADER,
            false => HEADER,
        };
        let path_offset = match backing {
            Some(_) => u64::from(header_len) + extensions.len() as u64,
            None => 0,
        };
        let path_len = u32::try_from(path.len()).unwrap_or(0);
        let l1_entries = self.geometry.block_count().div_ceil(ENTRIES);
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_be_bytes());
        header.extend(path_offset.to_be_bytes());
        header.extend(path_len.to_be_bytes());
        header.extend(CLUSTER_BITS.to_be_bytes());
        // QEMU cuts the rest of a sector off.
        let size = self.geometry.size().next_multiple_of(SECTOR);
        header.extend(size.to_be_bytes());
        // Not encrypted.
        header.extend(0u32.to_be_bytes());
        header.extend(l1_entries.to_be_bytes());
        header.extend((self.l1() * CLUSTER).to_be_bytes());
        header.extend((REFCOUNT_TABLE * CLUSTER).to_be_bytes());
        header.extend(1u32.to_be_bytes());
        // No snapshots.
        header.extend(0u32.to_be_bytes());
        header.extend(0u64.to_be_bytes());
        let incompatible = if self.is_packed { COMPRESSION_TYPE } else { 0 };
        header.extend(incompatible.to_be_bytes());
        // No compatible and no autoclear features.
        header.extend([0; 2 * 8]);
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend(header_len.to_be_bytes());
        if self.is_packed {
            header.extend([ZSTD, 0, 0, 0, 0, 0, 0, 0]);
        }
        header.extend(extensions);
        header.extend(path.as_bytes());
        header
    }

    /// The first piece at `offset`, which is in the file, of at most `len` bytes.
    pub(super) fn piece(&self, offset: u64, len: usize) -> Piece {
        let cluster = offset / CLUSTER;
        let within = usize::try_from(offset % CLUSTER).unwrap_or(0);
        let len = len.min(BLOCK_SIZE as usize - within);
        if let Some(rank) = cluster.checked_sub(self.first_data()) {
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            let index = self.ranks.select(&self.data, rank);
            let offset = index.map_or(self.geometry.size(), |index| self.geometry.offset(index));
            return Piece::Image {
                offset: offset + within as u64,
                len,
            };
        }
        let offset = |cluster: u64| (cluster * CLUSTER) | ONCE;
        Piece::Bytes(if cluster == 0 {
            let mut bytes = vec![0; len];
            let there = self.header.get(within..).unwrap_or_default();
            let there = there.get(..len).unwrap_or(there);
            if let Some(place) = bytes.get_mut(..there.len()) {
                place.copy_from_slice(there);
            }
            bytes.into()
        } else if cluster == REFCOUNT_TABLE {
            entries(within, len, |number| {
                let number = u64::from(number);
                match number < self.refcount_blocks {
                    true => (REFCOUNT_BLOCKS + number) * CLUSTER,
                    false => 0,
                }
            })
        } else if let Some(table) = cluster.checked_sub(self.first_table()) {
            let table = usize::try_from(table).ok();
            let number = table.and_then(|table| self.tables.get(table));
            self.l2(number.copied().unwrap_or(u32::MAX), within, len)
        } else if cluster == self.l1() {
            entries(within, len, |number| {
                let found = self.tables.binary_search(&number);
                found.map_or(0, |at| offset(self.first_table() + at as u64))
            })
        } else {
            let first = (cluster - REFCOUNT_BLOCKS) * REFCOUNTS;
            let used = self.clusters().saturating_sub(first);
            refcounts(within, len, used)
        })
    }

    /// Bytes of an L2 table.
    fn l2(&self, number: u32, within: usize, len: usize) -> Bytes {
        let first = number.saturating_mul(ENTRIES);
        let mut last = None;
        entries(within, len, |entry| {
            let index = BlockIndex(first.saturating_add(entry));
            if self.data.contains(index) {
                // Entries come in order: each rank follows from the one before.
                let rank = match last {
                    Some(last) => last + 1,
                    None => self.ranks.rank(&self.data, index),
                };
                last = Some(rank);
                ((self.first_data() + u64::from(rank)) * CLUSTER) | ONCE
            } else if self.zero.contains(index) {
                ZERO
            } else {
                0
            }
        })
    }
}

/// Bytes of a cluster of entries of 8 bytes; `entry` is called for ascending numbers.
fn entries(within: usize, len: usize, mut entry: impl FnMut(u32) -> u64) -> Bytes {
    let (first, end) = (within / 8, (within + len).div_ceil(8));
    let mut bytes = Vec::with_capacity((end - first) * 8);
    for number in first..end {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        bytes.extend(entry(number).to_be_bytes());
    }
    let skipped = within - first * 8;
    Bytes::from(bytes).slice(skipped..skipped + len)
}

/// Bytes of a refcount block whose first `used` clusters are in use once.
fn refcounts(within: usize, len: usize, used: u64) -> Bytes {
    let at = |byte: usize| u8::from(byte % 2 == 1 && (byte as u64) / 2 < used);
    (within..within + len).map(at).collect::<Vec<u8>>().into()
}

#[cfg(test)]
mod tests;
