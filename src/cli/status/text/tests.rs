use std::collections::BTreeMap;

use super::*;
use crate::error::{Error, Kind};
use crate::replicate::{
    CopyPhase, CopyUnderWay, DrillMemory, JobState, LastDrill, LastRun, LocalContent, MonthTotals,
    RecoveryPoint, StatusRequest, TargetState, UnitDrills,
};
use crate::target::Content;

fn at(text: &str) -> SystemTime {
    humantime::parse_rfc3339(text).unwrap()
}

fn target(snapshot: &str, time: &str, error: Option<&Error>) -> TargetState {
    let time = at(time);
    TargetState {
        recovery_point: Some(RecoveryPoint {
            snapshot: snapshot.parse().unwrap(),
            time: Some(time),
            published: None,
            arrived: Some(time + Duration::from_secs(70)),
            late_at: None,
            damaged_blocks: 0,
        }),
        error: error.map(|error| StateError::of(error, at("2026-06-30T12:00:50Z"))),
    }
}

/// A job with two volumes at three targets, and one that is not selected any more.
fn job() -> JobState {
    let mut state = JobState::new("web");
    state.schedule = Some("every 15m".into());
    state.next_run = Some(at("2026-06-30T12:15:00Z"));
    state.saved = Some(at("2026-06-30T12:02:05Z"));
    let requests = CycleRequests {
        gets: 2400,
        puts: 0,
        lists: 12,
    };
    state.last_run = Some(LastRun {
        started: Some(at("2026-06-30T11:45:00Z")),
        ended: Some(at("2026-06-30T11:46:10Z")),
        bytes: 1 << 30,
        requests,
        ..LastRun::default()
    });
    state.month = Some(MonthTotals {
        month: "2026-06".into(),
        runs: 120,
        failed: 2,
        bytes: 88 << 30,
        requests,
    });
    let first = state
        .volumes
        .entry("vol-0123456789abcdef0".into())
        .or_default();
    first.is_selected = true;
    first.instance = Some("i-0123456789abcdef0".into());
    first.under_way = Some(CopyUnderWay {
        cycle: "web/2026-06-30T12:00:00Z".into(),
        snapshot: "snap-0fedcba9876543210".parse().unwrap(),
        instance: None,
        since: Some(at("2026-06-30T12:00:10Z")),
        phase: Some(CopyPhase {
            what: "copying snap-0fedcba9876543210".into(),
            unit: "blocks".into(),
            done: 12,
            of: 400,
            bytes: 6 << 20,
        }),
    });
    let snapshot = "snap-0123456789abcdef0";
    first.targets.insert(
        "s3://dr-bucket/replicas".into(),
        target(snapshot, "2026-06-30T11:45:03Z", None),
    );
    first.targets.insert(
        "/dev/disk/by-id/virtio-replica".into(),
        target(snapshot, "2026-06-30T11:45:03Z", None),
    );
    let second = state
        .volumes
        .entry("vol-0fedcba9876543210".into())
        .or_default();
    second.is_selected = true;
    let error = Error::new(
        Kind::Busy,
        "cannot write \u{1b}[31mit: another run\nworks on it",
    );
    second.targets.insert(
        "/srv/vol-0fedcba9876543210.raw".into(),
        target(snapshot, "2026-06-28T08:00:00Z", Some(&error)),
    );
    state
        .volumes
        .entry("vol-0aaaaaaaaaaaaaaaa".into())
        .or_default();
    state
}

fn text(state: &JobState) -> String {
    let between = Content::Between {
        base: Some("snap-0123456789abcdef0".into()),
        head: "snap-0fedcba9876543210".into(),
    };
    let device = "/dev/disk/by-id/virtio-replica".to_owned();
    let local: BTreeMap<_, _> = [(device, LocalContent::Recorded(between))].into();
    let now = at("2026-06-30T12:02:10Z");
    let request = StatusRequest {
        now,
        max_age: Some(Duration::from_secs(1800)),
        local: &local,
    };
    of(&JobStatus::of(state, &request), now)
}

