//! A target read back and compared: with its digests ([`compare`]), with what a run wrote ([`verify_plan`]), with a snapshot
//! ([`compare_sources`]).
//!
//! Blocks are read in order, [`IN_FLIGHT`] at once; that and three bitmaps is all the memory that any of this takes. A hole of
//! a source is zeroes and is not read. A block that cannot be read is an error, never a difference.

mod checkpoint;
mod counted;
mod image;
mod ranges;
mod speed;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};
use tracing::warn;

pub(crate) use self::checkpoint::CompareCheckpoint;
pub(crate) use self::counted::{KilledRun, written_by_run};
pub(crate) use self::image::{
    DigestRequest, HeldBlock, ImageDigests, digest_with, image_digest, linear_digest,
};
pub(crate) use self::ranges::{describe, ranges};
pub(crate) use self::speed::estimate;
use super::digests::{DigestEntry, Digests};
use crate::block::{Block, BlockIndex, BlockSet, Digest, Extent, Geometry, ZERO_BLOCK, ZEROES};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;
use crate::source::{BlockSource, held};
use crate::target::{Mark, Stop, Written};

/// Blocks read at once: 16 MiB. On two cores twice as many are no faster.
const IN_FLIGHT: usize = 32;
/// Blocks of a hole looked at at once: 2 MiB of entries.
const HOLE: u32 = 1 << 16;
/// Time between two checkpoints of a comparison.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// Items of [`Written`] taken at once.
const BATCH: usize = 256;

/// Called with the number of blocks that are done so far.
pub(crate) type OnBlocks<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// Where a comparison keeps its checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resumable<'a> {
    /// The file of its [`CompareCheckpoint`].
    pub(crate) path: &'a Path,
    /// The target's mark, taken after its reader was opened and before the comparison. If it differs afterwards, the
    /// result is void.
    pub(crate) mark: &'a Mark,
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Compared {
    /// Blocks that differ and that the plan does not name.
    pub(crate) differing: BlockSet,
    /// Blocks that differ and that the plan names.
    pub(crate) in_plan: BlockSet,
    /// Blocks whose entry is unknown: they differ from nothing.
    pub(crate) unknown: u64,
    /// Blocks compared: all of the volume.
    pub(crate) blocks: u64,
}

/// Compares a whole target with its digests. `in_plan` are the blocks whose difference does not matter.
///
/// With `resumable` it continues a stopped comparison, if neither the digests nor the target have changed since. A finished
/// comparison saves its result too, so that repeating it reads nothing; [`CompareCheckpoint::remove`] drops the result.
///
/// # Errors
/// `Stopped` within a second of the signal; `Invalid` when the two are of different sizes; why a block or a digest cannot be
/// read.
pub(crate) async fn compare(
    reader: Arc<dyn BlockSource>,
    digests: &Digests,
    in_plan: &BlockSet,
    resumable: Option<Resumable<'_>>,
    progress: OnBlocks<'_>,
    stop: &Stop,
) -> Result<Compared> {
    let geometry = same_size(reader.geometry(), digests.geometry())?;
    let mut saver = Saver::load(resumable, digests).await?;
    progress(saver.state.next.into());
    let from = BlockIndex(saver.state.next);
    let mut found = steps(&*reader, from)
        .map_ok(|step| compare_step(&*reader, digests, step))
        .try_buffered(IN_FLIGHT);
    loop {
        let next = stop.unless(found.try_next()).await;
        let Some(step) = saver.save_on_error(next).await? else {
            break;
        };
        saver.state.unknown += step.unknown;
        saver.state.next = step.end.0;
        for extent in step.differing {
            saver.state.differing.insert_extent(extent);
        }
        progress(step.end.0.into());
        saver.save_if_due().await;
    }
    saver.save().await;
    let mut compared = Compared {
        unknown: saver.state.unknown,
        blocks: geometry.block_count().into(),
        ..Compared::default()
    };
    split(&saver.state.differing, in_plan, geometry, &mut compared);
    Ok(compared)
}

fn split(all: &BlockSet, in_plan: &BlockSet, geometry: Geometry, compared: &mut Compared) {
    for run in all.runs_in(BlockIndex(0), BlockIndex(geometry.block_count())) {
        let mut at = run.start();
        while at < run.end() {
            let planned = in_plan.next_in(at).unwrap_or(run.end()).min(run.end());
            let end = in_plan.next_out(planned).min(run.end());
            if let Some(outside) = Extent::new(at, planned) {
                compared.differing.insert_extent(outside);
            }
            if let Some(inside) = Extent::new(planned, end) {
                compared.in_plan.insert_extent(inside);
            }
            at = end.max(planned);
        }
    }
}

/// The state of a comparison, and when it was saved last.
struct Saver<'a> {
    resumable: Option<Resumable<'a>>,
    state: CompareCheckpoint,
    saved: Instant,
}

