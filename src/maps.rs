//! A delta, or what one volume holds, as existing tools and people read it: [`text`] in the formats of the tools,
//! [`heatmap`] as a picture, [`summary`] as totals.

mod heatmap;
mod summary;
mod text;

use std::sync::Arc;

pub(crate) use heatmap::title;
pub(crate) use summary::Totals;
pub(crate) use text::{Format, Text};

use crate::block::{BLOCK_SIZE, BlockIndex, BlockSet, Change, Delta, Extent, Geometry};

/// What a map is drawn of.
#[derive(Clone, Debug)]
pub(crate) enum Map {
    /// What differs between two volumes.
    Changes(Arc<Delta>),
    /// What one volume holds.
    Blocks(Geometry, Arc<BlockSet>),
}

/// The state of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpanState {
    /// Written in a delta, held by a volume.
    Data,
    /// Changed, and reads as zeroes in the head. Only a delta has such runs.
    Zeroed,
    /// Unchanged in a delta, a hole in a volume.
    Rest,
}

/// A run of bytes, and its blocks.
#[derive(Clone, Copy, Debug)]
struct Run {
    block: u32,
    blocks: u32,
    offset: u64,
    len: u64,
    state: SpanState,
}

impl Map {
    /// The volume's size: that of the head.
    pub(crate) fn geometry(&self) -> Geometry {
        match self {
            Self::Changes(delta) => delta.head(),
            Self::Blocks(geometry, _) => *geometry,
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        match self {
            Self::Changes(delta) => delta.write().memory() + delta.zero().memory(),
            Self::Blocks(_, held) => held.memory(),
        }
    }

    /// Bytes of the blocks that changed or are held.
    pub(crate) fn bytes(&self) -> u64 {
        let (data, zeroed) = self.counts();
        ((data + zeroed) * u64::from(BLOCK_SIZE)).min(self.geometry().size())
    }

    /// Counts the blocks with data and the zeroed blocks.
    fn counts(&self) -> (u64, u64) {
        match self {
            Self::Changes(delta) => (delta.write().len(), delta.zero().len()),
            Self::Blocks(_, held) => (held.len(), 0),
        }
    }

    /// The same, within a run of blocks.
    fn counts_in(&self, extent: Extent) -> (u32, u32) {
        match self {
            Self::Changes(delta) => (
                delta.write().count_in(extent),
                delta.zero().count_in(extent),
            ),
            Self::Blocks(_, held) => (held.count_in(extent), 0),
        }
    }

    fn next_run(&self, from: BlockIndex) -> Option<(Extent, SpanState)> {
        match self {
            Self::Changes(delta) => {
                let (extent, change) = delta.next_run(from)?;
                let state = match change {
                    Change::Write => SpanState::Data,
                    Change::Zero => SpanState::Zeroed,
                };
                Some((extent, state))
            }
            Self::Blocks(_, held) => {
                let start = held.next_in(from)?;
                Some((Extent::new(start, held.next_out(start))?, SpanState::Data))
            }
        }
    }

    /// All bytes of the volume from a block on, run by run.
    fn runs(&self, start: BlockIndex) -> impl Iterator<Item = Run> {
        let geometry = self.geometry();
        let end = BlockIndex(geometry.block_count());
        let run = move |start: BlockIndex, stop: BlockIndex, state| {
            let offset = geometry.offset(start);
            Run {
                block: start.0,
                blocks: stop.0 - start.0,
                offset,
                len: geometry.offset(stop) - offset,
                state,
            }
        };
        let mut at = start;
        let mut next = None;
        std::iter::from_fn(move || {
            if let Some(kept) = next.take() {
                return Some(kept);
            }
            if at >= end {
                return None;
            }
            let from = at;
            let Some((extent, state)) = self.next_run(from).filter(|(e, _)| e.start() < end) else {
                at = end;
                return Some(run(from, end, SpanState::Rest));
            };
            at = extent.end().min(end);
            let found = run(extent.start(), at, state);
            if extent.start() == from {
                return Some(found);
            }
            next = Some(found);
            Some(run(from, extent.start(), SpanState::Rest))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;

    /// Ten blocks, the last one short: 1 and 2 written, 3 zeroed, 9 written.
    pub(super) fn changes() -> Map {
        let mut delta = Delta::new(None, Geometry::new(9 * BLOCK + 1000).unwrap());
        for index in [1, 2, 9] {
            delta.insert(BlockIndex(index), Change::Write);
        }
        delta.insert(BlockIndex(3), Change::Zero);
        Map::Changes(Arc::new(delta))
    }

    #[test]
    fn runs_cover_the_volume_once() {
        let map = changes();
        let runs: Vec<_> = map.runs(BlockIndex(0)).collect();
        let lens: Vec<_> = runs.iter().map(|run| run.len).collect();
        assert_eq!(lens, [BLOCK, 2 * BLOCK, BLOCK, 5 * BLOCK, 1000]);
        let mut at = 0;
        for run in runs {
            assert_eq!(run.offset, at);
            at += run.len;
        }
        assert_eq!(at, map.geometry().size());
    }

    #[test]
    fn nothing_changed_is_one_run() {
        let delta = Delta::new(None, Geometry::new(BLOCK).unwrap());
        assert_eq!(Map::Changes(Arc::new(delta)).runs(BlockIndex(0)).count(), 1);
    }
}
