//! Classifies errors of the AWS SDK. One table from AWS codes to [`Kind`]s, for every service.

mod denying_policy;
mod needs;
mod table;
mod text;

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_runtime_api::http::Headers;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use serde::Deserialize;

use self::table::ServiceRefusal;
use super::endpoints::partition_of;
use super::http::Unreachable;
use crate::error::{Error, Kind, Remedy};

pub(crate) use denying_policy::DenyingPolicy;
pub(crate) use needs::refused_action;
pub(crate) use text::causes_of;
pub(crate) use text::presentable;
pub(super) use text::printable;

/// What to do about a failed call.
#[derive(Clone, Debug)]
pub(crate) enum ErrorClass {
    /// It can succeed later: a throttle, a 5xx, a broken connection.
    Retry(Error),
    /// A block or page token is expired or foreign: list again for a fresh one.
    StaleToken(Error),
    /// The signature was refused and the service's clock is not ours: the difference is known now, so the call is repeated.
    Skewed(Error),
    /// The credentials are expired or unknown: others may do
    /// ([`Credentials::refused`](super::Credentials::refused)).
    Refused(Error),
    /// It will fail again, however often it is tried.
    Permanent(Error),
}

impl ErrorClass {
    /// No credentials now: [`Kind::Unavailable`] where the next load may bring some.
    pub(crate) fn without_credentials(error: Error) -> Self {
        match error.kind() {
            Kind::Unavailable => Self::Retry(error),
            _ => Self::Permanent(error),
        }
    }

    /// Whether there were too many requests.
    pub(crate) fn is_throttle(&self) -> bool {
        matches!(self, Self::Retry(error) if error.kind() == Kind::Throttled)
    }

    /// The error itself.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Retry(error)
            | Self::StaleToken(error)
            | Self::Skewed(error)
            | Self::Refused(error)
            | Self::Permanent(error) => error,
        }
    }
}

/// The IAM action that a call needs, and the partition of its Region, for what is advised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Action<'a> {
    name: &'a str,
    partition: &'static str,
}

impl<'a> Action<'a> {
    /// An action in a Region.
    pub(crate) fn in_region(name: &'a str, region: &str) -> Self {
        let partition = partition_of(region).id;
        Self { name, partition }
    }
}

impl<'a> From<&'a str> for Action<'a> {
    /// An action in the commercial Regions.
    fn from(name: &'a str) -> Self {
        Self::in_region(name, "")
    }
}

/// The fields of a restJson1 error that the SDK's types keep apart or drop. Validation errors of the front end write
/// `message` in lower case and have no reason.
#[derive(Debug, Default, Deserialize)]
struct ErrorBody {
    #[serde(rename = "__type")]
    code: Option<String>,
    #[serde(rename = "Reason")]
    reason: Option<String>,
    #[serde(rename = "Message", alias = "message")]
    message: Option<String>,
}

/// Classifies a failed call. `action` is the IAM action it needs, `target` what it was made on.
pub(crate) fn classify<'a, E>(
    error: SdkError<E, HttpResponse>,
    action: impl Into<Action<'a>>,
    target: &str,
) -> ErrorClass
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let action = action.into();
    let failed = format!("{} {target} failed", action.name);
    if let Some(class) = known_cause(&error, &failed) {
        return class;
    }
    match &error {
        SdkError::ServiceError(service) => {
            let refusal: ErrorBody = service
                .raw()
                .body()
                .bytes()
                .and_then(|body| serde_json::from_slice(body).ok())
                .unwrap_or_default();
            let meta = service.err();
            let status = service.raw().status().as_u16();
            let code = printable(meta.code().unwrap_or_default(), 100);
            if code.is_empty() && is_refusal(status) {
                return foreign_refusal(status, &failed);
            }
            let reason = printable(refusal.reason.as_deref().unwrap_or_default(), 100);
            let message = refusal.message.as_deref().or(meta.message());
            let headers = service.raw().headers();
            let refused = ServiceRefusal {
                status,
                code: &code,
                reason: &reason,
                message: &presentable(message.unwrap_or_default()),
                request_id: request_id(headers),
                skewed: is_skewed(headers, SystemTime::now()),
            };
            refused.class(action, target)
        }
        SdkError::ResponseError(reply) if is_refusal(reply.raw().status().as_u16()) => {
            foreign_refusal(reply.raw().status().as_u16(), &failed)
        }
        SdkError::ResponseError(reply) => {
            let what = format!("{failed} (HTTP {})", reply.raw().status().as_u16());
            ErrorClass::Retry(Error::new(
                Kind::Unavailable,
                format!("{what}: {}", causes_of(&error)),
            ))
        }
        SdkError::DispatchFailure(failure) if failure.is_user() || is_misconfigured(&error) => {
            ErrorClass::Permanent(Error::with_source(Kind::Invalid, failed, error))
        }
        SdkError::ConstructionFailure(_) => {
            ErrorClass::Permanent(Error::with_source(Kind::Invalid, failed, error))
        }
        // Everything else was sent and not answered whole: timeouts, resets, cut or unreadable replies.
        _ => ErrorClass::Retry(Error::with_source(Kind::Unavailable, failed, error)),
    }
}

