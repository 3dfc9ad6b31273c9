//! One GetSnapshotBlock: its request, its body, its SHA-256, and a second request when it is slow and that is wanted.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::byte_stream::ByteStream;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::hedge::Hedge;
use super::limiter::RequestSlot;
use super::wire::{Request, escaped};
use super::{BlockRequest, Client, EbsCall, HEADERS_TIMEOUT};
use crate::aws::ErrorClass;
use crate::block::{Block, Digest};
use crate::digest::DigestOutcome;
use crate::error::{Error, Kind, Remedy};
use crate::source::Wanted;

/// How long a body may send no byte before the request is sent again.
const BODY_TIMEOUT: Duration = Duration::from_secs(6);

/// The reply for a block, not verified yet.
struct BlockReply {
    bytes: Bytes,
    /// The SHA-256 that the service promises, in base64; empty when it promises none.
    checksum: String,
}

type Outcome<T> = Result<T, ErrorClass>;

impl Client {
    /// One attempt: a digest of wrong bytes is left in `wrong`.
    pub(super) async fn get_once(
        &self,
        call: &EbsCall,
        block: &BlockRequest<'_>,
        wanted: &Wanted,
        wrong: &mut Option<Digest>,
    ) -> Outcome<Block> {
        let is_waited_for = wanted.is_wanted();
        let reply = match &self.hedge {
            None => {
                let place = self.place(block, wanted).await?;
                self.fetch(call, block, place).await?
            }
            Some(hedge) => self.fetch_hedged(call, block, wanted, hedge).await?,
        };
        let promised = &reply.checksum;
        let Some(digest) = promised_digest(promised) else {
            let what = format!("no SHA-256 came with the block, but {promised:?}");
            return Err(ErrorClass::Retry(call.error(Kind::Corrupt, &what)));
        };
        // Alone, there is no other block to hash beside it.
        let is_alone = self.limiter.in_flight() == 0;
        let at_once = is_waited_for || is_alone;
        let checked = self.digester.check(&reply.bytes, &digest, at_once);
        match checked.await {
            DigestOutcome::Good => Ok(Block::Data(reply.bytes, digest)),
            DigestOutcome::Zero => Ok(Block::Zero),
            DigestOutcome::Wrong(found) => {
                let is = STANDARD.encode(found);
                let what = format!("SHA-256 is {is}, the service promised {promised:?}");
                let error = call.error(Kind::Corrupt, &what);
                warn!("{error}");
                Err(if *wrong == Some(found) {
                    ErrorClass::Permanent(error.with_remedy(Remedy::MarkDamage))
                } else {
                    *wrong = Some(found);
                    ErrorClass::Retry(error)
                })
            }
        }
    }

    async fn place(&self, block: &BlockRequest<'_>, wanted: &Wanted) -> Outcome<RequestSlot> {
        let place = self.limiter.block(block.snapshot, wanted).await;
        place.map_err(ErrorClass::Permanent)
    }

