//! Which blocks a snapshot holds, and their tokens: listed on demand around what is read, never the whole snapshot first.
//!
//! Absence is a claim (see [`crate::ebs::listing`]): a block counts as a hole only where a page covers it. Whatever contradicts
//! an earlier listing makes the map corrupt permanently.
//!
//! Presence is in [`Presence`], at most two bitmaps of 16 MiB for 64 TiB. Presence ([`MapMemory`]) and tokens are bounded for all
//! snapshots together.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::Tokens;
use super::map_memory::{Forgettable, MapMemory};
use super::presence::{CountNotice, NextExtent, Presence, StatedFacts};
use crate::block::{BlockIndex, Extent, Geometry};
use crate::ebs::client::{CallFailure, Client};
use crate::ebs::listing::cursor::{ListCall, ListFault, ListedPage, PageCursor};
use crate::ebs::listing::in_flight::{ListingGuard, ListingWaiter, ListingsInFlight};
use crate::ebs::listing::token_index::TokenIndex;
use crate::ebs::listing::token_pages::{TokenLookup, TokenPage};
use crate::ebs::listing::{ListFrom, ListReply, Token};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;

/// Blocks a request for an isolated read asks for: the least that the API takes.
const SMALL_PAGE: u16 = 100;
/// Blocks a request asks for where a listing continues: the most that the API takes.
const LARGE_PAGE: u16 = 10_000;
/// Blocks a request of the second count asks for: its pages end elsewhere.
const RECOUNT_PAGE: u16 = 7_919;
/// An isolated listing starts at a multiple of this, so that blocks that are read together share it.
const ALIGNED: u32 = 16;
/// How often a snapshot is listed again while replies leave out the volume's size.
const SIZE_ATTEMPTS: usize = 8;
/// Pause between requests for a snapshot that EC2 calls completed and the direct APIs do not know yet: seen for a minute.
const VISIBLE_AGAIN: Duration = Duration::from_secs(2);

/// The time of day; a test can set another.
pub(in crate::ebs) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The map of one snapshot.
pub(in crate::ebs) struct BlockMap {
    snapshot: SnapshotId,
    client: Arc<Client>,
    index: TokenIndex,
    clock: Clock,
    exists: bool,
    in_flight: ListingsInFlight,
    /// Held by the one caller that counts again.
    recounting: AsyncMutex<()>,
    state: Arc<Mutex<MapState>>,
    memory: Arc<MapMemory>,
    /// The number of this map in `memory`.
    number: u32,
}

struct MapState {
    presence: Presence,
    /// Whether any page was ever listed; `forget` does not reset it.
    was_listed: bool,
    /// Where a token was last refused or expired, and how many blocks that page had requested: the next listing there requests
    /// as many.
    again: Option<(BlockIndex, u16)>,
    /// The block before which a listing ended, while no second request has proven that end.
    unproven_end: Option<BlockIndex>,
    /// The contradiction found; it stays.
    corrupt: Option<Error>,
}

impl Forgettable for Mutex<MapState> {
    fn forget(&self) -> bool {
        let mut state = self.lock();
        // A second count compares with the first one.
        if state.presence.recount().is_some() {
            return false;
        }
        state.presence.forget();
        (state.again, state.unproven_end) = (None, None);
        true
    }
}

impl Drop for BlockMap {
    fn drop(&mut self) {
        self.memory.remove(self.number);
    }
}

/// The entry of a block in the map.
#[derive(Debug, PartialEq, Eq)]
enum Lookup {
    Hole,
    Held(Token),
    Unlisted,
}

impl BlockMap {
    /// An empty map. It checks what EC2 states against what it lists.
    pub(in crate::ebs) fn new(
        snapshot: SnapshotId,
        client: Arc<Client>,
        index: TokenIndex,
        clock: Clock,
        stated: StatedFacts,
        memory: &Arc<MapMemory>,
    ) -> Self {
        Self {
            snapshot,
            client,
            index,
            clock,
            exists: stated.exists,
            in_flight: ListingsInFlight::default(),
            recounting: AsyncMutex::default(),
            state: Arc::new(Mutex::new(MapState {
                presence: Presence::new(&stated),
                was_listed: false,
                again: None,
                unproven_end: None,
                corrupt: None,
            })),
            memory: Arc::clone(memory),
            number: memory.new_number(),
        }
    }

