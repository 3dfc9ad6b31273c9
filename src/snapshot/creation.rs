//! The calls of EC2 that make snapshots, and those that describe volumes and instances, as traits and plain values.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use super::{Descriptions, Snapshot, SnapshotId, is_resource_id};
use crate::error::{Error, Kind, Result};

/// The calls of EC2 that make snapshots of volumes. Absent where EC2 is not built in.
pub(crate) trait SnapshotMaker: Descriptions {
    /// The volumes that a selector names.
    ///
    /// # Errors
    /// `NotFound` when EC2 does not know a volume that is named by its id, `Denied` without `ec2:DescribeVolumes`, and as for
    /// [`Descriptions::describe`].
    fn volumes<'a>(&'a self, select: &'a VolumeSelector) -> BoxFuture<'a, Result<Vec<VolumeInfo>>>;

    /// The instances with these ids.
    ///
    /// # Errors
    /// `NotFound` when EC2 does not know one of them, `Denied` without `ec2:DescribeInstances`, and as above.
    fn instances<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InstanceInfo>>>;

    /// Makes one call. Repeats it only where the one before certainly made nothing: these calls have no client token, and each
    /// makes snapshots.
    ///
    /// # Errors
    /// EC2 has refused it finally: nothing was made.
    fn create<'a>(&'a self, request: &'a NewSnapshots) -> BoxFuture<'a, Result<Creation>>;

    /// Asks EC2 whether this caller may make this call, by a dry run with the same tags; nothing is made.
    ///
    /// # Errors
    /// `Denied` without the action of the call, or without `ec2:CreateTags`; `Undecided` when a service that knows no dry run has
    /// made one; as for [`Descriptions::describe`].
    fn may_create<'a>(&'a self, request: &'a NewSnapshots) -> BoxFuture<'a, Result<()>>;

    /// Deletes a snapshot. The caller has made sure that it is its own and that nothing needs it.
    ///
    /// # Errors
    /// `Throttled` or `Unavailable` when EC2 does not answer for long: it may be deleted.
    fn delete<'a>(&'a self, id: &'a SnapshotId) -> BoxFuture<'a, Result<Deletion>>;
}

/// The outcome of a deletion.
#[derive(Debug)]
#[cfg_attr(not(feature = "ec2"), expect(dead_code, reason = "EC2 answers so"))]
pub(crate) enum Deletion {
    /// It is deleted, or EC2 did not know it any more.
    Deleted,
    /// This user may not delete snapshots.
    Denied(Error),
    /// EC2 refuses to delete this one: an image uses it, it is locked.
    Refused(Error),
}

/// The outcome of a call that makes snapshots.
#[derive(Debug)]
#[cfg_attr(
    all(not(feature = "ec2"), not(test)),
    expect(dead_code, reason = "EC2 answers so")
)]
pub(crate) enum Creation {
    /// They were made.
    Made(Vec<Snapshot>),
    /// A limit of the account or the volume refused it: nothing was made, and the same call can succeed later.
    Limited(Error),
    /// There is no answer, or one that proves nothing: the snapshots may have been made.
    Unknown(Error),
}

/// The volumes to make snapshots of, and the snapshots' description and tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewSnapshots {
    /// The volume, or the volumes of an instance.
    pub(crate) of: SnapshotsOf,
    /// Their description.
    pub(crate) description: Option<String>,
    /// Their tags.
    pub(crate) tags: Vec<(String, String)>,
}

/// The volumes of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotsOf {
    /// CreateSnapshot of this volume.
    Volume(String),
    /// CreateSnapshots of the volumes of an instance: one instant for all of them.
    Instance {
        /// Its id.
        id: String,
        /// Leave out the volume that it boots from.
        without_boot: bool,
        /// Leave out these others.
        without: Vec<String>,
        /// Give each snapshot the tags of its volume.
        copies_tags: bool,
    },
}

/// One argument that selects volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeSelector {
    /// One volume, by its id.
    Volume(String),
    /// The volumes that are attached to an instance, by its id.
    Instance(String),
    /// The volumes of the account with this tag.
    Tag {
        /// The tag's key.
        key: String,
        /// The tag's value.
        value: String,
    },
}

/// The id of a volume, as it was given.
///
/// # Errors
/// `Invalid` when it is none.
pub(crate) fn volume_id(text: &str) -> Result<String> {
    resource_id(text, "vol-", "a volume id")
}

/// The id of an instance, as it was given.
///
/// # Errors
/// `Invalid` when it is none.
pub(crate) fn instance_id(text: &str) -> Result<String> {
    resource_id(text, "i-", "an instance id")
}

fn resource_id(text: &str, prefix: &str, what: &str) -> Result<String> {
    if is_resource_id(text, prefix) {
        return Ok(text.to_owned());
    }
    let why = format!("{text:?} is not {what}: it must look like {prefix}0123456789abcdef0");
    Err(Error::new(Kind::Invalid, why))
}

/// A volume, as EC2 describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeInfo {
    /// Its id.
    pub(crate) id: String,
    /// The instances that it is attached to; several with Multi-Attach.
    pub(crate) instances: Vec<String>,
    /// Its tags.
    pub(crate) tags: BTreeMap<String, String>,
}

/// An instance, as EC2 describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InstanceInfo {
    /// Its id.
    pub(crate) id: String,
    /// The volume that it boots from; none for an instance store.
    pub(crate) boot_volume: Option<String>,
    /// The volumes that are attached to it.
    pub(crate) volumes: Vec<String>,
}
