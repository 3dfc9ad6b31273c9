//! The memory tier: blocks in an LRU bounded by bytes.

use std::sync::Arc;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::RwLock;

use super::Key;
use crate::block::Block;

/// What an entry costs besides its bytes: the key, moka's nodes and queues. A block of zeroes costs only this.
const ENTRY: u32 = 256;

/// A block that eviction can empty at once: moka itself frees an evicted entry only when its epoch ends.
type Slot = Arc<RwLock<Option<Block>>>;

/// Blocks kept in memory.
#[derive(Debug)]
pub(super) struct Memory {
    blocks: Cache<Key, Slot>,
}

impl Memory {
    /// Keeps at most `capacity` bytes. LRU, not moka's TinyLFU: that may refuse a block just read ahead, which would
    /// then be fetched twice.
    pub(super) fn new(capacity: u64) -> Self {
        let blocks = Cache::builder()
            .max_capacity(capacity)
            .weigher(|_, slot: &Slot| match &*slot.read() {
                Some(Block::Data(bytes)) => u32::try_from(bytes.len())
                    .unwrap_or(u32::MAX)
                    .saturating_add(ENTRY),
                Some(Block::Zero) | None => ENTRY,
            })
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(|_, slot: Slot, cause| {
                if cause != RemovalCause::Replaced {
                    *slot.write() = None;
                }
            })
            .build();
        Self { blocks }
    }

    /// The block, if it is kept.
    pub(super) fn get(&self, key: Key) -> Option<Block> {
        self.blocks.get(&key)?.read().clone()
    }

    /// Whether the block is kept, without counting as a use of it.
    pub(super) fn contains(&self, key: Key) -> bool {
        self.blocks.contains_key(&key)
    }

    /// Keeps a block, and evicts at once what no longer fits: moka by itself lets up to 384 entries wait in its log.
    pub(super) fn insert(&self, key: Key, block: Block) {
        self.blocks.insert(key, Arc::new(RwLock::new(Some(block))));
        self.blocks.run_pending_tasks();
    }

    #[cfg(test)]
    pub(super) fn weight(&self) -> u64 {
        self.blocks.run_pending_tasks();
        self.blocks.weighted_size()
    }
}
