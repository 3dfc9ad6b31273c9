//! ListSnapshotBlocks and ListChangedBlocks: one reply of either, read and parsed here.
//!
//! The SDK's types cannot distinguish a missing list from one that is `null`: the first is a broken reply, the second an empty
//! page. They also read bodies without a limit and without a time-out by silence.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use super::wire::{Request, escaped};
use super::{CallFailure, CallRetries, Client, EbsCall, HEADERS_TIMEOUT};
use crate::aws::{ErrorClass, IamAction};
use crate::block::{BLOCK_SIZE, BlockIndex};
use crate::ebs::listing::{ChangedBlock, ListFrom, ListReply, Token};
use crate::error::Kind;
use crate::snapshot::SnapshotId;
use crate::time;

/// Bytes of a reply without its blocks, at most.
const MAX_FRAME: usize = 16 << 10;
/// Bytes of one block in a reply, at most: two tokens of up to 256 characters, which real ones do not reach, and their names.
const MAX_ENTRY: usize = 700;
/// Bytes of a page token, at most; real ones have 115. A listing remembers those that it follows.
const MAX_PAGE_TOKEN: usize = 1024;

impl Client {
    /// One page of at most `max` (100 to 10,000) blocks of a snapshot.
    pub(in crate::ebs) async fn list_snapshot(
        &self,
        snapshot: &SnapshotId,
        from: &ListFrom,
        max: u16,
        deadline: Instant,
    ) -> Result<ListReply<Token>, CallFailure> {
        let call = EbsCall {
            action: IamAction::ListSnapshotBlocks.name(),
            target: snapshot.to_string(),
            deadline,
        };
        let path = format!("/snapshots/{snapshot}/blocks");
        self.list(&call, &path, "", from, max, snapshot_reply).await
    }

    /// One page of at most `max` (100 to 10,000) blocks that differ between two snapshots.
    pub(in crate::ebs) async fn list_changed(
        &self,
        base: &SnapshotId,
        head: &SnapshotId,
        from: &ListFrom,
        max: u16,
        deadline: Instant,
    ) -> Result<ListReply<ChangedBlock>, CallFailure> {
        let call = EbsCall {
            action: IamAction::ListChangedBlocks.name(),
            target: format!("{base}..{head}"),
            deadline,
        };
        let path = format!("/snapshots/{head}/changedblocks");
        let pair = format!("firstSnapshotId={base}&");
        self.list(&call, &path, &pair, from, max, delta_reply).await
    }

    /// A list call of either kind, until it succeeds or fails for good.
    async fn list<T>(
        &self,
        call: &EbsCall,
        path: &str,
        pair: &str,
        from: &ListFrom,
        max: u16,
        parse: fn(&[u8]) -> Result<ParsedReply<T>, String>,
    ) -> Result<ListReply<T>, CallFailure> {
        let once = || async {
            let permit = self.limiter.list().await.map_err(ErrorClass::Permanent)?;
            let max = permit.page(max);
            let start = match from {
                ListFrom::Index(index) => format!("startingBlockIndex={index}"),
                ListFrom::Page(token) => format!("pageToken={}", escaped(token.secret())),
            };
            let request = Request {
                method: "GET",
                path: path.to_owned(),
                query: format!("?{pair}maxResults={max}&{start}"),
                headers: &[],
                body: None,
                action: call.action,
                target: &call.target,
            };
            self.lists.fetch_add(1, Ordering::Relaxed);
            let sent = self.requests.send(call.action);
            let send = async { self.route(call).await?.send(&request).await };
            let reply = self.within(call, HEADERS_TIMEOUT, send).await;
            let reply = reply.inspect_err(|_| self.limiter.list_unanswered())?;
            let mut reply = reply.inspect_err(|class| {
                if class.is_throttle() {
                    self.throttles.fetch_add(1, Ordering::Relaxed);
                    self.requests.throttle(call.action);
                    self.limiter.list_throttled();
                }
            })?;
            let limit = MAX_FRAME + usize::from(max) * MAX_ENTRY;
            let body = self.body(call, &mut reply, limit, 64 << 10).await;
            let body = body.inspect_err(|_| self.limiter.list_unanswered())?;
            permit.answered();
            sent.answered();
            let broken = |what: String| {
                let what = format!("broken reply: {what}");
                ErrorClass::Retry(call.error(Kind::Corrupt, &what))
            };
            let (reply, block_size) = parse(&body).map_err(broken)?;
            if block_size.is_some_and(|size| size != i64::from(BLOCK_SIZE)) {
                let what = format!("its blocks have {block_size:?} bytes, not {BLOCK_SIZE}");
                return Err(ErrorClass::Permanent(call.error(Kind::Invalid, &what)));
            }
            Ok(reply)
        };
        let mut waits = CallRetries::new();
        loop {
            if let Some(reply) = self.one_try(call, &mut waits, once()).await? {
                return Ok(reply);
            }
        }
    }
}

