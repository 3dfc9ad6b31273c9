//! [`TokenPages`]: the block tokens of all snapshots together, page by page, in an LRU bounded by bytes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::Mutex;

use super::Token;
use crate::block::{BlockIndex, Extent};

/// Bytes of tokens kept for all snapshots together: 32 pages of 10,000 tokens of about 95 bytes, enough for 32 sequential
/// readers or 3,200 isolated reads.
const MAX_BYTES: usize = 32 << 20;

/// Tokens are renewed this long before they expire, or at half their life when that is shorter.
const MARGIN: Duration = Duration::from_secs(3600);

/// A page just listed is used for this long at least, whatever the clocks say: the service refuses what has expired.
const LEAST_LIFE: Duration = Duration::from_secs(60);

/// Assumed of a page without an expiry time; documented are 7 days.
const ASSUMED_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Where a page is kept: which index, and the first block that the page covers.
pub(in crate::ebs) type PageKey = (u32, u32);

/// The tokens of one listed page.
pub(in crate::ebs) struct TokenPage {
    /// The blocks that it covers.
    pub(in crate::ebs) extent: Extent,
    /// How many blocks the request asked for.
    pub(in crate::ebs) asked: u16,
    renew: SystemTime,
    indexes: Vec<u32>,
    /// Where each token ends in `text`.
    ends: Vec<u32>,
    text: String,
}

impl std::fmt::Debug for TokenPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (start, end) = (self.extent.start(), self.extent.end());
        write!(
            f,
            "TokenPage({} tokens, {start}..{end})",
            self.indexes.len()
        )
    }
}

impl TokenPage {
    /// A page of ascending blocks and their tokens.
    pub(in crate::ebs) fn new<'a>(
        extent: Extent,
        asked: u16,
        now: SystemTime,
        expiry: Option<SystemTime>,
        blocks: impl Iterator<Item = (BlockIndex, &'a Token)>,
    ) -> Self {
        let life = expiry.map_or(ASSUMED_LIFE, |expiry| {
            expiry.duration_since(now).unwrap_or(Duration::ZERO)
        });
        let renew = now + life.saturating_sub(MARGIN).max(life / 2).max(LEAST_LIFE);
        let (mut text, mut indexes, mut ends) = (String::new(), Vec::new(), Vec::new());
        for (index, token) in blocks {
            text.push_str(token.secret());
            indexes.push(index.0);
            ends.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
        }
        text.shrink_to_fit();
        indexes.shrink_to_fit();
        ends.shrink_to_fit();
        Self {
            extent,
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

/// The pages of all snapshots.
#[derive(Debug)]
pub(in crate::ebs) struct TokenPages {
    /// Indexes so far: each has a number of its own.
    indexes: AtomicU32,
    inner: Mutex<KeptPages>,
}

#[derive(Debug)]
struct KeptPages {
    pages: LruCache<PageKey, TokenPage>,
    bytes: usize,
}

/// The token of a block in a page.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::ebs) enum TokenLookup {
    /// The token.
    Found(Token),
    /// The page's tokens expire soon: list it again, by a request for this many blocks.
    Expiring(u16),
    /// The page was dropped, or has no token of this block.
    Missing,
}

impl TokenPages {
    pub(in crate::ebs) fn new() -> Self {
        Self {
            indexes: AtomicU32::new(0),
            inner: Mutex::new(KeptPages {
                pages: LruCache::unbounded(),
                bytes: 0,
            }),
        }
    }

    /// The number of a new index.
    pub(super) fn new_number(&self) -> u32 {
        self.indexes.fetch_add(1, Ordering::Relaxed)
    }

    /// The token of a block in one page.
    pub(super) fn token(&self, key: PageKey, index: BlockIndex, now: SystemTime) -> TokenLookup {
        let mut inner = self.inner.lock();
        let Some(page) = inner.pages.get(&key) else {
            return TokenLookup::Missing;
        };
        match page.token(index) {
            Some(_) if now >= page.renew => TokenLookup::Expiring(page.asked),
            Some(token) => TokenLookup::Found(Token::new(token)),
            None => TokenLookup::Missing,
        }
    }

    /// Keeps a page, and drops the least recently used ones beyond the bound.
    pub(super) fn insert(&self, key: PageKey, page: TokenPage) {
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

    /// Drops the page that has this token of a block; returns the number of blocks that it had requested. None where another
    /// page has replaced it.
    pub(super) fn forget(&self, key: PageKey, index: BlockIndex, token: &Token) -> Option<u16> {
        let kept = self
            .inner
            .lock()
            .pages
            .peek(&key)
            .is_some_and(|page| page.token(index) == Some(token.secret()));
        kept.then(|| self.remove(key)).flatten()
    }

    /// Drops a page; returns the number of blocks that it had requested.
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

    fn page(start: u32, count: u32, life: Duration) -> TokenPage {
        let now = SystemTime::UNIX_EPOCH;
        let extent = Extent::new(BlockIndex(start), BlockIndex(start + count)).unwrap();
        let blocks: Vec<_> = extent
            .blocks()
            .map(|index| (index, Token::new(format!("{index:095}"))))
            .collect();
        let blocks = blocks.iter().map(|(index, token)| (*index, token));
        TokenPage::new(extent, 10_000, now, Some(now + life), blocks)
    }

    #[test]
    fn tokens_are_renewed_an_hour_early_and_short_lived_ones_at_half_their_life() {
        let pages = TokenPages::new();
        let hours = |n: u64| Duration::from_secs(n * 3600);
        pages.insert((0, 0), page(0, 3, hours(24)));
        pages.insert((1, 0), page(0, 3, hours(1)));
        let at = |key, after| pages.token(key, BlockIndex(1), SystemTime::UNIX_EPOCH + after);
        assert_eq!(
            at((0, 0), hours(22)),
            TokenLookup::Found(Token::new(format!("{:095}", 1)))
        );
        assert_eq!(at((0, 0), hours(23)), TokenLookup::Expiring(10_000));
        assert_eq!(
            at((1, 0), hours(1) / 3),
            TokenLookup::Found(Token::new(format!("{:095}", 1)))
        );
        assert_eq!(at((1, 0), hours(1) / 2), TokenLookup::Expiring(10_000));
        assert_eq!(at((2, 0), hours(0)), TokenLookup::Missing);
        // By a clock that is ahead a page is expired when it comes: it is used all the same.
        pages.insert((3, 0), page(0, 3, Duration::ZERO));
        assert!(matches!(at((3, 0), LEAST_LIFE / 2), TokenLookup::Found(_)));
    }

    #[test]
    fn pages_are_bounded_by_bytes_and_the_least_used_go_first() {
        let pages = TokenPages::new();
        let life = Duration::from_secs(86_400 * 7);
        for n in 0..100 {
            pages.insert((0, n * 10_000), page(n * 10_000, 10_000, life));
            // The first page stays in use.
            let kept = pages.token((0, 0), BlockIndex(7), SystemTime::UNIX_EPOCH);
            assert!(matches!(kept, TokenLookup::Found(_)));
            assert!(pages.inner.lock().bytes <= MAX_BYTES);
        }
        let second = pages.token((0, 10_000), BlockIndex(10_007), SystemTime::UNIX_EPOCH);
        assert_eq!(second, TokenLookup::Missing);
        assert!(pages.inner.lock().pages.len() > 20);
        assert_eq!(pages.remove((0, 0)), Some(10_000));
        assert_eq!(pages.remove((0, 0)), None);
    }
}
