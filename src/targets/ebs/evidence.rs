//! Which snapshots of an account are proven replicas, and which of them a delta can start from.

use crate::snapshot::carries_own_id;
pub(super) use crate::snapshot::{DAMAGED_TAG, SELF_TAG, has_tag};
use crate::snapshot::{Snapshot, SnapshotId};
use crate::target::Replica;

use super::{EbsJob, is_completed};

/// The snapshot, or the path of the image, that a snapshot holds.
pub(super) const SOURCE_TAG: &str = "ebsfs:source";
/// The volume that this one is of.
pub(super) const VOLUME_TAG: &str = crate::snapshot::REPLICA_VOLUME_TAG;
/// Its bytes before they were rounded up to GiB.
pub(super) const SIZE_TAG: &str = "ebsfs:size";
/// The parent that the snapshot was started with: EC2 does not report it.
pub(super) const PARENT_TAG: &str = "ebsfs:parent";
/// The keys that ebsfs uses itself.
pub(super) const OWN_TAGS: [&str; 6] = [
    SOURCE_TAG,
    VOLUME_TAG,
    SIZE_TAG,
    PARENT_TAG,
    SELF_TAG,
    DAMAGED_TAG,
];

/// The VolumeId of a snapshot that was copied or started, and not taken of a volume
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Snapshot.html>).
pub(super) const NO_VOLUME: &str = "vol-ffffffff";

/// Whether a snapshot holds what its tags say: the record names it, or it carries its own id and was made of no volume. A
/// snapshot with damaged blocks is proven only by the record, which lists them.
pub(super) fn is_proven(snapshot: &Snapshot, recorded: Option<&str>) -> bool {
    if recorded == Some(snapshot.id.as_str()) {
        return true;
    }
    snapshot.volume_id.as_deref() == Some(NO_VOLUME)
        && carries_own_id(snapshot)
        && !snapshot.tags.contains_key(DAMAGED_TAG)
}

/// The id of a key in an ARN, or in what is an id by itself; `alias/NAME` of an alias.
fn key_id(key: &str) -> &str {
    let resource = key
        .strip_prefix("arn:")
        .and_then(|arn| arn.splitn(5, ':').last());
    let resource = resource.unwrap_or(key);
    resource.strip_prefix("key/").unwrap_or(resource)
}

/// Whether two names of KMS keys are of one key; none where one of them is an alias, which can be of any.
pub(super) fn is_same_key(one: &str, other: &str) -> Option<bool> {
    let (one, other) = (key_id(one), key_id(other));
    if one.eq_ignore_ascii_case(other) {
        return Some(true);
    }
    let is_alias = |key: &str| key.starts_with("alias/");
    (!is_alias(one) && !is_alias(other)).then_some(false)
}

/// Why a snapshot is not encrypted with the key that is asked for, as the end of a sentence; none when it is.
pub(super) fn other_key(asked: &str, snapshot: &Snapshot) -> Option<String> {
    match (snapshot.encrypted, snapshot.kms_key_id.as_deref()) {
        (Some(false), _) => Some(format!("it is not encrypted, and {asked} is asked for")),
        (_, None) => Some(format!(
            "EC2 does not tell its KMS key, and {asked} is asked for"
        )),
        (_, Some(key)) => match is_same_key(asked, key) {
            Some(true) => None,
            Some(false) => Some(format!(
                "it is encrypted with {key}, and {asked} is asked for"
            )),
            None => Some(format!(
                "it is encrypted with {key}, and whether {asked} is that key is not known: ask for the key's own ARN"
            )),
        },
    }
}

/// What a replica must satisfy so that a delta can start from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplicaQuery<'a> {
    /// The snapshot that the record names.
    pub(super) recorded: Option<&'a str>,
    /// The KMS key that is asked for.
    pub(super) kms_key: Option<&'a str>,
    /// Bytes of the new snapshot's volume.
    pub(super) volume_bytes: u64,
    /// Whether the Region encrypts new snapshots, if that is known.
    pub(super) encrypts: Option<bool>,
}

/// Whether a snapshot with the right tag can be a base.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// A delta can start from it.
    Base(Replica),
    /// It is not completed: no replica yet.
    Unfinished,
    /// Only its tags say that it is a replica.
    Unproven,
    /// It is a replica, and no child of it can be what is asked for: why, as a sentence.
    Unusable(String),
}

/// Classifies a snapshot by its description.
pub(super) fn offer(snapshot: &Snapshot, wanted: &ReplicaQuery<'_>) -> Offer {
    let id = &snapshot.id;
    if !is_completed(snapshot) {
        return Offer::Unfinished;
    }
    let source = snapshot.tags.get(SOURCE_TAG);
    let source = source.and_then(|source| source.parse::<SnapshotId>().ok());
    let Some(source) = source.filter(|_| is_proven(snapshot, wanted.recorded)) else {
        return Offer::Unproven;
    };
    if let Err(error) = snapshot.readable() {
        return Offer::Unusable(error.chain());
    }
    let key = wanted.kms_key;
    if let Some(why) = key.and_then(|key| other_key(key, snapshot)) {
        return Offer::Unusable(format!("{id} is no base: {why}"));
    }
    // StartSnapshot refuses a smaller volume than the parent's.
    if snapshot
        .volume_size
        .is_some_and(|bytes| bytes > wanted.volume_bytes)
    {
        return Offer::Unusable(format!(
            "{id} is no base: its volume is larger than the source"
        ));
    }
    // https://docs.aws.amazon.com/ebs/latest/userguide/ebsapis-using-encryption.html
    if snapshot.encrypted == Some(false) && wanted.encrypts == Some(true) {
        return Offer::Unusable(format!(
            "{id} is no base: it is not encrypted, and new snapshots in this Region are"
        ));
    }
    Offer::Base(Replica {
        source,
        id: id.clone(),
        volume_bytes: snapshot.volume_size,
        encrypted: snapshot.encrypted,
    })
}

/// Whether a snapshot is what the job asks for: completed, proven to hold `source`, with the job's tags, key, description and
/// parent. Properties that the job does not name may have any value.
pub(super) fn is_made(
    snapshot: &Snapshot,
    source: &SnapshotId,
    job: &EbsJob,
    recorded: Option<&str>,
) -> bool {
    let is = |wanted: Option<&str>, found: Option<&str>| wanted.is_none() || wanted == found;
    let description = job.description.as_deref().map(super::request::cut);
    let parent = snapshot.tags.get(PARENT_TAG).map(String::as_str);
    is_completed(snapshot)
        && snapshot.readable().is_ok()
        && has_tag(snapshot, SOURCE_TAG, source.as_str())
        && is_proven(snapshot, recorded)
        && !snapshot.tags.contains_key(DAMAGED_TAG)
        && job
            .tags
            .iter()
            .all(|(key, value)| has_tag(snapshot, key, value))
        && is(description.as_deref(), snapshot.description.as_deref())
        && is(job.parent.as_ref().map(SnapshotId::as_str), parent)
        && job
            .kms_key
            .as_deref()
            .is_none_or(|key| other_key(key, snapshot).is_none())
}
