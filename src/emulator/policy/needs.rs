//! What each call needs: actions of IAM and KMS, the resources they are on, and the values of condition keys.
//!
//! Resources are those of the Service Authorization Reference. If recordings of the real service differ, the recordings win: a
//! StartSnapshot without a parent is decided on `snapshot/*`, one with a parent on the parent; a comparison needs both
//! snapshots; a call needs the KMS actions without which AWS refused it.

use std::collections::BTreeMap;

use hyper::http::request::Parts;
use serde::Deserialize;

use super::condition::AccessContext;
use crate::emulator::call::EmulatedCall;
use crate::emulator::caller::{Caller, RoleArn};
use crate::emulator::direct::Query;
use crate::emulator::ec2::QueryForm;
use crate::emulator::reply::Refusal;
use crate::emulator::sessions::RoleRequest;
use crate::emulator::{ACCOUNT, Emulator};

/// One action that a call needs.
#[derive(Clone, Debug)]
pub(super) struct AccessRequest {
    pub(super) action: String,
    pub(super) resource: String,
    pub(super) context: AccessContext,
    /// What it is on, if that has a policy of its own.
    pub(super) grantor: Option<PolicyGrantor>,
}

/// A resource whose own policy grants access to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PolicyGrantor {
    /// The KMS key of this ARN.
    Key(String),
    /// The role, by its trust policy.
    Role(RoleArn),
}

/// The tags and the parent of a StartSnapshot. The call itself reads the other members.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartNeeds {
    parent_snapshot_id: Option<String>,
    tags: Option<Vec<TagNeed>>,
    kms_key_arn: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TagNeed {
    key: String,
    #[serde(default)]
    value: String,
}

/// What is known of a snapshot that is named.
#[derive(Default)]
struct NamedSnapshot {
    tags: BTreeMap<String, String>,
    key: Option<String>,
    /// The volume that it was made of.
    volume: Option<String>,
}

/// Makes the requests of one call.
struct NeedList<'a> {
    caller: &'a Caller,
    all: Vec<AccessRequest>,
}

impl NeedList<'_> {
    fn context(&self) -> AccessContext {
        let mut context = AccessContext::default();
        context.add("aws:RequestedRegion", &self.caller.region);
        context.add("aws:PrincipalArn", &self.caller.principal_arn());
        context.add("aws:PrincipalAccount", self.caller.account());
        context
    }

    fn snapshot(&self, id: &str) -> String {
        format!("arn:aws:ec2:{}::snapshot/{id}", self.caller.region)
    }

    fn of_account(&self, kind: &str, id: &str) -> String {
        format!("arn:aws:ec2:{}:{ACCOUNT}:{kind}/{id}", self.caller.region)
    }

    fn add(&mut self, action: &str, resource: String, context: AccessContext) {
        self.all.push(AccessRequest {
            action: action.to_owned(),
            resource,
            context,
            grantor: None,
        });
    }

    /// An action on this snapshot.
    fn add_on(&mut self, action: &str, id: &str, named: &NamedSnapshot) {
        let mut context = self.context();
        self.describe(&mut context, action, named);
        self.add(action, self.snapshot(id), context);
    }

    /// The values of condition keys that a snapshot has. Only actions of EC2 know the volume that it was made of.
    fn describe(&self, context: &mut AccessContext, action: &str, named: &NamedSnapshot) {
        add_tags(context, action, &named.tags);
        if let Some(volume) = named
            .volume
            .as_deref()
            .filter(|_| action.starts_with("ec2:"))
        {
            context.add("ec2:ParentVolume", &self.of_account("volume", volume));
        }
    }

    /// KMS actions on a customer managed key. All users of the account may use the AWS managed key of EBS.
    fn add_kms(&mut self, key: Option<&str>, actions: &[&str]) {
        let Some(key) = key.filter(|key| !is_own_key_of_ebs(key)) else {
            return;
        };
        for action in actions {
            let mut context = self.context();
            let via = format!("ec2.{}.amazonaws.com", self.caller.region);
            context.add("kms:ViaService", &via);
            context.add("kms:CallerAccount", self.caller.account());
            self.all.push(AccessRequest {
                action: (*action).to_owned(),
                resource: key.to_owned(),
                context,
                grantor: Some(PolicyGrantor::Key(key.to_owned())),
            });
        }
    }

    /// The tags that a new snapshot starts with.
    fn add_new_tags(&mut self, tags: &BTreeMap<String, String>, creating: Option<&str>) {
        if tags.is_empty() {
            return;
        }
        let mut context = self.context();
        add_request_tags(&mut context, tags);
        if let Some(creating) = creating {
            context.add("ec2:CreateAction", creating);
        }
        self.add("ec2:CreateTags", self.snapshot("*"), context);
    }
}

