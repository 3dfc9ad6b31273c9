//! A set of blocks as a bitmap in chunks: at most 16 MiB for 64 TiB, almost nothing where all or none are in.

use super::{BlockIndex, Extent};

/// Blocks a chunk: 65,536 bits are 8 KiB.
const CHUNK: u32 = 1 << 16;
const WORDS: usize = CHUNK as usize / 64;

#[derive(Clone, Debug)]
enum Chunk {
    Empty,
    Full,
    /// Neither empty nor full, or not yet found to be.
    Bits(Box<[u64; WORDS]>),
}

/// A set of block indexes.
#[derive(Clone, Debug, Default)]
pub struct BlockSet {
    chunks: Vec<Chunk>,
    len: u64,
}

impl BlockSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many blocks are in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no block is in the set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the set takes.
    pub fn memory(&self) -> usize {
        let is_bits = |chunk: &&Chunk| matches!(chunk, Chunk::Bits(_));
        let bits = self.chunks.iter().filter(is_bits).count();
        bits * size_of::<[u64; WORDS]>() + self.chunks.capacity() * size_of::<Chunk>()
    }

    /// Whether the block is in the set.
    pub fn contains(&self, index: BlockIndex) -> bool {
        match self.chunks.get(chunk_of(index.0)) {
            None | Some(Chunk::Empty) => false,
            Some(Chunk::Full) => true,
            Some(Chunk::Bits(bits)) => {
                let bit = index.0 % CHUNK;
                bits.get(bit as usize / 64)
                    .is_some_and(|word| word >> (bit % 64) & 1 == 1)
            }
        }
    }

    /// Adds one block.
    pub fn insert(&mut self, index: BlockIndex) {
        if let Some(end) = index.0.checked_add(1) {
            self.insert_range(index.0, end);
        }
    }

    /// Adds a run of blocks.
    pub fn insert_extent(&mut self, extent: Extent) {
        self.insert_range(extent.start, extent.end);
    }

    fn insert_range(&mut self, start: u32, end: u32) {
        let mut at = start;
        while at < end {
            let chunk_start = at - at % CHUNK;
            let stop = chunk_start.saturating_add(CHUNK).min(end);
            let number = chunk_of(at);
            if self.chunks.len() <= number {
                self.chunks.resize(number + 1, Chunk::Empty);
            }
            if let Some(chunk) = self.chunks.get_mut(number) {
                self.len += chunk.insert(at - chunk_start, stop - chunk_start);
            }
            at = stop;
        }
    }

    /// The first block at or after `from` that is in the set.
    pub fn next_in(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.scan(from.0, true)
    }

    /// The first block at or after `from` that is not in the set.
    pub fn next_out(&self, from: BlockIndex) -> BlockIndex {
        let beyond = u32::try_from(self.chunks.len()).map_or(u32::MAX, |n| n.saturating_mul(CHUNK));
        self.scan(from.0, false)
            .unwrap_or(BlockIndex(beyond.max(from.0)))
    }

    /// Whether all blocks of the run are in the set.
    pub fn covers(&self, extent: Extent) -> bool {
        let mut at = extent.start;
        while at < extent.end {
            let chunk_start = at - at % CHUNK;
            let stop = chunk_start.saturating_add(CHUNK).min(extent.end);
            let covered = match self.chunks.get(chunk_of(at)) {
                None | Some(Chunk::Empty) => false,
                Some(Chunk::Full) => true,
                Some(Chunk::Bits(bits)) => scan_bits(bits, at - chunk_start, false)
                    .is_none_or(|bit| chunk_start + bit >= stop),
            };
            if !covered {
                return false;
            }
            at = stop;
        }
        true
    }

    /// How many blocks of the run are in the set.
    pub fn count_in(&self, extent: Extent) -> u32 {
        let mut count = 0;
        let mut at = extent.start();
        while let Some(start) = self.next_in(at).filter(|start| *start < extent.end()) {
            let end = self.next_out(start).min(extent.end());
            count += end.0 - start.0;
            at = end;
        }
        count
    }

    /// The first index at or after `from` whose membership is `wanted`, within the chunks that exist.
    fn scan(&self, from: u32, wanted: bool) -> Option<BlockIndex> {
        let mut at = from;
        loop {
            let chunk = self.chunks.get(chunk_of(at))?;
            let chunk_start = at - at % CHUNK;
            let found = match chunk {
                Chunk::Empty => (!wanted).then_some(at),
                Chunk::Full => wanted.then_some(at),
                Chunk::Bits(bits) => {
                    scan_bits(bits, at - chunk_start, wanted).map(|bit| chunk_start + bit)
                }
            };
            match found {
                Some(index) => return Some(BlockIndex(index)),
                None => at = chunk_start.checked_add(CHUNK)?,
            }
        }
    }
}

