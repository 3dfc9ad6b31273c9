//! A copy: blocks of a source into one or several sinks, verified, in an order that any moment may interrupt.
//!
//! ```text
//!  name    checkpoint saved              the target is named before it is touched (by its `open`)
//!  zero    sink.write_zeroes             in steps that the checkpoint subtracts
//!  recheck compare                       beside the rest: what an earlier run has done against its digests
//!  fetch   blocks in flight, each fetched once for all sinks that want it
//!  write   Data -> write_block, Zero -> write_zeroes
//!  keep    flush, then digests, then mark done, then save the checkpoint; never another order
//! ```
//! Memory is the blocks in flight and bitmaps, whatever the volume's size. At most [`INTERVAL`] blocks are fetched and not in
//! the checkpoint yet: a run that resumes after a kill fetches at most that many again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tracing::warn;

use super::checkpoint::Checkpoint;
use super::job::OnDamage;
use super::verify::{self, Compared};
use crate::block::{Block, BlockIndex, BlockSet, Digest, Extent};
use crate::error::{Error, Kind, Result};
use crate::files::blocking;
use crate::progress::Progress;
use crate::source::{BlockSource, Wanted};
use crate::target::{Sink, SinkState, Stop};

/// The most blocks that are fetched and not kept yet: 512 MiB.
pub(super) const INTERVAL: usize = 1024;
/// The longest time between a write and the checkpoint that names it.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// Blocks zeroed between two checkpoints: 1 GiB.
pub(super) const ZERO_STEP: u32 = 2048;
/// Runs of them at once.
const ZEROED_AT_ONCE: usize = 16;

/// One target of a copy.
pub(super) struct CopyTarget {
    /// As a person writes it.
    pub(super) name: String,
    /// Where blocks go.
    pub(super) sink: Arc<dyn Sink>,
    /// What there is to do, and what of it is done.
    pub(super) checkpoint: Checkpoint,
    /// Reads back what an earlier run has done, where that must be compared with its digests.
    pub(super) recheck: Option<Arc<dyn BlockSource>>,
}

/// What a copy counts: a block that is staged is fetched by one copy, and written by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyCounts {
    /// Bytes that are fetched.
    Fetched,
    /// Blocks that are written.
    Written,
    /// Both.
    Both,
}

/// The rules of a copy.
pub(super) struct Rules<'a> {
    /// Blocks in flight, at most.
    pub(super) in_flight: usize,
    /// What happens when a block of the source is damaged.
    pub(super) on_damage: OnDamage,
    /// Counts blocks and bytes.
    pub(super) progress: &'a Arc<Progress>,
    /// What it counts of them.
    pub(super) counts: CopyCounts,
    /// The first signal.
    pub(super) stop: &'a Stop,
}

/// The fetched block, and the result of writing it to each target.
struct Copied {
    index: BlockIndex,
    digest: Option<Digest>,
    bytes: u64,
    is_damaged: bool,
    written: Result<Vec<(usize, Result<()>)>>,
}

/// One target while it is copied to.
struct Copying {
    target: CopyTarget,
    /// Written since the last keep began.
    written: Vec<(BlockIndex, Option<Digest>)>,
    /// When that was.
    kept_at: Instant,
    /// Written before that, and being kept.
    keeping: Option<Vec<(BlockIndex, Option<Digest>)>>,
    failed: Option<Error>,
}

/// A copy that runs.
struct Copy<'a> {
    source: Arc<dyn BlockSource>,
    rules: &'a Rules<'a>,
    targets: Vec<Copying>,
    /// Comparisons of what earlier runs have done.
    rechecks: JoinSet<(usize, Result<Compared>)>,
}

/// A step of keeping what a target has.
type KeepStep = BoxFuture<'static, (usize, Result<KeptPart>)>;

/// A finished step of a [`KeepStep`].
enum KeptPart {
    /// The data survive a crash, and so do the digests unless the second says why not. The state is what a resumed sink needs.
    Flushed(SinkState, Result<()>),
    /// The checkpoint that names them survives too, unless the result says why not.
    Saved(Result<()>),
}

