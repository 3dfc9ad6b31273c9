//! What is observed of an account that a stand-in describes.

use futures_util::future::ready;

use super::*;
use crate::ebs::EbsCatalog;
use crate::target::{Base, Existence};

/// An account that holds these snapshots; none when asking is denied.
struct Account(Option<Vec<Snapshot>>);

impl Descriptions for Account {
    fn describe<'a>(&'a self, select: &'a [Selector]) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        let Some(all) = &self.0 else {
            return ready(Err(Error::new(Kind::Denied, "ec2:DescribeSnapshots"))).boxed();
        };
        assert!(!select.is_empty(), "all snapshots of the account");
        let matches = |snapshot: &&Snapshot| {
            select.iter().any(|selector| match selector {
                Selector::Snapshot(id) => snapshot.id == *id,
                Selector::Volume(volume) => snapshot.volume_id.as_ref() == Some(volume),
                Selector::Tag { key, value } => has_tag(snapshot, key, value),
            })
        };
        ready(Ok(all.iter().filter(matches).cloned().collect())).boxed()
    }

    fn encrypts_by_default(&self) -> BoxFuture<'_, Result<bool>> {
        ready(Err(Error::new(Kind::Denied, "not allowed"))).boxed()
    }

    fn add_tags<'a>(
        &'a self,
        _id: &'a SnapshotId,
        _tags: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<()>> {
        ready(Err(Error::new(Kind::Denied, "ec2:CreateTags"))).boxed()
    }
}

fn target(snapshots: Option<Vec<Snapshot>>, job: EbsJob) -> EbsTarget {
    let client = Arc::new(Client::unreachable());
    let place = EbsAccount {
        region: "us-east-1".into(),
        account: "here".into(),
        catalog: Arc::new(EbsCatalog::new(Arc::clone(&client), None, Vec::new())),
        client,
        descriptions: Arc::new(Account(snapshots)),
    };
    EbsTarget::new(place, job, &source(), Path::new("/state")).unwrap()
}

async fn look(target: &EbsTarget, base: &Base, replica: Option<&str>) -> Result<Facts> {
    let source = source();
    let ask = ObserveRequest {
        source: &source,
        base,
        left: None,
        replica,
    };
    target.observe(&ask).await
}

fn ids(facts: &Facts) -> Vec<&str> {
    let replicas = facts.replicas.iter();
    replicas.map(|replica| replica.id.as_str()).collect()
}

/// Two proven replicas of the volume, one that has a copied tag, and one that a record may name.
fn account() -> Vec<Snapshot> {
    let volume = (VOLUME_TAG, "vol-0a");
    let at = |seconds, snapshot| Snapshot {
        start_time: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        ..snapshot
    };
    vec![
        at(1, replica("snap-0a", &[volume, (SOURCE_TAG, ONE)])),
        at(3, replica("snap-0b", &[volume, (SOURCE_TAG, TWO)])),
        at(
            4,
            replica(
                "snap-0c",
                &[volume, (SOURCE_TAG, ONE), (SELF_TAG, "snap-0a")],
            ),
        ),
        at(
            2,
            replica(
                "snap-0d",
                &[volume, (SOURCE_TAG, "snap-03"), (SELF_TAG, "")],
            ),
        ),
    ]
}

#[tokio::test]
async fn proven_replicas_are_offered_newest_first() {
    let target = target(Some(account()), EbsJob::default());
    assert_eq!(target.id(), "ebs:us-east-1 (here) of vol-0a");
    assert_eq!(target.name(), "ebs:us-east-1");
    let stem = target.state().stem;
    assert_eq!(stem.parent(), Some(Path::new("/state")));
    assert_eq!(stem.file_name().unwrap().len(), 32);
    let facts = look(&target, &Base::Auto, None).await.unwrap();
    assert_eq!(ids(&facts), ["snap-0b", "snap-0a"]);
    assert_eq!(facts.holds, Some(id("snap-0b")));
    assert_eq!(facts.existence, Existence::Absent);
    // The permission to know is missing.
    assert_eq!(facts.encrypts, None);
    let facts = look(&target, &Base::Auto, Some("snap-0d")).await.unwrap();
    assert_eq!(ids(&facts), ["snap-0b", "snap-0d", "snap-0a"]);
    let facts = look(&target, &Base::Snapshot(id(ONE)), None).await.unwrap();
    assert_eq!(ids(&facts), ["snap-0a"]);
    assert_eq!(facts.no_base, None);
    let facts = look(&target, &Base::None, None).await.unwrap();
    assert!(facts.replicas.is_empty() && facts.no_base.is_none());
    assert_eq!(facts.holds, Some(id("snap-0b")));
}