/// A list as it can be in a reply: missing (`None`), `null` (`Some(None)`) or there.
type List<T> = Option<Option<Vec<T>>>;

/// Distinguishes a missing key from one that is `null`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A reply of either call; unknown members are ignored. Beside its list each member can be missing or `null`, and the last page
/// often leaves all of them out.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawReply<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    blocks: List<RawBlock<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    changed_blocks: List<RawChangedBlock<'a>>,
    block_size: Option<i64>,
    /// Seconds since 1970, with milliseconds.
    expiry_time: Option<f64>,
    /// In GiB.
    volume_size: Option<i64>,
    #[serde(borrow)]
    next_token: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawBlock<'a> {
    block_index: Option<i64>,
    #[serde(borrow)]
    block_token: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawChangedBlock<'a> {
    block_index: Option<i64>,
    #[serde(borrow)]
    first_block_token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    second_block_token: Option<Cow<'a, str>>,
}

/// Reads a reply of ListSnapshotBlocks.
fn snapshot_reply(body: &[u8]) -> Result<ParsedReply<Token>, String> {
    let mut reply = raw(body)?;
    let list = reply.blocks.take().ok_or("it has no Blocks")?;
    let blocks = list.unwrap_or_default().into_iter().map(|block| {
        let token = token(block.block_token)?;
        Some((index(block.block_index)?, token))
    });
    reply.with(blocks.collect())
}

/// Reads a reply of ListChangedBlocks.
fn delta_reply(body: &[u8]) -> Result<ParsedReply<ChangedBlock>, String> {
    let mut reply = raw(body)?;
    let list = reply
        .changed_blocks
        .take()
        .ok_or("it has no ChangedBlocks")?;
    let blocks = list.unwrap_or_default().into_iter().map(|block| {
        let (base, head) = (block.first_block_token, block.second_block_token);
        // An empty token is no absent one: only that says that a snapshot does not hold the block.
        if [&base, &head]
            .iter()
            .any(|token| token.as_deref() == Some(""))
        {
            return None;
        }
        let block_is = match (token(base), token(head)) {
            (Some(_), Some(head)) => ChangedBlock::Rewritten(head),
            (None, Some(head)) => ChangedBlock::Gained(head),
            (Some(_), None) => ChangedBlock::Lost,
            // A block of neither snapshot.
            (None, None) => return None,
        };
        Some((index(block.block_index)?, block_is))
    });
    reply.with(blocks.collect())
}

fn raw(body: &[u8]) -> Result<RawReply<'_>, String> {
    serde_json::from_slice(body).map_err(|error| format!("it cannot be read as a list ({error})"))
}

fn token(text: Option<Cow<'_, str>>) -> Option<Token> {
    text.filter(|text| !text.is_empty()).map(Token::new)
}

fn index(number: Option<i64>) -> Option<BlockIndex> {
    // The API's own limit: https://docs.aws.amazon.com/ebs/latest/APIReference/API_Block.html
    let number = number.filter(|number| *number <= i64::from(i32::MAX))?;
    u32::try_from(number).ok().map(BlockIndex)
}

/// A reply, and the block size that it states.
type ParsedReply<T> = (ListReply<T>, Option<i64>);

