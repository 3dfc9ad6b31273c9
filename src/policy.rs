//! Least-privilege policies for verbs: pure functions from the table of actions ([`AwsVerb`]) to IAM policy documents.
//!
//! | file | subject |
//! | --- | --- |
//! | [`values`] | what a policy is made for: keys, buckets, tags, principals, partitions |
//! | [`document`] | documents as IAM reads them |
//!
//! An identity policy is what a user or role needs. A policy of a VPC endpoint limits what goes through it, a bucket policy and
//! a key policy grant access to a resource. All four are made from the same needs, so that none is wider than another.

mod document;
mod values;

use std::collections::BTreeMap;

use crate::aws::{ActionNeed, ActionResource, ActionService, AwsVerb, IamAction, all_needs};
use document::{Conditions, PolicyPrincipal, PolicyStatement, values_of};

pub(crate) use document::PolicyDocument;
pub(crate) use values::{
    AccountId, BucketPath, KmsKeyArn, PolicyJobName, PolicyPartition, PolicyTag, PrincipalArn,
    RegionName,
};

/// The KMS actions, in their order in a policy.
const KMS_ORDER: [&str; 5] = [
    "kms:DescribeKey",
    "kms:Decrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKey*",
    "kms:ReEncrypt*",
];

/// The tag of the snapshots of a job at its source.
const CYCLE_TAG: &str = "ebsfs:cycle";
/// The tag of the snapshots of a job at its `ebs:` targets.
const JOB_TAG: &str = "ebsfs:job";
/// The volume that EC2 states for a snapshot that was made of none: by StartSnapshot, or as a copy.
const NO_VOLUME: &str = "vol-ffffffff";

/// What a policy is made for.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyScope {
    /// The verbs.
    pub(crate) verbs: Vec<AwsVerb>,
    /// The partition of all ARNs.
    pub(crate) partition: PolicyPartition,
    /// The Region; none is all Regions.
    pub(crate) region: Option<RegionName>,
    /// The account of volumes, instances and principals; none is any.
    pub(crate) account: Option<AccountId>,
    /// The tag of snapshots that may be read and deleted; none is all snapshots.
    pub(crate) tag: Option<PolicyTag>,
    /// Keys of encrypted snapshots.
    pub(crate) keys: Vec<KmsKeyArn>,
    /// The bucket, with the prefix of the repository.
    pub(crate) bucket: Option<BucketPath>,
    /// Keys of the bucket's objects.
    pub(crate) bucket_keys: Vec<KmsKeyArn>,
    /// The job whose snapshots may be deleted, at the source and at `ebs:` targets; none is any job.
    pub(crate) job: Option<PolicyJobName>,
    /// Who may use an endpoint, a bucket or a key; none is the account.
    pub(crate) principal: Option<PrincipalArn>,
    /// Whether actions that the verbs can do without are left out.
    pub(crate) is_minimal: bool,
}

impl PolicyScope {
    /// The needs that a policy is made of.
    pub(crate) fn needs(&self) -> Vec<ActionNeed> {
        let mut needs = all_needs(&self.verbs, self.bucket.is_some(), self.job.is_some());
        needs.retain(|need| !self.is_minimal || need.without.is_none());
        needs
    }

    /// The policy of the user or role that runs the verbs.
    pub(crate) fn identity(&self) -> PolicyDocument {
        // No policy can deny it, and none has to allow it:
        // https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
        let needs = self.needs().into_iter();
        let needs: Vec<_> = needs
            .filter(|need| need.action != IamAction::GetCallerIdentity)
            .collect();
        let mut statements = self.statements(&needs, None, &Conditions::default());
        let kms = |needs: &[ActionNeed], is_bucket| {
            let wanted =
                |need: &&ActionNeed| (need.action.service() == ActionService::S3) == is_bucket;
            kms_actions(needs.iter().filter(wanted))
        };
        for (is_bucket, keys) in [(false, &self.keys), (true, &self.bucket_keys)] {
            let actions = kms(&needs, is_bucket);
            for (region, arns) in by_region(keys).into_iter().filter(|_| !actions.is_empty()) {
                statements.push(PolicyStatement::allow(
                    actions.clone(),
                    arns,
                    self.via(is_bucket, &[region]),
                ));
            }
        }
        PolicyDocument::new(statements)
    }

