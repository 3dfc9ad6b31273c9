//! [`EbsSink`]: PutSnapshotBlock and CompleteSnapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::block::{BlockIndex, BlockSet, Digest, Extent, ZERO_BLOCK, ZEROES};
use crate::error::{Error, Kind, Remedy, Result};
use crate::files::blocking;
use crate::snapshot::{Selector, SnapshotId, SnapshotState};
use crate::source::BlockSource;
use crate::target::{Published, Sink, SinkState, SourceInfo, Written};

use super::evidence::DAMAGED_TAG;
use super::state::EbsState;
use super::{EbsAccount, YOUNG};

/// Blocks of zeroes put at once.
const ZEROES_AT_ONCE: usize = 64;
/// How long EBS may take to make a completed snapshot of what was put.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// Between two requests for its state, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(15);
/// Time between two log lines while waiting.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A snapshot that was started and is not completed.
pub(super) struct EbsSink {
    place: EbsAccount,
    snapshot: SnapshotId,
    puts_zeroes: bool,
    is_tagged: bool,
    /// Blocks that are zero in the source, because its own source was damaged.
    damaged_in_source: u64,
    /// What the checkpoint keeps; nothing in it changes.
    state: SinkState,
    young_until: Instant,
    is_completed: AtomicBool,
}

impl EbsSink {
    /// The sink of a snapshot that was started at `young_since`, if it has taken nothing yet.
    pub(super) fn new(
        place: EbsAccount,
        snapshot: SnapshotId,
        state: &EbsState,
        source: &SourceInfo,
        young_since: Option<SystemTime>,
    ) -> Self {
        let young_for = young_since.map_or(Duration::ZERO, |since| {
            YOUNG.saturating_sub(since.elapsed().unwrap_or_default())
        });
        Self {
            place,
            snapshot,
            puts_zeroes: state.puts_zeroes,
            is_tagged: state.is_tagged,
            damaged_in_source: source.damaged_blocks(),
            state: SinkState::of(state),
            young_until: Instant::now() + young_for,
            is_completed: AtomicBool::new(false),
        }
    }

    fn is_young(&self) -> bool {
        Instant::now() < self.young_until
    }

    async fn put(&self, index: BlockIndex, bytes: &Bytes, digest: &Digest) -> Result<()> {
        let is_young = self.is_young();
        let client = &self.place.client;
        let put = client.put_block(&self.snapshot, index, bytes, digest, is_young);
        put.await.map_err(|error| self.explain(error))
    }

    /// A snapshot that is not pending any more takes no blocks.
    fn explain(&self, error: Error) -> Error {
        if !matches!(error.kind(), Kind::NotFound | Kind::Invalid) {
            return error;
        }
        let what = format!(
            "cannot write to {}: EBS has given it up, or it was completed or deleted meanwhile",
            self.snapshot
        );
        error.context(what).with_remedy(Remedy::Restart)
    }

    async fn put_zeroes(&self, extent: Extent) -> Result<()> {
        if !self.puts_zeroes {
            return Ok(());
        }
        let zeroes = &Bytes::from_static(&ZEROES);
        stream::iter(extent.blocks())
            .map(|index| self.put(index, zeroes, &ZERO_BLOCK))
            .buffer_unordered(ZEROES_AT_ONCE)
            .try_collect()
            .await
    }

