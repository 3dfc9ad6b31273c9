//! A pair of snapshots, the tokens that the listing of its delta carried, and the head read by them: reading all of a delta
//! costs at most a second listing, and one Get for each written block.
//!
//! A page whose tokens were dropped or expire is listed again from the block where it began; its entries must be the same as
//! before.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::time::Instant;

use super::listing::{change, tokens};
use crate::block::{Block, BlockIndex, Change, Delta, Extent, Geometry};
use crate::ebs::client::{CallFailure, Client};
use crate::ebs::listing::cursor::{ListCall, ListFault, PageCursor, earlier};
use crate::ebs::listing::in_flight::ListingsInFlight;
use crate::ebs::listing::token_index::TokenIndex;
use crate::ebs::listing::token_pages::{TokenLookup, TokenPage};
use crate::ebs::listing::{ChangedBlock, ListFrom, ListReply, Token};
use crate::ebs::snapshot::{SnapshotSource, Tokens, fetch};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;
use crate::source::{BlockSource, Wanted};

/// Two snapshots whose delta is listed.
#[derive(Debug)]
pub(in crate::ebs) struct Pair {
    pub(in crate::ebs) client: Arc<Client>,
    pub(in crate::ebs) base: SnapshotId,
    pub(in crate::ebs) head: SnapshotId,
    pub(in crate::ebs) base_size: Geometry,
    pub(in crate::ebs) head_size: Geometry,
    /// Blocks that the head holds more than the base, by what EC2 states of both.
    pub(in crate::ebs) stated_growth: Option<i64>,
}

impl Pair {
    /// Blocks that a request asks for, the most that the API takes.
    pub(super) const PAGE: u16 = 10_000;

    /// ListChangedBlocks of the pair, each call within `deadline`, or within its own.
    pub(super) fn call(&self, max: u16, deadline: Option<Instant>) -> DeltaListCall<'_> {
        DeltaListCall {
            pair: self,
            max,
            deadline,
        }
    }

    pub(in crate::ebs) fn corrupt(&self, what: &str) -> Error {
        let what = format!("{self}: the listing contradicts itself: {what}");
        tracing::error!("{what}");
        Error::new(Kind::Corrupt, what)
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.base, self.head)
    }
}

/// ListChangedBlocks of a pair.
pub(super) struct DeltaListCall<'a> {
    pair: &'a Pair,
    max: u16,
    deadline: Option<Instant>,
}

impl ListCall for DeltaListCall<'_> {
    type Item = ChangedBlock;

    async fn list(
        &self,
        from: &ListFrom,
    ) -> std::result::Result<ListReply<ChangedBlock>, CallFailure> {
        let Pair {
            client, base, head, ..
        } = self.pair;
        let deadline = self.deadline.unwrap_or_else(|| client.deadline());
        client
            .list_changed(base, head, from, self.max, deadline)
            .await
    }

    fn end(&self) -> Option<u32> {
        // The larger of the two: replies may leave the size out, and do not say whose size they state.
        let (base, head) = (self.pair.base_size, self.pair.head_size);
        Some(base.block_count().max(head.block_count()))
    }
}

/// The tokens of a delta's written blocks.
struct DeltaTokens {
    pair: Arc<Pair>,
    delta: Arc<Delta>,
    /// Its pages cover the whole volume.
    index: TokenIndex,
    in_flight: ListingsInFlight,
}

impl DeltaTokens {
    fn page_of(&self, index: BlockIndex) -> Result<Extent> {
        self.index.page_of(index).ok_or_else(|| {
            let what = format!("no page covers block {index}");
            self.pair.corrupt(&what)
        })
    }

