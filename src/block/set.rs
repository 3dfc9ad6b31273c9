//! A set of blocks as a bitmap in chunks: at most 16 MiB for 64 TiB, almost nothing where all or none are in.

use super::{BlockIndex, Extent};

/// Blocks a chunk: 65,536 bits are 8 KiB.
const CHUNK: u32 = 1 << 16;
const WORDS: usize = CHUNK as usize / 64;
/// How a chunk is written: see [`BlockSet::encode`].
const EMPTY: u8 = 0;
const FULL: u8 = 1;
const BITS: u8 = 2;
const FEW: u8 = 3;
/// So many members of two bytes take less than the bits.
const MOST_FEW: usize = CHUNK as usize / 8 / 2 - 2;

#[derive(Clone, Debug)]
enum Chunk {
    Empty,
    Full,
    /// Neither empty nor full, as far as known.
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

    /// The blocks of runs (first, end) as records list them; what lies at or behind `end` is left out.
    pub fn of_pairs(pairs: &[(u32, u32)], end: BlockIndex) -> Self {
        let mut set = Self::new();
        for (first, after) in pairs {
            set.insert_range(*first, (*after).min(end.0));
        }
        set
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
    pub(crate) fn memory(&self) -> usize {
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
    pub(crate) fn insert_extent(&mut self, extent: Extent) {
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
    pub(crate) fn next_in(&self, from: BlockIndex) -> Option<BlockIndex> {
        self.scan(from.0, true)
    }

    /// The first block at or after `from` that is not in the set.
    pub(crate) fn next_out(&self, from: BlockIndex) -> BlockIndex {
        let beyond = u32::try_from(self.chunks.len()).map_or(u32::MAX, |n| n.saturating_mul(CHUNK));
        self.scan(from.0, false)
            .unwrap_or(BlockIndex(beyond.max(from.0)))
    }

    /// Whether all blocks of the run are in the set.
    pub(crate) fn covers(&self, extent: Extent) -> bool {
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

    /// The runs of blocks from `start` to before `end` that are in the set, ascending.
    pub(crate) fn runs_in(
        &self,
        start: BlockIndex,
        end: BlockIndex,
    ) -> impl Iterator<Item = Extent> {
        let mut at = start;
        std::iter::from_fn(move || {
            let first = self.next_in(at).filter(|first| *first < end)?;
            at = self.next_out(first).min(end);
            Extent::new(first, at)
        })
    }

    /// How many blocks of the run are in the set.
    pub(crate) fn count_in(&self, extent: Extent) -> u32 {
        let runs = self.runs_in(extent.start(), extent.end());
        runs.map(Extent::count).sum()
    }

    /// Every run of the set, ascending.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Extent> {
        self.runs_in(BlockIndex(0), BlockIndex(u32::MAX))
    }

    /// Adds every block of another set.
    pub(crate) fn insert_all(&mut self, other: &Self) {
        for run in other.runs() {
            self.insert_extent(run);
        }
    }

    /// The blocks of this set that are not in another.
    #[must_use]
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut rest = Self::new();
        for run in self.runs() {
            let mut at = run.start();
            while at < run.end() {
                if other.contains(at) {
                    at = other.next_out(at);
                    continue;
                }
                let next = other.next_in(at);
                let end = next.map_or(run.end(), |next| next.min(run.end()));
                if let Some(free) = Extent::new(at, end) {
                    rest.insert_extent(free);
                }
                at = end;
            }
        }
        rest
    }

    /// Appends the set to `out`: how many chunks, then each as it is shortest: empty, full, its members, or its bits.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let count = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        for chunk in &self.chunks {
            match chunk {
                Chunk::Empty => out.push(EMPTY),
                Chunk::Full => out.push(FULL),
                Chunk::Bits(bits) => match members(bits) {
                    Some(members) => {
                        out.push(FEW);
                        let count = u16::try_from(members.len()).unwrap_or(0);
                        out.extend_from_slice(&count.to_le_bytes());
                        out.extend(members.iter().flat_map(|bit| bit.to_le_bytes()));
                    }
                    None => {
                        out.push(BITS);
                        out.extend(bits.iter().flat_map(|word| word.to_le_bytes()));
                    }
                },
            }
        }
    }

