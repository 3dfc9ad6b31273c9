//! What a refused call needs: the policy that must allow it, if AWS names one, and the KMS actions behind it.

use super::Action;
use super::denying_policy::DenyingPolicy;
use crate::aws::actions::{IamAction, KMS_FOR_CHILD, KMS_TO_READ, KMS_TO_START};

/// States the missing permission. `message` is that of the service.
pub(super) fn permission(action: Action<'_>, message: &str) -> String {
    // A call can need more than the action of its name: StartSnapshot with tags needs ec2:CreateTags.
    let action = match refused_action(message) {
        Some(refused) => Action {
            name: refused.name(),
            ..action
        },
        None => action,
    };
    let what = format!("{}{}", action.name, resource(action));
    match DenyingPolicy::of(message).and_then(DenyingPolicy::owner) {
        Some(owner) => format!("{owner} must allow {what}"),
        None => format!("the caller needs the permission {what}"),
    }
}

/// The action that a message names as the refused one, if this program uses it.
pub(crate) fn refused_action(message: &str) -> Option<IamAction> {
    let (_, rest) = message.split_once("is not authorized to perform: ")?;
    IamAction::of(rest.split(' ').next()?)
}

/// The KMS actions that are missing.
pub(super) fn kms(action: Action<'_>) -> String {
    if IamAction::of(action.name) == Some(IamAction::StartSnapshot) {
        format!(
            "the caller needs {} on the KMS key, for a child {} (kms:ViaService is ec2)",
            KMS_TO_START.join(" and "),
            KMS_FOR_CHILD.join(" and ")
        )
    } else {
        format!(
            "the caller needs {} on the snapshot's KMS key (kms:ViaService is ec2)",
            KMS_TO_READ.join(" and ")
        )
    }
}

/// The resource to grant a permission on: the account field of a snapshot's ARN is empty.
fn resource(action: Action<'_>) -> String {
    let on = IamAction::of(action.name).map(IamAction::resource);
    match on {
        Some(on) if on.is_snapshots() => format!(" on arn:{}:ec2:*::snapshot/*", action.partition),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_that_refuses_is_named_as_far_as_aws_tells() {
        let ec2 = "You are not authorized to perform this operation.";
        for (action, message, words) in [
            (
                IamAction::GetSnapshotBlock,
                "because no identity-based policy allows the ebs:GetSnapshotBlock action",
                "the caller needs the permission ebs:GetSnapshotBlock on arn:aws:ec2:*::snapshot/*",
            ),
            (
                IamAction::GetSnapshotBlock,
                "because no VPC endpoint policy allows the ebs:GetSnapshotBlock action",
                "the policy of the VPC endpoint must allow ebs:GetSnapshotBlock on arn:aws:ec2:*::snapshot/*",
            ),
            (
                IamAction::DeleteSnapshot,
                "with an explicit deny in a service control policy",
                "a service control policy of the organization must allow ec2:DeleteSnapshot on arn:aws:ec2:*::snapshot/*",
            ),
            (
                IamAction::AssumeRole,
                "because no role trust policy allows the sts:AssumeRole action",
                "the trust policy of the role must allow sts:AssumeRole",
            ),
            (
                IamAction::StartSnapshot,
                "User: a is not authorized to perform: ec2:CreateTags on resource: b because no identity-based policy allows it",
                "the caller needs the permission ec2:CreateTags on arn:aws:ec2:*::snapshot/*",
            ),
            (
                IamAction::DescribeSnapshots,
                ec2,
                "the caller needs the permission ec2:DescribeSnapshots",
            ),
        ] {
            assert_eq!(permission(action.name().into(), message), words);
        }
    }

    #[test]
    fn the_kms_actions_of_reading_and_of_starting_are_named() {
        let start = kms(IamAction::StartSnapshot.name().into());
        let read = kms(IamAction::ListSnapshotBlocks.name().into());
        assert!(start.contains("kms:GenerateDataKey*") && start.contains("kms:ReEncrypt*"));
        assert!(read.contains("kms:DescribeKey and kms:Decrypt on the snapshot's KMS key"));
    }
}
