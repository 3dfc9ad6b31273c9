//! The IAM actions that this program needs, each with what it is granted on and the KMS actions behind it; by verb in
//! [`verbs`]. Every call names its action here, so that messages, `ebsfs policy` and the calls cannot disagree.
//!
//! Names and resources are those of
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonelasticblockstore.html>,
//! `list_amazonec2.html` and `list_amazons3.html`.

mod verbs;

pub(crate) use verbs::{ActionNeed, AwsVerb, all_needs};

/// An action of IAM. Most calls need the one of their own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum IamAction {
    /// Lists the blocks that a snapshot holds.
    ListSnapshotBlocks,
    /// Lists the blocks that differ between two snapshots; needed on both.
    ListChangedBlocks,
    /// Reads a block.
    GetSnapshotBlock,
    /// Starts a new snapshot.
    StartSnapshot,
    /// Writes a block of a new snapshot.
    PutSnapshotBlock,
    /// Completes a new snapshot.
    CompleteSnapshot,
    /// Tags a snapshot; StartSnapshot, CreateSnapshot and CreateSnapshots with tags need it too.
    CreateTags,
    /// Describes snapshots.
    DescribeSnapshots,
    /// Describes volumes.
    DescribeVolumes,
    /// Describes instances.
    DescribeInstances,
    /// Describes instance types.
    DescribeInstanceTypes,
    /// Describes VPCs.
    DescribeVpcs,
    /// Describes subnets.
    DescribeSubnets,
    /// Describes security groups.
    DescribeSecurityGroups,
    /// Describes machine images.
    DescribeImages,
    /// Makes a snapshot of a volume.
    CreateSnapshot,
    /// Makes snapshots of all volumes of an instance.
    CreateSnapshots,
    /// Deletes a snapshot.
    DeleteSnapshot,
    /// Asks whether new snapshots are encrypted without a request for it.
    GetEbsEncryptionByDefault,
    /// Reads an object, whole or in part, or its size (HEAD).
    GetObject,
    /// Writes an object.
    PutObject,
    /// Deletes an object.
    DeleteObject,
    /// Lists the objects of a bucket.
    ListBucket,
    /// Asks whether a bucket keeps versions; for `ebsfs doctor` alone.
    GetBucketVersioning,
    /// Asks for the lifecycle rules of a bucket; for `ebsfs doctor` alone.
    GetLifecycleConfiguration,
    /// Asks for the Object Lock of a bucket; for `ebsfs doctor` alone.
    GetObjectLockConfiguration,
    /// Asks for a quota of the account; for `ebsfs doctor` alone.
    GetServiceQuota,
    /// Takes a role that a profile names.
    AssumeRole,
    /// Takes a role with a web identity token.
    AssumeRoleWithWebIdentity,
    /// Asks who calls. No identity policy can deny it, a VPC endpoint policy can.
    GetCallerIdentity,
}

/// What an action is granted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActionResource {
    /// Nothing in particular: `*`.
    Any,
    /// Snapshots that are read. The account in their ARN is empty.
    Snapshots,
    /// Snapshots that a job has made, by their tag `ebsfs:cycle`.
    CycleSnapshots,
    /// Snapshots that a job has made at an `ebs:` target, by their tag `ebsfs:job`.
    JobSnapshots,
    /// Snapshots that this program makes.
    NewSnapshots,
    /// Volumes and instances, and the new snapshots of them.
    Captured,
    /// A bucket.
    Bucket,
    /// The objects of a repository.
    Objects,
    /// The objects that put runs and readers on record.
    RunObjects,
}

/// The service that a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ActionService {
    /// The EBS direct APIs.
    Ebs,
    /// EC2.
    Ec2,
    /// S3.
    S3,
    /// Service Quotas.
    Quotas,
    /// STS.
    Sts,
}

impl ActionService {
    /// All services, in the order of their names.
    pub(crate) const ALL: [Self; 5] = [Self::Ebs, Self::Ec2, Self::S3, Self::Quotas, Self::Sts];

