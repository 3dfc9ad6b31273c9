use super::*;
use crate::error::Error;
use crate::replicate::state::{DrillMemory, LastDrill, UnitDrills};

/// The present time of the tests.
const NOW: u64 = 1_782_820_800;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn point(time: Option<u64>, late_at: Option<u64>) -> RecoveryPoint {
    RecoveryPoint {
        snapshot: "snap-0a".parse().unwrap(),
        time: time.map(at),
        published: None,
        arrived: time.map(at),
        late_at: late_at.map(at),
        damaged_blocks: 0,
    }
}

fn failure(kind: Kind) -> StateError {
    StateError::of(&Error::new(kind, "why"), at(NOW))
}

fn copy() -> CopyUnderWay {
    CopyUnderWay {
        cycle: "web/2026-06-30T12:00:00Z".into(),
        snapshot: "snap-0b".parse().unwrap(),
        instance: None,
        since: None,
        phase: None,
    }
}

fn holds(snapshot: &str) -> LocalContent {
    LocalContent::Recorded(Content::Holds(snapshot.into()))
}

#[test]
fn a_recovery_point_has_the_worst_state_that_holds() {
    use PointState::{Current, Failed, Future, Late, Missing, Undecided, Unusable};
    let hour = Some(Duration::from_secs(3600));
    let young = || Some(point(Some(NOW - 60), Some(NOW + 60)));
    let old = || Some(point(Some(NOW - 7200), Some(NOW - 60)));
    let busy = || Some(failure(Kind::Busy));
    let undecided = || Some(failure(Kind::Undecided));
    for (point, error, is_unusable, max_age, state) in [
        (young(), None, false, None, Current),
        (young(), None, false, hour, Current),
        (young(), busy(), false, None, Failed),
        (young(), undecided(), false, None, Undecided),
        (young(), None, true, None, Unusable),
        (young(), busy(), true, None, Unusable),
        (young(), undecided(), true, None, Undecided),
        // By the schedule, and by an age that is given instead.
        (old(), None, false, None, Late),
        (old(), None, false, hour, Late),
        (old(), busy(), false, None, Late),
        (old(), None, false, Some(Duration::from_secs(7200)), Current),
        (old(), None, false, Some(Duration::from_secs(7199)), Late),
        (old(), None, true, None, Unusable),
        // At the very moment.
        (Some(point(Some(NOW), Some(NOW))), None, false, None, Late),
        // Without a schedule only an age that is given makes it late.
        (Some(point(Some(1), None)), None, false, None, Current),
        (Some(point(Some(1), None)), None, false, hour, Late),
        // Of an unknown time.
        (Some(point(None, None)), None, false, None, Current),
        (Some(point(None, None)), None, false, hour, Late),
        // A clock that is a little wrong, and one that is wrong.
        (
            Some(point(Some(NOW + 300), None)),
            None,
            false,
            hour,
            Current,
        ),
        (
            Some(point(Some(NOW + 301), None)),
            None,
            false,
            hour,
            Future,
        ),
        (
            Some(point(Some(NOW + 301), None)),
            busy(),
            false,
            None,
            Future,
        ),
        (None, None, false, hour, Missing),
        (None, busy(), false, None, Missing),
        (None, undecided(), false, None, Undecided),
    ] {
        let target = TargetState {
            recovery_point: point,
            error,
        };
        let local = BTreeMap::new();
        let request = StatusRequest {
            now: at(NOW),
            max_age,
            local: &local,
        };
        let found = point_state(&target, is_unusable, &request);
        assert_eq!(found, state, "{target:?} {is_unusable} {max_age:?}");
    }
}

#[test]
fn a_target_is_usable_while_its_record_says_that_it_is_whole() {
    let between = |base: Option<&str>| {
        LocalContent::Recorded(Content::Between {
            base: base.map(str::to_owned),
            head: "snap-0b".into(),
        })
    };
    let unrecorded = |is_device| LocalContent::Unrecorded { is_device };
    let absent = || LocalContent::Absent("cannot find /a".into());
    let busy = || Some(copy());
    for (local, copy, words) in [
        // A repository, `ebs:`.
        (None, None, None),
        (None, busy(), None),
        (Some(holds("snap-0a")), None, None),
        // Another target of the volume goes on.
        (Some(holds("snap-0a")), busy(), None),
        (Some(holds("snap-0b")), busy(), None),
        (Some(holds("snap-0b")), None, Some("it holds snap-0b")),
        (Some(holds("snap-0c")), busy(), Some("it holds snap-0c")),
        (
            Some(between(Some("snap-0a"))),
            busy(),
            Some("between snap-0a and snap-0b"),
        ),
        // It was killed.
        (
            Some(between(None)),
            None,
            Some("between something unknown and snap-0b"),
        ),
        (Some(absent()), None, Some("cannot find /a")),
        (Some(unrecorded(false)), busy(), None),
        (Some(unrecorded(true)), None, Some("no record says")),
        (Some(unrecorded(true)), busy(), Some("no record says")),
    ] {
        let found = unusable(&point(Some(1), None), copy.as_ref(), local.as_ref());
        match (&found, words) {
            (None, None) => {}
            (Some(why), Some(words)) => assert!(why.contains(words), "{why}"),
            _ => panic!("{found:?}, not {words:?}: {local:?} {copy:?}"),
        }
    }
}

