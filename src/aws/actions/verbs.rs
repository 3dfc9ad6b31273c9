//! The table: which actions each verb needs, and what is lost without one.

use super::{ActionResource, IamAction};

/// A verb, or a role of one, that calls AWS or reads and writes a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AwsVerb {
    /// Show snapshots as images.
    Mount,
    /// Mount a filesystem of a snapshot.
    Attach,
    /// Fill a cache on disk.
    Warm,
    /// List snapshots.
    Ls,
    /// Read files inside a snapshot.
    Files,
    /// Show what differs between snapshots.
    Changes,
    /// Show which blocks a snapshot holds.
    Blocks,
    /// Print the digests of a snapshot.
    Digest,
    /// Make evidence of a snapshot.
    Evidence,
    /// Compare a target with a snapshot.
    Verify,
    /// Check a recovery point.
    Drill,
    /// Copy a snapshot to an image, a device or a repository: the source.
    Sync,
    /// Copy to a new EBS snapshot: the target.
    Upload,
    /// Make snapshots of volumes.
    Snapshot,
    /// Describe a machine.
    Inventory,
    /// Replicate on a schedule: the source.
    Replicate,
    /// Replicate from a repository.
    Gateway,
    /// List, check and prune a repository.
    Repository,
    /// Read a repository.
    RepositoryRead,
    /// Write a repository.
    RepositoryWrite,
    /// Restore from a repository.
    Restore,
}

/// One action that a verb needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActionNeed {
    /// The action.
    pub(crate) action: IamAction,
    /// What the verb needs it on.
    pub(crate) on: ActionResource,
    /// What is lost without it; none where the verb fails.
    pub(crate) without: Option<&'static str>,
}

impl ActionNeed {
    const fn on(self, on: ActionResource) -> Self {
        Self { on, ..self }
    }

    const fn or(self, without: &'static str) -> Self {
        Self {
            without: Some(without),
            ..self
        }
    }
}

const fn need(action: IamAction) -> ActionNeed {
    ActionNeed {
        action,
        on: action.resource(),
        without: None,
    }
}

const LIST: ActionNeed = need(IamAction::ListSnapshotBlocks);
const GET: ActionNeed = need(IamAction::GetSnapshotBlock);
const CHANGED: ActionNeed = need(IamAction::ListChangedBlocks);
const DESCRIBE: ActionNeed = need(IamAction::DescribeSnapshots);
const DESCRIBE_TO_READ: ActionNeed =
    DESCRIBE.or("snapshots are named by their ids; sizes, times and states are unknown");
const WHO: ActionNeed = need(IamAction::GetCallerIdentity);
const READ: &[ActionNeed] = &[LIST, GET, DESCRIBE_TO_READ];

const GET_OBJECT: ActionNeed = need(IamAction::GetObject);
const PUT_OBJECT: ActionNeed = need(IamAction::PutObject);
const DELETE_OBJECT: ActionNeed = need(IamAction::DeleteObject);
const LIST_BUCKET: ActionNeed = need(IamAction::ListBucket);
const READ_OBJECTS: &[ActionNeed] = &[
    GET_OBJECT,
    LIST_BUCKET,
    PUT_OBJECT
        .on(ActionResource::RunObjects)
        .or("the reader is not on record: a prune does not wait for it"),
    DELETE_OBJECT
        .on(ActionResource::RunObjects)
        .or("the record of the reader stays until a prune removes it"),
];

const DESCRIBE_VOLUMES: ActionNeed = need(IamAction::DescribeVolumes);
const DESCRIBE_INSTANCES: ActionNeed = need(IamAction::DescribeInstances);
const CREATE_ONE: ActionNeed = need(IamAction::CreateSnapshot);
const CREATE_SET: ActionNeed = need(IamAction::CreateSnapshots).or("no sets of an instance");
const TAG: ActionNeed = need(IamAction::CreateTags);
const DESCRIBE_FOR_SETS: ActionNeed =
    DESCRIBE_INSTANCES.or("no sets of an instance, no exclusion of boot volumes");

