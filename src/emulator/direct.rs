//! The read calls of the EBS direct APIs: ListSnapshotBlocks, ListChangedBlocks, GetSnapshotBlock.

use std::time::SystemTime;

use super::page::{ListRequest, PageBlocks, PageEntry};
use super::record::{PER_GIB, millis};
use super::reply::{Refusal, Reply, block_reply};
use super::store::StoredSnapshot;
use super::switches::{Switches, happens};
use super::tokens::TokenKind;
use super::{ACCOUNT, Emulator};

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

    pub(super) fn number(&self, name: &str) -> Result<Option<i64>, Refusal> {
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

impl Emulator {
    pub(super) fn list_snapshot_blocks(&self, id: &str, query: &Query) -> Result<Reply, Refusal> {
        let switches = self.switches();
        self.throttle("ListSnapshotBlocks", id, switches.list_rps, u32::MAX)?;
        let now = self.now();
        let store = self.store.lock();
        let snapshot = readable(store.get(id), id, now, &switches)?;
        let (volume_gib, snapshot) = (snapshot.record.volume_gib, snapshot.view());
        drop(store);
        let call = ListRequest {
            scope: format!("list/{id}"),
            key: "Blocks",
            token: TokenKind::Page,
            volume_gib,
            life: Self::token_life(&switches),
        };
        let asked = self.asked_page(query, &call, now, &switches)?;
        let page =
            PageBlocks::collect(&asked, &switches, |start, max| snapshot.indexes(start, max));
        let seal = |index: u32| {
            let scope = format!("{id}/{index}");
            self.sealer
                .seal(TokenKind::Block, &scope, index.into(), now, call.life)
        };
        let entries = page.indexes.iter().map(|index| PageEntry {
            index: *index,
            tokens: vec![("BlockToken", Some(seal(*index)))],
        });
        let entries = entries.collect();
        Ok(self.page_reply(&call, &asked, entries, page.next, now, &switches))
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
        let volume_gib = to.record.volume_gib;
        let (from, to) = (from.view(), to.view());
        drop(store);
        let call = ListRequest {
            scope: format!("changed/{first}/{second}"),
            key: "ChangedBlocks",
            token: TokenKind::ChangedPage,
            volume_gib,
            life: Self::token_life(&switches),
        };
        let asked = self.asked_page(query, &call, now, &switches)?;
        let mut page = PageBlocks::collect(&asked, &switches, |start, max| {
            from.changed(&to, start, max)
        });
        let scanned = page.start.saturating_add(switches.scan_blocks);
        if switches.scan_blocks > 0 && scanned < volume_gib.saturating_mul(PER_GIB) {
            page.indexes.retain(|index| *index < scanned);
            page.next = Some(page.next.map_or(scanned, |next| next.min(scanned)));
        }
        let seal = |id: &str, index: u32| {
            let scope = format!("{id}/{index}");
            self.sealer
                .seal(TokenKind::Block, &scope, index.into(), now, call.life)
        };
        let entries = page.indexes.iter().map(|index| PageEntry {
            index: *index,
            tokens: vec![
                (
                    "FirstBlockToken",
                    from.holds(*index).then(|| seal(first, *index)),
                ),
                (
                    "SecondBlockToken",
                    to.holds(*index).then(|| seal(second, *index)),
                ),
            ],
        });
        let entries = entries.collect();
        Ok(self.page_reply(&call, &asked, entries, page.next, now, &switches))
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
        let index = block_index(index)?;
        let token = query.get("blockToken").ok_or_else(|| {
            Refusal::malformed(
                "1 validation error detected: Value null at 'blockToken' failed to satisfy constraint: \
                 Member must not be null",
            )
        })?;
        if token.is_empty() || !token.bytes().all(is_of_token) {
            let must = "satisfy regular expression pattern: ^[A-Za-z0-9+/=_-]+$";
            return Err(Refusal::constraint("blockToken", token, must));
        }
        let place = {
            let store = self.store.lock();
            readable(store.get(id), id, now, &switches)?;
            store.locate(id, index)
        };
        let scope = format!("{id}/{index}");
        let opened = self.sealer.open(
            TokenKind::Block,
            &scope,
            token,
            now,
            *self.tokens_from.lock(),
        );
        let (Ok(_), Some(place)) = (opened, place) else {
            return Err(Refusal::invalid(
                "INVALID_BLOCK_TOKEN",
                format!("The block token {token} is invalid."),
            ));
        };
        let (mut bytes, digest) = place.read().map_err(|_| Refusal::internal())?;
        if switches.rotten_block == Some(index) || happens(switches.corrupt) {
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
    snapshot: Option<&'a StoredSnapshot>,
    id: &str,
    now: SystemTime,
    switches: &Switches,
) -> Result<&'a StoredSnapshot, Refusal> {
    let digits = id.strip_prefix("snap-").unwrap_or_default();
    let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if digits.is_empty() || id.len() > 64 || !digits.bytes().all(is_hex) {
        let must = "satisfy regular expression pattern: ^snap-[0-9a-f]+$";
        return Err(Refusal::constraint("snapshotId", id, must));
    }
    let snapshot = snapshot.ok_or_else(|| Refusal::not_found(id))?;
    let record = &snapshot.record;
    let now = millis(now);
    let wrong = |message: String| Err(Refusal::invalid("INVALID_SNAPSHOT_ID", message));
    match record.state_at(now).0 {
        "completed" => {}
        "pending" => return Err(Refusal::not_found(id)),
        state => return wrong(format!("Snapshot {id} is in the state {state}")),
    }
    if record
        .settles_ms
        .is_some_and(|settled| now < settled.saturating_add(switches.visible_ms))
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

/// The index in a call's path.
pub(super) fn block_index(text: &str) -> Result<u32, Refusal> {
    let index: i64 = text.parse().map_err(|_| {
        Refusal::new(
            400,
            "SerializationException",
            None,
            format!("{text} is no block index"),
        )
    })?;
    if index < 0 {
        let must = "have value greater than or equal to 0";
        return Err(Refusal::constraint("blockIndex", index, must));
    }
    Ok(u32::try_from(index).unwrap_or(u32::MAX))
}

/// Whether a token may have this character: URL-safe base64, and the plain kind.
fn is_of_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"+/=_-".contains(&b)
}
