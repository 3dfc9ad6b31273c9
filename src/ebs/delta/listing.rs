//! ListChangedBlocks of two snapshots as a [`Delta`]: exact, listed over several ranges of the volume at once.
//!
//! Absence is a claim (see [`crate::ebs::listing`]): within a range each page begins with the last block of the page before,
//! which must come again; the last page of a range reaches into the next one, where both must list the same.
//!
//! A written block has tokens in both snapshots or only in the head: its bytes are the head's. A zeroed block has a token
//! only in the base: it reads as zeroes in the head. A program must never copy the base's bytes there.
//!
//! # Counts
//! Blocks that only the head holds, minus blocks that only the base holds, must be what the head holds more than the base by
//! the numbers that EC2 states (`FullSnapshotSizeInBytes`); rewritten blocks cancel out. Where they are not, the delta is listed
//! again in other pages and ranges. The same delta twice means that EC2's numbers do not hold here: one warning. Another delta
//! means corruption.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::source::Pair;
use crate::block::{BlockIndex, Change, Delta, Extent};
use crate::ebs::listing::cursor::{ListFault, ListedPage, PageCursor};
use crate::ebs::listing::token_index::TokenIndex;
use crate::ebs::listing::token_pages::{TokenPage, TokenPages};
use crate::ebs::listing::{ChangedBlock, Token};
use crate::error::Result;

/// Ranges listed at once: as many as the client has list requests in flight.
const RANGES: u32 = 8;
/// The least pages of a range: its last one lists blocks of the next range a second time.
const PAGES_A_RANGE: u32 = 4;
/// Blocks that a request of the second count asks for, and its ranges: its pages end elsewhere.
const RECOUNT_PAGE: u16 = 7_919;
const RECOUNT_RANGES: u32 = 7;
/// Time between log lines on the progress of a long listing.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// One listing of what differs between two snapshots. It keeps what it has listed: when its future is dropped, the next
/// one continues.
#[derive(Debug)]
pub(in crate::ebs) struct DeltaListing {
    pair: Arc<Pair>,
    pages: Arc<TokenPages>,
    first: SharedCursor,
    state: Mutex<DeltaListingState>,
}

/// The cursor of a page that is being listed; another caller continues it when the first one is dropped.
type SharedCursor = Arc<AsyncMutex<Option<PageCursor<ChangedBlock>>>>;

/// A delta whose listing is complete.
#[derive(Debug)]
pub(in crate::ebs) struct ListedDelta {
    pub(in crate::ebs) delta: Arc<Delta>,
    /// The tokens of its written blocks.
    pub(in crate::ebs) index: TokenIndex,
    /// Whether EC2 states another count of blocks.
    pub(in crate::ebs) is_disputed: bool,
}

/// A delta as listed so far.
#[derive(Debug)]
struct Listed {
    delta: Delta,
    /// Its pages, the whole volume in the end.
    index: TokenIndex,
    /// Blocks that only the head holds.
    gained: u64,
    /// Blocks that only the base holds.
    lost: u64,
}

#[derive(Debug)]
struct DeltaListingState {
    listed: Listed,
    /// What is left to list; empty before the first page.
    ranges: Vec<Range>,
    /// The first count, while a second one is under way.
    first_count: Option<Listed>,
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
    cursor: SharedCursor,
    /// What the last page lists after `stop`, once that is reached.
    beyond: Option<RangeOverlap>,
}

/// The changes between `stop` and `end`, by one range's last page.
#[derive(Clone, Debug)]
struct RangeOverlap {
    blocks: Vec<(BlockIndex, Change)>,
    end: u32,
}

impl DeltaListing {
    /// The listing of a pair. Its tokens are kept in `pages`.
    pub(in crate::ebs) fn new(pair: Arc<Pair>, pages: Arc<TokenPages>) -> Self {
        let state = Mutex::new(DeltaListingState::new(&pair, &pages));
        Self {
            pair,
            pages,
            first: SharedCursor::default(),
            state,
        }
    }

