//! ListSnapshotBlocks and ListChangedBlocks: a page of either.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use aws_sdk_ebs::operation::list_changed_blocks::ListChangedBlocksOutput;
use aws_sdk_ebs::operation::list_snapshot_blocks::ListSnapshotBlocksOutput;
use aws_sdk_ebs::primitives::DateTime;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use tokio::time::Instant;

use super::{Call, Client, Failure, HEADERS_TIMEOUT, Waits, number};
use crate::aws::{ErrorClass, classify};
use crate::block::{BLOCK_SIZE, BlockIndex};
use crate::error::Kind;
use crate::snapshot::SnapshotId;

/// One reply of ListSnapshotBlocks or ListChangedBlocks. Everything in it can be missing.
#[derive(Debug)]
pub(in crate::ebs) struct Listing<T> {
    /// Each block's index and what the reply says of it: its token, or none for a block that the second snapshot zeroed.
    pub(in crate::ebs) blocks: Vec<(i32, T)>,
    /// When the tokens stop working.
    pub(in crate::ebs) expiry: Option<SystemTime>,
    /// The volume's size in bytes.
    pub(in crate::ebs) volume_size: Option<u64>,
    /// The token of the next page; none at the end.
    pub(in crate::ebs) next: Option<String>,
}

/// Where a listing begins.
#[derive(Debug)]
pub(in crate::ebs) enum From {
    /// The first held block at or after this one.
    Index(BlockIndex),
    /// The page after the one that brought this token.
    Page(String),
}

impl Client {
    /// One page of at most `max` (100 to 10,000) blocks of a snapshot.
    pub(in crate::ebs) async fn list(
        &self,
        snapshot: &SnapshotId,
        from: &From,
        max: u16,
        deadline: Instant,
    ) -> std::result::Result<Listing<String>, Failure> {
        let call = Call {
            action: "ebs:ListSnapshotBlocks",
            target: snapshot.to_string(),
            deadline,
        };
        let send = || {
            let request = self
                .sdk
                .list_snapshot_blocks()
                .snapshot_id(snapshot.as_str())
                .max_results(max.into());
            let request = match from {
                From::Index(index) => request.starting_block_index(number(*index)),
                From::Page(token) => request.next_token(token),
            };
            request.send()
        };
        let told = |reply: ListSnapshotBlocksOutput| {
            let blocks = reply.blocks.unwrap_or_default().into_iter();
            Told {
                blocks: blocks
                    .map(|block| Some((block.block_index?, block.block_token?)))
                    .collect(),
                block_size: reply.block_size,
                expiry: reply.expiry_time,
                volume_size: reply.volume_size,
                next: reply.next_token,
            }
        };
        self.listing(&call, send, told).await
    }

    /// One page of at most `max` (100 to 10,000) blocks that differ between two snapshots: with the token of the block in
    /// `head`, or none where only `base` holds it.
    pub(in crate::ebs) async fn list_changed(
        &self,
        base: &SnapshotId,
        head: &SnapshotId,
        from: &From,
        max: u16,
        deadline: Instant,
    ) -> std::result::Result<Listing<Option<String>>, Failure> {
        let call = Call {
            action: "ebs:ListChangedBlocks",
            target: format!("{base}..{head}"),
            deadline,
        };
        let send = || {
            let request = self
                .sdk
                .list_changed_blocks()
                .first_snapshot_id(base.as_str())
                .second_snapshot_id(head.as_str())
                .max_results(max.into());
            let request = match from {
                From::Index(index) => request.starting_block_index(number(*index)),
                From::Page(token) => request.next_token(token),
            };
            request.send()
        };
        let told = |reply: ListChangedBlocksOutput| {
            let blocks = reply.changed_blocks.unwrap_or_default().into_iter();
            let whole = blocks.map(|block| {
                // Neither token is a block of neither snapshot.
                let (first, second) = (block.first_block_token, block.second_block_token);
                let known = first.is_some() || second.is_some();
                Some((block.block_index.filter(|_| known)?, second))
            });
            Told {
                blocks: whole.collect(),
                block_size: reply.block_size,
                expiry: reply.expiry_time,
                volume_size: reply.volume_size,
                next: reply.next_token,
            }
        };
        self.listing(&call, send, told).await
    }

    /// A list call of either kind, until it succeeds or fails for good.
    async fn listing<T, R, E, F>(
        &self,
        call: &Call,
        send: impl Fn() -> F,
        told: impl Fn(R) -> Told<T>,
    ) -> std::result::Result<Listing<T>, Failure>
    where
        F: Future<Output = std::result::Result<R, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let once = || async {
            let _place = self.limiter.list().await.map_err(ErrorClass::Permanent)?;
            self.lists.fetch_add(1, Ordering::Relaxed);
            let reply = call.within(HEADERS_TIMEOUT, send()).await;
            let reply = reply.inspect_err(|_| self.http.forget_idle())?;
            let reply = reply.map_err(|error| classify(error, self.action(call), &call.target));
            let reply = reply.inspect_err(|class| {
                if class.is_throttle() {
                    self.throttles.fetch_add(1, Ordering::Relaxed);
                }
            })?;
            told(reply).listing(call)
        };
        let mut waits = Waits::new();
        loop {
            if let Some(listing) = self.one_try(call, &mut waits, once()).await? {
                return Ok(listing);
            }
        }
    }
}

/// What a reply of either list call tells.
struct Told<T> {
    /// None when one of them was told by halves: it must not be taken for a hole.
    blocks: Option<Vec<(i32, T)>>,
    block_size: Option<i32>,
    expiry: Option<DateTime>,
    /// In GiB.
    volume_size: Option<i64>,
    next: Option<String>,
}

impl<T> Told<T> {
    fn listing(self, call: &Call) -> std::result::Result<Listing<T>, ErrorClass> {
        let told = self.block_size;
        if told.is_some_and(|size| size != BLOCK_SIZE as i32) {
            let what = format!("blocks of {told:?} bytes, not {BLOCK_SIZE}");
            return Err(ErrorClass::Permanent(call.error(Kind::Invalid, &what)));
        }
        let blocks = self.blocks.ok_or_else(|| {
            ErrorClass::Retry(call.error(Kind::Corrupt, "a block without index or token"))
        })?;
        let bytes = |gib: i64| u64::try_from(gib).ok()?.checked_mul(1 << 30);
        Ok(Listing {
            blocks,
            expiry: self.expiry.and_then(|at| SystemTime::try_from(at).ok()),
            volume_size: self.volume_size.and_then(bytes),
            next: self.next.filter(|token| !token.is_empty()),
        })
    }
}
