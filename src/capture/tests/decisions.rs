//! The pure functions.

use std::collections::BTreeSet;

use super::*;
use crate::capture::adopt::{CallDecision, decide};
use crate::capture::cycle::CYCLE_TAG;
use crate::capture::plan::{SelectedVolumes, plan};
use crate::capture::wait::{Completion, completion};
use crate::snapshot::{InstanceInfo, SnapshotsOf};

#[test]
fn copied_tags_prove_nothing() {
    use crate::capture::ownership::ForeignReason::{
        NoCycle, OtherId, OtherJob, OtherTime, OtherVolume,
    };
    use Standing::{Adoptable, Foreign, Ours};
    let all = [(CYCLE_TAG, CYCLE), (SELF_TAG, "snap-0a")];
    let with = |tags: &[(&str, &str)]| snapshot("snap-0a", tags);
    let mut copy = with(&all);
    copy.volume_id = Some("vol-ffffffff".into());
    let mut of_none = with(&all);
    of_none.volume_id = None;
    let mut late = with(&all);
    late.start_time = Some(at("2026-07-02T12:00:00Z"));
    let mut early = with(&all);
    early.start_time = Some(at("2026-06-30T10:00:00Z"));
    let mut timeless = with(&all);
    timeless.start_time = None;
    let other_job = [("ebsfs:cycle", "weekly/2026-06-30T12:00:00Z"), all[1]];
    for (name, snapshot, expected) in [
        ("its own id", with(&all), Ours),
        ("before its id was set", with(&all[..1]), Adoptable),
        (
            "copied from another",
            with(&[all[0], (SELF_TAG, "snap-0b")]),
            Foreign(OtherId),
        ),
        (
            "an empty id",
            with(&[all[0], (SELF_TAG, "")]),
            Foreign(OtherId),
        ),
        ("no tags", with(&[]), Foreign(NoCycle)),
        ("its own id alone", with(&all[1..]), Foreign(NoCycle)),
        (
            "a tag that is no cycle",
            with(&[(CYCLE_TAG, "nightly"), all[1]]),
            Foreign(NoCycle),
        ),
        ("another job's", with(&other_job), Foreign(OtherJob)),
        ("a copy of it", copy, Foreign(OtherVolume)),
        ("of no volume", of_none, Foreign(OtherVolume)),
        ("too late", late, Foreign(OtherTime)),
        ("too early", early, Foreign(OtherTime)),
        ("of no time", timeless, Foreign(OtherTime)),
    ] {
        let volumes = BTreeSet::from(["vol-0a".to_owned()]);
        let mut claim = Claim {
            job: "nightly",
            volumes: &volumes,
            recorded: &BTreeSet::new(),
        };
        assert_eq!(standing(&snapshot, &claim), expected, "{name}");
        // What a record names is ours, whatever its tags are; what it does not name is judged as before.
        let own = BTreeSet::from([id("snap-0a")]);
        claim.recorded = &own;
        assert_eq!(standing(&snapshot, &claim), Ours, "{name}");
        let other = BTreeSet::from([id("snap-0b")]);
        claim.recorded = &other;
        assert_eq!(standing(&snapshot, &claim), expected, "{name}");
    }
}

