//! The calls of the EBS direct APIs that make a snapshot: StartSnapshot, PutSnapshotBlock, CompleteSnapshot.

use std::collections::BTreeMap;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::direct::block_index;
use super::record::{SnapshotRecord, StartedUpload, millis};
use super::reply::{Refusal, Reply, json_reply, json_text, object, seconds, text_or_null};
use super::view::StoredBlock;
use super::{ACCOUNT, BLOCK, Emulator};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartRequest {
    volume_size: Option<i64>,
    parent_snapshot_id: Option<String>,
    tags: Option<Vec<Tag>>,
    description: Option<String>,
    client_token: Option<String>,
    encrypted: Option<bool>,
    kms_key_arn: Option<String>,
    timeout: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    key: String,
    value: Option<String>,
}

impl Emulator {
    /// `here`: the request is for the Region of the emulator; in another one no snapshot can be a parent.
    pub(super) fn start_snapshot(&self, body: &[u8], here: bool) -> Result<Reply, Refusal> {
        let request: StartRequest = serde_json::from_slice(body).map_err(|error| {
            Refusal::new(400, "SerializationException", None, error.to_string())
        })?;
        let switches = self.switches();
        let now = self.now();
        let gib = match request.volume_size {
            None => {
                return Err(Refusal::malformed(
                    "1 validation error detected: Value null at 'volumeSize' failed to satisfy constraint: \
                     Member must not be null",
                ));
            }
            Some(gib) => u32::try_from(gib)
                .ok()
                .filter(|gib| (1..=65_536).contains(gib))
                .ok_or_else(|| {
                    Refusal::invalid(
                        "INVALID_VOLUME_SIZE",
                        format!("{gib} GiB is no volume size"),
                    )
                })?,
        };
        let minutes = request.timeout.unwrap_or(60);
        if !(10..=4320).contains(&minutes) {
            let must = match minutes < 10 {
                true => "have value greater than or equal to 10",
                false => "have value less than or equal to 4320",
            };
            return Err(Refusal::constraint("timeout", minutes, must));
        }
        let tags = request.tags.unwrap_or_default();
        if tags.len() > 50 {
            return Err(Refusal::invalid("INVALID_TAG", "more than 50 tags"));
        }
        let canonical: Value = serde_json::from_slice(body).unwrap_or_default();
        let canonical = canonical.to_string();
        let mut store = self.store.lock();
        if let Some(token) = &request.client_token {
            let same = store.snapshots.values().find_map(|snapshot| {
                let started = snapshot.record.started.as_ref()?;
                (started.client_token.as_ref() == Some(token)).then_some(&snapshot.record)
            });
            if let Some(record) = same {
                let started = record.started.as_ref();
                if started.is_some_and(|started| started.request == canonical) {
                    return Ok(started_reply(record));
                }
                return Err(Refusal::new(
                    409,
                    "ConflictException",
                    None,
                    "Current request does not match request stored with this token.",
                ));
            }
        }
        let encryption = (request.encrypted, request.kms_key_arn.as_ref());
        let parent = match &request.parent_snapshot_id {
            None => None,
            Some(id) => {
                if encryption != (None, None) {
                    return Err(Refusal::invalid(
                        "INVALID_PARAMETER_VALUE",
                        "Encrypted and KmsKeyArn cannot be combined with ParentSnapshotId",
                    ));
                }
                let parent = store
                    .get(id)
                    .map(|snapshot| &snapshot.record)
                    .filter(|record| here && record.owner == ACCOUNT)
                    .ok_or_else(|| Refusal::not_found(id))?;
                if parent.state_at(millis(now)).0 != "completed" {
                    let message = format!("Source snapshot ({id}) is not complete.");
                    return Err(Refusal::invalid("INVALID_SNAPSHOT_ID", message));
                }
                if parent.volume_gib > gib {
                    return Err(Refusal::invalid(
                        "INVALID_VOLUME_SIZE",
                        "The volume is smaller than that of the parent",
                    ));
                }
                if !parent.encrypted && switches.encryption_by_default {
                    return Err(Refusal::invalid(
                        "INVALID_PARAMETER_VALUE",
                        "The parent is not encrypted and encryption by default is on",
                    ));
                }
                Some(parent.clone())
            }
        };
        if request.encrypted == Some(false)
            && (switches.encryption_by_default || request.kms_key_arn.is_some())
        {
            return Err(Refusal::invalid(
                "INVALID_PARAMETER_VALUE",
                "Encrypted cannot be false with a key or with encryption by default",
            ));
        }
        let pending = store.snapshots.values().filter(|snapshot| {
            let record = &snapshot.record;
            record.started.is_some()
                && !record.deleted
                && record.state_at(millis(now)).0 == "pending"
        });
        if pending.count() >= switches.max_pending {
            return Err(Refusal::new(
                400,
                "ConcurrentLimitExceededException",
                None,
                "Too many pending snapshots",
            ));
        }
        let mut record = store.record(now);
        record.volume_gib = gib;
        record.description = request.description.unwrap_or_default();
        record.tags = tags
            .into_iter()
            .map(|tag| (tag.key, tag.value.unwrap_or_default()))
            .collect();
        let default_key = || {
            let region = &switches.region;
            format!("arn:aws:kms:{region}:{ACCOUNT}:key/aws-ebs")
        };
        if let Some(parent) = &parent {
            record.lineage = parent.lineage.clone();
            record.encrypted = parent.encrypted;
            record.kms_key = parent.kms_key.clone();
        } else if request.kms_key_arn.is_some()
            || request.encrypted == Some(true)
            || switches.encryption_by_default
        {
            record.encrypted = true;
            record.kms_key = request.kms_key_arn.or_else(|| Some(default_key()));
        }
        record.parent = request.parent_snapshot_id;
        record.started = Some(StartedUpload {
            client_token: request.client_token,
            request: canonical,
            timeout_ms: minutes * 60_000,
            last_put_ms: millis(now),
            put: BTreeMap::new(),
        });
        let reply = started_reply(&record);
        store
            .add(record, BTreeMap::new())
            .map_err(|_| Refusal::internal())?;
        Ok(reply)
    }

