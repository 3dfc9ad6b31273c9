//! [`FailedBlocks`]: failures of blocks, which answer further reads for a time without a request.
//!
//! Programs that rescue data read each page of a damaged block by itself: without a remembered failure each of the 128 reads of
//! a block (4 KiB each) would cost the requests of a new fetch.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::Key;
use crate::error::{Error, Kind};

/// Most failures remembered; with their texts about 2 MB.
const MAX_FAILURES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// First and longest rest of a damaged block: damage stays.
const DAMAGED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// First and longest rest after any other failure: it can end at any time, by a new permission or a service that answers again.
const OTHER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// The first and the longest rest after a failure; `None` if it does not predict the next attempt.
fn rests(kind: Kind) -> Option<(Duration, Duration)> {
    match kind {
        Kind::Corrupt => Some(DAMAGED),
        Kind::Stopped | Kind::Pending | Kind::Invalid => None,
        _ => Some(OTHER),
    }
}

/// The blocks that failed lately; the least recently used is dropped first.
#[derive(Debug)]
pub(super) struct FailedBlocks(LruCache<Key, FailedBlock>);

#[derive(Debug)]
struct FailedBlock {
    error: Error,
    rest: Duration,
    until: Instant,
}

impl Default for FailedBlocks {
    fn default() -> Self {
        Self(LruCache::new(MAX_FAILURES))
    }
}

impl FailedBlocks {
    /// The failure of a block, if it still rests.
    pub(super) fn get(&mut self, key: Key, now: Instant) -> Option<Error> {
        let failed = self.0.get(&key)?;
        (now < failed.until).then(|| failed.error.clone())
    }

    /// Remembers a failure. It rests twice as long as the one before, if that was of the same sort and lately.
    pub(super) fn insert(&mut self, key: Key, error: &Error, now: Instant) {
        let Some((first, longest)) = rests(error.kind()) else {
            return;
        };
        let before = self.0.peek(&key).filter(|before| {
            rests(before.error.kind()) == Some((first, longest)) && now < before.until + longest
        });
        let rest = before.map_or(first, |before| (before.rest * 2).min(longest));
        let failed = FailedBlock {
            error: error.clone(),
            rest,
            until: now + rest,
        };
        self.0.put(key, failed);
    }

    /// Forgets the failure of a block that was fetched.
    pub(super) fn forget(&mut self, key: Key) {
        self.0.pop(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockIndex;

    const KEY: Key = (0, BlockIndex(7));

    fn error(kind: Kind) -> Error {
        Error::new(kind, "no")
    }

    #[test]
    fn each_kind_rests_its_time_twice_as_long_each_time() {
        for (kind, expected) in [
            (Kind::Corrupt, &[5, 10, 20, 40, 80, 160, 300, 300][..]),
            (Kind::Unavailable, &[1, 2, 4, 8, 15, 15]),
            (Kind::Throttled, &[1, 2, 4, 8, 15, 15]),
            (Kind::Denied, &[1, 2, 4, 8, 15, 15]),
            (Kind::NotFound, &[1, 2, 4, 8, 15, 15]),
            (Kind::Io, &[1, 2, 4, 8, 15, 15]),
            (Kind::Stopped, &[0, 0]),
            (Kind::Pending, &[0, 0]),
            (Kind::Invalid, &[0, 0]),
        ] {
            let mut failed = FailedBlocks::default();
            let mut now = Instant::now();
            for secs in expected {
                failed.insert(KEY, &error(kind), now);
                let rest = Duration::from_secs(*secs);
                let just_before = now + rest.saturating_sub(Duration::from_millis(1));
                let held = failed.get(KEY, just_before).map(|error| error.kind());
                assert_eq!(held, (*secs > 0).then_some(kind), "{kind:?} {secs}");
                now += rest;
                assert!(failed.get(KEY, now).is_none(), "{kind:?} {secs}");
            }
        }
    }

    #[test]
    fn a_fetch_another_sort_of_failure_or_a_long_time_starts_over() {
        let start = Instant::now();
        let secs = Duration::from_secs;
        let twice = |kind| {
            let mut failed = FailedBlocks::default();
            failed.insert(KEY, &error(kind), start);
            failed.insert(KEY, &error(kind), start + secs(5));
            failed
        };
        let rests = |failed: &FailedBlocks| failed.0.peek(&KEY).map(|failed| failed.rest);

        let mut failed = twice(Kind::Corrupt);
        assert_eq!(rests(&failed), Some(secs(10)));
        failed.forget(KEY);
        assert_eq!(rests(&failed), None);

        let mut failed = twice(Kind::Corrupt);
        failed.insert(KEY, &error(Kind::Unavailable), start + secs(20));
        assert_eq!(rests(&failed), Some(secs(1)));

        let mut failed = twice(Kind::Throttled);
        failed.insert(KEY, &error(Kind::Unavailable), start + secs(8));
        assert_eq!(rests(&failed), Some(secs(4)), "they are of one sort");
        failed.insert(KEY, &error(Kind::Unavailable), start + secs(60));
        assert_eq!(rests(&failed), Some(secs(1)));
    }

    #[test]
    fn failures_are_bounded() {
        let mut failed = FailedBlocks::default();
        let now = Instant::now();
        for index in 0..10_000 {
            failed.insert((0, BlockIndex(index)), &error(Kind::Corrupt), now);
        }
        assert_eq!(failed.0.len(), MAX_FAILURES.get());
        assert!(failed.get((0, BlockIndex(0)), now).is_none());
        assert!(failed.get((0, BlockIndex(9_999)), now).is_some());
        assert!(failed.get((1, BlockIndex(9_999)), now).is_none());
    }
}
