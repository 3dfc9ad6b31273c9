//! Rows for people: what `--base auto` does by what is found, and the decisions that once were wrong.

use super::*;

/// A target with a record of the older snapshot whose mark matches.
fn recorded(kind: TargetKind) -> Observed {
    let mut seen = seen(kind, Existence::There);
    seen.record = Some(holds(HELD, Some(VOLUME), Some(mark(1))));
    seen
}

/// The same, written since.
fn changed(kind: TargetKind, has_digests: bool, compared: Option<Comparison>) -> Observed {
    let mut seen = recorded(kind);
    seen.facts.mark = Some(mark(2));
    seen.has_digests = has_digests;
    seen.compared = compared;
    seen
}

/// A target between the older snapshot and what a run was copying.
fn between(
    head: &str,
    left: UnfinishedState,
    has_digests: bool,
    compared: Option<Comparison>,
) -> Observed {
    let mut seen = seen(TargetKind::Device, Existence::There);
    let mut task = task(&snapshot(Some(false)), true, Some(HELD));
    task.source = head.into();
    let content = Content::Between {
        base: task.base.clone(),
        head: head.into(),
    };
    seen.record = Some(record(RUN, content, Some(VOLUME), None));
    seen.unfinished = Some((task, 7));
    seen.facts.left = left;
    (seen.has_digests, seen.unfinished_has_digests) = (has_digests, has_digests);
    seen.compared = compared;
    seen
}

/// An image that holds the older snapshot, and the part of a run beside it.
fn part(head: &str, left: UnfinishedState, image: Observed) -> Observed {
    let mut task = task(&snapshot(Some(false)), false, Some(HELD));
    task.source = head.into();
    Observed {
        facts: Facts {
            left,
            ..image.facts.clone()
        },
        unfinished: Some((task, 7)),
        unfinished_has_digests: true,
        ..image
    }
}

fn replica(source: &str, encrypted: bool) -> Replica {
    Replica {
        source: id(source),
        id: id("snap-99"),
        volume_bytes: Some(SIZE),
        encrypted: Some(encrypted),
    }
}

fn account(replicas: &[Replica], encrypts: Option<bool>) -> Observed {
    let mut seen = seen(TargetKind::Ebs, Existence::Absent);
    seen.facts.replicas = replicas.to_vec();
    seen.facts.encrypts = encrypts;
    seen
}

/// What is expected of a row.
#[derive(Debug)]
enum Expected {
    Is(Decision),
    Refused(Remedy),
}

fn check(rows: Vec<(&str, SyncJob, Observed, Expected)>) {
    check_from(&snapshot(Some(false)), rows);
}

fn check_from(source: &SourceInfo, rows: Vec<(&str, SyncJob, Observed, Expected)>) {
    for (what, job, seen, expected) in rows {
        let decided = decide(&job, source, &seen);
        match expected {
            Expected::Is(decision) => assert_eq!(decided.decision, decision, "{what}"),
            Expected::Refused(expected) => {
                assert_eq!(remedy(&decided), Some(&expected), "{what}: {decided:?}");
                assert_eq!(decided.refusal().unwrap().kind().exit_code(), 11, "{what}");
            }
        }
    }
}

fn auto() -> SyncJob {
    job(Base::Auto)
}

fn named(base: Base) -> SyncJob {
    SyncJob {
        overwrite: vec![TOKEN.into()],
        ..job(base)
    }
}

fn discarding() -> SyncJob {
    SyncJob {
        discard_foreign_writes: true,
        ..auto()
    }
}

fn trusting(trusted: &str, base: Base) -> SyncJob {
    SyncJob {
        trust: Some(id(trusted)),
        ..job(base)
    }
}

fn since(base: &str) -> SyncJob {
    job(Base::Snapshot(id(base)))
}

fn overwrite() -> Expected {
    Expected::Refused(Remedy::Overwrite(TOKEN.into()))
}

use Decision::{Compare, Delta, Full, Holds, Resume, TakeOver, TakeOverPart};
use Existence::{Absent, There};
use Expected::{Is, Refused};
use TargetKind::{Device, Image, ImageInPlace};

