use super::*;
use crate::error::Error;
use crate::replicate::job::{Ec2Volumes, JobTarget};
use crate::replicate::state::{CopyUnderWay, RecoveryPoint, TargetState};

const HOUR: u64 = 3600;
/// A week of the schedule of the tests begins here.
const WEEK: u64 = 2952 * 7 * 24 * HOUR;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn weekly() -> Schedule {
    Schedule::every(Duration::from_secs(7 * 24 * HOUR)).unwrap()
}

fn error(kind: Kind, when: u64) -> StateError {
    StateError::of(&Error::new(kind, "why"), at(when))
}

fn drill(target: Option<&str>) -> JobDrill {
    JobDrill {
        schedule: weekly(),
        target: target.map(str::to_owned),
        boot: None,
        scratch: None,
        overlay_limit: None,
        replays_xfs: false,
    }
}

fn job(instances: &[&str], targets: &[&str], drilled: Option<&str>) -> ReplicateJob {
    let instances = instances.iter();
    let select = instances.map(|id| VolumeSelector::Instance((*id).to_owned()));
    let source = JobSource::Ec2(Ec2Volumes {
        select: select
            .chain([VolumeSelector::Volume("vol-0c".into())])
            .collect(),
        ..Ec2Volumes::default()
    });
    let targets = targets.iter().map(|to| JobTarget::new(to)).collect();
    ReplicateJob {
        drill: Some(drill(drilled)),
        ..ReplicateJob::new("web", source, targets)
    }
}

/// A state of volumes: the id, its instance, its targets with a recovery point.
fn state(volumes: &[(&str, &str, &[&str])]) -> JobState {
    let mut state = JobState::new("web");
    for (id, instance, targets) in volumes {
        let volume = state.volumes.entry((*id).to_owned()).or_default();
        volume.is_selected = true;
        volume.instance = (!instance.is_empty()).then(|| (*instance).to_owned());
        for target in *targets {
            let point = RecoveryPoint {
                snapshot: "snap-0a".parse().unwrap(),
                time: Some(at(WEEK)),
                published: None,
                arrived: None,
                late_at: None,
                damaged_blocks: 0,
            };
            let target = (*target).to_owned();
            volume.targets.entry(target).or_default().recovery_point = Some(point);
        }
    }
    state
}

fn unit(point: &str) -> DrillUnit {
    DrillUnit {
        id: "vol-0a".into(),
        target: AssignedTarget {
            number: 0,
            name: "file:///r".into(),
        },
        source: format!("file:///r#{point}"),
        point: point.into(),
        time: Some(at(WEEK)),
        volumes: ["vol-0a".into()].into(),
        is_machine: true,
        is_fixed: true,
    }
}

/// A drill of `snap-0a` that began at a time, and how it failed.
fn last(started: u64, failed: Option<Kind>) -> Option<LastDrill> {
    Some(LastDrill {
        source: "file:///r#snap-0a".into(),
        point: "snap-0a".into(),
        started: Some(at(started)),
        ended: Some(at(started + 60)),
        error: failed.map(|kind| error(kind, started)),
        ..LastDrill::default()
    })
}