impl Chunk {
    /// Sets bits `start..end` and returns how many were not set before.
    fn insert(&mut self, start: u32, end: u32) -> u64 {
        if matches!(self, Self::Full) {
            return 0;
        }
        if matches!(self, Self::Empty) {
            if end - start == CHUNK {
                *self = Self::Full;
                return u64::from(CHUNK);
            }
            *self = Self::Bits(Box::new([0; WORDS]));
        }
        let Self::Bits(bits) = self else { return 0 };
        let mut added = 0;
        let mut at = start;
        while at < end {
            let low = at % 64;
            let high = (end - (at - low)).min(64);
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            if let Some(word) = bits.get_mut(at as usize / 64) {
                added += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
            at += high - low;
        }
        if added > 0 && bits.iter().all(|word| *word == u64::MAX) {
            *self = Self::Full;
        }
        added
    }
}

fn chunk_of(index: u32) -> usize {
    (index / CHUNK) as usize
}

fn scan_bits(bits: &[u64; WORDS], from: u32, wanted: bool) -> Option<u32> {
    let flip = if wanted { 0 } else { u64::MAX };
    let first = from / 64;
    let mut mask = u64::MAX << (from % 64);
    for (number, word) in (first..).zip(bits.get(first as usize..)?) {
        let word = (word ^ flip) & mask;
        if word != 0 {
            return Some(number * 64 + word.trailing_zeros());
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_full_set_of_64_tib_takes_no_bitmaps_and_ends_at_its_end() {
        let mut set = BlockSet::new();
        set.insert_range(0, 1 << 27);
        assert_eq!(set.len(), 1 << 27);
        assert!(set.chunks.iter().all(|chunk| matches!(chunk, Chunk::Full)));
        assert_eq!(set.next_out(BlockIndex(7)), BlockIndex(1 << 27));
        assert_eq!(set.next_in(BlockIndex(1 << 27)), None);
        assert_eq!(set.next_out(BlockIndex(1 << 28)), BlockIndex(1 << 28));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn behaves_as_an_ordered_set(
            runs in prop::collection::vec((0u32..200_000, 1u32..80_000), 0..12),
            probes in prop::collection::vec(0u32..300_000, 40),
        ) {
            let mut set = BlockSet::new();
            let mut model = BTreeSet::new();
            for (start, len) in runs {
                set.insert_range(start, start + len);
                model.extend(start..start + len);
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            for probe in probes {
                let index = BlockIndex(probe);
                prop_assert_eq!(set.contains(index), model.contains(&probe));
                prop_assert_eq!(set.next_in(index).map(|i| i.0), model.range(probe..).next().copied());
                let out = (probe..).find(|i| !model.contains(i)).unwrap();
                prop_assert_eq!(set.next_out(index).0, out);
                let extent = Extent::new(index, BlockIndex(probe + 1000)).unwrap();
                prop_assert_eq!(set.covers(extent), (probe..probe + 1000).all(|i| model.contains(&i)));
                prop_assert_eq!(set.count_in(extent) as usize, model.range(probe..probe + 1000).count());
            }
        }
    }
}