    /// Lists the delta, or what is left of it.
    pub(in crate::ebs) async fn run(&self) -> Result<ListedDelta> {
        let mut is_disputed = false;
        loop {
            match self.list().await.and_then(|()| self.agree()) {
                Ok(()) => {}
                Err(ListFault::Failed(error)) => return Err(error),
                Err(ListFault::Contradiction(what)) => {
                    self.take_state();
                    return Err(self.pair.corrupt(&what));
                }
            }
            let state = self.take_state();
            let (gained, lost) = (state.listed.gained, state.listed.lost);
            let counted = gained.cast_signed() - lost.cast_signed();
            match (self.pair.stated_growth, state.first_count) {
                (Some(stated), None) if counted != stated => {
                    warn!(
                        "{}: {gained} blocks gained and {lost} lost are listed, EC2 states a difference of {stated} \
                         (FullSnapshotSizeInBytes): listing it once more",
                        self.pair
                    );
                    self.state.lock().first_count = Some(state.listed);
                    continue;
                }
                (_, Some(first)) if !first.is_same(&state.listed) => {
                    let what = "two listings of it differ, and EC2 states another count of blocks";
                    return Err(self.pair.corrupt(what));
                }
                // EC2's number is never wrong by all blocks, but a broken service lists none.
                (Some(stated), Some(_)) if counted != stated && state.listed.is_empty() => {
                    let what = format!(
                        "no changed block is listed, EC2 states a difference of {stated} (FullSnapshotSizeInBytes)"
                    );
                    return Err(self.pair.corrupt(&what));
                }
                (Some(stated), Some(_)) if counted != stated => {
                    self.pair.client.notice(format!(
                        "{}: two listings agree on {gained} blocks gained and {lost} lost, EC2 states a difference of {stated} \
                         (FullSnapshotSizeInBytes): going by the listings",
                        self.pair
                    ));
                    is_disputed = true;
                }
                _ => {}
            }
            let Listed {
                mut delta, index, ..
            } = state.listed;
            delta.zero_what_grew();
            return Ok(ListedDelta {
                delta: Arc::new(delta),
                index,
                is_disputed,
            });
        }
    }

    /// The state, which begins again.
    fn take_state(&self) -> DeltaListingState {
        let new = DeltaListingState::new(&self.pair, &self.pages);
        std::mem::replace(&mut *self.state.lock(), new)
    }

    /// Whether this is the second count.
    fn is_recount(&self) -> bool {
        self.state.lock().first_count.is_some()
    }