#[test]
fn a_drill_is_due_by_the_schedule_once_there_is_a_newer_recovery_point() {
    use Kind::{Corrupt, Unavailable, Undecided};
    let day = 24 * HOUR;
    for (last, failure, point, now, expected) in [
        // The first one.
        (None, None, "snap-0a", WEEK + 1, true),
        // In the interval of the last one; the next; several later.
        (
            last(WEEK + 60, None),
            None,
            "snap-0b",
            WEEK + 6 * day,
            false,
        ),
        (last(WEEK + 60, None), None, "snap-0b", WEEK + 7 * day, true),
        (
            last(WEEK + 60, None),
            None,
            "snap-0b",
            WEEK + 40 * day,
            true,
        ),
        // One that began right when it was due.
        (last(WEEK, None), None, "snap-0b", WEEK + 60, false),
        // Nothing new.
        (
            last(WEEK + 60, None),
            None,
            "snap-0a",
            WEEK + 40 * day,
            false,
        ),
        // A clock that was set back.
        (last(WEEK + 60, None), None, "snap-0b", WEEK - 60, true),
        // After damage: a day later, of another recovery point.
        (
            last(WEEK + 60, Some(Corrupt)),
            None,
            "snap-0b",
            WEEK + HOUR,
            false,
        ),
        (
            last(WEEK + 60, Some(Corrupt)),
            None,
            "snap-0b",
            WEEK + 60 + day,
            true,
        ),
        (
            last(WEEK + 60, Some(Corrupt)),
            None,
            "snap-0a",
            WEEK + 30 * day,
            false,
        ),
        // What was not checked may be checked now.
        (
            last(WEEK + 60, Some(Undecided)),
            None,
            "snap-0a",
            WEEK + HOUR,
            false,
        ),
        (
            last(WEEK + 60, Some(Undecided)),
            None,
            "snap-0a",
            WEEK + 60 + day,
            true,
        ),
        // One without a result is tried again after an hour, or when the next one is due.
        (None, Some(WEEK), "snap-0a", WEEK + HOUR - 1, false),
        (None, Some(WEEK), "snap-0a", WEEK + HOUR, true),
        (None, Some(WEEK - 60), "snap-0a", WEEK + 1, true),
        (None, Some(WEEK + HOUR), "snap-0a", WEEK, true),
        (
            last(WEEK - day, None),
            Some(WEEK + 60),
            "snap-0b",
            WEEK + 120,
            false,
        ),
        (
            last(WEEK - day, None),
            Some(WEEK + 60),
            "snap-0b",
            WEEK + 2 * HOUR,
            true,
        ),
        (
            last(WEEK - day, None),
            Some(WEEK + 60),
            "snap-0a",
            WEEK + 2 * HOUR,
            false,
        ),
    ] {
        let known = UnitDrills {
            last,
            failure: failure.map(|when| error(Unavailable, when)),
            ..UnitDrills::default()
        };
        let found = is_due(&weekly(), Some(&known), &unit(point), at(now));
        assert_eq!(found, expected, "{known:?} {point} {now}");
    }
    assert!(is_due(&weekly(), None, &unit("snap-0a"), at(WEEK)));
}

#[test]
fn the_newest_set_of_an_instance_is_drilled_else_the_best_that_a_volume_has() {
    let image = "/srv/{volume}.raw";
    let two: &[(&str, &str, &[&str])] = &[
        ("vol-0a", "i-1", &["file:///r", "/srv/vol-0a.raw"]),
        ("vol-0b", "i-1", &["file:///r", "/srv/vol-0b.raw"]),
        ("vol-0c", "", &["file:///r", "/srv/vol-0c.raw"]),
    ];
    let local = &[("vol-0c", "", &["/srv/vol-0c.raw", "/dev/sdz"][..])][..];
    let set = "i-1: file:///r#i-1@2026-06-30T12:00:00.000Z";
    for (instances, targets, drilled, volumes, has_set, expected) in [
        (
            &["i-1"][..],
            &[image, "file:///r"][..],
            None,
            two,
            true,
            vec![set, "vol-0c: file:///r#snap-0a"],
        ),
        // No set yet: each volume by itself.
        (
            &["i-1"],
            &["file:///r"],
            None,
            two,
            false,
            vec![
                "vol-0a: file:///r#snap-0a, no machine",
                "vol-0b: file:///r#snap-0a, no machine",
                "vol-0c: file:///r#snap-0a",
            ],
        ),
        // The job keeps no set of an instance that it does not name.
        (
            &[],
            &["file:///r"],
            None,
            &two[..1],
            true,
            vec!["vol-0a: file:///r#snap-0a"],
        ),
        // A target that is named.
        (
            &["i-1"],
            &["file:///r", image],
            Some(image),
            &two[1..],
            true,
            vec![
                "vol-0b: /srv/vol-0b.raw, no machine",
                "vol-0c: /srv/vol-0c.raw",
            ],
        ),
        // An image that is replaced goes before a device.
        (
            &[],
            &["/dev/sdz", image],
            None,
            local,
            false,
            vec!["vol-0c: /srv/vol-0c.raw"],
        ),
        (
            &[],
            &["/dev/sdz"],
            None,
            local,
            false,
            vec!["vol-0c: /dev/sdz"],
        ),
        (&[], &["ebs:eu-west-2"], None, local, false, vec![]),
        // Nothing has arrived there.
        (&[], &["s3://b/p"], None, local, false, vec![]),
    ] {
        let job = job(instances, targets, drilled);
        let mut state = state(volumes);
        if has_set {
            let instant = "2026-06-30T12:00:00.000Z".to_owned();
            state.sets.insert("file:///r#i-1".into(), instant);
        }
        let found = units(&job, job.drill.as_ref().unwrap(), &state);
        let lines: Vec<String> = found
            .iter()
            .map(|unit| {
                let machine = if unit.is_machine { "" } else { ", no machine" };
                format!("{}: {}{machine}", unit.id, unit.source)
            })
            .collect();
        assert_eq!(lines, expected, "{targets:?} {drilled:?}");
        let fixed = found.iter().map(|unit| unit.source.contains('#'));
        assert!(fixed.eq(found.iter().map(|unit| unit.is_fixed)));
    }
}

