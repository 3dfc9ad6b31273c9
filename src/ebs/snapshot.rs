//! [`SnapshotSource`]: the blocks of one snapshot, by its map's tokens and the client.

pub(super) mod block_map;
pub(super) mod map_memory;
pub(super) mod presence;

use std::future::Future;
use std::sync::Arc;

use block_map::BlockMap;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::debug;

use super::client::{BlockRequest, CallFailure, Client};
use super::listing::Token;
use crate::block::{Block, BlockIndex, Extent, Geometry};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;
use crate::source::{BlockSource, Wanted};

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

    /// Whether its listings have contradicted themselves.
    pub(super) fn is_corrupt(&self) -> bool {
        self.map.is_corrupt()
    }

    /// Whether a block is held, if that is known.
    pub(super) fn is_held(&self, index: BlockIndex) -> Option<bool> {
        self.map.is_held(index)
    }
}

/// Where the tokens of a snapshot's blocks come from.
pub(super) trait Tokens: Sync {
    /// The block's token; none when it is a hole.
    fn token(
        &self,
        index: BlockIndex,
        deadline: Instant,
    ) -> impl Future<Output = Result<Option<Token>>> + Send;

    /// A token that was refused: it and the others of its page are not returned again.
    fn forget(&self, index: BlockIndex, token: &Token);
}

/// The bytes of a block of snapshot `id`, by its token; a stale one is renewed once.
pub(super) async fn fetch(
    client: &Client,
    id: &SnapshotId,
    geometry: Geometry,
    tokens: &impl Tokens,
    index: BlockIndex,
    wanted: Wanted,
) -> Result<Block> {
    if index.0 >= geometry.block_count() {
        let what = format!("{id} has no block {index}");
        return Err(Error::new(Kind::Invalid, what));
    }
    let deadline = client.deadline();
    let mut renewed = false;
    loop {
        let Some(token) = tokens.token(index, deadline).await? else {
            return Ok(Block::Zero);
        };
        let block = BlockRequest {
            snapshot: id,
            index,
            token: &token,
            len: geometry.block_len(index),
        };
        match client.get(&block, &wanted, deadline).await {
            Err(CallFailure::StaleToken(error)) if !renewed => {
                debug!("listing again: {error}");
                tokens.forget(index, &token);
                renewed = true;
            }
            got => return Ok(got?),
        }
    }
}

impl BlockSource for SnapshotSource {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        self.read_ahead(index, Wanted::already())
    }

    fn read_ahead(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        fetch(
            &self.client,
            &self.id,
            self.geometry,
            &self.map,
            index,
            wanted,
        )
        .boxed()
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