impl RawReply<'_> {
    /// The reply with its blocks, none of which may lack its index or token: it would be taken for a hole.
    fn with<T>(self, blocks: Option<Vec<(BlockIndex, T)>>) -> Result<ParsedReply<T>, String> {
        let blocks = blocks.ok_or("a block lacks its index or its token")?;
        let next = token(self.next_token);
        if next
            .as_ref()
            .is_some_and(|next| next.secret().len() > MAX_PAGE_TOKEN)
        {
            return Err(format!(
                "its next token has more than {MAX_PAGE_TOKEN} bytes"
            ));
        }
        let bytes = |gib: i64| u64::try_from(gib).ok()?.checked_mul(1 << 30);
        let expiry = |seconds: f64| {
            let since = Duration::try_from_secs_f64(seconds).ok();
            // A later time is nonsense.
            let since = since.filter(|since| *since <= time::LAST)?;
            Some(SystemTime::UNIX_EPOCH + since)
        };
        let reply = ListReply {
            blocks,
            expiry: self.expiry_time.and_then(expiry),
            volume_size: self.volume_size.and_then(bytes),
            next,
        };
        Ok((reply, self.block_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(body: &str) -> Result<Vec<u32>, String> {
        let (reply, _) = snapshot_reply(body.as_bytes())?;
        Ok(reply.blocks.iter().map(|(index, _)| index.0).collect())
    }

    #[test]
    fn a_reply_without_its_list_is_broken_and_null_is_an_empty_list() {
        for body in [
            "",
            "{}",
            "null",
            "[]",
            "<Error/>",
            r#"{"NextToken":"t"}"#,
            r#"{"ChangedBlocks":[]}"#,
        ] {
            assert!(blocks(body).is_err(), "{body}");
        }
        assert_eq!(blocks(r#"{"Blocks":null}"#), Ok(vec![]));
        assert_eq!(blocks(r#"{"Blocks":[],"NextToken":null}"#), Ok(vec![]));
        assert!(delta_reply(br#"{"Blocks":[]}"#).is_err());
        let (empty, _) = delta_reply(br#"{"ChangedBlocks":null}"#).unwrap();
        assert!(empty.blocks.is_empty() && empty.next.is_none());
    }

    #[test]
    fn a_block_without_index_or_token_breaks_the_reply() {
        let of = |entries: &str| blocks(&format!(r#"{{"Blocks":[{entries}]}}"#));
        let block = |index: &str| format!(r#"{{"BlockIndex":{index},"BlockToken":"t"}}"#);
        assert_eq!(of(&block("7")), Ok(vec![7]));
        for broken in [
            r#"{"BlockIndex":7}"#,
            r#"{"BlockToken":"t"}"#,
            r#"{"BlockIndex":7,"BlockToken":""}"#,
            r#"{"BlockIndex":7,"BlockToken":null}"#,
            &block("-1"),
            &block("2147483648"),
            &block("1.5"),
        ] {
            assert!(of(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn tokens_classify_a_changed_block() {
        let body = br#"{"ChangedBlocks":[
            {"BlockIndex":1,"FirstBlockToken":"a","SecondBlockToken":"b"},
            {"BlockIndex":2,"SecondBlockToken":"c","FirstBlockToken":null},
            {"BlockIndex":3,"FirstBlockToken":"d","SecondBlockToken":null}],
            "LastEvaluatedBlockIndex":null,"BlockSize":524288,"VolumeSize":2,"ExpiryTime":1.790922504246E9}"#;
        let (reply, size) = delta_reply(body).unwrap();
        let blocks: Vec<_> = reply.blocks.into_iter().map(|(_, block)| block).collect();
        let expected = [
            ChangedBlock::Rewritten(Token::new("b")),
            ChangedBlock::Gained(Token::new("c")),
            ChangedBlock::Lost,
        ];
        assert_eq!(blocks, expected);
        assert_eq!((size, reply.volume_size), (Some(524_288), Some(2 << 30)));
        let expiry = reply.expiry.unwrap().duration_since(SystemTime::UNIX_EPOCH);
        assert_eq!(expiry.unwrap().as_millis(), 1_790_922_504_246);
        for broken in [
            r#"{"BlockIndex":1}"#,
            r#"{"BlockIndex":1,"FirstBlockToken":"a","SecondBlockToken":""}"#,
            r#"{"BlockIndex":1,"FirstBlockToken":"","SecondBlockToken":"b"}"#,
        ] {
            let body = format!(r#"{{"ChangedBlocks":[{broken}]}}"#);
            assert!(delta_reply(body.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn numbers_beyond_all_bounds_are_unknown() {
        for number in ["-1", "1e300", "99999999999999"] {
            let body = format!(r#"{{"Blocks":[],"ExpiryTime":{number}}}"#);
            let (reply, _) = snapshot_reply(body.as_bytes()).unwrap();
            assert_eq!(reply.expiry, None, "{number}");
        }
        let huge = br#"{"Blocks":[],"VolumeSize":9223372036854775807}"#;
        assert_eq!(snapshot_reply(huge).unwrap().0.volume_size, None);
    }
}
