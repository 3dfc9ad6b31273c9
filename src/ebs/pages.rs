//! Pages of block tokens, all snapshots together, in an LRU bounded by bytes.

use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::Mutex;

use crate::block::BlockIndex;

/// Bytes of tokens kept for all snapshots together: 32 pages of 10,000 tokens of about 95 bytes, which is the way of
/// 32 sequential readers or 3,200 isolated places.
const MAX_BYTES: usize = 32 << 20;

/// Tokens are renewed this long before they expire, or at half their life when that is shorter.
const MARGIN: Duration = Duration::from_secs(3600);

/// A page just listed is used for this long at least, whatever the clocks say: the service refuses what has expired.
const LEAST_LIFE: Duration = Duration::from_secs(60);

/// What is assumed of a page that does not tell when its tokens expire; documented are 7 days.
const ASSUMED_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A page's place: which map, and the first block that it speaks of.
pub(super) type PageKey = (u32, u32);

/// The tokens of one listing: blocks `start..end`, those without a token being holes.
pub(super) struct Page {
    /// The block after the last one that the page speaks of.
    pub(super) end: u32,
    /// How many were asked for.
    pub(super) asked: u16,
    renew: SystemTime,
    indexes: Vec<u32>,
    /// Where each token ends in `text`.
    ends: Vec<u32>,
    text: String,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({} tokens, up to {})", self.indexes.len(), self.end)
    }
}

impl Page {
    /// A page of ascending indexes and their tokens.
    pub(super) fn new<'a>(
        end: u32,
        asked: u16,
        now: SystemTime,
        expiry: Option<SystemTime>,
        blocks: impl Iterator<Item = (u32, &'a str)>,
    ) -> Self {
        let life = expiry.map_or(ASSUMED_LIFE, |expiry| {
            expiry.duration_since(now).unwrap_or(Duration::ZERO)
        });
        let renew = now + life.saturating_sub(MARGIN).max(life / 2).max(LEAST_LIFE);
        let (mut text, mut indexes, mut ends) = (String::new(), Vec::new(), Vec::new());
        for (index, token) in blocks {
            text.push_str(token);
            indexes.push(index);
            ends.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
        }
        text.shrink_to_fit();
        indexes.shrink_to_fit();
        ends.shrink_to_fit();
        Self {
            end,
            asked,
            renew,
            indexes,
            ends,
            text,
        }
    }

    fn token(&self, index: BlockIndex) -> Option<&str> {
        let at = self.indexes.binary_search(&index.0).ok()?;
        let start = match at.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.text.get(start as usize..*self.ends.get(at)? as usize)
    }

    fn bytes(&self) -> usize {
        self.text.capacity() + 4 * (self.indexes.capacity() + self.ends.capacity()) + 256
    }
}

/// The pages kept.
#[derive(Debug)]
pub(super) struct Pages {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    pages: LruCache<PageKey, Page>,
    bytes: usize,
}

/// What a page says of a block's token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// The token.
    Token(String),
    /// The page's tokens are to be renewed, by a listing of this many.
    Old(u16),
    /// The page is not kept any more, or does not speak of the block.
    Gone,
}

impl Pages {
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                pages: LruCache::unbounded(),
                bytes: 0,
            }),
        }
    }

    /// The token of a block in one page.
    pub(super) fn token(&self, key: PageKey, index: BlockIndex, now: SystemTime) -> Kept {
        let mut inner = self.inner.lock();
        let Some(page) = inner.pages.get(&key) else {
            return Kept::Gone;
        };
        match page.token(index) {
            Some(_) if now >= page.renew => Kept::Old(page.asked),
            Some(token) => Kept::Token(token.to_owned()),
            None => Kept::Gone,
        }
    }

    /// Keeps a page, dropping the least recently used ones beyond the bound.
    pub(super) fn insert(&self, key: PageKey, page: Page) {
        let mut inner = self.inner.lock();
        inner.bytes += page.bytes();
        if let Some(old) = inner.pages.put(key, page) {
            inner.bytes -= old.bytes();
        }
        while inner.bytes > MAX_BYTES
            && let Some((_, old)) = inner.pages.pop_lru()
        {
            inner.bytes -= old.bytes();
        }
    }

    /// Whether a page is kept.
    pub(super) fn contains(&self, key: PageKey) -> bool {
        self.inner.lock().pages.contains(&key)
    }

    /// Forgets the page that brought this token of a block, unless another has taken its place; says how many blocks it had
    /// asked for.
    pub(super) fn forget(&self, key: PageKey, index: BlockIndex, token: &str) -> Option<u16> {
        let kept = self
            .inner
            .lock()
            .pages
            .peek(&key)
            .is_some_and(|page| page.token(index) == Some(token));
        kept.then(|| self.remove(key)).flatten()
    }

    /// Forgets a page, and says how many blocks it had asked for.
    pub(super) fn remove(&self, key: PageKey) -> Option<u16> {
        let mut inner = self.inner.lock();
        let old = inner.pages.pop(&key)?;
        inner.bytes -= old.bytes();
        Some(old.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(start: u32, count: u32, life: Duration) -> Page {
        let now = SystemTime::UNIX_EPOCH;
        let blocks: Vec<_> = (start..start + count)
            .map(|i| (i, format!("{i:095}")))
            .collect();
        let blocks = blocks.iter().map(|(index, token)| (*index, &**token));
        Page::new(start + count, 10_000, now, Some(now + life), blocks)
    }

    #[test]
    fn tokens_are_renewed_an_hour_early_and_short_lived_ones_at_half_their_life() {
        let pages = Pages::new();
        let hours = |n: u64| Duration::from_secs(n * 3600);
        pages.insert((0, 0), page(0, 3, hours(24)));
        pages.insert((1, 0), page(0, 3, hours(1)));
        let at = |key, after| pages.token(key, BlockIndex(1), SystemTime::UNIX_EPOCH + after);
        assert_eq!(at((0, 0), hours(22)), Kept::Token(format!("{:095}", 1)));
        assert_eq!(at((0, 0), hours(23)), Kept::Old(10_000));
        assert_eq!(at((1, 0), hours(1) / 3), Kept::Token(format!("{:095}", 1)));
        assert_eq!(at((1, 0), hours(1) / 2), Kept::Old(10_000));
        assert_eq!(at((2, 0), hours(0)), Kept::Gone);
        // By a clock that is ahead a page is expired when it comes: it is used all the same.
        pages.insert((3, 0), page(0, 3, Duration::ZERO));
        assert!(matches!(at((3, 0), LEAST_LIFE / 2), Kept::Token(_)));
    }

    #[test]
    fn pages_are_bounded_by_bytes_and_the_least_used_go_first() {
        let pages = Pages::new();
        let life = Duration::from_secs(86_400 * 7);
        for n in 0..100 {
            pages.insert((0, n * 10_000), page(n * 10_000, 10_000, life));
            // The first page stays in use.
            let kept = pages.token((0, 0), BlockIndex(7), SystemTime::UNIX_EPOCH);
            assert!(matches!(kept, Kept::Token(_)));
            assert!(pages.inner.lock().bytes <= MAX_BYTES);
        }
        let second = pages.token((0, 10_000), BlockIndex(10_007), SystemTime::UNIX_EPOCH);
        assert_eq!(second, Kept::Gone);
        assert!(pages.inner.lock().pages.len() > 20);
        assert_eq!(pages.remove((0, 0)), Some(10_000));
        assert_eq!(pages.remove((0, 0)), None);
    }
}
