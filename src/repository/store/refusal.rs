//! Classifies the refusal of a store: one table from status, code and message to a kind, a remedy and the caller's next step.

use super::backend::FaultAction;
use crate::aws::presentable;
use crate::error::Kind;

/// A reply that is no success, in S3's terms; errors of other stores are translated to them.
#[derive(Clone, Debug, Default)]
pub(super) struct StoreRefusal {
    pub(super) status: Option<u16>,
    pub(super) code: String,
    pub(super) message: String,
    pub(super) request_id: Option<String>,
    /// The Region that the reply names as the bucket's.
    pub(super) region: Option<String>,
    /// Whether the reply has no body, such as the reply to a HEAD.
    pub(super) is_silent: bool,
    /// Whether the store's clock is so far from ours that it refuses signatures.
    pub(super) is_skewed: bool,
}

/// The class of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefusalClass {
    pub(super) kind: Kind,
    pub(super) next: FaultAction,
    /// What to do about it; can be empty.
    pub(super) need: String,
}

const DENIED: &str = "the credentials lack the permission, have expired, or are not the store's";
const ELSEWHERE: &str = "the bucket is in another Region, or behind another endpoint";

impl StoreRefusal {
    /// Code, status, request id and message on one line.
    pub(super) fn line(&self) -> String {
        let status = self.status.map(|status| match &self.request_id {
            Some(id) => format!("HTTP {status}, request {id}"),
            None => format!("HTTP {status}"),
        });
        let parts = [
            Some(self.code.clone()),
            status,
            Some(presentable(&self.message)),
        ];
        let parts = parts.into_iter().flatten().filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(", ")
    }

    /// Classifies it. `is_conditional`: the request was a conditional write.
    pub(super) fn classify(&self, is_conditional: bool) -> RefusalClass {
        let class = |kind, next, need: &str| RefusalClass {
            kind,
            next,
            need: need.to_owned(),
        };
        let status = self.status.unwrap_or_default();
        match (status, &*self.code) {
            _ if self.is_locked() => class(Kind::Denied, FaultAction::Locked, ""),
            (_, "InvalidObjectState") => class(
                Kind::Denied,
                FaultAction::Final,
                "the object is archived: restore it first (aws s3api restore-object), and keep lifecycle rules from archiving a repository",
            ),
            (_, "NoSuchBucket" | "ContainerNotFound") => {
                class(Kind::NotFound, FaultAction::Final, "make the bucket first")
            }
            (_, "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody") => {
                class(Kind::Corrupt, FaultAction::Retry, "")
            }
            (_, "RequestTimeTooSkewed") => {
                class(Kind::Denied, FaultAction::Skewed, "the clock is wrong")
            }
            _ if self.is_skewed
                && matches!(status, 400 | 401 | 403)
                && self.code != "AccessDenied" =>
            {
                class(Kind::Denied, FaultAction::Skewed, "the clock is wrong")
            }
            (
                _,
                "SlowDown"
                | "RequestTimeout"
                | "InternalError"
                | "Throttling"
                | "RequestLimitExceeded",
            ) => class(Kind::Unavailable, FaultAction::Retry, ""),
            (
                _,
                "PermanentRedirect"
                | "TemporaryRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
                | "BucketRegionError",
            )
            | (300..=399, _) => {
                let region = self.region.as_deref();
                let region = region.map(|region| format!(" (it names the Region {region})"));
                class(
                    Kind::Invalid,
                    FaultAction::Final,
                    &format!("{ELSEWHERE}{}", region.unwrap_or_default()),
                )
            }
            (412, _) | (409, "ConditionalRequestConflict" | "PreconditionFailed")
                if is_conditional =>
            {
                class(Kind::Io, FaultAction::Exists, "")
            }
            (409, _) if is_conditional => class(Kind::Unavailable, FaultAction::Exists, ""),
            (_, "NotImplemented") | (400 | 405 | 501, _) if is_conditional => {
                class(Kind::Invalid, FaultAction::NoCondition, "")
            }
            (409, "OperationAborted" | "ConditionalRequestConflict") => {
                class(Kind::Unavailable, FaultAction::Retry, "")
            }
            (501, _) | (_, "NotImplemented") => class(
                Kind::Invalid,
                FaultAction::Final,
                "the store does not know this request",
            ),
            (408 | 429 | 500.., _) => class(Kind::Unavailable, FaultAction::Retry, ""),
            (
                _,
                "ExpiredToken"
                | "ExpiredTokenException"
                | "RequestExpired"
                | "TokenRefreshRequired",
            ) => class(
                Kind::Denied,
                FaultAction::Refused,
                "the credentials have expired: renew them and do it again",
            ),
            (_, "SignatureDoesNotMatch" | "InvalidAccessKeyId" | "InvalidToken") => class(
                Kind::Denied,
                FaultAction::Refused,
                "the credentials are not the store's, or the Region is another",
            ),
            (401 | 403, "") => class(Kind::Denied, FaultAction::Refused, DENIED),
            (401 | 403, _) => class(Kind::Denied, FaultAction::Final, DENIED),
            // AWS answers a HEAD with an expired token, or for a wrong Region, with this status alone.
            (400, "") if self.is_silent => class(
                Kind::Denied,
                FaultAction::Refused,
                "the credentials have expired, or the Region is another",
            ),
            (404, _) | (_, "NoSuchKey" | "BlobNotFound") => {
                class(Kind::NotFound, FaultAction::Absent, "")
            }
            (400..=499, _) => class(Kind::Invalid, FaultAction::Final, ""),
            _ => class(Kind::Unavailable, FaultAction::Retry, ""),
        }
    }

