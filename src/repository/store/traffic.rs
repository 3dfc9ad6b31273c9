//! [`StoreTraffic`]: operations on object stores and the bytes that they moved.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts of operations; clones count together. All stores of one command share them.
#[derive(Clone, Debug, Default)]
pub struct StoreTraffic(Arc<Mutex<TrafficCounts>>);

/// Operations on object stores since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrafficCounts {
    /// By their name: `get`, `put`, `list`, `head`, `delete`.
    pub(crate) operations: BTreeMap<&'static str, OperationCounts>,
    /// Bytes of objects that were read.
    pub(crate) bytes_read: u64,
    /// Bytes of objects that were written.
    pub(crate) bytes_written: u64,
}

/// Operations of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OperationCounts {
    /// Attempts. One can be several requests: a put looks whether the store holds what was sent.
    pub(crate) attempts: u64,
    /// Attempts after a failure.
    pub(crate) retries: u64,
}

impl StoreTraffic {
    /// The counts so far.
    pub(crate) fn counts(&self) -> TrafficCounts {
        self.0.lock().clone()
    }

    /// An attempt begins; `is_retry` after one that failed.
    pub(super) fn attempt(&self, verb: &'static str, is_retry: bool) {
        let name = match verb {
            "look at" => "head",
            verb => verb,
        };
        let mut counts = self.0.lock();
        let counts = counts.operations.entry(name).or_default();
        counts.attempts += 1;
        counts.retries += u64::from(is_retry);
    }

    /// An object, or a part of it, was read.
    pub(super) fn read(&self, bytes: usize) {
        self.0.lock().bytes_read += bytes as u64;
    }

    /// An object was written.
    pub(super) fn written(&self, bytes: u64) {
        self.0.lock().bytes_written += bytes;
    }
}
