//! [`SnapshotSink`]: a new EBS snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use crate::block::{BlockIndex, Digest, Extent, ZERO_BLOCK, ZEROES};
use crate::disk::blocking;
use crate::ebs::Client;
use crate::error::{Error, Kind, Result};
use crate::sink::{Sink, Written};
use crate::source::{BlockSource, Catalog, Descriptions, Selector, SnapshotId, State};

/// Blocks of zeroes put at once.
const ZEROES_AT_ONCE: usize = 64;
/// How long EBS may take to make a completed snapshot of what was put.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// How long a snapshot that was just begun, or just completed, may be unknown to one part of EBS or EC2 or another
/// (github.com/awslabs/coldsnap issues 43 and 141).
const YOUNG: Duration = Duration::from_secs(120);
/// Between two looks at its state, to begin with and at most.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(15);

/// The account and Region that a snapshot is made in.
pub struct SnapshotTarget {
    /// Puts blocks.
    pub client: Arc<Client>,
    /// Tells when the snapshot is completed.
    pub descriptions: Arc<dyn Descriptions>,
    /// Reads it back.
    pub catalog: Arc<dyn Catalog>,
}

impl std::fmt::Debug for SnapshotTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotTarget({})", self.client.endpoint())
    }
}

/// A snapshot that was started and is not completed.
pub struct SnapshotSink {
    id: String,
    snapshot: SnapshotId,
    target: Arc<SnapshotTarget>,
    /// Whether absence would be wrong: with encryption it reads as anything, with a parent as the parent's block.
    puts_zeroes: bool,
    /// What is kept in the checkpoint; nothing in it changes.
    state: Value,
    young_until: Instant,
    is_finished: AtomicBool,
}

impl std::fmt::Debug for SnapshotSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnapshotSink({})", self.snapshot)
    }
}

impl SnapshotSink {
    /// The sink of a snapshot that was `started` then, if it has taken nothing yet; `state` is what [`Sink::flush`] answers.
    pub fn new(
        id: String,
        snapshot: SnapshotId,
        target: Arc<SnapshotTarget>,
        puts_zeroes: bool,
        started: Option<SystemTime>,
        state: Value,
    ) -> Self {
        let young_for = started.map_or(Duration::ZERO, |started| {
            YOUNG.saturating_sub(started.elapsed().unwrap_or_default())
        });
        Self {
            id,
            snapshot,
            target,
            puts_zeroes,
            state,
            young_until: Instant::now() + young_for,
            is_finished: AtomicBool::new(false),
        }
    }

    fn is_young(&self) -> bool {
        Instant::now() < self.young_until
    }

    async fn put(&self, index: BlockIndex, bytes: &Bytes, digest: &Digest) -> Result<()> {
        let is_young = self.is_young();
        let put = self
            .target
            .client
            .put_block(&self.snapshot, index, bytes, digest, is_young);
        put.await.map_err(|error| self.explain(error))
    }

    /// What is no longer being made takes no blocks.
    fn explain(&self, error: Error) -> Error {
        if !matches!(error.kind(), Kind::NotFound | Kind::Invalid) {
            return error;
        }
        error.context(format!(
            "{} takes no more blocks (EBS has given it up, or somebody has completed or deleted it): --restart begins another",
            self.snapshot
        ))
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

    async fn complete(&self, written: Written) -> Result<()> {
        let puts_zeroes = self.puts_zeroes;
        let (count, checksum) = blocking(move || linear(written, puts_zeroes)).await?;
        let client = &self.target.client;
        let completed = client.complete_snapshot(&self.snapshot, count, &checksum, self.is_young());
        completed.await.map_err(|error| self.explain(error))?;
        info!("{} has all its blocks: waiting for EBS", self.snapshot);
        self.settled().await?;
        self.is_finished.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until EBS has taken or refused it: CompleteSnapshot accepts wrong counts and checksums, and only the state
    /// tells, minutes later.
    async fn settled(&self) -> Result<()> {
        let id = &self.snapshot;
        let select = [Selector::Snapshot(id.clone())];
        let since = Instant::now();
        let mut pause = FIRST_LOOK;
        loop {
            let told = self.target.descriptions.describe(&select).await;
            let state = told.map(|snapshots| snapshots.into_iter().next());
            let why = match state {
                Ok(Some(snapshot)) => match snapshot.state {
                    Some(State::Completed) => return Ok(()),
                    Some(State::Other(state)) => {
                        let why = snapshot.state_message.unwrap_or_default();
                        let what =
                            format!("{id} is in state {state}: {why}; --restart begins another");
                        return Err(Error::new(Kind::Corrupt, what));
                    }
                    _ => format!(
                        "it is {}",
                        snapshot.progress.as_deref().unwrap_or("pending")
                    ),
                },
                Ok(None) if since.elapsed() > YOUNG => {
                    let what =
                        format!("{id} is gone before it was completed: --restart begins another");
                    return Err(Error::new(Kind::NotFound, what));
                }
                Ok(None) => "EC2 does not know it yet".to_owned(),
                Err(error) if error.kind() == Kind::Denied => {
                    let what = format!(
                        "{id} has all its blocks, but nobody can tell whether EBS took them; the same command looks again"
                    );
                    return Err(error.context(what));
                }
                Err(error) => error.chain(),
            };
            debug!("waiting for {id}: {why}");
            if since.elapsed() > SETTLE_TIMEOUT {
                let what = format!(
                    "{id} is not completed after {SETTLE_TIMEOUT:?}: {why}; the same command waits again"
                );
                return Err(Error::new(Kind::Unavailable, what));
            }
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(LONGEST_LOOK);
        }
    }
}

/// How many blocks were put, and the SHA-256 over their SHA-256: what CompleteSnapshot calls linear.
fn linear(written: Written, puts_zeroes: bool) -> Result<(u64, Digest)> {
    let mut hasher = Sha256::new();
    let mut count = 0;
    for block in written {
        let (_, digest) = block?;
        let Some(digest) = digest.or(puts_zeroes.then_some(ZERO_BLOCK)) else {
            continue;
        };
        hasher.update(digest);
        count += 1;
    }
    Ok((count, hasher.finalize().into()))
}

impl Sink for SnapshotSink {
    fn id(&self) -> &str {
        &self.id
    }

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

    /// What EBS has answered for is safe.
    fn flush(&self) -> BoxFuture<'_, Result<Value>> {
        std::future::ready(Ok(self.state.clone())).boxed()
    }

    fn read_back(&self) -> BoxFuture<'_, Result<Option<Arc<dyn BlockSource>>>> {
        async {
            if !self.is_finished.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (_, source) = self.target.catalog.open(&self.snapshot).await?;
            Ok(Some(source))
        }
        .boxed()
    }

    fn finish(&self, written: Written) -> BoxFuture<'_, Result<()>> {
        self.complete(written).boxed()
    }
}
