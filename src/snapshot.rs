//! What a snapshot is to the other modules: [`SnapshotId`], [`Snapshot`] (what is known of one), [`Selector`] (an argument
//! that selects some), [`Descriptions`] (the trait that describes them), and [`SnapshotMaker`] (the trait that makes and deletes them).

mod creation;
mod own;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{Error, Kind, Result};

pub(crate) use creation::{
    Creation, Deletion, InstanceInfo, NewSnapshots, SnapshotMaker, SnapshotsOf, VolumeInfo,
    VolumeSelector, instance_id, volume_id,
};
pub(crate) use own::{
    REPLICA_VOLUME_TAG, SELF_TAG, YOUNG, carries_own_id, has_tag, tag_with_own_id,
};

/// What EC2 knows of snapshots, and their tags. Absent where its API is not built in, not reachable or not permitted.
pub trait Descriptions: Send + Sync {
    /// The snapshots that any of the selectors names, without ids that do not exist; all snapshots of the account when there is
    /// no selector.
    ///
    /// # Errors
    /// `Denied` without `ec2:DescribeSnapshots`, `Throttled` or `Unavailable` when EC2 does not answer for long, or its listing does not
    /// end.
    fn describe<'a>(&'a self, select: &'a [Selector]) -> BoxFuture<'a, Result<Vec<Snapshot>>>;

    /// The same; `report` learns of each reply and of each failure that is waited out.
    ///
    /// # Errors
    /// As for [`Descriptions::describe`].
    fn describe_reporting<'a>(
        &'a self,
        select: &'a [Selector],
        report: ListingReport<'a>,
    ) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        let _ = report;
        self.describe(select)
    }

    /// Whether new snapshots are encrypted without being asked to.
    ///
    /// # Errors
    /// `Denied` without `ec2:GetEbsEncryptionByDefault`.
    fn encrypts_by_default(&self) -> BoxFuture<'_, Result<bool>>;

    /// Gives a snapshot tags, whether it is pending or completed; a tag that it has already gets the new value.
    ///
    /// # Errors
    /// `NotFound` when EC2 does not know the snapshot (a new one for up to two minutes), `Denied` without `ec2:CreateTags`,
    /// `Invalid` when EC2 refuses the tags.
    fn add_tags<'a>(
        &'a self,
        id: &'a SnapshotId,
        tags: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<()>>;
}

/// How far a listing of snapshots is.
#[derive(Clone, Debug, Default)]
pub struct ListingProgress {
    /// Snapshots listed so far.
    pub(crate) snapshots: usize,
    /// The failure that is waited out now: a throttle, or no answer.
    pub(crate) waiting: Option<Error>,
}

/// A callback for the progress of a listing.
pub(crate) type ListingReport<'a> = &'a (dyn Fn(&ListingProgress) + Send + Sync);

/// A snapshot's id: `snap-` and hexadecimal digits, at most 64 characters.
///
/// <https://docs.aws.amazon.com/ebs/latest/APIReference/API_ListSnapshotBlocks.html>
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct SnapshotId(Arc<str>);

impl TryFrom<String> for SnapshotId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl SnapshotId {
    /// The id as AWS writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_resource_id(text, "snap-") {
            return Ok(Self(text.into()));
        }
        Err(Error::new(
            Kind::Invalid,
            format!("{text:?} is not a snapshot id: it must look like snap-0123456789abcdef0"),
        ))
    }
}

fn is_resource_id(text: &str, prefix: &str) -> bool {
    text.len() <= 64
        && text.strip_prefix(prefix).is_some_and(|digits| {
            !digits.is_empty()
                && digits
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
}

/// One argument that selects snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// One snapshot by its id.
    Snapshot(SnapshotId),
    /// All snapshots of a volume, by its id.
    Volume(String),
    /// All snapshots of the account with this tag.
    Tag {
        /// The tag's key.
        key: String,
        /// The tag's value.
        value: String,
    },
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if is_resource_id(text, "vol-") {
            return Ok(Self::Volume(text.to_owned()));
        }
        if let Some((key, value)) = text.strip_prefix("tag:").and_then(|t| t.split_once('='))
            && !key.is_empty()
        {
            return Ok(Self::Tag {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
        text.parse().map(Self::Snapshot).map_err(|_| {
            Error::new(
                Kind::Invalid,
                format!(
                    "{text:?} selects nothing: use a snapshot id (snap-0123456789abcdef0), \
                     a volume id (vol-0123456789abcdef0) or tag:KEY=VALUE"
                ),
            )
        })
    }
}

/// A snapshot's state, which decides whether it can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// It can be read.
    Completed,
    /// It is still being made.
    Pending,
    /// Any other state, by the name EC2 gives it: `error`, `recoverable`, `recovering`.
    #[serde(untagged)]
    Other(String),
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "completed",
            Self::Pending => "pending",
            Self::Other(name) => name,
        })
    }
}

/// The tag of an EBS snapshot that ebsfs made: how many of its blocks are zero because their source is damaged. Which ones,
/// only the record of the run lists.
pub(crate) const DAMAGED_TAG: &str = "ebsfs:damaged";

