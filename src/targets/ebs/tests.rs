//! The decisions as tables.

mod observe;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::evidence::*;
use super::request::{Seed, body, seed, token};
use super::sink::linear;
use super::state::{ReportedSnapshot, left};
use super::*;
use crate::block::{BlockIndex, BlockSet, Change, ZERO_BLOCK};
use crate::target::UnfinishedState;
use sha2::{Digest as _, Sha256};

const ONE: &str = "snap-01";
const TWO: &str = "snap-02";
const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab";
const GIB: u64 = 1 << 30;

fn id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

/// A completed snapshot of 1 GiB that ebsfs started, with these tags besides its own id.
fn replica(name: &str, tags: &[(&str, &str)]) -> Snapshot {
    let own = [(SELF_TAG, name)];
    let tags = own.iter().chain(tags);
    let tags = tags.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Snapshot {
        volume_id: Some(NO_VOLUME.to_owned()),
        state: Some(SnapshotState::Completed),
        volume_size: Some(GIB),
        encrypted: Some(false),
        start_time: Some(SystemTime::UNIX_EPOCH),
        tags: tags.collect(),
        ..Snapshot::unknown(id(name))
    }
}

fn source() -> SourceInfo {
    SourceInfo {
        name: TWO.to_owned(),
        geometry: Geometry::new(GIB).unwrap(),
        size: None,
        mark: None,
        volume: Some("vol-0a".to_owned()),
        volume_key: crate::target::VolumeKey::default(),
        encrypted: Some(false),
        snapshot: Some(Snapshot::unknown(id(TWO))),
        has_changes: true,
        damaged_in_source: 0,
    }
}

#[test]
fn a_replica_is_proven_by_the_record_or_by_its_own_id_and_by_no_copied_tag() {
    let good = || replica("snap-0a", &[(SOURCE_TAG, ONE)]);
    let with = |change: fn(&mut Snapshot)| {
        let mut snapshot = good();
        change(&mut snapshot);
        snapshot
    };
    let copied: fn(&mut Snapshot) = |snapshot| {
        snapshot.tags.insert(SELF_TAG.into(), "snap-0b".into());
    };
    let of_volume: fn(&mut Snapshot) = |snapshot| snapshot.volume_id = Some("vol-0a".into());
    let of_unknown: fn(&mut Snapshot) = |snapshot| snapshot.volume_id = None;
    let untagged: fn(&mut Snapshot) = |snapshot| {
        snapshot.tags.remove(SELF_TAG);
    };
    let damaged: fn(&mut Snapshot) = |snapshot| {
        snapshot.tags.insert(DAMAGED_TAG.into(), "1".into());
    };
    for (what, snapshot, by_itself) in [
        ("its own id, of no volume", good(), true),
        ("a copied tag", with(copied), false),
        ("taken of a volume", with(of_volume), false),
        ("of an unknown volume", with(of_unknown), false),
        ("no tag", with(untagged), false),
        (
            "damaged blocks that only the record names",
            with(damaged),
            false,
        ),
    ] {
        assert_eq!(is_proven(&snapshot, None), by_itself, "{what}");
        assert_eq!(is_proven(&snapshot, Some("snap-0c")), by_itself, "{what}");
        assert!(is_proven(&snapshot, Some("snap-0a")), "{what}, on record");
    }
}

#[test]
fn keys_are_compared_by_their_ids_and_an_alias_is_unknown() {
    let alias = "arn:aws:kms:us-east-1:111122223333:alias/mine";
    for (one, other, same) in [
        (KEY, KEY, Some(true)),
        (KEY, "1234abcd-12ab", Some(true)),
        (KEY, "key/1234ABCD-12AB", Some(true)),
        (
            KEY,
            "arn:aws-cn:kms:cn-north-1:1:key/1234abcd-12ab",
            Some(true),
        ),
        (
            KEY,
            "arn:aws:kms:us-east-1:111122223333:key/5678",
            Some(false),
        ),
        (KEY, "5678", Some(false)),
        (KEY, "", Some(false)),
        (KEY, alias, None),
        (alias, "alias/mine", Some(true)),
        (alias, "alias/other", None),
    ] {
        assert_eq!(is_same_key(one, other), same, "{one} {other}");
        assert_eq!(is_same_key(other, one), same, "{other} {one}");
    }
}

