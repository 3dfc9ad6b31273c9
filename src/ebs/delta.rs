//! ListChangedBlocks of two snapshots as a [`Delta`]: exact, listed over several ranges of the volume at once.
//!
//! As with the map of one snapshot ([`super::block_map`]) absence is a claim: within a range each page begins with the last
//! block of the page before, which must come again, and the last page of a range reaches into the next one, where both must
//! say the same. What contradicts itself is corrupt.
//!
//! A written block has tokens in both snapshots or only in the head: its bytes are the head's. A zeroed block has a token
//! only in the base: it reads as zeroes in the head. A program must never copy the base's bytes there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tracing::info;

use super::changed::{Changed, Pair};
use super::pages::{Page, Pages};
use super::walk::{Fault, Told, Walk};
use crate::block::{BlockIndex, Change, Delta};
use crate::error::Result;

/// Ranges listed at once: as many as there may be list calls on their way.
const RANGES: u32 = 8;
/// Pages that a range must be worth: its last one brings blocks of the next range a second time.
const PAGES_A_RANGE: u32 = 4;
/// One line in this time says how far a long listing is.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// One listing of what differs between two snapshots. It keeps what it has listed: dropped half way, it goes on from there.
#[derive(Debug)]
pub(super) struct Listing {
    pair: Arc<Pair>,
    pages: Arc<Pages>,
    first: Way,
    state: Mutex<State>,
}

/// The walk to a page that is being listed, kept when nobody waits for it any more.
type Way = Arc<AsyncMutex<Option<Walk<Option<String>>>>>;

#[derive(Debug)]
struct State {
    delta: Delta,
    /// First block to end of each page, the whole volume in the end.
    starts: BTreeMap<u32, u32>,
    /// What is left to list; empty before the first page.
    ranges: Vec<Range>,
    logged: Instant,
}

/// A part of the volume, listed from its start on.
#[derive(Clone, Debug)]
struct Range {
    /// The next block to list.
    at: u32,
    /// Whether the block before it is listed as changed, and so must come again.
    anchored: bool,
    stop: u32,
    way: Way,
    /// What the last page said of what comes after `stop`, once that is reached.
    beyond: Option<Beyond>,
}

/// The changes between `stop` and `end`, by one range's last page.
#[derive(Clone, Debug)]
struct Beyond {
    blocks: Vec<(u32, Change)>,
    end: u32,
}

impl Listing {
    /// The listing of a pair. Its tokens are kept in `pages`.
    pub(super) fn new(pair: Arc<Pair>, pages: Arc<Pages>) -> Self {
        let state = Mutex::new(State::new(&pair));
        Self {
            pair,
            pages,
            first: Way::default(),
            state,
        }
    }

    /// Lists it all, or what is left of it, and gives it away: the delta, and its tokens. Dropping the future stops it.
    pub(super) async fn run(&self) -> Result<(Arc<Delta>, Changed)> {
        match self.list().await.and_then(|()| self.agree()) {
            Ok(()) => {}
            Err(Fault::Failed(error)) => return Err(error),
            Err(Fault::Contradiction(what)) => {
                // What contradicts itself is not gone on from.
                *self.state.lock() = State::new(&self.pair);
                return Err(self.pair.corrupt(&what));
            }
        }
        let mut state = std::mem::replace(&mut *self.state.lock(), State::new(&self.pair));
        state.delta.zero_what_grew();
        let delta = Arc::new(state.delta);
        let (pair, pages) = (Arc::clone(&self.pair), Arc::clone(&self.pages));
        let changed = Changed::new(pair, pages, Arc::clone(&delta), state.starts);
        Ok((delta, changed))
    }

    async fn list(&self) -> std::result::Result<(), Fault> {
        if self.state.lock().ranges.is_empty() {
            let first = self.page(&self.first, 0, false).await?;
            let ranges = self.divide(&first);
            let mut state = self.state.lock();
            self.keep(&mut state, 0, first.end.min(self.end()), &first);
            state.ranges = ranges;
        }
        let count = self.state.lock().ranges.len();
        try_join_all((0..count).map(|number| self.range(number))).await?;
        Ok(())
    }

    /// Where what counts ends: what the base has beyond the head is cut off.
    fn end(&self) -> u32 {
        self.pair.head_size.block_count()
    }

    /// What comes after the first page, in as many ranges as it is worth.
    fn divide(&self, first: &Told<Option<String>>) -> Vec<Range> {
        let end = self.end();
        let left = u64::from(end.saturating_sub(first.end));
        let page = u64::from(first.end) * u64::from(Pair::PAGE);
        let pages = left * first.blocks.len() as u64 / page.max(1);
        let ranges = u32::try_from(pages).unwrap_or(u32::MAX) / PAGES_A_RANGE;
        let ranges = ranges.clamp(1, RANGES);
        let width = end.saturating_sub(first.end).div_ceil(ranges).max(1);
        (0..ranges)
            .map(|number| {
                let start = first.end.saturating_add(number.saturating_mul(width));
                Range {
                    at: start.min(end),
                    // The first range goes on where the first page ended.
                    anchored: number == 0 && first.more,
                    stop: start.saturating_add(width).min(end),
                    way: Way::default(),
                    beyond: None,
                }
            })
            .filter(|range| range.at < range.stop)
            .collect()
    }

