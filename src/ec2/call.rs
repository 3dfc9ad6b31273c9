//! One call of EC2: attempts with backoff, a time-out by silence, a limit of the reply's size.

use std::error::Error as StdError;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextMut;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::aws::{Credentials, ErrorClass, Http, RequestCounts, classify};
use crate::error::{Error, Kind};
use crate::time::jittered;

/// The most bytes of a reply. 1,000 snapshots with 50 tags of the longest ASCII keys and values each are some 24 MiB.
const MAX_REPLY: usize = 32 << 20;
/// How long the service may be silent, by attempt; the last value holds for all later attempts.
const ATTEMPTS: [Duration; 3] = [
    Duration::from_secs(6),
    Duration::from_secs(9),
    Duration::from_secs(15),
];
/// How long one reply may take although bytes arrive: the largest one at 110 kB/s.
const LONGEST: Duration = Duration::from_secs(300);
/// How long the service may be silent in a call that is not repeated: CreateSnapshots answers for all volumes of an instance.
const ONLY_ATTEMPT: Duration = Duration::from_secs(30);
/// How long a call without an answer is repeated: a person waits for the first answer.
const SILENCE: Duration = Duration::from_secs(15);
/// How long it is repeated in the middle of a listing, whose earlier pages would be lost.
const SILENCE_WITHIN: Duration = Duration::from_secs(120);
/// How long throttles are waited out. EC2 refills the bucket of an account by the second, but others may drain it.
const THROTTLED: Duration = Duration::from_secs(600);
/// Pauses between attempts: they double, and a random part of each is waited.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pauses after a throttle.
const THROTTLE_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Time between two log lines about waiting.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// What calls share with the other services.
#[derive(Clone, Debug)]
pub(super) struct Ec2Access {
    /// Loaded again when EC2 refuses them.
    pub(super) credentials: Credentials,
    /// Its idle connections are dropped when one is silent.
    pub(super) http: Http,
    /// Counts the requests.
    pub(super) requests: RequestCounts,
}

/// What the attempts of one call have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallName<'a> {
    /// The IAM action that it needs.
    pub(super) action: &'static str,
    /// What it is made on.
    pub(super) target: &'a str,
    /// How long it is repeated.
    pub(super) repeat: Repeat,
}

/// How long a call is repeated that fails or is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// A short time: a person waits for the first answer.
    Single,
    /// It continues a listing, whose earlier pages would be lost.
    Listing,
    /// Never, unless its credentials or its signature were refused: it makes something each time, and the one without an
    /// answer may have done so.
    Never,
}

/// A call that failed for good: with the code of EC2 and its message, if it answered.
#[derive(Debug)]
pub(super) struct CallRefusal {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) error: Error,
}

impl From<CallRefusal> for Error {
    fn from(refused: CallRefusal) -> Self {
        refused.error
    }
}

/// Makes a call until it succeeds, fails for good or its time is over. `waiting` learns of each failure that is waited out.
pub(super) async fn call<T, E, F>(
    access: &Ec2Access,
    name: CallName<'_>,
    waiting: &(dyn Fn(&Error) + Send + Sync),
    send: impl Fn(ReplyWatch) -> F,
) -> std::result::Result<T, CallRefusal>
where
    F: Future<Output = std::result::Result<T, SdkError<E, HttpResponse>>>,
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let mut waits = CallAttempts::new(name.repeat);
    loop {
        let watch = ReplyWatch::default();
        let limit = waits.silence();
        let used = access.credentials.generation();
        let sent = access.requests.send(name.action);
        let (class, code, message) = match watched(&watch, limit, send(watch.clone())).await {
            Some(Ok(answer)) => {
                sent.answered();
                return Ok(answer);
            }
            // The SDK takes it for a refusal, but the request may have succeeded.
            Some(Err(SdkError::ServiceError(reply))) if reply.raw().status().is_success() => {
                let what = format!(
                    "{} {}: the reply cannot be read (HTTP {})",
                    name.action,
                    name.target,
                    reply.raw().status().as_u16()
                );
                let error = Error::new(Kind::Unavailable, what);
                (ErrorClass::Retry(error), String::new(), String::new())
            }
            Some(Err(error)) => {
                let meta = error.meta();
                let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
                let (code, message) = (text(meta.code()), text(meta.message()));
                (classify(error, name.action, name.target), code, message)
            }
            None => {
                access.http.forget_idle();
                let what = format!("{} {}: no answer in {limit:?}", name.action, name.target);
                let error = Error::new(Kind::Unavailable, what);
                (ErrorClass::Retry(error), String::new(), String::new())
            }
        };
        if class.is_throttle() {
            access.requests.throttle(name.action);
        }
        let pause = match (&class, &waits) {
            (ErrorClass::Retry(_), _) if name.repeat == Repeat::Never => None,
            (ErrorClass::Retry(error), _) => waits.pause_after(error.kind(), Instant::now()),
            (ErrorClass::Refused(_), _) if waits.refusals < Credentials::MAX_REFUSALS => {
                waits.refusals += 1;
                access.credentials.refused(used).then_some(Duration::ZERO)
            }
            // The client has corrected its clock by this reply.
            (ErrorClass::Skewed(_), CallAttempts { skewed: false, .. }) => {
                waits.skewed = true;
                Some(Duration::ZERO)
            }
            _ => None,
        };
        let error = class.into_error();
        let Some(pause) = pause else {
            let error = match waits.attempts {
                0 | 1 => error,
                attempts => {
                    let took = waits.since.elapsed();
                    error.context(format!("gave up after {attempts} attempts in {took:.1?}"))
                }
            };
            return Err(CallRefusal {
                code,
                message,
                error,
            });
        };
        debug!("again in {pause:.1?}: {}", error.chain());
        waiting(&error);
        waits.log(&error);
        sleep(pause).await;
        access.requests.retry(name.action);
    }
}

