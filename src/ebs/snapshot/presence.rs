//! [`Presence`]: which blocks of a snapshot are held, as far as pages prove it.
//!
//! # Counts
//! Where EC2 states how many blocks the snapshot holds (`FullSnapshotSizeInBytes`) the count is checked. Fewer listed blocks than
//! that are suspicious: the whole snapshot is listed again, in other pages, before another hole is believed. The same list
//! twice means that EC2's number does not hold for this snapshot (no source states that it must), another list means corruption.
//! More listed blocks than stated, or a stated 0, cannot show a missing block: one warning.

use crate::block::{BlockIndex, BlockSet, Extent, Geometry};

/// A read this close behind a listed block continues that listing: a reader asks for several blocks at once, in any order.
const NEAR: u32 = 256;

/// What EC2 states about a snapshot before it is listed.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::ebs) struct StatedFacts {
    /// The volume's size.
    pub(in crate::ebs) geometry: Option<Geometry>,
    /// How many blocks it holds.
    pub(in crate::ebs) held: Option<u64>,
    /// That it exists: the client waits for a listing that does not find it yet.
    pub(in crate::ebs) exists: bool,
}

/// Which blocks are held.
#[derive(Debug, Default)]
pub(super) struct Presence {
    geometry: Option<Geometry>,
    /// Blocks held in all, where EC2 states it and no count has refuted it.
    expected: Option<u64>,
    /// The position of the second count, while the first one disagrees with `expected`.
    recount: Option<BlockIndex>,
    /// Blocks whose presence is known.
    known: BlockSet,
    /// Blocks that are held.
    held: BlockSet,
}

/// Where the next run of held blocks is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextExtent {
    /// There, or nowhere up to the end.
    Known(Option<Extent>),
    /// From this block on it must be listed.
    UnknownFrom(BlockIndex),
}

/// What a page has shown about the number that EC2 states.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CountNotice {
    /// The number is not usable.
    Unusable(String),
    /// Blocks may be missing: a second count begins.
    Short(String),
}

impl Presence {
    /// Nothing is listed yet.
    pub(super) fn new(stated: &StatedFacts) -> Self {
        Self {
            geometry: stated.geometry,
            expected: stated.held,
            ..Self::default()
        }
    }

    /// Forgets what is listed; what EC2 states stays.
    pub(super) fn forget(&mut self) {
        *self = Self {
            geometry: self.geometry,
            expected: self.expected,
            ..Self::default()
        };
    }

    /// Bytes of memory of what is listed.
    pub(super) fn memory(&self) -> usize {
        self.known.memory() + self.held.memory()
    }

    /// The volume's geometry, once it is known.
    pub(super) fn geometry(&self) -> Option<Geometry> {
        self.geometry
    }

    /// Takes the geometry of a reply; an error where it contradicts the one that is known.
    pub(super) fn learn_geometry(&mut self, listed: Geometry) -> Result<(), String> {
        let known = *self.geometry.get_or_insert(listed);
        if known == listed {
            return Ok(());
        }
        let (known, listed) = (known.size(), listed.size());
        Err(format!(
            "the volume has {known} bytes by one reply and {listed} by another"
        ))
    }

    /// Whether a block is held, if that is known.
    pub(super) fn is_held(&self, index: BlockIndex) -> Option<bool> {
        let is_known = self.known.contains(index);
        is_known.then(|| self.held.contains(index))
    }

    /// Whether a block is a hole, if that is known. No hole is believed while a second count is due.
    pub(super) fn is_hole(&self, index: BlockIndex) -> Option<bool> {
        let is_held = self.is_held(index)?;
        (is_held || self.recount.is_none()).then_some(!is_held)
    }

    /// The first run of held blocks at or after `at`, before `end`.
    pub(super) fn next_extent(&self, at: BlockIndex, end: BlockIndex) -> NextExtent {
        if self.recount.is_some() {
            return NextExtent::UnknownFrom(at);
        }
        // Only as far as the next held block: all that is known may be long.
        let held = self.held.next_in(at).filter(|held| *held < end);
        let before = Extent::new(at, held.unwrap_or(end));
        if before.is_none_or(|before| self.known.covers(before)) {
            let run = held.map(|start| (start, self.held.next_out(start).min(end)));
            return NextExtent::Known(run.and_then(|(start, stop)| Extent::new(start, stop)));
        }
        NextExtent::UnknownFrom(self.known.next_out(at).min(end))
    }

