//! [`Progress`]: the counts of a run, or of work on a repository, that the progress display reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// What a run is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    /// A verb and its object: `listing snap-1`, `comparing /dev/sdb`.
    pub(crate) what: String,
    /// What is counted: `blocks`, `packs`, `segments`.
    pub(crate) unit: &'static str,
    /// Since when.
    pub(crate) since: Instant,
}

/// What most phases count.
const BLOCKS: &str = "blocks";

/// Counts of one run.
#[derive(Debug)]
pub(crate) struct Progress {
    phase: Mutex<Phase>,
    /// The total of this phase and how much of it is done, in the phase's unit.
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
            unit: BLOCKS,
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
    pub(crate) fn begin(&self, what: impl Into<String>, blocks: u64) {
        self.begin_units(what, BLOCKS, blocks);
    }

    /// Starts a phase that counts `unit` instead of blocks; `of` is their number, 0 where it is unknown.
    pub(crate) fn begin_units(&self, what: impl Into<String>, unit: &'static str, of: u64) {
        let mut phase = self.phase.lock();
        self.expected.store(of, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        *phase = Phase {
            what: what.into(),
            unit,
            since: Instant::now(),
        };
    }

    /// Adds to the total of the phase.
    pub(crate) fn expect(&self, blocks: u64) {
        self.expected.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Adds what is done.
    pub(crate) fn step(&self, blocks: u64) {
        self.done.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Sets how much is done.
    pub(crate) fn reach(&self, blocks: u64) {
        self.done.store(blocks, Ordering::Relaxed);
    }

    /// Adds bytes that were read, apart from the phase's unit.
    pub(crate) fn read(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn copied(&self, bytes: u64) {
        self.step(1);
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn zeroed(&self, blocks: u64) {
        self.step(blocks);
        self.zeroed.fetch_add(blocks, Ordering::Relaxed);
    }

    /// What the run is doing.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.lock().clone()
    }

    /// How much of the phase is done, and its total (0 where that is not known), in its unit.
    pub(crate) fn phase_counts(&self) -> (u64, u64) {
        let done = self.done.load(Ordering::Relaxed);
        (done, self.expected.load(Ordering::Relaxed))
    }

    /// Blocks fetched and written in this run.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Bytes fetched in this run: of blocks, blocks of zeroes included, or of what a check reads.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Blocks zeroed in this run.
    pub(crate) fn blocks_zeroed(&self) -> u64 {
        self.zeroed.load(Ordering::Relaxed)
    }
}