/// Copies to every target and returns a result for each. One that fails does not stop the others. A failure of the source, or
/// the first signal, ends all of them; each keeps its checkpoint.
pub(super) async fn copy(
    source: Arc<dyn BlockSource>,
    targets: Vec<CopyTarget>,
    rules: &Rules<'_>,
) -> Vec<(CopyTarget, Result<()>)> {
    let now = Instant::now();
    let targets = targets.into_iter().map(|target| Copying {
        target,
        written: Vec::new(),
        // The first blocks are kept at once: they distinguish the target from another one.
        kept_at: now.checked_sub(KEEP_EVERY).unwrap_or(now),
        keeping: None,
        failed: None,
    });
    let mut copy = Copy {
        source,
        rules,
        targets: targets.collect(),
        rechecks: JoinSet::new(),
    };
    copy.zero().await;
    copy.begin_rechecks();
    let ended = copy.fetch().await;
    let ends = copy.targets.into_iter().map(|copying| {
        let end = copying.failed.map_or_else(|| ended.clone(), Err);
        (copying.target, end)
    });
    ends.collect()
}

impl Copy<'_> {
    /// Zeroes the blocks that the plans zero.
    async fn zero(&mut self) {
        let rules = self.rules;
        let zeroed = self.targets.iter_mut().map(|copying| async move {
            let done = zero(&mut copying.target, rules).await;
            copying.failed = done.err();
        });
        join_all(zeroed).await;
    }

    /// Starts to compare what earlier runs have done, beside the fetches.
    fn begin_rechecks(&mut self) {
        for (number, copying) in self.targets.iter_mut().enumerate() {
            let Some(reader) = copying.target.recheck.take() else {
                continue;
            };
            let checkpoint = &copying.target.checkpoint;
            let Some(digests) = checkpoint.digests() else {
                continue;
            };
            let missing = checkpoint.missing();
            let stop = self.rules.stop.clone();
            self.rechecks.spawn(async move {
                let compared = verify::compare(reader, &digests, &missing, None, &|_| {}, &stop);
                (number, compared.await)
            });
        }
    }

    /// Takes the result of a comparison: plans to write the changed blocks again.
    fn rechecked(&mut self, number: usize, compared: Result<Compared>) -> BlockSet {
        let Some(copying) = self.targets.get_mut(number) else {
            return BlockSet::new();
        };
        match compared {
            Ok(compared) if compared.differing.is_empty() => BlockSet::new(),
            Ok(compared) => {
                let blocks = compared.differing;
                let geometry = copying.target.checkpoint.plan().head();
                warn!(
                    "{}: {} changed since the last run: writing them again",
                    copying.target.name,
                    verify::describe(&blocks, geometry)
                );
                copying.target.checkpoint.write_again(&blocks);
                self.rules.progress.expect(blocks.len());
                blocks
            }
            Err(error) => {
                copying.fail(error);
                BlockSet::new()
            }
        }
    }

    async fn fetch(&mut self) -> Result<()> {
        // One task for each block, so that all processors work; dropping the set aborts them.
        let mut copies = JoinSet::new();
        let mut keeps: FuturesUnordered<KeepStep> = FuturesUnordered::new();
        let stop = self.rules.stop.clone();
        let mut cursor = Some(BlockIndex(0));
        // Blocks before the cursor that a comparison found changed.
        let (mut again, mut again_from) = (BlockSet::new(), BlockIndex(0));
        let mut ended: Result<()> = Ok(());
        loop {
            ended = ended.and_then(|()| stop.check());
            let alive = self.targets.iter().any(|copying| copying.failed.is_none());
            while ended.is_ok()
                && alive
                && copies.len() < self.rules.in_flight
                && self.has_room(copies.len())
            {
                let index = match again.next_in(again_from) {
                    Some(index) => {
                        again_from = BlockIndex(index.0 + 1);
                        index
                    }
                    None => {
                        let Some(index) = cursor.and_then(|from| self.next(from)) else {
                            break;
                        };
                        cursor = index.0.checked_add(1).map(BlockIndex);
                        index
                    }
                };
                copies.spawn(copy_block(
                    Arc::clone(&self.source),
                    index,
                    self.sinks_of(index),
                    self.rules.on_damage,
                ));
            }
            let is_last = copies.is_empty();
            for number in 0..self.targets.len() {
                keeps.extend(self.keep(number, is_last));
            }
            let is_checked = self.rechecks.is_empty() || ended.is_err() || !alive;
            if copies.is_empty() && keeps.is_empty() && is_checked {
                return ended;
            }
            let stopping = ended.is_err();
            let stopped = async {
                match stopping {
                    true => std::future::pending().await,
                    false => stop.stopped().await,
                }
            };
            tokio::select! {
                Some(copied) = copies.join_next() => {
                    let copied = copied.map_err(|error| Error::with_source(Kind::Io, "cannot copy a block", error));
                    let noted = copied.and_then(|copied| self.copied(copied));
                    ended = ended.and(noted);
                }
                Some((number, step)) = keeps.next() => keeps.extend(self.kept(number, step)),
                Some(compared) = self.rechecks.join_next() => {
                    let compared = compared.map_err(|error| Error::with_source(Kind::Io, "cannot compare", error));
                    match compared {
                        Ok((number, compared)) => {
                            let end = cursor.unwrap_or(BlockIndex(u32::MAX));
                            for run in self.rechecked(number, compared).runs_in(BlockIndex(0), end) {
                                again_from = again_from.min(run.start());
                                again.insert_extent(run);
                            }
                        }
                        Err(error) => ended = ended.and(Err(error)),
                    }
                }
                () = stopped => {}
            }
        }
    }

    /// Whether every target may have one more block that is not kept.
    fn has_room(&self, in_flight: usize) -> bool {
        let alive = self
            .targets
            .iter()
            .filter(|copying| copying.failed.is_none());
        alive
            .map(Copying::unkept)
            .all(|unkept| unkept + in_flight < INTERVAL)
    }

    /// The first block at or after `from` that some target wants.
    fn next(&self, from: BlockIndex) -> Option<BlockIndex> {
        let alive = self
            .targets
            .iter()
            .filter(|copying| copying.failed.is_none());
        alive
            .filter_map(|copying| copying.target.checkpoint.next_write(from))
            .min()
    }

    /// The targets that want a block.
    fn sinks_of(&self, index: BlockIndex) -> Vec<(usize, Arc<dyn Sink>)> {
        let wants = |copying: &Copying| {
            copying.failed.is_none() && copying.target.checkpoint.next_write(index) == Some(index)
        };
        let targets = self.targets.iter().enumerate();
        targets
            .filter(|(_, copying)| wants(copying))
            .map(|(number, copying)| (number, Arc::clone(&copying.target.sink)))
            .collect()
    }

    /// Records what was written to which target. The error is the source's.
    fn copied(&mut self, copied: Copied) -> Result<()> {
        for (number, written) in copied.written? {
            let Some(copying) = self.targets.get_mut(number) else {
                continue;
            };
            match written {
                Ok(()) => {
                    if copied.is_damaged {
                        copying.target.checkpoint.mark_damaged(copied.index);
                    }
                    copying.written.push((copied.index, copied.digest));
                }
                Err(error) => copying.fail(error),
            }
        }
        let progress = self.rules.progress;
        match self.rules.counts {
            CopyCounts::Fetched => {
                progress.step(1);
                progress.read(copied.bytes);
            }
            CopyCounts::Written => progress.copied(0),
            CopyCounts::Both => progress.copied(copied.bytes),
        }
        Ok(())
    }

    /// Starts to flush what a target has taken: when enough is written, when it is due, or at the end.
    fn keep(&mut self, number: usize, is_last: bool) -> Option<KeepStep> {
        let copying = self.targets.get_mut(number)?;
        let is_due = is_last || copying.kept_at.elapsed() >= KEEP_EVERY;
        let enough = if is_due { 1 } else { INTERVAL / 2 };
        if copying.failed.is_some() || copying.keeping.is_some() || copying.written.len() < enough {
            return None;
        }
        copying.kept_at = Instant::now();
        let blocks = std::mem::take(&mut copying.written);
        let digests = blocks.clone();
        copying.keeping = Some(blocks);
        let sink = Arc::clone(&copying.target.sink);
        let file = copying.target.checkpoint.digests();
        let flushed = async move {
            let state = sink.flush().await?;
            let digested = match file {
                Some(file) => blocking(move || file.write(&digests)).await,
                None => Ok(()),
            };
            Ok(KeptPart::Flushed(state, digested))
        };
        Some(flushed.map(move |step| (number, step)).boxed())
    }

    /// After a flush, starts to save the checkpoint; after the save, the target may be flushed again.
    fn kept(&mut self, number: usize, step: Result<KeptPart>) -> Option<KeepStep> {
        let copying = self.targets.get_mut(number)?;
        let kept = match step {
            Ok(KeptPart::Flushed(state, digested)) => {
                let blocks = copying.keeping.iter().flatten();
                let extents = blocks.map(|(index, _)| Extent::of(*index));
                let checkpoint = &mut copying.target.checkpoint;
                let digested = digested.or_else(|error| checkpoint.give_up_digests(error));
                digested.map(|()| checkpoint.mark(extents, state))
            }
            Ok(KeptPart::Saved(Ok(()))) => {
                copying.keeping = None;
                return None;
            }
            // The digests may have taken the checkpoint's room.
            Ok(KeptPart::Saved(Err(error))) => copying.target.checkpoint.give_up_digests(error),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            copying.keeping = None;
            copying.fail(error);
            return None;
        }
        let saved = copying.target.checkpoint.encode();
        let save = blocking(move || Ok(KeptPart::Saved(saved.write())));
        Some(save.map(move |step| (number, step)).boxed())
    }
}

