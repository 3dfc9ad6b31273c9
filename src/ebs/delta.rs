//! ListChangedBlocks of two snapshots as a [`Delta`]: exact, listed over several ranges of the volume at once.
//!
//! As with the map of one snapshot ([`super::block_map`]) absence is a claim: within a range each page begins with the last
//! block of the page before, which must come again, and the last page of a range reaches into the next one, where both must
//! say the same. What contradicts itself is corrupt.
//!
//! A changed block has tokens in both snapshots, or in the head alone: its bytes are the head's. A block with a token in
//! the base alone is gone: it reads as zeroes in the head. What a program must never do is to copy the base's bytes there.

use std::time::Duration;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, info};

use super::client::{Client, Failure, From};
use crate::block::{BlockIndex, Change, Delta, Geometry};
use crate::error::{Error, Kind, Result};
use crate::source::SnapshotId;

/// Blocks asked for in one call, the most that the API takes.
const PAGE: u16 = 10_000;
/// Ranges listed at once: as many as there may be list calls on their way.
const RANGES: u32 = 8;
/// Pages that a range must be worth: its last one brings blocks of the next range a second time.
const PAGES_A_RANGE: u32 = 4;
/// One line in this time says how far a long listing is.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// One listing of what differs between two snapshots.
pub(super) struct Listing<'a> {
    client: &'a Client,
    base: &'a SnapshotId,
    head: &'a SnapshotId,
    /// Blocks of the larger of the two volumes.
    end: u32,
    delta: Mutex<Delta>,
    logged: Mutex<Instant>,
}

/// What a page, or a range of them, says: nothing changed between these blocks up to `end` but them.
#[derive(Debug)]
struct Told {
    blocks: Vec<(u32, Change)>,
    /// The block after the last one that it speaks of.
    end: u32,
    /// Whether the listing goes on there.
    more: bool,
}