#[test]
fn only_a_proven_replica_with_the_right_key_and_size_is_offered() {
    let wanted = ReplicaQuery {
        recorded: None,
        kms_key: None,
        volume_bytes: GIB,
        encrypts: Some(false),
    };
    let with_key = ReplicaQuery {
        kms_key: Some(KEY),
        ..wanted
    };
    let good = || replica("snap-0a", &[(SOURCE_TAG, ONE)]);
    let encrypted = |key: Option<&str>| Snapshot {
        encrypted: Some(true),
        kms_key_id: key.map(str::to_owned),
        ..good()
    };
    let base = |encrypted| {
        Offer::Base(Replica {
            source: id(ONE),
            id: id("snap-0a"),
            volume_bytes: Some(GIB),
            encrypted: Some(encrypted),
        })
    };
    assert_eq!(offer(&good(), &wanted), base(false));
    assert_eq!(offer(&encrypted(Some(KEY)), &with_key), base(true));
    // No key is asked for: a child has its parent's.
    assert_eq!(offer(&encrypted(Some("5678")), &wanted), base(true));
    let pending = Snapshot {
        state: Some(SnapshotState::Pending),
        ..good()
    };
    assert_eq!(offer(&pending, &wanted), Offer::Unfinished);
    let image = replica("snap-0a", &[(SOURCE_TAG, "/srv/disk.raw")]);
    assert_eq!(offer(&image, &wanted), Offer::Unproven);
    let drifted = Snapshot {
        volume_id: Some("vol-0b".into()),
        ..good()
    };
    assert_eq!(offer(&drifted, &wanted), Offer::Unproven);
    let large = Snapshot {
        volume_size: Some(2 * GIB),
        ..good()
    };
    let archived = Snapshot {
        storage_tier: Some("archive".into()),
        ..good()
    };
    let by_default = ReplicaQuery {
        encrypts: Some(true),
        ..wanted
    };
    for (snapshot, wanted, says) in [
        (good(), &with_key, "not encrypted"),
        (encrypted(Some("5678")), &with_key, "encrypted with 5678"),
        (encrypted(Some("5678")), &with_key, KEY),
        (encrypted(Some("alias/mine")), &with_key, "own ARN"),
        (encrypted(None), &with_key, "does not tell"),
        (large, &wanted, "larger"),
        (archived, &wanted, "archived"),
        (good(), &by_default, "new snapshots in this Region are"),
    ] {
        match offer(&snapshot, wanted) {
            Offer::Unusable(why) => assert!(why.contains(says), "{why}: {says}"),
            other => panic!("{other:?}: {says}"),
        }
    }
}

#[test]
fn an_existing_snapshot_is_enough_only_if_it_matches_the_job() {
    let made = Snapshot {
        description: Some("weekly".into()),
        encrypted: Some(true),
        kms_key_id: Some(KEY.into()),
        ..replica(
            "snap-0a",
            &[(SOURCE_TAG, TWO), ("a", "1"), (PARENT_TAG, "snap-0f")],
        )
    };
    let job = |change: fn(&mut EbsJob)| {
        let mut job = EbsJob::default();
        change(&mut job);
        job
    };
    for (what, job, same) in [
        ("nothing", job(|_| ()), true),
        (
            "its tag",
            job(|job| job.tags = vec![("a".into(), "1".into())]),
            true,
        ),
        (
            "another value",
            job(|job| job.tags = vec![("a".into(), "2".into())]),
            false,
        ),
        (
            "another tag",
            job(|job| job.tags = vec![("b".into(), "1".into())]),
            false,
        ),
        ("its key", job(|job| job.kms_key = Some(KEY.into())), true),
        (
            "another key",
            job(|job| job.kms_key = Some("arn:aws:kms:r:1:key/5".into())),
            false,
        ),
        (
            "its description",
            job(|job| job.description = Some("weekly".into())),
            true,
        ),
        (
            "another one",
            job(|job| job.description = Some("daily".into())),
            false,
        ),
        (
            "its parent",
            job(|job| job.parent = Some(id("snap-0f"))),
            true,
        ),
        (
            "another parent",
            job(|job| job.parent = Some(id("snap-0e"))),
            false,
        ),
    ] {
        assert_eq!(is_made(&made, &id(TWO), &job, None), same, "{what}");
    }
    let any = EbsJob::default();
    assert!(!is_made(&made, &id(ONE), &any, None));
    let damaged = replica("snap-0a", &[(SOURCE_TAG, TWO), (DAMAGED_TAG, "3")]);
    assert!(!is_made(&damaged, &id(TWO), &any, Some("snap-0a")));
    let pending = Snapshot {
        state: Some(SnapshotState::Pending),
        ..made
    };
    assert!(!is_made(&pending, &id(TWO), &any, None));
}