    /// The volume's geometry, by a small listing when it is not known yet.
    pub(in crate::ebs) async fn geometry(&self, deadline: Instant) -> Result<Geometry> {
        for _ in 0..SIZE_ATTEMPTS {
            if let Some(geometry) = self.state.lock().presence.geometry() {
                return Ok(geometry);
            }
            self.list(BlockIndex(0), deadline).await?;
        }
        self.state.lock().presence.geometry().ok_or_else(|| {
            self.error(
                Kind::Unavailable,
                "the service does not state the volume's size, and EC2 could not be asked for it",
            )
        })
    }

    /// Whether the block is known to be a hole.
    pub(in crate::ebs) fn is_known_hole(&self, index: BlockIndex) -> bool {
        let state = self.state.lock();
        state.corrupt.is_none() && state.presence.is_hole(index) == Some(true)
    }

    /// Whether a block is held, if that is known.
    pub(in crate::ebs) fn is_held(&self, index: BlockIndex) -> Option<bool> {
        self.state.lock().presence.is_held(index)
    }

    /// The first run of held blocks at or after `from`, as far as it is listed.
    pub(in crate::ebs) async fn next_extent(
        &self,
        from: BlockIndex,
        deadline: Instant,
    ) -> Result<Option<Extent>> {
        let end = BlockIndex(self.geometry(deadline).await?.block_count());
        let mut at = from;
        loop {
            {
                let state = self.state.lock();
                if let Some(error) = &state.corrupt {
                    return Err(error.clone());
                }
                match state.presence.next_extent(at, end) {
                    NextExtent::Known(extent) => return Ok(extent),
                    NextExtent::UnknownFrom(unknown) => at = unknown,
                }
            }
            if at >= end {
                return Ok(None);
            }
            self.list(at, deadline).await?;
        }
    }

    /// Whether its listings have contradicted themselves.
    pub(in crate::ebs) fn is_corrupt(&self) -> bool {
        self.state.lock().corrupt.is_some()
    }

    fn lookup(&self, index: BlockIndex) -> Result<Lookup> {
        self.memory.touch(self.number);
        let mut state = self.state.lock();
        if let Some(error) = &state.corrupt {
            return Err(error.clone());
        }
        match state.presence.is_hole(index) {
            None => return Ok(Lookup::Unlisted),
            Some(true) => return Ok(Lookup::Hole),
            Some(false) => {}
        }
        match self.index.token(index, (self.clock)()) {
            TokenLookup::Found(token) => return Ok(Lookup::Held(token)),
            TokenLookup::Expiring(asked) => state.again = Some((index, asked)),
            TokenLookup::Missing => {}
        }
        self.index.remove(index);
        Ok(Lookup::Unlisted)
    }

    /// Lists from `index` on, or waits for a listing in flight that probably covers it.
    async fn list(&self, index: BlockIndex, deadline: Instant) -> Result<()> {
        if self.state.lock().presence.recount().is_some() {
            return self.count_again().await;
        }
        match self.plan(index) {
            Plan::Wait(listing) => {
                if listing.ended(deadline).await {
                    return Ok(());
                }
                Err(self.error(Kind::Unavailable, "no listing before the deadline"))
            }
            Plan::List {
                start,
                anchored,
                max,
                confirms,
                guard: _guard,
            } => {
                let call = SnapshotListCall {
                    map: self,
                    max,
                    deadline,
                };
                self.list_chain(&call, start, anchored, confirms, index)
                    .await
            }
        }
    }

