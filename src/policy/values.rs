//! Values that a policy names. Each one is checked when it is parsed, because a `*`, a `?` or a `${...}` would widen the policy.

use std::fmt;
use std::str::FromStr;

/// Whether a text has characters that have a special meaning in a policy.
fn is_wild(text: &str) -> bool {
    text.contains(['*', '?', '$', '"', '\\']) || text.chars().any(char::is_control)
}

fn is_word(text: &str, more: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

/// A partition of AWS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PolicyPartition {
    /// The commercial Regions.
    #[default]
    Aws,
    /// China.
    China,
    /// GovCloud (US).
    GovCloud,
}

impl PolicyPartition {
    /// All partitions.
    pub(crate) const ALL: [Self; 3] = [Self::Aws, Self::China, Self::GovCloud];

    /// Its name in ARNs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::China => "aws-cn",
            Self::GovCloud => "aws-us-gov",
        }
    }

    /// The partition of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|partition| partition.name() == name)
    }

    /// The partition of a Region. None for one of an isolated or sovereign partition, of which there is no policy here.
    fn of_region(region: &str) -> Option<Self> {
        let is_one_of = |starts: &[&str]| starts.iter().any(|start| region.starts_with(start));
        match region {
            _ if is_one_of(&["us-iso", "eu-iso", "eusc-"]) => None,
            _ if is_one_of(&["cn-"]) => Some(Self::China),
            _ if is_one_of(&["us-gov-"]) => Some(Self::GovCloud),
            _ => Some(Self::Aws),
        }
    }

    /// Ends of the names of its services in `kms:ViaService`. Sources disagree about those of China, so both are named there:
    /// they are names of the same services.
    pub(super) const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Aws | Self::GovCloud => &["amazonaws.com"],
            Self::China => &["amazonaws.com", "amazonaws.com.cn"],
        }
    }
}

/// The name of a Region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionName(String);

impl RegionName {
    /// Its text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Its partition.
    pub(crate) fn partition(&self) -> PolicyPartition {
        // Its text was checked.
        PolicyPartition::of_region(&self.0).unwrap_or_default()
    }
}

impl FromStr for RegionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match is_word(text, "-") && PolicyPartition::of_region(text).is_some() {
            true => Ok(Self(text.to_owned())),
            false => {
                Err("it must be a Region of aws, aws-cn or aws-us-gov, such as eu-central-1".into())
            }
        }
    }
}

/// The number of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccountId(String);

impl AccountId {
    /// Its digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AccountId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
        match is_number {
            true => Ok(Self(text.to_owned())),
            false => Err("it must be the 12 digits of an account".into()),
        }
    }
}

/// The name of a replication job, which is in the tags of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyJobName(String);

impl fmt::Display for PolicyJobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PolicyJobName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match is_word(text, "-_.") {
            true => Ok(Self(text.to_owned())),
            false => Err("it must be the name of a job, of letters, digits, -, _ and .".into()),
        }
    }
}

/// A tag of snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyTag {
    key: String,
    value: String,
}

impl PolicyTag {
    /// Its key.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Its value.
    pub(super) fn value(&self) -> &str {
        &self.value
    }
}

impl FromStr for PolicyTag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err("it must look like KEY=VALUE".into());
        };
        if is_wild(key) || value.contains('$') || value.chars().any(char::is_control) {
            return Err("it has characters that a policy reads as patterns or variables".into());
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// A bucket, and the prefix of a repository in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketPath {
    name: String,
    prefix: String,
}

impl BucketPath {
    /// The bucket's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The prefix without slashes around it; can be empty.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl FromStr for BucketPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("s3://").unwrap_or(text);
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        if !is_word(name, "-._") {
            return Err("it must be the name of a bucket, or BUCKET/PREFIX".into());
        }
        if is_wild(prefix) || prefix.contains('#') {
            return Err("it has characters that a policy reads as patterns or variables".into());
        }
        Ok(Self {
            name: name.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        })
    }
}

/// The ARN of a KMS key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KmsKeyArn {
    arn: String,
    partition: PolicyPartition,
    region: String,
}

impl KmsKeyArn {
    /// Its partition.
    pub(crate) fn partition(&self) -> PolicyPartition {
        self.partition
    }

    /// Its Region.
    pub(crate) fn region(&self) -> &str {
        &self.region
    }
}

impl fmt::Display for KmsKeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arn)
    }
}

impl FromStr for KmsKeyArn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let wrong = "it must be the ARN of a KMS key, arn:PARTITION:kms:REGION:ACCOUNT:key/ID, not of an alias";
        let ["arn", partition, "kms", region, account, key] = parts[..] else {
            return Err(wrong.into());
        };
        let id = key.strip_prefix("key/").unwrap_or_default();
        match PolicyPartition::of(partition) {
            Some(partition)
                if PolicyPartition::of_region(region) == Some(partition)
                    && is_word(region, "-")
                    && is_word(account, "")
                    && is_word(id, "-") =>
            {
                Ok(Self {
                    arn: text.to_owned(),
                    partition,
                    region: region.to_owned(),
                })
            }
            _ => Err(wrong.into()),
        }
    }
}

/// The ARN of a user, a role or an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrincipalArn(String);

impl PrincipalArn {
    /// Its partition.
    pub(crate) fn partition(&self) -> Option<PolicyPartition> {
        PolicyPartition::of(self.0.split(':').nth(1)?)
    }

    /// Its account.
    pub(super) fn account(&self) -> &str {
        self.0.split(':').nth(4).unwrap_or_default()
    }

    /// The account, if it is meant as a whole.
    pub(super) fn whole_account(&self) -> Option<&str> {
        self.0.ends_with(":root").then(|| self.account())
    }

    /// Whether it is a role.
    pub(super) fn is_role(&self) -> bool {
        self.0.contains(":role/")
    }
}

impl fmt::Display for PrincipalArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PrincipalArn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let is_one = match parts[..] {
            ["arn", partition, "iam", "", account, who] => {
                let kinds = ["user/", "role/"];
                PolicyPartition::of(partition).is_some()
                    && is_word(account, "")
                    && (who == "root" || kinds.iter().any(|kind| who.starts_with(kind)))
            }
            _ => false,
        };
        match is_one && !is_wild(text) {
            true => Ok(Self(text.to_owned())),
            false => Err("it must be the ARN of a user, a role or an account: arn:aws:iam::ACCOUNT:role/NAME".into()),
        }
    }
}