/// The recovery point of a target, and how its last copy failed.
type TargetOf = (Option<RecoveryPoint>, Option<Kind>);

/// A job of one volume for each row: whether it is selected, and its targets.
fn job(volumes: &[(bool, &[TargetOf])]) -> JobState {
    let mut state = JobState::new("web");
    for (number, (is_selected, targets)) in volumes.iter().enumerate() {
        let volume = state.volumes.entry(format!("vol-{number}")).or_default();
        volume.is_selected = *is_selected;
        for (number, (point, error)) in targets.iter().enumerate() {
            let target = TargetState {
                recovery_point: point.clone(),
                error: error.map(failure),
            };
            volume.targets.insert(format!("/{number}"), target);
        }
    }
    state
}

fn status(state: &JobState) -> JobStatus {
    let local = BTreeMap::new();
    let request = StatusRequest {
        now: at(NOW),
        max_age: Some(Duration::from_secs(3600)),
        local: &local,
    };
    JobStatus::of(state, &request)
}

#[test]
fn the_exit_code_is_that_of_the_worst_recovery_point() {
    let good = || (Some(point(Some(NOW - 60), None)), None);
    let old = || (Some(point(Some(1), None)), None);
    let failed = |kind| (Some(point(Some(NOW - 60), None)), Some(kind));
    for (volumes, last, code) in [
        (&[(true, &[good(), good()][..])][..], None, 0),
        // What is not selected any more does not count.
        (&[(true, &[good()]), (false, &[old()])], None, 0),
        (&[(false, &[good()])], None, 13),
        (&[], None, 13),
        (&[(true, &[])], None, 13),
        (&[(true, &[good(), old()])], None, 13),
        (&[(true, &[good()]), (true, &[(None, None)])], None, 13),
        (&[(true, &[failed(Kind::Unavailable)])], None, 13),
        (&[(true, &[failed(Kind::Undecided)])], None, 11),
        (&[(true, &[old(), failed(Kind::Undecided)])], None, 11),
        (
            &[(false, &[failed(Kind::Undecided)]), (true, &[good()])],
            None,
            0,
        ),
        // A failure of the cycle itself.
        (&[(true, &[good()])], Some(Kind::NotFound), 13),
        (&[(true, &[good()])], Some(Kind::Undecided), 11),
    ] {
        let mut state = job(volumes);
        state.last_run = last.map(|kind| LastRun {
            error: Some(failure(kind)),
            ..LastRun::default()
        });
        let found = status(&state).verdict().map_or(0, Kind::exit_code);
        assert_eq!(found, code, "{volumes:?} {last:?}");
    }
}

#[test]
fn a_shard_may_have_no_volume_once_it_has_run() {
    for (shard, has_run, code) in [
        (None, false, 13),
        (None, true, 13),
        (Some("0/2"), false, 13),
        (Some("0/2"), true, 0),
    ] {
        let mut state = job(&[]);
        state.shard = shard.map(str::to_owned);
        state.last_run = has_run.then(LastRun::default);
        let found = status(&state).verdict().map_or(0, Kind::exit_code);
        assert_eq!(found, code, "{shard:?} {has_run}");
    }
}

#[test]
fn counts_and_the_oldest_are_of_the_volumes_that_count() {
    let state = job(&[
        (true, &[(Some(point(Some(NOW - 60), None)), None)]),
        (
            true,
            &[(Some(point(Some(NOW - 90), None)), None), (None, None)],
        ),
        (true, &[]),
        (false, &[(Some(point(Some(1), None)), None)]),
    ]);
    let status = status(&state);
    assert_eq!(status.oldest(), Some(at(NOW - 90)));
    for state in PointState::ALL {
        let expected = match state {
            PointState::Current | PointState::Missing => 2,
            _ => 0,
        };
        assert_eq!(status.count(state), expected, "{state:?}");
        let json = serde_json::to_value(state).unwrap();
        assert_eq!(json, state.name());
    }
}

