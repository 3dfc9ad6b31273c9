//! [`TokenIndex`]: which page has the token of a block, for one snapshot or one delta.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::Token;
use super::token_pages::{TokenLookup, TokenPage, TokenPages};
use crate::block::{BlockIndex, Extent};

/// Beyond this many pages the index is cleared of those that [`TokenPages`] has dropped: as many small pages as it can keep.
const MOST_STARTS: usize = 4096;

/// The pages of one listing, kept in the [`TokenPages`] of all.
#[derive(Debug)]
pub(in crate::ebs) struct TokenIndex {
    /// Distinguishes its pages from those of other indexes.
    number: u32,
    pages: Arc<TokenPages>,
    /// First block of each page to the block after its last one. No page reaches past the start of the next one; some may
    /// have been dropped from `pages`.
    starts: Mutex<BTreeMap<u32, u32>>,
}

impl TokenIndex {
    /// An empty index.
    pub(in crate::ebs) fn new(pages: &Arc<TokenPages>) -> Self {
        Self {
            number: pages.new_number(),
            pages: Arc::clone(pages),
            starts: Mutex::default(),
        }
    }

    /// The blocks that the page of a block covers, whether its tokens are kept or not.
    pub(in crate::ebs) fn page_of(&self, index: BlockIndex) -> Option<Extent> {
        let starts = self.starts.lock();
        let (start, end) = starts.range(..=index.0).next_back()?;
        Extent::new(BlockIndex(*start), BlockIndex(*end)).filter(|page| index < page.end())
    }

    /// Whether the tokens of the page of a block are kept.
    pub(in crate::ebs) fn is_kept(&self, index: BlockIndex) -> bool {
        self.page_of(index)
            .is_some_and(|page| self.pages.contains(self.key(page)))
    }

    /// The token of a block.
    pub(in crate::ebs) fn token(&self, index: BlockIndex, now: SystemTime) -> TokenLookup {
        match self.page_of(index) {
            Some(page) => self.pages.token(self.key(page), index, now),
            None => TokenLookup::Missing,
        }
    }

    /// Keeps a page in place of the pages that it contains. A page that contains it, and is kept, stays instead.
    pub(in crate::ebs) fn insert(&self, page: TokenPage) {
        let (start, end) = (page.extent.start().0, page.extent.end().0);
        let mut starts = self.starts.lock();
        if let Some((before, reach)) = starts.range_mut(..start).next_back() {
            if *reach >= end && self.pages.contains((self.number, *before)) {
                return;
            }
            *reach = start.min(*reach);
        }
        let contained = starts.range(start..end).filter(|(_, other)| **other <= end);
        let contained: Vec<u32> = contained.map(|(start, _)| *start).collect();
        for old in contained {
            starts.remove(&old);
            self.pages.remove((self.number, old));
        }
        if starts.len() > MOST_STARTS {
            starts.retain(|start, _| self.pages.contains((self.number, *start)));
        }
        starts.insert(start, end);
        self.pages.insert((self.number, start), page);
    }

    /// Keeps the tokens of a page that was listed again, with the same extent as before.
    pub(in crate::ebs) fn renew(&self, page: TokenPage) {
        self.pages.insert(self.key(page.extent), page);
    }

    /// Adds a page of a listing that covers the whole volume once: all its pages stay in the index.
    pub(in crate::ebs) fn append(&self, page: TokenPage) {
        let (start, end) = (page.extent.start().0, page.extent.end().0);
        self.starts.lock().insert(start, end);
        self.renew(page);
    }

    /// Blocks covered by its pages, if they do not overlap.
    pub(in crate::ebs) fn covered(&self) -> u32 {
        self.starts
            .lock()
            .iter()
            .map(|(start, end)| end - start)
            .sum()
    }

    /// Drops the page of a block whose token was refused, unless another page has replaced it; returns the number of blocks
    /// that the page had requested. Its extent stays in the index.
    pub(in crate::ebs) fn refuse(&self, index: BlockIndex, token: &Token) -> Option<u16> {
        let page = self.page_of(index)?;
        self.pages.forget(self.key(page), index, token)
    }

    /// Drops the page of a block from the index.
    pub(in crate::ebs) fn remove(&self, index: BlockIndex) {
        if let Some(page) = self.page_of(index) {
            self.starts.lock().remove(&page.start().0);
        }
    }

    fn key(&self, page: Extent) -> (u32, u32) {
        (self.number, page.start().0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn page(start: u32, end: u32) -> TokenPage {
        let extent = Extent::new(BlockIndex(start), BlockIndex(end)).unwrap();
        let tokens: Vec<_> = extent
            .blocks()
            .map(|index| (index, Token::new(format!("{start}-{index}"))))
            .collect();
        let now = SystemTime::UNIX_EPOCH;
        let expiry = Some(now + Duration::from_secs(7 * 86_400));
        TokenPage::new(
            extent,
            100,
            now,
            expiry,
            tokens.iter().map(|(i, t)| (*i, t)),
        )
    }

    fn index() -> TokenIndex {
        TokenIndex::new(&Arc::new(TokenPages::new()))
    }

    fn found(index: &TokenIndex, block: u32) -> Option<String> {
        match index.token(BlockIndex(block), SystemTime::UNIX_EPOCH) {
            TokenLookup::Found(token) => Some(token.secret().to_owned()),
            _ => None,
        }
    }

    #[test]
    fn a_page_replaces_those_that_it_contains_and_yields_to_one_that_contains_it() {
        let index = index();
        index.insert(page(10, 20));
        index.insert(page(30, 40));
        index.insert(page(5, 40));
        assert_eq!(found(&index, 12).unwrap(), "5-12");
        index.insert(page(8, 12));
        assert_eq!(found(&index, 9).unwrap(), "5-9");
        index.insert(page(35, 50));
        assert_eq!(found(&index, 34).unwrap(), "5-34");
        assert_eq!(found(&index, 36).unwrap(), "35-36");
        assert_eq!(found(&index, 50), None);
    }

    #[test]
    fn a_refused_token_drops_its_page_once() {
        let index = index();
        index.append(page(0, 10));
        let token = Token::new("0-7");
        assert_eq!(index.refuse(BlockIndex(7), &Token::new("other")), None);
        assert_eq!(index.refuse(BlockIndex(7), &token), Some(100));
        assert_eq!(index.refuse(BlockIndex(7), &token), None);
        assert_eq!(found(&index, 3), None);
        assert!(index.page_of(BlockIndex(3)).is_some());
        index.remove(BlockIndex(3));
        assert!(index.page_of(BlockIndex(3)).is_none());
        assert_eq!(index.covered(), 0);
    }
}
