//! Classifies a failed request of the SDK, or the store's refusal, as a [`StoreFault`].

use std::error::Error as StdError;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_async::time::TimeSource as _;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::http::Headers;
use http_body_util::LengthLimitError;

use super::S3Backend;
use super::reply::BREAKS_OFF;
use super::watch::Watch;
use crate::aws::{ErrorClass, classify, skew};
use crate::error::Kind;
use crate::repository::store::backend::{Backend as _, FaultAction, StoreAnswer, StoreFault};
use crate::repository::store::refusal::StoreRefusal;

/// A clock this far off has its signatures refused (15 minutes at AWS, 5 elsewhere).
const SKEWED_MS: u64 = 240_000;
impl S3Backend {
    pub(super) fn wrong(&self, next: FaultAction, verb: &str, key: &str, what: &str) -> StoreFault {
        StoreFault::new(next, self.error(Kind::Corrupt, verb, key, what))
    }

    /// Classifies a failed request.
    pub(super) fn fault<E>(
        &self,
        verb: &str,
        key: &str,
        error: SdkError<E, HttpResponse>,
        is_conditional: bool,
    ) -> StoreFault
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        if is_endless(&error) {
            return self.wrong(FaultAction::Final, verb, key, "the reply does not end");
        }
        let (raw, code, message) = match &error {
            SdkError::ServiceError(service) => {
                let meta = service.err();
                (service.raw(), meta.code(), meta.message())
            }
            SdkError::ResponseError(reply) => (reply.raw(), None, None),
            _ => {
                let class = classify(error, &*format!("cannot {verb}"), &self.target(key));
                let next = match class {
                    ErrorClass::Permanent(_) => FaultAction::Final,
                    _ => FaultAction::Retry,
                };
                return StoreFault::new(next, class.into_error());
            }
        };
        let status = raw.status().as_u16();
        if raw.status().is_success() {
            let what = format!("broken reply: {}", causes(&error));
            return self.wrong(FaultAction::Retry, verb, key, &what);
        }
        let ahead = skew(raw.headers(), SystemTime::now());
        let is_skewed = skew(raw.headers(), self.clock.now())
            .is_some_and(|millis| millis.unsigned_abs() > SKEWED_MS);
        let text = String::from_utf8_lossy(raw.body().bytes().unwrap_or_default());
        // The SDK makes this code of a reply to HEAD, and reads none where a message holds what XML does not allow.
        let code = code.filter(|code| *code != "NotFound");
        let code = code.or_else(|| element(&text, "Code")).unwrap_or_default();
        let message = message.or_else(|| element(&text, "Message"));
        let refusal = StoreRefusal {
            status: Some(status),
            code: code
                .chars()
                .filter(char::is_ascii_graphic)
                .take(100)
                .collect(),
            message: message.unwrap_or_default().to_owned(),
            request_id: request_id(raw.headers()),
            region: header(raw.headers(), "x-amz-bucket-region"),
            is_silent: text.is_empty(),
            is_skewed,
        };
        let class = refusal.classify(is_conditional);
        if let (FaultAction::Skewed, Some(ahead)) = (class.next, ahead) {
            self.clock.ahead.store(ahead, Ordering::Relaxed);
        }
        let mut line = refusal.line();
        if !class.need.is_empty() {
            line = format!("{line}; {}", class.need);
        }
        let error = self.error(class.kind, verb, key, &line);
        StoreFault::new(class.next, error)
    }

    /// A list request that failed, or whose reply is no listing.
    pub(super) fn checked<T, E>(
        &self,
        prefix: &str,
        watch: &Watch,
        sent: Result<T, SdkError<E, HttpResponse>>,
    ) -> StoreAnswer<T>
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        if let Some(fault) = watch.fault() {
            let next = match fault.starts_with(BREAKS_OFF) {
                true => FaultAction::Retry,
                false => FaultAction::Final,
            };
            let what = format!("the reply is not a listing: {fault}");
            return Err(self.wrong(next, "list", prefix, &what));
        }
        sent.map_err(|error| self.fault("list", prefix, error, false))
    }
}

fn header(headers: &Headers, name: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.+/=:".contains(c);
    let value = headers.get(name)?;
    let is_plain = !value.is_empty() && value.len() <= 200 && value.chars().all(is_plain);
    is_plain.then(|| value.to_owned())
}

/// The text of an element.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.split_once(&format!("<{name}>"))?.1;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// The request's id, for the store's operator.
fn request_id(headers: &Headers) -> Option<String> {
    let names = [
        "x-amz-request-id",
        "x-oss-request-id",
        "x-obs-request-id",
        "x-amz-id-2",
    ];
    names.iter().find_map(|name| header(headers, name))
}

pub(super) fn is_endless(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if current.is::<LengthLimitError>() {
            return true;
        }
        cause = current.source();
    }
    false
}

/// The innermost cause, which names the failure.
pub(super) fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    crate::aws::presentable(&last.to_string())
}
