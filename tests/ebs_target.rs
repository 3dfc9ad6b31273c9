//! A new EBS snapshot as a target, without the command line: what is started, tagged, found again and read back.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ebsfs::aws::ServiceConfig;
use ebsfs::block::{Block, BlockIndex, BlockSet, Change, Delta, Digest, Geometry};
use ebsfs::ebs::{Client, EbsCatalog, Limits, NewSnapshot};
use ebsfs::ec2::Ec2;
use ebsfs::error::{Kind, Remedy};
use ebsfs::snapshot::{Descriptions, Selector, Snapshot, SnapshotId, SnapshotState};
use ebsfs::target::{
    Base, Facts, ObserveRequest, Opened, Opening, Replica, SinkState, SourceInfo, Stop, Target,
    Task, UnfinishedState, Written,
};
use ebsfs::targets::{EbsAccount, EbsJob, EbsTarget};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use crate::support::*;

const GIB: u64 = 1 << 30;
const SOURCE: &str = "snap-0123";

/// An account, and what a command asks of it.
struct Case {
    emulator: Emulator,
    place: EbsAccount,
    named: Mutex<Vec<SinkState>>,
}

impl Case {
    async fn new() -> Self {
        let emulator = Emulator::start();
        let (id, secret) = emulator.keys();
        let service = ServiceConfig::fixed(&emulator.url(), "us-east-1", &id, &secret).unwrap();
        let client = Arc::new(Client::new(&service, &Limits::default()));
        let descriptions: Arc<dyn Descriptions> = Arc::new(Ec2::new(&service));
        let described = Some(Arc::clone(&descriptions));
        let place = EbsAccount {
            region: "us-east-1".into(),
            account: "test".into(),
            catalog: Arc::new(EbsCatalog::new(Arc::clone(&client), described, Vec::new())),
            client,
            descriptions,
        };
        Self {
            emulator,
            place,
            named: Mutex::default(),
        }
    }

    fn target(&self, job: &EbsJob) -> EbsTarget {
        let place = self.place.clone();
        EbsTarget::new(place, job.clone(), &source(SOURCE), Path::new("/state")).unwrap()
    }

    /// Opens the target as a run that begins, or resumes, does.
    async fn open(
        &self,
        target: &EbsTarget,
        plan: &Delta,
        base: Option<&Replica>,
        resume: Option<&SinkState>,
        restart: bool,
    ) -> ebsfs::error::Result<Opened> {
        let task = Task {
            run: format!("run-{restart}"),
            after: None,
            in_place: false,
            source: SOURCE.into(),
            source_mark: None,
            volume: Some("vol-0a".into()),
            base: None,
            target: target.id().into(),
            target_name: String::new(),
        };
        let name = |state: &SinkState| {
            self.named.lock().unwrap().push(state.clone());
            Ok(())
        };
        let opening = Opening {
            task: &task,
            plan,
            done: 0,
            source: &source(SOURCE),
            resume,
            base,
            mark: None,
            name: &name,
            files: "/nonexistent".into(),
            restart,
            rate: 1000,
            stop: &Stop::never(),
        };
        target.open(opening).await
    }

    async fn describe(&self, id: &str) -> Snapshot {
        let select = [Selector::Snapshot(id.parse().unwrap())];
        let found = self.place.descriptions.describe(&select).await.unwrap();
        found.into_iter().next().unwrap()
    }

    /// Writes the blocks of the plan and publishes; the snapshot's id.
    async fn finish(&self, opened: &Opened, plan: &Delta, damaged: &BlockSet) -> String {
        let mut written = Vec::new();
        for (extent, change) in plan.runs() {
            for index in extent.blocks() {
                if change == Change::Zero || damaged.contains(index) {
                    let one = ebsfs::block::Extent::of(index);
                    opened.sink.write_zeroes(one).await.unwrap();
                    written.push(Ok((index, None)));
                    continue;
                }
                let bytes = bytes_of(index);
                let digest: Digest = Sha256::digest(&bytes).into();
                let put = opened.sink.write_block(index, bytes, digest);
                put.await.unwrap();
                written.push(Ok((index, Some(digest))));
            }
        }
        let written: Written = Box::new(written.into_iter());
        let published = opened.sink.publish(written, damaged).await.unwrap();
        let id = published.snapshot.unwrap();
        assert_eq!(published.replica.unwrap().as_str(), id);
        id
    }
}