    /// Whether retention or a legal hold is the reason. Stores have no common code for it, only texts.
    fn is_locked(&self) -> bool {
        if !matches!(self.status, Some(400 | 403 | 405 | 409)) {
            return false;
        }
        let text = format!("{} {}", self.code, self.message).to_ascii_lowercase();
        let words = [
            "object lock",
            "objectlock",
            "worm",
            "retention",
            "legal hold",
            "legalhold",
            "immutab",
        ];
        words.iter().any(|word| text.contains(word)) && !text.contains("content-md5")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(
        status: u16,
        code: &str,
        message: &str,
        is_conditional: bool,
    ) -> (Kind, FaultAction) {
        let refusal = StoreRefusal {
            status: Some(status),
            code: code.to_owned(),
            message: message.to_owned(),
            is_silent: code.is_empty(),
            ..StoreRefusal::default()
        };
        let class = refusal.classify(is_conditional);
        (class.kind, class.next)
    }

    #[test]
    fn each_refusal_of_a_store_has_its_meaning() {
        use FaultAction::{Absent, Final, Locked, Refused, Retry, Skewed};
        use Kind::{Corrupt, Denied, Invalid, NotFound, Unavailable};
        let lock = "Access Denied because object protected by object lock.";
        let needs_md5 = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
        for (status, code, message, expected) in [
            (403, "AccessDenied", "Access Denied", (Denied, Final)),
            (403, "AccessDenied", lock, (Denied, Locked)),
            (
                400,
                "InvalidRequest",
                "Object is WORM protected and cannot be overwritten",
                (Denied, Locked),
            ),
            (409, "ObjectLocked", "", (Denied, Locked)),
            (400, "InvalidRequest", needs_md5, (Invalid, Final)),
            (403, "InvalidObjectState", "", (Denied, Final)),
            (403, "RequestTimeTooSkewed", "", (Denied, Skewed)),
            (403, "", "", (Denied, Refused)),
            (400, "", "", (Denied, Refused)),
            (400, "ExpiredToken", "", (Denied, Refused)),
            (301, "", "", (Invalid, Final)),
            (307, "TemporaryRedirect", "", (Invalid, Final)),
            (400, "AuthorizationHeaderMalformed", "", (Invalid, Final)),
            (404, "", "", (NotFound, Absent)),
            (404, "NoSuchKey", "", (NotFound, Absent)),
            (404, "NoSuchBucket", "", (NotFound, Final)),
            (400, "BadDigest", "", (Corrupt, Retry)),
            (400, "RequestTimeout", "", (Unavailable, Retry)),
            (409, "OperationAborted", "", (Unavailable, Retry)),
            (429, "", "", (Unavailable, Retry)),
            (501, "NotImplemented", "", (Invalid, Final)),
            (503, "SlowDown", "", (Unavailable, Retry)),
            (400, "InvalidRequest", "", (Invalid, Final)),
        ] {
            assert_eq!(
                classified(status, code, message, false),
                expected,
                "{status} {code}"
            );
        }
    }

    #[test]
    fn a_conditional_write_tells_a_taken_name_from_an_unknown_condition() {
        for (status, code, next) in [
            (412, "PreconditionFailed", FaultAction::Exists),
            (409, "ConditionalRequestConflict", FaultAction::Exists),
            (501, "NotImplemented", FaultAction::NoCondition),
            (400, "NotImplemented", FaultAction::NoCondition),
            (400, "InvalidArgument", FaultAction::NoCondition),
            (400, "BadDigest", FaultAction::Retry),
            (503, "SlowDown", FaultAction::Retry),
            (403, "AccessDenied", FaultAction::Final),
        ] {
            assert_eq!(
                classified(status, code, "", true).1,
                next,
                "{status} {code}"
            );
        }
    }

    #[test]
    fn a_redirect_names_the_region_that_the_store_names() {
        let refusal = StoreRefusal {
            status: Some(301),
            region: Some("eu-central-1".into()),
            request_id: Some("0A1B".into()),
            ..StoreRefusal::default()
        };
        assert!(refusal.classify(false).need.contains("eu-central-1"));
        assert_eq!(refusal.line(), "HTTP 301, request 0A1B");
    }
}
