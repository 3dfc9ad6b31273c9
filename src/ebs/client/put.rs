//! StartSnapshot, PutSnapshotBlock and CompleteSnapshot: what makes a new snapshot.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_ebs::operation::start_snapshot::StartSnapshotError;
use aws_sdk_ebs::types::{ChecksumAggregationMethod, ChecksumAlgorithm, Status, Tag};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::wire::{Request, short_body};
use super::{CallRetries, Client, EbsCall, HEADERS_TIMEOUT};
use crate::aws::{ErrorClass, IamAction, classify};
use crate::block::{BLOCK_SIZE, BlockIndex, Digest};
use crate::error::{Error, Kind, Result};
use crate::snapshot::SnapshotId;
use crate::source::Wanted;

/// Time limit for one upload of a block, before it is sent again: uplinks are slow.
const PUT_TIMEOUT: Duration = Duration::from_secs(30);

/// What StartSnapshot is asked for. The same asked again, also by another process, is answered with the same snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSnapshot {
    /// GiB of the volume, 1 to 65,536.
    pub volume_gib: u32,
    /// The snapshot that it begins as a copy of; completed, and of the same account.
    pub parent: Option<SnapshotId>,
    /// Keys and values.
    pub tags: Vec<(String, String)>,
    /// At most 255 characters.
    pub description: String,
    /// The ARN of the KMS key to encrypt it with; none for a child, which has its parent's.
    pub kms_key: Option<String>,
    /// A unique token of this request, at most 64 characters.
    pub client_token: String,
    /// Minutes without a PutSnapshotBlock after which EBS gives it up, 10 to 4,320.
    pub timeout_minutes: u16,
}

/// The answer of StartSnapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedSnapshot {
    /// The new snapshot.
    pub id: SnapshotId,
    /// Whether it is encrypted: blocks that are not put then read as anything on a volume made of it.
    pub(crate) is_encrypted: bool,
    /// Whether it takes blocks. EBS may repeat its first answer for a snapshot that is completed or deleted meanwhile: only
    /// EC2 knows.
    pub is_pending: bool,
    /// When it was started: long ago if the same request was made before.
    pub start_time: Option<SystemTime>,
}

type Sent<R, E> = std::result::Result<R, SdkError<E, HttpResponse>>;

impl Client {
    /// Starts a snapshot, or finds the one that was started with the same request. None when the client token was used for
    /// another request.
    ///
    /// # Errors
    /// `Denied`, `NotFound` (the parent), `Invalid` or `Throttled` (100 snapshots are pending) as EBS says.
    pub async fn start_snapshot(&self, new: &NewSnapshot) -> Result<Option<StartedSnapshot>> {
        let call = EbsCall {
            action: IamAction::StartSnapshot.name(),
            target: format!("of {} GiB", new.volume_gib),
            deadline: self.deadline(),
        };
        let tags = new.tags.iter();
        let tags = tags.map(|(key, value)| Tag::builder().key(key).value(value).build());
        let tags: Vec<Tag> = tags.collect();
        let conflict = &AtomicBool::new(false);
        let send = || {
            let request = self
                .sdk
                .start_snapshot()
                .volume_size(new.volume_gib.into())
                .set_parent_snapshot_id(new.parent.as_ref().map(ToString::to_string))
                .set_tags(Some(tags.clone()))
                .description(&new.description)
                .set_kms_key_arn(new.kms_key.clone())
                .client_token(&new.client_token)
                .timeout(new.timeout_minutes.into());
            async move {
                let sent = request.send().await;
                let refusal = sent.as_ref().err().and_then(SdkError::as_service_error);
                if refusal.is_some_and(StartSnapshotError::is_conflict_exception) {
                    conflict.store(true, Ordering::Relaxed);
                }
                sent
            }
        };
        let reply = match self.until_answered(&call, false, send).await {
            Err(_) if conflict.load(Ordering::Relaxed) => return Ok(None),
            reply => reply?,
        };
        let unusable = |what: &str| call.error(Kind::Invalid, what);
        let id = reply.snapshot_id().ok_or_else(|| unusable("no id"))?;
        if reply
            .block_size()
            .is_some_and(|size| size != BLOCK_SIZE as i32)
        {
            return Err(unusable("its blocks have another size than 512 KiB"));
        }
        let time = reply.start_time().copied();
        Ok(Some(StartedSnapshot {
            id: id.parse()?,
            is_encrypted: reply.kms_key_arn().is_some() || reply.sse_type().is_some(),
            is_pending: reply
                .status()
                .is_none_or(|status| *status == Status::Pending),
            start_time: time.and_then(|time| SystemTime::try_from(time).ok()),
        }))
    }

