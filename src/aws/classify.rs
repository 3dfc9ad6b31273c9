//! The border to AWS: what an error of its SDK means. One table from AWS codes to [`Kind`]s, for every service.

use std::error::Error as StdError;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_runtime_api::http::Headers;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use serde::Deserialize;

use crate::error::{Error, Kind};

/// What to do about a failed call.
#[derive(Clone, Debug)]
pub enum ErrorClass {
    /// It can succeed later: a throttle, a 5xx, a broken connection.
    Retry(Error),
    /// A block or page token is expired or foreign: list again for a fresh one.
    StaleToken(Error),
    /// The signature was refused and the service's clock is not ours: by how much is known now, so once more.
    Skewed(Error),
    /// It will fail again, however often it is tried.
    Permanent(Error),
}

impl ErrorClass {
    /// Whether there were too many requests.
    pub fn is_throttle(&self) -> bool {
        matches!(self, Self::Retry(error) if error.kind() == Kind::Throttled)
    }

    /// The error itself.
    pub fn into_error(self) -> Error {
        match self {
            Self::Retry(error)
            | Self::StaleToken(error)
            | Self::Skewed(error)
            | Self::Permanent(error) => error,
        }
    }
}

/// The fields of a restJson1 error that the SDK's types keep apart or drop. Validation errors of the front end write
/// `message` in lower case and have no reason.
#[derive(Debug, Default, Deserialize)]
struct Refusal {
    #[serde(rename = "__type")]
    code: Option<String>,
    #[serde(rename = "Reason")]
    reason: Option<String>,
    #[serde(rename = "Message", alias = "message")]
    message: Option<String>,
}

