//! [`DeltaSource`]: a delta as a volume of its own.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::BlockSource;
use crate::block::{Block, BlockIndex, Delta, Extent, Geometry};
use crate::error::Result;

/// The head's bytes for a written block, zeroes that count as held for a zeroed block, holes elsewhere.
pub struct DeltaSource {
    delta: Arc<Delta>,
    head: Arc<dyn BlockSource>,
}

impl std::fmt::Debug for DeltaSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeltaSource({:?})", self.delta.head())
    }
}

impl DeltaSource {
    /// The delta, with the bytes of its head.
    pub fn new(delta: Arc<Delta>, head: Arc<dyn BlockSource>) -> Self {
        Self { delta, head }
    }

    fn is_left_alone(&self, index: BlockIndex) -> bool {
        index.0 < self.geometry().block_count() && !self.delta.write().contains(index)
    }
}

impl BlockSource for DeltaSource {
    fn geometry(&self) -> Geometry {
        self.delta.head()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        if self.is_left_alone(index) {
            return ready(Ok(Block::Zero)).boxed();
        }
        self.head.read_block(index)
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        let found = self.delta.next_run(from).and_then(|(first, _)| {
            let mut end = first.end();
            while let Some((run, _)) = self.delta.next_run(end)
                && run.start() == end
            {
                end = run.end();
            }
            Extent::new(first.start(), end)
        });
        ready(Ok(found)).boxed()
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        self.is_left_alone(index)
    }

    fn prefetch(&self, blocks: &[BlockIndex]) -> usize {
        // Blocks outside the delta are known to read as zeroes, so they are never prefetched.
        self.head.prefetch(blocks)
    }
}
