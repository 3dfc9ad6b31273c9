//! What EC2 tells of snapshots, and the tags that it keeps. The only file with aws-sdk-ec2 in it.

use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::{Filter, SnapshotState, Tag};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::aws::{ServiceConfig, classify};
use crate::error::{Error, Kind, Result};
use crate::snapshot::{Descriptions, Selector, Snapshot, SnapshotId, State};

/// Snapshots a page: DescribeSnapshots takes 5 to 1,000, and is slow with many.
const PAGE: i32 = 500;
/// The IAM action of the calls that describe snapshots.
const ACTION: &str = "ec2:DescribeSnapshots";
/// How long a page may take, attempts together: a person waits for it.
const TIMEOUT: Duration = Duration::from_secs(8);

/// A client of EC2 in one Region.
#[derive(Debug)]
pub struct Ec2 {
    sdk: aws_sdk_ec2::Client,
}

impl Ec2 {
    /// A client with the Region, credentials and endpoint of `service`.
    pub fn new(service: &ServiceConfig) -> Self {
        let config = aws_sdk_ec2::config::Builder::from(&service.sdk)
            .retry_classifier(service.renewal())
            // Its calls are few and small: the SDK's own retries do for them.
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            .timeout_config(TimeoutConfig::builder().operation_timeout(TIMEOUT).build())
            .build();
        Self {
            sdk: aws_sdk_ec2::Client::from_conf(config),
        }
    }

    /// All snapshots that match every filter, of this account or, by `anyone`, of whoever shares them.
    async fn describe_where(&self, filters: Vec<Filter>, anyone: bool) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        let mut next = None;
        loop {
            let mut request = self
                .sdk
                .describe_snapshots()
                .set_filters((!filters.is_empty()).then(|| filters.clone()))
                .max_results(PAGE)
                .set_next_token(next.clone());
            if !anyone {
                request = request.owner_ids("self");
            }
            let reply = request
                .send()
                .await
                .map_err(|error| classify(error, ACTION, "in this Region").into_error())?;
            snapshots.extend(
                reply
                    .snapshots
                    .unwrap_or_default()
                    .iter()
                    .filter_map(snapshot),
            );
            let token = reply.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(snapshots);
            }
            if token == next {
                return Err(Error::new(
                    Kind::Unavailable,
                    "ec2:DescribeSnapshots sends the same page again and again",
                ));
            }
            next = token;
        }
    }
}

impl Ec2 {
    /// One snapshot by its id, which is quick whatever the account may see.
    async fn describe_one(&self, id: &str) -> Result<Option<Snapshot>> {
        let reply = self.sdk.describe_snapshots().snapshot_ids(id).send().await;
        match reply {
            Ok(reply) => Ok(reply.snapshots().first().and_then(snapshot)),
            Err(error) => match classify(error, ACTION, id).into_error() {
                error if error.kind() == Kind::NotFound => Ok(None),
                error => Err(error),
            },
        }
    }
}

impl Descriptions for Ec2 {
    fn describe<'a>(&'a self, select: &'a [Selector]) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        async move {
            if select.is_empty() {
                return self.describe_where(Vec::new(), false).await;
            }
            let mut ids = Vec::new();
            let mut snapshots = Vec::new();
            for selector in select {
                let filter = match selector {
                    Selector::Snapshot(id) => {
                        ids.push(id.to_string());
                        continue;
                    }
                    Selector::Volume(volume) => filter("volume-id", [volume.clone()]),
                    Selector::Tag { key, value } => filter(&format!("tag:{key}"), [value.clone()]),
                };
                snapshots.extend(self.describe_where(vec![filter], false).await?);
            }
            if let [id] = &ids[..] {
                snapshots.extend(self.describe_one(id).await?);
                return Ok(snapshots);
            }
            // By a filter and not by SnapshotIds: one id that does not exist would fail the whole call. At most 200
            // values a filter (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Filter.html).
            for ids in ids.chunks(200) {
                let filter = filter("snapshot-id", ids.iter().cloned());
                snapshots.extend(self.describe_where(vec![filter], true).await?);
            }
            Ok(snapshots)
        }
        .boxed()
    }

    fn encrypts_by_default(&self) -> BoxFuture<'_, Result<bool>> {
        async {
            let asked = self.sdk.get_ebs_encryption_by_default().send().await;
            let reply = asked.map_err(|error| {
                classify(error, "ec2:GetEbsEncryptionByDefault", "in this Region").into_error()
            })?;
            Ok(reply.ebs_encryption_by_default() == Some(true))
        }
        .boxed()
    }

    fn add_tags<'a>(
        &'a self,
        id: &'a SnapshotId,
        tags: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let tags = tags.iter();
            let tags = tags.map(|(key, value)| Tag::builder().key(key).value(value).build());
            let asked = self.sdk.create_tags().resources(id.as_str());
            let sent = asked.set_tags(Some(tags.collect())).send().await;
            sent.map_err(|error| classify(error, "ec2:CreateTags", id.as_str()).into_error())?;
            Ok(())
        }
        .boxed()
    }
}

fn filter(name: &str, values: impl IntoIterator<Item = String>) -> Filter {
    Filter::builder()
        .name(name)
        .set_values(Some(values.into_iter().collect()))
        .build()
}

/// EC2's description in our terms; none without a usable id.
fn snapshot(told: &aws_sdk_ec2::types::Snapshot) -> Option<Snapshot> {
    let mut snapshot = Snapshot::unknown(told.snapshot_id()?.parse().ok()?);
    snapshot.volume_id = told.volume_id.clone();
    snapshot.state = told.state.as_ref().map(|state| match state {
        SnapshotState::Completed => State::Completed,
        SnapshotState::Pending => State::Pending,
        other => State::Other(other.as_str().to_owned()),
    });
    snapshot.state_message = told.state_message.clone().filter(|text| !text.is_empty());
    snapshot.progress = told.progress.clone().filter(|text| !text.is_empty());
    snapshot.start_time = told
        .start_time
        .and_then(|time| SystemTime::try_from(time).ok());
    snapshot.volume_size = told
        .volume_size
        .and_then(|gib| u64::try_from(gib).ok()?.checked_mul(1 << 30));
    snapshot.full_size = told
        .full_snapshot_size_in_bytes
        .and_then(|bytes| u64::try_from(bytes).ok());
    snapshot.encrypted = told.encrypted;
    snapshot.kms_key_id = told.kms_key_id.clone();
    snapshot.storage_tier = told
        .storage_tier
        .as_ref()
        .map(|tier| tier.as_str().to_owned());
    snapshot.owner_id = told.owner_id.clone();
    snapshot.description = told.description.clone().filter(|text| !text.is_empty());
    snapshot.tags = told
        .tags()
        .iter()
        .filter_map(|tag| Some((tag.key.clone()?, tag.value.clone().unwrap_or_default())))
        .collect();
    Some(snapshot)
}
