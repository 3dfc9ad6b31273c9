//! [`PageCursor`]: the position in a listing, past empty pages, refused page tokens and lost ones, to the next page that proves
//! something.
//!
//! Page tokens live for an hour and lead only past a page without blocks. Everywhere else a listing continues by index, at the
//! last block of the page before, its *anchor*.

use std::collections::HashSet;
use std::future::Future;
use std::time::SystemTime;

use tracing::{debug, warn};

use super::{ListFrom, ListReply, Token};
use crate::block::BlockIndex;
use crate::ebs::client::CallFailure;
use crate::error::Error;

/// How often a page is listed from its start because the token that leads past an empty part of it is refused.
const MOST_RESTARTS: u32 = 100;
/// Pages without a block in a row, beyond one for each 100 blocks of the volume, after which a listing counts as endless. The API
/// looks at 100 blocks or more for each page that it answers.
const MOST_EMPTY_PAGES: usize = 1000;

/// One of the two list calls, with what it is made on.
pub(in crate::ebs) trait ListCall: Sync {
    /// The entry of each block in a reply.
    type Item: Send;

    /// One reply.
    fn list(
        &self,
        from: &ListFrom,
    ) -> impl Future<Output = Result<ListReply<Self::Item>, CallFailure>> + Send;

    /// The block after the volume's last one; none while it is unknown.
    fn end(&self) -> Option<u32>;
}

/// What a page proves: from where it began to `end` these blocks are listed and no others.
#[derive(Debug)]
pub(in crate::ebs) struct ListedPage<T> {
    pub(in crate::ebs) blocks: Vec<(BlockIndex, T)>,
    /// The block after the last one that the page covers.
    pub(in crate::ebs) end: u32,
    /// Whether the listing continues there.
    pub(in crate::ebs) more: bool,
    /// Whether the last reply had no next token: the listing probably ends there.
    pub(in crate::ebs) may_end: bool,
    /// When the first of its block tokens expires.
    pub(in crate::ebs) expiry: Option<SystemTime>,
}

/// Why there is no page.
#[derive(Debug)]
pub(in crate::ebs) enum ListFault {
    /// The listing contradicts itself.
    Contradiction(String),
    /// Everything else.
    Failed(Error),
}

impl From<CallFailure> for ListFault {
    fn from(failure: CallFailure) -> Self {
        Self::Failed(failure.into())
    }
}

/// The position in a listing. Cancel-safe: dropping the future of [`PageCursor::page`] keeps the position.
pub(in crate::ebs) struct PageCursor<T> {
    start: u32,
    anchored: bool,
    /// The block that the page must cover; an end need not be proven before it.
    needed: u32,
    /// Whether an earlier listing ended before `start`, so that one empty reply proves that end.
    confirms: bool,
    from: ListFrom,
    blocks: Vec<(BlockIndex, T)>,
    expiry: Option<SystemTime>,
    restarts: u32,
    /// Page tokens followed since the start: one that comes again never ends.
    followed: HashSet<Token>,
    /// Whether the last reply had no next token and an empty one from the next block on must confirm the end.
    is_proving: bool,
}

impl<T> std::fmt::Debug for PageCursor<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageCursor(from block {})", self.start)
    }
}

impl<T> PageCursor<T> {
    /// A cursor at block `start`. With `anchored` that block was listed before, must come first, and others must follow it.
    pub(in crate::ebs) fn new(start: u32, anchored: bool) -> Self {
        Self {
            start,
            anchored,
            needed: u32::MAX,
            confirms: false,
            from: ListFrom::Index(BlockIndex(start)),
            blocks: Vec::new(),
            expiry: None,
            restarts: 0,
            followed: HashSet::new(),
            is_proving: false,
        }
    }

    /// The page must only cover this block: where it lists a later one, the end stays unproven.
    pub(in crate::ebs) fn needing(mut self, index: BlockIndex) -> Self {
        self.needed = index.0;
        self
    }

    /// An earlier listing ended right before the start: one empty reply proves that end.
    pub(in crate::ebs) fn confirming(mut self) -> Self {
        (self.confirms, self.is_proving) = (true, true);
        self
    }

    /// Back to the start of the page.
    fn restart(&mut self) {
        self.restarts += 1;
        self.from = ListFrom::Index(BlockIndex(self.start));
        self.blocks.clear();
        self.followed.clear();
        self.is_proving = self.confirms;
    }

