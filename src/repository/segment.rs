//! Segments: where 65,536 consecutive blocks of a snapshot are, block by block.

use bytes::Bytes;

use super::SEGMENT_BLOCKS;
use super::header::{self, Magic, Salt};
use super::pack::{Name, Spot};
use crate::block::{BlockIndex, Digest};

const MAGIC: &Magic = b"ebsfseg2";
/// Digests cannot be compressed, and the rest is small: a fast level is enough.
const LEVEL: i32 = 3;
/// Bytes of a block in a segment, and of a pack.
const BLOCK: usize = 2 + 2 + 4 + 4 + 32;
const PACK: usize = 32;
/// The longest segment: each block in a pack of its own.
const MOST: usize = 32 + SEGMENT_BLOCKS as usize * (BLOCK + PACK);

/// Where a block is, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentEntry {
    pub(super) pack: Name,
    pub(super) spot: Spot,
    pub(super) digest: Digest,
}

/// A segment. Some 3 MB in memory when every block is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    /// Ascending, by the index within the segment.
    blocks: Vec<SegmentSlot>,
    packs: Vec<Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SegmentSlot {
    index: u16,
    pack: u16,
    spot: Spot,
    digest: Digest,
}

/// The segment that a block is in, and its index there.
pub(super) fn place_of(index: BlockIndex) -> (u32, u16) {
    let within = index.0 % SEGMENT_BLOCKS;
    (index.0 / SEGMENT_BLOCKS, u16::try_from(within).unwrap_or(0))
}

impl Segment {
    /// How many blocks it holds.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The packs that its blocks are in, each once.
    pub(super) fn packs(&self) -> &[Name] {
        &self.packs
    }

    /// A block by its index within the segment; none is a hole.
    pub(super) fn get(&self, index: u16) -> Option<SegmentEntry> {
        let at = self
            .blocks
            .binary_search_by_key(&index, |place| place.index);
        let place = self.blocks.get(at.ok()?)?;
        self.entry(place)
    }

    fn entry(&self, place: &SegmentSlot) -> Option<SegmentEntry> {
        Some(SegmentEntry {
            pack: *self.packs.get(usize::from(place.pack))?,
            spot: place.spot,
            digest: place.digest,
        })
    }