fn is_own_key_of_ebs(key: &str) -> bool {
    key.ends_with(":key/aws-ebs")
}

/// The tags of the resource of an action. Only actions of EC2 know them as `ec2:ResourceTag/KEY` too.
fn add_tags(context: &mut AccessContext, action: &str, tags: &BTreeMap<String, String>) {
    for (key, value) in tags {
        context.add(&format!("aws:ResourceTag/{key}"), value);
        if action.starts_with("ec2:") {
            context.add(&format!("ec2:ResourceTag/{key}"), value);
        }
    }
}

fn add_request_tags(context: &mut AccessContext, tags: &BTreeMap<String, String>) {
    for (key, value) in tags {
        context.add(&format!("aws:RequestTag/{key}"), value);
        context.add("aws:TagKeys", key);
    }
}

impl Emulator {
    fn named_snapshot(&self, id: &str) -> NamedSnapshot {
        let store = self.store.lock();
        let record = store.get(id).map(|snapshot| &snapshot.record);
        record.map_or_else(NamedSnapshot::default, |record| NamedSnapshot {
            tags: record.tags.clone(),
            key: record.kms_key.clone(),
            volume: Some(record.volume_id.clone()),
        })
    }

    /// What a call needs, in the order of the decisions.
    pub(super) fn access_requests(
        &self,
        caller: &Caller,
        call: &EmulatedCall,
        parts: &Parts,
        body: &[u8],
    ) -> Result<Vec<AccessRequest>, Refusal> {
        let mut list = NeedList {
            caller,
            all: Vec::new(),
        };
        let own = format!("{}:{}", call.service(), call.name());
        match call {
            EmulatedCall::ListSnapshotBlocks(id) => {
                let named = self.named_snapshot(id);
                list.add_on(&own, id, &named);
                list.add_kms(named.key.as_deref(), &["kms:DescribeKey"]);
            }
            EmulatedCall::ListChangedBlocks(id) => {
                let query = Query::parse(parts.uri.query().unwrap_or_default());
                for id in [query.get("firstSnapshotId"), Some(id.as_str())]
                    .into_iter()
                    .flatten()
                {
                    let named = self.named_snapshot(id);
                    list.add_on(&own, id, &named);
                    list.add_kms(named.key.as_deref(), &["kms:DescribeKey"]);
                }
            }
            EmulatedCall::GetSnapshotBlock(id, _) => {
                let named = self.named_snapshot(id);
                list.add_on(&own, id, &named);
                list.add_kms(named.key.as_deref(), &["kms:DescribeKey", "kms:Decrypt"]);
            }
            EmulatedCall::PutSnapshotBlock(id, _) | EmulatedCall::CompleteSnapshot(id) => {
                list.add_on(&own, id, &self.named_snapshot(id));
            }
            EmulatedCall::StartSnapshot => self.start_needs(&mut list, &own, body),
            EmulatedCall::Ec2(action) => {
                let form = QueryForm::parse(body);
                self.ec2_needs(&mut list, action, &own, &form)?;
            }
            EmulatedCall::Unknown => {}
        }
        Ok(list.all)
    }