    /// Its name before the colon of an action, and in the name of a VPC endpoint: `ebs`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ebs => "ebs",
            Self::Ec2 => "ec2",
            Self::S3 => "s3",
            Self::Quotas => "servicequotas",
            Self::Sts => "sts",
        }
    }
}

/// The KMS actions that reading an encrypted snapshot takes.
pub(crate) const KMS_TO_READ: &[&str] = &["kms:DescribeKey", "kms:Decrypt"];
/// Those that a new encrypted snapshot without a parent takes.
pub(crate) const KMS_TO_START: &[&str] = &["kms:DescribeKey", "kms:GenerateDataKey*"];
/// Those that a child of an encrypted snapshot takes besides.
pub(crate) const KMS_FOR_CHILD: &[&str] = &["kms:ReEncrypt*", "kms:Decrypt"];

impl IamAction {
    /// All actions.
    pub(crate) const ALL: [Self; 30] = [
        Self::ListSnapshotBlocks,
        Self::ListChangedBlocks,
        Self::GetSnapshotBlock,
        Self::StartSnapshot,
        Self::PutSnapshotBlock,
        Self::CompleteSnapshot,
        Self::CreateTags,
        Self::DescribeSnapshots,
        Self::DescribeVolumes,
        Self::DescribeInstances,
        Self::DescribeInstanceTypes,
        Self::DescribeVpcs,
        Self::DescribeSubnets,
        Self::DescribeSecurityGroups,
        Self::DescribeImages,
        Self::CreateSnapshot,
        Self::CreateSnapshots,
        Self::DeleteSnapshot,
        Self::GetEbsEncryptionByDefault,
        Self::GetObject,
        Self::PutObject,
        Self::DeleteObject,
        Self::ListBucket,
        Self::GetBucketVersioning,
        Self::GetLifecycleConfiguration,
        Self::GetObjectLockConfiguration,
        Self::GetServiceQuota,
        Self::AssumeRole,
        Self::AssumeRoleWithWebIdentity,
        Self::GetCallerIdentity,
    ];