    /// Adds that in `span` these blocks are held and no others. An error where that contradicts what is known.
    pub(super) fn add(
        &mut self,
        span: Extent,
        blocks: impl Iterator<Item = BlockIndex> + Clone,
    ) -> Result<Option<CountNotice>, String> {
        let mut seen_before = 0;
        for index in blocks.clone() {
            if self.held.contains(index) {
                seen_before += 1;
            } else if self.known.contains(index) {
                return Err(format!("block {index} was a hole and is now held"));
            }
        }
        let held_before = self.held.count_in(span);
        if held_before != seen_before {
            let (start, end, missing) = (span.start(), span.end(), held_before - seen_before);
            return Err(format!(
                "{missing} blocks between {start} and {end} were listed before and are now missing"
            ));
        }
        self.known.insert_extent(span);
        for index in blocks {
            self.held.insert(index);
        }
        Ok(self.check_count())
    }

    fn check_count(&mut self) -> Option<CountNotice> {
        let (expected, geometry) = (self.expected?, self.geometry?);
        let held = self.held.len();
        let unknown = u64::from(geometry.block_count()).saturating_sub(self.known.len());
        let stated =
            format!("{held} blocks are listed, EC2 states {expected} (FullSnapshotSizeInBytes)");
        match count(held, unknown, expected) {
            CountCheck::Unusable => {
                self.expected = None;
                let what = format!("{stated}: its number is not usable, going by the listing");
                Some(CountNotice::Unusable(what))
            }
            CountCheck::Short if self.recount.is_none() => {
                self.recount = Some(BlockIndex(0));
                Some(CountNotice::Short(format!(
                    "{stated}: listing it once more"
                )))
            }
            CountCheck::Short | CountCheck::Possible => None,
        }
    }

    /// The position of the second count, while one is due.
    pub(super) fn recount(&self) -> Option<BlockIndex> {
        self.recount
    }

    /// The second count has come to `end` without a contradiction. What to report when it is complete; an error where both
    /// listings are empty: EC2's number is never wrong by all blocks, but a broken service lists none.
    pub(super) fn counted_again(&mut self, end: u32, more: bool) -> Result<Option<String>, String> {
        if more {
            self.recount = Some(BlockIndex(end));
            return Ok(None);
        }
        let Some(expected) = self.expected else {
            // Nothing is left to compare with.
            self.recount = None;
            return Ok(None);
        };
        let held = self.held.len();
        if held == 0 {
            return Err(format!(
                "no block is listed, EC2 states {expected} (FullSnapshotSizeInBytes)"
            ));
        }
        (self.recount, self.expected) = (None, None);
        Ok(Some(format!(
            "two listings agree on {held} blocks, EC2 states {expected} (FullSnapshotSizeInBytes): going by the listings"
        )))
    }

    /// The nearest block a little before `index` whose presence is known.
    pub(super) fn known_before(&self, index: BlockIndex) -> Option<BlockIndex> {
        (index.0.saturating_sub(NEAR)..index.0)
            .rev()
            .map(BlockIndex)
            .find(|before| self.known.contains(*before))
    }

    /// How many indexes a page of this many blocks probably spans, by the density so far.
    pub(super) fn probable_reach(&self, blocks: u16) -> u32 {
        let all = self
            .geometry
            .map(|geometry| u64::from(geometry.block_count()));
        let (span, held) = match (self.held.len(), all, self.expected) {
            (0, Some(all), Some(held)) => (all, held),
            (held, ..) => (self.known.len(), held),
        };
        let reach = u64::from(blocks).saturating_mul(span.max(held)) / held.max(1);
        u32::try_from(reach.max(blocks.into())).unwrap_or(u32::MAX)
    }
}

/// What a count of listed blocks shows about the number that EC2 states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CountCheck {
    /// The blocks that are not listed yet can make up the difference.
    Possible,
    /// It cannot show a missing block: 0 is stated for unknown, or more blocks are listed than stated.
    Unusable,
    /// Fewer blocks are listed than stated: some may be missing.
    Short,
}

