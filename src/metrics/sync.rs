//! Metrics of a sync: how far it is, and how it ended.

use std::time::SystemTime;

use super::process::seconds;
use super::{Metric, MetricValues, counter, gauge};
use crate::error::Result;
use crate::progress::Progress;
use crate::sync::{Ended, TargetOutcome};

const LAST_SUCCESS: &str = "ebsfs_sync_last_success_timestamp_seconds";
const RECOVERY_POINT: &str = "ebsfs_sync_recovery_point_timestamp_seconds";

/// Metrics of the last run that succeeded: a run that fails keeps their values.
pub(crate) const KEPT: [&str; 2] = [LAST_SUCCESS, RECOVERY_POINT];

/// Metrics of a run that is under way.
pub(crate) fn sync(progress: &Progress) -> Vec<Metric> {
    let (done, of) = progress.phase_counts();
    let ratio = match of {
        0 => 0.0,
        of => (done as f64 / of as f64).min(1.0),
    };
    vec![
        counter(
            "ebsfs_sync_fetched_bytes_total",
            "Bytes of blocks that were fetched from the source",
            progress.bytes(),
        ),
        counter(
            "ebsfs_sync_written_blocks_total",
            "Blocks of 512 KiB that were fetched and written",
            progress.blocks(),
        ),
        counter(
            "ebsfs_sync_zeroed_blocks_total",
            "Blocks of 512 KiB that were zeroed",
            progress.blocks_zeroed(),
        ),
        gauge(
            "ebsfs_sync_phase_ratio",
            "How much of the present phase of the run is done, from 0 to 1",
            ratio,
        ),
    ]
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct SyncEnd<'a> {
    /// When it began.
    pub(crate) started: SystemTime,
    /// When it ended.
    pub(crate) ended: SystemTime,
    /// The result of each target.
    pub(crate) outcomes: &'a [TargetOutcome],
    /// The result of all.
    pub(crate) result: &'a Result<()>,
    /// The time whose bytes its source holds.
    pub(crate) source_time: Option<SystemTime>,
}

/// Metrics of a run that has ended. `kept` has the values that an earlier run left for [`KEPT`].
pub(crate) fn sync_end(end: &SyncEnd<'_>, kept: &[(&'static str, f64)]) -> Vec<Metric> {
    let kept = |name| {
        let found = kept.iter().find(|(of, _)| *of == name);
        found.map(|(_, value)| *value)
    };
    let of = |wanted: &str| {
        let outcomes = end.outcomes.iter();
        outcomes
            .filter(|outcome| result_of(outcome) == wanted)
            .count() as f64
    };
    let targets = ["copied", "held", "failed"].map(|result| (vec![("result", result)], of(result)));
    let code = end.result.as_ref().err();
    let code = code.map_or(0, |error| error.kind().exit_code());
    let mut metrics = vec![
        gauge(
            "ebsfs_sync_start_timestamp_seconds",
            "When the last run began, in seconds since 1970",
            seconds(end.started),
        ),
        gauge(
            "ebsfs_sync_end_timestamp_seconds",
            "When the last run ended, in seconds since 1970",
            seconds(end.ended),
        ),
        gauge(
            "ebsfs_sync_exit_code",
            "The exit code of the last run",
            f64::from(code),
        ),
        Metric {
            name: "ebsfs_sync_targets",
            help: "Targets of the last run by their result",
            values: MetricValues::Gauges(targets.into()),
        },
    ];
    let (success, point) = match end.result {
        Ok(()) => (Some(seconds(end.ended)), end.source_time.map(seconds)),
        Err(_) => (kept(LAST_SUCCESS), kept(RECOVERY_POINT)),
    };
    metrics.extend(success.map(|at| {
        let help = "When the last run that succeeded ended, in seconds since 1970";
        gauge(LAST_SUCCESS, help, at)
    }));
    metrics.extend(point.map(|at| {
        let help = "The time whose bytes the last run that succeeded copied, in seconds since 1970";
        gauge(RECOVERY_POINT, help, at)
    }));
    metrics
}

fn result_of(outcome: &TargetOutcome) -> &'static str {
    match &outcome.ended {
        Ok(Ended::Copied(_)) => "copied",
        Ok(Ended::Held { .. } | Ended::Planned) => "held",
        Err(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::{Error, Kind};

    fn value(metrics: &[Metric], name: &str) -> Option<f64> {
        let metric = metrics.iter().find(|metric| metric.name == name)?;
        match &metric.values {
            MetricValues::Gauges(values) => values.first().map(|(_, value)| *value),
            _ => None,
        }
    }

    #[test]
    fn a_run_that_fails_keeps_the_times_of_the_last_success() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let earlier = &[(LAST_SUCCESS, 7.0)];
        let failed = Err(Error::new(Kind::Throttled, "no"));
        for (result, code, success, point) in [
            (&Ok(()), 0.0, Some(20.0), Some(5.0)),
            (&failed, 6.0, Some(7.0), None),
        ] {
            let end = SyncEnd {
                started: at(10),
                ended: at(20),
                outcomes: &[],
                result,
                source_time: Some(at(5)),
            };
            let metrics = sync_end(&end, earlier);
            assert_eq!(value(&metrics, "ebsfs_sync_exit_code"), Some(code));
            assert_eq!(value(&metrics, LAST_SUCCESS), success);
            assert_eq!(value(&metrics, RECOVERY_POINT), point);
        }
    }
}