const MOUNT: &[ActionNeed] = &[
    LIST,
    GET,
    CHANGED.or("no folders of changes between two snapshots"),
    DESCRIBE_TO_READ,
    WHO.or("the log does not name the caller"),
];
const EVIDENCE: &[ActionNeed] = &[
    LIST,
    GET,
    DESCRIBE_TO_READ,
    WHO.or("the statement does not name the caller"),
];
const FILES: &[ActionNeed] = &[
    LIST,
    GET,
    CHANGED.or("the files that changed are found by reading all metadata"),
    DESCRIBE_TO_READ,
];
// The listing of a snapshot states its size, where EC2 does not.
const CHANGES: &[ActionNeed] = &[
    LIST,
    GET.or("no comparison of bytes"),
    CHANGED,
    DESCRIBE_TO_READ,
];
const SYNC: &[ActionNeed] = &[
    LIST,
    GET,
    CHANGED.or("all blocks are copied, not only the changed ones"),
    DESCRIBE_TO_READ,
];
const UPLOAD: &[ActionNeed] = &[
    need(IamAction::StartSnapshot),
    need(IamAction::PutSnapshotBlock),
    need(IamAction::CompleteSnapshot),
    TAG,
    DESCRIBE,
    need(IamAction::GetEbsEncryptionByDefault)
        .or("all blocks are put, as for an encrypted snapshot"),
];
/// What the `ebs:` targets of a job need in addition.
const KEEP_AT_TARGETS: ActionNeed = need(IamAction::DeleteSnapshot)
    .on(ActionResource::JobSnapshots)
    .or("nothing is deleted at ebs: targets");
const SNAPSHOT: &[ActionNeed] = &[
    DESCRIBE_VOLUMES,
    DESCRIBE_FOR_SETS,
    DESCRIBE,
    CREATE_ONE,
    CREATE_SET,
    TAG,
];
const INVENTORY: &[ActionNeed] = &[
    DESCRIBE_INSTANCES,
    DESCRIBE_VOLUMES.or("disks have their ids, devices and order only"),
    need(IamAction::DescribeInstanceTypes).or("no hardware"),
    need(IamAction::DescribeVpcs).or("no VPCs"),
    need(IamAction::DescribeSubnets).or("no subnets"),
    need(IamAction::DescribeSecurityGroups).or("no security groups"),
    need(IamAction::DescribeImages).or("no image"),
];
const REPLICATE: &[ActionNeed] = &[
    DESCRIBE_VOLUMES,
    DESCRIBE_FOR_SETS,
    DESCRIBE,
    CREATE_ONE,
    CREATE_SET,
    TAG,
    LIST,
    CHANGED,
    GET,
    need(IamAction::DeleteSnapshot).or("nothing is deleted at the source"),
];
const REPOSITORY_WRITE: &[ActionNeed] = &[
    GET_OBJECT,
    PUT_OBJECT,
    DELETE_OBJECT
        .on(ActionResource::RunObjects)
        .or("the record of the run stays until a prune removes it"),
    LIST_BUCKET,
];