#[test]
fn what_is_not_selected_or_was_left_by_a_failed_copy_is_not_drilled() {
    let job = job(&[], &["/srv/{volume}.raw"], None);
    let ids = |state: &JobState| -> Vec<String> {
        let found = units(&job, job.drill.as_ref().unwrap(), state);
        found.into_iter().map(|unit| unit.id).collect()
    };
    let mut state = state(&[
        ("vol-0a", "", &["/srv/vol-0a.raw"]),
        ("vol-0b", "", &["/srv/vol-0b.raw"]),
        ("vol-0c", "", &["/srv/vol-0c.raw"]),
    ]);
    assert_eq!(ids(&state), ["vol-0a", "vol-0b", "vol-0c"]);
    state.volumes.get_mut("vol-0a").unwrap().is_selected = false;
    let volume = state.volumes.get_mut("vol-0b").unwrap();
    let target: &mut TargetState = volume.targets.values_mut().next().unwrap();
    target.error = Some(error(Kind::Undecided, WEEK));
    assert_eq!(ids(&state), ["vol-0c"]);
}

#[test]
fn a_drill_begins_when_its_volumes_are_not_copied_or_when_it_is_overdue_in_a_repository() {
    let copy = CopyUnderWay {
        cycle: "web/2026-06-30T12:00:00Z".into(),
        snapshot: "snap-0b".parse().unwrap(),
        instance: None,
        since: None,
        phase: None,
    };
    for (is_copied, is_fixed, overdue_at, expected) in [
        (false, true, None, true),
        (false, false, None, true),
        (true, true, None, false),
        (true, true, Some(WEEK + 1), false),
        (true, true, Some(WEEK), true),
        // What is written now is not read.
        (true, false, Some(WEEK), false),
    ] {
        let mut state = state(&[("vol-0a", "", &[])]);
        let volume = state.volumes.get_mut("vol-0a").unwrap();
        volume.under_way = is_copied.then(|| copy.clone());
        let drills = UnitDrills {
            overdue_at: overdue_at.map(at),
            ..UnitDrills::default()
        };
        let drills = DrillMemory {
            units: [("vol-0a".to_owned(), drills)].into(),
            ..DrillMemory::default()
        };
        state.drills = Some(drills);
        let unit = DrillUnit {
            is_fixed,
            ..unit("snap-0a")
        };
        let found = is_ready(&state, &unit, at(WEEK));
        assert_eq!(found, expected, "{is_copied} {is_fixed} {overdue_at:?}");
    }
}

fn outcome(unit: DrillUnit, found: crate::error::Result<DrillFindings>) -> DrillOutcome {
    DrillOutcome {
        unit,
        found,
        took: Duration::from_secs(60),
    }
}

