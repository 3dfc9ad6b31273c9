//! A copy: blocks of a source into one or several sinks, verified, in an order that any moment may interrupt.
//!
//! ```text
//!  name    checkpoint saved              the target is named before it is touched
//!  zero    sink.write_zeroes             in steps that the checkpoint subtracts
//!  fetch   blocks in flight, each fetched once for all sinks that want it
//!  write   Data -> write_block, Zero -> write_zeroes
//!  keep    flush, then digests, then mark done, then save the checkpoint; never another order
//!  finish  sink.finish                   nothing is visible before this (a device, always visible, is marked meanwhile)
//! ```
//! Memory is the blocks in flight and bitmaps, whatever the volume's size. What is fetched and not kept yet is at most
//! [`INTERVAL`] blocks: so much is fetched a second time after a kill.

mod checkpoint;
mod digests;
mod lock;
mod progress;
mod proof;
mod record;
mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use checkpoint::{Checkpoint, Mode, Task, replace};
pub use lock::Lock;
pub use progress::Progress;
pub use proof::{image_digest, is_as_kept, linear_digest, verify};
pub use record::{Content, Record};
pub use report::Report;

use crate::block::{Block, BlockIndex, Digest, Extent};
use crate::disk::blocking;
use crate::error::{Error, Kind, Result};
use crate::sink::Sink;
use crate::source::{BlockSource, Wanted};

/// The most blocks that are fetched and not kept yet: 512 MiB.
pub const INTERVAL: usize = 1024;
/// What is written is kept after this time at the latest, however little it is.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// Blocks zeroed between two checkpoints: 1 GiB.
const ZERO_STEP: u32 = 2048;
/// Runs of them at once.
const ZEROED_AT_ONCE: usize = 16;

/// One target of a copy.
pub struct Target {
    /// Where blocks go.
    pub sink: Arc<dyn Sink>,
    /// What there is to do, and what of it is done.
    pub checkpoint: Checkpoint,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.sink.id())
    }
}

/// What was fetched of a block, and what came of writing it, by target.
struct Copied {
    index: BlockIndex,
    digest: Option<Digest>,
    bytes: u64,
    written: Result<Vec<(usize, Result<()>)>>,
}

/// One target while it is copied to.
struct Copying {
    target: Target,
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
    in_flight: usize,
    progress: &'a Progress,
    stop: watch::Receiver<bool>,
    targets: Vec<Copying>,
}

/// A step of keeping what a target has.
type Keep = BoxFuture<'static, (usize, Result<Step>)>;

/// What is done of it.
enum Step {
    /// Data and digests survive a crash; with this the sink goes on.
    Flushed(Value),
    /// So does the checkpoint that speaks of them.
    Saved,
}

/// Copies to every target, with at most `in_flight` blocks on their way; the answers are the targets' own. One that fails
/// does not stop the others; a source that fails, or `stop`, ends them all, each with its checkpoint as far as it came.
pub async fn copy(
    source: Arc<dyn BlockSource>,
    targets: Vec<Target>,
    in_flight: usize,
    progress: &Progress,
    stop: watch::Receiver<bool>,
) -> Vec<(Target, Result<()>)> {
    let now = Instant::now();
    let targets = targets.into_iter().map(|target| Copying {
        target,
        written: Vec::new(),
        // The first blocks are kept at once: they tell the target from another one.
        kept_at: now.checked_sub(KEEP_EVERY).unwrap_or(now),
        keeping: None,
        failed: None,
    });
    let mut copy = Copy {
        source,
        in_flight,
        progress,
        stop,
        targets: targets.collect(),
    };
    copy.name_and_zero().await;
    let ended = copy.fetch().await;
    let ends = copy.targets.into_iter().map(|copying| {
        let end = copying.failed.map_or_else(|| ended.clone(), Err);
        (copying.target, end)
    });
    ends.collect()
}