    /// The policies of the VPC endpoints of the services that the verbs call, by their names. They limit requests, and
    /// grant nothing. The only `Principal` that all kinds of endpoints take is `*`
    /// (<https://docs.aws.amazon.com/vpc/latest/privatelink/vpc-endpoints-access.html>).
    pub(crate) fn endpoints(&self) -> BTreeMap<&'static str, PolicyDocument> {
        let needs = self.needs();
        let mut conditions = Conditions::default();
        // No caller has the ARN of an account.
        let whole = self
            .principal
            .as_ref()
            .and_then(PrincipalArn::whole_account);
        match (&self.principal, whole, &self.account) {
            (Some(_), Some(account), _) => {
                conditions.add("StringEquals", "aws:PrincipalAccount", &account);
            }
            (Some(principal), None, _) => {
                conditions.add("StringEquals", "aws:PrincipalArn", principal);
            }
            (None, _, Some(account)) => {
                conditions.add("StringEquals", "aws:PrincipalAccount", account);
            }
            (None, _, None) => {}
        }
        let of_service = |service: ActionService| {
            // Tags of a new snapshot go along with StartSnapshot. AWS does not document which endpoint's policy must allow
            // them, so both do.
            let starts = needs
                .iter()
                .any(|need| need.action == IamAction::StartSnapshot);
            let is_with_start = |need: &ActionNeed| -> bool {
                service == ActionService::Ebs && starts && need.action == IamAction::CreateTags
            };
            let own: Vec<_> = needs
                .iter()
                .filter(|need| need.action.service() == service || is_with_start(need))
                .copied()
                .collect();
            let mut statements = self.statements(&own, Some(&PolicyPrincipal::All), &conditions);
            if service == ActionService::Sts {
                statements.push(self.taking_of_roles());
            }
            (!statements.is_empty()).then(|| (service.name(), PolicyDocument::new(statements)))
        };
        ActionService::ALL
            .into_iter()
            .filter_map(of_service)
            .collect()
    }

    /// Allows to take the roles of profiles. Who takes a role is not yet that role, and a request with a web identity is not
    /// signed: the roles limit it, a condition on the principal would refuse it.
    fn taking_of_roles(&self) -> PolicyStatement {
        let named = self.principal.as_ref();
        let account = named
            .map(PrincipalArn::account)
            .or_else(|| self.account.as_ref().map(AccountId::as_str));
        let role = named.filter(|principal| principal.is_role());
        let roles = role.map(ToString::to_string).or_else(|| {
            account.map(|account| format!("arn:{}:iam::{account}:role/*", self.partition.name()))
        });
        let actions = [IamAction::AssumeRole, IamAction::AssumeRoleWithWebIdentity];
        let mut statement = PolicyStatement::allow(
            actions.map(IamAction::name).to_vec(),
            vec![roles.unwrap_or_else(|| "*".into())],
            Conditions::default(),
        );
        statement.principal = Some(PolicyPrincipal::All);
        statement
    }

    /// The policy of the bucket. None without a principal, or where the verbs use no bucket.
    pub(crate) fn bucket_policy(&self) -> Option<PolicyDocument> {
        let needs = self.needs().into_iter();
        let needs: Vec<_> = needs
            .filter(|need| need.action.service() == ActionService::S3)
            .collect();
        let principal = self.granted_to()?;
        let statements = self.statements(&needs, Some(&principal), &Conditions::default());
        (!needs.is_empty()).then(|| PolicyDocument::new(statements))
    }

    /// Statements for the policy of a KMS key: one for EBS, one for S3, where the verbs use such a key. None without a
    /// principal.
    pub(crate) fn key_policy(&self) -> Option<PolicyDocument> {
        let (needs, principal) = (self.needs(), self.granted_to()?);
        let mut statements = Vec::new();
        for (is_bucket, keys) in [(false, &self.keys), (true, &self.bucket_keys)] {
            let wanted =
                |need: &&ActionNeed| (need.action.service() == ActionService::S3) == is_bucket;
            let actions = kms_actions(needs.iter().filter(wanted));
            let is_asked = !keys.is_empty() || (!is_bucket && self.bucket_keys.is_empty());
            if actions.is_empty() || !is_asked {
                continue;
            }
            let regions: Vec<&str> = by_region(keys)
                .into_iter()
                .map(|(region, _)| region)
                .collect();
            let condition = self.via(is_bucket, &regions);
            let mut statement = PolicyStatement::allow(actions, vec!["*".into()], condition);
            statement.principal = Some(principal.clone());
            statements.push(statement);
        }
        (!statements.is_empty()).then(|| PolicyDocument::new(statements))
    }

    /// One row for each action: its name, the resources that it is granted on, the KMS actions behind it, what is lost without it.
    pub(crate) fn rows(&self) -> Vec<[String; 4]> {
        let row = |need: &ActionNeed| {
            [
                need.action.name().to_owned(),
                self.resources(need).join(" "),
                need.action.kms().join(" "),
                need.without.unwrap_or("the command fails").to_owned(),
            ]
        };
        self.needs().iter().map(row).collect()
    }

    /// Whether the verbs read or delete snapshots, which a tag can limit.
    pub(crate) fn can_be_limited_by_tag(&self) -> bool {
        let is_limited = |need: &ActionNeed| {
            matches!(
                need.on,
                ActionResource::Snapshots | ActionResource::CycleSnapshots
            )
        };
        self.needs().iter().any(is_limited)
    }

    /// Whether the verbs delete snapshots, which a job can limit. What is left out counts too.
    pub(crate) fn deletes_snapshots(&self) -> bool {
        let needs = all_needs(&self.verbs, self.bucket.is_some(), self.job.is_some());
        needs
            .iter()
            .any(|need| need.action == IamAction::DeleteSnapshot)
    }

    /// Whether a policy for the caller names the account: in ARNs of volumes and instances.
    pub(crate) fn names_account(&self) -> bool {
        let is_captured = |need: &ActionNeed| need.on == ActionResource::Captured;
        self.needs().iter().any(is_captured)
    }

    /// Whether the verbs use keys of snapshots, or of objects.
    pub(crate) fn uses_keys(&self, of_bucket: bool) -> bool {
        let is_such = |need: &ActionNeed| {
            (need.action.service() == ActionService::S3) == of_bucket
                && !need.action.kms().is_empty()
        };
        self.needs().iter().any(is_such)
    }

    /// The tags whose conditions limit what is read and deleted. They limit no user that may set them on any snapshot.
    fn limiting_tags(&self) -> Vec<&str> {
        let deletes = |need: &ActionNeed| need.on == ActionResource::CycleSnapshots;
        let cycle = self.needs().iter().any(deletes).then_some(CYCLE_TAG);
        let tag = self.tag.as_ref().filter(|_| self.can_be_limited_by_tag());
        let all = tag.map(PolicyTag::key).into_iter();
        all.chain(cycle).collect()
    }

    /// Statements that allow to tag snapshots, but to set the tags in `limiting` only on snapshots of volumes, while they are made.
    fn tagging(
        &self,
        needs: &[ActionNeed],
        tags: &ActionNeed,
        limiting: &[&str],
        conditions: &Conditions,
    ) -> Vec<PolicyStatement> {
        let makes = [IamAction::CreateSnapshot, IamAction::CreateSnapshots].into_iter();
        let makes = makes.filter(|action| needs.iter().any(|need| need.action == *action));
        let makes: Vec<String> = makes
            .map(|action| action.name().replacen("ec2:", "", 1))
            .collect();
        let mut while_made = conditions.clone();
        let mut others = conditions.clone();
        for key in limiting {
            others.add("Null", &format!("aws:RequestTag/{key}"), &true);
        }
        let mut all = Vec::new();
        if !makes.is_empty() {
            while_made.add_all("StringEquals", "ec2:CreateAction", values_of(makes));
            all.push(while_made);
        }
        all.push(others);
        let all = all.into_iter();
        all.map(|condition| {
            PolicyStatement::allow(vec![tags.action.name()], self.resources(tags), condition)
        })
        .collect()
    }

    /// Statements that allow these needs: those on the same kind of resource are one.
    fn statements(
        &self,
        needs: &[ActionNeed],
        principal: Option<&PolicyPrincipal>,
        conditions: &Conditions,
    ) -> Vec<PolicyStatement> {
        let mut statements: Vec<(Option<ActionResource>, PolicyStatement)> = Vec::new();
        let limiting = self.limiting_tags();
        for need in needs {
            if need.action == IamAction::CreateTags && !limiting.is_empty() {
                for mut statement in self.tagging(needs, need, &limiting, conditions) {
                    statement.principal = principal.cloned();
                    statements.push((None, statement));
                }
                continue;
            }
            let on = Some(need.on);
            if let Some((_, known)) = statements.iter_mut().find(|(known, _)| *known == on) {
                known.add(need.action.name());
                continue;
            }
            let mut condition = conditions.clone();
            self.limit(need.on, &mut condition);
            let mut statement =
                PolicyStatement::allow(vec![need.action.name()], self.resources(need), condition);
            statement.principal = principal.cloned();
            statements.push((on, statement));
        }
        let all = statements.into_iter();
        all.map(|(_, statement)| statement).collect()
    }

    /// The conditions that a kind of resource brings.
    fn limit(&self, on: ActionResource, conditions: &mut Conditions) {
        let is_cycle = on == ActionResource::CycleSnapshots;
        if is_cycle {
            let of_job = self.job.as_ref().map(|job| format!("{job}/*"));
            let cycles = of_job.unwrap_or_else(|| "*".into());
            let key = format!("aws:ResourceTag/{CYCLE_TAG}");
            conditions.add("StringLike", &key, &cycles);
        }
        if on == ActionResource::JobSnapshots {
            let key = format!("aws:ResourceTag/{JOB_TAG}");
            match &self.job {
                Some(job) => conditions.add("StringEquals", &key, job),
                None => conditions.add("StringLike", &key, &"*"),
            }
            // The user sets this tag on new snapshots, so it can set it on any snapshot: no condition distinguishes the tags
            // of StartSnapshot. Those of volumes stay out of its reach. Whether AWS sets the key for a snapshot without a
            // volume is recorded for copies alone.
            let none = format!("arn:{}:ec2:*:*:volume/{NO_VOLUME}", self.partition.name());
            conditions.add("ArnLikeIfExists", "ec2:ParentVolume", &none);
        }
        if let Some(tag) = self
            .tag
            .as_ref()
            .filter(|_| is_cycle || on == ActionResource::Snapshots)
        {
            let key = format!("aws:ResourceTag/{}", tag.key());
            conditions.add("StringEquals", &key, &tag.value());
        }
    }

    /// The ARNs of a need.
    fn resources(&self, need: &ActionNeed) -> Vec<String> {
        let region = self.region.as_ref().map_or("*", RegionName::as_str);
        let account = self.account.as_ref().map_or("*", AccountId::as_str);
        let partition = self.partition.name();
        let ec2 =
            |account: &str, kind: &str| format!("arn:{partition}:ec2:{region}:{account}:{kind}/*");
        // The account of a snapshot is empty: an ARN with one matches nothing.
        let snapshots = ec2("", "snapshot");
        let bucket = self.bucket.as_ref();
        let (name, prefix) = bucket.map_or(("*", ""), |bucket| (bucket.name(), bucket.prefix()));
        let objects = |below: &str| {
            let steps = [name, prefix, below]
                .into_iter()
                .filter(|step| !step.is_empty());
            format!(
                "arn:{partition}:s3:::{}/*",
                steps.collect::<Vec<_>>().join("/")
            )
        };
        match need.on {
            ActionResource::Any => vec!["*".into()],
            ActionResource::Snapshots
            | ActionResource::CycleSnapshots
            | ActionResource::JobSnapshots
            | ActionResource::NewSnapshots => vec![snapshots],
            ActionResource::Captured => {
                vec![ec2(account, "volume"), ec2(account, "instance"), snapshots]
            }
            // Without a condition on s3:prefix: S3 answers 403 instead of 404 for an object that is not there, unless the
            // bucket may be listed without one.
            ActionResource::Bucket => vec![format!("arn:{partition}:s3:::{name}")],
            ActionResource::Objects => vec![objects("")],
            ActionResource::RunObjects => vec![objects("runs")],
        }
    }

    /// The condition that a key is used through EC2 or S3 alone, in the Regions of the keys; without any in that of the policy.
    fn via(&self, is_bucket: bool, regions: &[&str]) -> Conditions {
        let service = if is_bucket { "s3" } else { "ec2" };
        let own = [self.region.as_ref().map_or("*", RegionName::as_str)];
        let regions = if regions.is_empty() { &own } else { regions };
        let suffixes = self.partition.suffixes();
        let of_region = |region: &&str| {
            let hosts = suffixes.iter();
            let hosts = hosts.map(|suffix| format!("{service}.{region}.{suffix}"));
            hosts.collect::<Vec<_>>()
        };
        let hosts: Vec<String> = regions.iter().flat_map(of_region).collect();
        let operator = match regions.contains(&"*") {
            true => "StringLike",
            false => "StringEquals",
        };
        let mut conditions = Conditions::default();
        conditions.add_all(operator, "kms:ViaService", values_of(hosts));
        conditions
    }

    /// Who a bucket or key policy grants access to.
    fn granted_to(&self) -> Option<PolicyPrincipal> {
        let account = |account: &AccountId| {
            let root = format!("arn:{}:iam::{account}:root", self.partition.name());
            PolicyPrincipal::Aws(root)
        };
        let named = self.principal.as_ref().map(ToString::to_string);
        named
            .map(PolicyPrincipal::Aws)
            .or_else(|| self.account.as_ref().map(account))
    }
}

/// The KMS actions behind these needs, each once.
fn kms_actions<'a>(needs: impl Iterator<Item = &'a ActionNeed>) -> Vec<&'static str> {
    let found: Vec<&str> = needs.flat_map(|need| need.action.kms()).copied().collect();
    let all = KMS_ORDER.into_iter();
    all.filter(|action| found.contains(action)).collect()
}

/// Keys by their Regions, in the order in which they were named.
fn by_region(keys: &[KmsKeyArn]) -> Vec<(&str, Vec<String>)> {
    let mut all: Vec<(&str, Vec<String>)> = Vec::new();
    for key in keys {
        match all.iter_mut().find(|(region, _)| *region == key.region()) {
            Some((_, arns)) => arns.push(key.to_string()),
            None => all.push((key.region(), vec![key.to_string()])),
        }
    }
    all
}

#[cfg(test)]
mod tests;