impl Copying {
    fn unkept(&self) -> usize {
        self.written.len() + self.keeping.as_ref().map_or(0, Vec::len)
    }

    /// Keeps the first failure.
    fn fail(&mut self, error: Error) {
        self.failed.get_or_insert(error);
    }
}

/// Fetches a block once and writes it to each sink.
async fn copy_block(
    source: Arc<dyn BlockSource>,
    index: BlockIndex,
    sinks: Vec<(usize, Arc<dyn Sink>)>,
    on_damage: OnDamage,
) -> Copied {
    let mut copied = Copied {
        index,
        digest: None,
        bytes: 0,
        is_damaged: false,
        written: Ok(Vec::new()),
    };
    let len = source.geometry().block_len(index) as u64;
    // At low priority: a block may wait to be hashed together with others.
    match source.read_ahead(index, Wanted::default()).await {
        Err(error) if on_damage.passes(&error) => {
            warn!("block {index} stays zero: {}", error.chain());
            copied.is_damaged = true;
        }
        Err(error) => copied.written = Err(error),
        Ok(Block::Zero) => copied.bytes = len,
        Ok(Block::Data(bytes, digest)) => {
            let written = sinks.iter().map(|(number, sink)| {
                let bytes = bytes.clone();
                async move { (*number, sink.write_block(index, bytes, digest).await) }
            });
            copied.written = Ok(join_all(written).await);
            (copied.digest, copied.bytes) = (Some(digest), bytes.len() as u64);
            return copied;
        }
    }
    if copied.written.is_ok() {
        let zeroed = sinks.iter().map(|(number, sink)| async move {
            (*number, sink.write_zeroes(Extent::of(index)).await)
        });
        copied.written = Ok(join_all(zeroed).await);
    }
    copied
}

