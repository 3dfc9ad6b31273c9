//! A pair of snapshots, and the tokens that the listing of what differs between them brought: reading all of a delta
//! costs its listing at most once more, and one Get a written block.
//!
//! A page that was dropped from [`Pages`], or whose tokens expired, is listed again from the very block where it began;
//! it must say what it said before.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::time::{Instant, timeout_at};

use super::client::{Client, Failure, From, Listing};
use super::delta::{change, tokens};
use super::pages::{Kept, Page, Pages};
use super::snapshot::{SnapshotSource, Tokens, fetch};
use super::walk::{Fault, Lists, UnderWay, Walk, sooner};
use crate::block::{Block, BlockIndex, Change, Delta, Extent, Geometry};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;
use crate::source::{BlockSource, Wanted};

/// Two snapshots to list what differs between.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) client: Arc<Client>,
    /// The number of its pages.
    pub(super) number: u32,
    pub(super) base: SnapshotId,
    pub(super) head: SnapshotId,
    pub(super) base_size: Geometry,
    pub(super) head_size: Geometry,
}

impl Pair {
    /// Blocks asked for in one call, the most that the API takes.
    pub(super) const PAGE: u16 = 10_000;

    /// ListChangedBlocks of the pair, each call within `deadline`, or within its own.
    pub(super) fn call(&self, deadline: Option<Instant>) -> Call<'_> {
        Call {
            pair: self,
            deadline,
        }
    }

    pub(super) fn corrupt(&self, what: &str) -> Error {
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
pub(super) struct Call<'a> {
    pair: &'a Pair,
    deadline: Option<Instant>,
}

impl Lists for Call<'_> {
    type Item = Option<String>;

    async fn list(&self, from: &From) -> std::result::Result<Listing<Option<String>>, Failure> {
        let Pair {
            client, base, head, ..
        } = self.pair;
        let deadline = self.deadline.unwrap_or_else(|| client.deadline());
        client
            .list_changed(base, head, from, Pair::PAGE, deadline)
            .await
    }

    fn end(&self) -> Option<u32> {
        // By what is known of the two, the larger of them: replies may not tell, and do not say whose size they tell.
        let (base, head) = (self.pair.base_size, self.pair.head_size);
        Some(base.block_count().max(head.block_count()))
    }
}

/// The tokens of a delta's written blocks.
pub(super) struct Changed {
    pair: Arc<Pair>,
    pages: Arc<Pages>,
    delta: Arc<Delta>,
    /// First block to end of each page, kept or not: all of the volume.
    starts: BTreeMap<u32, u32>,
    under_way: UnderWay,
}

impl Changed {
    pub(super) fn new(
        pair: Arc<Pair>,
        pages: Arc<Pages>,
        delta: Arc<Delta>,
        starts: BTreeMap<u32, u32>,
    ) -> Self {
        Self {
            pair,
            pages,
            delta,
            starts,
            under_way: UnderWay::default(),
        }
    }

    fn page_of(&self, index: BlockIndex) -> Result<Extent> {
        let page = self.starts.range(..=index.0).next_back();
        page.and_then(|(start, end)| Extent::new(BlockIndex(*start), BlockIndex(*end)))
            .filter(|page| index < page.end())
            .ok_or_else(|| {
                self.pair
                    .corrupt(&format!("no page speaks of block {index}"))
            })
    }

