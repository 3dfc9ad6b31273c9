//! [`DamagedSource`]: an image or device in which a copy has left blocks zero because its source was damaged.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{BlockSource, Wanted};
use crate::block::{Block, BlockIndex, BlockSet, Extent, Geometry};
use crate::error::{Error, Kind, Remedy, Result};

/// Answers `Corrupt` where its disk still has the zeroes that were left for a damaged block. Where the disk has other bytes,
/// the block was written since, and those bytes are returned.
pub struct DamagedSource {
    disk: Arc<dyn BlockSource>,
    damaged: BlockSet,
    name: String,
}

impl std::fmt::Debug for DamagedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DamagedSource({})", self.name)
    }
}

impl DamagedSource {
    /// `damaged` are the blocks that the record of `disk` lists, `name` is what a person calls it.
    pub fn new(disk: Arc<dyn BlockSource>, damaged: BlockSet, name: &str) -> Self {
        Self {
            disk,
            damaged,
            name: name.to_owned(),
        }
    }
}

impl BlockSource for DamagedSource {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        self.read_ahead(index, Wanted::already())
    }

    fn read_ahead(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        let read = self.disk.read_ahead(index, wanted);
        if !self.damaged.contains(index) {
            return read;
        }
        let lost = move |block| match block {
            Block::Zero => Err(damaged_before(index, &self.name, "there")),
            Block::Data(..) => Ok(block),
        };
        async move { read.await.and_then(lost) }.boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let stored = self.disk.next_extent(from);
        async move { Ok(with_damaged(stored.await?, &self.damaged, from)) }.boxed()
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        !self.damaged.contains(index) && self.disk.is_known_zero(index)
    }

    fn prefetch(&self, blocks: &[BlockIndex]) -> usize {
        self.disk.prefetch(blocks)
    }
}

/// A block that is zero because its source was damaged cannot be read: its real bytes are unknown.
pub(crate) fn damaged_before(index: BlockIndex, of: &str, copied_to: &str) -> Error {
    let what =
        format!("cannot read block {index} of {of}: it was damaged when it was copied {copied_to}");
    Error::new(Kind::Corrupt, what).with_remedy(Remedy::MarkDamage)
}

/// The first run at or after `from` of what is stored and what is damaged; `stored` is the first that is stored.
pub(crate) fn with_damaged(
    stored: Option<Extent>,
    damaged: &BlockSet,
    from: BlockIndex,
) -> Option<Extent> {
    let Some(start) = damaged.next_in(from) else {
        return stored;
    };
    match stored {
        Some(run) if run.start() < start => Some(run),
        _ => Extent::new(start, damaged.next_out(start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_blocks_count_as_held() {
        let run = |start, end| Extent::new(BlockIndex(start), BlockIndex(end));
        let damaged = BlockSet::of_pairs(&[(4, 6), (8, 99)], BlockIndex(10));
        for (from, stored, wanted) in [
            (0, run(2, 5), run(2, 5)),
            (0, run(7, 8), run(4, 6)),
            (5, run(5, 6), run(5, 6)),
            (6, None, run(8, 10)),
            (6, run(6, 7), run(6, 7)),
            (10, None, None),
        ] {
            let found = with_damaged(stored, &damaged, BlockIndex(from));
            assert_eq!(found, wanted, "{from} {stored:?}");
        }
    }
}
