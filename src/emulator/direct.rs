//! The read calls of the EBS direct APIs: ListSnapshotBlocks, ListChangedBlocks, GetSnapshotBlock.
#![expect(clippy::indexing_slicing, reason = "a JSON object takes any name")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::record::{PER_GIB, millis};
use super::reply::{Refusal, Reply, block_reply, json_reply};
use super::store::Snapshot;
use super::switches::{Switches, strikes};
use super::{ACCOUNT, BLOCK, Emulator};

/// A call's query parameters.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    Refusal::new(
                        400,
                        "SerializationException",
                        None,
                        format!("{name} is no number"),
                    )
                })
            })
            .transpose()
    }
}

/// Where a page begins and how much it holds.
#[derive(Debug)]
struct Page {
    start: u32,
    max: usize,
    /// Whether another page came before this one.
    goes_on: bool,
}

impl Emulator {
    pub(super) fn list_snapshot_blocks(&self, id: &str, query: &Query) -> Result<Reply, Refusal> {
        let switches = self.switches();
        self.throttle("ListSnapshotBlocks", id, switches.list_rps, u32::MAX)?;
        let now = self.now();
        let store = self.store.lock();
        let snapshot = readable(store.get(id), id, now, &switches)?;
        let (gib, snapshot) = (snapshot.record.volume_gib, snapshot.view());
        drop(store);
        let scope = format!("list/{id}");
        let page = self.page(query, &scope, now)?.at_most(switches.page_blocks);
        let start = faulty_start(&page, &switches, |max| {
            snapshot.indexes(page.start, max + 1).last().copied()
        });
        let mut indexes = snapshot.indexes(start, page.max + 1);
        let mut next = (indexes.len() > page.max).then(|| indexes.pop()).flatten();
        shorten(&switches, start, &mut indexes, &mut next);
        if strikes(switches.lost_next) {
            next = None;
            indexes.truncate(indexes.len() / 2);
        }
        let life = Duration::from_secs(switches.token_life_s);
        let mut blocks: Vec<Value> = indexes
            .iter()
            .map(|index| {
                let token = self
                    .sealer
                    .seal(&format!("{id}/{index}"), *index, now, life);
                json!({"BlockIndex": index, "BlockToken": token})
            })
            .collect();
        if strikes(switches.null_token)
            && let Some(block) = blocks.last_mut()
        {
            block["BlockToken"] = Value::Null;
        }
        let body = json!({"Blocks": blocks});
        Ok(self.page_reply(body, gib, &scope, next, now, &switches))
    }

    pub(super) fn list_changed_blocks(
        &self,
        second: &str,
        query: &Query,
    ) -> Result<Reply, Refusal> {
        let switches = self.switches();
        self.throttle("ListChangedBlocks", second, switches.list_rps, u32::MAX)?;
        let now = self.now();
        let first = query
            .get("firstSnapshotId")
            .filter(|id| !id.is_empty())
            .ok_or_else(|| {
                Refusal::invalid(
                    "INVALID_SNAPSHOT_ID",
                    "First snapshot should not be empty or null",
                )
            })?;
        let store = self.store.lock();
        let from = readable(store.get(first), first, now, &switches)?;
        let to = readable(store.get(second), second, now, &switches)?;
        if from.record.lineage != to.record.lineage {
            let message = format!("{first} and {second} are not related");
            return Err(Refusal::invalid("UNRELATED_SNAPSHOTS", message));
        }
        let gib = to.record.volume_gib;
        let (from, to) = (from.view(), to.view());
        drop(store);
        let scope = format!("changed/{first}/{second}");
        let page = self.page(query, &scope, now)?.at_most(switches.page_blocks);
        let start = faulty_start(&page, &switches, |max| {
            from.changed(&to, page.start, max + 1).last().copied()
        });
        let mut indexes = from.changed(&to, start, page.max + 1);
        let mut next = (indexes.len() > page.max).then(|| indexes.pop()).flatten();
        shorten(&switches, start, &mut indexes, &mut next);
        if switches.scan_blocks > 0 && start.saturating_add(switches.scan_blocks) < gib * PER_GIB {
            let end = start + switches.scan_blocks;
            indexes.retain(|index| *index < end);
            next = Some(next.map_or(end, |next| next.min(end)));
        }
        let life = Duration::from_secs(switches.token_life_s);
        let nulls = strikes(switches.nulls);
        let blocks: Vec<Value> = indexes
            .iter()
            .map(|index| {
                let mut block = json!({"BlockIndex": index});
                for (name, id, side) in [
                    ("FirstBlockToken", first, &from),
                    ("SecondBlockToken", second, &to),
                ] {
                    if side.holds(*index) {
                        let scope = format!("{id}/{index}");
                        block[name] = self.sealer.seal(&scope, *index, now, life).into();
                    } else if nulls {
                        block[name] = Value::Null;
                    }
                }
                block
            })
            .collect();
        let body = json!({"ChangedBlocks": blocks});
        Ok(self.page_reply(body, gib, &scope, next, now, &switches))
    }