    /// Lists a page again, as far as it reached.
    async fn list(&self, page: Extent, deadline: Instant) -> Result<()> {
        let call = self.pair.call(Some(deadline));
        let mut blocks: Vec<(u32, Option<String>)> = Vec::new();
        let mut expiry: Option<SystemTime> = None;
        let mut at = page.start().0;
        while at < page.end().0 {
            // Short pages are gone on from by their last block.
            let anchored = at > page.start().0;
            let told = match Walk::new(at - u32::from(anchored), anchored)
                .page(&call)
                .await
            {
                Ok(Some(told)) => told,
                Ok(None) => break,
                Err(Fault::Contradiction(what)) => return Err(self.pair.corrupt(&what)),
                Err(Fault::Failed(error)) => return Err(error),
            };
            at = told.end;
            expiry = sooner(expiry, told.expiry);
            let within = |(index, _): &(u32, _)| *index < page.end().0;
            blocks.extend(
                told.blocks
                    .into_iter()
                    .skip(usize::from(anchored))
                    .take_while(within),
            );
        }
        let now = blocks
            .iter()
            .map(|(index, token)| (BlockIndex(*index), change(token)));
        // What the volume has grown by is zeroed without being listed.
        let is_listed = |(index, change): &(BlockIndex, Change)| {
            *change == Change::Write || index.0 < self.pair.base_size.block_count()
        };
        if !self.delta.blocks_in(page).filter(is_listed).eq(now) {
            let what = format!(
                "between blocks {} and {} it is not what it was",
                page.start(),
                page.end()
            );
            return Err(self.pair.corrupt(&what));
        }
        let key = (self.pair.number, page.start().0);
        let page = Page::new(
            page.end().0,
            Pair::PAGE,
            SystemTime::now(),
            expiry,
            tokens(&blocks),
        );
        self.pages.insert(key, page);
        Ok(())
    }
}

impl Tokens for Changed {
    async fn token(&self, index: BlockIndex, deadline: Instant) -> Result<Option<String>> {
        if !self.delta.write().contains(index) {
            return Ok(None);
        }
        let page = self.page_of(index)?;
        let key = (self.pair.number, page.start().0);
        loop {
            if let Kept::Token(token) = self.pages.token(key, index, SystemTime::now()) {
                return Ok(Some(token));
            }
            match self.under_way.join(index, || page) {
                Ok(_landing) => self.list(page, deadline).await?,
                Err(mut landed) => {
                    if timeout_at(deadline, landed.changed()).await.is_err() {
                        let what = format!("{}: no listing before the deadline", self.pair);
                        return Err(Error::new(Kind::Unavailable, what));
                    }
                }
            }
        }
    }

    fn forget(&self, index: BlockIndex, token: &str) {
        let Ok(page) = self.page_of(index) else {
            return;
        };
        self.pages
            .forget((self.pair.number, page.start().0), index, token);
    }
}

/// The head of a delta, whose written blocks are read by the tokens that the delta's listing brought: the same bytes as
/// [`SnapshotSource`]'s, for fewer requests where changes are few and far between.
pub(super) struct ChangedSource {
    head: Arc<SnapshotSource>,
    changed: Changed,
}

impl ChangedSource {
    pub(super) fn new(head: Arc<SnapshotSource>, changed: Changed) -> Self {
        Self { head, changed }
    }

    fn read(&self, index: BlockIndex, wanted: Wanted) -> BoxFuture<'_, Result<Block>> {
        let pair = &self.changed.pair;
        let change = self.changed.delta.change(index);
        let contradicts = match (change, self.head.is_held(index)) {
            (Some(Change::Write), Some(is_held)) => !is_held,
            (Some(Change::Zero), Some(is_held)) => is_held,
            _ => false,
        };
        if contradicts {
            let what = format!(
                "block {index} is told otherwise by the listing of {}",
                pair.head
            );
            return ready(Err(pair.corrupt(&what))).boxed();
        }
        match change {
            Some(Change::Write) => {
                let (client, size) = (&pair.client, pair.head_size);
                fetch(client, &pair.head, size, &self.changed, index, wanted).boxed()
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
        // A hole by the head's own listing that this one calls written is no zero: reading it tells.
        match self.changed.delta.change(index) {
            Some(Change::Zero) => self.head.is_held(index) != Some(true),
            Some(Change::Write) => false,
            None => self.head.is_known_zero(index),
        }
    }

    fn prefetch(&self, _blocks: &[BlockIndex]) -> usize {
        0
    }
}