/// `held` blocks are listed, of `unknown` ones the presence is not known, EC2 states `expected`.
fn count(held: u64, unknown: u64, expected: u64) -> CountCheck {
    if held > expected {
        CountCheck::Unusable
    } else if held + unknown < expected {
        CountCheck::Short
    } else {
        CountCheck::Possible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u32, end: u32) -> Extent {
        Extent::new(BlockIndex(start), BlockIndex(end)).unwrap()
    }

    /// A volume of 2,048 blocks, of which EC2 states that `held` are held.
    fn presence(held: u64) -> Presence {
        Presence::new(&StatedFacts {
            geometry: Some(Geometry::new(1 << 30).unwrap()),
            held: Some(held),
            exists: true,
        })
    }

    fn add(
        presence: &mut Presence,
        page: Extent,
        blocks: &[u32],
    ) -> Result<Option<CountNotice>, String> {
        presence.add(page, blocks.iter().map(|index| BlockIndex(*index)))
    }

    #[test]
    fn only_fewer_blocks_than_stated_are_suspicious() {
        for (held, unknown, expected, is) in [
            (0, 0, 0, CountCheck::Possible),
            (5, 10, 5, CountCheck::Possible),
            (5, 10, 15, CountCheck::Possible),
            (5, 10, 16, CountCheck::Short),
            (5, 0, 6, CountCheck::Short),
            (0, 0, 6, CountCheck::Short),
            (6, 10, 5, CountCheck::Unusable),
            (1, 10, 0, CountCheck::Unusable),
        ] {
            let counted = count(held, unknown, expected);
            assert_eq!(counted, is, "{held} {unknown} {expected}");
        }
    }

    #[test]
    fn no_hole_is_believed_between_a_short_count_and_the_second_one() {
        let mut presence = presence(3);
        assert_eq!(add(&mut presence, span(0, 1000), &[7]), Ok(None));
        assert_eq!(presence.is_hole(BlockIndex(8)), Some(true));
        let short = add(&mut presence, span(1000, 2048), &[1500]).unwrap();
        assert!(matches!(short, Some(CountNotice::Short(_))));
        assert_eq!(presence.is_hole(BlockIndex(8)), None);
        assert_eq!(presence.is_hole(BlockIndex(7)), Some(false));
        let (from, end) = (BlockIndex(0), BlockIndex(2048));
        let next = presence.next_extent(from, end);
        assert_eq!(next, NextExtent::UnknownFrom(from));
        // The same blocks in other pages: EC2's number does not hold.
        assert_eq!(add(&mut presence, span(0, 1501), &[7, 1500]), Ok(None));
        assert_eq!(presence.counted_again(1501, true), Ok(None));
        assert_eq!(presence.recount(), Some(BlockIndex(1501)));
        assert_eq!(add(&mut presence, span(1501, 2048), &[]), Ok(None));
        let agreed = presence.counted_again(2048, false).unwrap().unwrap();
        assert!(agreed.contains("agree on 2 blocks"), "{agreed}");
        assert_eq!(presence.is_hole(BlockIndex(8)), Some(true));
        assert_eq!(add(&mut presence, span(0, 2048), &[7, 1500]), Ok(None));
    }

    #[test]
    fn a_second_count_that_differs_is_a_contradiction() {
        let mut presence = presence(3);
        let short = add(&mut presence, span(0, 2048), &[7, 1500]).unwrap();
        assert!(matches!(short, Some(CountNotice::Short(_))));
        let found = add(&mut presence, span(0, 2048), &[7, 9, 1500]);
        assert!(found.unwrap_err().contains("block 9 was a hole"));
        let lost = add(&mut presence, span(0, 2048), &[7]);
        assert!(lost.unwrap_err().contains("1 blocks between 0 and 2048"));
    }

    #[test]
    fn two_empty_listings_of_a_snapshot_that_holds_blocks_are_an_error() {
        let mut presence = presence(3);
        let short = add(&mut presence, span(0, 2048), &[]).unwrap();
        assert!(matches!(short, Some(CountNotice::Short(_))));
        assert_eq!(add(&mut presence, span(0, 2048), &[]), Ok(None));
        let empty = presence.counted_again(2048, false).unwrap_err();
        assert!(empty.contains("EC2 states 3"), "{empty}");
        assert_eq!(presence.is_hole(BlockIndex(8)), None);
    }

    #[test]
    fn more_blocks_than_stated_are_one_warning() {
        for stated in [0, 1] {
            let mut presence = presence(stated);
            let more = add(&mut presence, span(0, 2048), &[7, 1500]).unwrap();
            assert!(matches!(more, Some(CountNotice::Unusable(_))));
            assert_eq!(presence.is_hole(BlockIndex(8)), Some(true));
            assert_eq!(add(&mut presence, span(0, 2048), &[7, 1500]), Ok(None));
        }
    }
}
