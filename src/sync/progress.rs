//! [`Progress`]: counts of a run, read by the progress display.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// What a run is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// A verb and its object: `listing snap-1`, `comparing /dev/sdb`.
    pub what: String,
    /// Since when.
    pub since: Instant,
}

/// Counts of one run.
#[derive(Debug)]
pub struct Progress {
    phase: Mutex<Phase>,
    /// Blocks to be done in this phase, and done of them.
    expected: AtomicU64,
    done: AtomicU64,
    /// Of the whole run.
    bytes: AtomicU64,
    blocks: AtomicU64,
    zeroed: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        let phase = Phase {
            what: "starting".to_owned(),
            since: Instant::now(),
        };
        Self {
            phase: Mutex::new(phase),
            expected: AtomicU64::new(0),
            done: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            zeroed: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// Starts a phase of `blocks` blocks; 0 where the number is unknown.
    pub fn begin(&self, what: impl Into<String>, blocks: u64) {
        let mut phase = self.phase.lock();
        self.expected.store(blocks, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        *phase = Phase {
            what: what.into(),
            since: Instant::now(),
        };
    }

    /// Adds blocks to the total of the phase.
    pub(super) fn expect(&self, blocks: u64) {
        self.expected.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Adds blocks that are done.
    pub(super) fn step(&self, blocks: u64) {
        self.done.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Sets the number of blocks that are done.
    pub(super) fn reach(&self, blocks: u64) {
        self.done.store(blocks, Ordering::Relaxed);
    }

    pub(super) fn copied(&self, bytes: u64) {
        self.step(1);
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn zeroed(&self, blocks: u64) {
        self.step(blocks);
        self.zeroed.fetch_add(blocks, Ordering::Relaxed);
    }

    /// What the run is doing.
    pub fn phase(&self) -> Phase {
        self.phase.lock().clone()
    }

    /// Blocks of the phase: done, and to be done in all (0 where that is not known).
    pub fn phase_blocks(&self) -> (u64, u64) {
        let done = self.done.load(Ordering::Relaxed);
        (done, self.expected.load(Ordering::Relaxed))
    }

    /// Blocks fetched and written in this run.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Bytes of the blocks fetched in this run, blocks of zeroes included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Blocks zeroed in this run.
    pub fn blocks_zeroed(&self) -> u64 {
        self.zeroed.load(Ordering::Relaxed)
    }
}
