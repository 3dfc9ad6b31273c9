//! The table: HTTP status, AWS code, reason and message to a class.

use super::{Action, ErrorClass, needs};
use crate::error::{Error, Kind, Remedy};

/// A refusal by AWS.
pub(super) struct ServiceRefusal<'a> {
    pub(super) status: u16,
    pub(super) code: &'a str,
    pub(super) reason: &'a str,
    pub(super) message: &'a str,
    pub(super) request_id: Option<&'a str>,
    /// Whether the service's clock is so far from ours that it refuses signatures.
    pub(super) skewed: bool,
}

impl ServiceRefusal<'_> {
    /// What to do about it.
    ///
    /// <https://docs.aws.amazon.com/ebs/latest/userguide/error-retries.html> says what to retry; the reasons are those of
    /// <https://docs.aws.amazon.com/ebs/latest/APIReference/API_GetSnapshotBlock.html>.
    pub(super) fn class(&self, action: Action<'_>, target: &str) -> ErrorClass {
        let Self {
            status,
            code,
            reason,
            message,
            skewed,
            ..
        } = *self;
        let said = self.in_words(action, target);
        let error = |kind| Error::new(kind, said.clone());
        let with_need = |kind, need: &str| Error::new(kind, format!("{said}; {need}"));
        let kms = || with_need(Kind::Denied, &needs::kms(action));
        match (code, reason) {
            _ if code.contains("Throttl") || code == "RequestLimitExceeded" || status == 429 => {
                ErrorClass::Retry(error(Kind::Throttled))
            }
            _ if status >= 500 || status == 408 => ErrorClass::Retry(error(Kind::Unavailable)),
            // A PutSnapshotBlock that did not arrive whole, as the table of retries says.
            _ if message.contains("Failed to read block data") => {
                ErrorClass::Retry(error(Kind::Unavailable))
            }
            // A PutSnapshotBlock that was damaged in transit.
            ("InvalidSignatureException", _) if is_about_checksum(message) => {
                ErrorClass::Retry(error(Kind::Corrupt))
            }
            (_, "WRITE_REQUEST_TIMEOUT") => ErrorClass::Retry(error(Kind::Unavailable)),
            ("ConcurrentLimitExceededException", _) => ErrorClass::Retry(with_need(
                Kind::Throttled,
                "too many snapshots of this account are pending: complete or delete some",
            )),
            // https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
            (
                "SnapshotCreationPerVolumeRateExceeded"
                | "ConcurrentSnapshotLimitExceeded"
                | "PendingSnapshotLimitExceeded",
                _,
            ) => ErrorClass::Retry(error(Kind::Throttled)),
            ("IncorrectState" | "IncorrectInstanceState", _) => {
                ErrorClass::Permanent(error(Kind::Pending))
            }
            (_, "INVALID_BLOCK_TOKEN" | "INVALID_PAGE_TOKEN") => {
                ErrorClass::StaleToken(error(Kind::Invalid))
            }
            (
                _,
                "DEPENDENCY_RESOURCE_NOT_FOUND"
                | "INVALID_DEPENDENCY_REQUEST"
                | "DEPENDENCY_ACCESS_DENIED"
                | "GRANT_NOT_FOUND"
                | "INVALID_GRANT_TOKEN"
                | "INVALID_CUSTOMER_KEY",
            ) => ErrorClass::Permanent(kms()),
            ("ServiceQuotaExceededException" | "SnapshotLimitExceeded", _) => {
                ErrorClass::Permanent(with_need(
                    Kind::Denied,
                    "a quota of this account is used up: delete snapshots or ask for more in Service Quotas",
                ))
            }
            ("ConflictException", _) => ErrorClass::Permanent(with_need(
                Kind::Undecided,
                "another request with the same client token and other parameters was made before",
            )),
            (_, "UNRELATED_SNAPSHOTS") => {
                let need = "they have no history in common (a copy to another Region, a rebuilt volume): copy the second one whole, \
                            or compare all blocks of both";
                let error = with_need(Kind::Unrelated, need).with_remedy(Remedy::CompareUnrelated);
                ErrorClass::Permanent(error)
            }
            (_, "INVALID_SNAPSHOT_ID") => ErrorClass::Permanent(self.bad_snapshot(&said)),
            (_, "SNAPSHOT_NOT_FOUND")
            | (
                "InvalidSnapshot.NotFound"
                | "InvalidSnapshotID.Malformed"
                | "InvalidVolume.NotFound"
                | "InvalidInstanceID.NotFound"
                | "InvalidInstanceID.Malformed"
                | "InvalidInstanceType"
                | "InvalidAMIID.NotFound"
                | "InvalidAMIID.Unavailable"
                | "InvalidVpcID.NotFound"
                | "InvalidSubnetID.NotFound"
                | "InvalidGroup.NotFound",
                _,
            ) => ErrorClass::Permanent(with_need(
                Kind::NotFound,
                "check the id, the Region and the account",
            )),
            ("ResourceNotFoundException", _) => ErrorClass::Permanent(error(Kind::NotFound)),
            ("AccessDeniedException" | "UnauthorizedOperation" | "AccessDenied", _) => {
                let need = needs::permission(action, message);
                ErrorClass::Permanent(with_need(Kind::Denied, &need))
            }
            _ if skewed && matches!(status, 400 | 401 | 403) => {
                ErrorClass::Skewed(with_need(Kind::Denied, "the clock is wrong"))
            }
            (
                "ExpiredTokenException"
                | "ExpiredToken"
                | "RequestExpired"
                | "TokenRefreshRequired",
                _,
            ) => ErrorClass::Refused(with_need(
                Kind::Denied,
                "the credentials have expired: renew them",
            )),
            ("OptInRequired", _) => ErrorClass::Permanent(with_need(
                Kind::Denied,
                "this account has not enabled the Region or the service",
            )),
            ("AuthFailure", _) => ErrorClass::Refused(with_need(
                Kind::Denied,
                "the credentials were refused: check that they are valid, not expired, and that this account has enabled the Region (aws account list-regions)",
            )),
            (
                "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidIdentityToken",
                _,
            ) => ErrorClass::Refused(with_need(
                Kind::Denied,
                "the credentials were refused: check that they are valid, of this partition, and that this account has enabled the Region",
            )),
            _ if matches!(status, 401 | 403) => ErrorClass::Refused(with_need(
                Kind::Denied,
                "the credentials were refused: check that they are valid, not expired, and that the clock is right",
            )),
            _ if (300..400).contains(&status) => ErrorClass::Permanent(with_need(
                Kind::Invalid,
                "the endpoint is that of another Region or service; redirects are not followed, because the credentials would go along",
            )),
            _ => ErrorClass::Permanent(error(Kind::Invalid)),
        }
    }

    /// Action, target, and the service's whole answer.
    fn in_words(&self, action: Action<'_>, target: &str) -> String {
        let Self {
            status,
            code,
            reason,
            message,
            ..
        } = self;
        let id = self.request_id.map(|id| format!(", request {id}"));
        let id = id.unwrap_or_default();
        let words = [action.name, target].join(" ");
        let mut said = format!("{words}: {code} {reason} (HTTP {status}{id})").replace("  ", " ");
        if !message.is_empty() {
            said.push_str(": ");
            said.push_str(message);
        }
        said
    }

    /// INVALID_SNAPSHOT_ID has many causes, which only the message distinguishes.
    fn bad_snapshot(&self, said: &str) -> Error {
        let has = |words: &str| self.message.contains(words);
        let (kind, need) = if has("ublic snapshot") {
            (
                Kind::Denied,
                "copy the public snapshot into this account and read the copy (aws ec2 copy-snapshot)",
            )
        } else if has("not complete") || has("pending") {
            (Kind::Pending, "try again when it is completed")
        } else if has("rchive") {
            (
                Kind::Denied,
                "restore it first (aws ec2 restore-snapshot-tier)",
            )
        } else {
            return Error::new(Kind::Invalid, said);
        };
        Error::new(kind, format!("{said}; {need}"))
    }
}

