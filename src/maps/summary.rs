//! The totals of a delta: blocks, bytes, requests, dollars.

use serde::Serialize;

use crate::block::{BLOCK_SIZE, BlockIndex, Delta, Extent, Geometry};
use crate::cost;

/// Blocks that one ListChangedBlocks reports.
const BLOCKS_A_LISTING: u64 = 10_000;
/// The totals of a delta.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    /// Blocks written.
    pub(crate) written: u64,
    /// Blocks zeroed: changed, and reading as zeroes in the head. Growth that is not written counts as zeroed.
    pub(crate) zeroed: u64,
    /// Bytes of the blocks written.
    pub(crate) bytes: u64,
    /// Of all blocks of the head, from 0 to 1.
    pub(crate) share: f64,
    base: u64,
    head: u64,
    /// Blocks that the listing reports: the blocks that a volume has grown by are not listed.
    listed: u64,
}

impl Totals {
    /// Counts.
    pub(crate) fn of(delta: &Delta) -> Self {
        let (written, zeroed) = (delta.write().len(), delta.zero().len());
        Self {
            written,
            zeroed,
            bytes: written * u64::from(BLOCK_SIZE),
            share: (written + zeroed) as f64 / f64::from(delta.head().block_count()),
            listed: delta.base().map_or(written, |base| {
                let base = Extent::new(BlockIndex(0), BlockIndex(base.block_count()));
                let zeroed = base.map_or(0, |base| delta.zero().count_in(base));
                written + u64::from(zeroed)
            }),
            base: delta.base().map_or(0, Geometry::size),
            head: delta.head().size(),
        }
    }

    /// All of it, for a program; `base` and `head` are what the two are called.
    pub(crate) fn summary<'a>(&self, base: &'a str, head: &'a str) -> Summary<'a> {
        let volume = |snapshot, bytes| Volume { snapshot, bytes };
        let count = |blocks| Count {
            blocks,
            bytes: blocks * u64::from(BLOCK_SIZE),
        };
        let lists = self.listed.div_ceil(BLOCKS_A_LISTING).max(1);
        Summary {
            base: volume(base, self.base),
            head: volume(head, self.head),
            block_size: BLOCK_SIZE,
            written: count(self.written),
            zeroed: count(self.zeroed),
            share_of_volume: self.share,
            reading: Reading {
                list_changed_blocks: lists,
                get_snapshot_block: self.written,
                dollars: cost::of_lists(lists) + cost::of_gets(self.written),
                prices: cost::PRICES,
            },
        }
    }
}

/// `summary.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    base: Volume<'a>,
    head: Volume<'a>,
    block_size: u32,
    written: Count,
    zeroed: Count,
    /// Of the head's blocks.
    share_of_volume: f64,
    /// What it takes, at least, to list and read it all.
    reading: Reading,
}

#[derive(Debug, Serialize)]
struct Volume<'a> {
    snapshot: &'a str,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Count {
    blocks: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Reading {
    list_changed_blocks: u64,
    get_snapshot_block: u64,
    #[serde(rename = "dollars")]
    dollars: f64,
    #[serde(rename = "prices")]
    prices: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Change;

    #[test]
    fn a_million_blocks_cost_three_dollars_to_read() {
        let volume = Geometry::new(1 << 40).unwrap();
        let mut delta = Delta::new(Some(volume), volume);
        for index in 0..1_000_000 {
            delta.insert(BlockIndex(index), Change::Write);
        }
        delta.insert(BlockIndex(2_000_000), Change::Zero);
        let json = serde_json::to_value(Totals::of(&delta).summary("a", "b")).unwrap();
        assert_eq!(json["reading"]["ListChangedBlocks"], 101);
        assert_eq!(json["reading"]["GetSnapshotBlock"], 1_000_000);
        let dollars = json["reading"]["dollars"].as_f64().unwrap();
        assert!((dollars - 3.0000606).abs() < 1e-9, "{dollars}");
        assert_eq!(json["zeroed"]["blocks"], 1);
        let share = json["share_of_volume"].as_f64().unwrap();
        assert!((share - 1_000_001.0 / 2_097_152.0).abs() < 1e-12);
    }
}