#[test]
fn base_auto_by_what_is_found() {
    let delta = || Is(Delta(vec![id(HELD)]));
    let mut old_format = recorded(Image);
    let old = old_format.record.take().unwrap();
    old_format.record = Some(TargetRecord {
        is_old_format: true,
        ..old
    });
    let trust = || Refused(Remedy::Trust(HELD.into()));
    check(vec![
        ("absent: full", auto(), seen(Image, Absent), Is(Full)),
        (
            "no record: unknown",
            auto(),
            seen(Image, There),
            overwrite(),
        ),
        (
            "no record, named",
            named(Base::Auto),
            seen(Image, There),
            Is(Full),
        ),
        ("the mark matches", auto(), recorded(Image), delta()),
        (
            "it differs, digests",
            auto(),
            changed(Image, true, None),
            Is(Compare),
        ),
        (
            "all the same",
            auto(),
            changed(Image, true, Some(Comparison::Same)),
            delta(),
        ),
        (
            "foreign writes",
            auto(),
            changed(Image, true, Some(foreign())),
            Refused(Remedy::DiscardForeignWrites),
        ),
        (
            "discarded",
            discarding(),
            changed(Image, true, Some(foreign())),
            delta(),
        ),
        (
            "it differs, no digests",
            auto(),
            changed(Image, false, None),
            Is(Full),
        ),
        (
            "... named base",
            since(HELD),
            changed(Image, false, None),
            trust(),
        ),
        (
            "... trusted",
            trusting(HELD, Base::Snapshot(id(HELD))),
            changed(Image, false, None),
            delta(),
        ),
        ("the version before", auto(), old_format.clone(), delta()),
        (
            "another base",
            since(OTHER),
            recorded(Image),
            Refused(Remedy::BaseAuto),
        ),
    ]);
    let decided = decide(&auto(), &snapshot(Some(false)), &old_format);
    assert!(decided.warnings[0].contains("taken this once"));
    let decided = decide(
        &discarding(),
        &snapshot(None),
        &changed(Device, true, Some(foreign())),
    );
    assert!(decided.rewrites_foreign);
}

#[test]
fn a_device_is_believed_and_overwritten_only_for_a_reason() {
    let delta = || Is(Delta(vec![id(HELD)]));
    let mut other = recorded(Device);
    other.record = Some(holds(FOREIGN, Some("vol-2"), Some(mark(1))));
    let mut swapped = recorded(Device);
    swapped.record = None;
    let mut by_path = seen(Device, There);
    by_path.facts.has_identity = false;
    by_path.facts.token = "/dev/sdb".into();
    by_path.record = Some(holds(HELD, Some(VOLUME), Some(mark(1))));
    let same = || Some(Comparison::Same);
    check(vec![
        (
            "1: mtime restored, ctime not",
            auto(),
            changed(Image, true, None),
            Is(Compare),
        ),
        (
            "2: half-written, proven",
            auto(),
            between(HEAD, UnfinishedState::Proven, true, None),
            Is(Resume),
        ),
        (
            "2: ... not",
            auto(),
            between(HEAD, UnfinishedState::Unproven, true, None),
            Is(Compare),
        ),
        (
            "2: ... same",
            auto(),
            between(HEAD, UnfinishedState::Unproven, true, same()),
            Is(Resume),
        ),
        (
            "2: ... 21 bytes",
            auto(),
            between(HEAD, UnfinishedState::Unproven, true, Some(foreign())),
            Refused(Remedy::DiscardForeignWrites),
        ),
        (
            "2: ... discarded",
            discarding(),
            between(HEAD, UnfinishedState::Unproven, true, Some(foreign())),
            Is(TakeOver(id(HELD))),
        ),
        (
            "2: ... no digests",
            auto(),
            between(HEAD, UnfinishedState::Unproven, false, None),
            Is(Full),
        ),
        ("3: a record", auto(), recorded(Device), delta()),
        ("3: swapped", auto(), swapped.clone(), overwrite()),
        (
            "3: swapped, all",
            job(Base::None),
            swapped.clone(),
            overwrite(),
        ),
        ("3: named", named(Base::None), swapped, Is(Full)),
        (
            "3: no identity",
            auto(),
            by_path,
            Refused(Remedy::Overwrite("/dev/sdb".into())),
        ),
        ("4: another volume", auto(), other.clone(), overwrite()),
        ("4: ... all", job(Base::None), other.clone(), overwrite()),
        ("4: ... named", named(Base::Auto), other.clone(), Is(Full)),
        (
            "4: ... whatever a person says of what is proven",
            trusting(HELD, Base::Auto),
            other,
            overwrite(),
        ),
    ]);
}