    /// All blocks, ascending.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u16, SegmentEntry)> + '_ {
        let entries = self.blocks.iter();
        entries.filter_map(|place| Some((place.index, self.entry(place)?)))
    }

    /// The first run of blocks at or after `from`: its first, and the one after its last.
    pub(super) fn next_run(&self, from: u16) -> Option<(u32, u32)> {
        let at = self.blocks.partition_point(|place| place.index < from);
        let run = self.blocks.get(at..)?;
        let first = u32::from(run.first()?.index);
        let len = (first..)
            .zip(run)
            .take_while(|(want, place)| u32::from(place.index) == *want);
        Some((first, first + u32::try_from(len.count()).unwrap_or(0)))
    }

    /// A segment of these blocks, ascending.
    pub(super) fn of(entries: impl IntoIterator<Item = (u16, SegmentEntry)>) -> Self {
        let mut segment = Self::default();
        let mut numbers = std::collections::HashMap::new();
        for (index, entry) in entries {
            let next = u16::try_from(segment.packs.len()).unwrap_or(u16::MAX);
            let pack = *numbers.entry(entry.pack).or_insert_with(|| {
                segment.packs.push(entry.pack);
                next
            });
            segment.blocks.push(SegmentSlot {
                index,
                pack,
                spot: entry.spot,
                digest: entry.digest,
            });
        }
        segment
    }

    /// The stored form.
    pub(super) fn encode(&self, run: &Salt) -> std::io::Result<Bytes> {
        let mut out = Vec::with_capacity(16 + self.packs.len() * PACK + self.blocks.len() * BLOCK);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        out.extend_from_slice(&number(self.packs.len()));
        out.extend(self.packs.iter().flatten());
        out.extend_from_slice(&number(self.blocks.len()));
        out.extend(self.blocks.iter().flat_map(|b| b.index.to_le_bytes()));
        out.extend(self.blocks.iter().flat_map(|b| b.pack.to_le_bytes()));
        out.extend(self.blocks.iter().flat_map(|b| b.spot.offset.to_le_bytes()));
        out.extend(self.blocks.iter().flat_map(|b| b.spot.length.to_le_bytes()));
        out.extend(self.blocks.iter().flat_map(|b| b.digest));
        let mut object = header::encode(MAGIC, run, &out).to_vec();
        object.extend(zstd::bulk::compress(&out, LEVEL)?);
        Ok(object.into())
    }

    /// Decodes the stored form; none when it is no segment.
    pub(super) fn decode(stored: &[u8]) -> Option<Self> {
        let (_, compressed) = header::split(MAGIC, stored)?;
        let rest = zstd::bulk::decompress(compressed, MOST).ok()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let packs = u32::from_le_bytes(*count) as usize;
        let (names, rest) = rest.split_at_checked(packs.checked_mul(PACK)?)?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        if count > SEGMENT_BLOCKS as usize || rest.len() != count * BLOCK {
            return None;
        }
        let (indexes, rest) = rest.split_at_checked(count * 2)?;
        let (numbers, rest) = rest.split_at_checked(count * 2)?;
        let (offsets, rest) = rest.split_at_checked(count * 4)?;
        let (lengths, digests) = rest.split_at_checked(count * 4)?;
        let short = |bytes: &[u8]| Some(u16::from_le_bytes(bytes.try_into().ok()?));
        let long = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.try_into().ok()?));
        let columns = indexes
            .chunks_exact(2)
            .zip(numbers.chunks_exact(2))
            .zip(offsets.chunks_exact(4).zip(lengths.chunks_exact(4)))
            .zip(digests.chunks_exact(32));
        let mut blocks: Vec<SegmentSlot> = Vec::with_capacity(count);
        for (((index, pack), (offset, length)), digest) in columns {
            let place = SegmentSlot {
                index: short(index)?,
                pack: short(pack)?,
                spot: Spot {
                    offset: long(offset)?,
                    length: long(length)?,
                },
                digest: digest.try_into().ok()?,
            };
            let is_next = blocks.last().is_none_or(|last| last.index < place.index);
            if !is_next || usize::from(place.pack) >= packs || !place.spot.is_sound() {
                return None;
            }
            blocks.push(place);
        }
        let packs = names.chunks_exact(PACK).map(|name| name.try_into().ok());
        Some(Self {
            blocks,
            packs: packs.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::header::HEADER;

    fn entry(number: u32) -> SegmentEntry {
        SegmentEntry {
            pack: [u8::try_from(number / 64 % 251).unwrap(); 32],
            spot: Spot {
                offset: u32::try_from(HEADER).unwrap() + number % 64 * 1000,
                length: 1000,
            },
            digest: [u8::try_from(number % 256).unwrap(); 32],
        }
    }

    #[test]
    fn a_segment_is_read_as_stored_and_any_other_bytes_are_refused() {
        let indexes = [0u16, 1, 2, 700, 701, 65_535];
        let segment = Segment::of(indexes.iter().map(|i| (*i, entry(u32::from(*i)))));
        let stored = segment.encode(&[1; 16]).unwrap();
        let read = Segment::decode(&stored).unwrap();
        assert_eq!(read, segment);
        assert_eq!(read.get(700), Some(entry(700)));
        assert_eq!(read.get(3), None);
        assert_eq!(read.next_run(0), Some((0, 3)));
        assert_eq!(read.next_run(1), Some((1, 3)));
        assert_eq!(read.next_run(3), Some((700, 702)));
        assert_eq!(read.next_run(702), Some((65_535, 65_536)));
        assert_eq!(Segment::default().next_run(0), None);
        for cut in 0..stored.len() {
            assert!(Segment::decode(&stored[..cut]).is_none());
        }
        let unsorted = Segment::of([(5, entry(5)), (4, entry(4))]);
        assert!(Segment::decode(&unsorted.encode(&[1; 16]).unwrap()).is_none());
    }

    #[test]
    fn a_dense_segment_is_some_3_mb() {
        let segment = Segment::of((0..=u16::MAX).map(|i| (i, entry(u32::from(i)))));
        assert_eq!(segment.len(), 65_536);
        assert_eq!(segment.packs().len(), 251);
        assert!(segment.len() * size_of::<SegmentSlot>() <= 3 << 20);
        assert_eq!(
            Segment::decode(&segment.encode(&[1; 16]).unwrap()),
            Some(segment)
        );
    }
}
