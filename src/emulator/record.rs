//! The record of a snapshot: everything but its blocks.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::synthetic::SyntheticVolume;

/// Blocks of a GiB.
pub(super) const PER_GIB: u32 = 2048;

/// EC2's description of a snapshot, and the emulator's own state.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct SnapshotRecord {
    /// The snapshot's number: what other snapshots' maps call it.
    pub(super) number: u32,
    pub(super) id: String,
    pub(super) volume_id: String,
    /// The snapshot before it: of the same volume, or StartSnapshot's parent.
    pub(super) parent: Option<String>,
    /// Snapshots of one lineage can be compared.
    pub(super) lineage: String,
    /// `pending`, `completed` or `error`, once `settles` has passed.
    pub(super) state: String,
    pub(super) state_message: String,
    pub(super) start_ms: u64,
    /// When it leaves `pending`; until then it is that. None: not before CompleteSnapshot.
    pub(super) settles_ms: Option<u64>,
    pub(super) volume_gib: u32,
    pub(super) description: String,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) encrypted: bool,
    pub(super) kms_key: Option<String>,
    pub(super) tier: String,
    pub(super) owner: String,
    pub(super) public: bool,
    /// Whether the caller may use its KMS key.
    pub(super) kms_denied: bool,
    pub(super) deleted: bool,
    /// The image that uses it: EC2 does not delete it then.
    #[serde(default)]
    pub(super) image: String,
    /// Whether it is locked: EC2 does not delete it then.
    #[serde(default)]
    pub(super) locked: bool,
    /// Set for what StartSnapshot makes.
    pub(super) started: Option<StartedUpload>,
    pub(super) synthetic: Option<SyntheticVolume>,
    /// When EC2 knows it.
    #[serde(default)]
    pub(super) shown_ms: u64,
}

/// The request of StartSnapshot.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct StartedUpload {
    pub(super) client_token: Option<String>,
    /// The request, to know a repetition from a conflict.
    pub(super) request: String,
    pub(super) timeout_ms: u64,
    pub(super) last_put_ms: u64,
    /// Blocks put so far: digests by index.
    #[serde(skip)]
    pub(super) put: BTreeMap<u32, [u8; 32]>,
}

impl SnapshotRecord {
    /// A pending snapshot with defaults.
    pub(super) fn new(number: u32, id: String, owner: &str, start_ms: u64) -> Self {
        Self {
            number,
            id: id.clone(),
            volume_id: "vol-ffffffff".into(),
            parent: None,
            lineage: id,
            state: "pending".into(),
            state_message: String::new(),
            start_ms,
            settles_ms: None,
            volume_gib: 1,
            description: String::new(),
            tags: BTreeMap::new(),
            encrypted: false,
            kms_key: None,
            tier: "standard".into(),
            owner: owner.into(),
            public: false,
            kms_denied: false,
            deleted: false,
            image: String::new(),
            locked: false,
            started: None,
            synthetic: None,
            shown_ms: 0,
        }
    }

    /// Whether EC2 knows it by now.
    pub(super) fn is_shown(&self, now_ms: u64) -> bool {
        now_ms >= self.shown_ms
    }

    /// Its progress, by the time that has passed.
    pub(super) fn percent(&self, now_ms: u64) -> u64 {
        match (self.state_at(now_ms).0, self.settles_ms) {
            ("completed", _) => 100,
            ("pending", Some(settles)) => {
                let all = settles.saturating_sub(self.start_ms).max(1);
                let past = now_ms.saturating_sub(self.start_ms);
                (past.saturating_mul(100) / all).min(99)
            }
            _ => 0,
        }
    }

    /// Its state as of now: `pending` until it settles, `error` when a started one was forgotten.
    pub(super) fn state_at(&self, now_ms: u64) -> (&str, &str) {
        match self.settles_ms {
            Some(settles) if now_ms >= settles => (&self.state, &self.state_message),
            Some(_) => ("pending", ""),
            None => match &self.started {
                Some(started)
                    if now_ms > started.last_put_ms.saturating_add(started.timeout_ms) =>
                {
                    ("error", "Snapshot timed out")
                }
                _ => ("pending", ""),
            },
        }
    }

    pub(super) fn block_count(&self) -> u32 {
        self.volume_gib.saturating_mul(PER_GIB)
    }
}

/// Sets a tag or an attribute of a snapshot, for the control endpoint.
pub(super) fn set_attribute(
    record: &mut SnapshotRecord,
    name: &str,
    value: &str,
) -> Result<(), String> {
    let yes = value == "1" || value == "true";
    match name {
        "tier" => record.tier = value.into(),
        "state" => record.state = value.into(),
        "state_message" => record.state_message = value.into(),
        "owner" => record.owner = value.into(),
        "public" => record.public = yes,
        "kms_denied" => record.kms_denied = yes,
        "encrypted" => record.encrypted = yes,
        "kms_key" => {
            record.encrypted = true;
            record.kms_key = Some(value.into());
        }
        "deleted" => record.deleted = yes,
        "image" => record.image = value.into(),
        "locked" => record.locked = yes,
        "tag" => {
            let (key, value) = value.split_once('=').ok_or("a tag is KEY=VALUE")?;
            record.tags.insert(key.into(), value.into());
        }
        _ => return Err(format!("a snapshot has no attribute {name:?}")),
    }
    Ok(())
}

pub(super) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

pub(super) fn iso8601(ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
}