/// Classifies a failed call. `action` is the IAM action it needs, `target` what it was made on.
pub fn classify<E>(error: SdkError<E, HttpResponse>, action: &str, target: &str) -> ErrorClass
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let failed = format!("{action} {target} failed");
    if let Some(class) = credentials(&error, action) {
        return class;
    }
    match &error {
        SdkError::ServiceError(service) => {
            let refusal: Refusal = service
                .raw()
                .body()
                .bytes()
                .and_then(|body| serde_json::from_slice(body).ok())
                .unwrap_or_default();
            let meta = service.err();
            let message = refusal.message.as_deref().or(meta.message());
            let refused = Refused {
                status: service.raw().status().as_u16(),
                code: meta.code().unwrap_or_default(),
                reason: refusal.reason.as_deref().unwrap_or_default(),
                message: &redact(message.unwrap_or_default()),
                skewed: is_skewed(service.raw().headers(), SystemTime::now()),
            };
            refused.class(action, target)
        }
        SdkError::ResponseError(reply) if is_refusal(reply.raw().status().as_u16()) => {
            foreign_refusal(reply.raw().status().as_u16(), &failed)
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
pub fn classify_reply(
    reply: &HttpResponse,
    body: &[u8],
    now: SystemTime,
    action: &str,
    target: &str,
) -> ErrorClass {
    let (status, headers) = (reply.status().as_u16(), reply.headers());
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    // x-amzn-ErrorType can end with ":http://...", __type begin with "namespace#".
    let code = headers.get("x-amzn-errortype").or(refusal.code.as_deref());
    let code = code.unwrap_or_default();
    let code = code.split(':').next().unwrap_or_default();
    let code = code.rsplit('#').next().unwrap_or_default();
    if code.is_empty() && is_refusal(status) {
        return foreign_refusal(status, &format!("{action} {target} failed"));
    }
    let refused = Refused {
        status,
        code,
        reason: refusal.reason.as_deref().unwrap_or_default(),
        message: &redact(refusal.message.as_deref().unwrap_or_default()),
        skewed: is_skewed(headers, now),
    };
    refused.class(action, target)
}

/// Classifies a request that could not be sent or was not answered.
pub fn classify_sending(error: ConnectorError, action: &str, target: &str) -> ErrorClass {
    let failed = format!("{action} {target} failed");
    if error.is_user() || is_misconfigured(&error) {
        return ErrorClass::Permanent(Error::with_source(Kind::Invalid, failed, error));
    }
    ErrorClass::Retry(Error::with_source(Kind::Unavailable, failed, error))
}

/// Classifies credentials that could not be had.
pub fn classify_identity(error: &BoxError, action: &str) -> ErrorClass {
    credentials(&**error, action).unwrap_or_else(|| {
        ErrorClass::Retry(Error::new(
            Kind::Unavailable,
            format!("no credentials for {action}: {}", causes(&**error)),
        ))
    })
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

fn is_refusal(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 408 | 429)
}

/// Whether the SDK could not make a request of its settings: FIPS or dual-stack together with a custom URL, a URL that is
/// none. It has no type for that, only words.
fn is_misconfigured(error: &(dyn StdError + 'static)) -> bool {
    let text = causes(error);
    ["Invalid Configuration", "invalid uri", "invalid URI"]
        .iter()
        .any(|words| text.contains(words))
}

/// How far the service's clock is ahead of `now`, by the Date of a reply, in milliseconds; negative when it is behind.
pub fn skew(headers: &Headers, now: SystemTime) -> Option<i64> {
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

/// The message without what could be a token: validation errors quote the value that they refuse.
fn redact(message: &str) -> String {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "+/=_-%".contains(c);
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(is_token) {
        let (before, word) = rest.split_at(start);
        let end = word.find(|c| !is_token(c)).unwrap_or(word.len());
        let (word, after) = word.split_at(end);
        text.push_str(before);
        text.push_str(if word.len() > 60 { "***" } else { word });
        rest = after;
    }
    text + rest
}

fn credentials(error: &(dyn StdError + 'static), action: &str) -> Option<ErrorClass> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<CredentialsError>() {
            return Some(match found {
                // The instance's metadata service and STS have bad moments too.
                CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_) => {
                    ErrorClass::Retry(Error::new(
                        Kind::Unavailable,
                        format!("no credentials for {action}: {}", causes(found)),
                    ))
                }
                _ => ErrorClass::Permanent(no_credentials(found)),
            });
        }
        cause = error.source();
    }
    None
}

/// The error that says how to give credentials.
pub fn no_credentials(cause: &CredentialsError) -> Error {
    Error::new(
        Kind::Denied,
        format!(
            "no AWS credentials: set AWS_PROFILE or --profile, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
             or run on an instance with a role ({})",
            causes(cause)
        ),
    )
}

fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A refusal by AWS.
struct Refused<'a> {
    status: u16,
    code: &'a str,
    reason: &'a str,
    message: &'a str,
    skewed: bool,
}

impl Refused<'_> {
    /// The table: HTTP status, AWS code, reason and message to a class.
    ///
    /// <https://docs.aws.amazon.com/ebs/latest/userguide/error-retries.html> says what to retry; the reasons are those of
    /// <https://docs.aws.amazon.com/ebs/latest/APIReference/API_GetSnapshotBlock.html>.
    fn class(&self, action: &str, target: &str) -> ErrorClass {
        let Self {
            status,
            code,
            reason,
            message,
            skewed,
        } = *self;
        let said = format!("{action} {target}: {code} {reason} (HTTP {status}): {message}");
        let said = said.replace("  ", " ");
        let error = |kind| Error::new(kind, said.clone());
        let needs = |kind, need: &str| Error::new(kind, format!("{said}; {need}"));
        let kms = || {
            needs(
                Kind::Denied,
                if action == "ebs:StartSnapshot" {
                    "the caller needs kms:DescribeKey and kms:GenerateDataKey* on the KMS key, for a child kms:ReEncrypt* and \
                     kms:Decrypt (kms:ViaService is ec2)"
                } else {
                    "the caller needs kms:DescribeKey and kms:Decrypt on the snapshot's KMS key (kms:ViaService is ec2)"
                },
            )
        };
        match (code, reason) {
            _ if code.contains("Throttl") || code == "RequestLimitExceeded" || status == 429 => {
                ErrorClass::Retry(error(Kind::Throttled))
            }
            _ if status >= 500 || status == 408 => ErrorClass::Retry(error(Kind::Unavailable)),
            // A PutSnapshotBlock that did not arrive whole, as the table of retries says.
            _ if message.contains("Failed to read block data") => {
                ErrorClass::Retry(error(Kind::Unavailable))
            }
            ("ConcurrentLimitExceededException", _) => ErrorClass::Retry(needs(
                Kind::Throttled,
                "too many snapshots of this account are pending: complete or delete some",
            )),
            (_, "INVALID_BLOCK_TOKEN" | "INVALID_PAGE_TOKEN") => {
                ErrorClass::StaleToken(error(Kind::Invalid))
            }
            (
                _,
                "DEPENDENCY_RESOURCE_NOT_FOUND"
                | "INVALID_DEPENDENCY_REQUEST"
                | "DEPENDENCY_ACCESS_DENIED",
            ) => ErrorClass::Permanent(kms()),
            (_, "UNRELATED_SNAPSHOTS") => ErrorClass::Permanent(needs(
                Kind::Unrelated,
                "they have no history in common (a copy to another Region, a rebuilt volume): copy the second one whole, \
                 or have all blocks of both read and compared (ebsfs changes --unrelated compare)",
            )),
            (_, "INVALID_SNAPSHOT_ID") if message.contains("ublic snapshot") => {
                ErrorClass::Permanent(needs(
                    Kind::Denied,
                    "copy the public snapshot into this account and read the copy (aws ec2 copy-snapshot)",
                ))
            }
            (_, "INVALID_SNAPSHOT_ID")
                if ["not complete", "pending"]
                    .iter()
                    .any(|word| message.contains(word)) =>
            {
                ErrorClass::Permanent(needs(Kind::Pending, "try again when it is completed"))
            }
            (_, "INVALID_SNAPSHOT_ID") if message.contains("rchive") => {
                ErrorClass::Permanent(needs(
                    Kind::Denied,
                    "restore it first (aws ec2 restore-snapshot-tier)",
                ))
            }
            (_, "SNAPSHOT_NOT_FOUND") | ("InvalidSnapshot.NotFound", _) => ErrorClass::Permanent(
                needs(Kind::NotFound, "check the id, the Region and the account"),
            ),
            ("ResourceNotFoundException", _) => ErrorClass::Permanent(error(Kind::NotFound)),
            ("AccessDeniedException" | "UnauthorizedOperation" | "AccessDenied", _) => {
                ErrorClass::Permanent(needs(
                    Kind::Denied,
                    &format!("the caller needs the permission {action}{}", on(action)),
                ))
            }
            _ if skewed && matches!(status, 400 | 401 | 403) => {
                ErrorClass::Skewed(needs(Kind::Denied, "the clock is wrong"))
            }
            ("ExpiredTokenException" | "ExpiredToken" | "RequestExpired", _) => {
                let need = "the credentials have expired: renew them and do it again";
                ErrorClass::Permanent(needs(Kind::Denied, need))
            }
            _ if matches!(status, 401 | 403) || code == "AuthFailure" => {
                ErrorClass::Permanent(needs(
                    Kind::Denied,
                    "the credentials were refused: check that they are valid, not expired, and that the clock is right",
                ))
            }
            _ => ErrorClass::Permanent(error(Kind::Invalid)),
        }
    }
}