    pub(super) fn put_snapshot_block(
        &self,
        id: &str,
        index: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Reply, Refusal> {
        let switches = self.switches();
        self.throttle(
            "PutSnapshotBlock",
            id,
            switches.put_rps,
            switches.put_rps_snapshot,
        )?;
        let now = millis(self.now());
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let required = |name: &str, parameter: &str| {
            header(name).ok_or_else(|| {
                Refusal::malformed(format!(
                    "1 validation error detected: Value null at '{parameter}' failed to satisfy constraint: \
                     Member must not be null"
                ))
            })
        };
        let length = required("x-amz-data-length", "dataLength")?;
        let checksum = required("x-amz-checksum", "checksum")?;
        let algorithm = required("x-amz-checksum-algorithm", "checksumAlgorithm")?;
        let index = block_index(index)?;
        let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
        if checksum.is_empty() || !checksum.bytes().all(is_base64) {
            let must = "satisfy regular expression pattern: ^[A-Za-z0-9+/=]+$";
            return Err(Refusal::constraint("checksum", checksum, must));
        }
        if let Some(progress) = header("x-amz-progress") {
            let must = match progress.parse::<i64>() {
                Ok(..0) => Some("have value greater than or equal to 0"),
                Ok(101..) => Some("have value less than or equal to 100"),
                Ok(_) | Err(_) => None,
            };
            if let Some(must) = must {
                return Err(Refusal::constraint("progress", progress, must));
            }
        }
        if algorithm != "SHA256" {
            return Err(Refusal::invalid(
                "INVALID_PARAMETER_VALUE",
                format!(
                    "Unsupported Checksum Algorithm '{algorithm}', supported algorithms are SHA256"
                ),
            ));
        }
        // Before the store is locked: others are served meanwhile.
        let digest: [u8; 32] = Sha256::digest(body).into();
        let mut store = self.store.lock();
        let snapshot = store.get(id).ok_or_else(|| Refusal::not_found(id))?;
        let record = &snapshot.record;
        if record.started.is_none() {
            return Err(Refusal::not_found(id));
        }
        if now < record.start_ms.saturating_add(switches.visible_ms) {
            return Err(Refusal::not_found(id));
        }
        if record.settles_ms.is_some() || record.state_at(now).0 != "pending" {
            return Err(Refusal::invalid(
                "INVALID_SNAPSHOT_ID",
                "Snapshot is already completed",
            ));
        }
        if index >= record.block_count() {
            return Err(Refusal::invalid(
                "INVALID_BLOCK",
                format!("Block index {index} is beyond the volume size extent"),
            ));
        }
        if body.len() != BLOCK {
            return Err(Refusal::invalid(
                "INVALID_PARAMETER_VALUE",
                "Failed to read block data",
            ));
        }
        if length != BLOCK.to_string() {
            return Err(Refusal::invalid(
                "INVALID_BLOCK",
                format!("Block data length {length} is not valid, expected {BLOCK}"),
            ));
        }
        let computed = STANDARD.encode(digest);
        if computed != checksum {
            return Err(Refusal::new(
                403,
                "InvalidSignatureException",
                None,
                format!(
                    "The value passed in as x-amz-Checksum does not match the computed checksum. \
                     Computed checksum: {computed} expected checksum: {checksum}"
                ),
            ));
        }
        if switches.keep_puts {
            store
                .put(id, index, body)
                .map_err(|_| Refusal::internal())?;
        }
        if let Some(snapshot) = store.get_mut(id)
            && let Some(started) = &mut snapshot.record.started
        {
            started.put.insert(index, digest);
            started.last_put_ms = now;
        }
        let more = [
            ("x-amz-checksum", checksum),
            ("x-amz-checksum-algorithm", "SHA256"),
        ];
        Ok(json_text(201, &more, "{}".to_owned()))
    }

    pub(super) fn complete_snapshot(
        &self,
        id: &str,
        headers: &HeaderMap,
    ) -> Result<Reply, Refusal> {
        let switches = self.switches();
        let now = millis(self.now());
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let count: u64 = header("x-amz-changedblockscount")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Refusal::malformed("x-amz-ChangedBlocksCount is required"))?;
        let checksum = [
            header("x-amz-checksum"),
            header("x-amz-checksum-algorithm"),
            header("x-amz-checksum-aggregation-method"),
        ];
        if checksum.iter().any(Option::is_some) && checksum.iter().any(Option::is_none) {
            return Err(Refusal::invalid(
                "INVALID_PARAMETER_VALUE",
                "All of the checksum headers must be given, or none",
            ));
        }
        let mut store = self.store.lock();
        let snapshot = store.get(id).ok_or_else(|| Refusal::not_found(id))?;
        let mut record = snapshot.record.clone();
        let Some(started) = &record.started else {
            return Err(Refusal::invalid(
                "INVALID_SNAPSHOT_ID",
                "Snapshot is already completed",
            ));
        };
        if record.settles_ms.is_some() || record.state_at(now).0 != "pending" {
            let status = record.state_at(now).0;
            return Ok(json_reply(202, &json!({"Status": status})));
        }
        let mut linear = Sha256::new();
        for digest in started.put.values() {
            linear.update(digest);
        }
        let linear = STANDARD.encode(linear.finalize());
        let put = started.put.clone();
        // A wrong count or checksum is accepted, and fails later.
        (record.state, record.state_message) = if count != put.len() as u64 {
            let message = format!(
                "Changed blocks count mismatch: {count} stated, {} put",
                put.len()
            );
            ("error".into(), message)
        } else if checksum[0].is_some_and(|stated| stated != linear) {
            ("error".into(), "Checksum mismatch for snapshot".into())
        } else {
            ("completed".into(), String::new())
        };
        record.settles_ms = Some(now.saturating_add(switches.complete_ms));
        let parent = record
            .parent
            .as_ref()
            .and_then(|id| store.snapshots.get(id));
        let mut blocks = parent.map_or_else(BTreeMap::new, |parent| (*parent.blocks).clone());
        let writer = record.number;
        blocks.extend(
            put.into_iter()
                .map(|(index, digest)| (index, StoredBlock { writer, digest })),
        );
        let added: io::Result<()> = store.add(record, blocks);
        added.map_err(|_| Refusal::internal())?;
        Ok(json_reply(202, &json!({"Status": "pending"})))
    }
}

fn started_reply(record: &SnapshotRecord) -> Reply {
    let tags: Vec<Value> = record
        .tags
        .iter()
        .map(|(key, value)| json!({"Key": key, "Value": value}))
        .collect();
    let key = record.kms_key.as_deref();
    json_text(
        201,
        &[],
        object(&[
            ("BlockSize", BLOCK.to_string()),
            ("Description", Value::from(&*record.description).to_string()),
            ("KmsKeyArn", text_or_null(key)),
            ("OwnerId", Value::from(&*record.owner).to_string()),
            ("ParentSnapshotId", text_or_null(record.parent.as_deref())),
            ("SnapshotId", Value::from(&*record.id).to_string()),
            ("SseType", text_or_null(key.map(|_| "sse-kms"))),
            ("StartTime", seconds(record.start_ms)),
            ("Status", Value::from("pending").to_string()),
            ("Tags", Value::from(tags).to_string()),
            ("VolumeSize", record.volume_gib.to_string()),
        ]),
    )
}