    /// Lists a range from where it is to its end.
    async fn range(&self, number: usize) -> std::result::Result<(), Fault> {
        loop {
            let range = self.state.lock().ranges.get(number).cloned();
            let Some(range) = range.filter(|range| range.beyond.is_none()) else {
                return Ok(());
            };
            let from = range.at - u32::from(range.anchored);
            let mut page = self.page(&range.way, from, range.anchored).await?;
            if range.anchored {
                page.blocks.remove(0);
            }
            let within = page
                .blocks
                .partition_point(|(index, _)| *index < range.stop);
            let beyond = page.blocks.split_off(within);
            let end = page.end.min(range.stop);
            let mut state = self.state.lock();
            self.keep(&mut state, range.at, end, &page);
            let Some(range) = state.ranges.get_mut(number) else {
                return Ok(());
            };
            (range.at, range.anchored) = (end, true);
            // A page that ends where the next range begins says nothing of it yet: one more must, with its anchor.
            let nothing_follows = !page.more || (end == range.stop && end == self.end());
            if page.end > range.stop || nothing_follows {
                range.beyond = Some(Beyond {
                    blocks: beyond
                        .iter()
                        .map(|(index, token)| (*index, change(token)))
                        .collect(),
                    end: page.end,
                });
            }
        }
    }

    async fn page(
        &self,
        way: &Way,
        start: u32,
        anchored: bool,
    ) -> std::result::Result<Told<Option<String>>, Fault> {
        let call = self.pair.call(None);
        let mut way = way.lock().await;
        let walk = way.get_or_insert_with(|| Walk::new(start, anchored));
        let told = walk.page(&call).await;
        // Gone on with only if nobody waited for it; what failed begins anew.
        *way = None;
        told?.ok_or_else(|| Fault::Contradiction("no volume".into()))
    }

    /// Takes over what a page says of `start..end`, and its tokens.
    fn keep(&self, state: &mut State, start: u32, end: u32, page: &Told<Option<String>>) {
        for (index, token) in &page.blocks {
            state.delta.insert(BlockIndex(*index), change(token));
        }
        if start >= end {
            return;
        }
        state.starts.insert(start, end);
        self.pages.insert(
            (self.pair.number, start),
            Page::new(
                end,
                Pair::PAGE,
                SystemTime::now(),
                page.expiry,
                tokens(&page.blocks),
            ),
        );
        if state.logged.elapsed() >= LOG_EVERY {
            state.logged = Instant::now();
            let listed = state.delta.write().len() + state.delta.zero().len();
            let done: u32 = state.starts.iter().map(|(start, end)| end - start).sum();
            info!(
                "{}: {:.1} % of the volume listed, {listed} changed blocks so far",
                self.pair,
                f64::from(done) * 100.0 / f64::from(self.end())
            );
        }
    }

    /// Where a range reached into the next ones both must say the same.
    fn agree(&self) -> std::result::Result<(), Fault> {
        let state = self.state.lock();
        let delta = &state.delta;
        let differ = |index: u32| {
            Err(Fault::Contradiction(format!(
                "two pages differ from block {index} on"
            )))
        };
        for range in &state.ranges {
            let Some(beyond) = &range.beyond else {
                continue;
            };
            let next = |at: u32| {
                let run = delta.next_run(BlockIndex(at));
                run.map(|(run, change)| (run.start().0, change))
            };
            let mut at = range.stop;
            for (index, change) in &beyond.blocks {
                let is_beyond_head = *index >= delta.head().block_count();
                if next(at) != Some((*index, *change)) && !is_beyond_head {
                    return differ(*index);
                }
                at = index + 1;
            }
            if next(at).is_some_and(|(index, _)| index < beyond.end) {
                return differ(at);
            }
        }
        Ok(())
    }
}

impl State {
    fn new(pair: &Pair) -> Self {
        Self {
            delta: Delta::new(Some(pair.base_size), pair.head_size),
            starts: BTreeMap::new(),
            ranges: Vec::new(),
            logged: Instant::now(),
        }
    }
}

/// What a token in the head, or none, says of a block.
pub(super) fn change(token: &Option<String>) -> Change {
    if token.is_some() {
        Change::Write
    } else {
        Change::Zero
    }
}

/// The tokens of those that have one.
pub(super) fn tokens(blocks: &[(u32, Option<String>)]) -> impl Iterator<Item = (u32, &str)> {
    blocks
        .iter()
        .filter_map(|(index, token)| Some((*index, token.as_deref()?)))
}