#[test]
fn a_state_says_when_drills_are_due_and_from_when_on_the_next_one_is_overdue() {
    let week = 7 * 24 * HOUR;
    let mut job = job(&[], &["file:///r"], None);
    let mut state = state(&[("vol-0a", "", &["file:///r"])]);
    let overdue = |state: &JobState| {
        let drills = state.drills.as_ref().unwrap();
        drills.units.get("vol-0a").unwrap().overdue_at
    };
    refresh(&mut state, &job, at(WEEK + 60));
    let drills = state.drills.clone().unwrap();
    assert_eq!(drills.schedule, "every 7days");
    assert_eq!(drills.next, Some(at(WEEK + week)));
    // Never drilled: from the time on when it could be.
    assert_eq!(overdue(&state), Some(at(WEEK + 2 * week)));
    refresh(&mut state, &job, at(WEEK + week));
    assert_eq!(overdue(&state), Some(at(WEEK + 2 * week)));
    // A drill without a result changes nothing of that.
    let unit = units(&job, job.drill.as_ref().unwrap(), &state).remove(0);
    let failed = Err(Error::new(Kind::Unavailable, "why"));
    let now = at(WEEK + week);
    note(&mut state, &unit, &outcome(unit.clone(), failed), now);
    refresh(&mut state, &job, now);
    assert_eq!(overdue(&state), Some(at(WEEK + 2 * week)));
    // Drilled: nothing is overdue until there is a newer recovery point.
    let found = || DrillFindings {
        partitions: [("replayed".to_owned(), 1)].into(),
        booted: None,
        failure: None,
    };
    let now = at(WEEK + week + HOUR);
    note(&mut state, &unit, &outcome(unit.clone(), Ok(found())), now);
    refresh(&mut state, &job, now);
    assert_eq!(overdue(&state), None);
    let drills = state.drills.as_ref().unwrap().units.get("vol-0a").unwrap();
    assert_eq!(drills.failure, None);
    let last = drills.last.as_ref().unwrap();
    assert_eq!((&*last.point, &last.error), ("snap-0a", &None));
    assert_eq!(last.started, Some(now - Duration::from_secs(60)));
    assert_eq!(last.partitions.get("replayed"), Some(&1));
    let volume = state.volumes.get_mut("vol-0a").unwrap();
    let target = volume.targets.get_mut("file:///r").unwrap();
    target.recovery_point.as_mut().unwrap().snapshot = "snap-0b".parse().unwrap();
    refresh(&mut state, &job, at(WEEK + 2 * week));
    assert_eq!(overdue(&state), Some(at(WEEK + 3 * week)));
    // A state survives a file; a job without a drill has none.
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<JobState>(&text).unwrap(), state);
    state.volumes.get_mut("vol-0a").unwrap().is_selected = false;
    refresh(&mut state, &job, at(WEEK + 2 * week));
    assert!(state.drills.as_ref().unwrap().units.is_empty());
    job.drill = None;
    refresh(&mut state, &job, at(WEEK + 2 * week));
    assert_eq!(state.drills, None);
}

#[test]
fn hooks_read_how_a_drill_ended() {
    let found = DrillFindings {
        partitions: [("clean".to_owned(), 2), ("not_checked".to_owned(), 1)].into(),
        booted: Some(false),
        failure: Some(Error::new(
            Kind::Undecided,
            "cannot boot the disks: no text",
        )),
    };
    let words = DrillFindings::in_words(&found.partitions, found.booted);
    assert_eq!(words, "2 clean, 1 not checked, not booted");
    let json = outcome(unit("snap-0a"), Ok(found)).to_json();
    assert_eq!(
        (&json["unit"], &json["result"], &json["exit_code"]),
        (&"vol-0a".into(), &"failed".into(), &11.into())
    );
    assert_eq!(json["partitions"]["clean"], 2);
    assert_eq!(json["booted"], false);
    let json = outcome(unit("snap-0a"), Err(Error::new(Kind::Busy, "why"))).to_json();
    assert_eq!(
        (&json["result"], &json["exit_code"]),
        (&"not_done".into(), &10.into())
    );
    assert!(json["partitions"].is_null());
}
