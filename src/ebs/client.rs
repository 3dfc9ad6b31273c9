//! The calls of the EBS direct APIs, each retried until it succeeds, fails for good, or its deadline passes.
//! The only file with aws-sdk-ebs in it.
//!
//! The SDK's own retries are off: their token bucket is shared by all clients of a process and fails early. Its
//! timeouts end at the reply's headers and it does not verify checksums, so one loop here covers sending, the body, its
//! length and its SHA-256.

mod get;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_sdk_ebs::config::{Builder, StalledStreamProtectionConfig};
use aws_sdk_ebs::operation::list_changed_blocks::ListChangedBlocksOutput;
use aws_sdk_ebs::operation::list_snapshot_blocks::ListSnapshotBlocksOutput;
use aws_sdk_ebs::primitives::DateTime;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, trace, warn};

use super::digest::Digester;
use super::hedge::Hedge;
use super::limit::{Limiter, Limits};
use super::wire::{CONNECT_TIMEOUT, Route};
use crate::aws::{Verdict, judge};
use crate::block::{BLOCK_SIZE, Block, BlockIndex};
use crate::error::{Error, Kind};
use crate::source::{SnapshotId, Wanted};

/// How long to wait for a reply's headers before the request is sent again.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(12);
/// The pause after a first failure; it doubles up to the longest, and a random part of it is waited.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// One line in this time says what is waited for, however many blocks wait.
const WAIT_LOG_EVERY: Duration = Duration::from_secs(5);

/// A client of the EBS direct APIs of one Region.
#[derive(Debug)]
pub struct Client {
    sdk: aws_sdk_ebs::Client,
    route: Route,
    /// Where requests go, for people.
    endpoint: String,
    limiter: Limiter,
    digester: Digester,
    hedge: Option<Hedge>,
    timeout: Mutex<Duration>,
    last_wait_log: Mutex<Option<Instant>>,
    gets: AtomicU64,
    lists: AtomicU64,
    hedges: AtomicU64,
    retries: AtomicU64,
    throttles: AtomicU64,
}

/// Requests since the start, retries included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// GetSnapshotBlock requests sent.
    pub gets: u64,
    /// ListSnapshotBlocks and ListChangedBlocks requests sent.
    pub lists: u64,
    /// GetSnapshotBlock requests among them that were sent a second time because the first was slow.
    pub hedges: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Requests that the service refused because there were too many.
    pub throttles: u64,
}

/// One reply of ListSnapshotBlocks or ListChangedBlocks. Everything in it can be missing.
#[derive(Debug)]
pub(super) struct Listing<T> {
    /// Indexes and what came with them: a token, or none where a block is gone in the second snapshot.
    pub(super) blocks: Vec<(i32, T)>,
    /// When the tokens stop working.
    pub(super) expiry: Option<SystemTime>,
    /// The volume's size in bytes.
    pub(super) volume_size: Option<u64>,
    /// The token of the next page; none at the end.
    pub(super) next: Option<String>,
}

/// Where a listing begins.
#[derive(Debug)]
pub(super) enum From {
    /// The first held block at or after this one.
    Index(BlockIndex),
    /// The page after the one that brought this token.
    Page(String),
}

/// A block to get.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRequest<'a> {
    pub(super) snapshot: &'a SnapshotId,
    pub(super) index: BlockIndex,
    pub(super) token: &'a str,
    /// Its bytes.
    pub(super) len: usize,
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The token is expired or foreign: a fresh one may do.
    StaleToken(Error),
    /// Everything else.
    Final(Error),
}

impl std::convert::From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::StaleToken(error) | Failure::Final(error) => error,
        }
    }
}