#[test]
fn every_common_base_is_tried_and_never_one_that_is_not_proven() {
    let two = account(&[replica(OTHER, false), replica(HELD, false)], Some(false));
    let mut none = account(&[], Some(false));
    none.facts.no_base = Some("1 is not proven: tags can be copied".into());
    let mut held = two.clone();
    held.facts.holds = Some(id("snap-98"));
    check(vec![
        (
            "5: a copied tag",
            since(HELD),
            none.clone(),
            Refused(Remedy::CopyAll),
        ),
        ("5: ... auto", auto(), none, Is(Full)),
        ("5: twice", auto(), held, Is(Holds)),
        (
            "6: newest first",
            auto(),
            two.clone(),
            Is(Delta(vec![id(OTHER), id(HELD)])),
        ),
        (
            "6: the named one",
            since(HELD),
            two,
            Is(Delta(vec![id(HELD)])),
        ),
    ]);
}

#[test]
fn a_stale_run_blocks_no_later_one() {
    let delta = || Is(Delta(vec![id(HELD)]));
    let proven = |head| part(head, UnfinishedState::Proven, recorded(Image));
    let mut in_place = recorded(ImageInPlace);
    in_place.unfinished = Some((task(&snapshot(None), true, Some(HELD)), 7));
    let restarting = SyncJob {
        restart: true,
        ..auto()
    };
    check(vec![
        ("the same command", auto(), proven(HEAD), Is(Resume)),
        ("restarted", restarting, proven(HEAD), delta()),
        (
            "the next night",
            auto(),
            proven(LATER),
            Is(TakeOverPart(id(LATER))),
        ),
        (
            "the part is gone",
            auto(),
            part(HEAD, UnfinishedState::Absent, recorded(Image)),
            delta(),
        ),
        ("begun, not written", auto(), in_place, delta()),
        (
            "taken over",
            auto(),
            between(LATER, UnfinishedState::Proven, true, None),
            Is(TakeOver(id(HELD))),
        ),
        (
            "copied again",
            job(Base::None),
            between(LATER, UnfinishedState::Proven, true, None),
            Is(Full),
        ),
        // The image was started in a failover while its next part lay beside it.
        (
            "the image that the part replaces is compared",
            auto(),
            part(HEAD, UnfinishedState::Proven, changed(Image, true, None)),
            Is(Compare),
        ),
        (
            "... and not replaced",
            auto(),
            part(
                HEAD,
                UnfinishedState::Proven,
                changed(Image, true, Some(foreign())),
            ),
            Refused(Remedy::DiscardForeignWrites),
        ),
        (
            "... nor is what has come in its place",
            auto(),
            part(HEAD, UnfinishedState::Proven, seen(Image, There)),
            overwrite(),
        ),
    ]);
}

#[test]
fn one_bad_target_is_refused_and_the_others_decided() {
    let mut full = seen(Device, There);
    full.facts.fixed_size = Some(SIZE - 512);
    let source = snapshot(Some(false));
    let small = decide(&auto(), &source, &full).refusal().unwrap();
    assert_eq!((small.kind(), small.kind().exit_code()), (Kind::Invalid, 2));
    let good = decide(&auto(), &source, &recorded(Device)).decision;
    assert_eq!(good, Delta(vec![id(HELD)]));
}