    /// One request and its whole reply.
    async fn fetch(
        &self,
        call: &EbsCall,
        block: &BlockRequest<'_>,
        place: RequestSlot,
    ) -> Outcome<BlockReply> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let sent = self.requests.send(call.action);
        let request = Request {
            method: "GET",
            path: format!("/snapshots/{}/blocks/{}", block.snapshot, block.index),
            query: format!("?blockToken={}", escaped(block.token.secret())),
            headers: &[],
            body: None,
            action: call.action,
            target: &call.target,
        };
        let send = async { self.route(call).await?.send(&request).await };
        let reply = self.within(call, HEADERS_TIMEOUT, send).await;
        let reply = reply.inspect_err(|_| self.limiter.unanswered())?;
        let mut reply = reply.inspect_err(|class| self.note_throttle(call, class))?;
        let bytes = self.body(call, &mut reply, block.len, block.len).await;
        let bytes = bytes.inspect_err(|_| self.limiter.unanswered())?;
        check_length(call, &reply, &bytes, block.len)?;
        let took = place.served();
        sent.answered();
        if let Some(hedge) = &self.hedge {
            hedge.answered(took, Instant::now());
        }
        let header = |name| reply.headers().get(name).unwrap_or_default();
        let is_sha256 = header("x-amz-checksum-algorithm") == "SHA256";
        let checksum = if is_sha256 {
            header("x-amz-checksum")
        } else {
            ""
        };
        Ok(BlockReply {
            bytes,
            checksum: checksum.to_owned(),
        })
    }

    /// Blocks are asked for too fast: lists have a quota of their own.
    pub(super) fn note_throttle(&self, call: &EbsCall, class: &ErrorClass) {
        if class.is_throttle() {
            self.throttles.fetch_add(1, Ordering::Relaxed);
            self.requests.throttle(call.action);
            self.limiter.throttled();
            if let Some(hedge) = &self.hedge {
                hedge.throttled(Instant::now());
            }
        }
    }

    /// Like `get`, with a second request when the first is slow; the first good reply wins. Waiting for a slot is not slowness.
    async fn fetch_hedged(
        &self,
        call: &EbsCall,
        block: &BlockRequest<'_>,
        wanted: &Wanted,
        hedge: &Hedge,
    ) -> Outcome<BlockReply> {
        let place = self.place(block, wanted).await?;
        let Some(delay) = hedge.delay(Instant::now()) else {
            return self.fetch(call, block, place).await;
        };
        let mut first = pin!(self.fetch(call, block, place));
        tokio::select! {
            biased;
            reply = &mut first => return reply,
            () = sleep(delay) => {}
        }
        if !hedge.may_send_twice(Instant::now()) {
            return first.await;
        }
        let second = pin!(async {
            let place = self.place(block, wanted).await?;
            self.hedges.fetch_add(1, Ordering::Relaxed);
            self.requests.hedge(call.action);
            self.fetch(call, block, place).await
        });
        match select(first, second).await {
            Either::Left((Ok(reply), _)) | Either::Right((Ok(reply), _)) => Ok(reply),
            Either::Left((Err(_), other)) => other.await,
            Either::Right((Err(_), other)) => other.await,
        }
    }
}

/// The digest that the service promised in base64.
fn promised_digest(text: &str) -> Option<Digest> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// A block's body has the block's length, and so do its headers.
fn check_length(call: &EbsCall, reply: &HttpResponse, bytes: &Bytes, len: usize) -> Outcome<()> {
    let stated = reply.headers().get("x-amz-data-length");
    let stated = stated.and_then(|len| len.parse::<usize>().ok());
    if bytes.len() == len && stated.is_none_or(|stated| stated == len) {
        return Ok(());
    }
    let what = format!("{} bytes, {stated:?} stated, must be {len}", bytes.len());
    Err(ErrorClass::Retry(call.error(Kind::Corrupt, &what)))
}

impl Client {
    /// The whole body of a reply, of at most `limit` bytes. It may take any time while bytes arrive.
    pub(super) async fn body(
        &self,
        call: &EbsCall,
        reply: &mut HttpResponse,
        limit: usize,
        expected: usize,
    ) -> Outcome<Bytes> {
        let too_long = || {
            let what = format!("a body of more than {limit} bytes");
            ErrorClass::Retry(call.error(Kind::Corrupt, &what))
        };
        let mut chunks = ByteStream::new(reply.take_body());
        let mut bytes = BytesMut::with_capacity(expected);
        while let Some(chunk) = self.within(call, BODY_TIMEOUT, chunks.next()).await? {
            let chunk = chunk.map_err(|error| {
                let EbsCall { action, target, .. } = call;
                let what = format!("{action} {target}: body cut after {} bytes", bytes.len());
                ErrorClass::Retry(Error::with_source(Kind::Unavailable, what, error))
            })?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_long());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}