#[test]
fn a_copy_is_interrupted_when_its_state_is_not_saved_any_more() {
    for (saved, is_interrupted) in [
        (Some(NOW), false),
        (Some(NOW - 120), false),
        (Some(NOW - 121), true),
        // A clock that was set back.
        (Some(NOW + 1000), false),
        (None, true),
    ] {
        let found = CopyStatus::of(&copy(), saved.map(at), at(NOW));
        assert_eq!(found.is_interrupted, is_interrupted, "{saved:?}");
    }
}

#[test]
fn the_sums_of_an_earlier_month_are_not_those_of_this_one() {
    let mut state = job(&[(true, &[])]);
    let volume = state.volumes.get_mut("vol-0").unwrap();
    (volume.month_bytes, volume.last_bytes) = (9, 5);
    for (month, bytes) in [("2026-06", 9), ("2026-05", 0)] {
        state.month = Some(MonthTotals {
            month: month.into(),
            bytes: 9,
            requests: CycleRequests {
                gets: 1_000_000,
                puts: 1_000_000,
                lists: 1_000_000,
            },
            ..MonthTotals::default()
        });
        let found = status(&state);
        assert_eq!(found.month.totals.month, "2026-06");
        assert_eq!(found.month.totals.bytes, bytes);
        // 3 + 6 + 0.60 dollars a million.
        let dollars = if bytes == 0 { 0.0 } else { 9.6 };
        assert!((found.month.dollars - dollars).abs() < 1e-9);
        let volume = found.volumes.first().unwrap();
        assert_eq!((volume.month_bytes, volume.last_bytes), (bytes, 5));
    }
}

#[test]
fn drills_that_fail_or_are_overdue_are_wrong_whatever_the_recovery_points() {
    use DrillState::{Failed, Missing, NotDone, Passed};
    let drilled = |error: Option<Kind>| {
        Some(LastDrill {
            ended: Some(at(NOW - 60)),
            error: error.map(failure),
            ..LastDrill::default()
        })
    };
    for (last, later, overdue_at, state, code) in [
        (None, None, None, Missing, 0),
        (None, None, Some(NOW + 1), Missing, 0),
        (None, None, Some(NOW), Missing, 13),
        (drilled(None), None, None, Passed, 0),
        (drilled(None), None, Some(NOW), Passed, 13),
        (drilled(None), Some(Kind::Unavailable), None, NotDone, 13),
        (None, Some(Kind::Io), None, NotDone, 13),
        (drilled(Some(Kind::Corrupt)), None, None, Failed, 11),
        (drilled(Some(Kind::Undecided)), None, Some(NOW), Failed, 11),
        (
            drilled(Some(Kind::Corrupt)),
            Some(Kind::Io),
            None,
            Failed,
            11,
        ),
    ] {
        let mut job = job(&[(true, &[(Some(point(Some(NOW - 60), None)), None)])]);
        let unit = UnitDrills {
            since: Some(at(1)),
            overdue_at: overdue_at.map(at),
            last,
            failure: later.map(failure),
        };
        let shown = format!("{unit:?}");
        let other = UnitDrills {
            last: drilled(None),
            ..UnitDrills::default()
        };
        job.drills = Some(DrillMemory {
            schedule: "every 7days".into(),
            next: None,
            units: [("i-1".to_owned(), unit), ("vol-0".to_owned(), other)].into(),
        });
        let status = status(&job);
        let found = status.verdict().map_or(0, Kind::exit_code);
        assert_eq!(found, code, "{shown}");
        let drills = status.drills.as_ref().unwrap();
        assert_eq!(drills.units.first().unwrap().state, state, "{shown}");
        assert_eq!(
            status.overdue_drills(),
            usize::from(overdue_at == Some(NOW))
        );
        for one in DrillState::ALL {
            let expected = usize::from(one == state) + usize::from(one == Passed);
            assert_eq!(status.drills_in(one), expected, "{one:?} {shown}");
            assert_eq!(serde_json::to_value(one).unwrap(), one.name());
        }
        assert_eq!(drills.oldest(), Some(at(NOW - 60)));
    }
    let none = status(&job(&[(true, &[])]));
    assert_eq!((none.drills_in(Missing), none.overdue_drills()), (0, 0));
}
