//! Which blocks a snapshot holds, and their tokens: listed on demand around what is read, never the whole snapshot first.
//!
//! # Absence is a claim
//! A block that is not listed reads as zeroes: the one silent way to corrupt. So a block counts as a hole only inside a
//! range that an unbroken chain of pages covers: from the index that was asked for to the last block of the reply, or to
//! the end of the volume when there is no next page; see [`super::walk`]. Whatever contradicts what was listed before makes the
//! map corrupt for good, and so does a whole listing whose count is not `FullSnapshotSizeInBytes`.
//!
//! # Memory
//! Presence is two [`BlockSet`]s, at most 16 MiB for 64 TiB (where all is known, the set of what is known takes nothing).
//! Tokens are in [`Pages`], bounded for all snapshots together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::client::{Client, Failure, From, Listing};
use super::pages::{Kept, Page, Pages};
use super::snapshot::Tokens;
use super::walk::{Fault, Landing, Lists, UnderWay, Walk};
use crate::block::{BlockIndex, BlockSet, Extent, Geometry};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;

/// Blocks asked for around an isolated read: the least that the API takes.
const SMALL_PAGE: u16 = 100;
/// Blocks asked for where a listing goes on: the most that the API takes.
const LARGE_PAGE: u16 = 10_000;
/// How far behind what is known a read goes on with it: blocks of one reader are asked for at once, in any order.
const NEAR: u32 = 256;
/// An isolated listing begins at a multiple of this, so that blocks read together find themselves in one.
const ALIGNED: u32 = 16;
/// Beyond so many pages those that were dropped are looked for: as many small pages as are kept.
const MOST_STARTS: usize = 4096;
/// How often a snapshot is listed again when replies do not tell the volume's size.
const SIZE_ATTEMPTS: usize = 8;

/// Pause between tries of a snapshot that EC2 calls completed and the direct APIs do not know yet: seen for a minute.
const VISIBLE_AGAIN: Duration = Duration::from_secs(2);

/// What is known of a snapshot before it is listed, from EC2.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// The volume's size.
    pub(super) geometry: Option<Geometry>,
    /// How many blocks it holds.
    pub(super) held: Option<u64>,
    /// That it exists: a listing that does not find it yet is worth waiting for.
    pub(super) exists: bool,
}

/// Tells the time; a test can tell another.
pub(super) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The map of one snapshot.
pub(super) struct BlockMap {
    snapshot: SnapshotId,
    number: u32,
    client: Arc<Client>,
    pages: Arc<Pages>,
    clock: Clock,
    exists: bool,
    under_way: UnderWay,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    geometry: Option<Geometry>,
    /// Blocks held in all, when EC2 tells.
    expected: Option<u64>,
    /// Blocks of which it is known whether they are held.
    known: BlockSet,
    /// Blocks that are held.
    held: BlockSet,
    /// First block to end of each page in [`Pages`]; some of them may have been dropped there.
    starts: BTreeMap<u32, u32>,
    /// Blocks asked for by the page that a token was last refused or renewed in: the next listing there asks as many.
    again: Option<(BlockIndex, u16)>,
    /// The contradiction found, for good.
    corrupt: Option<Error>,
}

/// What the map says of a block.
#[derive(Debug, PartialEq, Eq)]
enum Lookup {
    Hole,
    Token(String),
    Unlisted,
}

impl BlockMap {
    /// An empty map. What is known is checked against what listings tell.
    pub(super) fn new(
        snapshot: SnapshotId,
        number: u32,
        client: Arc<Client>,
        pages: Arc<Pages>,
        clock: Clock,
        known: Known,
    ) -> Self {
        Self {
            snapshot,
            number,
            client,
            pages,
            clock,
            exists: known.exists,
            under_way: UnderWay::default(),
            state: Mutex::new(State {
                geometry: known.geometry,
                expected: known.held,
                ..State::default()
            }),
        }
    }

    /// The volume's geometry, by a small listing when it is not known yet.
    pub(super) async fn geometry(&self, deadline: Instant) -> Result<Geometry> {
        for _ in 0..SIZE_ATTEMPTS {
            if let Some(geometry) = self.state.lock().geometry {
                return Ok(geometry);
            }
            self.list(BlockIndex(0), deadline).await?;
        }
        self.state.lock().geometry.ok_or_else(|| {
            self.error(
                Kind::Unavailable,
                "the service does not tell the volume's size, and EC2 could not be asked for it",
            )
        })
    }

    /// Whether the block is known to be a hole.
    pub(super) fn is_known_hole(&self, index: BlockIndex) -> bool {
        let state = self.state.lock();
        state.corrupt.is_none() && state.known.contains(index) && !state.held.contains(index)
    }

