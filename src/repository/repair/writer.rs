//! [`FoundBlocks`]: lost blocks that were found: where they are, or the new packs that they are being written into.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::block::{BlockIndex, Digest};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::repository::header::Salt;
use crate::repository::pack::{MOST_BLOCKS, MOST_BYTES, Name, OpenPack, Packer, Spot, Stored};
use crate::repository::segments::object;
use crate::repository::store::Store;

/// Where blocks are by their digests.
pub(super) struct FoundBlocks {
    salt: Salt,
    /// Places that are remembered from one round to the next.
    most_places: usize,
    places: HashMap<Digest, Option<(Name, Spot)>>,
    filling: OpenPack,
    /// Blocks in the pack that is being filled, in the order in which they came.
    next: u32,
    packer: Option<Packer>,
    room: Arc<Semaphore>,
    /// Blocks written into new packs.
    pub(super) written: u64,
}

impl FoundBlocks {
    pub(super) fn new(salt: Salt, most_places: usize) -> Self {
        Self {
            salt,
            most_places,
            places: HashMap::new(),
            filling: OpenPack::default(),
            next: 0,
            packer: None,
            room: Arc::new(Semaphore::new(MOST_BLOCKS)),
            written: 0,
        }
    }

    /// Whether a block was found.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.places.contains_key(digest)
    }

    /// Where a block is; also none while it is in a pack that was not flushed.
    pub(super) fn place(&self, digest: &Digest) -> Option<(Name, Spot)> {
        self.places.get(digest).copied().flatten()
    }

    /// Forgets all places when they are many; a block that is needed again is found in its new pack or written twice.
    pub(super) fn forget_many(&mut self) {
        if self.places.len() > self.most_places {
            self.places.clear();
        }
    }

    /// Records a block that the repository has already.
    pub(super) fn found(&mut self, digest: Digest, pack: Name, spot: Spot) {
        self.places.insert(digest, Some((pack, spot)));
    }

    /// Compresses a block and writes it into a new pack.
    pub(super) async fn write(
        &mut self,
        store: &Store,
        digest: Digest,
        block: Bytes,
    ) -> Result<()> {
        let packer = self.packer.take();
        let packed = blocking(move || {
            let failed = |error| Error::with_source(Kind::Io, "cannot compress", error);
            let mut packer = packer.map_or_else(Packer::new, Ok).map_err(failed)?;
            let stored = packer.pack(block);
            Ok((packer, stored))
        });
        let (packer, stored) = packed.await?;
        self.packer = Some(packer);
        self.write_stored(store, digest, stored).await
    }

    /// Writes a block as it is stored already.
    pub(super) async fn write_stored(
        &mut self,
        store: &Store,
        digest: Digest,
        stored: Stored,
    ) -> Result<()> {
        let stopped = |error| Error::with_source(Kind::Io, "stopped", error);
        let place = Arc::clone(&self.room).acquire_owned().await;
        let place = place.map_err(stopped)?;
        self.filling
            .push(BlockIndex(self.next), digest, stored, place);
        self.next += 1;
        self.places.insert(digest, None);
        match self.filling.is_full(MOST_BYTES) {
            true => self.flush(store).await,
            false => Ok(()),
        }
    }

    /// Puts the pack that is being filled.
    pub(super) async fn flush(&mut self, store: &Store) -> Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let (filling, salt) = (std::mem::take(&mut self.filling), self.salt);
        let packed = blocking(move || Ok(filling.pack(&salt))).await?;
        store
            .put(&object("packs", &packed.name), &packed.pieces)
            .await?;
        self.written += packed.spots.len() as u64;
        for (_, digest, spot) in &packed.spots {
            self.places.insert(*digest, Some((packed.name, *spot)));
        }
        self.next = 0;
        Ok(())
    }
}