impl AwsVerb {
    /// All of them, in the order of the command line.
    pub(crate) const ALL: [Self; 21] = [
        Self::Mount,
        Self::Attach,
        Self::Warm,
        Self::Ls,
        Self::Files,
        Self::Changes,
        Self::Blocks,
        Self::Digest,
        Self::Evidence,
        Self::Verify,
        Self::Drill,
        Self::Sync,
        Self::Upload,
        Self::Snapshot,
        Self::Inventory,
        Self::Replicate,
        Self::Gateway,
        Self::Repository,
        Self::RepositoryRead,
        Self::RepositoryWrite,
        Self::Restore,
    ];

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Attach => "attach",
            Self::Warm => "warm",
            Self::Ls => "ls",
            Self::Files => "files",
            Self::Changes => "changes",
            Self::Blocks => "blocks",
            Self::Digest => "digest",
            Self::Evidence => "evidence",
            Self::Verify => "verify",
            Self::Drill => "drill",
            Self::Sync => "sync",
            Self::Upload => "upload",
            Self::Snapshot => "snapshot",
            Self::Inventory => "inventory",
            Self::Replicate => "replicate",
            Self::Gateway => "gateway",
            Self::Repository => "repository",
            Self::RepositoryRead => "repository-read",
            Self::RepositoryWrite => "repository-write",
            Self::Restore => "restore",
        }
    }

    /// One line about it.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Mount => "Show snapshots as disk images",
            Self::Attach => "Mount a filesystem of a snapshot",
            Self::Warm => "Read snapshots into a cache on disk",
            Self::Ls => "List snapshots",
            Self::Files => "Read the files inside a snapshot",
            Self::Changes => "Show what differs between snapshots",
            Self::Blocks => "Show which blocks a snapshot holds",
            Self::Digest => "Print the digests of a snapshot",
            Self::Evidence => "Make evidence of a snapshot",
            Self::Verify => "Compare a target with a snapshot",
            Self::Drill => "Check a snapshot in an overlay",
            Self::Sync => "Read the source of a copy",
            Self::Upload => "Write new EBS snapshots, the target ebs: of a copy",
            Self::Snapshot => "Make snapshots of volumes",
            Self::Inventory => "Describe the machine around an instance",
            Self::Replicate => "Make, read and delete the snapshots of a job",
            Self::Gateway => "Replicate from a repository",
            Self::Repository => "List, check and prune a repository",
            Self::RepositoryRead => "Read a repository",
            Self::RepositoryWrite => "Write a repository",
            Self::Restore => "Restore disks from a repository",
        }
    }

    /// The actions that it needs, in the order of a policy.
    pub(crate) const fn needs(self) -> &'static [ActionNeed] {
        match self {
            Self::Mount => MOUNT,
            Self::Ls => &[DESCRIBE],
            Self::Attach | Self::Warm | Self::Digest | Self::Verify | Self::Drill => READ,
            Self::Evidence => EVIDENCE,
            Self::Files => FILES,
            Self::Changes => CHANGES,
            Self::Blocks => &[LIST, DESCRIBE_TO_READ],
            Self::Sync => SYNC,
            Self::Upload => UPLOAD,
            Self::Snapshot => SNAPSHOT,
            Self::Inventory => INVENTORY,
            Self::Replicate => REPLICATE,
            Self::Gateway | Self::RepositoryRead | Self::Restore => READ_OBJECTS,
            Self::Repository => &[GET_OBJECT, PUT_OBJECT, DELETE_OBJECT, LIST_BUCKET],
            Self::RepositoryWrite => REPOSITORY_WRITE,
        }
    }

    /// What it needs in addition if a bucket is named: a reader reads a repository in it, a copy writes one. None if the verb
    /// uses no bucket.
    pub(crate) const fn needs_of_bucket(self) -> Option<&'static [ActionNeed]> {
        match self {
            Self::Mount
            | Self::Attach
            | Self::Files
            | Self::Digest
            | Self::Evidence
            | Self::Verify
            | Self::Drill => Some(READ_OBJECTS),
            Self::Sync | Self::Replicate => Some(Self::RepositoryWrite.needs()),
            Self::Gateway
            | Self::Repository
            | Self::RepositoryRead
            | Self::RepositoryWrite
            | Self::Restore => Some(&[]),
            Self::Warm
            | Self::Ls
            | Self::Changes
            | Self::Blocks
            | Self::Upload
            | Self::Snapshot
            | Self::Inventory => None,
        }
    }

    /// Whether it runs jobs, which delete snapshots at their `ebs:` targets.
    const fn runs_jobs(self) -> bool {
        matches!(self, Self::Replicate | Self::Gateway)
    }

    /// Whether all its actions are on a bucket, so that it cannot do without one.
    pub(crate) fn is_of_repository(self) -> bool {
        let is_of_bucket = |need: &ActionNeed| {
            matches!(
                need.on,
                ActionResource::Bucket | ActionResource::Objects | ActionResource::RunObjects
            )
        };
        self.needs().iter().all(is_of_bucket)
    }
}