/// A snapshot and what is known of it; everything but the id can be unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The volume it was taken of. `vol-ffffffff` for copies and for snapshots made by the direct APIs.
    pub volume_id: Option<String>,
    /// Its state.
    pub state: Option<SnapshotState>,
    /// Why its state is what it is, if EC2 says so: what was wrong with one in error.
    pub(crate) state_message: Option<String>,
    /// How far it is made, as EC2 writes it: `45%`.
    pub(crate) progress: Option<String>,
    /// The instant whose bytes it holds.
    #[serde(serialize_with = "iso8601")]
    pub(crate) start_time: Option<SystemTime>,
    /// Bytes of the volume.
    pub volume_size: Option<u64>,
    /// Bytes of all blocks held: `FullSnapshotSizeInBytes`, absent while pending.
    pub(crate) full_size: Option<u64>,
    /// Whether it is encrypted at rest. What is read here is always plain.
    pub(crate) encrypted: Option<bool>,
    /// The KMS key's ARN.
    pub(crate) kms_key_id: Option<String>,
    /// `standard` or `archive`; the direct APIs cannot read an archived snapshot.
    pub(crate) storage_tier: Option<String>,
    /// The account that owns it.
    pub(crate) owner_id: Option<String>,
    /// Its description.
    pub(crate) description: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Snapshot {
    /// A snapshot of which only the id is known.
    pub fn unknown(id: SnapshotId) -> Self {
        Self {
            id,
            volume_id: None,
            state: None,
            state_message: None,
            progress: None,
            start_time: None,
            volume_size: None,
            full_size: None,
            encrypted: None,
            kms_key_id: None,
            storage_tier: None,
            owner_id: None,
            description: None,
            tags: BTreeMap::new(),
        }
    }

    /// The extended attributes of its image: `user.ebs.*`. Those that are not known have no value.
    pub(crate) fn attributes(&self) -> [(&'static str, Option<String>); 4] {
        let start = self.start_time.map(crate::time::rfc3339_millis);
        [
            ("user.ebs.snapshot_id", Some(self.id.to_string())),
            ("user.ebs.volume_id", self.volume_id.clone()),
            ("user.ebs.start_time", start),
            (
                "user.ebs.encrypted",
                self.encrypted.map(|yes| yes.to_string()),
            ),
        ]
    }

    /// Blocks that are zero because its own source was damaged, by its tag; a tag without a number counts as one.
    pub(crate) fn damaged_blocks(&self) -> u64 {
        let tag = self.tags.get(DAMAGED_TAG);
        tag.map_or(0, |count| count.parse().unwrap_or(1))
    }

    /// Whether what is known allows reading it; unknown counts as readable, the service then says.
    ///
    /// # Errors
    /// `Pending` while it is being made, `Denied` when archived, in error or in the Recycle Bin.
    pub(crate) fn readable(&self) -> Result<()> {
        let id = &self.id;
        if self.storage_tier.as_deref() == Some("archive") {
            return Err(Error::new(
                Kind::Denied,
                format!("{id} is archived: restore it first (aws ec2 restore-snapshot-tier)"),
            ));
        }
        match &self.state {
            None | Some(SnapshotState::Completed) => Ok(()),
            Some(SnapshotState::Pending) => Err(Error::new(
                Kind::Pending,
                format!(
                    "{id} is still being made ({}): try again when it is completed",
                    self.progress.as_deref().unwrap_or("pending")
                ),
            )),
            Some(SnapshotState::Other(state)) => Err(Error::new(
                Kind::Denied,
                format!("{id} cannot be read in state {state:?}"),
            )),
        }
    }
}

/// Oldest first, each once, whichever of several selectors brought it.
pub(crate) fn sort_by_time<S: Borrow<Snapshot>>(snapshots: &mut Vec<S>) {
    let key = |snapshot: &S| (snapshot.borrow().start_time, snapshot.borrow().id.clone());
    snapshots.sort_by_cached_key(key);
    snapshots.dedup_by(|a, b| (*a).borrow().id == (*b).borrow().id);
}

fn iso8601<S: Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    time.map(crate::time::rfc3339_millis).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_distinguished_and_nonsense_is_refused() {
        assert!(matches!("snap-0a".parse(), Ok(Selector::Snapshot(_))));
        assert!(matches!("vol-0a".parse(), Ok(Selector::Volume(_))));
        let tag: Selector = "tag:a=b=c".parse().unwrap();
        assert_eq!(
            tag,
            Selector::Tag {
                key: "a".into(),
                value: "b=c".into()
            }
        );
        for wrong in [
            "",
            "snap-",
            "snap-XYZ",
            "snap-0a/..",
            "tag:=v",
            "tag:k",
            "i-0a",
            "vol-",
        ] {
            assert!(wrong.parse::<Selector>().is_err(), "{wrong:?}");
        }
        assert!(
            format!("snap-{}", "a".repeat(60))
                .parse::<SnapshotId>()
                .is_err()
        );
    }

    #[test]
    fn state_decides_whether_a_snapshot_can_be_read() {
        let mut snapshot = Snapshot::unknown("snap-1".parse().unwrap());
        assert!(snapshot.readable().is_ok());
        snapshot.state = Some(SnapshotState::Pending);
        assert_eq!(snapshot.readable().unwrap_err().kind(), Kind::Pending);
        snapshot.state = Some(SnapshotState::Other("error".into()));
        assert_eq!(snapshot.readable().unwrap_err().kind(), Kind::Denied);
        snapshot.state = Some(SnapshotState::Completed);
        snapshot.storage_tier = Some("archive".into());
        assert_eq!(snapshot.readable().unwrap_err().kind(), Kind::Denied);
    }

    #[test]
    fn json_names_states_as_ec2_does() {
        let mut snapshot = Snapshot::unknown("snap-1".parse().unwrap());
        snapshot.state = Some(SnapshotState::Other("recoverable".into()));
        snapshot.start_time = Some(SystemTime::UNIX_EPOCH);
        let json = serde_json::to_value(&snapshot).unwrap();
        assert_eq!(json["state"], "recoverable");
        assert_eq!(json["start_time"], "1970-01-01T00:00:00.000Z");
    }
}