impl Copy<'_> {
    /// Saves each checkpoint before its target is touched, then zeroes what is to be zeroed.
    async fn name_and_zero(&mut self) {
        let (progress, stop) = (self.progress, &self.stop);
        let zeroed = self.targets.iter_mut().map(|copying| async move {
            let done = zero(&mut copying.target, progress, stop).await;
            copying.failed = done.err();
        });
        join_all(zeroed).await;
    }

    async fn fetch(&mut self) -> Result<()> {
        // Each on its own, so that all processors have a part in it; dropped, they end.
        let mut flights = JoinSet::new();
        let mut keeps: FuturesUnordered<Keep> = FuturesUnordered::new();
        let mut stop = self.stop.clone();
        let mut cursor = Some(BlockIndex(0));
        let mut ended: Result<()> = Ok(());
        loop {
            if *stop.borrow() && ended.is_ok() {
                ended = Err(stopped());
            }
            let alive = self.targets.iter().any(|copying| copying.failed.is_none());
            while ended.is_ok()
                && alive
                && flights.len() < self.in_flight
                && self.has_room(flights.len())
            {
                let Some(index) = cursor.and_then(|from| self.next(from)) else {
                    break;
                };
                cursor = index.0.checked_add(1).map(BlockIndex);
                flights.spawn(copy_block(
                    Arc::clone(&self.source),
                    index,
                    self.sinks_of(index),
                ));
            }
            let is_last = flights.is_empty();
            for number in 0..self.targets.len() {
                keeps.extend(self.keep(number, is_last));
            }
            if flights.is_empty() && keeps.is_empty() {
                return ended;
            }
            let stopping = ended.is_err();
            let stopped = async {
                if stopping || stop.wait_for(|stop| *stop).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                Some(copied) = flights.join_next() => {
                    let copied = copied.map_err(|error| Error::with_source(Kind::Io, "stopped", error));
                    let noted = copied.and_then(|copied| self.copied(copied));
                    ended = ended.and(noted);
                }
                Some((number, step)) = keeps.next() => keeps.extend(self.kept(number, step)),
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

    /// Notes what was written where. The error is the source's.
    fn copied(&mut self, copied: Copied) -> Result<()> {
        for (number, written) in copied.written? {
            let Some(copying) = self.targets.get_mut(number) else {
                continue;
            };
            match written {
                Ok(()) => copying.written.push((copied.index, copied.digest)),
                Err(error) => copying.fail(error),
            }
        }
        self.progress.copied(copied.bytes);
        Ok(())
    }

    /// Begins to keep what a target has, when that is worth it, or the last of it.
    fn keep(&mut self, number: usize, is_last: bool) -> Option<Keep> {
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
            blocking(move || file.write(&digests)).await?;
            Ok(Step::Flushed(state))
        };
        Some(flushed.map(move |step| (number, step)).boxed())
    }

    /// What was flushed is done once the checkpoint says so: that is the next step.
    fn kept(&mut self, number: usize, step: Result<Step>) -> Option<Keep> {
        let copying = self.targets.get_mut(number)?;
        match step {
            Ok(Step::Flushed(state)) => {
                let blocks = copying.keeping.iter().flatten();
                let extents = blocks.map(|(index, _)| Extent::of(*index));
                copying.target.checkpoint.mark(extents, state);
                let saved = copying.target.checkpoint.encode();
                let save = blocking(move || saved.write().map(|()| Step::Saved));
                return Some(save.map(move |step| (number, step)).boxed());
            }
            Ok(Step::Saved) => copying.keeping = None,
            Err(error) => {
                copying.keeping = None;
                copying.fail(error);
            }
        }
        None
    }
}

impl Copying {
    fn unkept(&self) -> usize {
        self.written.len() + self.keeping.as_ref().map_or(0, Vec::len)
    }

    /// The first failure is the one that is told.
    fn fail(&mut self, error: Error) {
        self.failed.get_or_insert(error);
    }
}

/// Fetches a block once and writes it to each sink.
async fn copy_block(
    source: Arc<dyn BlockSource>,
    index: BlockIndex,
    sinks: Vec<(usize, Arc<dyn Sink>)>,
) -> Copied {
    // Nobody waits for one block of many: it may be hashed in company.
    let (digest, bytes, written) = match source.read_ahead(index, Wanted::default()).await {
        Err(error) => (None, 0, Err(error)),
        Ok(Block::Zero) => {
            let zeroed = sinks.iter().map(|(number, sink)| async move {
                (*number, sink.write_zeroes(Extent::of(index)).await)
            });
            (None, 0, Ok(join_all(zeroed).await))
        }
        Ok(Block::Data(bytes, digest)) => {
            let written = sinks.iter().map(|(number, sink)| {
                let bytes = bytes.clone();
                async move { (*number, sink.write_block(index, bytes, digest).await) }
            });
            let written = join_all(written).await;
            (Some(digest), bytes.len() as u64, Ok(written))
        }
    };
    Copied {
        index,
        digest,
        bytes,
        written,
    }
}

/// Names the target, then zeroes what is left to be zeroed, so much at once that keeping it is worth several waits for the
/// disk.
async fn zero(
    target: &mut Target,
    progress: &Progress,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    save(target, Vec::new(), None).await?;
    let mut at = BlockIndex(0);
    while !*stop.borrow() {
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
        save(target, step, Some(state)).await?;
        progress.zeroed((ZERO_STEP - left).into());
    }
    Ok(())
}

async fn save(target: &mut Target, blocks: Vec<Extent>, state: Option<Value>) -> Result<()> {
    let state = state.unwrap_or_else(|| target.checkpoint.state().clone());
    target.checkpoint.mark(blocks, state);
    let saved = target.checkpoint.encode();
    blocking(move || saved.write()).await
}

/// Somebody said so.
pub fn stopped() -> Error {
    Error::new(Kind::Stopped, "stopped; the same command goes on from here")
}
