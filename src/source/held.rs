//! All blocks that a source holds.

use futures_util::future::try_join_all;
use parking_lot::Mutex;

use super::BlockSource;
use crate::block::{BlockIndex, BlockSet, Extent};
use crate::error::{Error, Result};

/// Ranges of the volume listed at once.
const RANGES: u32 = 8;
/// The least blocks of a range: where all are held, four pages of an EBS listing.
const RANGE: u32 = 40_000;

/// Runs between two yields to other tasks: about 100 us.
const YIELD_EVERY: u32 = 1000;

/// The blocks that `source` holds, listed in ranges in parallel. Dropped and called again it continues from where
/// the source remembers.
///
/// # Errors
/// Why the source cannot tell.
pub(crate) async fn held(source: &dyn BlockSource) -> Result<BlockSet> {
    let count = source.geometry().block_count();
    let ranges = (count / RANGE).clamp(1, RANGES);
    let width = count.div_ceil(ranges);
    let held = Mutex::new(BlockSet::new());
    let held_in = |number: u32| {
        let held = &held;
        async move {
            let (mut at, mut runs) = (BlockIndex(number * width), 0u32);
            let stop = BlockIndex(at.0.saturating_add(width).min(count));
            while at < stop {
                let found = source.next_extent(at).await?;
                let within =
                    found.and_then(|found| Extent::new(found.start(), found.end().min(stop)));
                let Some(extent) = within else { break };
                held.lock().insert_extent(extent);
                at = extent.end();
                runs += 1;
                if runs % YIELD_EVERY == 0 {
                    // The source answers without waiting for what it knows already.
                    tokio::task::yield_now().await;
                }
            }
            Ok::<_, Error>(())
        }
    };
    try_join_all((0..ranges).map(held_in)).await?;
    Ok(held.into_inner())
}
