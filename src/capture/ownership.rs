//! Which snapshots are ours. Backup programs, EC2 and users copy tags from one snapshot to another, so a tag alone proves nothing. A
//! tag with the snapshot's own id is no copy: a user with the permission to tag that snapshot has set it.

use std::collections::BTreeSet;

use super::cycle::{CYCLE_TAG, Cycle};
use crate::snapshot::{SELF_TAG, Snapshot, SnapshotId, carries_own_id};

/// What a job claims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    /// The job's name.
    pub(crate) job: &'a str,
    /// The volumes that it makes snapshots of.
    pub(crate) volumes: &'a BTreeSet<String>,
    /// The snapshots that its own record, or a manifest of its repository, names.
    pub(crate) recorded: &'a BTreeSet<SnapshotId>,
}

/// What a snapshot is to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The job has made it.
    Ours,
    /// It has all but its own id: a run that ended before it could set that may have made it. A run of the same cycle adopts it;
    /// nothing else may use it.
    Adoptable,
    /// It is of something else.
    Foreign(ForeignReason),
}

/// Why a snapshot is not a job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForeignReason {
    /// It has no cycle tag, or a malformed one.
    NoCycle,
    /// The cycle is another job's.
    OtherJob,
    /// It is of a volume that the job does not have, or of none: a copy.
    OtherVolume,
    /// It did not start in the time of its cycle.
    OtherTime,
    /// It carries the id of another snapshot: its tags were copied.
    OtherId,
}

/// What a snapshot is to a job.
pub(crate) fn standing(snapshot: &Snapshot, claim: &Claim<'_>) -> Standing {
    if claim.recorded.contains(&snapshot.id) {
        return Standing::Ours;
    }
    let cycle = snapshot.tags.get(CYCLE_TAG);
    let Some(cycle) = cycle.and_then(|text| text.parse::<Cycle>().ok()) else {
        return Standing::Foreign(ForeignReason::NoCycle);
    };
    if cycle.job() != claim.job {
        return Standing::Foreign(ForeignReason::OtherJob);
    }
    let volume = snapshot.volume_id.as_ref();
    if !volume.is_some_and(|volume| claim.volumes.contains(volume)) {
        return Standing::Foreign(ForeignReason::OtherVolume);
    }
    let start = snapshot.start_time;
    if !start.is_some_and(|start| cycle.agrees_with(start)) {
        return Standing::Foreign(ForeignReason::OtherTime);
    }
    if carries_own_id(snapshot) {
        Standing::Ours
    } else if snapshot.tags.contains_key(SELF_TAG) {
        Standing::Foreign(ForeignReason::OtherId)
    } else {
        Standing::Adoptable
    }
}