/// Zeroes the rest of the blocks to zero, in steps large enough to pay for the flushes of each checkpoint.
async fn zero(target: &mut CopyTarget, rules: &Rules<'_>) -> Result<()> {
    let mut at = BlockIndex(0);
    while !rules.stop.is_stopped() {
        let mut step: Vec<Extent> = Vec::new();
        let mut left = ZERO_STEP;
        while left > 0
            && let Some(extent) = target.checkpoint.next_zero(at, left)
        {
            step.push(extent);
            left -= extent.count();
            at = extent.end();
        }
        if step.is_empty() {
            break;
        }
        stream::iter(&step)
            .map(|extent| target.sink.write_zeroes(*extent))
            .buffer_unordered(ZEROED_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let state = target.sink.flush().await?;
        if let Some(digests) = target.checkpoint.digests() {
            let zeroed = step.clone();
            let digested = blocking(move || digests.make_holes(&zeroed)).await;
            digested.or_else(|error| target.checkpoint.give_up_digests(error))?;
        }
        target.checkpoint.mark(step, state);
        let saved = target.checkpoint.encode();
        if let Err(error) = blocking(move || saved.write()).await {
            target.checkpoint.give_up_digests(error)?;
            let saved = target.checkpoint.encode();
            blocking(move || saved.write()).await?;
        }
        rules.progress.zeroed((ZERO_STEP - left).into());
    }
    Ok(())
}