    /// Marks a snapshot with damaged blocks: where its own tag would prove it, it must not pass for a whole one.
    async fn mark_damage(&self, damaged: &BlockSet) -> Result<()> {
        // A block of the source that is zero is not among those that were left zero.
        let count = damaged.len() + self.damaged_in_source;
        if count == 0 {
            return Ok(());
        }
        let id = &self.snapshot;
        let tags = [(DAMAGED_TAG.to_owned(), count.to_string())];
        match self.place.descriptions.add_tags(id, &tags).await {
            Err(error) if self.is_tagged => {
                Err(error.context(format!("cannot tag {id} {DAMAGED_TAG}")))
            }
            Err(error) => {
                warn!("cannot tag {id} {DAMAGED_TAG}: {}", error.chain());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn complete(&self, written: Written, damaged: &BlockSet) -> Result<Published> {
        self.mark_damage(damaged).await?;
        let (puts_zeroes, damaged) = (self.puts_zeroes, damaged.clone());
        let (count, checksum) = blocking(move || linear(written, &damaged, puts_zeroes)).await?;
        let (id, is_young) = (&self.snapshot, self.is_young());
        let client = &self.place.client;
        let completed = client.complete_snapshot(id, count, &checksum, is_young);
        completed.await.map_err(|error| self.explain(error))?;
        info!("{id} has all its blocks: waiting for EBS to complete it");
        self.settled().await?;
        self.is_completed.store(true, Ordering::Relaxed);
        Ok(Published {
            mark: None,
            snapshot: Some(id.to_string()),
            replica: Some(id.clone()),
        })
    }

    /// Waits until EBS has taken or refused it: CompleteSnapshot accepts wrong counts and checksums, only the state
    /// shows them, minutes later.
    async fn settled(&self) -> Result<()> {
        let id = &self.snapshot;
        let select = [Selector::Snapshot(id.clone())];
        let since = Instant::now();
        let (mut pause, mut said) = (FIRST_LOOK, since);
        loop {
            let described = self.place.descriptions.describe(&select).await;
            let found = match described {
                Err(error) if error.kind() == Kind::NotFound => Ok(None),
                described => described.map(|snapshots| snapshots.into_iter().next()),
            };
            let why = match found {
                Ok(Some(snapshot)) => match snapshot.state {
                    Some(SnapshotState::Completed) => return Ok(()),
                    Some(SnapshotState::Other(state)) => {
                        let why = snapshot.state_message.unwrap_or_default();
                        let what = format!("cannot complete {id}: it is in state {state}: {why}");
                        return Err(Error::new(Kind::Corrupt, what).with_remedy(Remedy::Restart));
                    }
                    _ => format!(
                        "it is {}",
                        snapshot.progress.as_deref().unwrap_or("pending")
                    ),
                },
                Ok(None) if since.elapsed() > YOUNG => {
                    let what = format!("cannot complete {id}: it does not exist any more");
                    return Err(Error::new(Kind::NotFound, what).with_remedy(Remedy::Restart));
                }
                Ok(None) => "EC2 does not know it yet".to_owned(),
                Err(error) if error.kind() == Kind::Denied => {
                    let what = format!(
                        "cannot tell whether EBS has completed {id}, which has all its blocks"
                    );
                    return Err(error.context(what).with_remedy(Remedy::TryLater));
                }
                Err(error) => error.chain(),
            };
            debug!("waiting for {id}: {why}");
            if said.elapsed() >= SAY_EVERY {
                info!("waiting for EBS to complete {id}: {why}");
                said = Instant::now();
            }
            if since.elapsed() > SETTLE_TIMEOUT {
                let what = format!(
                    "cannot complete {id}: EBS is not done after {SETTLE_TIMEOUT:?}: {why}"
                );
                return Err(Error::new(Kind::Unavailable, what).with_remedy(Remedy::TryLater));
            }
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(LONGEST_LOOK);
        }
    }
}

/// How many blocks were put, and the SHA-256 over their SHA-256: what CompleteSnapshot calls linear. A damaged block was put
/// as zeroes, or not at all where absence is zero.
pub(super) fn linear(
    written: Written,
    damaged: &BlockSet,
    puts_zeroes: bool,
) -> Result<(u64, Digest)> {
    let mut hasher = Sha256::new();
    let mut count = 0;
    for block in written {
        let (index, digest) = block?;
        let digest = digest.filter(|_| !damaged.contains(index));
        let Some(digest) = digest.or(puts_zeroes.then_some(ZERO_BLOCK)) else {
            continue;
        };
        hasher.update(digest);
        count += 1;
    }
    Ok((count, hasher.finalize().into()))
}

impl Sink for EbsSink {
    fn write_block(
        &self,
        index: BlockIndex,
        bytes: Bytes,
        digest: Digest,
    ) -> BoxFuture<'_, Result<()>> {
        async move { self.put(index, &bytes, &digest).await }.boxed()
    }

    fn write_zeroes(&self, extent: Extent) -> BoxFuture<'_, Result<()>> {
        self.put_zeroes(extent).boxed()
    }

    /// A block that EBS has acknowledged is durable.
    fn flush(&self) -> BoxFuture<'_, Result<SinkState>> {
        std::future::ready(Ok(self.state.clone())).boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        async {
            if !self.is_completed.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (_, source) = self.place.catalog.open(&self.snapshot).await?;
            Ok(Some(source))
        }
        .boxed()
    }

    fn publish<'a>(
        &'a self,
        written: Written,
        damaged: &'a BlockSet,
    ) -> BoxFuture<'a, Result<Published>> {
        self.complete(written, damaged).boxed()
    }
}
