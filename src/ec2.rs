//! EC2's descriptions of snapshots, their tags, and the calls that make snapshots of volumes. The only module with
//! aws-sdk-ec2 in it: [`mod@call`] makes one call, [`pages`] a listing of many, [`ids`] describes named snapshots, [`volumes`]
//! volumes and instances, [`create`] makes snapshots, [`mod@inventory`] describes an instance and its surroundings.

mod call;
mod create;
mod ids;
mod inventory;
mod machine;
mod pages;
mod volumes;

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sdk_ec2::operation::describe_snapshots::DescribeSnapshotsOutput;
use aws_sdk_ec2::operation::describe_snapshots::builders::DescribeSnapshotsFluentBuilder;
use aws_sdk_ec2::types::{Filter, SnapshotState as ReportedState, Tag};
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;

use crate::aws::{Aws, IamAction, Service, ServiceConfig, service_url};
use crate::error::{Error, Result};
use crate::snapshot::{
    Descriptions, ListingProgress, ListingReport, Selector, Snapshot, SnapshotId, SnapshotState,
};

use call::{CallName, CallRefusal, Ec2Access, Repeat, call};
use ids::describe_known;
use pages::{DescribedPage, PageItem, list_pages};

/// Snapshots a page: the most that DescribeSnapshots takes.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSnapshots.html>
const PAGE: i32 = 1000;
/// Values a filter (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Filter.html>).
const VALUES: usize = 200;

/// The URL of EC2 in the Region of `aws`.
///
/// # Errors
/// `Invalid` for an endpoint that cannot be used, and without a Region.
pub(crate) async fn url(aws: &Aws) -> Result<String> {
    service_url!(aws_sdk_ec2::config::endpoint, aws, Service::Ec2)
}

/// A client of EC2 in one Region.
#[derive(Debug)]
pub struct Ec2 {
    sdk: aws_sdk_ec2::Client,
    access: Ec2Access,
}

