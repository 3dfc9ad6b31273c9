//! The calls of the EBS direct APIs, each retried until it succeeds, fails for good, or its deadline passes.
//! This file and its own modules are the only ones with aws-sdk-ebs in them.
//!
//! The SDK's own retries are off: their token bucket is shared by all clients of a process and fails early. Its
//! timeouts end at the reply's headers and it does not verify checksums, so one loop here covers sending, the body, its
//! length and its SHA-256.

mod get;
mod hedge;
mod limiter;
mod list;
mod place;
mod put;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_ebs::config::{Builder, StalledStreamProtectionConfig};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, trace, warn};

use self::hedge::Hedge;
use self::limiter::Limiter;
use self::wire::{Probe, Route};
use super::listing::Token;
use crate::aws::{
    Action, Credentials, ErrorClass, Http, IamAction, RequestCounts, ServiceConfig, classify,
};
use crate::block::{Block, BlockIndex};
use crate::digest::Digester;
use crate::error::{Error, Kind};
use crate::snapshot::SnapshotId;
use crate::source::Wanted;
use crate::time::jittered;

pub use limiter::Limits;
pub(crate) use place::url;
pub use put::{NewSnapshot, StartedSnapshot};

/// How long to wait for a reply's headers before the request is sent again.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(12);
/// The pause after a first failure; it doubles up to the longest, and a random part of it is waited.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Notices that are kept for a report.
const MOST_NOTICES: usize = 100;
/// Time between two log lines about waiting, for any number of waiting blocks.
const WAIT_LOG_EVERY: Duration = Duration::from_secs(5);

/// A client of the EBS direct APIs of one Region.
#[derive(Debug)]
pub struct Client {
    sdk: aws_sdk_ebs::Client,
    /// How list, block and put requests reach the service; settled by the first of them.
    route: OnceCell<Route>,
    /// Where requests go, for people.
    endpoint: String,
    region: String,
    credentials: Credentials,
    http: Http,
    requests: RequestCounts,
    limiter: Limiter,
    digester: Digester,
    hedge: Option<Hedge>,
    timeout: Mutex<Duration>,
    notices: Mutex<Vec<String>>,
    last_wait_log: Mutex<Option<Instant>>,
    gets: AtomicU64,
    puts: AtomicU64,
    lists: AtomicU64,
    hedges: AtomicU64,
    retries: AtomicU64,
    throttles: AtomicU64,
}

/// Requests since the start, retries included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// GetSnapshotBlock requests sent.
    pub(crate) gets: u64,
    /// PutSnapshotBlock requests sent.
    pub(crate) puts: u64,
    /// ListSnapshotBlocks and ListChangedBlocks requests sent.
    pub(crate) lists: u64,
    /// GetSnapshotBlock requests among them that were sent a second time because the first was slow.
    pub(crate) hedges: u64,
    /// Requests sent again.
    pub(crate) retries: u64,
    /// Requests that the service refused because there were too many.
    pub(crate) throttles: u64,
}

/// A block to get.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockRequest<'a> {
    pub(super) snapshot: &'a SnapshotId,
    pub(super) index: BlockIndex,
    pub(super) token: &'a Token,
    /// Its bytes.
    pub(super) len: usize,
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum CallFailure {
    /// The token is expired or foreign: a fresh one may do.
    StaleToken(Error),
    /// Everything else.
    Final(Error),
}

impl From<CallFailure> for Error {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::StaleToken(error) | CallFailure::Final(error) => error,
        }
    }
}

