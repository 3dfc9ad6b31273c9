//! [`decide`] as tables: the full product of what can be asked and observed, each row checked against rules that are written
//! without a look at the code; and golden rows for people.

mod golden;
mod local;
mod new;
mod room;

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::block::Geometry;
use crate::files::FileMark;
use crate::target::{Content, Existence, Mark, Replica, UnfinishedState};

const SIZE: u64 = 64 << 20;
/// What is copied, a snapshot of the volume.
const HEAD: &str = "snap-0b";
/// What most records say that the target holds: an older snapshot of the volume.
const HELD: &str = "snap-0a";
/// Another snapshot.
const OTHER: &str = "snap-0c";
/// What an unfinished run of another command was to copy.
const LATER: &str = "snap-0d";
/// A snapshot of another volume.
const FOREIGN: &str = "snap-0f";
const VOLUME: &str = "vol-1";
const ID: &str = "target";
const TOKEN: &str = "wwn-1";
/// The run that a checkpoint speaks of.
const RUN: &str = "unfinished";

fn id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

fn mark(number: u64) -> Mark {
    Mark::Image(FileMark {
        inode: number,
        size: SIZE,
        modified_ns: 1,
        changed_ns: 1,
        born_ns: Some(1),
    })
}

/// A snapshot of the volume.
fn snapshot(encrypted: Option<bool>) -> SourceInfo {
    SourceInfo {
        name: HEAD.into(),
        geometry: Geometry::new(SIZE).unwrap(),
        size: None,
        mark: None,
        volume: Some(VOLUME.into()),
        volume_key: crate::target::VolumeKey::default(),
        encrypted,
        snapshot: None,
        has_changes: true,
        damaged_in_source: 0,
    }
}

/// An image of this machine.
fn image() -> SourceInfo {
    SourceInfo {
        name: "/srv/source.raw".into(),
        mark: Some(mark(100)),
        volume: None,
        has_changes: false,
        ..snapshot(Some(false))
    }
}

/// The run of the same command as a job with this base would make.
fn task(source: &SourceInfo, in_place: bool, base: Option<&str>) -> Task {
    Task {
        run: RUN.into(),
        after: None,
        in_place,
        source: source.name.clone(),
        source_mark: source.mark.clone(),
        volume: source.volume.clone(),
        base: base.map(str::to_owned),
        target: ID.into(),
        target_name: ID.into(),
    }
}

fn record(run: &str, content: Content, volume: Option<&str>, mark: Option<Mark>) -> TargetRecord {
    TargetRecord {
        run: run.into(),
        target: ID.into(),
        content,
        volume: volume.map(str::to_owned),
        volume_bytes: SIZE,
        mark,
        time: None,
        replica: None,
        damaged: Vec::new(),
        damaged_in_source: 0,
        is_old_format: false,
        report: Value::Null,
    }
}

fn holds(held: &str, volume: Option<&str>, mark: Option<Mark>) -> TargetRecord {
    record("old", Content::Holds(held.into()), volume, mark)
}

fn seen(kind: TargetKind, existence: Existence) -> Observed {
    let mut facts = Facts::of(TOKEN, existence);
    facts.other_tokens.push("/dev/sdb".into());
    if existence != Existence::Absent {
        facts.mark = Some(mark(1));
    }
    Observed {
        kind,
        name: "/dev/sdb".into(),
        id: ID.into(),
        facts,
        record: None,
        unfinished: None,
        has_digests: false,
        unfinished_has_digests: false,
        compared: None,
    }
}

fn foreign() -> Comparison {
    Comparison::Foreign {
        blocks: 2,
        ranges: "1 MiB at 3 MiB".into(),
    }
}

fn job(base: Base) -> SyncJob {
    SyncJob {
        base,
        ..SyncJob::full()
    }
}

fn remedy(decided: &Decided) -> Option<&Remedy> {
    match &decided.decision {
        Decision::Refuse { remedy, .. } => remedy.as_ref(),
        _ => None,
    }
}

fn is_refused(decided: &Decided) -> bool {
    matches!(decided.decision, Decision::Refuse { .. })
}

/// The job after a person has followed a remedy; none where it is nothing that a job says.
fn follow(job: &SyncJob, remedy: &Remedy) -> Option<SyncJob> {
    let mut job = job.clone();
    match remedy {
        Remedy::Restart => job.restart = true,
        Remedy::Overwrite(token) => job.overwrite.push(token.clone()),
        Remedy::DiscardForeignWrites => job.discard_foreign_writes = true,
        Remedy::Trust(trusted) => job.trust = Some(id(trusted)),
        Remedy::CopyAll => job.base = Base::None,
        Remedy::BaseAuto => job.base = Base::Auto,
        Remedy::AllowPlaintext => job.allow_plaintext = true,
        Remedy::MarkDamage
        | Remedy::CompareUnrelated
        | Remedy::ReplayInOverlay
        | Remedy::NoOverlay
        | Remedy::TryLater
        | Remedy::Fetch(_)
        | Remedy::NamePartition
        | Remedy::ReplaceFiles
        | Remedy::StreamFiles
        | Remedy::NameScratch
        | Remedy::KeepConsole
        | Remedy::BootDisks
        | Remedy::GuestMemory
        | Remedy::ReplaceRecord
        | Remedy::InitRepository(_)
        | Remedy::AcceptMissing { .. }
        | Remedy::ForgetRun { .. }
        | Remedy::RemoveAll
        | Remedy::AdoptCycle(_)
        | Remedy::Unpin(_)
        | Remedy::AllowWrites
        | Remedy::GiveRegion(_)
        | Remedy::GiveCredentials(_)
        | Remedy::Do(_) => return None,
    }
    Some(job)
}