/// The needs of several verbs, and those on their bucket if there is one: each action once for each kind of resource. It is
/// optional only if each of the verbs can do without it. With `is_of_job`, or together with a verb that runs jobs, the target
/// of a copy is one of a job.
pub(crate) fn all_needs(verbs: &[AwsVerb], with_bucket: bool, is_of_job: bool) -> Vec<ActionNeed> {
    let mut all: Vec<ActionNeed> = Vec::new();
    let of_bucket = |verb: &AwsVerb| verb.needs_of_bucket().filter(|_| with_bucket);
    let is_of_job = is_of_job || verbs.iter().any(|verb| verb.runs_jobs());
    let at_targets = verbs.contains(&AwsVerb::Upload) && is_of_job;
    for need in verbs
        .iter()
        .flat_map(|verb| [verb.needs(), of_bucket(verb).unwrap_or_default()])
        .flatten()
        .chain(at_targets.then_some(&KEEP_AT_TARGETS))
    {
        let same = |known: &&mut ActionNeed| (known.action, known.on) == (need.action, need.on);
        match all.iter_mut().find(same) {
            Some(known) if need.without.is_none() => known.without = None,
            Some(_) => {}
            None => all.push(*need),
        }
    }
    let whole: Vec<IamAction> = all
        .iter()
        .filter(|need| need.on == ActionResource::Objects && need.without.is_none())
        .map(|need| need.action)
        .collect();
    // An action on all objects includes the objects of runs.
    all.retain(|need| need.on != ActionResource::RunObjects || !whole.contains(&need.action));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_together_need_each_action_once_and_the_strictest_wins() {
        let together = all_needs(&[AwsVerb::Mount, AwsVerb::Ls], false, false);
        let describe: Vec<_> = together
            .iter()
            .filter(|need| need.action == IamAction::DescribeSnapshots)
            .collect();
        assert_eq!(describe, [&DESCRIBE]);
        assert_eq!(together.len(), AwsVerb::Mount.needs().len());

        let bucket = all_needs(&[AwsVerb::Sync], true, false);
        let runs = |needs: &[ActionNeed]| {
            let of_runs = needs
                .iter()
                .filter(|need| need.on == ActionResource::RunObjects);
            of_runs.map(|need| need.action).collect::<Vec<_>>()
        };
        assert_eq!(runs(&bucket), [IamAction::DeleteObject]);
        let all = all_needs(&[AwsVerb::Gateway, AwsVerb::Repository], true, false);
        assert!(runs(&all).is_empty());
        assert_eq!(all.len(), 4);
    }

    #[test]
    fn only_a_job_deletes_at_its_targets() {
        for (verbs, is_of_job, expected) in [
            (&[AwsVerb::Upload][..], false, false),
            (&[AwsVerb::Upload], true, true),
            (&[AwsVerb::Sync, AwsVerb::Upload], false, false),
            (&[AwsVerb::Replicate, AwsVerb::Upload], false, true),
            (&[AwsVerb::Upload, AwsVerb::Gateway], false, true),
            (&[AwsVerb::Replicate], true, false),
        ] {
            let needs = all_needs(verbs, false, is_of_job);
            let deletes = needs.contains(&KEEP_AT_TARGETS);
            assert_eq!(deletes, expected, "{verbs:?} {is_of_job}");
        }
    }

    #[test]
    fn each_verb_has_a_name_of_its_own_and_needs_something_it_cannot_do_without() {
        for (number, verb) in AwsVerb::ALL.into_iter().enumerate() {
            let is_known = |other: &AwsVerb| other.name() == verb.name();
            assert_eq!(AwsVerb::ALL.iter().position(is_known), Some(number));
            let needs = verb.needs();
            assert!(needs.iter().any(|need| need.without.is_none()), "{verb:?}");
            assert_eq!(
                all_needs(&[verb], false, false).len(),
                needs.len(),
                "{verb:?}"
            );
        }
    }
}