    /// Takes a set from the front of `bytes`; none when they do not encode one.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let count = u32::from_le_bytes(take(bytes)?);
        let mut set = Self::new();
        for number in 0..count {
            let start = number.checked_mul(CHUNK)?;
            let [tag] = take(bytes)?;
            match tag {
                EMPTY => set.chunks.push(Chunk::Empty),
                FULL => set.insert_range(start, start.checked_add(CHUNK)?),
                FEW => {
                    // A chunk is created with its first member.
                    let count = u16::from_le_bytes(take(bytes)?);
                    if count == 0 {
                        return None;
                    }
                    for _ in 0..count {
                        let bit = u16::from_le_bytes(take(bytes)?);
                        set.insert(BlockIndex(start.checked_add(bit.into())?));
                    }
                }
                BITS => {
                    let mut words = Box::new([0; WORDS]);
                    for word in words.iter_mut() {
                        *word = u64::from_le_bytes(take(bytes)?);
                        set.len += u64::from(word.count_ones());
                    }
                    set.chunks.push(Chunk::Bits(words));
                }
                _ => return None,
            }
        }
        Some(set)
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

/// The members of a chunk, if they are few and any.
fn members(bits: &[u64; WORDS]) -> Option<Vec<u16>> {
    let count: u32 = bits.iter().map(|word| word.count_ones()).sum();
    if count == 0 || count as usize > MOST_FEW {
        return None;
    }
    let mut members = Vec::with_capacity(count as usize);
    for (number, word) in bits.iter().enumerate() {
        let mut left = *word;
        while left != 0 {
            let bit = number * 64 + left.trailing_zeros() as usize;
            members.push(u16::try_from(bit).ok()?);
            left &= left - 1;
        }
    }
    Some(members)
}

/// The next `N` bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
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

    #[test]
    fn without_removes_the_members_of_the_other_set() {
        let set = |runs: &[(u32, u32)]| {
            let mut set = BlockSet::new();
            for (start, end) in runs {
                set.insert_extent(Extent::new(BlockIndex(*start), BlockIndex(*end)).unwrap());
            }
            set
        };
        let all = |set: &BlockSet| -> Vec<(u32, u32)> {
            set.runs().map(|run| (run.start().0, run.end().0)).collect()
        };
        let a = set(&[(0, 10), (20, 30), (100_000, 200_000)]);
        let b = set(&[
            (0, 1),
            (3, 4),
            (9, 25),
            (150_000, 150_001),
            (199_999, 300_000),
        ]);
        assert_eq!(
            all(&a.without(&b)),
            [
                (1, 3),
                (4, 9),
                (25, 30),
                (100_000, 150_000),
                (150_001, 199_999)
            ]
        );
        assert!(a.without(&a).is_empty());
        assert_eq!(all(&a.without(&BlockSet::new())), all(&a));
        let mut both = a.clone();
        both.insert_all(&b);
        assert_eq!(both.len(), a.len() + b.without(&a).len());
    }
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
            runs in prop::collection::vec((0u32..200_000, prop_oneof![1u32..10, 1u32..80_000]), 0..12),
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
                let mut encoded = Vec::new();
                set.encode(&mut encoded);
                for cut in [encoded.len() / 2, encoded.len().saturating_sub(1)] {
                    if cut < encoded.len() && cut > 0 {
                        prop_assert!(BlockSet::decode(&mut &encoded[..cut]).is_none());
                    }
                }
                let mut rest = &encoded[..];
                let decoded = BlockSet::decode(&mut rest).unwrap();
                prop_assert!(rest.is_empty());
                prop_assert_eq!((decoded.len(), decoded.next_in(index)), (set.len(), set.next_in(index)));
                let extent = Extent::new(index, BlockIndex(probe + 1000)).unwrap();
                prop_assert_eq!(set.covers(extent), (probe..probe + 1000).all(|i| model.contains(&i)));
                prop_assert_eq!(set.count_in(extent) as usize, model.range(probe..probe + 1000).count());
            }
        }
    }
}
