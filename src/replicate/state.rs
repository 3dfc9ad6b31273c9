//! [`JobState`]: what a proxy remembers of a job, as one small file in the state directory. A lost file costs nothing but the history:
//! snapshots are found by their tags, and what targets hold is asked of the targets. [`mod@file`] reads and writes it, and
//! [`super::status`] judges it. A shard of a job has a state of its own, also for each number of shards: a job that is divided another way
//! continues as on a new machine.

mod division;
mod drills;
mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::schedule::{CycleHistory, Schedule};
use super::totals::{MonthTotals, RunTotals};
use crate::error::Error;
use crate::snapshot::SnapshotId;

pub(crate) use division::present_divisions;
pub(crate) use drills::{DrillLock, DrillMemory, LastDrill, UnitDrills};
pub(crate) use file::{JobMemory, read_state, state_names};

/// Version of the file.
const VERSION: u32 = 1;

/// What is remembered of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobState {
    /// Version of the file.
    version: u32,
    /// The job's name.
    pub(crate) job: String,
    /// The part of the job, such as `0/4`; none: the whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<String>,
    /// When its cycles are due, in words.
    #[serde(default)]
    pub(crate) schedule: Option<String>,
    /// The cycle that was started and does not have its snapshots yet.
    #[serde(default, with = "time_text")]
    pub(crate) under_way: Option<SystemTime>,
    /// Time of the last cycle that was started.
    #[serde(default, with = "time_text")]
    pub(crate) last: Option<SystemTime>,
    /// The last cycle that ended.
    #[serde(default)]
    pub(crate) last_run: Option<LastRun>,
    /// When the next cycle is due.
    #[serde(default, with = "time_text")]
    pub(crate) next_run: Option<SystemTime>,
    /// The volumes, by id.
    #[serde(default)]
    pub(crate) volumes: BTreeMap<String, VolumeState>,
    /// What was said once and is not said again: refused deletions.
    #[serde(default)]
    pub(crate) said: BTreeSet<String>,
    /// When each repository was last swept, by its address.
    #[serde(default)]
    pub(crate) swept: BTreeMap<String, String>,
    /// The instant of the last set that was added, by `REPOSITORY#INSTANCE`.
    #[serde(default)]
    pub(crate) sets: BTreeMap<String, String>,
    /// When the last cycle without failures ended.
    #[serde(default, with = "time_text")]
    pub(crate) last_success: Option<SystemTime>,
    /// The sums of the last month in which a cycle ended.
    #[serde(default)]
    pub(crate) month: Option<MonthTotals>,
    /// The drills; none: the job has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) drills: Option<DrillMemory>,
    /// When a running process last wrote this file.
    #[serde(default, with = "time_text")]
    pub(crate) saved: Option<SystemTime>,
}

/// How a cycle ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastRun {
    /// The cycle, as its snapshots carry it.
    pub(crate) cycle: String,
    /// When it began on this machine.
    #[serde(with = "time_text")]
    pub(crate) started: Option<SystemTime>,
    /// When it ended.
    #[serde(with = "time_text")]
    pub(crate) ended: Option<SystemTime>,
    /// The failure that gives the exit code; none: all volumes were replicated.
    pub(crate) error: Option<StateError>,
    /// Bytes fetched.
    pub(crate) bytes: u64,
    /// Requests to EBS.
    pub(crate) requests: CycleRequests,
}

/// Requests to EBS, retries included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CycleRequests {
    /// GetSnapshotBlock.
    pub(crate) gets: u64,
    /// PutSnapshotBlock.
    pub(crate) puts: u64,
    /// ListSnapshotBlocks and ListChangedBlocks.
    pub(crate) lists: u64,
}

impl CycleRequests {
    /// What was added since an earlier count.
    #[must_use]
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            gets: self.gets.saturating_sub(before.gets),
            puts: self.puts.saturating_sub(before.puts),
            lists: self.lists.saturating_sub(before.lists),
        }
    }
}