impl<'a> Saver<'a> {
    async fn load(resumable: Option<Resumable<'a>>, digests: &Digests) -> Result<Self> {
        let loaded = match &resumable {
            None => None,
            Some(Resumable { path, mark }) => {
                let (path, mark, digests) = (path.to_path_buf(), (*mark).clone(), digests.clone());
                blocking(move || CompareCheckpoint::load(&path, &digests, &mark)).await?
            }
        };
        let mark = resumable.map(|resumable| resumable.mark);
        Ok(Self {
            resumable,
            state: loaded.unwrap_or_else(|| CompareCheckpoint::new(digests, mark)),
            saved: Instant::now(),
        })
    }

    async fn save_if_due(&mut self) {
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save().await;
        }
    }

    /// Saves the checkpoint. A failure only costs the ability to resume.
    async fn save(&mut self) {
        let Some(Resumable { path, .. }) = self.resumable else {
            return;
        };
        let (path, state) = (path.to_path_buf(), self.state.clone());
        if let Err(error) = blocking(move || state.save(&path)).await {
            warn!(
                "cannot save the progress of the comparison: {}",
                error.chain()
            );
            self.resumable = None;
        }
        self.saved = Instant::now();
    }

    async fn save_on_error<T>(&mut self, done: Result<T>) -> Result<T> {
        if done.is_err() {
            self.save().await;
        }
        done
    }
}

/// A piece of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VolumeStep {
    /// A block that the source holds.
    Block(BlockIndex),
    /// Blocks that it does not hold.
    Hole(Extent),
}

/// A source's blocks and holes from `from` on, in order and without a gap.
fn steps(source: &dyn BlockSource, from: BlockIndex) -> BoxStream<'_, Result<VolumeStep>> {
    let end = BlockIndex(source.geometry().block_count());
    let next = move |(at, held): (BlockIndex, Option<Extent>)| async move {
        if at >= end {
            return Ok(None);
        }
        let held = match held.filter(|held| held.end() > at) {
            Some(held) => Some(held),
            None => source.next_extent(at).await?,
        };
        // What begins before `at`, or even ends before it, has no hole at `at`: the block is read.
        let start = held.map_or(end, Extent::start).min(end);
        let stop = BlockIndex(at.0.saturating_add(HOLE)).min(start);
        let (step, next) = match Extent::new(at, stop) {
            Some(hole) => (VolumeStep::Hole(hole), stop),
            None => (VolumeStep::Block(at), Extent::of(at).end()),
        };
        // Where nothing more is held the source is not asked again.
        let held = held.or(Some(Extent::of(end)));
        Ok(Some((step, (next, held))))
    };
    stream::try_unfold((from, None), next).boxed()
}

/// What comparing one step found.
#[derive(Debug)]
struct StepResult {
    end: BlockIndex,
    differing: Vec<Extent>,
    unknown: u64,
}

async fn compare_step(
    reader: &dyn BlockSource,
    digests: &Digests,
    step: VolumeStep,
) -> Result<StepResult> {
    let digests = digests.clone();
    match step {
        VolumeStep::Hole(hole) => blocking(move || compare_hole(&digests, hole)).await,
        VolumeStep::Block(index) => {
            let one = Extent::of(index);
            let entry = blocking(move || Ok(digests.read(one)?.pop().unwrap_or(DigestEntry::Hole)));
            let (entry, block) = try_join(entry, reader.read_block(index)).await?;
            let len = reader.geometry().block_len(index);
            Ok(StepResult {
                end: one.end(),
                differing: match is_as(block, entry, len).await? {
                    true => Vec::new(),
                    false => vec![one],
                },
                unknown: u64::from(entry == DigestEntry::Unknown),
            })
        }
    }
}

/// What differs where a target has a hole: only entries that the file has bytes for are read.
fn compare_hole(digests: &Digests, hole: Extent) -> Result<StepResult> {
    let mut found = StepResult {
        end: hole.end(),
        differing: Vec::new(),
        unknown: 0,
    };
    let mut at = hole.start();
    while let Some(data) = digests.next_data(at)? {
        let Some(data) = Extent::new(data.start(), data.end().min(hole.end())) else {
            break;
        };
        for piece in digests.read_pieces(data) {
            let (extent, entries) = piece?;
            for (index, entry) in extent.blocks().zip(entries) {
                let len = digests.geometry().block_len(index);
                match entry {
                    DigestEntry::Hole | DigestEntry::Zero => {}
                    DigestEntry::Unknown => found.unknown += 1,
                    DigestEntry::Data(digest) if digest == digest_of_zeroes(len) => {}
                    DigestEntry::Data(_) => match found.differing.last_mut() {
                        Some(last) if last.end() == index => {
                            *last =
                                Extent::new(last.start(), Extent::of(index).end()).unwrap_or(*last);
                        }
                        _ => found.differing.push(Extent::of(index)),
                    },
                }
            }
        }
        at = data.end();
    }
    Ok(found)
}

