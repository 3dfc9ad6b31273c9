//! [`Delta`]: what differs between two volumes.

use super::{BlockIndex, BlockSet, Extent, Geometry};

/// What the base needs to become the head: blocks to write and blocks to zero.
/// Nothing in it lies beyond the head. A full copy is a delta from nothing.
#[derive(Clone, Debug)]
pub struct Delta {
    base: Option<Geometry>,
    head: Geometry,
    write: BlockSet,
    zero: BlockSet,
}

/// The state of a changed block: written or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Written: it has data in the head.
    Write,
    /// Zeroed: it reads as zeroes in the head.
    Zero,
}

impl Delta {
    /// No difference yet.
    pub fn new(base: Option<Geometry>, head: Geometry) -> Self {
        Self {
            base,
            head,
            write: BlockSet::new(),
            zero: BlockSet::new(),
        }
    }

    /// Adds a block; ignores one beyond the head.
    pub fn insert(&mut self, index: BlockIndex, change: Change) {
        if index.0 < self.head.block_count() {
            match change {
                Change::Write => self.write.insert(index),
                Change::Zero => self.zero.insert(index),
            }
        }
    }

    /// Adds what the volume has grown by, all of it if it grew from nothing: what lies behind the base's end in a target is
    /// not the base's, so it is zeroed where it is not written.
    pub(crate) fn zero_what_grew(&mut self) {
        let end = BlockIndex(self.head.block_count());
        let mut at = BlockIndex(self.base.map_or(0, Geometry::block_count));
        let written = self.write.runs_in(at, end);
        let written = written.map(|run| (run.start(), run.end()));
        for (start, stop) in written.chain([(end, end)]) {
            if let Some(rest) = Extent::new(at, start) {
                self.zero.insert_extent(rest);
            }
            at = stop;
        }
    }

    /// Like this delta, for a new target of the head's size, which reads as zeroes beyond the base's end.
    pub(crate) fn without_growth(&self) -> Self {
        let base = BlockIndex(self.base.map_or(0, Geometry::block_count));
        let mut zero = BlockSet::new();
        for run in self.zero.runs_in(BlockIndex(0), base) {
            zero.insert_extent(run);
        }
        Self {
            base: self.base,
            head: self.head,
            write: self.write.clone(),
            zero,
        }
    }

    /// A full copy: `held` are written; with `zero_rest` all others are zeroed, for a target that may hold anything.
    pub fn full(head: Geometry, held: &BlockSet, zero_rest: bool) -> Self {
        let mut delta = Self::new(None, head);
        let end = BlockIndex(head.block_count());
        for run in held.runs_in(BlockIndex(0), end) {
            delta.write.insert_extent(run);
        }
        if zero_rest {
            delta.zero_what_grew();
        }
        delta
    }

    /// Zeroes the blocks of `held` within the head that this delta does not touch.
    pub(crate) fn zero_where_held(&mut self, held: &BlockSet) {
        let end = BlockIndex(self.head.block_count());
        for held in held.runs_in(BlockIndex(0), end) {
            for run in self.left_alone(held.start(), held.end()) {
                self.zero.insert_extent(run);
            }
        }
    }

    /// Writes the last block of a base that ends within it, where the head is of another size: what lies behind the base's end in a
    /// target is unknown.
    pub(crate) fn cover_short_end(&mut self) {
        let Some(base) = self.base.filter(|base| *base != self.head) else {
            return;
        };
        let last = BlockIndex(base.block_count().saturating_sub(1));
        if base.block_len(last) != self.head.block_len(last) {
            let mut short = BlockSet::new();
            short.insert(last);
            self.write_too(&short);
        }
    }

    /// Adds blocks to `write` and removes them from `zero`; ignores blocks beyond the head.
    pub(crate) fn write_too(&mut self, blocks: &BlockSet) {
        let end = BlockIndex(self.head.block_count());
        for run in blocks.runs_in(BlockIndex(0), end) {
            self.write.insert_extent(run);
        }
        self.zero = self.zero.without(&self.write);
    }

    /// The runs of `start..stop` that are neither written nor zeroed.
    fn left_alone(&self, start: BlockIndex, stop: BlockIndex) -> Vec<Extent> {
        let mut runs = Vec::new();
        let mut at = start;
        while at < stop {
            let next = self.next_run(at).map(|(run, _)| run);
            let free = next.map_or(stop, |run| run.start().min(stop));
            runs.extend(Extent::new(at, free));
            at = next.map_or(stop, Extent::end);
        }
        runs
    }

    /// Adds every block that `other` touches to `write`, unless this delta touches it, so that a half-applied `other` is
    /// overwritten.
    /// Blocks beyond the end of `other`'s head may have been cut off, and are written too.
    pub(crate) fn rewrite_touched(&mut self, other: &Self) {
        let end = BlockIndex(self.head.block_count());
        let cut_off = Extent::new(BlockIndex(other.head.block_count()), end);
        let touched = other.runs().map(|(extent, _)| extent);
        for extent in touched.chain(cut_off) {
            for run in self.left_alone(extent.start(), extent.end().min(end)) {
                self.write.insert_extent(run);
            }
        }
    }