/// Every refusal that a person must decide says what can be done, and who does what it says gets on.
fn remedies_lead_on(
    job: &SyncJob,
    source: &SourceInfo,
    seen: &Observed,
    first: &Decided,
) -> Result<(), String> {
    let mut tried = Vec::new();
    let (mut job, mut decided) = (job.clone(), first.clone());
    while let Decision::Refuse { reason, remedy, .. } = &decided.decision {
        let Some(remedy) = remedy.clone() else {
            return Err(format!("no remedy: {reason}"));
        };
        if tried.contains(&remedy) {
            return Err(format!(
                "{remedy:?} was followed, {tried:?}, and yet: {reason}"
            ));
        }
        let Some(next) = follow(&job, &remedy) else {
            return Ok(());
        };
        tried.push(remedy);
        job = next;
        decided = decide(&job, source, seen);
    }
    Ok(())
}

/// Rules that were broken: how often, and where first.
#[derive(Default)]
struct Broken(RefCell<BTreeMap<String, (u64, String)>>);

impl Broken {
    fn must(&self, holds: bool, rule: &str, row: impl FnOnce() -> String) {
        if !holds {
            let mut rules = self.0.borrow_mut();
            let first = || (0, row());
            rules.entry(rule.to_owned()).or_insert_with(first).0 += 1;
        }
    }

    fn check(&self) {
        let rules = self.0.borrow();
        for (rule, (count, row)) in &*rules {
            println!("broken {count} times: {rule}\n{row}\n");
        }
        assert!(rules.is_empty());
    }
}

/// What stands in the way comes before everything else, for every kind of target and whatever is asked.
#[test]
fn obstacles_and_size_refuse_before_all_else() {
    let mut rows = 0;
    for kind in KINDS {
        for (base, restart, named, discard) in
            product4(&bases(), &[false, true], &[false, true], &[false, true])
        {
            for (obstacles, fits) in product2(&[0, 1, 2], &[None, Some(true), Some(false)]) {
                for record in [None, Some(holds(HEAD, Some(VOLUME), Some(mark(1))))] {
                    let job = SyncJob {
                        restart,
                        overwrite: named.then(|| TOKEN.to_owned()).into_iter().collect(),
                        discard_foreign_writes: discard,
                        ..job(base.clone())
                    };
                    let mut seen = seen(kind, Existence::There);
                    seen.record = record;
                    seen.facts.obstacles = vec!["it is mounted at /a".into(); obstacles];
                    seen.facts.fixed_size = fits.map(|fits| if fits { SIZE } else { SIZE - 512 });
                    let decided = decide(&job, &snapshot(Some(false)), &seen);
                    let expected = match (obstacles, fits) {
                        (1.., _) => Some((Kind::Io, Some(Remedy::TryLater))),
                        (0, Some(false)) => Some((Kind::Invalid, None)),
                        _ => None,
                    };
                    rows += 1;
                    match (&decided.decision, expected) {
                        (Decision::Refuse { kind, remedy, .. }, Some(expected)) => {
                            assert_eq!((*kind, remedy.clone()), expected);
                        }
                        (Decision::Refuse { kind, .. }, None) => {
                            assert_eq!(*kind, Kind::Undecided);
                        }
                        (_, None) => {}
                        (decision, Some(_)) => panic!("{decision:?}"),
                    }
                    let error = decided.refusal();
                    assert_eq!(error.is_some(), is_refused(&decided));
                }
            }
        }
    }
    println!("obstacles and size: {rows} rows");
    assert_eq!(rows, 2880);
}

const KINDS: [TargetKind; 5] = [
    TargetKind::Image,
    TargetKind::ImageInPlace,
    TargetKind::Device,
    TargetKind::Ebs,
    TargetKind::Repository,
];

fn bases() -> [Base; 4] {
    [
        Base::None,
        Base::Auto,
        Base::Snapshot(id(HELD)),
        Base::Snapshot(id(OTHER)),
    ]
}

fn product2<A: Clone, B: Clone>(a: &[A], b: &[B]) -> Vec<(A, B)> {
    let all = a
        .iter()
        .flat_map(|a| b.iter().map(|b| (a.clone(), b.clone())));
    all.collect()
}

fn product4<A: Clone, B: Clone, C: Clone, D: Clone>(
    a: &[A],
    b: &[B],
    c: &[C],
    d: &[D],
) -> Vec<(A, B, C, D)> {
    let all = product2(&product2(a, b), &product2(c, d));
    all.into_iter()
        .map(|((a, b), (c, d))| (a, b, c, d))
        .collect()
}
