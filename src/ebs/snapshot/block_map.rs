//! Which blocks a snapshot holds, and their tokens: listed on demand around what is read, never the whole snapshot first.
//!
//! Absence is a claim (see [`crate::ebs::listing`]): a block counts as a hole only where a page covers it. Whatever contradicts
//! what was listed before makes the map corrupt for good.
//!
//! # Counts
//! Where EC2 states how many blocks the snapshot holds (`FullSnapshotSizeInBytes`) the map checks it. Fewer listed blocks
//! than that are suspicious: the map lists the whole snapshot once more, in other pages, before it answers for another hole.
//! The same list twice means that EC2's number does not hold for this snapshot (no source states that it must), another list means
//! corruption. More listed blocks than stated, or a stated 0, protect nothing: one warning.
//!
//! # Memory
//! Presence is two [`BlockSet`]s, at most 16 MiB for 64 TiB. Tokens are bounded for all snapshots together.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::Tokens;
use crate::block::{BlockIndex, BlockSet, Extent, Geometry};
use crate::ebs::client::{Client, Failure};
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
/// A read this close behind a listed block continues that listing: a reader asks for several blocks at once, in any order.
const NEAR: u32 = 256;
/// An isolated listing starts at a multiple of this, so that blocks that are read together share it.
const ALIGNED: u32 = 16;
/// How often a snapshot is listed again while replies leave out the volume's size.
const SIZE_ATTEMPTS: usize = 8;
/// Pause between requests for a snapshot that EC2 calls completed and the direct APIs do not know yet: seen for a minute.
const VISIBLE_AGAIN: Duration = Duration::from_secs(2);

/// What EC2 states of a snapshot before it is listed.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::ebs) struct StatedFacts {
    /// The volume's size.
    pub(in crate::ebs) geometry: Option<Geometry>,
    /// How many blocks it holds.
    pub(in crate::ebs) held: Option<u64>,
    /// That it exists: the client waits for a listing that does not find it yet.
    pub(in crate::ebs) exists: bool,
}

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
    state: Mutex<MapState>,
}

#[derive(Default)]
struct MapState {
    geometry: Option<Geometry>,
    /// Blocks held in all, where EC2 states it and the map still believes it.
    expected: Option<u64>,
    /// Where the second count is, while the first one disagrees with `expected`.
    recount: Option<BlockIndex>,
    /// Blocks whose presence is known.
    known: BlockSet,
    /// Blocks that are held.
    held: BlockSet,
    /// Where a token was last refused or expired, and how many blocks that page had asked for: the next listing there asks for
    /// as many.
    again: Option<(BlockIndex, u16)>,
    /// The contradiction found, for good.
    corrupt: Option<Error>,
}