    fn plan(&self, index: BlockIndex) -> Plan<'_> {
        let mut state = self.state.lock();
        let again = state.again.take_if(|(at, _)| *at == index);
        let before = state.presence.known_before(index);
        // A sequential read is where the tokens of the page before are still kept. Elsewhere a read is isolated.
        let continues = before.is_some_and(|before| self.index.is_kept(before));
        let max = match again {
            Some((_, asked)) => asked,
            None if continues => LARGE_PAGE,
            None => SMALL_PAGE,
        };
        // The listing before ended at this block: one empty reply from the next block on proves that end.
        let confirms =
            before.is_some_and(|before| state.unproven_end == Some(BlockIndex(before.0 + 1)));
        let start = match before {
            Some(before) if confirms => BlockIndex(before.0 + 1),
            // The last block before must come again.
            Some(before) if state.presence.is_held(before) == Some(true) => before,
            Some(before) => BlockIndex(before.0 + 1),
            None => BlockIndex(index.0 - index.0 % ALIGNED),
        };
        let reach = BlockIndex(start.0.saturating_add(state.presence.probable_reach(max)));
        // Never empty: a page has room for a hundred blocks.
        let reach = Extent::new(start, reach).unwrap_or(Extent::of(start));
        match self.in_flight.join(index, || reach) {
            Err(listing) => Plan::Wait(listing),
            Ok(guard) => Plan::List {
                start,
                anchored: state.presence.is_held(start) == Some(true),
                confirms,
                max,
                guard,
            },
        }
    }

    /// Lists pages from `start` until they cover `index`.
    async fn list_chain(
        &self,
        call: &SnapshotListCall<'_>,
        mut start: BlockIndex,
        mut anchored: bool,
        mut confirms: bool,
        index: BlockIndex,
    ) -> Result<()> {
        loop {
            let mut cursor = PageCursor::new(start.0, anchored).needing(index);
            if confirms {
                cursor = cursor.confirming();
            }
            let Some(page) = self.page(call, cursor).await? else {
                // Nothing is covered while the volume's end is unknown: `geometry` asks again.
                return Ok(());
            };
            self.merge(start, &page)?;
            if page.more && page.may_end {
                self.state.lock().unproven_end = Some(BlockIndex(page.end));
            }
            if let Some(extent) = Extent::new(start, BlockIndex(page.end)) {
                let tokens = page.blocks.iter().map(|(index, token)| (*index, token));
                let now = (self.clock)();
                let tokens = TokenPage::new(extent, call.max, now, page.expiry, tokens);
                self.index.insert(tokens);
            }
            if page.end > index.0 {
                return Ok(());
            }
            // A short page: continue from its last block.
            start = BlockIndex(page.end - 1);
            (anchored, confirms) = (true, false);
        }
    }

    async fn page(
        &self,
        call: &SnapshotListCall<'_>,
        mut cursor: PageCursor<Token>,
    ) -> Result<Option<ListedPage<Token>>> {
        match cursor.page(call).await {
            Ok(page) => Ok(page),
            Err(ListFault::Contradiction(what)) => Err(self.poison(&what)),
            Err(ListFault::Failed(error)) => Err(error),
        }
    }

    /// Lists the snapshot again, or what is left of that, and compares. One caller does; the others wait for it as long as
    /// it makes progress. Each page may take as long as a block: the whole is as long as the snapshot is large.
    async fn count_again(&self) -> Result<()> {
        let mut seen = self.state.lock().presence.recount();
        let _one = loop {
            if let Ok(one) = timeout_at(self.client.deadline(), self.recounting.lock()).await {
                break one;
            }
            let now = self.state.lock().presence.recount();
            if now == seen {
                let what = "no second listing before the deadline";
                return Err(self.error(Kind::Unavailable, what));
            }
            seen = now;
        };
        loop {
            let call = SnapshotListCall {
                map: self,
                max: RECOUNT_PAGE,
                deadline: self.client.deadline(),
            };
            let at = {
                let state = self.state.lock();
                match (&state.corrupt, state.presence.recount()) {
                    (Some(error), _) => return Err(error.clone()),
                    (None, None) => return Ok(()),
                    (None, Some(at)) => at,
                }
            };
            let anchored = at.0 > 0;
            let start = BlockIndex(at.0 - u32::from(anchored));
            let cursor = PageCursor::new(start.0, anchored);
            let Some(page) = self.page(&call, cursor).await? else {
                return Ok(());
            };
            self.merge(start, &page)?;
            let agreed = {
                let mut state = self.state.lock();
                state.presence.counted_again(page.end, page.more)
            };
            match agreed {
                Ok(None) => {}
                Ok(Some(what)) => self.client.notice(format!("{}: {what}", self.snapshot)),
                Err(what) => return Err(self.poison(&what)),
            }
        }
    }

    fn learn_geometry(&self, volume_size: Option<u64>) -> Result<()> {
        let Some(size) = volume_size else {
            return Ok(());
        };
        let listed = Geometry::new(size)?;
        let learnt = self.state.lock().presence.learn_geometry(listed);
        learnt.map_err(|what| self.poison(&what))
    }

    /// Adds what a page proves, if it agrees with what is known.
    fn merge(&self, start: BlockIndex, page: &ListedPage<Token>) -> Result<()> {
        let Some(span) = Extent::new(start, BlockIndex(page.end)) else {
            return Ok(());
        };
        let blocks = page.blocks.iter().map(|(index, _)| *index);
        let (added, bytes) = {
            let mut state = self.state.lock();
            state.was_listed = true;
            let added = state.presence.add(span, blocks);
            (added, state.presence.memory())
        };
        let state = Arc::downgrade(&self.state);
        self.memory.charge(self.number, bytes, state);
        match added {
            Ok(None) => Ok(()),
            Ok(Some(CountNotice::Unusable(what))) => {
                self.client.notice(format!("{}: {what}", self.snapshot));
                Ok(())
            }
            Ok(Some(CountNotice::Short(what))) => {
                warn!("{}: {what}", self.snapshot);
                Ok(())
            }
            Err(what) => Err(self.poison(&what)),
        }
    }

    fn error(&self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("{}: {what}", self.snapshot))
    }

    /// From now on every answer is this error: the listings cannot be trusted.
    fn poison(&self, what: &str) -> Error {
        let error = self.error(
            Kind::Corrupt,
            &format!("the listing contradicts itself: {what}"),
        );
        tracing::error!("{error}");
        let mut state = self.state.lock();
        // The listed entries cannot be trusted any more.
        state.presence.forget();
        state.corrupt.get_or_insert(error).clone()
    }
}

