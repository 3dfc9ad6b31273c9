//! All byte and block arithmetic: [`BlockIndex`], [`Extent`], [`Geometry`], [`Block`], [`BlockSet`], [`Delta`].
//!
//! Offsets are `u64` bytes and indexes are `u32` blocks; nothing else in the crate multiplies one into the other.

mod delta;
mod set;

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, Kind, Result};

pub use delta::{Change, Delta};
pub use set::BlockSet;

/// Bytes of a block of the EBS direct APIs: 512 KiB.
///
/// <https://docs.aws.amazon.com/ebs/latest/userguide/ebsapi-elements.html>
pub const BLOCK_SIZE: u32 = 512 * 1024;

/// Bytes of the largest volume, 64 TiB (gp3 and io2), which has 2^27 blocks.
///
/// <https://docs.aws.amazon.com/ebs/latest/userguide/volume_constraints.html>
pub(crate) const MAX_VOLUME_SIZE: u64 = 64 << 40;

/// A block of zeroes.
pub(crate) static ZEROES: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// SHA-256 of 512 KiB of zeroes.
pub const ZERO_BLOCK: Digest = [
    0x07, 0x85, 0x4d, 0x2f, 0xef, 0x29, 0x7a, 0x06, 0xba, 0x81, 0x68, 0x5e, 0x66, 0x0c, 0x33, 0x2d,
    0xe3, 0x6d, 0x5d, 0x18, 0xd5, 0x46, 0x92, 0x7d, 0x30, 0xda, 0xad, 0x6d, 0x7f, 0xda, 0x15, 0x41,
];

/// The number of a block within a volume, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A run of blocks, end exclusive, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    start: u32,
    end: u32,
}

impl Extent {
    /// The blocks `start..end`; none when that is empty.
    pub fn new(start: BlockIndex, end: BlockIndex) -> Option<Self> {
        (start < end).then_some(Self {
            start: start.0,
            end: end.0,
        })
    }

    /// One block.
    pub fn of(index: BlockIndex) -> Self {
        Self {
            start: index.0,
            end: index.0.saturating_add(1),
        }
    }

    /// The first block.
    pub fn start(self) -> BlockIndex {
        BlockIndex(self.start)
    }

    /// The block after the last one.
    pub fn end(self) -> BlockIndex {
        BlockIndex(self.end)
    }

    /// How many blocks, at least one.
    pub fn count(self) -> u32 {
        self.end - self.start
    }

    /// Every block of the run, ascending.
    pub fn blocks(self) -> impl DoubleEndedIterator<Item = BlockIndex> {
        (self.start..self.end).map(BlockIndex)
    }
}

/// A volume's size in bytes, and so in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    block_count: u32,
}

/// The bytes of one block that a byte range touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The block.
    pub(crate) index: BlockIndex,
    /// First byte within the block.
    pub(crate) start: usize,
    /// Byte after the last one within the block; more than `start`.
    pub(crate) end: usize,
}

impl Geometry {
    /// The geometry of a volume of `size` bytes; the last block may be short.
    ///
    /// # Errors
    /// `Invalid` for an empty volume and for one beyond 64 TiB.
    pub fn new(size: u64) -> Result<Self> {
        if size == 0 || size > MAX_VOLUME_SIZE {
            return Err(Error::new(
                Kind::Invalid,
                format!("a volume of {size} bytes: must be more than 0 and at most 64 TiB"),
            ));
        }
        let block_count = size.div_ceil(u64::from(BLOCK_SIZE));
        Ok(Self {
            size,
            block_count: u32::try_from(block_count).unwrap_or(u32::MAX),
        })
    }

    /// The same volume in whole GiB, which EBS counts in.
    ///
    /// # Errors
    /// `Invalid` beyond 64 TiB.
    pub(crate) fn rounded_to_gib(self) -> Result<Self> {
        Self::new(self.size.next_multiple_of(1 << 30))
    }

    /// The volume's bytes.
    pub fn size(self) -> u64 {
        self.size
    }

