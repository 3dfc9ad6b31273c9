//! [`KnownBlocks`]: the blocks that a run with `--dedup` does not send: those that the repository holds in any snapshot, and those
//! that the run itself wrote last.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tracing::warn;

use super::check::LastCheck;
use super::index::Index;
use super::locations::{Location, Locations};
use super::pack::{Name, Spot};
use super::segments::object;
use super::store::Store;
use super::swept::Swept;
use crate::block::{BlockIndex, Digest};
use crate::error::{Kind, Result};
use crate::files::blocking;

/// Blocks of this run that are remembered: 64 GiB of it, in some 13 MB.
const RECENT: NonZeroUsize = NonZeroUsize::new(1 << 17).unwrap();
/// Packs of others whose numbers are remembered; one that is forgotten gets another number.
const NUMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The blocks that are not sent again.
#[derive(Debug)]
pub(super) struct KnownBlocks {
    index: Arc<Index>,
    last: LastCheck,
    swept: Arc<Swept>,
    recent: Mutex<LruCache<Digest, BlockIndex>>,
    numbers: Mutex<LruCache<Name, u32>>,
}

impl KnownBlocks {
    pub(super) fn new(index: Index, last: LastCheck, swept: Arc<Swept>) -> Self {
        Self {
            index: Arc::new(index),
            last,
            swept,
            recent: Mutex::new(LruCache::new(RECENT)),
            numbers: Mutex::new(LruCache::new(NUMBERED)),
        }
    }

    /// Records where this run has written a block.
    pub(super) fn wrote(&self, digest: Digest, index: BlockIndex) {
        self.recent.lock().put(digest, index);
    }

    /// Where a block of this digest is; `number` makes the number of one more pack.
    pub(super) async fn find(
        &self,
        digest: Digest,
        store: &Store,
        locations: &Locations,
        number: impl FnOnce() -> u32,
    ) -> Result<Option<Location>> {
        let same = self.recent.lock().get(&digest).copied();
        if let Some(same) = same {
            return locations.of(same, &digest).map(Some);
        }
        let index = Arc::clone(&self.index);
        let found = blocking(move || Ok(index.find(&digest))).await?;
        let Some((pack, spot)) = found else {
            return Ok(None);
        };
        let numbered = self.numbers.lock().get(&pack).copied();
        let number = match numbered {
            Some(number) => number,
            None if self.last.in_data(&object("packs", &pack)).is_some() => return Ok(None),
            None if self.swept.has(&pack) => return Ok(None),
            None if !is_there(store, &pack, spot).await? => return Ok(None),
            None => {
                let number = number();
                locations.name(number, &pack)?;
                self.numbers.lock().put(pack, number);
                number
            }
        };
        Ok(Some(Location::Pack(number, spot)))
    }
}

/// Whether a store still has a pack; if not, the caller sends the block that it has in memory.
async fn is_there(store: &Store, pack: &Name, spot: Spot) -> Result<bool> {
    let name = object("packs", pack);
    match store.head(&name).await {
        Ok(object) if object.size >= spot.end() => Ok(true),
        Err(error) if error.kind() != Kind::NotFound => Err(error),
        _ => {
            warn!("{}/{name} is missing or cut short", store.address());
            Ok(false)
        }
    }
}
