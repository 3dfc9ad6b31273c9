//! [`LiveCopies`]: what the copies of this process do now, and the counts of its cycles.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::state::CopyPhase;
use crate::progress::Progress;

/// What the copies of this process do now. All cycles of a job share it.
#[derive(Debug, Default)]
pub(crate) struct LiveCopies(Mutex<LiveState>);

#[derive(Debug, Default)]
struct LiveState {
    /// By volume.
    under_way: BTreeMap<String, Arc<Progress>>,
    counts: LiveCounts,
}

/// Counts since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveCounts {
    /// Bytes fetched, those of copies under way included.
    pub(crate) bytes: u64,
    /// Cycles that ended without failures.
    pub(crate) succeeded: u64,
    /// Cycles that ended with failures.
    pub(crate) failed: u64,
}

impl LiveCopies {
    /// Begins an attempt to copy a volume.
    pub(super) fn begin(&self, volume: &str) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        let mut live = self.0.lock();
        live.under_way
            .insert(volume.to_owned(), Arc::clone(&progress));
        progress
    }

    /// Ends it.
    pub(super) fn end(&self, volume: &str) {
        let mut live = self.0.lock();
        let ended = live.under_way.remove(volume);
        live.counts.bytes += ended.map_or(0, |progress| progress.bytes());
    }

    /// Counts a cycle that has ended.
    pub(super) fn count(&self, is_failed: bool) {
        let counts = &mut self.0.lock().counts;
        match is_failed {
            true => counts.failed += 1,
            false => counts.succeeded += 1,
        }
    }

    /// What the copy of a volume does; none between two attempts.
    pub(super) fn phase(&self, volume: &str) -> Option<CopyPhase> {
        let progress = Arc::clone(self.0.lock().under_way.get(volume)?);
        let (done, of) = progress.phase_counts();
        let phase = progress.phase();
        Some(CopyPhase {
            what: phase.what,
            unit: phase.unit.to_owned(),
            done,
            of,
            bytes: progress.bytes(),
        })
    }

    /// The counts now.
    pub(crate) fn counts(&self) -> LiveCounts {
        let live = self.0.lock();
        let bytes = live.under_way.values().map(|progress| progress.bytes());
        LiveCounts {
            bytes: live.counts.bytes + bytes.sum::<u64>(),
            ..live.counts
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_copy_count_while_it_is_under_way_and_after_it() {
        let live = LiveCopies::default();
        let progress = live.begin("vol-0a");
        progress.begin("copying snap-0a", 7);
        progress.copied(10);
        let phase = live.phase("vol-0a").unwrap();
        assert_eq!(
            (
                &*phase.what,
                &*phase.unit,
                phase.done,
                phase.of,
                phase.bytes
            ),
            ("copying snap-0a", "blocks", 1, 7, 10)
        );
        assert_eq!(live.counts().bytes, 10);
        live.end("vol-0a");
        assert_eq!((live.counts().bytes, live.phase("vol-0a")), (10, None));
        live.count(true);
        live.count(false);
        live.count(false);
        assert_eq!((live.counts().failed, live.counts().succeeded), (1, 2));
    }
}
