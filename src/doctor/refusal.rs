//! Who has denied a request, as far as AWS says it, and where a person changes that.
//!
//! The phrases are those of
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html> and
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/troubleshoot-403-errors.html>; EBS names reasons of KMS
//! (<https://docs.aws.amazon.com/ebs/latest/APIReference/API_GetSnapshotBlock.html>).

use crate::aws::{DenyingPolicy, IamAction, refused_action};

/// Where a person changes a policy of this kind.
const fn place(kind: DenyingPolicy) -> &'static str {
    match kind {
        DenyingPolicy::Identity => {
            "IAM console > Users or Roles > NAME > Permissions > Add permissions; allow ACTION"
        }
        DenyingPolicy::ServiceControl => {
            "AWS Organizations console > Policies > Service control policies (an administrator of the organization); allow ACTION"
        }
        DenyingPolicy::ResourceControl => {
            "AWS Organizations console > Policies > Resource control policies (an administrator of the organization); allow ACTION"
        }
        DenyingPolicy::VpcEndpoint => {
            "VPC console > Endpoints > vpce-ID > Policy > Edit policy; allow ACTION"
        }
        DenyingPolicy::Boundary => {
            "IAM console > Users or Roles > NAME > Permissions boundary; allow ACTION"
        }
        DenyingPolicy::Session => {
            "the policy that was given when the role was assumed (sts assume-role --policy); allow ACTION"
        }
        DenyingPolicy::Resource => {
            "the policy of the bucket (S3 console > BUCKET > Permissions) or key (KMS console > KEY > Key policy); allow ACTION"
        }
        DenyingPolicy::RoleTrust => {
            "IAM console > Roles > NAME > Trust relationships; allow the caller ACTION"
        }
    }
}

/// Reasons of EBS that concern a KMS key.
const KMS: &[&str] = &[
    "DEPENDENCY_ACCESS_DENIED",
    "DEPENDENCY_RESOURCE_NOT_FOUND",
    "INVALID_DEPENDENCY_REQUEST",
    "GRANT_NOT_FOUND",
    "INVALID_GRANT_TOKEN",
    "INVALID_CUSTOMER_KEY",
    "KMS.",
];

/// Who has denied a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denier {
    /// A policy of this kind.
    Policy(DenyingPolicy),
    /// A key of KMS, or its policy.
    Key,
    /// The message is encoded.
    Encoded,
    /// The credentials are not known, expired, or signed by another clock.
    Credentials,
    /// The message does not say.
    Unsaid,
}

impl Denier {
    fn of(message: &str) -> Self {
        let has = |words: &str| message.contains(words);
        if let Some(kind) = DenyingPolicy::of(message) {
            return Self::Policy(kind);
        }
        if KMS.iter().any(|reason| has(reason)) {
            return Self::Key;
        }
        if has("ncoded authorization failure message:") {
            return Self::Encoded;
        }
        if is_of_credentials(message) {
            return Self::Credentials;
        }
        Self::Unsaid
    }
}

/// Whether a request was refused for its keys, whatever they may do. The words are those of [`crate::aws`].
pub(super) fn is_of_credentials(message: &str) -> bool {
    let words = [
        "the credentials were refused",
        "the credentials have expired",
    ];
    words.iter().any(|words| message.contains(words))
}

/// What a person can do about a request that was denied. `action` is that of the call; the message can name another one, which the
/// call needs too.
pub(super) fn advice(message: &str, action: &str) -> String {
    let refused = refused_action(message).map(IamAction::name);
    let action = refused.or_else(|| named_action(message)).unwrap_or(action);
    match Denier::of(message) {
        Denier::Policy(kind) => format!("denied by the {}: {}", kind.name(), place(kind).replace("ACTION", action)),
        Denier::Key => "allow the caller kms:Decrypt and kms:DescribeKey: KMS console > Customer managed keys > KEY > Key policy, \
            and its identity policy; the key must be enabled and in this Region"
            .to_owned(),
        Denier::Encoded => "aws sts decode-authorization-message --encoded-message MESSAGE --query DecodedMessage --output \
            text names the policy"
            .to_owned(),
        Denier::Credentials => "aws sts get-caller-identity shows whether the keys are valid; renew them (aws sso login, \
            aws configure), and check date -u"
            .to_owned(),
        Denier::Unsaid => format!(
            "denied, reason not given. Who can deny {action}: the identity policy of the caller, its permissions boundary, a \
             service or resource control policy, the session policy of a role, the policy of the VPC endpoint, \
             of the bucket, of the KMS key"
        ),
    }
}

/// The action that a message names, also one that no call of ebsfs needs by itself, such as `kms:GenerateDataKey` of a bucket.
fn named_action(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("not authorized to perform: ")?;
    let name = rest.split_whitespace().next()?;
    let (service, action) = name.split_once(':')?;
    let is_word = |text: &str| {
        let mut letters = text.bytes();
        !text.is_empty() && text.len() <= 64 && letters.all(|byte| byte.is_ascii_alphanumeric())
    };
    (is_word(service) && is_word(action)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_of_another_service_is_named_and_no_other_words_are() {
        for (message, action) in [
            (
                "User: a is not authorized to perform: kms:GenerateDataKey on resource: b",
                Some("kms:GenerateDataKey"),
            ),
            ("not authorized to perform: a lot", None),
            ("not authorized to perform: x:", None),
            ("not authorized to perform: https://a:b", None),
            ("denied", None),
        ] {
            assert_eq!(named_action(message), action);
        }
    }

    #[test]
    fn a_denial_names_the_policy_that_its_message_names_and_no_other() {
        let said = "User: arn:aws:iam::1:user/a is not authorized to perform: ebs:GetSnapshotBlock on resource: arn:aws:ec2:x";
        for (end, words) in [
            (
                "because no identity-based policy allows the ebs:GetSnapshotBlock action",
                "IAM console > Users or Roles > NAME > Permissions > Add",
            ),
            (
                "with an explicit deny in an identity-based policy",
                "identity-based policy",
            ),
            (
                "with an explicit deny in a service control policy",
                "Service control policies",
            ),
            (
                "with an explicit deny in a resource control policy",
                "Resource control policies",
            ),
            (
                "because no VPC endpoint policy allows the ebs:GetSnapshotBlock action",
                "VPC console > Endpoints > vpce-ID > Policy",
            ),
            ("with an explicit deny in a VPC endpoint policy", "vpce-ID"),
            (
                "because no permissions boundary allows the ebs:GetSnapshotBlock action",
                "Permissions boundary",
            ),
            (
                "with an explicit deny in a session policy",
                "sts assume-role",
            ),
            (
                "because no resource-based policy allows the s3:PutObject action",
                "S3 console",
            ),
            (
                "",
                "denied, reason not given. Who can deny ebs:GetSnapshotBlock",
            ),
            (
                "Encoded authorization failure message: aB3",
                "decode-authorization-message",
            ),
            ("DEPENDENCY_ACCESS_DENIED (HTTP 400)", "kms:Decrypt"),
            (
                "the credentials have expired: renew them",
                "get-caller-identity",
            ),
        ] {
            let advice = advice(&format!("{said} {end}"), "ebs:GetSnapshotBlock");
            assert!(advice.contains(words), "{end}: {advice}");
        }
    }
}