fn state(snapshot: Option<&str>, started: SystemTime) -> EbsState {
    let plan = Delta::new(None, Geometry::new(GIB).unwrap());
    let job = EbsJob::default();
    EbsState {
        start: body(&source(), &job, None, &plan).unwrap(),
        job,
        seed: String::new(),
        attempt: 0,
        snapshot: snapshot.map(id),
        started: Some(started),
        puts_zeroes: false,
        zero_the_rest: false,
        is_tagged: false,
        is_refused: false,
    }
}

#[test]
fn a_stale_snapshot_never_blocks_the_next_run() {
    let (now, long_ago) = (SystemTime::now(), SystemTime::UNIX_EPOCH);
    let same = EbsJob::default();
    let other = EbsJob {
        description: Some("other".into()),
        ..EbsJob::default()
    };
    let there = |state| ReportedSnapshot::There(Some(state), None);
    let error = || {
        ReportedSnapshot::There(
            Some(SnapshotState::Other("error".into())),
            Some("timed out".into()),
        )
    };
    let refused = EbsState {
        is_refused: true,
        ..state(None, long_ago)
    };
    let started = |when| state(Some(ONE), when);
    for (what, state, job, seen, result, says) in [
        (
            "not started",
            state(None, long_ago),
            &same,
            ReportedSnapshot::Absent,
            UnfinishedState::Proven,
            None,
        ),
        (
            "not started",
            state(None, long_ago),
            &other,
            ReportedSnapshot::Absent,
            UnfinishedState::Absent,
            None,
        ),
        (
            "refused",
            refused,
            &same,
            ReportedSnapshot::Absent,
            UnfinishedState::Absent,
            None,
        ),
        (
            "pending",
            started(long_ago),
            &same,
            there(SnapshotState::Pending),
            UnfinishedState::Proven,
            None,
        ),
        (
            "completed",
            started(long_ago),
            &same,
            there(SnapshotState::Completed),
            UnfinishedState::Proven,
            None,
        ),
        (
            "unknown state",
            started(long_ago),
            &same,
            ReportedSnapshot::There(None, None),
            UnfinishedState::Proven,
            None,
        ),
        (
            "denied",
            started(long_ago),
            &same,
            ReportedSnapshot::Denied,
            UnfinishedState::Proven,
            None,
        ),
        (
            "young",
            started(now),
            &same,
            ReportedSnapshot::Absent,
            UnfinishedState::Proven,
            None,
        ),
        (
            "absent",
            started(long_ago),
            &same,
            ReportedSnapshot::Absent,
            UnfinishedState::Absent,
            Some("does not exist"),
        ),
        (
            "error",
            started(now),
            &same,
            error(),
            UnfinishedState::Absent,
            Some("timed out"),
        ),
        (
            "pending",
            started(now),
            &other,
            there(SnapshotState::Pending),
            UnfinishedState::Absent,
            Some("left unfinished"),
        ),
        (
            "denied",
            started(now),
            &other,
            ReportedSnapshot::Denied,
            UnfinishedState::Absent,
            Some("left unfinished"),
        ),
    ] {
        let (found, why) = left(&state, job, &seen);
        assert_eq!(found, result, "{what}");
        assert_eq!(why.is_some(), says.is_some(), "{what}: {why:?}");
        if let (Some(why), Some(says)) = (why, says) {
            assert!(why.contains(says) && why.contains(ONE), "{why}");
        }
    }
}