    /// A body that cannot be parsed needs nothing here: the call itself refuses it.
    fn start_needs(&self, list: &mut NeedList<'_>, own: &str, body: &[u8]) {
        let start: StartNeeds = serde_json::from_slice(body).unwrap_or_default();
        let tags = start.tags.unwrap_or_default().into_iter();
        let tags: BTreeMap<String, String> = tags.map(|tag| (tag.key, tag.value)).collect();
        let mut context = list.context();
        add_request_tags(&mut context, &tags);
        let parent = start.parent_snapshot_id.as_deref();
        let named = parent.map(|id| self.named_snapshot(id)).unwrap_or_default();
        if let Some(id) = parent {
            add_tags(&mut context, own, &named.tags);
            context.add("ebs:ParentSnapshot", &list.snapshot(id));
        }
        let resource = list.snapshot(parent.unwrap_or("*"));
        list.add(own, resource, context);
        list.add_kms(
            named.key.as_deref(),
            &[
                "kms:DescribeKey",
                "kms:ReEncryptFrom",
                "kms:ReEncryptTo",
                "kms:Decrypt",
            ],
        );
        list.add_kms(
            start.kms_key_arn.as_deref(),
            &["kms:DescribeKey", "kms:GenerateDataKey"],
        );
        list.add_new_tags(&tags, None);
    }

    fn ec2_needs(
        &self,
        list: &mut NeedList<'_>,
        action: &str,
        own: &str,
        form: &QueryForm,
    ) -> Result<(), Refusal> {
        let new_tags = form.tags();
        match action {
            "CreateSnapshot" | "CreateSnapshots" => {
                let instance = form.get("InstanceSpecification.InstanceId");
                let mut on = Vec::new();
                if let Some(instance) = instance {
                    on.push((list.of_account("instance", instance), BTreeMap::new()));
                }
                let named = form.get("VolumeId").into_iter();
                let named = named.map(|id| (id.to_owned(), BTreeMap::new()));
                let no_boot = form.get("InstanceSpecification.ExcludeBootVolume") == Some("true");
                let excluded = form.list("InstanceSpecification.ExcludeDataVolumeId");
                let attached = match instance {
                    Some(instance) => self.volumes_of(instance)?,
                    None => Vec::new(),
                };
                let attached = attached.into_iter().skip(usize::from(no_boot));
                let attached = attached.filter(|(id, _)| !excluded.contains(&id.as_str()));
                for (id, tags) in named.chain(attached) {
                    on.push((list.of_account("volume", &id), tags));
                }
                for (resource, tags) in on {
                    let mut context = list.context();
                    add_tags(&mut context, own, &tags);
                    list.add(own, resource, context);
                }
                let mut context = list.context();
                add_request_tags(&mut context, &new_tags);
                list.add(own, list.snapshot("*"), context);
                list.add_new_tags(&new_tags, Some(action));
            }
            "CreateTags" => {
                let tags = form.tag_list("Tag").into_iter().collect();
                for id in form.list("ResourceId") {
                    let mut context = list.context();
                    list.describe(&mut context, own, &self.named_snapshot(id));
                    add_request_tags(&mut context, &tags);
                    list.add(own, list.snapshot(id), context);
                }
            }
            "DeleteSnapshot" => {
                let id = form.get("SnapshotId").unwrap_or_default();
                list.add_on(own, id, &self.named_snapshot(id));
            }
            "AssumeRole" => {
                let request = RoleRequest::parse(form)?;
                let mut context = list.context();
                context.add("sts:RoleSessionName", request.session());
                if let Some(external) = request.external() {
                    context.add("sts:ExternalId", external);
                }
                list.all.push(AccessRequest {
                    action: own.to_owned(),
                    resource: request.role().to_string(),
                    context,
                    grantor: Some(PolicyGrantor::Role(request.role().clone())),
                });
            }
            _ => {
                let context = list.context();
                list.add(own, "*".into(), context);
            }
        }
        Ok(())
    }
}
