//! [`written_by_run`]: whether a killed run alone has written a device, by the kernel's count of sectors.

use std::sync::Arc;

use futures_util::future::try_join;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tracing::debug;

use super::{DigestEntry, Digests, IN_FLIGHT, VolumeStep, compare_step, is_as};
use crate::block::{BLOCK_SIZE, Block, BlockIndex, BlockSet, Digest, Extent};
use crate::error::Result;
use crate::source::BlockSource;
use crate::target::Stop;

const BYTES: usize = BLOCK_SIZE as usize;
/// Sectors of 512 bytes in a block.
const SECTORS: u64 = BLOCK_SIZE as u64 / 512;

/// Whether nothing else has written a device: the kernel counted as many sectors as the run is known to have written.
///
/// `ours` must not be more than the run has written. Then a foreign write makes `kernel` the larger one.
pub(crate) fn proves_untouched(kernel: u64, ours: u64) -> bool {
    kernel == ours
}

/// A killed run, and what the device held before it.
pub(crate) struct KilledRun<'a> {
    /// Blocks that the run has written, by its checkpoint.
    pub(crate) done: &'a BlockSet,
    /// Blocks of its plan to be written that are not among them. The run writes them in this order, at most `interval` between two
    /// checkpoints.
    pub(crate) writes: &'a BlockSet,
    pub(crate) interval: usize,
    /// The same of those to be zeroed.
    pub(crate) zeroes: &'a BlockSet,
    pub(crate) zero_interval: usize,
    /// Whether zeroing a block counts all of its sectors. Where it does not, a run that has zeroed proves nothing.
    pub(crate) counts_zeroes: bool,
    /// The digests of the run: of the blocks that are done, what it has written.
    pub(crate) digests: &'a Digests,
    /// The digests of what the device held when the run began.
    pub(crate) base: &'a Digests,
    /// Sectors written to the device since the run began, as the kernel counts.
    pub(crate) kernel_sectors: u64,
}

/// The blocks that a killed run has written after its last checkpoint, if the kernel's count proves that nothing else has written
/// the device since the run began; none where it does not. They hold the bytes of `source`, and count as done.
///
/// A block counts as the run's if it no longer has its digest of before and now has that of the source. Each of them is fetched
/// once; where the numbers do not agree nothing is fetched. A block that was written in part, and is the same in both snapshots beyond that, counts as a whole: then
/// the numbers agree only if something else has written exactly the rest of its sectors.
///
/// # Errors
/// `Stopped`; why a block or a digest cannot be read.
pub(crate) async fn written_by_run(
    reader: Arc<dyn BlockSource>,
    source: &dyn BlockSource,
    run: &KilledRun<'_>,
    stop: &Stop,
) -> Result<Option<Vec<(BlockIndex, Option<Digest>)>>> {
    let geometry = reader.geometry();
    let is_whole = run.digests.is_whole() && run.base.is_whole();
    let is_same = run.digests.geometry() == geometry && run.base.geometry() == geometry;
    let has_short_end = !geometry.size().is_multiple_of(u64::from(BLOCK_SIZE));
    let done = run.done.len() * SECTORS;
    let most = done + (run.interval + run.zero_interval) as u64 * SECTORS;
    if !is_whole || !is_same || has_short_end || !(done..=most).contains(&run.kernel_sectors) {
        debug!(
            "the kernel counted {} sectors, and {done} are of the checkpoint",
            run.kernel_sectors
        );
        return Ok(None);
    }
    if !run.counts_zeroes && !run.zeroes.is_empty() {
        return Ok(None);
    }
    for extent in run.done.runs().filter(|_| !run.counts_zeroes) {
        for piece in run.digests.read_pieces(extent) {
            let (_, entries) = piece?;
            let is_data = |entry: &DigestEntry| matches!(entry, DigestEntry::Data(_));
            if !entries.iter().all(is_data) {
                return Ok(None);
            }
        }
    }
    let blocks = |of: &BlockSet, most| -> Vec<BlockIndex> {
        of.runs().flat_map(Extent::blocks).take(most).collect()
    };
    let mut candidates = blocks(run.zeroes, run.zero_interval);
    candidates.extend(blocks(run.writes, run.interval));
    let mut compared = stream::iter(candidates)
        .map(|index| compare_step(&*reader, run.base, VolumeStep::Block(index)))
        .buffered(IN_FLIGHT);
    let mut changed = Vec::new();
    while let Some(step) = stop.unless(compared.try_next()).await? {
        if step.unknown > 0 {
            return Ok(None);
        }
        changed.extend(step.differing.into_iter().flat_map(Extent::blocks));
    }
    drop(compared);
    let ours = done + changed.len() as u64 * SECTORS;
    if !proves_untouched(run.kernel_sectors, ours) {
        debug!(
            "the kernel counted {} sectors, and the run has written {ours}",
            run.kernel_sectors
        );
        return Ok(None);
    }
    let reader = &*reader;
    let fetch = |index| async move {
        if run.zeroes.contains(index) {
            let is_zero = is_as(reader.read_block(index).await?, DigestEntry::Zero, BYTES).await?;
            return Ok(is_zero.then_some((index, None)));
        }
        let both = try_join(reader.read_block(index), source.read_block(index)).await?;
        Ok::<_, crate::error::Error>(match both {
            (Block::Data(_, found), Block::Data(_, wanted)) if found == wanted => {
                Some((index, Some(wanted)))
            }
            _ => None,
        })
    };
    let mut fetched = stream::iter(changed).map(fetch).buffered(IN_FLIGHT);
    let mut written = Vec::new();
    while let Some(block) = stop.unless(fetched.try_next()).await? {
        let Some(block) = block else { return Ok(None) };
        written.push(block);
    }
    Ok(Some(written))
}

#[cfg(test)]
mod tests;