fn source(name: &str) -> SourceInfo {
    SourceInfo {
        name: name.into(),
        geometry: Geometry::new(GIB).unwrap(),
        size: None,
        mark: None,
        volume: Some("vol-0a".into()),
        volume_key: ebsfs::target::VolumeKey::default(),
        encrypted: Some(false),
        snapshot: Some(Snapshot::unknown(name.parse().unwrap())),
        has_changes: true,
        damaged_in_source: 0,
    }
}

async fn look(target: &EbsTarget, of: &str, base: Base, left: Option<&SinkState>) -> Facts {
    let ask = ObserveRequest {
        source: &source(of),
        base: &base,
        left,
        replica: None,
    };
    target.observe(&ask).await.unwrap()
}

fn bytes_of(index: BlockIndex) -> Bytes {
    content("vol-0a", index.0.into()).into()
}

fn full(blocks: &[u32]) -> Arc<Delta> {
    let mut held = BlockSet::new();
    blocks
        .iter()
        .for_each(|index| held.insert(BlockIndex(*index)));
    Arc::new(Delta::full(Geometry::new(GIB).unwrap(), &held, false))
}

/// The snapshot holds exactly these blocks; all others are zero.
async fn assert_holds(target: &EbsTarget, id: &str, blocks: &[u32]) {
    let geometry = Geometry::new(GIB).unwrap();
    let read = target.reader(Some(id), geometry).await.unwrap();
    for index in 0..geometry.block_count() {
        let index = BlockIndex(index);
        match read.read_block(index).await.unwrap() {
            Block::Zero => assert!(!blocks.contains(&index.0), "{index}"),
            Block::Data(bytes, _) => {
                assert!(blocks.contains(&index.0), "{index}");
                assert_eq!(bytes, bytes_of(index), "{index}");
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

#[test]
fn the_same_command_twice_makes_one_snapshot() {
    runtime().block_on(async {
        let case = Case::new().await;
        let target = case.target(&EbsJob::default());
        let facts = look(&target, SOURCE, Base::Auto, None).await;
        assert!(facts.holds.is_none() && facts.replicas.is_empty());
        assert_eq!(facts.encrypts, Some(false));
        let plan = target.adapt(full(&[0, 7, 2047]), None).await.unwrap();
        let opened = case.open(&target, &plan, None, None, false).await.unwrap();
        // Named before the start and after it, and when it is tagged.
        assert_eq!(case.named.lock().unwrap().len(), 3);
        assert!(!opened.zero_the_rest);
        let facts = look(&target, SOURCE, Base::Auto, Some(&opened.state)).await;
        assert_eq!((facts.left, facts.holds), (UnfinishedState::Proven, None));
        // The checkpoint is lost: the same command finds what it started; one with --restart does not.
        let again = case.open(&target, &plan, None, None, false).await.unwrap();
        assert_eq!(case.emulator.made().len(), 1);
        case.open(&target, &plan, None, None, true).await.unwrap();
        assert_eq!(case.emulator.made().len(), 2);
        let id = case.finish(&again, &plan, &BlockSet::new()).await;
        let made = case.describe(&id).await;
        assert_eq!(made.state, Some(SnapshotState::Completed));
        for (key, value) in [
            ("ebsfs:self", &*id),
            ("ebsfs:source", SOURCE),
            ("ebsfs:volume", "vol-0a"),
            ("ebsfs:size", "1073741824"),
        ] {
            assert_eq!(made.tags[key], value, "{key}");
        }
        assert_holds(&target, &id, &[0, 7, 2047]).await;
        // Another machine sees that it is there, and that a delta can start from it.
        let other = case.target(&EbsJob::default());
        let facts = look(&other, SOURCE, Base::Auto, Some(&opened.state)).await;
        assert_eq!(facts.holds.unwrap().as_str(), id);
        assert_eq!(facts.replicas[0].id.as_str(), id);
        // Only the end was missing: it is completed once more.
        assert_eq!(facts.left, UnfinishedState::Proven);
        let resumed = case.open(&other, &plan, None, Some(&opened.state), false);
        let resumed = resumed.await.unwrap();
        let digests = [0, 7, 2047].map(|index| {
            let index = BlockIndex(index);
            Ok((index, Some(Sha256::digest(bytes_of(index)).into())))
        });
        let written: Written = Box::new(digests.into_iter());
        let none = BlockSet::new();
        let published = resumed.sink.publish(written, &none).await.unwrap();
        assert_eq!(published.snapshot.unwrap(), id);
        // A write to it is refused with what to do.
        let zero = Bytes::from(vec![0; BLOCK as usize]);
        let late = resumed
            .sink
            .write_block(BlockIndex(1), zero, ebsfs::block::ZERO_BLOCK);
        assert_eq!(late.await.unwrap_err().remedy(), Some(&Remedy::Restart));
    });
}

#[test]
fn a_child_of_a_proven_replica_gets_only_changed_blocks() {
    runtime().block_on(async {
        let case = Case::new().await;
        let target = case.target(&EbsJob::default());
        let plan = target.adapt(full(&[0, 1, 2]), None).await.unwrap();
        let opened = case.open(&target, &plan, None, None, false).await.unwrap();
        let first = case.finish(&opened, &plan, &BlockSet::new()).await;
        // A snapshot of a volume with the same tags is no replica.
        case.emulator.make_volume("vol-0b", 2048, [9]);
        let drifted: SnapshotId = case.emulator.snapshot("vol-0b").parse().unwrap();
        let tags = case.describe(&first).await.tags.into_iter();
        let tags: Vec<_> = tags.collect();
        case.place
            .descriptions
            .add_tags(&drifted, &tags)
            .await
            .unwrap();
        let facts = look(&target, "snap-0124", Base::Auto, None).await;
        assert_eq!(facts.replicas.len(), 1);
        let base = &facts.replicas[0];
        assert_eq!((base.id.as_str(), base.source.as_str()), (&*first, SOURCE));
        let geometry = Geometry::new(GIB).unwrap();
        let mut delta = Delta::new(Some(geometry), geometry);
        delta.insert(BlockIndex(1), Change::Zero);
        delta.insert(BlockIndex(5), Change::Write);
        let plan = target.adapt(Arc::new(delta), Some(base)).await.unwrap();
        let opened = case
            .open(&target, &plan, Some(base), None, false)
            .await
            .unwrap();
        let child = case.finish(&opened, &plan, &BlockSet::new()).await;
        let tags = case.describe(&child).await.tags;
        assert_eq!(tags["ebsfs:parent"], first);
        assert_holds(&target, &child, &[0, 2, 5]).await;
    });
}

#[test]
fn without_create_tags_a_snapshot_is_made_and_is_proven_by_the_record_alone() {
    runtime().block_on(async {
        let case = Case::new().await;
        case.emulator.set("deny=ec2:CreateTags");
        let target = case.target(&EbsJob::default());
        let plan = target.adapt(full(&[3]), None).await.unwrap();
        let opened = case.open(&target, &plan, None, None, false).await.unwrap();
        let id = case.finish(&opened, &plan, &BlockSet::new()).await;
        assert!(!case.describe(&id).await.tags.contains_key("ebsfs:self"));
        let facts = look(&target, SOURCE, Base::Auto, None).await;
        assert!(facts.holds.is_none() && facts.replicas.is_empty());
        let of = source(SOURCE);
        let ask = ObserveRequest {
            source: &of,
            base: &Base::Auto,
            left: None,
            replica: Some(&id),
        };
        let facts = target.observe(&ask).await.unwrap();
        assert_eq!(facts.holds.unwrap().as_str(), id);
        // The record is lost: EBS answers with the completed snapshot, and another one is started.
        let opened = case.open(&target, &plan, None, None, false).await.unwrap();
        let other = case.finish(&opened, &plan, &BlockSet::new()).await;
        assert_ne!(other, id);
        assert_holds(&target, &other, &[3]).await;
    });
}

#[test]
fn a_snapshot_with_damaged_blocks_passes_for_no_whole_one() {
    runtime().block_on(async {
        let case = Case::new().await;
        case.emulator.set("encryption_by_default=1");
        let target = case.target(&EbsJob::default());
        let plan = target.adapt(full(&[3, 4]), None).await.unwrap();
        // Encrypted, what is absent reads as anything.
        assert_eq!(plan.zero().len(), 2046);
        let opened = case.open(&target, &plan, None, None, false).await.unwrap();
        assert!(opened.zero_the_rest);
        let mut damaged = BlockSet::new();
        damaged.insert(BlockIndex(4));
        let id = case.finish(&opened, &plan, &damaged).await;
        assert_eq!(case.describe(&id).await.tags["ebsfs:damaged"], "1");
        assert_holds(&target, &id, &[3]).await;
        let facts = look(&target, SOURCE, Base::Auto, None).await;
        assert!(facts.holds.is_none() && facts.replicas.is_empty());
    });
}

#[test]
fn a_refused_start_leaves_nothing_to_resume() {
    runtime().block_on(async {
        let case = Case::new().await;
        let target = case.target(&EbsJob::default());
        let plan = target.adapt(full(&[3]), None).await.unwrap();
        case.emulator.set("deny=ebs:StartSnapshot");
        let refused = case.open(&target, &plan, None, None, false).await;
        assert_eq!(refused.unwrap_err().kind(), Kind::Denied);
        case.emulator.set("deny=");
        let left = case.named.lock().unwrap().last().cloned();
        let facts = look(&target, SOURCE, Base::Auto, left.as_ref()).await;
        assert_eq!(facts.left, UnfinishedState::Absent);
        assert!(case.emulator.made().is_empty());
    });
}

/// EC2 of another account: it knows nothing of what EBS starts here. Each look takes a minute of tokio's clock.
struct Elsewhere;

impl Descriptions for Elsewhere {
    fn describe<'a>(
        &'a self,
        _: &'a [Selector],
    ) -> BoxFuture<'a, ebsfs::error::Result<Vec<Snapshot>>> {
        async {
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(60)).await;
            tokio::time::resume();
            Ok(Vec::new())
        }
        .boxed()
    }

    fn encrypts_by_default(&self) -> BoxFuture<'_, ebsfs::error::Result<bool>> {
        async { Ok(false) }.boxed()
    }

    fn add_tags<'a>(
        &'a self,
        _: &'a SnapshotId,
        _: &'a [(String, String)],
    ) -> BoxFuture<'a, ebsfs::error::Result<()>> {
        panic!("nothing is tagged that EC2 does not list")
    }
}