    /// Whether a block is held, if that is known.
    pub(super) fn is_held(&self, index: BlockIndex) -> Option<bool> {
        let state = self.state.lock();
        state
            .known
            .contains(index)
            .then(|| state.held.contains(index))
    }

    /// The first run of held blocks at or after `from`, as far as it is known; at most to the end of a listing.
    pub(super) async fn next_extent(
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
                // Looked at only as far as the next held block: all that is known may be long.
                let held = state.held.next_in(at).filter(|held| *held < end);
                let before = Extent::new(at, held.unwrap_or(end));
                if before.is_none_or(|before| state.known.covers(before)) {
                    let run = held.map(|start| (start, state.held.next_out(start).min(end)));
                    return Ok(run.and_then(|(start, stop)| Extent::new(start, stop)));
                }
                at = state.known.next_out(at).min(end);
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
        if !state.known.contains(index) {
            return Ok(Lookup::Unlisted);
        }
        if !state.held.contains(index) {
            return Ok(Lookup::Hole);
        }
        let Some(start) = state.page_of(index) else {
            return Ok(Lookup::Unlisted);
        };
        match self
            .pages
            .token((self.number, start), index, (self.clock)())
        {
            Kept::Token(token) => return Ok(Lookup::Token(token)),
            Kept::Old(asked) => state.again = Some((index, asked)),
            Kept::Gone => {}
        }
        state.starts.remove(&start);
        Ok(Lookup::Unlisted)
    }