#[tokio::test]
async fn a_base_without_a_proven_replica_is_reported() {
    let target = target(Some(account()), EbsJob::default());
    let why = |facts: Facts| facts.no_base.unwrap();
    let facts = look(&target, &Base::Snapshot(id("snap-03")), None)
        .await
        .unwrap();
    assert!(facts.replicas.is_empty());
    assert!(why(facts).contains("1 tagged ebsfs:source=snap-03 is not proven"));
    let facts = look(&target, &Base::Snapshot(id("snap-04")), None)
        .await
        .unwrap();
    assert_eq!(
        why(facts),
        "no completed snapshot in us-east-1 is a usable replica of snap-04"
    );
}

#[tokio::test]
async fn a_replica_with_another_key_is_not_offered_and_both_keys_are_named() {
    let mut account = account();
    for snapshot in &mut account {
        snapshot.encrypted = Some(true);
        snapshot.kms_key_id = Some("5678".into());
    }
    let job = EbsJob {
        kms_key: Some(KEY.into()),
        ..EbsJob::default()
    };
    let target = target(Some(account), job);
    let facts = look(&target, &Base::Auto, None).await.unwrap();
    assert!(facts.replicas.is_empty() && facts.holds.is_none());
    assert_eq!(facts.encrypts, Some(true));
    assert!(facts.warnings[0].contains("5678") && facts.warnings[0].contains(KEY));
    let facts = look(&target, &Base::Snapshot(id(ONE)), None).await.unwrap();
    let why = facts.no_base.unwrap();
    assert!(why.contains("5678") && why.contains(KEY), "{why}");
}

#[tokio::test]
async fn a_named_parent_must_exist_and_be_proven_to_hold_the_base() {
    let job = |parent| EbsJob {
        parent: Some(id(parent)),
        ..EbsJob::default()
    };
    let of = |parent| target(Some(account()), job(parent));
    let missing = look(&of("snap-0f"), &Base::None, None).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::Undecided);
    let held = look(&of("snap-0a"), &Base::Snapshot(id(ONE)), None)
        .await
        .unwrap();
    assert_eq!(ids(&held), ["snap-0a"]);
    assert_eq!(held.no_base, None);
    // Unencrypted as the parent is.
    assert_eq!(held.encrypts, Some(false));
    for (parent, base) in [
        ("snap-0a", Base::Snapshot(id(TWO))),
        ("snap-0c", Base::Snapshot(id(ONE))),
        ("snap-0d", Base::Auto),
    ] {
        let facts = look(&of(parent), &base, None).await.unwrap();
        assert!(facts.replicas.is_empty(), "{parent}");
        assert!(facts.no_base.unwrap().contains(parent));
    }
    let facts = look(&of("snap-0a"), &Base::Auto, None).await.unwrap();
    assert_eq!(ids(&facts), ["snap-0a"]);
    // What was made before was made of another parent.
    assert_eq!(facts.holds, None);
}

#[tokio::test]
async fn without_the_permission_to_look_nothing_is_held() {
    let target = target(None, EbsJob::default());
    let facts = look(&target, &Base::Auto, None).await.unwrap();
    assert!(facts.replicas.is_empty() && facts.no_base.is_none());
    assert_eq!((facts.holds.clone(), facts.warnings.len()), (None, 1));
    let facts = look(&target, &Base::Snapshot(id(ONE)), None).await.unwrap();
    assert!(facts.no_base.unwrap().contains("ec2:DescribeSnapshots"));
}

#[tokio::test]
async fn changed_blocks_without_their_replica_are_refused() {
    let target = target(Some(account()), EbsJob::default());
    let geometry = Geometry::new(GIB).unwrap();
    let plan = Arc::new(Delta::new(Some(geometry), geometry));
    let refused = target.adapt(Arc::clone(&plan), None).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
    let base = Replica {
        source: id(ONE),
        id: id("snap-0a"),
        volume_bytes: Some(2 * GIB),
        encrypted: Some(false),
    };
    let refused = target.adapt(plan, Some(&base)).await.unwrap_err();
    assert_eq!(refused.remedy(), Some(&Remedy::CopyAll));
}

#[test]
fn a_tag_of_ebsfs_itself_is_refused() {
    let job = EbsJob {
        tags: vec![(SELF_TAG.into(), ONE.into())],
        ..EbsJob::default()
    };
    let place = target(None, EbsJob::default()).place;
    let refused = EbsTarget::new(place, job, &source(), Path::new("/state"));
    assert_eq!(refused.unwrap_err().kind(), Kind::Invalid);
}