    /// The page asked for; the page token wins over the index.
    fn page(&self, query: &Query, scope: &str, now: SystemTime) -> Result<Page, Refusal> {
        let max = query.number("maxResults")?.unwrap_or(100);
        let constraint = |name: &str, value: i64, what: &str| {
            Refusal::malformed(format!(
                "1 validation error detected: Value '{value}' at '{name}' failed to satisfy constraint: \
                 Member must have value {what}"
            ))
        };
        if max < 100 {
            return Err(constraint(
                "maxResults",
                max,
                "greater than or equal to 100",
            ));
        }
        if max > 10_000 {
            return Err(constraint("maxResults", max, "less than or equal to 10000"));
        }
        let start = query.number("startingBlockIndex")?.unwrap_or(0);
        if start < 0 {
            return Err(constraint(
                "startingBlockIndex",
                start,
                "greater than or equal to 0",
            ));
        }
        let token = query.get("pageToken").filter(|token| !token.is_empty());
        let start = match token {
            None => u32::try_from(start).unwrap_or(u32::MAX),
            Some(token) => self
                .sealer
                .open(scope, token, now, *self.tokens_from.lock())
                .map_err(|bad| {
                    Refusal::invalid(
                        "INVALID_PAGE_TOKEN",
                        format!("The page token is not valid: {bad:?}"),
                    )
                })?,
        };
        Ok(Page {
            start,
            max: usize::try_from(max).unwrap_or(100),
            goes_on: token.is_some() || start > 0,
        })
    }

    fn page_reply(
        &self,
        mut body: Value,
        gib: u32,
        scope: &str,
        next: Option<u32>,
        now: SystemTime,
        switches: &Switches,
    ) -> Reply {
        if next.is_some() || !strikes(switches.bare_last_page) {
            // Observed lives are about as long as documented, to the reply.
            let expiry = now + Duration::from_secs(switches.token_life_s);
            let expiry = expiry.duration_since(UNIX_EPOCH).unwrap_or_default();
            body["ExpiryTime"] = json!(expiry.as_secs_f64());
            body["VolumeSize"] = gib.into();
            body["BlockSize"] = BLOCK.into();
        }
        if let Some(next) = next {
            let life = Duration::from_secs(switches.page_token_life_s);
            body["NextToken"] = self.sealer.seal(scope, next, now, life).into();
        }
        if strikes(switches.nulls) {
            if next.is_none() {
                body["NextToken"] = Value::Null;
            }
            body["ExpiryTime"] = Value::Null;
            body["LastEvaluatedBlockIndex"] = Value::Null;
        }
        json_reply(200, &body)
    }

    pub(super) fn get_snapshot_block(
        &self,
        id: &str,
        index: &str,
        query: &Query,
    ) -> Result<Reply, Refusal> {
        let switches = self.switches();
        let (account, snapshot) = (switches.get_rps, switches.get_rps_snapshot);
        self.throttle("GetSnapshotBlock", id, account, snapshot)?;
        let now = self.now();
        let index: u32 = index
            .parse()
            .map_err(|_| Refusal::malformed("blockIndex must be a number of at least 0"))?;
        let token = query.get("blockToken").ok_or_else(|| {
            Refusal::malformed("Value null at 'blockToken' failed to satisfy constraint")
        })?;
        let place = {
            let store = self.store.lock();
            readable(store.get(id), id, now, &switches)?;
            store.locate(id, index)
        };
        let scope = format!("{id}/{index}");
        let opened = self
            .sealer
            .open(&scope, token, now, *self.tokens_from.lock());
        let (Ok(_), Some(place)) = (opened, place) else {
            return Err(Refusal::invalid(
                "INVALID_BLOCK_TOKEN",
                "The provided block token is not valid",
            ));
        };
        let (mut bytes, digest) = place.read().map_err(|_| Refusal::internal())?;
        if switches.rotten_block == Some(index) || strikes(switches.corrupt) {
            let mut wrong = bytes.to_vec();
            let at = if switches.rotten_block == Some(index) {
                4711
            } else {
                fastrand::usize(..wrong.len())
            };
            if let Some(byte) = wrong.get_mut(at) {
                *byte ^= 1;
            }
            bytes = wrong.into();
        }
        Ok(block_reply(bytes, &digest))
    }