    async fn list(&self) -> std::result::Result<(), ListFault> {
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

    /// The end of the head: what the base has beyond it is cut off.
    fn end(&self) -> u32 {
        self.pair.head_size.block_count()
    }

    /// The rest after the first page, in as many ranges as have enough pages.
    fn divide(&self, first: &ListedPage<ChangedBlock>) -> Vec<Range> {
        let end = self.end();
        let left = u64::from(end.saturating_sub(first.end));
        let page = u64::from(first.end) * u64::from(Pair::PAGE);
        let pages = left * first.blocks.len() as u64 / page.max(1);
        let ranges = u32::try_from(pages).unwrap_or(u32::MAX) / PAGES_A_RANGE;
        let ranges = ranges.clamp(
            1,
            if self.is_recount() {
                RECOUNT_RANGES
            } else {
                RANGES
            },
        );
        let width = end.saturating_sub(first.end).div_ceil(ranges).max(1);
        (0..ranges)
            .map(|number| {
                let start = first.end.saturating_add(number.saturating_mul(width));
                Range {
                    at: start.min(end),
                    // The first range continues where the first page ended.
                    anchored: number == 0 && first.more,
                    stop: start.saturating_add(width).min(end),
                    cursor: SharedCursor::default(),
                    beyond: None,
                }
            })
            .filter(|range| range.at < range.stop)
            .collect()
    }

    /// Lists a range from where it is to its end.
    async fn range(&self, number: usize) -> std::result::Result<(), ListFault> {
        loop {
            let range = self.state.lock().ranges.get(number).cloned();
            let Some(range) = range.filter(|range| range.beyond.is_none()) else {
                return Ok(());
            };
            let from = range.at - u32::from(range.anchored);
            let mut page = self.page(&range.cursor, from, range.anchored).await?;
            if range.anchored {
                page.blocks.remove(0);
            }
            let within = page
                .blocks
                .partition_point(|(index, _)| index.0 < range.stop);
            let beyond = page.blocks.split_off(within);
            let end = page.end.min(range.stop);
            let mut state = self.state.lock();
            self.keep(&mut state, range.at, end, &page);
            let Some(range) = state.ranges.get_mut(number) else {
                return Ok(());
            };
            (range.at, range.anchored) = (end, true);
            // A page that ends where the next range begins does not overlap it yet: one more page must, with its anchor.
            let nothing_follows = !page.more || (end == range.stop && end == self.end());
            if page.end > range.stop || nothing_follows {
                range.beyond = Some(RangeOverlap {
                    blocks: beyond
                        .iter()
                        .map(|(index, block)| (*index, change(block)))
                        .collect(),
                    end: page.end,
                });
            }
        }
    }

    async fn page(
        &self,
        cursor: &SharedCursor,
        start: u32,
        anchored: bool,
    ) -> std::result::Result<ListedPage<ChangedBlock>, ListFault> {
        let max = if self.is_recount() {
            RECOUNT_PAGE
        } else {
            Pair::PAGE
        };
        let call = self.pair.call(max, None);
        let mut cursor = cursor.lock().await;
        let current = cursor.get_or_insert_with(|| PageCursor::new(start, anchored));
        let page = current.page(&call).await;
        // Only a dropped future leaves its cursor to the next caller; a failed page starts again.
        *cursor = None;
        page?.ok_or_else(|| ListFault::Contradiction("the volume has no size".into()))
    }

    /// Adds what a page lists in `start..end`, and its tokens.
    fn keep(
        &self,
        state: &mut DeltaListingState,
        start: u32,
        end: u32,
        page: &ListedPage<ChangedBlock>,
    ) {
        let listed = &mut state.listed;
        for (index, block) in &page.blocks {
            listed.delta.insert(*index, change(block));
            match block {
                ChangedBlock::Rewritten(_) => {}
                ChangedBlock::Gained(_) => listed.gained += 1,
                ChangedBlock::Lost => listed.lost += 1,
            }
        }
        let Some(extent) = Extent::new(BlockIndex(start), BlockIndex(end)) else {
            return;
        };
        let now = SystemTime::now();
        let tokens = TokenPage::new(extent, Pair::PAGE, now, page.expiry, tokens(&page.blocks));
        listed.index.append(tokens);
        if state.logged.elapsed() >= LOG_EVERY {
            state.logged = Instant::now();
            let changed = listed.delta.write().len() + listed.delta.zero().len();
            info!(
                "{}: {:.1} % of the volume listed, {changed} changed blocks so far",
                self.pair,
                f64::from(listed.index.covered()) * 100.0 / f64::from(self.end())
            );
        }
    }

    /// Checks that overlapping ranges list the same.
    fn agree(&self) -> std::result::Result<(), ListFault> {
        let state = self.state.lock();
        let delta = &state.listed.delta;
        let differ = |index: u32| {
            Err(ListFault::Contradiction(format!(
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
                let is_beyond_head = index.0 >= delta.head().block_count();
                if next(at) != Some((index.0, *change)) && !is_beyond_head {
                    return differ(index.0);
                }
                at = index.0 + 1;
            }
            if next(at).is_some_and(|(index, _)| index < beyond.end) {
                return differ(at);
            }
        }
        Ok(())
    }
}

impl DeltaListingState {
    fn new(pair: &Pair, pages: &Arc<TokenPages>) -> Self {
        Self {
            listed: Listed {
                delta: Delta::new(Some(pair.base_size), pair.head_size),
                index: TokenIndex::new(pages),
                gained: 0,
                lost: 0,
            },
            ranges: Vec::new(),
            first_count: None,
            logged: Instant::now(),
        }
    }
}

impl Listed {
    fn is_empty(&self) -> bool {
        self.delta.write().is_empty() && self.delta.zero().is_empty()
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.gained, self.lost) == (other.gained, other.lost)
            && self.delta.runs().eq(other.delta.runs())
    }
}

/// What a listed block is in the head.
pub(super) fn change(block: &ChangedBlock) -> Change {
    match block {
        ChangedBlock::Rewritten(_) | ChangedBlock::Gained(_) => Change::Write,
        ChangedBlock::Lost => Change::Zero,
    }
}

/// The tokens of the blocks that have one.
pub(super) fn tokens(
    blocks: &[(BlockIndex, ChangedBlock)],
) -> impl Iterator<Item = (BlockIndex, &Token)> {
    blocks
        .iter()
        .filter_map(|(index, block)| Some((*index, block.token()?)))
}