impl Tokens for BlockMap {
    async fn token(&self, index: BlockIndex, deadline: Instant) -> Result<Option<Token>> {
        loop {
            match self.lookup(index)? {
                Lookup::Hole => return Ok(None),
                Lookup::Held(token) => return Ok(Some(token)),
                Lookup::Unlisted => self.list(index, deadline).await?,
            }
        }
    }

    fn forget(&self, index: BlockIndex, token: &Token) {
        let mut state = self.state.lock();
        if let Some(asked) = self.index.refuse(index, token) {
            self.index.remove(index);
            state.again = Some((index, asked));
        }
    }
}

/// How to learn about a block that is not listed.
enum Plan<'a> {
    /// A listing in flight probably covers it.
    Wait(ListingWaiter),
    /// List from `start`, `max` blocks.
    List {
        start: BlockIndex,
        /// Whether `start` is held, and so must come again.
        anchored: bool,
        /// Whether the listing before ended right before `start`.
        confirms: bool,
        max: u16,
        guard: ListingGuard<'a>,
    },
}

/// ListSnapshotBlocks of the map's snapshot.
struct SnapshotListCall<'a> {
    map: &'a BlockMap,
    max: u16,
    deadline: Instant,
}

impl ListCall for SnapshotListCall<'_> {
    type Item = Token;

    async fn list(&self, from: &ListFrom) -> std::result::Result<ListReply<Token>, CallFailure> {
        let map = self.map;
        loop {
            let listed = map
                .client
                .list_snapshot(&map.snapshot, from, self.max, self.deadline);
            match listed.await {
                Err(CallFailure::Final(error))
                    if error.kind() == Kind::NotFound
                        && map.exists
                        && !map.state.lock().was_listed
                        && Instant::now() + VISIBLE_AGAIN < self.deadline =>
                {
                    warn!("waiting until it can be listed: {error}");
                    sleep(VISIBLE_AGAIN).await;
                }
                reply => {
                    let reply = reply?;
                    map.learn_geometry(reply.volume_size)
                        .map_err(CallFailure::Final)?;
                    return Ok(reply);
                }
            }
        }
    }

    fn end(&self) -> Option<u32> {
        let geometry = self.map.state.lock().presence.geometry();
        geometry.map(Geometry::block_count)
    }
}