#[test]
fn two_new_snapshots_that_ec2_never_lists_end_the_run_with_the_reason() {
    // Of the kind whose clock can be paused.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut case = Case::new().await;
        case.place.descriptions = Arc::new(Elsewhere);
        let target = case.target(&EbsJob::default());
        let refused = case.open(&target, &full(&[3]), None, None, false).await;
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::Undecided);
        let said = error.chain();
        assert!(said.contains("AWS_ENDPOINT_URL_EC2"), "{said}");
        let made = case.emulator.made();
        assert_eq!(made.len(), 2, "{made:?}");
        assert!(made.iter().all(|(id, _)| said.contains(id)), "{said}");
    });
}

#[test]
fn an_unfinished_snapshot_of_another_job_is_left() {
    runtime().block_on(async {
        let case = Case::new().await;
        let target = case.target(&EbsJob::default());
        let plan = target.adapt(full(&[3]), None).await.unwrap();
        let opened = case.open(&target, &plan, None, None, false).await.unwrap();
        let job = EbsJob {
            tags: vec![("a".into(), "1".into())],
            ..EbsJob::default()
        };
        let other = case.target(&job);
        let facts = look(&other, SOURCE, Base::Auto, Some(&opened.state)).await;
        assert_eq!(facts.left, UnfinishedState::Absent);
        let id = &case.emulator.made()[0].0;
        assert!(facts.warnings[0].contains(id), "{:?}", facts.warnings);
        target.discard(&opened.state).await.unwrap();
        assert_eq!(case.emulator.made().len(), 1);
    });
}