/// A failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateError {
    /// One line.
    pub(crate) message: String,
    /// The exit code of its kind.
    pub(crate) exit_code: u8,
    /// When it happened.
    #[serde(with = "time_text")]
    pub(crate) when: Option<SystemTime>,
}

/// What is remembered of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeState {
    /// Whether the last cycle selected it.
    pub(crate) is_selected: bool,
    /// The instance that it was attached to when the last cycle selected it.
    #[serde(default)]
    pub(crate) instance: Option<String>,
    /// Bytes fetched by its last copy.
    #[serde(default)]
    pub(crate) last_bytes: u64,
    /// Bytes fetched in the month of [`JobState::month`].
    #[serde(default)]
    pub(crate) month_bytes: u64,
    /// The copy under way.
    #[serde(default)]
    pub(crate) under_way: Option<CopyUnderWay>,
    /// Snapshots that this machine has made or adopted for the job, and that it does not know as deleted.
    pub(crate) snapshots: BTreeSet<SnapshotId>,
    /// Its targets, by name.
    pub(crate) targets: BTreeMap<String, TargetState>,
}

/// A copy that has not ended: the next run continues it with the same snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyUnderWay {
    /// The cycle, as its snapshots carry it.
    pub(crate) cycle: String,
    /// The snapshot.
    pub(crate) snapshot: SnapshotId,
    /// The instance that the volume was attached to.
    pub(crate) instance: Option<String>,
    /// Since when.
    #[serde(default, with = "time_text")]
    pub(crate) since: Option<SystemTime>,
    /// What it did when this was last saved; none while it waits for room or for another attempt.
    #[serde(default)]
    pub(crate) phase: Option<CopyPhase>,
}

/// What a copy does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyPhase {
    /// A verb and its object: `copying snap-1`.
    pub(crate) what: String,
    /// What is counted: `blocks`.
    pub(crate) unit: String,
    /// How many of them are done in this phase.
    pub(crate) done: u64,
    /// How many there are in this phase; 0 where that is not known.
    pub(crate) of: u64,
    /// Bytes fetched since the copy began in this process.
    pub(crate) bytes: u64,
}

/// What is remembered of a target of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TargetState {
    /// The recovery point there; none before the first.
    pub(crate) recovery_point: Option<RecoveryPoint>,
    /// Why the last cycle failed; none: it did not.
    pub(crate) error: Option<StateError>,
}

/// A snapshot that a target is proven to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecoveryPoint {
    /// The snapshot of the source.
    pub(crate) snapshot: SnapshotId,
    /// The instant whose bytes it holds.
    #[serde(with = "time_text")]
    pub(crate) time: Option<SystemTime>,
    /// When it was complete in the repository that is the source, by the clock of the machine that wrote it; none where the source is
    /// EC2.
    #[serde(default, with = "time_text")]
    pub(crate) published: Option<SystemTime>,
    /// When it was complete at the target.
    #[serde(with = "time_text")]
    pub(crate) arrived: Option<SystemTime>,
    /// When it is late by the schedule: its successor should have arrived by then. None without a schedule.
    #[serde(default, with = "time_text")]
    pub(crate) late_at: Option<SystemTime>,
    /// Blocks that are zero there because their source is damaged.
    #[serde(default)]
    pub(crate) damaged_blocks: u64,
}

impl StateError {
    /// An error as it is remembered.
    pub(crate) fn of(error: &Error, when: SystemTime) -> Self {
        Self {
            message: error.chain(),
            exit_code: error.kind().exit_code(),
            when: Some(when),
        }
    }
}

impl JobState {
    /// The state of a job that has never run here.
    pub(crate) fn new(job: &str) -> Self {
        Self {
            version: VERSION,
            job: job.to_owned(),
            shard: None,
            schedule: None,
            under_way: None,
            last: None,
            last_run: None,
            next_run: None,
            volumes: BTreeMap::new(),
            said: BTreeSet::new(),
            swept: BTreeMap::new(),
            sets: BTreeMap::new(),
            last_success: None,
            month: None,
            drills: None,
            saved: None,
        }
    }