    /// Puts one block, of exactly 512 KiB, with its SHA-256. `is_young` while the snapshot may not be known everywhere yet.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` when the snapshot is no longer being made, and all that any call fails with.
    pub(crate) async fn put_block(
        &self,
        snapshot: &SnapshotId,
        index: BlockIndex,
        bytes: &Bytes,
        digest: &Digest,
        is_young: bool,
    ) -> Result<()> {
        let call = EbsCall {
            action: IamAction::PutSnapshotBlock.name(),
            target: format!("{snapshot} block {index}"),
            deadline: self.deadline(),
        };
        let (length, checksum) = (bytes.len().to_string(), STANDARD.encode(digest));
        let once = || async {
            let place = self.limiter.block(snapshot, &Wanted::already()).await;
            let place = place.map_err(ErrorClass::Permanent)?;
            self.puts.fetch_add(1, Ordering::Relaxed);
            let counted = self.requests.send(call.action);
            let request = Request {
                method: "PUT",
                path: format!("/snapshots/{snapshot}/blocks/{index}"),
                query: String::new(),
                headers: &[
                    ("content-type", "application/octet-stream"),
                    ("x-amz-data-length", &length),
                    ("x-amz-checksum", &checksum),
                    ("x-amz-checksum-algorithm", "SHA256"),
                ],
                body: Some(bytes.clone()),
                action: call.action,
                target: &call.target,
            };
            let send = async {
                let mut reply = self.route(&call).await?.send(&request).await?;
                // The status alone proves that the block was taken; the rest of the answer is empty.
                let _ = short_body(&mut reply).await;
                Ok(())
            };
            let sent = self.within(&call, PUT_TIMEOUT, send).await;
            let sent = sent.inspect_err(|_| self.limiter.unanswered())?;
            sent.map_err(|class| {
                self.note_throttle(&call, &class);
                later(class, is_young)
            })?;
            place.served();
            counted.answered();
            Ok(())
        };
        let mut waits = CallRetries::new();
        while self.one_try(&call, &mut waits, once()).await?.is_none() {}
        Ok(())
    }

    /// Says that all blocks are put: how many, and the SHA-256 over their SHA-256 by index. Whether EBS agrees, its state
    /// tells later.
    ///
    /// # Errors
    /// As for [`Client::put_block`].
    pub(crate) async fn complete_snapshot(
        &self,
        snapshot: &SnapshotId,
        count: u64,
        checksum: &Digest,
        is_young: bool,
    ) -> Result<()> {
        let call = EbsCall {
            action: IamAction::CompleteSnapshot.name(),
            target: snapshot.to_string(),
            deadline: self.deadline(),
        };
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let checksum = STANDARD.encode(checksum);
        let send = || {
            self.sdk
                .complete_snapshot()
                .snapshot_id(snapshot.as_str())
                .changed_blocks_count(count)
                .checksum(&checksum)
                .checksum_algorithm(ChecksumAlgorithm::ChecksumAlgorithmSha256)
                .checksum_aggregation_method(ChecksumAggregationMethod::ChecksumAggregationLinear)
                .send()
        };
        self.until_answered(&call, is_young, send).await.map(drop)
    }

    /// A call that is made once a snapshot, until it succeeds or fails for good.
    async fn until_answered<R, E, F>(
        &self,
        call: &EbsCall,
        is_young: bool,
        send: impl Fn() -> F,
    ) -> Result<R>
    where
        F: Future<Output = Sent<R, E>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let once = || async {
            let counted = self.requests.send(call.action);
            let reply = self.within(call, HEADERS_TIMEOUT, send()).await?;
            let reply = reply.map_err(|error| {
                let class = classify(error, self.action(call), &call.target);
                if class.is_throttle() {
                    self.requests.throttle(call.action);
                }
                later(class, is_young)
            })?;
            counted.answered();
            Ok(reply)
        };
        let mut waits = CallRetries::new();
        loop {
            let answer = self.one_try(call, &mut waits, once()).await;
            if let Some(answer) = answer.map_err(Error::from)? {
                return Ok(answer);
            }
        }
    }
}

/// "Does not exist" for up to two minutes after StartSnapshot (github.com/awslabs/coldsnap issue 43).
fn later(class: ErrorClass, is_young: bool) -> ErrorClass {
    match class {
        ErrorClass::Permanent(error) if is_young && error.kind() == Kind::NotFound => {
            ErrorClass::Retry(error)
        }
        class => class,
    }
}
