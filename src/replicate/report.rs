//! [`CycleReport`]: how a cycle ended, for the exit code, the hooks and people.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tracing::warn;

use super::drills::DrillOutcome;
use super::retain::NeededBases;
use super::shard::Shard;
use super::state::{CycleRequests, RecoveryPoint};
use super::template::AssignedTarget;
use crate::error::{Error, Result};
use crate::snapshot::SnapshotId;
use crate::time::rfc3339_millis;

/// Version of the JSON that hooks read.
const HOOK_VERSION: u32 = 1;

/// How a cycle ended.
#[derive(Debug)]
pub(crate) struct CycleReport {
    /// The cycle, as its snapshots carry it.
    pub(crate) cycle: String,
    /// The part of the job that was run.
    pub(crate) shard: Shard,
    /// Whether there was nothing to copy, at a source that is only looked at: no command is run.
    pub(crate) is_idle: bool,
    /// The volumes that have their snapshots.
    pub(crate) volumes: Vec<VolumeOutcome>,
    /// What failed besides targets.
    pub(crate) failures: Vec<Error>,
    /// What a person should know.
    pub(crate) warnings: Vec<String>,
    /// Snapshots that were deleted at the source.
    pub(crate) deleted: Vec<SnapshotId>,
    /// Snapshots that were removed at targets, with the target's name.
    pub(crate) removed: Vec<String>,
    /// Sets that were added, as `ebsfs restore` names them: `REPOSITORY#INSTANCE@TIME`.
    pub(crate) sets: Vec<String>,
    /// Drills that ended.
    pub(crate) drills: Vec<DrillOutcome>,
    /// Requests to EBS.
    pub(crate) requests: CycleRequests,
    /// How long it took.
    pub(crate) took: Duration,
}

/// How the copies of one volume ended.
#[derive(Debug)]
pub(crate) struct VolumeOutcome {
    /// The volume.
    pub(crate) volume: String,
    /// Its snapshot.
    pub(crate) snapshot: SnapshotId,
    /// The instant whose bytes it holds.
    pub(crate) time: Option<SystemTime>,
    /// Each target.
    pub(crate) targets: Vec<CopyOutcome>,
    /// Why the snapshot could not be opened.
    pub(crate) failure: Option<Error>,
    /// The snapshots that its targets need.
    pub(crate) needed: NeededBases,
    /// Who claims its snapshots for images and devices of this machine; none without such targets.
    pub(crate) claimant: Option<String>,
    /// Bytes fetched.
    pub(crate) bytes: u64,
}

/// How the copy to one target ended.
#[derive(Debug)]
pub(crate) struct CopyOutcome {
    /// The target.
    pub(crate) target: AssignedTarget,
    /// What it holds now, or why it does not hold the snapshot.
    pub(crate) held: Result<RecoveryPoint>,
}

impl VolumeOutcome {
    /// Whether a target holds the snapshot.
    pub(super) fn holds(&self, target: &AssignedTarget) -> bool {
        let mut copies = self.targets.iter();
        copies.any(|copy| copy.target == *target && copy.held.is_ok())
    }

    /// All failures.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Error> {
        let targets = self.targets.iter();
        targets
            .filter_map(|copy| copy.held.as_ref().err())
            .chain(&self.failure)
    }
}

impl CycleReport {
    /// The report of a cycle that begins.
    pub(super) fn of(cycle: String, shard: Shard) -> Self {
        Self {
            cycle,
            shard,
            is_idle: false,
            volumes: Vec::new(),
            failures: Vec::new(),
            warnings: Vec::new(),
            deleted: Vec::new(),
            removed: Vec::new(),
            sets: Vec::new(),
            drills: Vec::new(),
            requests: CycleRequests::default(),
            took: Duration::ZERO,
        }
    }

    pub(super) fn warn(&mut self, what: String) {
        warn!("{what}");
        self.warnings.push(what);
    }

    /// All failures.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Error> {
        let of_volumes = self.volumes.iter().flat_map(VolumeOutcome::failures);
        let of_drills = self.drills.iter().filter_map(DrillOutcome::failure);
        self.failures.iter().chain(of_volumes).chain(of_drills)
    }

    /// The failure that gives the exit code: the first of those with the lowest rank.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.failures().min_by_key(|error| error.kind().rank())
    }

    /// Bytes fetched.
    pub(crate) fn bytes(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.bytes).sum()
    }

    /// What hooks read.
    pub(crate) fn to_json(&self, job: &str) -> Value {
        let failed =
            |error: &Error| json!({"error": error.chain(), "exit_code": error.kind().exit_code()});
        let volumes = self.volumes.iter().map(|volume| {
            let targets = volume.targets.iter().map(|copy| match &copy.held {
                Ok(point) => json!({
                    "target": copy.target.name,
                    "snapshot": point.snapshot,
                    "published": point.published.map(rfc3339_millis),
                    "arrived": point.arrived.map(rfc3339_millis),
                }),
                Err(error) => {
                    let mut value = failed(error);
                    if let Some(members) = value.as_object_mut() {
                        members.insert("target".into(), copy.target.name.as_str().into());
                    }
                    value
                }
            });
            json!({
                "volume": volume.volume,
                "snapshot": volume.snapshot,
                "time": volume.time.map(rfc3339_millis),
                "bytes": volume.bytes,
                "targets": targets.collect::<Vec<_>>(),
            })
        });
        json!({
            "version": HOOK_VERSION,
            "job": job,
            "cycle": self.cycle,
            "shard": (!self.shard.is_whole()).then(|| self.shard.to_string()),
            "volumes": volumes.collect::<Vec<_>>(),
            "failures": self.failures().map(failed).collect::<Vec<_>>(),
            "warnings": self.warnings,
            "deleted": self.deleted,
            "removed": self.removed,
            "sets": self.sets,
            "drills": self.drills.iter().map(DrillOutcome::to_json).collect::<Vec<_>>(),
            "seconds": self.took.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn the_failure_with_the_lowest_rank_gives_the_exit_code() {
        let mut report = CycleReport::of("web/2026-06-30T12:00:00Z".into(), "1/4".parse().unwrap());
        assert!(report.failure().is_none());
        let failed = |name: &str, kind| CopyOutcome {
            target: AssignedTarget {
                number: 0,
                name: name.into(),
            },
            held: Err(Error::new(kind, "why")),
        };
        report.volumes.push(VolumeOutcome {
            volume: "vol-0a".into(),
            snapshot: "snap-0a".parse().unwrap(),
            time: None,
            targets: vec![failed("/a", Kind::Busy), failed("/b", Kind::Undecided)],
            failure: None,
            needed: NeededBases::Unknown,
            claimant: None,
            bytes: 7,
        });
        assert_eq!(report.failure().unwrap().kind(), Kind::Undecided);
        report.failures.push(Error::new(Kind::NotFound, "vol-0b"));
        assert_eq!(report.failure().unwrap().kind(), Kind::NotFound);
        let json = report.to_json("web");
        assert_eq!(json["volumes"][0]["targets"][1]["exit_code"], 11);
        assert_eq!(json["failures"].as_array().unwrap().len(), 3);
        assert_eq!(json["shard"], "1/4");
        report.shard = Shard::WHOLE;
        assert!(report.to_json("web")["shard"].is_null());
    }
}
