use super::*;
use crate::replicate::state::{RecoveryPoint, StateError};
use std::time::{Duration, SystemTime};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// `VOLUME/TIME`, the snapshot of that number.
fn name(text: &str) -> ManifestName {
    let (volume, time) = text.split_once('/').unwrap();
    ManifestName {
        time: at(time.parse().unwrap()),
        volume: volume.parse().unwrap(),
        snapshot: format!("snap-{time}").parse().unwrap(),
    }
}

fn names(text: &str) -> Vec<ManifestName> {
    text.split_whitespace().map(name).collect()
}

/// The snapshot of that number, at a target.
fn point(time: u64) -> RecoveryPoint {
    RecoveryPoint {
        snapshot: format!("snap-{time}").parse().unwrap(),
        time: Some(at(time)),
        published: None,
        arrived: None,
        late_at: None,
        damaged_blocks: 0,
    }
}

fn ids(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn from(volumes: &str, without: &str) -> GatewaySource {
    GatewaySource {
        volumes: ids(volumes),
        without: ids(without),
        ..GatewaySource::new("file:///r".parse().unwrap())
    }
}

#[test]
fn the_newest_snapshot_of_each_volume_counts_and_a_volume_without_one_is_absent() {
    let listed = "vol-0a/1 vol-0b/2 vol-0a/3 unknown/9 disk-77/4 vol-0b/1";
    for (volumes, without, found, absent) in [
        ("", "", "vol-0a/3 vol-0b/2 disk-77/4", ""),
        ("", "vol-0b", "vol-0a/3 disk-77/4", ""),
        ("vol-0b", "", "vol-0b/2", ""),
        ("vol-0b vol-0c", "", "vol-0b/2", "vol-0c"),
        ("vol-0b vol-0c", "vol-0c", "vol-0b/2", ""),
        ("unknown", "", "", "unknown"),
    ] {
        let newest = newest(&names(listed), &from(volumes, without), Shard::WHOLE);
        let expected = names(found).into_iter();
        let expected = expected.map(|name| (name.volume.to_string(), name));
        assert_eq!(newest.found, expected.collect(), "{volumes} {without}");
        assert_eq!(newest.absent, ids(absent), "{volumes} {without}");
    }
}

#[test]
fn every_volume_is_of_one_shard() {
    let listed = names("vol-0a/1 vol-0b/2 vol-0c/3 vol-0d/4 vol-0e/5");
    let mut all = Vec::new();
    for index in 0..3 {
        let shard = Shard::new(index, 3).unwrap();
        let its = newest(&listed, &from("", ""), shard).volumes();
        assert!(its.iter().all(|id| shard.has(id)));
        all.extend(its);
    }
    all.sort_unstable();
    assert_eq!(all, ["vol-0a", "vol-0b", "vol-0c", "vol-0d", "vol-0e"]);
}

#[test]
fn a_volume_that_is_missing_in_a_listing_needs_a_proven_one() {
    let mut state = JobState::new("web");
    state
        .volumes
        .entry("vol-0a".into())
        .or_default()
        .is_selected = true;
    // It was selected once.
    state.volumes.entry("vol-0d".into()).or_default();
    for (listed, volumes, lacks) in [
        ("vol-0a/1", "", false),
        ("vol-0a/1 vol-0b/1", "", false),
        ("vol-0b/1", "", true),
        ("", "", true),
        ("vol-0a/1", "vol-0a vol-0b", true),
        ("vol-0a/1", "vol-0a", false),
    ] {
        let newest = newest(&names(listed), &from(volumes, ""), Shard::WHOLE);
        assert_eq!(newest.lacks_some(&state), lacks, "{listed}: {volumes}");
    }
}

#[test]
fn a_target_is_behind_unless_it_holds_the_newest_or_a_newer_one() {
    let target = |time: Option<u64>, is_failed: bool| TargetState {
        recovery_point: time.map(point),
        error: is_failed.then(StateError::default),
    };
    let newest = name("vol-0a/5");
    for (held, is_failed, behind) in [
        (None, false, true),
        (None, true, true),
        (Some(4), false, true),
        (Some(4), true, true),
        (Some(5), false, false),
        // It may be between two snapshots.
        (Some(5), true, true),
        // The newest of the repository was removed.
        (Some(6), false, false),
        (Some(6), true, false),
    ] {
        let found = is_behind(Some(&target(held, is_failed)), &newest);
        assert_eq!(found, behind, "{held:?} {is_failed}");
    }
    assert!(is_behind(None, &newest));
    let mut timeless = target(Some(9), false);
    timeless.recovery_point.as_mut().unwrap().time = None;
    assert!(is_behind(Some(&timeless), &newest));
}

#[test]
fn only_volumes_with_a_target_that_is_behind_are_copied_and_none_twice_at_once() {
    let newest = newest(
        &names("vol-0a/5 vol-0b/5 vol-0c/5"),
        &from("", ""),
        Shard::WHOLE,
    );
    let two = [
        JobTarget::new("/srv/{volume}.raw"),
        JobTarget::new("file:///q"),
    ];
    let assignment = newest.assignment(&two);
    let cycle = Cycle::new("web", at(7)).unwrap();
    let held = |time: u64| TargetState {
        recovery_point: Some(point(time)),
        error: None,
    };
    let mut known: BTreeMap<String, VolumeState> = BTreeMap::new();
    for (volume, target, time) in [
        ("vol-0a", "/srv/vol-0a.raw", 5),
        ("vol-0a", "file:///q", 5),
        ("vol-0b", "/srv/vol-0b.raw", 5),
        ("vol-0b", "file:///q", 4),
        ("vol-0c", "/srv/vol-0c.raw", 5),
    ] {
        let volume = known.entry(volume.into()).or_default();
        volume.targets.insert(target.into(), held(time));
    }
    for (busy, copied) in [("", "vol-0b vol-0c"), ("vol-0c", "vol-0b")] {
        let copies = to_copy(&newest, &assignment, &known, &cycle, &ids(busy));
        let found: BTreeSet<String> = copies.keys().cloned().collect();
        assert_eq!(found, ids(copied));
        for copy in copies.values() {
            assert_eq!(copy.snapshot.as_str(), "snap-5");
            assert_eq!(copy.cycle, cycle.to_string());
        }
    }
}

#[test]
fn a_fixed_path_is_for_the_only_volume_that_the_job_names_whether_it_has_a_snapshot_or_not() {
    let fixed = [JobTarget::new("/srv/x.raw")];
    for (volumes, listed, assigned) in [
        ("", "vol-0a/1", true),
        ("", "vol-0a/1 vol-0b/1", false),
        ("vol-0a", "vol-0a/1 vol-0b/1", true),
        ("vol-0a vol-0b", "vol-0a/1", false),
    ] {
        let newest = newest(&names(listed), &from(volumes, ""), Shard::WHOLE);
        let assignment = newest.assignment(&fixed);
        let its = assignment.volumes.get("vol-0a").unwrap();
        assert_eq!(!its.is_empty(), assigned, "{volumes}: {listed}");
    }
}