    /// What decides which cycle is next.
    pub(crate) fn history(&self) -> CycleHistory {
        CycleHistory {
            under_way: self.under_way,
            last: self.last,
        }
    }

    /// The snapshots of all volumes that this machine has made or adopted.
    pub(crate) fn recorded(&self) -> BTreeSet<SnapshotId> {
        let volumes = self.volumes.values();
        volumes
            .flat_map(|volume| volume.snapshots.iter().cloned())
            .collect()
    }

    /// Notes the schedule, when the next cycle is due, and when each recovery point is late. `of_snapshots` is the schedule by which the
    /// snapshots are made: none where another job makes them.
    pub(crate) fn set_schedule(
        &mut self,
        schedule: Option<&Schedule>,
        of_snapshots: Option<&Schedule>,
    ) {
        self.schedule = schedule.map(ToString::to_string);
        self.next_run = schedule.and_then(|schedule| schedule.next_due(SystemTime::now()));
        let volumes = self.volumes.values_mut();
        for target in volumes.flat_map(|volume| volume.targets.values_mut()) {
            if let Some(point) = &mut target.recovery_point {
                let late = of_snapshots.zip(point.time);
                point.late_at = late.and_then(|(schedule, time)| schedule.late_at(time));
            }
        }
    }

    /// Adds a run to the sums of the month of `now`. Another month begins at zero.
    pub(crate) fn account(&mut self, now: SystemTime, run: &RunTotals) {
        let month = MonthTotals::of(now);
        if self.month.as_ref().map(|known| &known.month) != Some(&month.month) {
            self.month = Some(month);
            for volume in self.volumes.values_mut() {
                volume.month_bytes = 0;
            }
        }
        if let Some(month) = &mut self.month {
            month.add(run);
        }
        for (id, bytes) in &run.volumes {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.last_bytes = *bytes;
                volume.month_bytes = volume.month_bytes.saturating_add(*bytes);
            }
        }
    }

    /// Sets the targets of a volume to these. What was remembered of others is dropped: the job does not serve them any more.
    pub(crate) fn set_targets(&mut self, volume: &str, names: &BTreeSet<&str>, has_all: bool) {
        let volume = self.volumes.entry(volume.to_owned()).or_default();
        if has_all {
            volume.targets.retain(|name, _| names.contains(&**name));
        }
        for name in names {
            volume.targets.entry((*name).to_owned()).or_default();
        }
    }

    /// Whether this is the first time that something is reported.
    pub(crate) fn says(&mut self, what: &str) -> bool {
        self.said.insert(what.to_owned())
    }
}

/// Times as text.
pub(super) mod time_text {
    use std::time::SystemTime;

    use serde::de::{Deserialize, Deserializer, Error as _};
    use serde::ser::{Serialize, Serializer};

