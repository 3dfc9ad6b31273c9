//! [`Activity`]: what readers of a mount have asked for, and how it was answered.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::Kind;
use crate::histogram::Histogram;

/// Counts of a mount's requests.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<ActivityCounts>);

/// Requests of readers since the mount.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ActivityCounts {
    /// How long reads took that were answered with bytes.
    pub(crate) reads: Histogram,
    /// Bytes of these reads.
    pub(crate) bytes: u64,
    /// Requests of any sort that were answered with an error, by [`Kind::name`].
    pub(crate) failures: BTreeMap<&'static str, u64>,
    /// Files that are open now.
    pub(crate) open_files: u64,
}

impl Activity {
    /// The counts so far.
    pub(crate) fn counts(&self) -> ActivityCounts {
        self.0.lock().clone()
    }

    /// A read was answered with bytes.
    pub(super) fn read(&self, bytes: usize, took: Duration) {
        let mut counts = self.0.lock();
        counts.reads.observe(took);
        counts.bytes += bytes as u64;
    }

    /// A request was answered with an error.
    pub(super) fn failed(&self, kind: Kind) {
        *self.0.lock().failures.entry(kind.name()).or_default() += 1;
    }

    /// A file was opened.
    pub(super) fn opened(&self) {
        self.0.lock().open_files += 1;
    }

    /// A file was closed.
    pub(super) fn closed(&self) {
        let mut counts = self.0.lock();
        counts.open_files = counts.open_files.saturating_sub(1);
    }
}