#[test]
fn a_token_with_another_body_is_no_snapshot() {
    runtime().block_on(async {
        let case = Case::new().await;
        let new = |description: &str| NewSnapshot {
            volume_gib: 1,
            parent: None,
            tags: Vec::new(),
            description: description.into(),
            kms_key: None,
            client_token: "one".into(),
            timeout_minutes: 10,
        };
        let client = &case.place.client;
        let first = client.start_snapshot(&new("a")).await.unwrap().unwrap();
        let same = client.start_snapshot(&new("a")).await.unwrap().unwrap();
        assert_eq!(first.id, same.id);
        assert!(first.is_pending && first.start_time.is_some());
        assert!(client.start_snapshot(&new("b")).await.unwrap().is_none());
    });
}

#[test]
fn the_emulator_tags_all_or_nothing_also_while_pending() {
    runtime().block_on(async {
        let case = Case::new().await;
        let ec2 = &case.place.descriptions;
        let new = NewSnapshot {
            volume_gib: 1,
            parent: None,
            tags: vec![("a".into(), "1".into())],
            description: String::new(),
            kms_key: None,
            client_token: "one".into(),
            timeout_minutes: 10,
        };
        let started = case.place.client.start_snapshot(&new).await;
        let id = started.unwrap().unwrap().id;
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        ec2.add_tags(&id, &[tag("a", "2"), tag("b", "<&>")])
            .await
            .unwrap();
        let found = case.describe(id.as_str()).await;
        assert_eq!(found.state, Some(SnapshotState::Pending));
        let tags: Vec<_> = found.tags.into_iter().collect();
        assert_eq!(tags, [tag("a", "2"), tag("b", "<&>")]);
        let by_tag = [Selector::Tag {
            key: "b".into(),
            value: "<&>".into(),
        }];
        assert_eq!(ec2.describe(&by_tag).await.unwrap()[0].id, id);
        let missing: SnapshotId = "snap-0000000f".parse().unwrap();
        let many: Vec<_> = (0..50).map(|n| tag(&n.to_string(), "")).collect();
        for (id, tags, kind) in [
            (&missing, vec![tag("c", "1")], Kind::NotFound),
            (&id, vec![tag("aws:c", "1")], Kind::Invalid),
            (&id, many, Kind::Invalid),
        ] {
            assert_eq!(ec2.add_tags(id, &tags).await.unwrap_err().kind(), kind);
        }
        case.emulator.set("deny=ec2:CreateTags");
        let denied = ec2.add_tags(&id, &[tag("c", "1")]).await.unwrap_err();
        assert_eq!(denied.kind(), Kind::Denied);
        assert!(denied.chain().contains("snapshot/*"), "{denied:?}");
        assert_eq!(case.describe(id.as_str()).await.tags.len(), 2);
    });
}