#[test]
fn a_volume_with_a_snapshot_of_the_cycle_gets_no_other() {
    use CallDecision::{Adopt, Create, LookAgain, Part};
    let cycle: Cycle = CYCLE.parse().unwrap();
    let tag = (CYCLE_TAG, CYCLE);
    let of = |name: &str, volume: &str, minute: u64, state: SnapshotState| {
        let mut made = snapshot(name, &[tag]);
        made.volume_id = Some(volume.to_owned());
        made.state = Some(state);
        made.start_time = Some(at("2026-06-30T12:00:00Z") + Duration::from_secs(60 * minute));
        made
    };
    let (a, b) = (
        of("snap-0a", "vol-0a", 1, SnapshotState::Pending),
        of("snap-0b", "vol-0b", 1, SnapshotState::Completed),
    );
    let error = of("snap-0a", "vol-0a", 1, SnapshotState::Other("error".into()));
    let binned = of(
        "snap-0a",
        "vol-0a",
        1,
        SnapshotState::Other("recoverable".into()),
    );
    let mut stateless = a.clone();
    stateless.state = None;
    let mut other_cycle = a.clone();
    other_cycle.tags = owned(&[(CYCLE_TAG, "nightly/2026-06-30T12:00:01Z")]);
    let mut copied = a.clone();
    copied.tags.insert(SELF_TAG.into(), "snap-0f".into());
    let elsewhere = of("snap-0c", "vol-0c", 1, SnapshotState::Completed);
    let (a2, b2) = (
        of("snap-1a", "vol-0a", 2, SnapshotState::Pending),
        of("snap-1b", "vol-0b", 2, SnapshotState::Pending),
    );
    let first_b = of("snap-2b", "vol-0b", 0, SnapshotState::Pending);
    for (name, found, settled, unsettled) in [
        ("nothing", vec![], Create, LookAgain),
        (
            "all",
            vec![b.clone(), a.clone()],
            Adopt(vec![a.clone(), b.clone()]),
            Adopt(vec![a.clone(), b.clone()]),
        ),
        ("one", vec![b.clone()], Part(vec![b.clone()]), LookAgain),
        (
            "one, the other in error",
            vec![error.clone(), b.clone()],
            Part(vec![b.clone()]),
            LookAgain,
        ),
        ("in error", vec![error], Create, LookAgain),
        ("in the Recycle Bin", vec![binned], Create, LookAgain),
        ("of unknown state", vec![stateless], Create, LookAgain),
        ("of another cycle", vec![other_cycle], Create, LookAgain),
        ("with copied tags", vec![copied], Create, LookAgain),
        ("of another volume", vec![elsewhere], Create, LookAgain),
        (
            "two sets: the first",
            vec![a2.clone(), b2.clone(), a.clone(), b.clone()],
            Adopt(vec![a.clone(), b.clone()]),
            Adopt(vec![a.clone(), b.clone()]),
        ),
        (
            "a set and an earlier one of one volume: the set",
            vec![first_b, a2.clone(), b2.clone()],
            Adopt(vec![a2.clone(), b2]),
            Adopt(vec![a2, of("snap-1b", "vol-0b", 2, SnapshotState::Pending)]),
        ),
    ] {
        let volumes = BTreeSet::from(["vol-0a".to_owned(), "vol-0b".to_owned()]);
        assert_eq!(decide(&volumes, &found, &cycle, true), settled, "{name}");
        assert_eq!(decide(&volumes, &found, &cycle, false), unsettled, "{name}");
    }
}

fn instance(id: &str, volumes: &[&str]) -> InstanceInfo {
    InstanceInfo {
        id: id.to_owned(),
        boot_volume: volumes.first().map(|id| (*id).to_owned()),
        volumes: volumes.iter().map(|id| (*id).to_owned()).collect(),
    }
}

/// The calls of a plan, a line each.
fn calls(selection: &SelectedVolumes, job: &CaptureJob) -> Result<Vec<String>> {
    let planned = plan(selection, job)?;
    let line = |call: &crate::capture::plan::PlannedCall| match call.request(job).of {
        SnapshotsOf::Volume(id) => id,
        SnapshotsOf::Instance {
            id,
            without_boot,
            without,
            copies_tags,
        } => {
            let boot = if without_boot { " -boot" } else { "" };
            let copies = if copies_tags { "" } else { " (own tags)" };
            let without: String = without.iter().map(|id| format!(" -{id}")).collect();
            format!("{id}{boot}{without}{copies}")
        }
    };
    Ok(planned.calls.iter().map(line).collect())
}