impl Client {
    /// A client with the Region, credentials and endpoint of `config`.
    pub fn new(config: &SdkConfig, limits: &Limits) -> Self {
        let region = config
            .region()
            .map_or("no Region", |region| region.as_ref());
        let chosen = config.endpoint_url().map(str::to_owned);
        let endpoint = match std::env::var("AWS_ENDPOINT_URL_EBS") {
            Ok(url) if !config.get_origin("endpoint_url").is_client_config() => Some(url),
            _ => chosen,
        };
        let endpoint = endpoint.unwrap_or_else(|| format!("EBS in {region}"));
        let route = Route::default();
        let config = Builder::from(config)
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .disable_read_timeout()
                    .disable_operation_timeout()
                    .disable_operation_attempt_timeout()
                    .build(),
            )
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .interceptor(route.clone())
            .build();
        Self {
            route,
            sdk: aws_sdk_ebs::Client::from_conf(config),
            endpoint,
            limiter: Limiter::new(limits),
            digester: Digester::new(),
            hedge: limits
                .hedge
                .then(|| Hedge::new(limits.max_rps.min(limits.max_snapshot_rps))),
            timeout: Mutex::new(limits.timeout),
            last_wait_log: Mutex::new(None),
            gets: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            throttles: AtomicU64::new(0),
        }
    }

    /// When a read that starts now gives up.
    pub fn deadline(&self) -> Instant {
        Instant::now() + *self.timeout.lock()
    }

    /// From now on a block may take this long, all its attempts together.
    pub fn set_timeout(&self, timeout: Duration) {
        *self.timeout.lock() = timeout;
    }

    /// Requests since the start.
    pub fn counts(&self) -> Counts {
        Counts {
            gets: self.gets.load(Ordering::Relaxed),
            lists: self.lists.load(Ordering::Relaxed),
            hedges: self.hedges.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            throttles: self.throttles.load(Ordering::Relaxed),
        }
    }

    /// One page of at most `max` (100 to 10,000) blocks of a snapshot.
    pub(super) async fn list(
        &self,
        snapshot: &SnapshotId,
        from: &From,
        max: u16,
        deadline: Instant,
    ) -> std::result::Result<Listing<String>, Failure> {
        let call = Call {
            action: "ebs:ListSnapshotBlocks",
            target: snapshot.to_string(),
            deadline,
        };
        let send = || {
            let request = self
                .sdk
                .list_snapshot_blocks()
                .snapshot_id(snapshot.as_str())
                .max_results(max.into());
            let request = match from {
                From::Index(index) => request.starting_block_index(number(*index)),
                From::Page(token) => request.next_token(token),
            };
            request.send()
        };
        let told = |reply: ListSnapshotBlocksOutput| {
            let blocks = reply.blocks.unwrap_or_default().into_iter();
            Told {
                blocks: blocks
                    .map(|block| Some((block.block_index?, block.block_token?)))
                    .collect(),
                block_size: reply.block_size,
                expiry: reply.expiry_time,
                volume_size: reply.volume_size,
                next: reply.next_token,
            }
        };
        self.listing(&call, send, told).await
    }

    /// One page of at most `max` (100 to 10,000) blocks that differ between two snapshots: with the token of the block in
    /// `head`, or none where only `base` holds it.
    pub(super) async fn list_changed(
        &self,
        base: &SnapshotId,
        head: &SnapshotId,
        from: &From,
        max: u16,
        deadline: Instant,
    ) -> std::result::Result<Listing<Option<String>>, Failure> {
        let call = Call {
            action: "ebs:ListChangedBlocks",
            target: format!("{base}..{head}"),
            deadline,
        };
        let send = || {
            let request = self
                .sdk
                .list_changed_blocks()
                .first_snapshot_id(base.as_str())
                .second_snapshot_id(head.as_str())
                .max_results(max.into());
            let request = match from {
                From::Index(index) => request.starting_block_index(number(*index)),
                From::Page(token) => request.next_token(token),
            };
            request.send()
        };
        let told = |reply: ListChangedBlocksOutput| {
            let blocks = reply.changed_blocks.unwrap_or_default().into_iter();
            let whole = blocks.map(|block| {
                // Neither token is a block of neither snapshot.
                let (first, second) = (block.first_block_token, block.second_block_token);
                let known = first.is_some() || second.is_some();
                Some((block.block_index.filter(|_| known)?, second))
            });
            Told {
                blocks: whole.collect(),
                block_size: reply.block_size,
                expiry: reply.expiry_time,
                volume_size: reply.volume_size,
                next: reply.next_token,
            }
        };
        self.listing(&call, send, told).await
    }

    /// A list call of either kind, until it succeeds or fails for good.
    async fn listing<T, R, E, F>(
        &self,
        call: &Call,
        send: impl Fn() -> F,
        told: impl Fn(R) -> Told<T>,
    ) -> std::result::Result<Listing<T>, Failure>
    where
        F: Future<Output = std::result::Result<R, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let once = || async {
            let _place = self.limiter.list().await.map_err(Verdict::Permanent)?;
            self.lists.fetch_add(1, Ordering::Relaxed);
            let reply = call.within(HEADERS_TIMEOUT, send()).await?;
            let reply = reply.map_err(|error| judge(error, call.action, &call.target));
            let reply = reply.inspect_err(|verdict| {
                if verdict.is_throttle() {
                    self.throttles.fetch_add(1, Ordering::Relaxed);
                }
            })?;
            told(reply).listing(call)
        };
        let mut waits = Waits::new();
        loop {
            if let Some(listing) = self.one_try(call, &mut waits, once()).await? {
                return Ok(listing);
            }
        }
    }

    /// The bytes of one block, verified. It gives way to others until it is `wanted`.
    pub(super) async fn get(
        &self,
        block: &BlockRequest<'_>,
        wanted: &Wanted,
        deadline: Instant,
    ) -> std::result::Result<Block, Failure> {
        let call = Call {
            action: "ebs:GetSnapshotBlock",
            target: format!("{} block {}", block.snapshot, block.index),
            deadline,
        };
        let mut waits = Waits::new();
        // The digest of a body that did not match its checksum. The same wrong bytes twice are wrong where they are
        // stored, and no waiting mends them; other wrong bytes were damaged on the way.
        let mut wrong = None;
        loop {
            let once = self.get_once(&call, block, wanted, &mut wrong);
            if let Some(block) = self.one_try(&call, &mut waits, once).await? {
                return Ok(block);
            }
        }
    }

    /// Makes one attempt: the answer, or nothing when it is worth another and the pause before that is over.
    async fn one_try<T>(
        &self,
        call: &Call,
        waits: &mut Waits,
        once: impl Future<Output = std::result::Result<T, Verdict>>,
    ) -> std::result::Result<Option<T>, Failure> {
        trace!("{} {}", call.action, call.target);
        let error = match timeout_at(call.deadline, once).await {
            Ok(Ok(answer)) => return Ok(Some(answer)),
            Ok(Err(Verdict::StaleToken(error))) => return Err(Failure::StaleToken(error)),
            Ok(Err(Verdict::Permanent(error))) => return Err(Failure::Final(error)),
            Ok(Err(Verdict::Skewed(error))) if waits.skewed => return Err(Failure::Final(error)),
            Ok(Err(Verdict::Skewed(error))) => {
                waits.skewed = true;
                error
            }
            Ok(Err(Verdict::Retry(error))) => error,
            Err(_) => call.error(Kind::Unavailable, "no answer"),
        };
        let pause = waits.next_pause();
        let now = Instant::now();
        if now + pause >= call.deadline {
            let given_up = format!(
                "gave up on {} after {} attempts in {:.1?}",
                self.endpoint,
                waits.attempts,
                now - waits.since
            );
            return Err(Failure::Final(error.context(given_up)));
        }
        debug!(
            attempt = waits.attempts,
            "again in {pause:.1?}: {}",
            error.chain()
        );
        self.log_wait(call, waits, &error, now);
        sleep(pause).await;
        self.retries.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Tells what is waited for, one line for all blocks in [`WAIT_LOG_EVERY`].
    fn log_wait(&self, call: &Call, waits: &Waits, error: &Error, now: Instant) {
        let mut last = self.last_wait_log.lock();
        // One retry is everyday: only the second failure in a row is waiting.
        if waits.attempts < 2 || last.is_some_and(|last| now < last + WAIT_LOG_EVERY) {
            return;
        }
        *last = Some(now);
        warn!(
            "waiting since {:.0?}, up to {:.0?} more: {}",
            now - waits.since,
            call.deadline - now,
            error.chain()
        );
    }
}