    /// Appends the delta to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.base.map_or(0, Geometry::size).to_le_bytes());
        out.extend_from_slice(&self.head.size().to_le_bytes());
        self.write.encode(out);
        self.zero.encode(out);
    }

    /// Takes a delta from the front of `bytes`; none when they do not encode one.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let mut size = || {
            let (size, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(u64::from_le_bytes(*size))
        };
        let (base, head) = (size()?, size()?);
        Some(Self {
            base: (base > 0).then(|| Geometry::new(base)).transpose().ok()?,
            head: Geometry::new(head).ok()?,
            write: BlockSet::decode(bytes)?,
            zero: BlockSet::decode(bytes)?,
        })
    }

    /// The volume that it starts from; none for a full copy.
    pub(crate) fn base(&self) -> Option<Geometry> {
        self.base
    }

    /// The volume that it leads to.
    pub(crate) fn head(&self) -> Geometry {
        self.head
    }

    /// Blocks that must be written.
    pub(crate) fn write(&self) -> &BlockSet {
        &self.write
    }

    /// Blocks that must be zeroed.
    pub fn zero(&self) -> &BlockSet {
        &self.zero
    }

    /// What a block needs, if anything.
    pub fn change(&self, index: BlockIndex) -> Option<Change> {
        if self.write.contains(index) {
            Some(Change::Write)
        } else {
            self.zero.contains(index).then_some(Change::Zero)
        }
    }

    /// The first run at or after `from` that needs something.
    pub(crate) fn next_run(&self, from: BlockIndex) -> Option<(Extent, Change)> {
        let write = self.write.next_in(from);
        let zero = self.zero.next_in(from);
        let is_write = match (write, zero) {
            (Some(write), Some(zero)) => write < zero,
            (write, _) => write.is_some(),
        };
        let (set, start, change) = if is_write {
            (&self.write, write?, Change::Write)
        } else {
            (&self.zero, zero?, Change::Zero)
        };
        let extent = Extent::new(start, set.next_out(start))?;
        Some((extent, change))
    }

    /// Every run that needs something, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (Extent, Change)> {
        let mut at = BlockIndex(0);
        std::iter::from_fn(move || {
            let (extent, change) = self.next_run(at)?;
            at = extent.end();
            Some((extent, change))
        })
    }

    /// Every block of `within` that needs something, ascending.
    pub(crate) fn blocks_in(&self, within: Extent) -> impl Iterator<Item = (BlockIndex, Change)> {
        let mut at = within.start();
        std::iter::from_fn(move || {
            let (extent, change) = self.next_run(at)?;
            let index = extent.start();
            at = BlockIndex(index.0 + 1);
            (index < within.end()).then_some((index, change))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_copy_writes_held_blocks_and_zeroes_the_rest_on_request() {
        let head = Geometry::new(100 * 512 * 1024).unwrap();
        let mut held = BlockSet::new();
        for index in [0, 1, 50, 99, 120] {
            held.insert(BlockIndex(index));
        }
        let delta = Delta::full(head, &held, false);
        assert_eq!((delta.write().len(), delta.zero().len()), (4, 0));
        let mut delta = Delta::full(head, &held, true);
        assert_eq!((delta.write().len(), delta.zero().len()), (4, 96));
        let mut encoded = Vec::new();
        delta.encode(&mut encoded);
        let decoded = Delta::decode(&mut &encoded[..]).unwrap();
        assert!(decoded.runs().eq(delta.runs()));
        assert_eq!((decoded.base(), decoded.head()), (None, head));
        let mut other = Delta::new(None, head);
        other.insert(BlockIndex(50), Change::Zero);
        other.insert(BlockIndex(51), Change::Write);
        delta = Delta::new(Some(head), head);
        delta.insert(BlockIndex(50), Change::Zero);
        delta.rewrite_touched(&other);
        assert_eq!(delta.change(BlockIndex(50)), Some(Change::Zero));
        assert_eq!(delta.change(BlockIndex(51)), Some(Change::Write));
        assert!(Delta::full(head, &BlockSet::new(), true).write().is_empty());
        // Brought back to a larger head, all that a smaller one cut off is written.
        let small = Delta::new(Some(head), Geometry::new(90 * 512 * 1024).unwrap());
        delta.rewrite_touched(&small);
        assert_eq!(delta.write().len(), 1 + 10);
    }

    #[test]
    fn runs_are_in_order_and_end_at_the_head() {
        let head = Geometry::new(100 * 512 * 1024).unwrap();
        let mut delta = Delta::new(None, head);
        for (index, change) in [
            (3, Change::Write),
            (4, Change::Write),
            (5, Change::Zero),
            (7, Change::Zero),
            (99, Change::Write),
            (100, Change::Write),
            (200, Change::Zero),
        ] {
            delta.insert(BlockIndex(index), change);
        }
        let runs: Vec<_> = delta
            .runs()
            .map(|(extent, change)| (extent.start().0, extent.end().0, change))
            .collect();
        assert_eq!(
            runs,
            [
                (3, 5, Change::Write),
                (5, 6, Change::Zero),
                (7, 8, Change::Zero),
                (99, 100, Change::Write)
            ]
        );
        let mut grown = Delta::new(Geometry::new(90 * 512 * 1024).ok(), head);
        for index in [5, 90, 95, 96] {
            grown.insert(BlockIndex(index), Change::Write);
        }
        grown.zero_what_grew();
        let zeroed: Vec<_> = (0..100)
            .filter(|i| grown.change(BlockIndex(*i)) == Some(Change::Zero))
            .collect();
        assert_eq!(zeroed, [91, 92, 93, 94, 97, 98, 99]);
        assert_eq!(delta.change(BlockIndex(5)), Some(Change::Zero));
        assert_eq!(delta.change(BlockIndex(6)), None);
        assert_eq!((delta.write().len(), delta.zero().len()), (3, 2));
    }
}