/// Whether a block of `len` bytes is what its entry says.
async fn is_as(block: Block, entry: DigestEntry, len: usize) -> Result<bool> {
    match (entry, block) {
        (DigestEntry::Unknown, _) | (DigestEntry::Hole | DigestEntry::Zero, Block::Zero) => {
            Ok(true)
        }
        (DigestEntry::Hole | DigestEntry::Zero, Block::Data(bytes, _)) => Ok(is_zero(&bytes)),
        (DigestEntry::Data(digest), Block::Zero) => Ok(digest == digest_of_zeroes(len)),
        (DigestEntry::Data(digest), Block::Data(_, found)) if digest == found => Ok(true),
        // A second implementation of SHA-256 confirms each difference: a fault of the batch hasher must not report one.
        (DigestEntry::Data(digest), Block::Data(bytes, _)) => {
            blocking(move || Ok(<[u8; 32]>::from(Sha256::digest(&bytes)) == digest)).await
        }
    }
}

fn is_zero(bytes: &Bytes) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The SHA-256 of a block of zeroes, which can be a short last one.
pub(crate) fn digest_of_zeroes(len: usize) -> Digest {
    match ZEROES.get(..len) {
        Some(short) if len < ZEROES.len() => Sha256::digest(short).into(),
        _ => ZERO_BLOCK,
    }
}

fn same_size(found: Geometry, wanted: Geometry) -> Result<Geometry> {
    if found == wanted {
        return Ok(found);
    }
    let what = format!(
        "cannot compare: the target is read as {} bytes and must have {}",
        found.size(),
        wanted.size()
    );
    Err(Error::new(Kind::Invalid, what))
}

/// Reads back what a run wrote to `name` and compares it with the digests that it was written by. `progress` counts blocks of
/// the plan.
///
/// # Errors
/// `Corrupt` with the blocks that differ; `Stopped`; why something cannot be read.
pub(crate) async fn verify_plan(
    written: Written,
    back: &dyn BlockSource,
    name: &str,
    progress: OnBlocks<'_>,
    stop: &Stop,
) -> Result<()> {
    let geometry = back.geometry();
    let check = |(index, digest): (BlockIndex, Option<Digest>)| async move {
        let block = back.read_block(index).await?;
        let is_good = is_as(block, digest.into(), geometry.block_len(index)).await?;
        Ok((index, is_good))
    };
    let mut checked = stream_of(written).map_ok(check).try_buffered(IN_FLIGHT);
    let (mut differing, mut done) = (BlockSet::new(), 0);
    while let Some((index, is_good)) = stop.unless(checked.try_next()).await? {
        if !is_good {
            differing.insert(index);
        }
        done += 1;
        progress(done);
    }
    if differing.is_empty() {
        return Ok(());
    }
    let what = format!(
        "cannot verify {name}: {} read back as something else than was written",
        describe(&differing, geometry)
    );
    Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart))
}

/// What was written as a stream: the digests are read on a thread that may wait for a disk.
fn stream_of(written: Written) -> BoxStream<'static, Result<(BlockIndex, Option<Digest>)>> {
    let batches = stream::try_unfold(written, |mut written| {
        blocking(move || {
            let batch: Vec<_> = written.by_ref().take(BATCH).collect();
            Ok((!batch.is_empty()).then(|| (stream::iter(batch), written)))
        })
    });
    batches.try_flatten().boxed()
}

/// Compares a target with a snapshot, block by block; what neither holds is not read. `progress` counts blocks of the volume.
/// The answer is the blocks that differ.
///
/// # Errors
/// `Invalid` when the two are of different sizes; `Stopped`; why something cannot be read.
pub(crate) async fn compare_sources(
    target: Arc<dyn BlockSource>,
    snapshot: Arc<dyn BlockSource>,
    progress: OnBlocks<'_>,
    stop: &Stop,
) -> Result<BlockSet> {
    let geometry = same_size(target.geometry(), snapshot.geometry())?;
    let end = BlockIndex(geometry.block_count());
    let both = try_join(held(&*target), held(&*snapshot));
    let (mut either, more) = stop.unless(both).await?;
    for run in more.runs_in(BlockIndex(0), end) {
        either.insert_extent(run);
    }
    drop(more);
    let (target, snapshot) = (&*target, &*snapshot);
    let compare = |index| async move {
        let blocks = try_join(target.read_block(index), snapshot.read_block(index));
        let (found, wanted) = blocks.await?;
        let is_same = match (found, wanted) {
            (Block::Zero, Block::Zero) => true,
            (Block::Zero, Block::Data(bytes, _)) | (Block::Data(bytes, _), Block::Zero) => {
                is_zero(&bytes)
            }
            (Block::Data(found, _), Block::Data(wanted, _)) => found == wanted,
        };
        Ok::<_, Error>((index, is_same))
    };
    let runs = either.runs_in(BlockIndex(0), end);
    let mut compared = stream::iter(runs.flat_map(Extent::blocks))
        .map(compare)
        .buffered(IN_FLIGHT);
    let mut differing = BlockSet::new();
    while let Some((index, is_same)) = stop.unless(compared.try_next()).await? {
        if !is_same {
            differing.insert(index);
        }
        progress(u64::from(index.0) + 1);
    }
    progress(end.0.into());
    Ok(differing)
}

#[cfg(test)]
mod tests;