impl Ec2 {
    /// A client with the Region, credentials and endpoint of `service`.
    pub fn new(service: &ServiceConfig) -> Self {
        let config = aws_sdk_ec2::config::Builder::from(&service.sdk)
            // The SDK gives a throttled call up after 2 s, and its time-outs are by duration: `call` has its own.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .disable_read_timeout()
                    .disable_operation_timeout()
                    .disable_operation_attempt_timeout()
                    .build(),
            )
            .build();
        Self {
            sdk: aws_sdk_ec2::Client::from_conf(config),
            access: Ec2Access {
                credentials: service.credentials.clone(),
                http: service.http.clone(),
                requests: service.requests.clone(),
            },
        }
    }

    /// One call that describes snapshots.
    async fn describe_once(
        &self,
        name: CallName<'_>,
        waiting: &(dyn Fn(&Error) + Send + Sync),
        fill: impl Fn(DescribeSnapshotsFluentBuilder) -> DescribeSnapshotsFluentBuilder,
    ) -> std::result::Result<DescribedPage<Snapshot>, CallRefusal> {
        let send = |watch| {
            let request = fill(self.sdk.describe_snapshots());
            request.customize().interceptor(watch).send()
        };
        let reply: DescribeSnapshotsOutput = call(&self.access, name, waiting, send).await?;
        let snapshots = reply.snapshots.unwrap_or_default();
        Ok(DescribedPage {
            items: snapshots.into_iter().filter_map(snapshot).collect(),
            next: reply.next_token.filter(|token| !token.is_empty()),
        })
    }

    /// All snapshots of this account that match every filter.
    async fn describe_own(
        &self,
        filters: &[Filter],
        progress: &DescribeProgress<'_>,
    ) -> Result<Vec<Snapshot>> {
        let fetch = |token: Option<String>| {
            async move {
                let name = CallName {
                    action: Snapshot::ACTION,
                    target: "in this Region",
                    repeat: match &token {
                        Some(_) => Repeat::Listing,
                        None => Repeat::Single,
                    },
                };
                let fill = |request: DescribeSnapshotsFluentBuilder| {
                    request
                        .owner_ids("self")
                        .set_filters((!filters.is_empty()).then(|| filters.to_vec()))
                        .max_results(PAGE)
                        .set_next_token(token.clone())
                };
                let waiting = |error: &Error| progress.waits(error);
                let page = self.describe_once(name, &waiting, fill).await;
                page.map_err(Into::into)
            }
            .boxed()
        };
        list_pages(&|listed| progress.listed(listed), fetch).await
    }

    /// Named snapshots, own, shared or public ones, without those that EC2 does not know. Not by a filter: EC2 would search
    /// all public snapshots for them.
    async fn describe_named(
        &self,
        ids: &[SnapshotId],
        progress: &DescribeProgress<'_>,
    ) -> Result<Vec<Snapshot>> {
        let describe = |ids: Vec<SnapshotId>| {
            async move {
                let target = match &ids[..] {
                    [id] => id.to_string(),
                    ids => format!("of {} snapshots", ids.len()),
                };
                let name = CallName {
                    action: Snapshot::ACTION,
                    target: &target,
                    repeat: Repeat::Single,
                };
                let fill = |request: DescribeSnapshotsFluentBuilder| {
                    let ids = ids.iter().map(ToString::to_string).collect();
                    // MaxResults may not be sent along with ids.
                    request.set_snapshot_ids(Some(ids))
                };
                let waiting = |error: &Error| progress.waits(error);
                let page = self.describe_once(name, &waiting, fill).await?;
                let mut snapshots = page.items;
                snapshots.retain(|snapshot| ids.contains(&snapshot.id));
                progress.listed(snapshots.len());
                Ok(snapshots)
            }
            .boxed()
        };
        describe_known(ids, describe).await
    }

    async fn describe_selected(
        &self,
        select: &[Selector],
        report: ListingReport<'_>,
    ) -> Result<Vec<Snapshot>> {
        let progress = DescribeProgress::new(report);
        if select.is_empty() {
            return self.describe_own(&[], &progress).await;
        }
        let (mut ids, mut volumes, mut tags) = (Vec::new(), Vec::new(), Vec::new());
        for selector in select {
            match selector {
                Selector::Snapshot(id) => ids.push(id.clone()),
                Selector::Volume(volume) => volumes.push(volume.clone()),
                Selector::Tag { key, value } => tags.push((format!("tag:{key}"), value.clone())),
            }
        }
        ids.sort_unstable();
        ids.dedup();
        let mut snapshots = self.describe_named(&ids, &progress).await?;
        let by_volume = volumes.chunks(VALUES).map(|of| filter("volume-id", of));
        let by_tag = tags
            .iter()
            .map(|(tag, value)| filter(tag, std::slice::from_ref(value)));
        for filter in by_volume.chain(by_tag) {
            progress.next_part();
            snapshots.extend(self.describe_own(&[filter], &progress).await?);
        }
        Ok(snapshots)
    }
}

/// Seconds between two log lines about the progress of a long listing.
const LOG_EVERY: u64 = 10;

/// How far a listing of several parts is.
struct DescribeProgress<'a> {
    report: ListingReport<'a>,
    /// Snapshots of the parts that are done, and of the present one.
    counts: Mutex<(usize, usize)>,
    /// When it was last logged.
    logged: Mutex<Instant>,
}

impl<'a> DescribeProgress<'a> {
    fn new(report: ListingReport<'a>) -> Self {
        Self {
            report,
            counts: Mutex::default(),
            logged: Mutex::new(Instant::now()),
        }
    }

    fn next_part(&self) {
        let mut counts = self.counts.lock();
        *counts = (counts.0 + counts.1, 0);
    }