#[test]
fn the_same_command_has_the_same_token_and_any_other_one_another() {
    let plan = || {
        let mut plan = Delta::new(None, Geometry::new(GIB).unwrap());
        plan.insert(BlockIndex(3), Change::Write);
        plan
    };
    let of = |source: &SourceInfo, job: &EbsJob, plan: &Delta, run: Option<&str>, attempt| {
        let parent = job.parent.as_ref();
        let body = body(source, job, parent, plan).unwrap();
        let from = Seed {
            source: &source.name,
            target: "ebs:us-east-1 (here)",
            base: None,
            run,
        };
        token(&seed(&from, &body, plan), attempt)
    };
    let job = EbsJob::default();
    let first = of(&source(), &job, &plan(), None, 0);
    assert_eq!(first, of(&source(), &job, &plan(), None, 0));
    assert!(first.len() <= 64 && first.is_ascii());
    let mut zeroed = plan();
    zeroed.insert(BlockIndex(4), Change::Zero);
    let mut written = plan();
    written.insert(BlockIndex(4), Change::Write);
    let elsewhere = SourceInfo {
        name: ONE.into(),
        ..source()
    };
    let with = |change: fn(&mut EbsJob)| {
        let mut job = EbsJob::default();
        change(&mut job);
        of(&source(), &job, &plan(), None, 0)
    };
    let tokens = [
        first,
        of(&elsewhere, &job, &plan(), None, 0),
        of(&source(), &job, &zeroed, None, 0),
        of(&source(), &job, &written, None, 0),
        of(&source(), &job, &plan(), Some("a"), 0),
        of(&source(), &job, &plan(), Some("b"), 0),
        of(&source(), &job, &plan(), None, 1),
        of(&source(), &job, &plan(), None, 11),
        with(|job| job.kms_key = Some(KEY.into())),
        with(|job| job.parent = Some(id(ONE))),
        with(|job| job.tags = vec![("a".into(), "1".into())]),
        with(|job| job.description = Some("x".into())),
    ];
    let mut each = tokens.to_vec();
    each.sort();
    each.dedup();
    assert_eq!(each.len(), tokens.len());
}

#[test]
fn a_child_has_its_parents_key_and_texts_are_cut() {
    let plan = Delta::new(None, Geometry::new(GIB + 1).unwrap());
    let long = "\u{e9}".repeat(300);
    let job = EbsJob {
        kms_key: Some(KEY.into()),
        description: Some(long.clone()),
        ..EbsJob::default()
    };
    let image = SourceInfo {
        name: long,
        volume: Some(NO_VOLUME.into()),
        size: Some(GIB + 1),
        ..source()
    };
    let alone = body(&image, &job, None, &plan).unwrap();
    assert_eq!(alone.kms_key.as_deref(), Some(KEY));
    assert_eq!(alone.description.chars().count(), 255);
    assert_eq!(alone.volume_gib, 2);
    let tags: BTreeMap<_, _> = alone.tags.iter().cloned().collect();
    assert_eq!(tags[SOURCE_TAG].chars().count(), 255);
    assert_eq!(tags[SIZE_TAG], (GIB + 1).to_string());
    // All copied snapshots have that volume.
    assert!(!tags.contains_key(VOLUME_TAG) && !tags.contains_key(PARENT_TAG));
    let child = body(&image, &job, Some(&id(ONE)), &plan).unwrap();
    assert_eq!((child.kms_key, child.parent), (None, Some(id(ONE))));
    assert!(child.tags.contains(&(PARENT_TAG.into(), ONE.into())));
}

#[test]
fn a_damaged_block_counts_as_the_zeroes_that_were_put_for_it() {
    let blocks = || -> crate::target::Written {
        let digests = [Some([1; 32]), None, Some([3; 32])];
        let blocks = (0u32..).map(BlockIndex).zip(digests);
        Box::new(blocks.map(Ok).collect::<Vec<_>>().into_iter())
    };
    let of = |digests: &[[u8; 32]]| -> [u8; 32] { Sha256::digest(digests.concat()).into() };
    let mut damaged = BlockSet::new();
    let none = linear(blocks(), &damaged, false).unwrap();
    assert_eq!(none, (2, of(&[[1; 32], [3; 32]])));
    damaged.insert(BlockIndex(2));
    let absent = linear(blocks(), &damaged, false).unwrap();
    assert_eq!(absent, (1, of(&[[1; 32]])));
    let put = linear(blocks(), &damaged, true).unwrap();
    assert_eq!(put, (3, of(&[[1; 32], ZERO_BLOCK, ZERO_BLOCK])));
}

#[test]
fn a_snapshot_that_ec2_does_not_know_is_waited_for_while_it_is_young() {
    for (age, seconds) in [(0, 120), (60, 60), (115, 10), (120, 10), (86_400, 10)] {
        let wait = super::start::visibility_wait(Duration::from_secs(age));
        assert_eq!(wait, Duration::from_secs(seconds), "{age}");
    }
}