    /// The volume's blocks, at most 2^27.
    pub fn block_count(self) -> u32 {
        self.block_count
    }

    /// The byte offset at which a block begins, the volume's size for every block beyond the end.
    pub(crate) fn offset(self, index: BlockIndex) -> u64 {
        (u64::from(index.0) * u64::from(BLOCK_SIZE)).min(self.size)
    }

    /// The block that holds the byte at `offset`; none at or beyond the end.
    pub(crate) fn block_at(self, offset: u64) -> Option<BlockIndex> {
        (offset < self.size)
            .then(|| u32::try_from(offset / u64::from(BLOCK_SIZE)).ok())
            .flatten()
            .map(BlockIndex)
    }

    /// The bytes of one block: 512 KiB, or less for a short last block; 0 beyond the end.
    pub(crate) fn block_len(self, index: BlockIndex) -> usize {
        let len = self.offset(BlockIndex(index.0.saturating_add(1))) - self.offset(index);
        usize::try_from(len).unwrap_or(0)
    }

    /// The parts of blocks that the bytes `offset..offset + len` touch, cut at the end of the volume.
    pub(crate) fn split(self, offset: u64, len: usize) -> impl Iterator<Item = Part> {
        let end = offset.saturating_add(len as u64).min(self.size);
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let index = self.block_at(at)?;
            let begin = self.offset(index);
            let stop = end.min(begin + self.block_len(index) as u64);
            let part = Part {
                index,
                start: usize::try_from(at - begin).ok()?,
                end: usize::try_from(stop - begin).ok()?,
            };
            at = stop;
            Some(part)
        })
    }
}

/// A SHA-256.
pub type Digest = [u8; 32];

/// A digest as people write it.
pub(crate) fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A random id: of a run, a reader, a repository.
pub(crate) fn random_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

/// What a block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Zeroes: a hole, or a block written with zeroes. It takes no memory.
    Zero,
    /// Exactly the block's bytes, and the SHA-256 that they were verified by.
    Data(Bytes, Digest),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_volume_has_two_to_the_27_blocks() {
        let geometry = Geometry::new(MAX_VOLUME_SIZE).unwrap();
        assert_eq!(geometry.block_count(), 1 << 27);
        assert_eq!(
            geometry.block_at(MAX_VOLUME_SIZE - 1),
            Some(BlockIndex((1 << 27) - 1))
        );
        assert_eq!(geometry.block_at(MAX_VOLUME_SIZE), None);
        assert_eq!(geometry.offset(BlockIndex(u32::MAX)), MAX_VOLUME_SIZE);
        assert!(Geometry::new(0).is_err());
        assert!(Geometry::new(MAX_VOLUME_SIZE + 1).is_err());
    }

    #[test]
    fn a_short_last_block_is_short() {
        let geometry = Geometry::new(u64::from(BLOCK_SIZE) + 5).unwrap();
        assert_eq!(geometry.block_count(), 2);
        assert_eq!(geometry.block_len(BlockIndex(1)), 5);
        assert_eq!(geometry.block_len(BlockIndex(2)), 0);
        let parts: Vec<_> = geometry
            .split(u64::from(BLOCK_SIZE) - 1, usize::MAX)
            .collect();
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[1].end, 5);
    }

    proptest! {
        #[test]
        fn split_covers_exactly_the_range_in_order(
            size in 1u64..8 << 20, offset in 0u64..9 << 20, len in 0usize..4 << 20
        ) {
            let geometry = Geometry::new(size).unwrap();
            let mut at = offset;
            for part in geometry.split(offset, len) {
                prop_assert!(part.start < part.end);
                prop_assert!(part.end <= geometry.block_len(part.index));
                prop_assert_eq!(geometry.offset(part.index) + part.start as u64, at);
                at += (part.end - part.start) as u64;
            }
            let end = (offset + len as u64).min(size).max(offset);
            prop_assert_eq!(at, end);
        }
    }
}
