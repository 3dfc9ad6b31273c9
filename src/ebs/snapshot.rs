//! [`SnapshotSource`]: the blocks of one snapshot, by its map's tokens and the client.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tracing::debug;

use super::block_map::BlockMap;
use super::client::{BlockRequest, Client, Failure};
use crate::block::{Block, BlockIndex, Extent, Geometry};
use crate::error::{Error, Kind, Result};
use crate::source::{BlockSource, SnapshotId, Wanted};

/// A snapshot as a source of blocks. It keeps no bytes.
pub(super) struct SnapshotSource {
    id: SnapshotId,
    geometry: Geometry,
    client: Arc<Client>,
    map: BlockMap,
}

impl SnapshotSource {
    pub(super) fn new(
        id: SnapshotId,
        geometry: Geometry,
        client: Arc<Client>,
        map: BlockMap,
    ) -> Self {
        Self {
            id,
            geometry,
            client,
            map,
        }
    }

    async fn fetch(&self, index: BlockIndex, wanted: Wanted) -> Result<Block> {
        if index.0 >= self.geometry.block_count() {
            return Err(Error::new(
                Kind::Invalid,
                format!("{} has no block {index}", self.id),
            ));
        }
        let deadline = self.client.deadline();
        let len = self.geometry.block_len(index);
        let mut renewed = false;
        loop {
            let Some(token) = self.map.token(index, deadline).await? else {
                return Ok(Block::Zero);
            };
            let block = BlockRequest {
                snapshot: &self.id,
                index,
                token: &token,
                len,
            };
            let got = self.client.get(&block, &wanted, deadline).await;
            match got {
                Err(Failure::StaleToken(error)) if !renewed => {
                    debug!("listing again: {error}");
                    self.map.forget(index, &token);
                    renewed = true;
                }
                got => return Ok(got?),
            }
        }
    }
}

impl BlockSource for SnapshotSource {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        self.fetch(index, Wanted::already()).boxed()
    }

    fn read_ahead(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        self.fetch(index, wanted).boxed()
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        // Each listing may take as long as a block may.
        self.map.next_extent(from, self.client.deadline()).boxed()
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        self.map.is_known_hole(index)
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        // Nothing is kept here: the cache above fetches ahead with `read_ahead`.
        0
    }
}