    /// Lists from `index` on, or waits for a listing on its way that probably covers it.
    async fn list(&self, index: BlockIndex, deadline: Instant) -> Result<()> {
        match self.plan(index) {
            Plan::Wait(mut landed) => {
                // Its end is what is waited for, however it ends: the caller looks again.
                match timeout_at(deadline, landed.changed()).await {
                    Ok(_) => Ok(()),
                    Err(_) => Err(self.error(Kind::Unavailable, "no listing before the deadline")),
                }
            }
            Plan::List {
                start,
                anchored,
                max,
                landing: _landing,
            } => {
                let call = Call {
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
        // A stream is where the page before is still in use. Elsewhere in what was listed long ago a read is isolated.
        let streams = before
            .and_then(|before| state.page_of(before))
            .is_some_and(|start| self.pages.contains((self.number, start)));
        let max = match again {
            Some((_, asked)) => asked,
            None if streams => LARGE_PAGE,
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
        match self.under_way.join(index, || reach) {
            Err(landed) => Plan::Wait(landed),
            Ok(landing) => Plan::List {
                start,
                anchored: state.held.contains(start),
                max,
                landing,
            },
        }
    }

    /// Lists pages from `start` until `index` is covered.
    async fn list_chain(
        &self,
        call: &Call<'_>,
        mut start: BlockIndex,
        mut anchored: bool,
        index: BlockIndex,
    ) -> Result<()> {
        loop {
            let told = match Walk::new(start.0, anchored).page(call).await {
                Ok(Some(told)) => told,
                // Nothing can be covered without knowing where the volume ends: `geometry` asks again.
                Ok(None) => return Ok(()),
                Err(Fault::Contradiction(what)) => return Err(self.poison(&what)),
                Err(Fault::Failed(error)) => return Err(error),
            };
            self.merge(start, told.end, &told.blocks)?;
            let tokens = told.blocks.iter().map(|(index, token)| (*index, &**token));
            let page = Page::new(told.end, call.max, (self.clock)(), told.expiry, tokens);
            self.keep(start.0, page);
            if told.end > index.0 {
                return Ok(());
            }
            // A short page: go on from its last block.
            start = BlockIndex(told.end - 1);
            anchored = true;
        }
    }

    fn learn_geometry(&self, volume_size: Option<u64>) -> Result<()> {
        let Some(size) = volume_size else {
            return Ok(());
        };
        let told = Geometry::new(size)?;
        let known = *self.state.lock().geometry.get_or_insert(told);
        if known == told {
            return Ok(());
        }
        Err(self.poison(&format!(
            "the volume has {} bytes by one account and {size} by another",
            known.size()
        )))
    }

    /// Takes over what a page that covers `start..end` says, if it agrees with what is known.
    fn merge(&self, start: BlockIndex, end: u32, blocks: &[(u32, String)]) -> Result<()> {
        let Some(span) = Extent::new(start, BlockIndex(end)) else {
            return Ok(());
        };
        let mut state = self.state.lock();
        let mut seen_before = 0;
        for (index, _) in blocks {
            let index = BlockIndex(*index);
            if state.held.contains(index) {
                seen_before += 1;
            } else if state.known.contains(index) {
                drop(state);
                return Err(self.poison(&format!("block {index} was a hole and is now held")));
            }
        }
        let held_before = state.held.count_in(span);
        if held_before != seen_before {
            drop(state);
            return Err(self.poison(&format!(
                "{} blocks between {start} and {end} were listed before and are now missing",
                held_before - seen_before
            )));
        }
        state.known.insert_extent(span);
        for (index, _) in blocks {
            state.held.insert(BlockIndex(*index));
        }
        let (held, known) = (state.held.len(), state.known.len());
        let all = state
            .geometry
            .map(|geometry| u64::from(geometry.block_count()));
        // Held are at least what is listed, at most that and all that is not listed yet.
        if let (Some(expected), Some(all)) = (state.expected, all)
            && !(held..=held + all.saturating_sub(known)).contains(&expected)
        {
            drop(state);
            return Err(self.poison(&format!(
                "{held} of {known} blocks are listed as held, EC2 tells {expected} of {all} (FullSnapshotSizeInBytes)"
            )));
        }
        Ok(())
    }

    /// Keeps a page's tokens, in place of pages that it contains, unless a page that is kept contains it.
    fn keep(&self, start: u32, page: Page) {
        let mut state = self.state.lock();
        if let Some((before, end)) = state.starts.range_mut(..start).next_back() {
            if *end >= page.end && self.pages.contains((self.number, *before)) {
                return;
            }
            // A block's page is the nearest one that starts before it: none may reach past the next one's start.
            *end = start.min(*end);
        }
        let within: Vec<u32> = state
            .starts
            .range(start..page.end)
            .filter(|(_, end)| **end <= page.end)
            .map(|(start, _)| *start)
            .collect();
        for old in within {
            state.starts.remove(&old);
            self.pages.remove((self.number, old));
        }
        if state.starts.len() > MOST_STARTS {
            let (pages, number) = (&self.pages, self.number);
            state
                .starts
                .retain(|start, _| pages.contains((number, *start)));
        }
        state.starts.insert(start, page.end);
        self.pages.insert((self.number, start), page);
    }

    fn error(&self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("{}: {what}", self.snapshot))
    }

    /// From now on every answer is this error: what was listed cannot be trusted.
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
    async fn token(&self, index: BlockIndex, deadline: Instant) -> Result<Option<String>> {
        loop {
            match self.lookup(index)? {
                Lookup::Hole => return Ok(None),
                Lookup::Token(token) => return Ok(Some(token)),
                Lookup::Unlisted => self.list(index, deadline).await?,
            }
        }
    }

    fn forget(&self, index: BlockIndex, token: &str) {
        // Not if another page has taken its place.
        let mut state = self.state.lock();
        let Some(start) = state.page_of(index) else {
            return;
        };
        let key = (self.number, start);
        if let Some(asked) = self.pages.forget(key, index, token) {
            state.starts.remove(&start);
            state.again = Some((index, asked));
        }
    }
}

impl State {
    /// The nearest block a little before `index` of which it is known whether it is held.
    fn known_before(&self, index: BlockIndex) -> Option<BlockIndex> {
        (index.0.saturating_sub(NEAR)..index.0)
            .rev()
            .map(BlockIndex)
            .find(|before| self.known.contains(*before))
    }

    /// How many indexes a page of so many blocks probably spans, by how dense the volume has been so far.
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

    /// The start of the page that should speak of a block.
    fn page_of(&self, index: BlockIndex) -> Option<u32> {
        let (start, end) = self.starts.range(..=index.0).next_back()?;
        (index.0 < *end).then_some(*start)
    }
}

/// What to do about a block that is not listed.
enum Plan<'a> {
    /// A listing on its way probably covers it.
    Wait(watch::Receiver<()>),
    /// List from `start`, `max` blocks.
    List {
        start: BlockIndex,
        /// Whether `start` is held, and so must come again.
        anchored: bool,
        max: u16,
        landing: Landing<'a>,
    },
}

/// ListSnapshotBlocks of the map's snapshot.
struct Call<'a> {
    map: &'a BlockMap,
    max: u16,
    deadline: Instant,
}

impl Lists for Call<'_> {
    type Item = String;

    async fn list(&self, from: &From) -> std::result::Result<Listing<String>, Failure> {
        let map = self.map;
        loop {
            let listed = map
                .client
                .list(&map.snapshot, from, self.max, self.deadline);
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
                listed => {
                    let listing = listed?;
                    map.learn_geometry(listing.volume_size)
                        .map_err(Failure::Final)?;
                    return Ok(listing);
                }
            }
        }
    }

    fn end(&self) -> Option<u32> {
        let geometry = self.map.state.lock().geometry;
        geometry.map(Geometry::block_count)
    }
}