    /// Lists a page again, as far as it reached.
    async fn list(&self, page: Extent, deadline: Instant) -> Result<()> {
        let call = self.pair.call(Pair::PAGE, Some(deadline));
        let mut blocks: Vec<(BlockIndex, ChangedBlock)> = Vec::new();
        let mut expiry: Option<SystemTime> = None;
        let mut at = page.start().0;
        while at < page.end().0 {
            // After a short page the listing continues from its last block.
            let anchored = at > page.start().0;
            let mut cursor = PageCursor::new(at - u32::from(anchored), anchored);
            let listed = match cursor.page(&call).await {
                Ok(Some(listed)) => listed,
                Ok(None) => break,
                Err(ListFault::Contradiction(what)) => return Err(self.pair.corrupt(&what)),
                Err(ListFault::Failed(error)) => return Err(error),
            };
            at = listed.end;
            expiry = earlier(expiry, listed.expiry);
            let within = |(index, _): &(BlockIndex, _)| *index < page.end();
            let new = listed.blocks.into_iter().skip(usize::from(anchored));
            blocks.extend(new.take_while(within));
        }
        let now = blocks.iter().map(|(index, block)| (*index, change(block)));
        // What the volume has grown by is zeroed without being listed.
        let is_listed = |(index, change): &(BlockIndex, Change)| {
            *change == Change::Write || index.0 < self.pair.base_size.block_count()
        };
        if !self.delta.blocks_in(page).filter(is_listed).eq(now) {
            let what = format!(
                "between blocks {} and {} it differs from the listing before",
                page.start(),
                page.end()
            );
            return Err(self.pair.corrupt(&what));
        }
        let now = SystemTime::now();
        let page = TokenPage::new(page, Pair::PAGE, now, expiry, tokens(&blocks));
        self.index.renew(page);
        Ok(())
    }
}

impl Tokens for DeltaTokens {
    async fn token(&self, index: BlockIndex, deadline: Instant) -> Result<Option<Token>> {
        if !self.delta.write().contains(index) {
            return Ok(None);
        }
        let page = self.page_of(index)?;
        loop {
            if let TokenLookup::Found(token) = self.index.token(index, SystemTime::now()) {
                return Ok(Some(token));
            }
            match self.in_flight.join(index, || page) {
                Ok(_guard) => self.list(page, deadline).await?,
                Err(listing) => {
                    if !listing.ended(deadline).await {
                        let what = format!("{}: no listing before the deadline", self.pair);
                        return Err(Error::new(Kind::Unavailable, what));
                    }
                }
            }
        }
    }

    fn forget(&self, index: BlockIndex, token: &Token) {
        self.index.refuse(index, token);
    }
}

/// The head of a delta, whose written blocks are read by the tokens of the delta's listing: the same bytes as
/// [`SnapshotSource`]'s, for fewer requests where changes are few and far between.
pub(in crate::ebs) struct ChangedSource {
    head: Arc<SnapshotSource>,
    tokens: DeltaTokens,
}

impl ChangedSource {
    /// The head of `delta`, whose listing filled `index`.
    pub(in crate::ebs) fn new(
        head: Arc<SnapshotSource>,
        pair: Arc<Pair>,
        delta: Arc<Delta>,
        index: TokenIndex,
    ) -> Self {
        let tokens = DeltaTokens {
            pair,
            delta,
            index,
            in_flight: ListingsInFlight::default(),
        };
        Self { head, tokens }
    }

    fn read(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        let pair = &self.tokens.pair;
        let change = self.tokens.delta.change(index);
        let contradicts = match (change, self.head.is_held(index)) {
            (Some(Change::Write), Some(is_held)) => !is_held,
            (Some(Change::Zero), Some(is_held)) => is_held,
            _ => false,
        };
        if contradicts {
            let what = format!(
                "the listing of {} contradicts it at block {index}",
                pair.head
            );
            return ready(Err(pair.corrupt(&what))).boxed();
        }
        match change {
            Some(Change::Write) => {
                let (client, size) = (&pair.client, pair.head_size);
                fetch(client, &pair.head, size, &self.tokens, index, wanted).boxed()
            }
            Some(Change::Zero) => ready(Ok(Block::Zero)).boxed(),
            None => self.head.read_ahead(index, wanted),
        }
    }
}

impl BlockSource for ChangedSource {
    fn geometry(&self) -> Geometry {
        self.head.geometry()
    }

    fn read_block(&self, index: BlockIndex) -> BoxFuture<'_, Result<Block>> {
        self.read(index, Wanted::already())
    }

    fn read_ahead(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        self.read(index, wanted)
    }

    fn next_extent(&self, from: BlockIndex) -> BoxFuture<'_, Result<Option<Extent>>> {
        self.head.next_extent(from)
    }

    fn is_known_zero(&self, index: BlockIndex) -> bool {
        // Where the head's own listing has a hole and this one a written block, reading it reports the contradiction.
        match self.tokens.delta.change(index) {
            Some(Change::Zero) => self.head.is_held(index) != Some(true),
            Some(Change::Write) => false,
            None => self.head.is_known_zero(index),
        }
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}