/// The resource to grant a permission on: the account field of a snapshot's ARN is empty.
fn on(action: &str) -> &'static str {
    if action.starts_with("ebs:") || action == "ec2:CreateTags" {
        " on arn:aws:ec2:*::snapshot/*"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(status: u16, code: &str, reason: &str, message: &str) -> ErrorClass {
        let refused = Refused {
            status,
            code,
            reason,
            message,
            skewed: false,
        };
        refused.class("ebs:GetSnapshotBlock", "snap-1")
    }

    fn kind_of(status: u16, code: &str, reason: &str, message: &str) -> (&'static str, Kind) {
        match refuse(status, code, reason, message) {
            ErrorClass::Retry(error) => ("retry", error.kind()),
            ErrorClass::StaleToken(error) => ("stale", error.kind()),
            ErrorClass::Skewed(error) => ("skewed", error.kind()),
            ErrorClass::Permanent(error) => ("permanent", error.kind()),
        }
    }

    #[test]
    fn a_token_that_a_message_quotes_is_not_repeated() {
        let token = "AlMB_Ha-".repeat(12);
        let message = redact(&format!(
            "Value '{token}' at 'blockToken' of snap-0123456789abcdef0"
        ));
        assert_eq!(
            message,
            "Value '***' at 'blockToken' of snap-0123456789abcdef0"
        );
        let escaped = format!("blockToken={}", "AlMB%2FHa%2B".repeat(12));
        assert_eq!(redact(&escaped), "***");
    }

    #[test]
    fn exactly_the_retryable_is_retried() {
        let throttled = ("retry", Kind::Throttled);
        assert_eq!(
            kind_of(400, "RequestThrottledException", "ACCOUNT_THROTTLED", ""),
            throttled
        );
        assert_eq!(kind_of(400, "ThrottlingException", "", ""), throttled);
        assert_eq!(kind_of(503, "RequestLimitExceeded", "", ""), throttled);
        for status in [408, 500, 502, 503, 504] {
            assert_eq!(
                kind_of(status, "InternalServerException", "", ""),
                ("retry", Kind::Unavailable)
            );
        }
        for (status, code, reason) in [
            (403, "AccessDeniedException", ""),
            (
                402,
                "ServiceQuotaExceededException",
                "DEPENDENCY_SERVICE_QUOTA_EXCEEDED",
            ),
            (400, "ValidationException", "INVALID_BLOCK"),
            (404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"),
            (409, "ConflictException", ""),
        ] {
            assert_eq!(kind_of(status, code, reason, "").0, "permanent", "{code}");
        }
    }

    #[test]
    fn tokens_are_renewed_not_failed() {
        for reason in ["INVALID_BLOCK_TOKEN", "INVALID_PAGE_TOKEN"] {
            assert_eq!(kind_of(400, "ValidationException", reason, "").0, "stale");
        }
    }

    #[test]
    fn refusals_name_what_is_missing() {
        let text = |status, code, reason, message| {
            refuse(status, code, reason, message).into_error().chain()
        };
        assert!(
            text(403, "AccessDeniedException", "", "no")
                .contains("permission ebs:GetSnapshotBlock on arn:")
        );
        assert!(
            text(
                404,
                "ResourceNotFoundException",
                "DEPENDENCY_RESOURCE_NOT_FOUND",
                "KMS key not found"
            )
            .contains("kms:Decrypt")
        );
        assert!(
            text(403, "InvalidSignatureException", "", "bad").contains("credentials were refused")
        );
        assert_eq!(
            kind_of(
                404,
                "ResourceNotFoundException",
                "DEPENDENCY_RESOURCE_NOT_FOUND",
                ""
            )
            .1,
            Kind::Denied,
            "a missing key is no missing snapshot"
        );
        assert_eq!(
            kind_of(
                400,
                "ValidationException",
                "INVALID_SNAPSHOT_ID",
                "Snapshot is not complete"
            )
            .1,
            Kind::Pending
        );
        assert_eq!(
            kind_of(
                400,
                "ValidationException",
                "INVALID_SNAPSHOT_ID",
                "Public snapshots are not supported"
            )
            .1,
            Kind::Denied
        );
    }
}
