//! `ebsfs policy`: least-privilege policies for verbs, as JSON.

use std::collections::BTreeMap;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{output, table};
use crate::aws::AwsVerb;
use crate::error::{Error, Kind, Result};
use crate::policy::{
    AccountId, BucketPath, KmsKeyArn, PolicyDocument, PolicyJobName, PolicyPartition, PolicyScope,
    PolicyTag, PrincipalArn, RegionName,
};

/// Print the least-privilege IAM policy for a verb
#[derive(Args, Debug)]
#[command(
    long_about = "Print the least-privilege policy for a verb, as JSON: the policy of its user or role, the policy of a VPC \
    endpoint, or the statements for the policy of a bucket or a KMS key. Sends no request.\n\n\
    Several verbs make one policy. --explain prints what is lost without each action. The policy includes actions that a verb can \
    do without; --minimal leaves them out."
)]
pub(super) struct PolicyArgs {
    /// Verbs that the policy is for
    #[arg(value_name = "VERB", required = true, value_parser = verbs())]
    verbs: Vec<AwsVerb>,
    /// Allow only snapshots with this tag to be read and deleted; new snapshots at ebs: cannot get it [default: all snapshots]
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Option<PolicyTag>,
    /// Allow snapshots that are encrypted with this KMS key, by its ARN; repeat for several [default: none]
    #[arg(long, value_name = "ARN")]
    kms: Vec<KmsKeyArn>,
    /// Bucket of the repository, with its prefix, for example backups/ebs
    #[arg(long, value_name = "BUCKET[/PREFIX]")]
    bucket: Option<BucketPath>,
    /// Allow objects that the bucket encrypts with this KMS key, by its ARN; repeat for several [default: none]
    #[arg(long, value_name = "ARN", requires = "bucket")]
    bucket_kms: Vec<KmsKeyArn>,
    /// Allow only snapshots of this job to be deleted [default: those of all jobs]; upload --job NAME is the ebs: target of a job
    #[arg(long, value_name = "NAME")]
    job: Option<PolicyJobName>,
    /// Region of the ARNs [default: all Regions; for a KMS key the Region of its ARN]
    #[arg(long, value_name = "REGION")]
    region: Option<RegionName>,
    /// Account of volumes, instances and principals, 12 digits [default: any]
    #[arg(long, value_name = "DIGITS")]
    account: Option<AccountId>,
    /// Partition of the ARNs [default: that of --region or of an ARN, else aws]
    #[arg(long, value_name = "PARTITION", value_parser = partitions())]
    partition: Option<PolicyPartition>,
    /// Leave out actions that the verbs can do without
    #[arg(long)]
    minimal: bool,
    /// Print the policies of the VPC endpoints of all services; --endpoint=SERVICE prints that of one
    #[arg(
        long,
        value_name = "SERVICE",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all",
        conflicts_with_all = ["bucket_policy", "key_policy", "explain"]
    )]
    endpoint: Option<EndpointService>,
    /// Print the policy of the bucket for --principal or --account
    #[arg(long, requires = "bucket", conflicts_with_all = ["key_policy", "explain"])]
    bucket_policy: bool,
    /// Print the statements that the policy of the KMS key needs for --principal or --account
    #[arg(long, conflicts_with = "explain")]
    key_policy: bool,
    /// User, role or account that may use the endpoint, the bucket or the key, by its ARN [default: --account]
    #[arg(long, value_name = "ARN")]
    principal: Option<PrincipalArn>,
    /// Print a table: each action, its resources, the KMS actions behind it, what is lost without it
    #[arg(long)]
    explain: bool,
}

/// Which endpoints are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EndpointService {
    /// One object with a policy for each service
    All,
    /// EBS direct APIs
    Ebs,
    /// EC2
    Ec2,
    /// S3
    S3,
    /// STS
    Sts,
}

impl EndpointService {
    /// Its name; none for all services.
    fn name(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Ebs => Some("ebs"),
            Self::Ec2 => Some("ec2"),
            Self::S3 => Some("s3"),
            Self::Sts => Some("sts"),
        }
    }
}

/// The verbs by their names.
fn verbs() -> impl TypedValueParser<Value = AwsVerb> {
    let names = AwsVerb::ALL.map(|verb| PossibleValue::new(verb.name()).help(verb.about()));
    PossibleValuesParser::new(names).try_map(|name| {
        let mut all = AwsVerb::ALL.into_iter();
        let found = all.find(|verb| verb.name() == name);
        found.ok_or("no such verb")
    })
}

/// The partitions by their names.
fn partitions() -> impl TypedValueParser<Value = PolicyPartition> {
    let names = PolicyPartition::ALL.map(PolicyPartition::name);
    PossibleValuesParser::new(names)
        .try_map(|name| PolicyPartition::of(&name).ok_or("no such partition"))
}