/// Classifies a reply that is no success, by its status, headers and body. `now` is what the request was signed with.
pub(crate) fn classify_reply<'a>(
    reply: &HttpResponse,
    body: &[u8],
    now: SystemTime,
    action: impl Into<Action<'a>>,
    target: &str,
) -> ErrorClass {
    let action = action.into();
    let (status, headers) = (reply.status().as_u16(), reply.headers());
    let refusal: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
    // x-amzn-ErrorType can end with ":http://...", __type begin with "namespace#".
    let code = headers.get("x-amzn-errortype").or(refusal.code.as_deref());
    let code = code.unwrap_or_default();
    let code = code.split(':').next().unwrap_or_default();
    let code = code.rsplit('#').next().unwrap_or_default();
    if code.is_empty() && is_refusal(status) {
        return foreign_refusal(status, &format!("{} {target} failed", action.name));
    }
    let refused = ServiceRefusal {
        status,
        code: &printable(code, 100),
        reason: &printable(refusal.reason.as_deref().unwrap_or_default(), 100),
        message: &presentable(refusal.message.as_deref().unwrap_or_default()),
        request_id: request_id(headers),
        skewed: is_skewed(headers, now),
    };
    refused.class(action, target)
}

/// Classifies a request that could not be sent or was not answered.
pub(crate) fn classify_sending<'a>(
    error: ConnectorError,
    action: impl Into<Action<'a>>,
    target: &str,
) -> ErrorClass {
    let failed = format!("{} {target} failed", action.into().name);
    if let Some(class) = known_cause(&error, &failed) {
        return class;
    }
    if error.is_user() || is_misconfigured(&error) {
        return ErrorClass::Permanent(Error::with_source(Kind::Invalid, failed, error));
    }
    ErrorClass::Retry(Error::with_source(Kind::Unavailable, failed, error))
}

/// The request's id, which AWS Support asks for, if it looks like one.
fn request_id(headers: &Headers) -> Option<&str> {
    let found = headers
        .get("x-amzn-requestid")
        .or_else(|| headers.get("x-amz-request-id"))?;
    let is_id = |c: char| c.is_ascii_alphanumeric() || c == '-';
    Some(found).filter(|id| !id.is_empty() && id.len() <= 64 && id.chars().all(is_id))
}

/// A refusal that is not AWS's: a proxy's, or another server at the endpoint.
fn foreign_refusal(status: u16, failed: &str) -> ErrorClass {
    let kind = match status {
        401 | 403 | 407 => Kind::Denied,
        _ => Kind::Invalid,
    };
    let what = format!("{failed}: HTTP {status} from something that is not AWS");
    ErrorClass::Permanent(Error::new(kind, what))
}

/// Redirects are refusals too: they are never followed, because the credentials would be sent along.
fn is_refusal(status: u16) -> bool {
    (300..500).contains(&status) && !matches!(status, 408 | 429)
}

/// Whether the SDK could not make a request of its settings: FIPS or dual-stack together with a custom URL, a URL that is
/// none. It has no error type for that, only text.
fn is_misconfigured(error: &(dyn StdError + 'static)) -> bool {
    let text = causes_of(error);
    ["Invalid Configuration", "invalid uri", "invalid URI"]
        .iter()
        .any(|words| text.contains(words))
}

/// How far the service's clock is ahead of `now`, by the Date of a reply, in milliseconds; negative when it is behind.
pub(crate) fn skew(headers: &Headers, now: SystemTime) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get("date")?).ok()?;
    let millis = |off: Duration| i64::try_from(off.as_millis()).unwrap_or(i64::MAX);
    Some(match date.duration_since(now) {
        Ok(ahead) => millis(ahead),
        Err(behind) => -millis(behind.duration()),
    })
}

/// Whether the service's clock is far enough from `now` for signatures to be refused: 5 minutes.
fn is_skewed(headers: &Headers, now: SystemTime) -> bool {
    skew(headers, now).is_some_and(|millis| millis.unsigned_abs() > 240_000)
}

/// The class of an error that one of our own caused: no credentials, or no connection.
fn known_cause(error: &(dyn StdError + 'static), failed: &str) -> Option<ErrorClass> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(unreachable) = current.downcast_ref::<Unreachable>() {
            let what = format!("{failed}: {unreachable}");
            return Some(ErrorClass::Permanent(Error::new(unreachable.kind, what)));
        }
        if let Some(ours) = current.downcast_ref::<Error>() {
            return Some(ErrorClass::without_credentials(ours.clone()));
        }
        if let Some(found) = current.downcast_ref::<CredentialsError>()
            && found.source().is_none_or(|source| !source.is::<Error>())
        {
            let what = format!("{failed}: no AWS credentials: {}", causes_of(found));
            return Some(ErrorClass::Permanent(Error::new(Kind::Denied, what)));
        }
        cause = current.source();
    }
    None
}

/// The error that says how to give credentials; `profile_option` names a profile.
pub(super) fn no_credentials(profile_option: &str, why: &str) -> Error {
    let error = Error::new(Kind::Denied, format!("no AWS credentials ({why})"));
    error.with_remedy(Remedy::GiveCredentials(profile_option.to_owned()))
}
