//! The memory tier: blocks that were read in an LRU bounded by bytes, and beside it blocks read ahead that have not been read
//! yet, so that the one kind never drives out the other.

use std::sync::Arc;
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::RwLock;
use tokio::sync::OwnedSemaphorePermit;

use super::Key;
use crate::block::{BLOCK_SIZE, Block};

/// What an entry costs besides its bytes: the key, moka's nodes and queues. A block of zeroes costs only this.
const ENTRY: u32 = 256;
/// A prefetched block that is not read for this long counts as read: its reader has stopped.
const ABANDONED: Duration = Duration::from_secs(10);

/// A block that eviction can empty at once: moka itself frees an evicted entry only when its epoch ends.
type Slot = Arc<RwLock<Option<CachedBlock>>>;

#[derive(Debug)]
struct CachedBlock {
    block: Block,
    /// Held while a block read ahead waits for its reader.
    _unread: Option<OwnedSemaphorePermit>,
}

/// Blocks kept in memory.
#[derive(Debug)]
pub(super) struct Memory {
    read: Cache<Key, Slot>,
    ahead: Cache<Key, Slot>,
}

impl Memory {
    /// Keeps the bytes of `read` blocks that were read and of `ahead` blocks that were not yet. LRU, not moka's TinyLFU:
    /// that may refuse a block that has just arrived.
    pub(super) fn new(read: u64, ahead: u64) -> Self {
        let size = u64::from(BLOCK_SIZE);
        let cache = |capacity| {
            Cache::builder()
                .max_capacity(capacity)
                .weigher(weight)
                .eviction_policy(EvictionPolicy::lru())
        };
        let read = cache(read * size)
            .eviction_listener(|_, slot: Slot, cause| {
                if cause != RemovalCause::Replaced {
                    *slot.write() = None;
                }
            })
            .build();
        let fallback = read.clone();
        // As many as have permits must fit, whatever an entry costs.
        let ahead = cache(ahead * (size + u64::from(ENTRY)))
            .time_to_live(ABANDONED)
            .eviction_listener(move |key, slot: Slot, cause| {
                let kept = slot.write().take();
                if cause == RemovalCause::Expired
                    && let Some(kept) = kept
                {
                    fallback.insert(*key, slot_of(kept.block, None));
                }
            })
            .build();
        Self { read, ahead }
    }

    /// The block, if it is kept, for a reader.
    pub(super) fn get(&self, key: Key) -> Option<Block> {
        if let Some(slot) = self.read.get(&key) {
            return block(&slot);
        }
        let block = block(&self.ahead.get(&key)?)?;
        // Insert first, then remove: the block is always in at least one of the two.
        self.insert(key, block.clone(), None);
        self.ahead.invalidate(&key);
        Some(block)
    }

    /// Whether the block is kept, without counting as a use of it.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.read.contains_key(&key) || self.ahead.contains_key(&key)
    }

    /// Keeps a block, with a permit one that was read ahead. What no longer fits is evicted at once: moka by itself lets up
    /// to 384 entries wait in its log.
    pub(super) fn insert(&self, key: Key, block: Block, unread: Option<OwnedSemaphorePermit>) {
        let cache = if unread.is_some() {
            &self.ahead
        } else {
            &self.read
        };
        cache.insert(key, slot_of(block, unread));
        // What expires ahead moves over to those that were read: that one last.
        self.ahead.run_pending_tasks();
        self.read.run_pending_tasks();
    }

    /// Treats prefetched blocks whose readers have stopped like any other block from now on.
    pub(super) fn give_up_abandoned(&self) {
        self.ahead.run_pending_tasks();
        self.read.run_pending_tasks();
    }

    #[cfg(test)]
    pub(super) fn weight(&self) -> u64 {
        for cache in [&self.read, &self.ahead] {
            cache.run_pending_tasks();
        }
        self.read.weighted_size() + self.ahead.weighted_size()
    }
}

fn slot_of(block: Block, unread: Option<OwnedSemaphorePermit>) -> Slot {
    let kept = CachedBlock {
        block,
        _unread: unread,
    };
    Arc::new(RwLock::new(Some(kept)))
}

fn weight(_key: &Key, slot: &Slot) -> u32 {
    match slot.read().as_ref().map(|kept| &kept.block) {
        Some(Block::Data(bytes, _)) => u32::try_from(bytes.len())
            .unwrap_or(u32::MAX)
            .saturating_add(ENTRY),
        Some(Block::Zero) | None => ENTRY,
    }
}

fn block(slot: &Slot) -> Option<Block> {
    slot.read().as_ref().map(|kept| kept.block.clone())
}