impl PolicyArgs {
    pub(super) fn run(self) -> Result<()> {
        let text = self.text()?;
        output::write(None, |out| out.write_all(text.as_bytes()))
    }

    fn text(&self) -> Result<String> {
        let scope = self.scope();
        self.check(&scope)?;
        if self.explain {
            let heads = ["ACTION", "RESOURCE", "KMS", "WITHOUT IT"].map(str::to_owned);
            let rows: Vec<_> = std::iter::once(heads).chain(scope.rows()).collect();
            return Ok(table(&rows));
        }
        if let Some(service) = self.endpoint {
            return endpoint(scope.endpoints(), service, &self.names());
        }
        let unnamed = |what: &str| {
            let why = "it must name a principal; give --principal or --account";
            Error::new(
                Kind::Invalid,
                format!("cannot print a policy of a {what}: {why}"),
            )
        };
        let granted = self.principal.is_some() || self.account.is_some();
        if self.bucket_policy {
            return json(&scope.bucket_policy().ok_or_else(|| unnamed("bucket"))?);
        }
        if self.key_policy {
            let unused = || self.unused("--key-policy", "no KMS key");
            let missing = || if granted { unused() } else { unnamed("key") };
            return json(&scope.key_policy().ok_or_else(missing)?);
        }
        json(&scope.identity())
    }

    fn scope(&self) -> PolicyScope {
        PolicyScope {
            verbs: self.verbs.clone(),
            partition: self.effective_partition(),
            region: self.region.clone(),
            account: self.account.clone(),
            tag: self.tag.clone(),
            keys: self.kms.clone(),
            bucket: self.bucket.clone(),
            bucket_keys: self.bucket_kms.clone(),
            job: self.job.clone(),
            principal: self.principal.clone(),
            is_minimal: self.minimal,
        }
    }

    /// The partition of the Region, and of each ARN, with the text that names it.
    fn named_partitions(&self) -> Vec<(String, Option<PolicyPartition>)> {
        let region = self.region.iter();
        let region = region.map(|name| (name.as_str().to_owned(), Some(name.partition())));
        let keys = self.kms.iter().chain(&self.bucket_kms);
        let keys = keys.map(|key| (key.to_string(), Some(key.partition())));
        let principal = self.principal.iter();
        let principal = principal.map(|arn| (arn.to_string(), arn.partition()));
        region.chain(keys).chain(principal).collect()
    }

    fn effective_partition(&self) -> PolicyPartition {
        let named = || self.named_partitions().into_iter().find_map(|(_, of)| of);
        self.partition.or_else(named).unwrap_or_default()
    }

    fn names(&self) -> String {
        let names = self.verbs.iter().map(|verb| verb.name());
        names.collect::<Vec<_>>().join(", ")
    }

    fn unused(&self, option: &str, what: &str) -> Error {
        let names = self.names();
        Error::new(
            Kind::Invalid,
            format!("cannot use {option}: {names} needs {what}"),
        )
    }