#[test]
fn volumes_of_one_instance_are_one_set() {
    let (boot, a, b) = (
        volume("vol-00", &["i-01"], &[]),
        volume("vol-0a", &["i-01"], &[("Backup", "yes")]),
        volume("vol-0b", &["i-01"], &[("Backup", "yes")]),
    );
    let other = volume("vol-0c", &["i-02"], &[("Backup", "yes")]);
    let loose = volume("vol-0d", &[], &[("Backup", "yes")]);
    let shared = volume("vol-0e", &["i-01", "i-02"], &[]);
    let restored = volume("vol-0a", &["i-01"], &[("ebsfs:self", "snap-01")]);
    let first = instance("i-01", &["vol-00", "vol-0a", "vol-0b"]);
    let all = || vec![boot.clone(), a.clone(), b.clone()];
    let by_instance = (of_instance("i-01"), all());
    let by_tag = |volumes: Vec<VolumeInfo>| (of_tag("Backup", "yes"), volumes);
    for (name, selected, instances, without, without_boot, expected) in [
        (
            "an instance",
            vec![by_instance.clone()],
            vec![first.clone()],
            &[][..],
            false,
            Ok(vec!["i-01"]),
        ),
        (
            "without its boot volume",
            vec![by_instance.clone()],
            vec![first.clone()],
            &[],
            true,
            Ok(vec!["i-01 -boot"]),
        ),
        (
            "without a volume and the boot volume by its id",
            vec![by_instance.clone()],
            vec![first.clone()],
            &["vol-0a", "vol-00"],
            false,
            Ok(vec!["i-01 -boot -vol-0a"]),
        ),
        (
            "an instance and a volume of it",
            vec![by_instance.clone(), (of_volume("vol-0a"), vec![a.clone()])],
            vec![first.clone()],
            &[],
            false,
            Ok(vec!["i-01"]),
        ),
        (
            "a boot volume by its id is not left out",
            vec![
                by_instance.clone(),
                (of_volume("vol-00"), vec![boot.clone()]),
            ],
            vec![first.clone()],
            &[],
            true,
            Ok(vec!["i-01"]),
        ),
        (
            "one volume",
            vec![(of_volume("vol-0a"), vec![a.clone()])],
            vec![],
            &[],
            false,
            Ok(vec!["vol-0a"]),
        ),
        (
            "by a tag: a set, and single ones",
            vec![by_tag(vec![a.clone(), b.clone(), other.clone(), loose])],
            vec![first.clone()],
            &[],
            false,
            Ok(vec!["i-01 -boot", "vol-0c", "vol-0d"]),
        ),
        (
            "a volume of several instances goes with the one that is named",
            vec![(of_instance("i-02"), vec![other.clone(), shared])],
            vec![instance("i-02", &["vol-0c", "vol-0e"])],
            &[],
            false,
            Ok(vec!["i-02"]),
        ),
        (
            "a volume that has ebsfs's own tags",
            vec![(of_instance("i-01"), vec![restored, b.clone()])],
            vec![instance("i-01", &["vol-0a", "vol-0b"])],
            &[],
            false,
            Ok(vec!["i-01 (own tags)"]),
        ),
        (
            "nothing is left",
            vec![(of_instance("i-02"), vec![other.clone()])],
            vec![instance("i-02", &["vol-0c"])],
            &[],
            true,
            Err(Kind::Invalid),
        ),
        (
            "selected and left out",
            vec![(of_volume("vol-0a"), vec![a.clone()])],
            vec![],
            &["vol-0a"],
            false,
            Err(Kind::Invalid),
        ),
        (
            "no volume has the tag",
            vec![by_tag(vec![])],
            vec![],
            &[],
            false,
            Err(Kind::NotFound),
        ),
    ] {
        let selection = SelectedVolumes {
            selected,
            instances,
        };
        let mut job = job(&[]);
        job.without = without.iter().map(|id| (*id).to_owned()).collect();
        job.without_boot = without_boot;
        let found = calls(&selection, &job).map_err(|error| error.kind());
        let expected = expected.map(|calls| calls.into_iter().map(str::to_owned).collect());
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_job_that_leaves_out_all_volumes_is_refused_unless_it_may_be_empty() {
    let all = vec![volume("vol-0a", &["i-01"], &[]), volume("vol-0b", &[], &[])];
    let selection = SelectedVolumes {
        selected: vec![(of_tag("a", "b"), all)],
        instances: vec![],
    };
    let mut job = job(&[]);
    job.without = vec!["vol-0a".into(), "vol-0b".into()];
    for (may_be_empty, expected) in [(true, Ok(Vec::new())), (false, Err(Kind::Invalid))] {
        job.may_be_empty = may_be_empty;
        let found = calls(&selection, &job).map_err(|error| error.kind());
        assert_eq!(found, expected);
    }
}

#[test]
fn a_call_leaves_out_40_volumes_at_most() {
    let names: Vec<String> = (0..43).map(|n| format!("vol-{n:02x}")).collect();
    let of = |chosen: usize| {
        let volumes = names.iter().take(chosen);
        let volumes = volumes.map(|id| volume(id, &["i-01"], &[])).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        SelectedVolumes {
            selected: vec![(of_tag("a", "b"), volumes)],
            instances: vec![instance("i-01", &all)],
        }
    };
    assert!(calls(&of(3), &job(&[])).is_ok());
    let error = calls(&of(2), &job(&[])).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
fn tags_of_a_volume_are_copied_as_far_as_there_is_room() {
    let many: Vec<(String, String)> = (0..60).map(|n| (format!("k{n:02}"), "v".into())).collect();
    let mut full = volume("vol-0a", &[], &[("aws:a", "x"), ("ebsfs:cycle", "y")]);
    full.tags.extend(many);
    let mut job = job(&[]);
    job.tags = vec![("k00".into(), "given".into())];
    let selection = SelectedVolumes {
        selected: vec![(of_volume("vol-0a"), vec![full])],
        instances: vec![],
    };
    let planned = plan(&selection, &job).unwrap();
    let tags = planned.calls[0].request(&job).tags;
    // The cycle, the job's own, and room for the id.
    assert_eq!(tags.len(), 49);
    assert_eq!(tags[0], (CYCLE_TAG.to_owned(), job.cycle.to_string()));
    assert_eq!(tags[1], ("k00".to_owned(), "given".to_owned()));
    let keys: BTreeSet<_> = tags.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), tags.len());
    assert!(
        tags.iter()
            .all(|(key, _)| key == CYCLE_TAG || key.starts_with('k'))
    );
    assert!(planned.warnings[0].contains("12 tags of vol-0a are not copied"));
}

#[test]
fn a_snapshot_that_is_waited_for_is_completed_pending_or_failed() {
    let mut pending = snapshot("snap-0a", &[]);
    pending.state = Some(SnapshotState::Pending);
    pending.progress = Some("45%".into());
    let mut failed = snapshot("snap-0a", &[]);
    failed.state = Some(SnapshotState::Other("error".into()));
    failed.state_message = Some("the key\u{1b} is disabled".into());
    let completed = snapshot("snap-0a", &[]);
    for (described, is_young, expected) in [
        (Some(&completed), true, "completed"),
        (Some(&pending), false, "45%"),
        (Some(&failed), true, "Denied in state error: the key"),
        (None, true, "not shown yet"),
        (None, false, "NotFound does not exist any more"),
    ] {
        let found = match completion(&id("snap-0a"), described, is_young) {
            Completion::Done => "completed".to_owned(),
            Completion::Pending(how_far) => how_far,
            Completion::Failed(error) => format!("{:?} {}", error.kind(), error.chain()),
        };
        for word in expected.split(' ') {
            assert!(found.contains(word), "{found}: {expected}");
        }
        assert!(!found.contains('\u{1b}'), "{found:?}");
    }
}