    /// Records a reply: the number of snapshots of the present part.
    fn listed(&self, listed: usize) {
        let mut counts = self.counts.lock();
        counts.1 = listed;
        let snapshots = counts.0 + listed;
        drop(counts);
        let mut logged = self.logged.lock();
        if logged.elapsed().as_secs() >= LOG_EVERY {
            *logged = Instant::now();
            info!("{snapshots} snapshots listed so far");
        }
        drop(logged);
        (self.report)(&ListingProgress {
            snapshots,
            waiting: None,
        });
    }

    fn waits(&self, error: &Error) {
        let counts = *self.counts.lock();
        (self.report)(&ListingProgress {
            snapshots: counts.0 + counts.1,
            waiting: Some(error.clone()),
        });
    }
}

impl Descriptions for Ec2 {
    fn describe<'a>(&'a self, select: &'a [Selector]) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        self.describe_selected(select, &|_| {}).boxed()
    }

    fn describe_reporting<'a>(
        &'a self,
        select: &'a [Selector],
        report: ListingReport<'a>,
    ) -> BoxFuture<'a, Result<Vec<Snapshot>>> {
        self.describe_selected(select, report).boxed()
    }

    fn encrypts_by_default(&self) -> BoxFuture<'_, Result<bool>> {
        async {
            let name = CallName {
                action: IamAction::GetEbsEncryptionByDefault.name(),
                target: "in this Region",
                repeat: Repeat::Single,
            };
            let send = |watch| {
                let request = self.sdk.get_ebs_encryption_by_default();
                request.customize().interceptor(watch).send()
            };
            let reply = call(&self.access, name, &|_| {}, send).await?;
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
            let name = CallName {
                action: IamAction::CreateTags.name(),
                target: id.as_str(),
                repeat: Repeat::Single,
            };
            let send = |watch| {
                let request = self.sdk.create_tags().resources(id.as_str());
                let request = request.set_tags(Some(tags.iter().map(tag).collect()));
                request.customize().interceptor(watch).send()
            };
            call(&self.access, name, &|_| {}, send).await?;
            Ok(())
        }
        .boxed()
    }
}

fn filter(name: &str, values: &[String]) -> Filter {
    let values = Some(values.to_vec());
    Filter::builder().name(name).set_values(values).build()
}

/// A tag as EC2's type.
fn tag((key, value): &(String, String)) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// Tags as our type.
fn tags(tags: Option<Vec<Tag>>) -> BTreeMap<String, String> {
    let tags = tags.unwrap_or_default().into_iter();
    tags.filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default())))
        .collect()
}

/// EC2's description as our type; none without a usable id.
fn snapshot(from: aws_sdk_ec2::types::Snapshot) -> Option<Snapshot> {
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let mut snapshot = Snapshot::unknown(from.snapshot_id?.parse().ok()?);
    snapshot.volume_id = from.volume_id;
    snapshot.state = from.state.map(|state| match state {
        ReportedState::Completed => SnapshotState::Completed,
        ReportedState::Pending => SnapshotState::Pending,
        other => SnapshotState::Other(other.as_str().to_owned()),
    });
    snapshot.state_message = text(from.state_message);
    snapshot.progress = text(from.progress);
    let start = from.start_time;
    snapshot.start_time = start.and_then(|time| SystemTime::try_from(time).ok());
    let size = from.volume_size.and_then(|gib| u64::try_from(gib).ok());
    snapshot.volume_size = size.and_then(|gib| gib.checked_mul(1 << 30));
    let held = from.full_snapshot_size_in_bytes;
    snapshot.full_size = held.and_then(|bytes| u64::try_from(bytes).ok());
    snapshot.encrypted = from.encrypted;
    snapshot.kms_key_id = from.kms_key_id;
    snapshot.storage_tier = from.storage_tier.map(|tier| tier.as_str().to_owned());
    snapshot.owner_id = from.owner_id;
    snapshot.description = text(from.description);
    snapshot.tags = tags(from.tags);
    Some(snapshot)
}