#[test]
fn an_encrypted_source_is_copied_plain_only_if_allowed() {
    let allowing = |base| SyncJob {
        allow_plaintext: true,
        ..job(base)
    };
    let plain = || Refused(Remedy::AllowPlaintext);
    let repository = || seen(TargetKind::Repository, Absent);
    let mixed = [replica(OTHER, true), replica(HELD, false)];
    let mut begun = account(&[], Some(false));
    begun.unfinished = Some((task(&snapshot(None), false, None), 7));
    begun.facts.left = UnfinishedState::Proven;
    let all = Base::None;
    check_from(
        &snapshot(Some(true)),
        vec![
            (
                "plain Region",
                job(all.clone()),
                account(&[], Some(false)),
                plain(),
            ),
            ("who knows", job(all.clone()), account(&[], None), plain()),
            (
                "encrypted",
                job(all.clone()),
                account(&[], Some(true)),
                Is(Full),
            ),
            (
                "allowed",
                allowing(all.clone()),
                account(&[], Some(false)),
                Is(Full),
            ),
            ("a repository", job(all), repository(), plain()),
            (
                "a plain parent",
                auto(),
                account(&mixed[1..], Some(true)),
                plain(),
            ),
            (
                "the plain parent is left out",
                auto(),
                account(&mixed, Some(true)),
                Is(Delta(vec![id(OTHER)])),
            ),
            ("begun when it was unknown", auto(), begun, plain()),
            (
                "an image",
                auto(),
                recorded(Image),
                Is(Delta(vec![id(HELD)])),
            ),
        ],
    );
    let decided = decide(&auto(), &snapshot(Some(true)), &recorded(Device));
    assert!(decided.warnings[0].contains("is encrypted, and /dev/sdb is not"));
}

#[test]
fn trust_applies_to_unproven_content_and_covers_untouched_blocks_of_an_unfinished_run() {
    let base = || Base::Snapshot(id(HELD));
    let between = || between(HEAD, UnfinishedState::Unproven, false, None);
    check(vec![
        (
            "proven otherwise",
            trusting(OTHER, Base::Auto),
            recorded(Image),
            Is(Delta(vec![id(HELD)])),
        ),
        (
            "the source",
            trusting(HEAD, Base::Auto),
            seen(Device, There),
            Is(Holds),
        ),
        (
            "no leave to overwrite",
            trusting(HELD, Base::None),
            seen(Device, There),
            overwrite(),
        ),
        (
            "a base",
            trusting(HELD, base()),
            seen(Device, There),
            Is(Delta(vec![id(HELD)])),
        ),
        (
            "unproven",
            since(HELD),
            between(),
            Refused(Remedy::Trust(HELD.into())),
        ),
        ("resumed", trusting(HELD, base()), between(), Is(Resume)),
        (
            "another",
            trusting(OTHER, Base::Auto),
            between(),
            Is(Delta(vec![id(OTHER)])),
        ),
    ]);
}

#[test]
fn a_target_that_takes_no_delta_gets_all_blocks_and_no_part_of_another_snapshot() {
    let source = snapshot(Some(false));
    let limited = |mut seen: Observed| {
        seen.facts.takes_no_delta = true;
        seen.facts.keeps_no_part = true;
        seen
    };
    let held = || limited(recorded(TargetKind::Image));
    for base in [Base::None, Base::Auto] {
        let decided = decide(&job(base), &source, &held());
        assert_eq!(decided.decision, Decision::Full);
    }
    let decided = decide(&job(Base::Snapshot(id(HELD))), &source, &held());
    let refused = decided.refusal().unwrap();
    assert!(refused.chain().contains("takes all blocks"));
    assert_eq!(refused.remedy(), Some(&Remedy::CopyAll));
    // It holds the source already: there is no delta to take.
    let mut same = held();
    same.record = Some(holds(HEAD, Some(VOLUME), Some(mark(1))));
    let decided = decide(&job(Base::Snapshot(id(HELD))), &source, &same);
    assert_eq!(decided.decision, Decision::Holds);
    // Its own part is resumed, one of another snapshot is dropped.
    let own = part(HEAD, UnfinishedState::Proven, held());
    let decided = decide(&job(Base::Auto), &source, &own);
    assert_eq!(decided.decision, Decision::Resume);
    let other = part(LATER, UnfinishedState::Proven, held());
    let decided = decide(&job(Base::Auto), &source, &other);
    assert_eq!(decided.decision, Decision::Full);
    assert!(decided.drops_unfinished);
}