    /// Lists until a page proves something; none while the volume's size is unknown.
    pub(in crate::ebs) async fn page<C: ListCall<Item = T>>(
        &mut self,
        call: &C,
    ) -> Result<Option<ListedPage<T>>, ListFault> {
        loop {
            let reply = match call.list(&self.from).await {
                // The page token is expired or foreign: from the start of the page.
                Err(CallFailure::StaleToken(error))
                    if matches!(self.from, ListFrom::Page(_)) && self.restarts < MOST_RESTARTS =>
                {
                    debug!("{error}");
                    self.restart();
                    continue;
                }
                reply => reply?,
            };
            let Some(end) = call.end() else {
                return Ok(None);
            };
            if let Some(page) = self.take(reply, end)? {
                return Ok(Some(page));
            }
        }
    }

    /// Adds a reply; the page, once it proves something.
    fn take(&mut self, reply: ListReply<T>, end: u32) -> Result<Option<ListedPage<T>>, ListFault> {
        let is_empty = reply.blocks.is_empty();
        for (index, item) in reply.blocks {
            let least = self.next_block();
            if !(least..end).contains(&index.0) {
                return Err(ListFault::Contradiction(format!(
                    "a listing from block {} has block {index} where {least} to {} may follow",
                    self.start,
                    end.saturating_sub(1)
                )));
            }
            self.blocks.push((index, item));
        }
        self.expiry = earlier(self.expiry, reply.expiry);
        let has_anchor =
            self.anchored && self.blocks.first().map(|(first, _)| first.0) == Some(self.start);
        // The anchor alone proves nothing behind it.
        let lists_something = self.blocks.len() > usize::from(has_anchor);
        let found_after_the_end = self.is_proving && !is_empty;
        match reply.next {
            // Only its own token leads past a page without blocks.
            Some(next) if !lists_something || (self.is_proving && is_empty) => {
                self.follow(next, end)?;
                return Ok(None);
            }
            Some(_) => {
                self.check_anchor(has_anchor)?;
                return Ok(Some(self.finish(None, false)));
            }
            None => {}
        }
        self.check_anchor(has_anchor)?;
        if found_after_the_end {
            warn!(
                "a list reply had no next token though blocks follow block {}: listing on from there",
                self.start
            );
            return Ok(Some(self.finish(None, true)));
        }
        let next = self.next_block();
        if next >= end || self.is_proving {
            return Ok(Some(self.finish(Some(end), true)));
        }
        if next > self.needed {
            return Ok(Some(self.finish(None, true)));
        }
        self.is_proving = true;
        self.from = ListFrom::Index(BlockIndex(next));
        Ok(None)
    }

    fn next_block(&self) -> u32 {
        self.blocks
            .last()
            .map_or(self.start, |(last, _)| last.0 + 1)
    }

    fn follow(&mut self, next: Token, end: u32) -> Result<(), ListFault> {
        let most = MOST_EMPTY_PAGES + end as usize / 100;
        if self.followed.len() >= most {
            let what = format!("{most} pages in a row list no block and name a next page");
            return Err(ListFault::Contradiction(what));
        }
        if !self.followed.insert(next.clone()) {
            let what = "pages without a block name each other as the next page for ever".into();
            return Err(ListFault::Contradiction(what));
        }
        self.from = ListFrom::Page(next);
        Ok(())
    }

    fn check_anchor(&self, has_anchor: bool) -> Result<(), ListFault> {
        if !self.anchored || has_anchor {
            return Ok(());
        }
        let what = format!("block {} was listed before and is now missing", self.start);
        Err(ListFault::Contradiction(what))
    }

    /// The page: up to the volume's end where that is proven, else up to its last block.
    fn finish(&mut self, proven_end: Option<u32>, may_end: bool) -> ListedPage<T> {
        ListedPage {
            end: proven_end.unwrap_or_else(|| self.next_block()),
            more: proven_end.is_none(),
            may_end,
            blocks: std::mem::take(&mut self.blocks),
            expiry: self.expiry,
        }
    }
}

/// The earlier of two times, if any is known.
pub(in crate::ebs) fn earlier(a: Option<SystemTime>, b: Option<SystemTime>) -> Option<SystemTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests;