    pub(in crate::replicate) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(crate::time::rfc3339_millis).serialize(to)
    }

    pub(in crate::replicate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let parsed = text.map(|text| humantime::parse_rfc3339(&text));
        parsed.transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_state_without_the_newer_members_is_read() {
        let old = r#"{
            "version": 1, "job": "web", "last_run": {
                "cycle": "web/2026-06-30T12:00:00Z", "started": null, "ended": null, "error": null, "bytes": 7,
                "requests": {"gets": 1, "puts": 0, "lists": 2}
            },
            "volumes": {"vol-0a": {
                "is_selected": true, "snapshots": [],
                "under_way": {"cycle": "web/2026-06-30T12:00:00Z", "snapshot": "snap-0a", "instance": null},
                "targets": {"/a.raw": {"error": null, "recovery_point":
                    {"snapshot": "snap-0a", "time": "2026-06-30T12:00:00.000Z", "arrived": null}}}
            }}
        }"#;
        let state: JobState = serde_json::from_str(old).unwrap();
        assert_eq!((&state.month, state.saved), (&None, None));
        assert_eq!(state.drills, None);
        let volume = state.volumes.get("vol-0a").unwrap();
        assert_eq!((volume.month_bytes, volume.instance.clone()), (0, None));
        let point = volume.targets.get("/a.raw").unwrap();
        let point = point.recovery_point.as_ref().unwrap();
        assert_eq!((point.late_at, point.time), (None, Some(at(1_782_820_800))));
    }

    #[test]
    fn a_month_has_the_sums_of_its_own_runs() {
        let june = 1_782_820_800;
        let mut state = JobState::new("web");
        state.volumes.entry("vol-0a".into()).or_default();
        let run = |bytes: u64, gets: u64, is_failed: Option<bool>| RunTotals {
            bytes,
            requests: CycleRequests {
                gets,
                puts: 1,
                lists: 2,
            },
            is_failed,
            volumes: vec![("vol-0a".into(), bytes), ("vol-gone".into(), 1)],
        };
        state.account(at(june), &run(10, 3, Some(false)));
        state.account(at(june + 60), &run(5, 4, Some(true)));
        // One that was stopped is not counted as a run.
        state.account(at(june + 60), &run(1, 1, None));
        let month = state.month.clone().unwrap();
        assert_eq!((&*month.month, month.runs, month.failed), ("2026-06", 2, 1));
        let requests = month.requests;
        assert_eq!(
            (month.bytes, requests.gets, requests.puts, requests.lists),
            (16, 8, 3, 6)
        );
        let bytes = |state: &JobState| {
            let volume = state.volumes.get("vol-0a").unwrap();
            (volume.last_bytes, volume.month_bytes)
        };
        assert_eq!(bytes(&state), (1, 16));
        // 2026-07-01T00:00:00Z.
        state.account(at(june + 12 * 3600), &run(7, 1, Some(false)));
        let month = state.month.clone().unwrap();
        assert_eq!((&*month.month, month.runs, month.bytes), ("2026-07", 1, 7));
        assert_eq!(bytes(&state), (7, 7));
    }

    #[test]
    fn a_target_that_the_job_has_no_more_is_forgotten() {
        let mut state = JobState::new("web");
        let held = |state: &JobState| -> Vec<String> {
            let volume = state.volumes.get("vol-0a").unwrap();
            volume.targets.keys().cloned().collect()
        };
        state.set_targets("vol-0a", &["/a", "/b"].into(), true);
        let volume = state.volumes.get_mut("vol-0a").unwrap();
        volume.targets.get_mut("/b").unwrap().error = Some(StateError::default());
        // One of its targets is not known: all stay.
        state.set_targets("vol-0a", &["/c"].into(), false);
        assert_eq!(held(&state), ["/a", "/b", "/c"]);
        state.set_targets("vol-0a", &["/b", "/c"].into(), true);
        assert_eq!(held(&state), ["/b", "/c"]);
        let volume = state.volumes.get("vol-0a").unwrap();
        assert!(volume.targets.get("/b").unwrap().error.is_some());
    }

    #[test]
    fn a_recovery_point_is_late_by_the_schedule_that_holds_now() {
        let mut state = JobState::new("web");
        let point = RecoveryPoint {
            snapshot: "snap-0a".parse().unwrap(),
            time: Some(at(3605)),
            published: None,
            arrived: None,
            late_at: None,
            damaged_blocks: 0,
        };
        let volume = state.volumes.entry("vol-0a".into()).or_default();
        let target = volume.targets.entry("/a".into()).or_default();
        target.recovery_point = Some(point);
        let late = |state: &JobState| {
            let volume = state.volumes.get("vol-0a").unwrap();
            let target = volume.targets.get("/a").unwrap();
            target.recovery_point.as_ref().unwrap().late_at
        };
        for (seconds, expected) in [(600, Some(at(4800))), (3600, Some(at(10_800)))] {
            let schedule = Schedule::every(Duration::from_secs(seconds)).unwrap();
            state.set_schedule(Some(&schedule), Some(&schedule));
            assert_eq!(late(&state), expected);
        }
        let schedule = Schedule::every(Duration::from_secs(60)).unwrap();
        state.set_schedule(Some(&schedule), None);
        assert_eq!(late(&state), None);
        assert!(state.next_run.is_some());
    }
}