#[test]
fn a_job_is_a_table_with_what_is_wrong_below_it() {
    let expected = "\
job web: every 15m, next run 2026-06-30T12:15:00Z
last run    ended 2026-06-30T11:46:10Z after 1m 10s, 1.0 GiB fetched, 2400 gets, 0 puts, 12 lists, $0.0072
2026-06     120 runs, 2 failed, 88.0 GiB fetched, 2400 gets, 0 puts, 12 lists, $0.0072
STATE     LAG     SNAPSHOT                OF                    ARRIVED  TARGET
vol-0123456789abcdef0 of i-0123456789abcdef0:
unusable  17m 7s  snap-0123456789abcdef0  2026-06-30T11:45:03Z  +1m 10s  /dev/disk/by-id/virtio-replica
current   17m 7s  snap-0123456789abcdef0  2026-06-30T11:45:03Z  +1m 10s  s3://dr-bucket/replicas
vol-0aaaaaaaaaaaaaaaa:
left      -       -                       -                     -        -
vol-0fedcba9876543210:
late      2d 4h   snap-0123456789abcdef0  2026-06-28T08:00:00Z  +1m 10s  /srv/vol-0fedcba9876543210.raw
vol-0123456789abcdef0: copy of snap-0fedcba9876543210 under way for 2m 0s: copying snap-0fedcba9876543210, 12 of 400 blocks, 6.0 MiB fetched
vol-0123456789abcdef0: /dev/disk/by-id/virtio-replica is not usable: it is between snap-0123456789abcdef0 and snap-0fedcba9876543210
vol-0fedcba9876543210: /srv/vol-0fedcba9876543210.raw: failed 2026-06-30T12:00:50Z with exit code 10: cannot write ?[31mit: another run works on it
";
    let found = text(&job());
    assert_eq!(found, expected);
    let table = found.lines().filter(|line| line.contains("  "));
    assert!(table.map(str::len).max().unwrap() <= 120, "{found}");
    assert!(!found.replace('\n', "").contains(char::is_control));
}

#[test]
fn a_job_before_its_first_cycle_and_one_that_stopped_say_so() {
    let mut state = JobState::new("web");
    let found = text(&state);
    assert!(
        found.starts_with("job web: without a schedule\n"),
        "{found}"
    );
    assert!(found.ends_with("no volume yet\n"), "{found}");
    state = job();
    state.next_run = Some(at("2026-06-30T12:00:00Z"));
    state.saved = Some(at("2026-06-30T11:58:00Z"));
    let found = text(&state);
    assert!(found.contains("next run was due 2026-06-30T12:00:00Z, 2m 10s ago"));
    assert!(found.contains("interrupted; the next run continues it"));
}

#[test]
fn drills_are_shown_with_what_they_found() {
    let mut state = job();
    let drilled = |source: &str, point: &str, error: Option<&Error>| LastDrill {
        source: source.into(),
        point: point.into(),
        ended: Some(at("2026-06-30T11:50:00Z")),
        partitions: [("clean".to_owned(), 2), ("replayed".to_owned(), 1)].into(),
        error: error.map(|error| StateError::of(error, at("2026-06-30T11:50:00Z"))),
        ..LastDrill::default()
    };
    let overdue = Some(at("2026-06-30T12:00:00Z"));
    let damaged = Error::new(Kind::Corrupt, "cannot confirm\u{7} it");
    let busy = Error::new(Kind::Busy, "why");
    let units = [
        (
            "i-1",
            Some(drilled("s3://b/p#i-1@T", "T", None)),
            None,
            None,
        ),
        (
            "vol-0a",
            Some(drilled("/a.raw", "snap-0a", None)),
            None,
            overdue,
        ),
        (
            "vol-0b",
            Some(drilled("/b.raw", "snap-0b", Some(&damaged))),
            Some(&busy),
            None,
        ),
        ("vol-0c", None, None, overdue),
    ];
    let units = units.map(|(id, last, failure, overdue_at)| {
        let unit = UnitDrills {
            since: None,
            overdue_at,
            last,
            failure: failure.map(|error| StateError::of(error, at("2026-06-30T12:00:00Z"))),
        };
        (id.to_owned(), unit)
    });
    state.drills = Some(DrillMemory {
        schedule: "every 7days".into(),
        next: Some(at("2026-07-02T00:00:00Z")),
        units: units.into(),
    });
    let found = text(&state);
    let expected = "
drills every 7days, next due 2026-07-02T00:00:00Z
  i-1: passed 2026-06-30T11:50:00Z: s3://b/p#i-1@T: 2 clean, 1 replayed
  vol-0a: passed 2026-06-30T11:50:00Z: /a.raw as snap-0a: 2 clean, 1 replayed; overdue
  vol-0b: failed 2026-06-30T11:50:00Z with exit code 8: cannot confirm? it: 2 clean, 1 replayed; no result 2026-06-30T12:00:00Z: why
  vol-0c: not drilled yet; overdue
";
    assert!(found.contains(expected), "{found}");
}

#[test]
fn a_span_has_its_two_largest_units() {
    for (seconds, expected) in [
        (0, "0s"),
        (59, "59s"),
        (60, "1m 0s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (86_399, "23h 59m"),
        (90_000, "1d 1h"),
        (86_400 * 400, "400d 0h"),
    ] {
        assert_eq!(span(Duration::from_secs(seconds)), expected);
    }
}