    /// Takes the call out of the account's and the snapshot's bucket.
    pub(super) fn throttle(
        &self,
        call: &str,
        id: &str,
        account: u32,
        snapshot: u32,
    ) -> Result<(), Refusal> {
        let mut buckets = self.buckets.lock();
        let (code, reason) = if !buckets.take(call, account) {
            ("RequestThrottledException", "ACCOUNT_THROTTLED")
        } else if snapshot < u32::MAX && !buckets.take(&format!("{call}/{id}"), snapshot) {
            ("RequestThrottledException", "RESOURCE_LEVEL_THROTTLE")
        } else {
            return Ok(());
        };
        drop(buckets);
        self.count("throttled");
        Err(Refusal::new(400, code, Some(reason), "Rate exceeded"))
    }
}

/// The snapshot, if the direct APIs let the caller read it now.
pub(super) fn readable<'a>(
    snapshot: Option<&'a Snapshot>,
    id: &str,
    now: SystemTime,
    switches: &Switches,
) -> Result<&'a Snapshot, Refusal> {
    let digits = id.strip_prefix("snap-").unwrap_or_default();
    if digits.is_empty() || id.len() > 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Refusal::malformed(format!(
            "1 validation error detected: Value '{id}' at 'snapshotId' failed to satisfy constraint: \
             Member must satisfy regular expression pattern: ^snap-[0-9a-f]+$"
        )));
    }
    let snapshot = snapshot.ok_or_else(|| Refusal::not_found(id))?;
    let record = &snapshot.record;
    let now = millis(now);
    let wrong = |message: String| Err(Refusal::invalid("INVALID_SNAPSHOT_ID", message));
    match record.state_at(now).0 {
        "completed" => {}
        "pending" => return wrong(format!("Snapshot {id} is not complete")),
        state => return wrong(format!("Snapshot {id} is in the state {state}")),
    }
    if record
        .settles_ms
        .is_some_and(|settled| now < settled + switches.visible_ms)
    {
        return Err(Refusal::not_found(id));
    }
    if record.public && record.owner != ACCOUNT {
        return wrong("Public snapshots are not supported".into());
    }
    if record.tier == "archive" {
        return wrong(format!("Snapshot {id} is archived"));
    }
    if record.kms_denied {
        return Err(Refusal::new(
            404,
            "ResourceNotFoundException",
            Some("DEPENDENCY_RESOURCE_NOT_FOUND"),
            "KMS key not found",
        ));
    }
    Ok(snapshot)
}

impl Page {
    /// At most so many blocks; 0: as many as are asked for.
    fn at_most(mut self, blocks: usize) -> Self {
        if blocks > 0 {
            self.max = self.max.min(blocks);
        }
        self
    }
}

/// A page that begins at `start`, cut to nothing or to one block, with the token that leads on from there.
fn shorten(switches: &Switches, start: u32, indexes: &mut Vec<u32>, next: &mut Option<u32>) {
    if strikes(switches.empty_page) {
        *next = Some(start);
        indexes.clear();
    } else if strikes(switches.short_page)
        && let Some(second) = indexes.get(1)
    {
        *next = Some(*second);
        indexes.truncate(1);
    }
}

/// Where a page really begins when it is to be dropped or doubled. `after` gives the block after so many.
fn faulty_start(page: &Page, switches: &Switches, after: impl Fn(usize) -> Option<u32>) -> u32 {
    let dropped = switches.drop_at == Some(page.start);
    if !page.goes_on && !dropped {
        return page.start;
    }
    if dropped || strikes(switches.drop_page) {
        return after(page.max).unwrap_or(page.start);
    }
    if strikes(switches.double_page) {
        return page
            .start
            .saturating_sub(u32::try_from(page.max).unwrap_or(0));
    }
    page.start
}
