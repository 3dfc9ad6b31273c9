//! How far a copy is, counted as it goes and looked at by whoever shows it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one run.
#[derive(Debug, Default)]
pub struct Progress {
    blocks: AtomicU64,
    bytes: AtomicU64,
    zeroed: AtomicU64,
}

impl Progress {
    pub(super) fn copied(&self, bytes: u64) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn zeroed(&self, blocks: u64) {
        self.zeroed.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Blocks fetched and written in this run.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Bytes fetched in this run.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Blocks zeroed in this run.
    pub fn blocks_zeroed(&self) -> u64 {
        self.zeroed.load(Ordering::Relaxed)
    }
}
