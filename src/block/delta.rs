//! [`Delta`]: what differs between two volumes.

use super::{BlockIndex, BlockSet, Extent, Geometry};

/// What must be done to a volume with the bytes of a base to give it those of a head: blocks to write, blocks to zero.
/// Nothing in it lies beyond the head. A full copy is a delta from nothing.
#[derive(Clone, Debug)]
pub struct Delta {
    base: Option<Geometry>,
    head: Geometry,
    write: BlockSet,
    zero: BlockSet,
}

/// What a run of blocks needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The head's bytes.
    Write,
    /// Zeroes: the base held it, the head does not.
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

    /// Adds a block; one beyond the head is none of its.
    pub fn insert(&mut self, index: BlockIndex, change: Change) {
        if index.0 < self.head.block_count() {
            match change {
                Change::Write => self.write.insert(index),
                Change::Zero => self.zero.insert(index),
            }
        }
    }

    /// Adds what the volume has grown by: what lies behind the base's end in a target is not the base's, so it is zeroed
    /// where it is not written.
    pub fn zero_what_grew(&mut self) {
        let end = BlockIndex(self.head.block_count());
        let mut at = BlockIndex(self.base.map_or(0, Geometry::block_count));
        while at < end {
            let written = self.write.next_in(at).map_or(end, |next| next.min(end));
            if let Some(rest) = Extent::new(at, written) {
                self.zero.insert_extent(rest);
            }
            at = self.write.next_out(written).min(end);
            if written == end {
                break;
            }
        }
    }

    /// The volume that it starts from; none for a full copy.
    pub fn base(&self) -> Option<Geometry> {
        self.base
    }

    /// The volume that it leads to.
    pub fn head(&self) -> Geometry {
        self.head
    }

    /// Blocks that must be written.
    pub fn write(&self) -> &BlockSet {
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
    pub fn next_run(&self, from: BlockIndex) -> Option<(Extent, Change)> {
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
    pub fn blocks_in(&self, within: Extent) -> impl Iterator<Item = (BlockIndex, Change)> {
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
    fn runs_come_in_order_and_nothing_lies_beyond_the_head() {
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
