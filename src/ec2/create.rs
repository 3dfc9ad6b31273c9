//! CreateSnapshot and CreateSnapshots: one attempt each, with a [`Creation`] as its outcome; DeleteSnapshot.

use aws_sdk_ec2::operation::create_snapshot::CreateSnapshotOutput;
use aws_sdk_ec2::types::{
    CopyTagsFromSource, InstanceSpecification, ResourceType, SnapshotInfo, TagSpecification,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::call::{CallName, CallRefusal, Repeat, call};
use super::{Ec2, snapshot, tag};
use crate::aws::IamAction;
use crate::error::{Error, Kind, Result};
use crate::snapshot::{
    Creation, Deletion, InstanceInfo, NewSnapshots, Snapshot, SnapshotId, SnapshotMaker,
    SnapshotsOf, VolumeInfo, VolumeSelector,
};

impl SnapshotMaker for Ec2 {
    fn volumes<'a>(&'a self, select: &'a VolumeSelector) -> BoxFuture<'a, Result<Vec<VolumeInfo>>> {
        self.describe_volumes(select).boxed()
    }

    fn instances<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<InstanceInfo>>> {
        self.describe_instances(ids).boxed()
    }

    fn create<'a>(&'a self, request: &'a NewSnapshots) -> BoxFuture<'a, Result<Creation>> {
        async move {
            let name = call_name(request);
            let made = self.send(request, name, false).await;
            outcome(name, made)
        }
        .boxed()
    }

    fn may_create<'a>(&'a self, request: &'a NewSnapshots) -> BoxFuture<'a, Result<()>> {
        async move { dry_run(self.send(request, call_name(request), true).await) }.boxed()
    }

    fn delete<'a>(&'a self, id: &'a SnapshotId) -> BoxFuture<'a, Result<Deletion>> {
        async move {
            let name = CallName {
                action: IamAction::DeleteSnapshot.name(),
                target: id.as_str(),
                repeat: Repeat::Single,
            };
            let send = |watch| {
                let request = self.sdk.delete_snapshot().snapshot_id(id.as_str());
                request.customize().interceptor(watch).send()
            };
            let answer = call(&self.access, name, &|_| {}, send).await;
            deletion(answer.map(drop))
        }
        .boxed()
    }
}

/// The call that a request is, and what it is made on.
fn call_name(request: &NewSnapshots) -> CallName<'_> {
    let (action, target) = match &request.of {
        SnapshotsOf::Volume(id) => (IamAction::CreateSnapshot, id),
        SnapshotsOf::Instance { id, .. } => (IamAction::CreateSnapshots, id),
    };
    CallName {
        action: action.name(),
        target,
        repeat: Repeat::Never,
    }
}

impl Ec2 {
    /// Sends a request once: the snapshots that it made, none where the reply has no id.
    async fn send(
        &self,
        request: &NewSnapshots,
        name: CallName<'_>,
        is_dry: bool,
    ) -> std::result::Result<Vec<Option<Snapshot>>, CallRefusal> {
        let description = request.description.clone();
        let tagged = TagSpecification::builder()
            .resource_type(ResourceType::Snapshot)
            .set_tags(Some(request.tags.iter().map(tag).collect()))
            .build();
        let dry = is_dry.then_some(true);
        match &request.of {
            SnapshotsOf::Volume(id) => {
                let send = |watch| {
                    let call = self.sdk.create_snapshot().volume_id(id);
                    let call = call.set_description(description.clone()).set_dry_run(dry);
                    let call = call.tag_specifications(tagged.clone());
                    call.customize().interceptor(watch).send()
                };
                let made = call(&self.access, name, &|_| {}, send).await;
                made.map(|reply| vec![of_volume(reply)])
            }
            SnapshotsOf::Instance {
                id,
                without_boot,
                without,
                copies_tags,
            } => {
                let instance = InstanceSpecification::builder()
                    .instance_id(id)
                    .exclude_boot_volume(*without_boot)
                    .set_exclude_data_volume_ids((!without.is_empty()).then(|| without.clone()))
                    .build();
                let send = |watch| {
                    let call = self.sdk.create_snapshots();
                    let call = call.instance_specification(instance.clone());
                    let call = call.set_description(description.clone()).set_dry_run(dry);
                    let call = call.tag_specifications(tagged.clone());
                    let copied = copies_tags.then_some(CopyTagsFromSource::Volume);
                    let call = call.set_copy_tags_from_source(copied);
                    call.customize().interceptor(watch).send()
                };
                let made = call(&self.access, name, &|_| {}, send).await;
                let each = |infos: Vec<SnapshotInfo>| infos.into_iter().map(of_set).collect();
                made.map(|reply| each(reply.snapshots.unwrap_or_default()))
            }
        }
    }
}