impl<'a> Listing<'a> {
    /// The listing of `base`..`head`, volumes of these sizes.
    pub(super) fn new(
        client: &'a Client,
        (base, base_size): (&'a SnapshotId, Geometry),
        (head, head_size): (&'a SnapshotId, Geometry),
    ) -> Self {
        Self {
            client,
            base,
            head,
            end: base_size.block_count().max(head_size.block_count()),
            delta: Mutex::new(Delta::new(Some(base_size), head_size)),
            logged: Mutex::new(Instant::now()),
        }
    }

    /// Lists it all. Dropping the future stops it.
    pub(super) async fn run(self) -> Result<Delta> {
        let first = self.page(0, false).await?;
        self.keep(&first.blocks);
        if first.more {
            self.rest(&first).await?;
        }
        Ok(self.delta.into_inner())
    }

    /// Lists what comes after the first page, in ranges.
    async fn rest(&self, first: &Told) -> Result<()> {
        let left = u64::from(self.end - first.end);
        let pages =
            left * first.blocks.len() as u64 / (u64::from(first.end) * u64::from(PAGE)).max(1);
        let ranges = u32::try_from(pages).unwrap_or(u32::MAX) / PAGES_A_RANGE;
        let ranges = ranges.clamp(1, RANGES);
        let width = (self.end - first.end).div_ceil(ranges).max(1);
        let bounds = (0..ranges).map(|n| {
            let start = first
                .end
                .saturating_add(n.saturating_mul(width))
                .min(self.end);
            (start, start.saturating_add(width).min(self.end))
        });
        let bounds: Vec<_> = bounds.filter(|(start, stop)| start < stop).collect();
        let listed = bounds.iter().enumerate().map(|(n, (start, stop))| {
            // The first range goes on where the first page ended, with its last block.
            let anchor = (n == 0).then_some(first.end - 1);
            self.range(anchor, *start, *stop)
        });
        let beyond = try_join_all(listed).await?;
        // Where a range reached into the next ones both must say the same.
        let delta = self.delta.lock();
        for ((_, stop), told) in bounds.iter().zip(&beyond) {
            let mut at = *stop;
            for (index, change) in &told.blocks {
                let found = delta
                    .next_run(BlockIndex(at))
                    .map(|(run, change)| (run.start().0, change));
                let is_beyond_head = *index >= delta.head().block_count();
                if found != Some((*index, *change)) && !is_beyond_head {
                    return Err(self.corrupt(&format!("two listings differ at block {index}")));
                }
                at = index + 1;
            }
            let next = delta.next_run(BlockIndex(at)).map(|(run, _)| run.start().0);
            if next.is_some_and(|next| next < told.end) {
                return Err(self.corrupt(&format!("two listings differ from block {at} on")));
            }
        }
        Ok(())
    }

    /// Lists `start..stop` and gives what the last page said of what comes after.
    async fn range(&self, anchor: Option<u32>, start: u32, stop: u32) -> Result<Told> {
        let (mut from, mut anchored) = (anchor.unwrap_or(start), anchor.is_some());
        loop {
            let mut page = self.page(from, anchored).await?;
            if anchored {
                page.blocks.remove(0);
            }
            let within = page.blocks.partition_point(|(index, _)| *index < stop);
            let beyond = page.blocks.split_off(within);
            self.keep(&page.blocks);
            if !page.more || page.end >= stop {
                return Ok(Told {
                    blocks: beyond,
                    end: page.end,
                    more: page.more,
                });
            }
            (from, anchored) = (page.end - 1, true);
        }
    }

    /// What comes from a block on: one page, past as many empty ones as come. With `anchored` that block must come first,
    /// and others after it.
    async fn page(&self, start: u32, anchored: bool) -> Result<Told> {
        let mut from = From::Index(BlockIndex(start));
        let mut blocks: Vec<(u32, Change)> = Vec::new();
        loop {
            let deadline = self.client.deadline();
            let listing = self
                .client
                .list_changed(self.base, self.head, &from, PAGE, deadline)
                .await;
            let listing = match listing {
                // The page token is an hour old or foreign: from the beginning.
                Err(Failure::StaleToken(error)) if matches!(from, From::Page(_)) => {
                    debug!("{error}");
                    from = From::Index(BlockIndex(start));
                    blocks.clear();
                    continue;
                }
                listing => listing?,
            };
            for (index, token) in listing.blocks {
                let least = blocks.last().map_or(start, |(last, _)| last + 1);
                let index = u32::try_from(index)
                    .ok()
                    .filter(|index| (least..self.end).contains(index))
                    .ok_or_else(|| {
                        let last = self.end - 1;
                        self.corrupt(&format!(
                            "block {index} came, not one from {least} to {last}"
                        ))
                    })?;
                let change = if token.is_some() {
                    Change::Write
                } else {
                    Change::Zero
                };
                blocks.push((index, change));
            }
            // An empty page says nothing, nor does one that brings the anchor alone: only its own token leads past it.
            let is_told = blocks.len() > usize::from(anchored);
            if listing.next.is_some() && !is_told {
                let next = listing.next.unwrap_or_default();
                if matches!(&from, From::Page(token) if *token == next) {
                    return Err(self.corrupt("the same page comes again and again"));
                }
                from = From::Page(next);
                continue;
            }
            if anchored && blocks.first().is_none_or(|(first, _)| *first != start) {
                return Err(self.corrupt(&format!("block {start} was listed and is not any more")));
            }
            let more = listing.next.is_some();
            let end = match blocks.last() {
                Some((last, _)) if more => last + 1,
                _ => self.end,
            };
            return Ok(Told { blocks, end, more });
        }
    }

    fn keep(&self, blocks: &[(u32, Change)]) {
        let mut delta = self.delta.lock();
        for (index, change) in blocks {
            delta.insert(BlockIndex(*index), *change);
        }
        let mut logged = self.logged.lock();
        if logged.elapsed() >= LOG_EVERY {
            *logged = Instant::now();
            let listed = delta.write().len() + delta.zero().len();
            info!(
                "{}..{}: {listed} changed blocks listed so far",
                self.base, self.head
            );
        }
    }

    fn corrupt(&self, what: &str) -> Error {
        let what = format!("ebs:ListChangedBlocks {}..{}: {what}", self.base, self.head);
        Error::new(Kind::Corrupt, what)
    }
}