impl Client {
    /// A client with the Region, credentials, endpoint and connections of `service`.
    pub fn new(service: &ServiceConfig, limits: &Limits) -> Self {
        let region = service.sdk.region().map(ToString::to_string);
        let config = Builder::from(&service.sdk)
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .disable_read_timeout()
                    .disable_operation_timeout()
                    .disable_operation_attempt_timeout()
                    .build(),
            )
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Self {
            route: OnceCell::new(),
            sdk: aws_sdk_ebs::Client::from_conf(config),
            endpoint: service.endpoint("EBS"),
            region: region.unwrap_or_default(),
            credentials: service.credentials.clone(),
            http: service.http.clone(),
            requests: service.requests.clone(),
            limiter: Limiter::new(limits),
            digester: Digester::new(),
            hedge: limits
                .hedge
                .then(|| Hedge::new(limits.max_rps.min(limits.max_snapshot_rps))),
            timeout: Mutex::new(limits.timeout),
            notices: Mutex::default(),
            last_wait_log: Mutex::new(None),
            gets: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            throttles: AtomicU64::new(0),
        }
    }

    /// A client without a service: each call would fail.
    #[cfg(test)]
    pub(crate) fn unreachable() -> Self {
        let service = ServiceConfig::fixed("http://127.0.0.1:9", "us-east-1", "id", "secret");
        Self::new(&service.unwrap(), &Limits::default())
    }

    /// Where requests go, for people: a URL, or EBS in a Region.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// When a read that starts now gives up.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + *self.timeout.lock()
    }

    /// From now on a block may take this long, all its attempts together.
    pub(crate) fn set_timeout(&self, timeout: Duration) {
        *self.timeout.lock() = timeout;
    }

    /// Warns once of a fact about the service that does not end a run but belongs in its report.
    pub(super) fn notice(&self, text: String) {
        let mut notices = self.notices.lock();
        if notices.len() < MOST_NOTICES && !notices.contains(&text) {
            warn!("{text}");
            notices.push(text);
        }
    }

    /// The warnings so far that belong in a report.
    pub(crate) fn notices(&self) -> Vec<String> {
        self.notices.lock().clone()
    }

    /// Changes how many block requests may be sent a second.
    pub(crate) fn set_max_rps(&self, max_rps: u32) {
        self.limiter.set_max_rps(max_rps);
    }

    /// Requests since the start.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            gets: self.gets.load(Ordering::Relaxed),
            puts: self.puts.load(Ordering::Relaxed),
            lists: self.lists.load(Ordering::Relaxed),
            hedges: self.hedges.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            throttles: self.throttles.load(Ordering::Relaxed),
        }
    }

    /// How requests reach the service, which the SDK settles once.
    async fn route(&self, call: &EbsCall) -> std::result::Result<&Route, ErrorClass> {
        let settle = || async {
            let probe = Probe::new(self.credentials.clone(), self.http.clone());
            let any = self.sdk.list_snapshot_blocks().snapshot_id("snap-0");
            let sent = any.customize().interceptor(probe.clone()).send().await;
            match (probe.route(), sent) {
                (Some(route), _) => Ok(route),
                (None, Err(error)) => Err(classify(error, self.action(call), &call.target)),
                (None, Ok(_)) => Err(ErrorClass::Permanent(
                    call.error(Kind::Invalid, "the SDK prepared no request"),
                )),
            }
        };
        self.route.get_or_try_init(settle).await
    }

    /// The bytes of one block, verified. At low priority until it is `wanted`.
    pub(super) async fn get(
        &self,
        block: &BlockRequest<'_>,
        wanted: &Wanted,
        deadline: Instant,
    ) -> std::result::Result<Block, CallFailure> {
        let call = EbsCall {
            action: IamAction::GetSnapshotBlock.name(),
            target: format!("{} block {}", block.snapshot, block.index),
            deadline,
        };
        let mut waits = CallRetries::new();
        // The digest of a body that did not match its checksum. The same wrong bytes twice are wrong where they are
        // stored, and a retry cannot help; other wrong bytes were damaged in transit.
        let mut wrong = None;
        loop {
            let once = self.get_once(&call, block, wanted, &mut wrong);
            if let Some(block) = self.one_try(&call, &mut waits, once).await? {
                return Ok(block);
            }
        }
    }

    /// The action that a call needs, in this client's Region.
    fn action(&self, call: &EbsCall) -> Action<'static> {
        Action::in_region(call.action, &self.region)
    }

    /// Makes one attempt: the answer, or nothing when another attempt may succeed, after the pause before it.
    async fn one_try<T>(
        &self,
        call: &EbsCall,
        waits: &mut CallRetries,
        once: impl Future<Output = std::result::Result<T, ErrorClass>>,
    ) -> std::result::Result<Option<T>, CallFailure> {
        trace!("{} {}", call.action, call.target);
        let used = self.credentials.generation();
        let error = match timeout_at(call.deadline, once).await {
            Ok(Ok(answer)) => return Ok(Some(answer)),
            Ok(Err(ErrorClass::StaleToken(error))) => return Err(CallFailure::StaleToken(error)),
            Ok(Err(ErrorClass::Permanent(error))) => return Err(CallFailure::Final(error)),
            Ok(Err(ErrorClass::Skewed(error))) if waits.skewed => {
                return Err(CallFailure::Final(error));
            }
            // The call continues with newly loaded credentials; when these are refused as well, the error is final.
            Ok(Err(ErrorClass::Refused(error))) => {
                waits.refusals += 1;
                if waits.refusals > Credentials::MAX_REFUSALS || !self.credentials.refused(used) {
                    return Err(CallFailure::Final(error));
                }
                error
            }
            Ok(Err(ErrorClass::Skewed(error))) => {
                waits.skewed = true;
                error
            }
            Ok(Err(ErrorClass::Retry(error))) => error,
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
            return Err(CallFailure::Final(error.context(given_up)));
        }
        debug!(
            attempt = waits.attempts,
            "again in {pause:.1?}: {}",
            error.chain()
        );
        self.log_wait(call, waits, &error, now);
        sleep(pause).await;
        self.retries.fetch_add(1, Ordering::Relaxed);
        self.requests.retry(call.action);
        Ok(None)
    }

    /// Work that must end within this time of silence. When it does not, the idle connections are dropped too: a firewall that
    /// forgot one forgot them all, and each would cost a time-out.
    async fn within<T>(
        &self,
        call: &EbsCall,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> std::result::Result<T, ErrorClass> {
        tokio::time::timeout(limit, work).await.map_err(|_| {
            self.http.forget_idle();
            let what = format!("no answer in {limit:?}");
            ErrorClass::Retry(call.error(Kind::Unavailable, &what))
        })
    }

    /// Logs what is waited for, one line for all blocks in [`WAIT_LOG_EVERY`].
    fn log_wait(&self, call: &EbsCall, waits: &CallRetries, error: &Error, now: Instant) {
        let mut last = self.last_wait_log.lock();
        // A single retry is normal: the log line comes with the second failure in a row.
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
struct EbsCall {
    action: &'static str,
    target: String,
    deadline: Instant,
}

impl EbsCall {
    fn error(&self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("{} {}: {what}", self.action, self.target))
    }
}

/// The attempts of one call.
#[derive(Debug)]
struct CallRetries {
    since: Instant,
    attempts: u32,
    /// Whether it was sent again because of the clock.
    skewed: bool,
    /// How often its credentials were refused.
    refusals: u32,
}

impl CallRetries {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            attempts: 0,
            skewed: false,
            refusals: 0,
        }
    }

    /// Exponential with full jitter, but never less than a quarter of the step.
    fn next_pause(&mut self) -> Duration {
        let step = FIRST_PAUSE
            .saturating_mul(1 << self.attempts.min(10))
            .min(LONGEST_PAUSE);
        self.attempts += 1;
        jittered(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_longest_and_are_never_nothing() {
        let mut waits = CallRetries::new();
        let pauses: Vec<_> = (0..20).map(|_| waits.next_pause()).collect();
        assert!(pauses[0] >= FIRST_PAUSE / 4 && pauses[0] <= FIRST_PAUSE);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert!(pauses[19] >= LONGEST_PAUSE / 4);
    }
}