/// Whether a refused signature is one of the body's checksum: the headers that carry it are signed.
fn is_about_checksum(message: &str) -> bool {
    message.to_ascii_lowercase().contains("checksum")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(status: u16, code: &str, reason: &str, message: &str) -> ErrorClass {
        let refused = ServiceRefusal {
            status,
            code,
            reason,
            message,
            request_id: Some("0a1b-2c3d"),
            skewed: false,
        };
        let action = Action::in_region("ebs:GetSnapshotBlock", "us-gov-west-1");
        refused.class(action, "snap-1")
    }

    fn class_of(status: u16, code: &str, reason: &str, message: &str) -> (&'static str, Kind) {
        match refuse(status, code, reason, message) {
            ErrorClass::Retry(error) => ("retry", error.kind()),
            ErrorClass::StaleToken(error) => ("stale", error.kind()),
            ErrorClass::Skewed(error) => ("skewed", error.kind()),
            ErrorClass::Refused(error) => ("refused", error.kind()),
            ErrorClass::Permanent(error) => ("permanent", error.kind()),
        }
    }

    #[test]
    fn each_refusal_has_its_class() {
        let throttled = ("retry", Kind::Throttled);
        let unavailable = ("retry", Kind::Unavailable);
        let refused = ("refused", Kind::Denied);
        let denied = ("permanent", Kind::Denied);
        let absent = ("permanent", Kind::NotFound);
        let damaged = "The value passed in as x-amz-Checksum does not match the computed checksum";
        for (status, code, reason, message, expected) in [
            (
                400,
                "RequestThrottledException",
                "ACCOUNT_THROTTLED",
                "",
                throttled,
            ),
            (400, "ThrottlingException", "", "", throttled),
            (503, "RequestLimitExceeded", "", "", throttled),
            (429, "", "", "", throttled),
            (400, "ConcurrentLimitExceededException", "", "", throttled),
            (400, "ConcurrentSnapshotLimitExceeded", "", "", throttled),
            (400, "PendingSnapshotLimitExceeded", "", "", throttled),
            (
                400,
                "SnapshotCreationPerVolumeRateExceeded",
                "",
                "",
                throttled,
            ),
            (400, "SnapshotLimitExceeded", "", "", denied),
            (400, "InvalidVolume.NotFound", "", "", absent),
            (400, "InvalidInstanceID.NotFound", "", "", absent),
            (400, "InvalidInstanceID.Malformed", "", "", absent),
            (400, "InvalidInstanceType", "", "", absent),
            (400, "InvalidAMIID.NotFound", "", "", absent),
            (400, "InvalidAMIID.Unavailable", "", "", absent),
            (400, "InvalidVpcID.NotFound", "", "", absent),
            (400, "InvalidSubnetID.NotFound", "", "", absent),
            (400, "InvalidGroup.NotFound", "", "", absent),
            (400, "IncorrectState", "", "", ("permanent", Kind::Pending)),
            (408, "", "", "", unavailable),
            (500, "InternalServerException", "", "", unavailable),
            (502, "", "", "", unavailable),
            (503, "ServiceUnavailable", "", "", unavailable),
            (
                400,
                "ValidationException",
                "WRITE_REQUEST_TIMEOUT",
                "",
                unavailable,
            ),
            (
                400,
                "ValidationException",
                "INVALID_PARAMETER_VALUE",
                "Failed to read block data",
                unavailable,
            ),
            (
                403,
                "InvalidSignatureException",
                "",
                damaged,
                ("retry", Kind::Corrupt),
            ),
            (
                403,
                "InvalidSignatureException",
                "",
                "The signature does not match",
                refused,
            ),
            (400, "ExpiredTokenException", "", "", refused),
            (400, "ExpiredToken", "", "", refused),
            (400, "RequestExpired", "", "", refused),
            (401, "AuthFailure", "", "", refused),
            (403, "UnrecognizedClientException", "", "", refused),
            (403, "InvalidClientTokenId", "", "", refused),
            (
                403,
                "AccessDeniedException",
                "UNAUTHORIZED_ACCOUNT",
                "",
                denied,
            ),
            (
                403,
                "AccessDeniedException",
                "DEPENDENCY_ACCESS_DENIED",
                "",
                denied,
            ),
            (403, "UnauthorizedOperation", "", "", denied),
            (400, "OptInRequired", "", "", denied),
            (
                402,
                "ServiceQuotaExceededException",
                "DEPENDENCY_SERVICE_QUOTA_EXCEEDED",
                "",
                denied,
            ),
            (
                404,
                "ResourceNotFoundException",
                "GRANT_NOT_FOUND",
                "",
                denied,
            ),
            (
                404,
                "ResourceNotFoundException",
                "DEPENDENCY_RESOURCE_NOT_FOUND",
                "",
                denied,
            ),
            (
                400,
                "ValidationException",
                "INVALID_CUSTOMER_KEY",
                "",
                denied,
            ),
            (
                400,
                "ValidationException",
                "INVALID_GRANT_TOKEN",
                "",
                denied,
            ),
            (
                404,
                "ResourceNotFoundException",
                "SNAPSHOT_NOT_FOUND",
                "",
                absent,
            ),
            (404, "ResourceNotFoundException", "", "", absent),
            (400, "InvalidSnapshot.NotFound", "", "", absent),
            (400, "InvalidSnapshotID.Malformed", "", "", absent),
            (
                409,
                "ConflictException",
                "",
                "",
                ("permanent", Kind::Undecided),
            ),
            (
                301,
                "PermanentRedirect",
                "",
                "",
                ("permanent", Kind::Invalid),
            ),
            (
                400,
                "ValidationException",
                "INVALID_BLOCK",
                "",
                ("permanent", Kind::Invalid),
            ),
            (
                400,
                "ValidationException",
                "INVALID_BLOCK_TOKEN",
                "",
                ("stale", Kind::Invalid),
            ),
            (
                400,
                "ValidationException",
                "INVALID_PAGE_TOKEN",
                "",
                ("stale", Kind::Invalid),
            ),
            (
                400,
                "ValidationException",
                "UNRELATED_SNAPSHOTS",
                "",
                ("permanent", Kind::Unrelated),
            ),
            (
                400,
                "ValidationException",
                "INVALID_SNAPSHOT_ID",
                "Snapshot is not complete",
                ("permanent", Kind::Pending),
            ),
            (
                400,
                "ValidationException",
                "INVALID_SNAPSHOT_ID",
                "Public snapshots are not supported",
                denied,
            ),
            (
                400,
                "ValidationException",
                "INVALID_SNAPSHOT_ID",
                "is archived",
                denied,
            ),
            (
                400,
                "ValidationException",
                "INVALID_SNAPSHOT_ID",
                "no",
                ("permanent", Kind::Invalid),
            ),
        ] {
            let class = class_of(status, code, reason, message);
            assert_eq!(class, expected, "{status} {code} {reason} {message}");
        }
    }

    #[test]
    fn refusals_name_status_request_and_the_missing_permission() {
        for (status, code, reason, message, words) in [
            (
                403,
                "AccessDeniedException",
                "",
                "no",
                "permission ebs:GetSnapshotBlock on arn:aws-us-gov:ec2:*::snapshot/*",
            ),
            (
                404,
                "ResourceNotFoundException",
                "DEPENDENCY_RESOURCE_NOT_FOUND",
                "KMS key not found",
                "kms:Decrypt",
            ),
            (
                403,
                "InvalidSignatureException",
                "",
                "bad",
                "credentials were refused",
            ),
            (401, "AuthFailure", "", "", "enabled the Region"),
            (500, "", "", "", "(HTTP 500, request 0a1b-2c3d)"),
            (301, "", "", "", "redirects are not followed"),
        ] {
            let said = refuse(status, code, reason, message).into_error().chain();
            assert!(said.contains(words), "{said}");
            assert!(said.contains(&format!("HTTP {status}")), "{said}");
            assert!(said.contains("0a1b-2c3d"), "{said}");
        }
    }
}
