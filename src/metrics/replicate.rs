//! Metrics of a replication job: how its recovery points are, and how its last cycle ended.

use super::process::seconds;
use super::{Metric, MetricValues, counter, counters, gauge};
use crate::replicate::{DrillState, DrillsStatus, JobStatus, LiveCounts, PointState};

/// Metrics of a job by its status; `exit_code` is that of a run that has ended, without it that of the last cycle.
///
/// Volumes are no labels: the counts by state, and the oldest recovery point, are what an alert needs. `ebsfs status` names them.
pub(crate) fn replicate(status: &JobStatus, exit_code: Option<u8>) -> Vec<Metric> {
    // Each state from the start: an alert on a series that is absent is none.
    let points = PointState::ALL.map(|state| {
        let labels = vec![("state", state.name())];
        (labels, status.count(state) as f64)
    });
    let drills = DrillState::ALL.map(|state| {
        let labels = vec![("state", state.name())];
        (labels, status.drills_in(state) as f64)
    });
    let under_way = status.volumes.iter();
    let under_way = under_way.filter(|volume| volume.under_way.is_some());
    let last = status.last_run.as_ref();
    let mut metrics = vec![
        Metric {
            name: "ebsfs_replicate_recovery_points",
            help: "Recovery points by their state: one for each volume and target",
            values: MetricValues::Gauges(points.into()),
        },
        Metric {
            name: "ebsfs_replicate_drills",
            help: "Instances and volumes by how their last drill ended",
            values: MetricValues::Gauges(drills.into()),
        },
        gauge(
            "ebsfs_replicate_drills_overdue",
            "Instances and volumes whose next drill is overdue",
            status.overdue_drills() as f64,
        ),
        gauge(
            "ebsfs_replicate_volumes",
            "Volumes that the last cycle selected",
            status.selected().count() as f64,
        ),
        gauge(
            "ebsfs_replicate_volumes_under_way",
            "Volumes that are being copied, or wait for their copy",
            under_way.count() as f64,
        ),
        gauge(
            "ebsfs_replicate_exit_code",
            "The exit code of the last cycle",
            f64::from(exit_code.unwrap_or_else(|| status.exit_code())),
        ),
        gauge(
            "ebsfs_replicate_month_bytes",
            "Bytes fetched in this calendar month, in UTC",
            status.month.totals.bytes as f64,
        ),
        gauge(
            "ebsfs_replicate_month_cost_dollars",
            "What the requests to EBS in this calendar month cost, in dollars",
            status.month.dollars,
        ),
    ];
    let times = [
        (
            "ebsfs_replicate_recovery_point_timestamp_seconds",
            "The time of the oldest recovery point, in seconds since 1970",
            status.oldest(),
        ),
        (
            "ebsfs_replicate_start_timestamp_seconds",
            "When the last cycle began, in seconds since 1970",
            last.and_then(|last| last.run.started),
        ),
        (
            "ebsfs_replicate_end_timestamp_seconds",
            "When the last cycle ended, in seconds since 1970",
            last.and_then(|last| last.run.ended),
        ),
        (
            "ebsfs_replicate_last_success_timestamp_seconds",
            "When the last cycle without failures ended, in seconds since 1970",
            status.last_success,
        ),
        (
            "ebsfs_replicate_drill_timestamp_seconds",
            "When the oldest of the last drills ended, in seconds since 1970",
            status.drills.as_ref().and_then(DrillsStatus::oldest),
        ),
        (
            "ebsfs_replicate_next_run_timestamp_seconds",
            "When the next cycle is due, in seconds since 1970",
            status.next_run,
        ),
    ];
    let times = times.into_iter();
    metrics.extend(times.filter_map(|(name, help, time)| Some(gauge(name, help, seconds(time?)))));
    metrics.extend(last.map(|last| {
        gauge(
            "ebsfs_replicate_last_bytes",
            "Bytes that the last cycle fetched",
            last.run.bytes as f64,
        )
    }));
    metrics
}