/// Classifies the answer to a dry run, whose success is the error `DryRunOperation`:
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSnapshot.html>.
fn dry_run(answer: std::result::Result<Vec<Option<Snapshot>>, CallRefusal>) -> Result<()> {
    match answer {
        Err(refused) if refused.code == "DryRunOperation" => Ok(()),
        Err(refused) => Err(refused.error),
        Ok(made) => {
            let ids = made.into_iter().flatten().map(|made| made.id.to_string());
            let ids: Vec<String> = ids.collect();
            let what = format!(
                "the service knows no dry run and has made \"{}\": delete it",
                ids.join(", ")
            );
            Err(Error::new(Kind::Undecided, what))
        }
    }
}

/// Classifies the answer to a deletion. A repeated call finds nothing where the one before succeeded and its answer was lost.
fn deletion(answer: std::result::Result<(), CallRefusal>) -> Result<Deletion> {
    let error = match answer {
        Ok(()) => return Ok(Deletion::Deleted),
        Err(refused) => refused.error,
    };
    match error.kind() {
        Kind::NotFound => Ok(Deletion::Deleted),
        Kind::Denied => Ok(Deletion::Denied(error)),
        Kind::Throttled | Kind::Unavailable => Err(error),
        _ => Ok(Deletion::Refused(error)),
    }
}

/// Classifies an answer: only a refusal in EC2's own words proves that nothing was made.
fn outcome(
    name: CallName<'_>,
    answer: std::result::Result<Vec<Option<Snapshot>>, CallRefusal>,
) -> Result<Creation> {
    let refused = match answer {
        Ok(snapshots) => {
            let all: Option<Vec<_>> = snapshots.into_iter().collect();
            return Ok(match all.filter(|all| !all.is_empty()) {
                Some(all) => Creation::Made(all),
                None => {
                    let what = format!("{} {}: a reply without ids", name.action, name.target);
                    Creation::Unknown(Error::new(Kind::Unavailable, what))
                }
            });
        }
        Err(refused) => refused.error,
    };
    match refused.kind() {
        Kind::Throttled => Ok(Creation::Limited(refused)),
        Kind::Unavailable => Ok(Creation::Unknown(refused)),
        _ => Err(refused),
    }
}

fn of_volume(from: CreateSnapshotOutput) -> Option<Snapshot> {
    let described = aws_sdk_ec2::types::Snapshot::builder()
        .set_snapshot_id(from.snapshot_id)
        .set_volume_id(from.volume_id)
        .set_state(from.state)
        .set_start_time(from.start_time)
        .set_volume_size(from.volume_size)
        .set_encrypted(from.encrypted)
        .set_owner_id(from.owner_id)
        .set_description(from.description)
        .set_tags(from.tags);
    snapshot(described.build())
}

fn of_set(from: SnapshotInfo) -> Option<Snapshot> {
    let described = aws_sdk_ec2::types::Snapshot::builder()
        .set_snapshot_id(from.snapshot_id)
        .set_volume_id(from.volume_id)
        .set_state(from.state)
        .set_start_time(from.start_time)
        .set_volume_size(from.volume_size)
        .set_encrypted(from.encrypted)
        .set_owner_id(from.owner_id)
        .set_description(from.description)
        .set_tags(from.tags);
    snapshot(described.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: Kind) -> CallRefusal {
        CallRefusal {
            code: String::new(),
            message: String::new(),
            error: Error::new(kind, "why"),
        }
    }

    #[test]
    fn a_dry_run_is_allowed_refused_or_was_none() {
        let allowed = CallRefusal {
            code: "DryRunOperation".into(),
            ..refused(Kind::Invalid)
        };
        assert!(dry_run(Err(allowed)).is_ok());
        let denied = dry_run(Err(refused(Kind::Denied))).unwrap_err();
        assert_eq!(denied.kind(), Kind::Denied);
        let made = Some(Snapshot::unknown("snap-0a".parse().unwrap()));
        let made = dry_run(Ok(vec![made, None])).unwrap_err();
        assert_eq!(made.kind(), Kind::Undecided);
        assert!(made.chain().contains("has made \"snap-0a\""), "{made:?}");
    }

    #[test]
    fn only_a_refusal_or_a_whole_reply_proves_the_outcome() {
        let name = CallName {
            action: "ec2:CreateSnapshots",
            target: "i-0a",
            repeat: Repeat::Never,
        };
        let snapshot = || Some(Snapshot::unknown("snap-0a".parse().unwrap()));
        for (answer, expected) in [
            (Ok(vec![snapshot(), snapshot()]), "made 2"),
            (Ok(vec![snapshot(), None]), "unknown"),
            (Ok(vec![]), "unknown"),
            (Err(refused(Kind::Throttled)), "limited"),
            (Err(refused(Kind::Unavailable)), "unknown"),
            (Err(refused(Kind::Denied)), "refused"),
            (Err(refused(Kind::Invalid)), "refused"),
            (Err(refused(Kind::NotFound)), "refused"),
        ] {
            let found = match outcome(name, answer) {
                Ok(Creation::Made(made)) => format!("made {}", made.len()),
                Ok(Creation::Limited(_)) => "limited".to_owned(),
                Ok(Creation::Unknown(_)) => "unknown".to_owned(),
                Err(_) => "refused".to_owned(),
            };
            assert_eq!(found, expected);
        }
    }
}