    /// Refuses options that would have no effect, and what cannot be a policy.
    fn check(&self, scope: &PolicyScope) -> Result<()> {
        let of_repository = self.verbs.iter().find(|verb| verb.is_of_repository());
        if let Some(verb) = of_repository.filter(|_| self.bucket.is_none()) {
            let what = format!(
                "cannot print a policy for {}: it needs a bucket; name it with --bucket",
                verb.name()
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        let uses_bucket = self
            .verbs
            .iter()
            .any(|verb| verb.needs_of_bucket().is_some());
        let makes_grants = self.endpoint.is_some() || self.bucket_policy || self.key_policy;
        for (option, is_given, is_used, what) in [
            ("--bucket", self.bucket.is_some(), uses_bucket, "no bucket"),
            (
                "--tag",
                self.tag.is_some(),
                scope.can_be_limited_by_tag(),
                "no snapshot to read or delete",
            ),
            (
                "--kms",
                !self.kms.is_empty(),
                scope.uses_keys(false),
                "no KMS key of snapshots",
            ),
            (
                "--bucket-kms",
                !self.bucket_kms.is_empty(),
                scope.uses_keys(true),
                "no bucket",
            ),
            (
                "--account",
                self.account.is_some(),
                makes_grants || scope.names_account(),
                "no ARN with an account",
            ),
            (
                "--job",
                self.job.is_some(),
                scope.deletes_snapshots(),
                "no snapshot to delete",
            ),
        ] {
            if is_given && !is_used {
                return Err(self.unused(option, what));
            }
        }
        if self.principal.is_some() && !makes_grants {
            let what = "cannot use --principal: an identity policy is attached to its user or role";
            return Err(Error::new(Kind::Invalid, what));
        }
        for (name, partition) in self.named_partitions() {
            if partition != Some(scope.partition) {
                let own = scope.partition.name();
                let what = format!("cannot use {name}: the partition of the policy is {own}");
                return Err(Error::new(Kind::Invalid, what));
            }
        }
        // A bucket can be in another Region than the snapshots.
        let region = self.region.as_ref().map(RegionName::as_str);
        let elsewhere = |key: &&KmsKeyArn| region.is_some_and(|region| region != key.region());
        if let Some(key) = self.kms.iter().find(elsewhere) {
            let what = format!(
                "cannot use {key}: --region is {}",
                region.unwrap_or_default()
            );
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(())
    }
}

/// The policies of all endpoints, or of one.
fn endpoint(
    mut all: BTreeMap<&'static str, PolicyDocument>,
    service: EndpointService,
    verbs: &str,
) -> Result<String> {
    let Some(name) = service.name() else {
        return json(&all);
    };
    let found = all.remove(name).ok_or_else(|| {
        let what =
            format!("cannot print a policy of the endpoint {name}: {verbs} does not call it");
        Error::new(Kind::Invalid, what)
    })?;
    json(&found)
}

fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Error::with_source(Kind::Io, "cannot write JSON", error))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Parser)]
    struct PolicyLine {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    fn text(line: &str) -> Result<String> {
        let words = std::iter::once("policy").chain(line.split(' '));
        let parsed =
            PolicyLine::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        parsed.policy.text()
    }

    #[test]
    fn an_option_without_effect_is_refused_and_named() {
        const KEY: &str = "arn:aws:kms:eu-west-1:111122223333:key/0a";
        for (line, words) in [
            ("repository", "it needs a bucket; name it with --bucket"),
            ("mount restore", "cannot print a policy for restore"),
            ("ls --bucket b", "cannot use --bucket: ls needs no bucket"),
            (
                "upload --tag a=b",
                "cannot use --tag: upload needs no snapshot to read or delete",
            ),
            (
                &format!("ls --kms {KEY}"),
                "cannot use --kms: ls needs no KMS key of snapshots",
            ),
            ("mount --job web", "cannot use --job"),
            (
                "gateway --bucket b --job web",
                "cannot use --job: gateway needs no snapshot to delete",
            ),
            ("mount --account 111122223333", "cannot use --account"),
            (
                "mount --principal arn:aws:iam::111122223333:role/a",
                "cannot use --principal",
            ),
            (
                &format!("mount --partition aws-cn --kms {KEY}"),
                "the partition of the policy is aws-cn",
            ),
            (
                "mount --partition aws --region us-gov-west-1",
                "cannot use us-gov-west-1: the partition of the policy is aws",
            ),
            (
                &format!("mount --region cn-north-1 --kms {KEY}"),
                "the partition of the policy is aws-cn",
            ),
            (
                &format!("mount --region eu-central-1 --kms {KEY}"),
                "key/0a: --region is eu-central-1",
            ),
            ("mount --endpoint=s3", "mount does not call it"),
            (
                "gateway --bucket b --bucket-policy",
                "it must name a principal; give --principal or --account",
            ),
            (
                "mount --key-policy",
                "it must name a principal; give --principal or --account",
            ),
            (
                "ls --key-policy --account 111122223333",
                "ls needs no KMS key",
            ),
        ] {
            let error = text(line).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{line}");
            assert!(error.chain().contains(words), "{line}: {}", error.chain());
        }
    }

    #[test]
    fn each_kind_of_policy_is_json_and_the_table_has_a_row_an_action() {
        let parsed = |line: &str| serde_json::from_str::<Value>(&text(line).unwrap()).unwrap();
        assert_eq!(parsed("mount")["Version"], "2012-10-17");
        let all = parsed("mount --endpoint");
        assert_eq!(all["ebs"], parsed("mount --endpoint=ebs"));
        assert_eq!(all.as_object().unwrap().len(), 3);
        // The Region and the ARNs tell the partition.
        for (line, partition) in [
            ("blocks --region us-gov-west-1", "aws-us-gov"),
            ("blocks --region cn-north-1", "aws-cn"),
            ("blocks --region eu-central-1", "aws"),
            (
                "blocks --kms arn:aws-cn:kms:cn-north-1:111122223333:key/0a",
                "aws-cn",
            ),
            ("blocks", "aws"),
        ] {
            let resource = parsed(line)["Statement"][0]["Resource"].to_string();
            let start = format!("\"arn:{partition}:ec2:");
            assert!(resource.starts_with(&start), "{line}: {resource}");
        }
        let bucket = parsed("repository --bucket b/p --bucket-policy --account 111122223333");
        assert_eq!(
            bucket["Statement"][0]["Principal"]["AWS"],
            "arn:aws:iam::111122223333:root"
        );
        let key = parsed("upload --key-policy --account 111122223333");
        assert_eq!(key["Statement"][0]["Resource"], "*");
        let rows = text("ls --explain").unwrap();
        assert_eq!(rows.lines().count(), 2, "{rows}");
        assert!(rows.contains("ec2:DescribeSnapshots"), "{rows}");
    }
}