    /// Its name in policies: `ebs:GetSnapshotBlock`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ListSnapshotBlocks => "ebs:ListSnapshotBlocks",
            Self::ListChangedBlocks => "ebs:ListChangedBlocks",
            Self::GetSnapshotBlock => "ebs:GetSnapshotBlock",
            Self::StartSnapshot => "ebs:StartSnapshot",
            Self::PutSnapshotBlock => "ebs:PutSnapshotBlock",
            Self::CompleteSnapshot => "ebs:CompleteSnapshot",
            Self::CreateTags => "ec2:CreateTags",
            Self::DescribeSnapshots => "ec2:DescribeSnapshots",
            Self::DescribeVolumes => "ec2:DescribeVolumes",
            Self::DescribeInstances => "ec2:DescribeInstances",
            Self::DescribeInstanceTypes => "ec2:DescribeInstanceTypes",
            Self::DescribeVpcs => "ec2:DescribeVpcs",
            Self::DescribeSubnets => "ec2:DescribeSubnets",
            Self::DescribeSecurityGroups => "ec2:DescribeSecurityGroups",
            Self::DescribeImages => "ec2:DescribeImages",
            Self::CreateSnapshot => "ec2:CreateSnapshot",
            Self::CreateSnapshots => "ec2:CreateSnapshots",
            Self::DeleteSnapshot => "ec2:DeleteSnapshot",
            Self::GetEbsEncryptionByDefault => "ec2:GetEbsEncryptionByDefault",
            Self::GetObject => "s3:GetObject",
            Self::PutObject => "s3:PutObject",
            Self::DeleteObject => "s3:DeleteObject",
            Self::ListBucket => "s3:ListBucket",
            Self::GetBucketVersioning => "s3:GetBucketVersioning",
            Self::GetLifecycleConfiguration => "s3:GetLifecycleConfiguration",
            Self::GetObjectLockConfiguration => "s3:GetBucketObjectLockConfiguration",
            Self::GetServiceQuota => "servicequotas:GetServiceQuota",
            Self::AssumeRole => "sts:AssumeRole",
            Self::AssumeRoleWithWebIdentity => "sts:AssumeRoleWithWebIdentity",
            Self::GetCallerIdentity => "sts:GetCallerIdentity",
        }
    }

    /// The action of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// The service that its request goes to. Tags of a new snapshot go along with the call that makes it.
    pub(crate) fn service(self) -> ActionService {
        let name = self.name().split(':').next();
        let all = ActionService::ALL.into_iter();
        let mut found = all.filter(|service| Some(service.name()) == name);
        found.next().unwrap_or(ActionService::Ec2)
    }

    /// What it is granted on; a verb can need it on less.
    pub(crate) const fn resource(self) -> ActionResource {
        match self {
            Self::ListSnapshotBlocks | Self::ListChangedBlocks | Self::GetSnapshotBlock => {
                ActionResource::Snapshots
            }
            Self::StartSnapshot
            | Self::PutSnapshotBlock
            | Self::CompleteSnapshot
            | Self::CreateTags => ActionResource::NewSnapshots,
            Self::CreateSnapshot | Self::CreateSnapshots => ActionResource::Captured,
            Self::DeleteSnapshot => ActionResource::CycleSnapshots,
            Self::GetObject | Self::PutObject | Self::DeleteObject => ActionResource::Objects,
            Self::ListBucket
            | Self::GetBucketVersioning
            | Self::GetLifecycleConfiguration
            | Self::GetObjectLockConfiguration => ActionResource::Bucket,
            Self::DescribeSnapshots
            | Self::DescribeVolumes
            | Self::DescribeInstances
            | Self::DescribeInstanceTypes
            | Self::DescribeVpcs
            | Self::DescribeSubnets
            | Self::DescribeSecurityGroups
            | Self::DescribeImages
            | Self::GetEbsEncryptionByDefault
            | Self::GetServiceQuota
            | Self::AssumeRole
            | Self::AssumeRoleWithWebIdentity
            | Self::GetCallerIdentity => ActionResource::Any,
        }
    }

    /// The KMS actions that the service takes in the caller's name where the snapshot or the object is encrypted with a key
    /// of the customer. EBS asks as `ec2` (`kms:ViaService`), S3 as `s3`.
    pub(crate) const fn kms(self) -> &'static [&'static str] {
        match self {
            Self::ListSnapshotBlocks | Self::ListChangedBlocks => &["kms:DescribeKey"],
            Self::GetSnapshotBlock => KMS_TO_READ,
            Self::StartSnapshot => &[
                "kms:DescribeKey",
                "kms:Decrypt",
                "kms:GenerateDataKey*",
                "kms:ReEncrypt*",
            ],
            Self::GetObject => &["kms:Decrypt"],
            Self::PutObject => &["kms:GenerateDataKey"],
            _ => &[],
        }
    }
}

impl ActionResource {
    /// Whether it is snapshots, in any role.
    pub(crate) const fn is_snapshots(self) -> bool {
        matches!(
            self,
            Self::Snapshots | Self::CycleSnapshots | Self::JobSnapshots | Self::NewSnapshots
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_found_by_its_name_and_belongs_to_its_service() {
        for action in IamAction::ALL {
            assert_eq!(IamAction::of(action.name()), Some(action));
            let service = action.service().name();
            assert!(action.name().starts_with(&format!("{service}:")));
            let is_object = action.service() == ActionService::S3;
            let on = action.resource();
            let is_of_bucket = matches!(on, ActionResource::Objects | ActionResource::Bucket);
            assert_eq!(is_object, is_of_bucket, "{action:?}");
        }
        assert_eq!(IamAction::of("ebs:GetSnapshotBlocks"), None);
    }

    #[test]
    fn a_start_needs_the_kms_actions_with_and_without_a_parent() {
        let needed = IamAction::StartSnapshot.kms();
        for action in [KMS_TO_START, KMS_FOR_CHILD].concat() {
            assert!(needed.contains(&action), "{action}");
        }
        assert_eq!(needed.len(), 4);
    }
}
