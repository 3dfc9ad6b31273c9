//! [`Recency`]: which segments of the disk cache were used last.

use std::num::NonZeroUsize;

use lru::LruCache;

/// A file of the cache and one of its segments.
pub(super) type SegmentKey = (u32, u32);

/// Most segments whose use is remembered: 4 TiB of blocks if the segments are full; some 8 MB of memory.
const MOST_SEGMENTS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// The segments used last. Any other segment was used longer ago.
#[derive(Debug)]
pub(super) struct Recency {
    used: LruCache<SegmentKey, ()>,
    /// Whether `touch` dropped a segment, which may still be on disk.
    has_overflown: bool,
}

impl Recency {
    pub(super) fn new() -> Self {
        Self::with_most(MOST_SEGMENTS)
    }

    fn with_most(most: NonZeroUsize) -> Self {
        Self {
            used: LruCache::new(most),
            has_overflown: false,
        }
    }

    /// Marks a segment as used now.
    pub(super) fn touch(&mut self, key: SegmentKey) {
        let dropped = self.used.push(key, ());
        self.has_overflown |= dropped.is_some_and(|(dropped, ())| dropped != key);
    }

    pub(super) fn contains(&self, key: SegmentKey) -> bool {
        self.used.contains(&key)
    }

    /// Removes the least recently used segment.
    pub(super) fn pop_oldest(&mut self) -> Option<SegmentKey> {
        self.used.pop_lru().map(|(key, ())| key)
    }

    /// Whether `touch` dropped a segment since the last call.
    pub(super) fn take_overflow(&mut self) -> bool {
        std::mem::take(&mut self.has_overflown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_first_and_a_drop_for_room_is_an_overflow() {
        let mut recency = Recency::with_most(NonZeroUsize::new(2).unwrap());
        recency.touch((0, 0));
        recency.touch((0, 1));
        recency.touch((0, 0));
        assert!(!recency.take_overflow());
        recency.touch((0, 2));
        assert!(recency.take_overflow());
        assert!(!recency.take_overflow());
        assert!(!recency.contains((0, 1)));
        assert_eq!(recency.pop_oldest(), Some((0, 0)));
        assert_eq!(recency.pop_oldest(), Some((0, 2)));
        assert_eq!(recency.pop_oldest(), None);
    }
}