/// The answer of `work`, or nothing when `watch` sees no byte for `limit`, or sees a slow trickle for [`LONGEST`].
async fn watched<T>(
    watch: &ReplyWatch,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = pin!(work);
    let end = Instant::now() + LONGEST;
    loop {
        let seen = watch.0.load(Ordering::Relaxed);
        match timeout(limit, &mut work).await {
            Ok(answer) => return Some(answer),
            Err(_) if watch.0.load(Ordering::Relaxed) == seen => return None,
            Err(_) if Instant::now() >= end => return None,
            Err(_) => {}
        }
    }
}

/// The attempts of a call.
#[derive(Debug)]
struct CallAttempts {
    since: Instant,
    repeat: Repeat,
    attempts: u32,
    /// Failures of the present kind in a row, and since when.
    in_row: u32,
    kind: Option<(Kind, Instant)>,
    skewed: bool,
    /// How often the credentials were refused.
    refusals: u32,
    logged: Option<Instant>,
}

impl CallAttempts {
    fn new(repeat: Repeat) -> Self {
        Self {
            since: Instant::now(),
            repeat,
            attempts: 0,
            in_row: 0,
            kind: None,
            skewed: false,
            refusals: 0,
            logged: None,
        }
    }

    /// How long the next attempt may be silent.
    fn silence(&self) -> Duration {
        let at = usize::try_from(self.in_row).unwrap_or(usize::MAX);
        let limit = ATTEMPTS.get(at).or(ATTEMPTS.last());
        let limit = limit.copied().unwrap_or(SILENCE);
        match (self.repeat, self.kind) {
            (Repeat::Never, _) => ONLY_ATTEMPT,
            // What is left of its time.
            (Repeat::Single, Some((Kind::Unavailable, since))) => limit
                .min((since + SILENCE).saturating_duration_since(Instant::now()))
                .max(Duration::from_millis(500)),
            _ => limit,
        }
    }

    /// The pause after another failure at `now`; none when the time for such failures is over. A silent attempt counts from
    /// its start.
    fn pause_after(&mut self, kind: Kind, now: Instant) -> Option<Duration> {
        self.attempts += 1;
        let since = match self.kind {
            Some((before, since)) if before == kind => {
                self.in_row += 1;
                since
            }
            before => {
                self.in_row = 1;
                before.map_or(self.since, |_| now)
            }
        };
        self.kind = Some((kind, since));
        let ((first, longest), limit) = match kind {
            Kind::Throttled => (THROTTLE_PAUSES, THROTTLED),
            _ if self.repeat == Repeat::Listing => (PAUSES, SILENCE_WITHIN),
            _ => (PAUSES, SILENCE),
        };
        let step = first.saturating_mul(1 << self.in_row.min(10)).min(longest);
        let pause = jittered(step);
        // Alternating kinds of failures must not repeat it without end.
        let until = (since + limit).min(self.since + THROTTLED);
        (now + pause < until).then_some(pause)
    }

    fn log(&mut self, error: &Error) {
        // A single retry is normal.
        let now = Instant::now();
        if self.attempts >= 2 && self.logged.is_none_or(|at| now >= at + LOG_EVERY) {
            self.logged = Some(now);
            let waited = now - self.since;
            warn!("waiting for EC2 since {waited:.0?}: {}", error.chain());
        }
    }
}

/// Counts what arrives of a reply, and ends it beyond [`MAX_REPLY`].
#[derive(Clone, Debug, Default)]
pub(super) struct ReplyWatch(Arc<AtomicU64>);

impl Intercept for ReplyWatch {
    fn name(&self) -> &'static str {
        "ReplyWatch"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _settings: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let seen = Arc::clone(&self.0);
        seen.fetch_add(1, Ordering::Relaxed);
        let reply = context.response_mut();
        let body = std::mem::replace(reply.body_mut(), SdkBody::taken());
        let counted = body.map_frame(move |frame| {
            seen.fetch_add(1, Ordering::Relaxed);
            frame
        });
        *reply.body_mut() = SdkBody::from_body_1_x(Limited::new(counted, MAX_REPLY));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