/// Metrics of a process that runs a job.
pub(crate) fn replicate_counts(counts: &LiveCounts) -> Vec<Metric> {
    vec![
        counters(
            "ebsfs_replicate_cycles_total",
            "Cycles that ended, by their result",
            "result",
            [("succeeded", counts.succeeded), ("failed", counts.failed)],
        ),
        counter(
            "ebsfs_replicate_fetched_bytes_total",
            "Bytes of blocks that were fetched from the source",
            counts.bytes,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::error::{Error, Kind};
    use crate::metrics::text::render;
    use crate::replicate::{
        DrillMemory, JobState, LastDrill, LastRun, RecoveryPoint, StateError, StatusRequest,
        UnitDrills,
    };

    #[test]
    fn a_job_is_shown_by_its_oldest_recovery_point_and_the_states_of_all() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut state = JobState::new("web");
        let local = BTreeMap::new();
        let text = |state: &JobState, code: Option<u8>| {
            let request = StatusRequest {
                now: at(1000),
                max_age: Some(Duration::from_secs(500)),
                local: &local,
            };
            render(replicate(&JobStatus::of(state, &request), code), None)
        };
        // Before the first cycle.
        let first = text(&state, None);
        assert!(first.contains("ebsfs_replicate_volumes 0"), "{first}");
        assert!(!first.contains("timestamp_seconds"), "{first}");
        for (id, time) in [("vol-0a", 900), ("vol-0b", 400)] {
            let volume = state.volumes.entry(id.into()).or_default();
            volume.is_selected = true;
            let target = volume.targets.entry("/secret/path.raw".into()).or_default();
            target.recovery_point = Some(RecoveryPoint {
                snapshot: "snap-0a".parse().unwrap(),
                time: Some(at(time)),
                published: None,
                arrived: None,
                late_at: None,
                damaged_blocks: 0,
            });
        }
        state.last_run = Some(LastRun {
            started: Some(at(910)),
            ended: Some(at(920)),
            error: Some(StateError::of(&Error::new(Kind::Throttled, "no"), at(920))),
            bytes: 7,
            ..LastRun::default()
        });
        state.next_run = Some(at(1100));
        let passed = LastDrill {
            ended: Some(at(700)),
            ..LastDrill::default()
        };
        let overdue = UnitDrills {
            overdue_at: Some(at(1000)),
            last: Some(passed.clone()),
            ..UnitDrills::default()
        };
        let failed = UnitDrills {
            last: Some(LastDrill {
                ended: Some(at(800)),
                error: Some(StateError::of(&Error::new(Kind::Corrupt, "no"), at(800))),
                ..passed
            }),
            ..UnitDrills::default()
        };
        state.drills = Some(DrillMemory {
            units: [("vol-0a".into(), overdue), ("vol-0b".into(), failed)].into(),
            ..DrillMemory::default()
        });
        let found = text(&state, None);
        for line in [
            "ebsfs_replicate_recovery_points{state=\"current\"} 1.0",
            "ebsfs_replicate_recovery_points{state=\"late\"} 1.0",
            "ebsfs_replicate_recovery_points{state=\"missing\"} 0.0",
            "ebsfs_replicate_recovery_point_timestamp_seconds 400.0",
            "ebsfs_replicate_drills{state=\"passed\"} 1.0",
            "ebsfs_replicate_drills{state=\"failed\"} 1.0",
            "ebsfs_replicate_drills{state=\"not_done\"} 0.0",
            "ebsfs_replicate_drills{state=\"missing\"} 0.0",
            "ebsfs_replicate_drills_overdue 1.0",
            "ebsfs_replicate_drill_timestamp_seconds 700.0",
            "ebsfs_replicate_volumes 2.0",
            "ebsfs_replicate_volumes_under_way 0.0",
            "ebsfs_replicate_start_timestamp_seconds 910.0",
            "ebsfs_replicate_end_timestamp_seconds 920.0",
            "ebsfs_replicate_next_run_timestamp_seconds 1100.0",
            "ebsfs_replicate_last_bytes 7.0",
            "ebsfs_replicate_exit_code 6.0",
        ] {
            let line = line.replace(".0", "");
            let mut lines = found.lines().map(|line| line.replace(".0", ""));
            assert!(lines.any(|found| found == line), "{line}: {found}");
        }
        assert!(!found.contains("last_success"), "{found}");
        assert!(text(&state, Some(130)).contains("ebsfs_replicate_exit_code 130"));
        for secret in ["secret", "vol-0", "snap-0"] {
            assert!(!found.contains(secret), "{secret}: {found}");
        }
    }
}