/// One call: the IAM action that it needs, what it is made on, and when it must have ended.
#[derive(Debug)]
struct Call {
    action: &'static str,
    target: String,
    deadline: Instant,
}

impl Call {
    fn error(&self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("{} {}: {what}", self.action, self.target))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> std::result::Result<T, Verdict> {
        tokio::time::timeout(limit, work).await.map_err(|_| {
            Verdict::Retry(self.error(Kind::Unavailable, &format!("no answer in {limit:?}")))
        })
    }
}

/// What a reply of either list call tells.
struct Told<T> {
    /// None when one of them was told by halves: it must not be taken for a hole.
    blocks: Option<Vec<(i32, T)>>,
    block_size: Option<i32>,
    expiry: Option<DateTime>,
    /// In GiB.
    volume_size: Option<i64>,
    next: Option<String>,
}

impl<T> Told<T> {
    fn listing(self, call: &Call) -> std::result::Result<Listing<T>, Verdict> {
        let told = self.block_size;
        if told.is_some_and(|size| size != BLOCK_SIZE as i32) {
            let what = format!("blocks of {told:?} bytes, not {BLOCK_SIZE}");
            return Err(Verdict::Permanent(call.error(Kind::Invalid, &what)));
        }
        let blocks = self.blocks.ok_or_else(|| {
            Verdict::Retry(call.error(Kind::Corrupt, "a block without index or token"))
        })?;
        let bytes = |gib: i64| u64::try_from(gib).ok()?.checked_mul(1 << 30);
        Ok(Listing {
            blocks,
            expiry: self.expiry.and_then(|at| SystemTime::try_from(at).ok()),
            volume_size: self.volume_size.and_then(bytes),
            next: self.next.filter(|token| !token.is_empty()),
        })
    }
}

/// A block's index as the API writes it.
fn number(index: BlockIndex) -> i32 {
    i32::try_from(index.0).unwrap_or(i32::MAX)
}

/// The attempts of one call.
#[derive(Debug)]
struct Waits {
    since: Instant,
    attempts: u32,
    /// Whether it was sent again because of the clock.
    skewed: bool,
}

impl Waits {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            attempts: 0,
            skewed: false,
        }
    }

    /// Exponential with full jitter, but never less than a quarter of the step.
    fn next_pause(&mut self) -> Duration {
        let step = FIRST_PAUSE
            .saturating_mul(1 << self.attempts.min(10))
            .min(LONGEST_PAUSE);
        self.attempts += 1;
        step.mul_f64(0.25 + 0.75 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_longest_and_are_never_nothing() {
        let mut waits = Waits::new();
        let pauses: Vec<_> = (0..20).map(|_| waits.next_pause()).collect();
        assert!(pauses[0] >= FIRST_PAUSE / 4 && pauses[0] <= FIRST_PAUSE);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert!(pauses[19] >= LONGEST_PAUSE / 4);
    }
}