/// What the map says of a block.
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
    ) -> Self {
        Self {
            snapshot,
            client,
            index,
            clock,
            exists: stated.exists,
            in_flight: ListingsInFlight::default(),
            recounting: AsyncMutex::default(),
            state: Mutex::new(MapState {
                geometry: stated.geometry,
                expected: stated.held,
                ..MapState::default()
            }),
        }
    }

    /// The volume's geometry, by a small listing when it is not known yet.
    pub(in crate::ebs) async fn geometry(&self, deadline: Instant) -> Result<Geometry> {
        for _ in 0..SIZE_ATTEMPTS {
            if let Some(geometry) = self.state.lock().geometry {
                return Ok(geometry);
            }
            self.list(BlockIndex(0), deadline).await?;
        }
        self.state.lock().geometry.ok_or_else(|| {
            self.error(
                Kind::Unavailable,
                "the service does not state the volume's size, and EC2 could not be asked for it",
            )
        })
    }

    /// Whether the block is known to be a hole.
    pub(in crate::ebs) fn is_known_hole(&self, index: BlockIndex) -> bool {
        let state = self.state.lock();
        state.is_hole(index) == Some(true)
    }

    /// Whether a block is held, if that is known.
    pub(in crate::ebs) fn is_held(&self, index: BlockIndex) -> Option<bool> {
        let state = self.state.lock();
        state
            .known
            .contains(index)
            .then(|| state.held.contains(index))
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
                // Only as far as the next held block: all that is known may be long.
                let held = state.held.next_in(at).filter(|held| *held < end);
                let before = Extent::new(at, held.unwrap_or(end));
                let is_hole = |before| state.recount.is_none() && state.known.covers(before);
                if before.is_none_or(is_hole) {
                    let run = held.map(|start| (start, state.held.next_out(start).min(end)));
                    return Ok(run.and_then(|(start, stop)| Extent::new(start, stop)));
                }
                if state.recount.is_none() {
                    at = state.known.next_out(at).min(end);
                }
            }
            if at >= end {
                return Ok(None);
            }
            self.list(at, deadline).await?;
        }
    }

    fn lookup(&self, index: BlockIndex) -> Result<Lookup> {
        let mut state = self.state.lock();
        if let Some(error) = &state.corrupt {
            return Err(error.clone());
        }
        match state.is_hole(index) {
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
        if self.state.lock().recount.is_some() {
            return self.count_again(deadline).await;
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
                guard: _guard,
            } => {
                let call = SnapshotListCall {
                    map: self,
                    max,
                    deadline,
                };
                self.list_chain(&call, start, anchored, index).await
            }
        }
    }

    fn plan(&self, index: BlockIndex) -> Plan<'_> {
        let mut state = self.state.lock();
        let again = state.again.take_if(|(at, _)| *at == index);
        let before = state.known_before(index);
        // A sequential read is where the tokens of the page before are still kept. Elsewhere a read is isolated.
        let continues = before.is_some_and(|before| self.index.is_kept(before));
        let max = match again {
            Some((_, asked)) => asked,
            None if continues => LARGE_PAGE,
            None => SMALL_PAGE,
        };
        let start = match before {
            // The last block before must come again.
            Some(before) if state.held.contains(before) => before,
            Some(before) => BlockIndex(before.0 + 1),
            None => BlockIndex(index.0 - index.0 % ALIGNED),
        };
        let reach = BlockIndex(start.0.saturating_add(state.probable_reach(max)));
        // Never empty: a page has room for a hundred blocks.
        let reach = Extent::new(start, reach).unwrap_or(Extent::of(start));
        match self.in_flight.join(index, || reach) {
            Err(listing) => Plan::Wait(listing),
            Ok(guard) => Plan::List {
                start,
                anchored: state.held.contains(start),
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
        index: BlockIndex,
    ) -> Result<()> {
        loop {
            let Some(page) = self.page(call, start, anchored).await? else {
                // Nothing is covered while the volume's end is unknown: `geometry` asks again.
                return Ok(());
            };
            self.merge(start, &page)?;
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
            anchored = true;
        }
    }

    async fn page(
        &self,
        call: &SnapshotListCall<'_>,
        start: BlockIndex,
        anchored: bool,
    ) -> Result<Option<ListedPage<Token>>> {
        match PageCursor::new(start.0, anchored).page(call).await {
            Ok(page) => Ok(page),
            Err(ListFault::Contradiction(what)) => Err(self.poison(&what)),
            Err(ListFault::Failed(error)) => Err(error),
        }
    }

    /// Lists the snapshot once more, or what is left of that, and compares. One caller does; the others wait for it.
    async fn count_again(&self, deadline: Instant) -> Result<()> {
        let late = |_| self.error(Kind::Unavailable, "no second listing before the deadline");
        let _one = timeout_at(deadline, self.recounting.lock())
            .await
            .map_err(late)?;
        let call = SnapshotListCall {
            map: self,
            max: RECOUNT_PAGE,
            deadline,
        };
        loop {
            let at = {
                let state = self.state.lock();
                match (&state.corrupt, state.recount) {
                    (Some(error), _) => return Err(error.clone()),
                    (None, None) => return Ok(()),
                    (None, Some(at)) => at,
                }
            };
            let anchored = at.0 > 0;
            let start = BlockIndex(at.0 - u32::from(anchored));
            let Some(page) = self.page(&call, start, anchored).await? else {
                return Ok(());
            };
            self.merge(start, &page)?;
            let mut state = self.state.lock();
            if page.more {
                state.recount = Some(BlockIndex(page.end));
                continue;
            }
            state.recount = None;
            let Some(expected) = state.expected.take() else {
                return Ok(());
            };
            let held = state.held.len();
            drop(state);
            self.client.notice(format!(
                "{}: two listings agree on {held} blocks, EC2 states {expected} (FullSnapshotSizeInBytes): going by the listings",
                self.snapshot
            ));
            return Ok(());
        }
    }

    fn learn_geometry(&self, volume_size: Option<u64>) -> Result<()> {
        let Some(size) = volume_size else {
            return Ok(());
        };
        let listed = Geometry::new(size)?;
        let known = *self.state.lock().geometry.get_or_insert(listed);
        if known == listed {
            return Ok(());
        }
        Err(self.poison(&format!(
            "the volume has {} bytes by one reply and {size} by another",
            known.size()
        )))
    }

    /// Adds what a page proves, if it agrees with what is known.
    fn merge(&self, start: BlockIndex, page: &ListedPage<Token>) -> Result<()> {
        let Some(span) = Extent::new(start, BlockIndex(page.end)) else {
            return Ok(());
        };
        let mut state = self.state.lock();
        let mut seen_before = 0;
        for (index, _) in &page.blocks {
            if state.held.contains(*index) {
                seen_before += 1;
            } else if state.known.contains(*index) {
                drop(state);
                return Err(self.poison(&format!("block {index} was a hole and is now held")));
            }
        }
        let held_before = state.held.count_in(span);
        if held_before != seen_before {
            drop(state);
            return Err(self.poison(&format!(
                "{} blocks between {start} and {} were listed before and are now missing",
                held_before - seen_before,
                page.end
            )));
        }
        state.known.insert_extent(span);
        for (index, _) in &page.blocks {
            state.held.insert(*index);
        }
        let (Some(expected), Some(geometry)) = (state.expected, state.geometry) else {
            return Ok(());
        };
        let held = state.held.len();
        let unknown = u64::from(geometry.block_count()).saturating_sub(state.known.len());
        match check_count(held, unknown, expected) {
            Count::Possible => {}
            Count::Unusable => {
                state.expected = None;
                drop(state);
                self.client.notice(format!(
                    "{}: {held} blocks are listed, EC2 states {expected} (FullSnapshotSizeInBytes), which is not usable: going by the listing",
                    self.snapshot
                ));
            }
            Count::Short if state.recount.is_none() => {
                state.recount = Some(BlockIndex(0));
                warn!(
                    "{}: {held} blocks are listed, EC2 states {expected} (FullSnapshotSizeInBytes): listing it once more",
                    self.snapshot
                );
            }
            Count::Short => {}
        }
        Ok(())
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
        self.state.lock().corrupt.get_or_insert(error).clone()
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

/// What a count of listed blocks says of the number that EC2 states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// The blocks that are not listed yet can make up the difference.
    Possible,
    /// It protects nothing: 0 is stated for unknown, or more blocks are listed than stated.
    Unusable,
    /// Fewer blocks are listed than stated: some may be missing.
    Short,
}

/// `held` blocks are listed, of `unknown` ones the presence is not known, EC2 states `expected`.
fn check_count(held: u64, unknown: u64, expected: u64) -> Count {
    if held > expected {
        Count::Unusable
    } else if held + unknown < expected {
        Count::Short
    } else {
        Count::Possible
    }
}

impl MapState {
    /// Whether a block is a hole, if that is known. No hole is believed while a second count is due.
    fn is_hole(&self, index: BlockIndex) -> Option<bool> {
        if self.corrupt.is_some() || !self.known.contains(index) {
            return None;
        }
        let is_held = self.held.contains(index);
        (is_held || self.recount.is_none()).then_some(!is_held)
    }

    /// The nearest block a little before `index` whose presence is known.
    fn known_before(&self, index: BlockIndex) -> Option<BlockIndex> {
        (index.0.saturating_sub(NEAR)..index.0)
            .rev()
            .map(BlockIndex)
            .find(|before| self.known.contains(*before))
    }

    /// How many indexes a page of this many blocks probably spans, by the density so far.
    fn probable_reach(&self, blocks: u16) -> u32 {
        let all = self
            .geometry
            .map(|geometry| u64::from(geometry.block_count()));
        let (span, held) = match (self.held.len(), all, self.expected) {
            (0, Some(all), Some(held)) => (all, held),
            (held, ..) => (self.known.len(), held),
        };
        let reach = u64::from(blocks).saturating_mul(span.max(held)) / held.max(1);
        u32::try_from(reach.max(blocks.into())).unwrap_or(u32::MAX)
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

    async fn list(&self, from: &ListFrom) -> std::result::Result<ListReply<Token>, Failure> {
        let map = self.map;
        loop {
            let listed = map
                .client
                .list_snapshot(&map.snapshot, from, self.max, self.deadline);
            match listed.await {
                Err(Failure::Final(error))
                    if error.kind() == Kind::NotFound
                        && map.exists
                        && map.state.lock().known.is_empty()
                        && Instant::now() + VISIBLE_AGAIN < self.deadline =>
                {
                    warn!("waiting until it can be listed: {error}");
                    sleep(VISIBLE_AGAIN).await;
                }
                reply => {
                    let reply = reply?;
                    map.learn_geometry(reply.volume_size)
                        .map_err(Failure::Final)?;
                    return Ok(reply);
                }
            }
        }
    }

    fn end(&self) -> Option<u32> {
        let geometry = self.map.state.lock().geometry;
        geometry.map(Geometry::block_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fewer_blocks_than_stated_are_suspicious() {
        for (held, unknown, expected, count) in [
            (0, 0, 0, Count::Possible),
            (5, 10, 5, Count::Possible),
            (5, 10, 15, Count::Possible),
            (5, 10, 16, Count::Short),
            (5, 0, 6, Count::Short),
            (0, 0, 6, Count::Short),
            (6, 10, 5, Count::Unusable),
            (1, 10, 0, Count::Unusable),
        ] {
            assert_eq!(
                check_count(held, unknown, expected),
                count,
                "{held} {unknown} {expected}"
            );
        }
    }
}
