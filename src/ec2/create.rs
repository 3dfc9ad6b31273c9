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
            let name = |action, target| CallName {
                action,
                target,
                repeat: Repeat::Never,
            };
            let description = request.description.clone();
            let tagged = TagSpecification::builder()
                .resource_type(ResourceType::Snapshot)
                .set_tags(Some(request.tags.iter().map(tag).collect()))
                .build();
            match &request.of {
                SnapshotsOf::Volume(id) => {
                    let send = |watch| {
                        let call = self.sdk.create_snapshot().volume_id(id);
                        let call = call.set_description(description.clone());
                        let call = call.tag_specifications(tagged.clone());
                        call.customize().interceptor(watch).send()
                    };
                    let name = name(IamAction::CreateSnapshot.name(), id);
                    let made = call(&self.access, name, &|_| {}, send).await;
                    outcome(name, made.map(|reply| vec![of_volume(reply)]))
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
                        let call = call.set_description(description.clone());
                        let call = call.tag_specifications(tagged.clone());
                        let copied = copies_tags.then_some(CopyTagsFromSource::Volume);
                        let call = call.set_copy_tags_from_source(copied);
                        call.customize().interceptor(watch).send()
                    };
                    let name = name(IamAction::CreateSnapshots.name(), id);
                    let made = call(&self.access, name, &|_| {}, send).await;
                    let each = |infos: Vec<SnapshotInfo>| infos.into_iter().map(of_set).collect();
                    outcome(
                        name,
                        made.map(|reply| each(reply.snapshots.unwrap_or_default())),
                    )
                }
            }
        }
        .boxed()
    }

    fn may_create<'a>(&'a self, volume: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            let name = CallName {
                action: IamAction::CreateSnapshot.name(),
                target: volume,
                repeat: Repeat::Never,
            };
            let send = |watch| {
                let call = self.sdk.create_snapshot().volume_id(volume).dry_run(true);
                call.customize().interceptor(watch).send()
            };
            let answer = call(&self.access, name, &|_| {}, send).await;
            dry_run(answer)
        }
        .boxed()
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

/// Classifies the answer to a dry run, whose success is the error `DryRunOperation`:
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateSnapshot.html>.
fn dry_run(answer: std::result::Result<CreateSnapshotOutput, CallRefusal>) -> Result<()> {
    match answer {
        Err(refused) if refused.code == "DryRunOperation" => Ok(()),
        Err(refused) => Err(refused.error),
        Ok(made) => {
            let id = made.snapshot_id.unwrap_or_default();
            let what = format!("the service knows no dry run and has made {id:?}: delete it");
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
