//! The settings that can change while the emulator runs: latency, rate limits, faults, lifetimes, permissions.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::REGION;

/// Every switch; probabilities are from 0 to 1.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Switches {
    /// Milliseconds before each reply of AWS's calls.
    pub(super) latency_ms: u64,
    /// A second more before the reply.
    pub(super) slow: f64,
    /// Never answer.
    pub(super) silent: bool,
    /// GetSnapshotBlock requests a second for the account, and for one snapshot.
    pub(super) get_rps: u32,
    pub(super) get_rps_snapshot: u32,
    /// PutSnapshotBlock requests a second for the account, and for one snapshot.
    pub(super) put_rps: u32,
    pub(super) put_rps_snapshot: u32,
    /// Whether blocks put are kept; else only their SHA-256 are, and reading them fails: for volumes larger than the disk.
    pub(super) keep_puts: bool,
    /// List requests a second, of either kind.
    pub(super) list_rps: u32,
    /// Requests a second to EC2, of each action.
    pub(super) ec2_rps: u32,
    /// Snapshots that may be pending by StartSnapshot.
    pub(super) max_pending: usize,
    /// Snapshots of volumes that may be pending, of the account and of one volume.
    pub(super) max_pending_snapshots: usize,
    pub(super) max_pending_volume: usize,
    /// Milliseconds between two snapshots of a volume.
    pub(super) volume_interval_ms: u64,

    /// An InternalServerException.
    pub(super) error_5xx: f64,
    /// The connection closed without a reply.
    pub(super) reset: f64,
    /// CreateSnapshot and CreateSnapshots done, and the connection closed without a reply.
    pub(super) lose_reply: f64,
    /// Half a reply, then nothing.
    pub(super) stall: f64,
    /// Half a reply, then the connection closed.
    pub(super) truncate: f64,
    /// A list reply, of the direct APIs or of EC2, whose body never ends.
    pub(super) endless_body: f64,
    /// Bytes a second of a list reply's body, of the direct APIs or of EC2; 0: as fast as it can be sent.
    pub(super) list_body_bps: u64,
    /// EC2's RequestLimitExceeded.
    pub(super) ec2_throttle: f64,
    /// Seconds between two times that all idle connections are closed; 0: never.
    pub(super) close_idle_s: u64,
    /// A flipped byte in a block, its checksum being the right one.
    pub(super) corrupt: f64,
    /// An empty page with a NextToken.
    pub(super) empty_page: f64,
    /// A page of one block, with the right NextToken.
    pub(super) short_page: f64,
    /// The most blocks in a page, whatever is asked for; 0: as many as are asked for.
    pub(super) page_blocks: usize,
    /// How many blocks of a volume one ListChangedBlocks scans; 0: as many as fill the page.
    pub(super) scan_blocks: u32,
    /// Explicit nulls, and a field that no document knows.
    pub(super) nulls: f64,
    /// A block of a listing whose token is null.
    pub(super) null_token: f64,
    /// A page cut in half that has no NextToken.
    pub(super) lost_next: f64,
    /// The page of this number (1: the first one) has all its blocks and never a NextToken.
    pub(super) lose_token_at: Option<u32>,
    /// A page without its list: no `Blocks`, no `ChangedBlocks`.
    pub(super) lose_list: f64,
    /// A page whose list is null.
    pub(super) null_list: f64,
    /// A list reply with status 200 and no body.
    pub(super) empty_body: f64,
    /// A list reply with status 200 and the body `{}`.
    pub(super) empty_object: f64,
    /// A list reply with status 204.
    pub(super) no_content: f64,
    /// A list reply with status 200 and the body of an error.
    pub(super) error_200: f64,
    /// An empty page whose NextToken leads to another such page, which leads back: A, B, A, B.
    pub(super) cycle: f64,
    /// A last page without VolumeSize, BlockSize and ExpiryTime.
    pub(super) bare_last_page: f64,
    /// A page that skips as many blocks as it should list.
    pub(super) drop_page: f64,
    /// The same for the page that is asked for from this block.
    pub(super) drop_at: Option<u32>,
    /// A page with blocks from before its requested start.
    pub(super) double_page: f64,
    /// This block of every snapshot is stored wrong.
    pub(super) rotten_block: Option<u32>,

    /// Seconds that block tokens live. Unset: 6.4 to 7.35 days, each reply its own, as recorded; AWS documents 7 days.
    pub(super) token_life_s: Option<u64>,
    /// Seconds that page tokens live; AWS documents 60 minutes.
    pub(super) page_token_life_s: u64,
    /// Milliseconds from CreateSnapshot to completed.
    pub(super) pending_ms: u64,
    /// Milliseconds from CreateSnapshot until EC2 knows the snapshot; each further one of a set as long after the one before.
    pub(super) shown_ms: u64,
    /// Snapshots of volumes end in error, for this reason; empty: they do not.
    pub(super) snapshot_error: String,
    /// The Region of the emulator; requests that are signed for another one find nothing.
    pub(super) region: String,
    /// Milliseconds from completed until the direct APIs know the snapshot, and from StartSnapshot until Put does.
    pub(super) visible_ms: u64,
    /// Milliseconds from CompleteSnapshot to completed or error.
    pub(super) complete_ms: u64,
    /// EBS encryption by default.
    pub(super) encryption_by_default: bool,
    /// Snapshots of the account beyond those of the folder, as EC2 describes them; the direct APIs know none of them.
    pub(super) account_snapshots: u64,
    /// The image of all instances does not exist any more.
    pub(super) image_deregistered: bool,
    /// IAM actions that are denied: `ebs:ListChangedBlocks`.
    pub(super) deny: Vec<String>,
    /// Session tokens (AWS_SESSION_TOKEN) that are expired.
    pub(super) expired_sessions: Vec<String>,
    /// Seconds from the first request with a session token until it is expired; 0: it lives for ever.
    pub(super) session_life_s: u64,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            latency_ms: 0,
            slow: 0.0,
            silent: false,
            // https://docs.aws.amazon.com/ebs/latest/userguide/ebs-resource-quotas.html
            get_rps: 1000,
            get_rps_snapshot: 1000,
            put_rps: 1000,
            put_rps_snapshot: 1000,
            keep_puts: true,
            list_rps: 50,
            ec2_rps: 1_000_000,
            max_pending: 100,
            max_pending_snapshots: 10_000,
            // https://repost.aws/knowledge-center/ebs-snapshot-stuck
            max_pending_volume: 5,
            volume_interval_ms: 0,
            error_5xx: 0.0,
            reset: 0.0,
            lose_reply: 0.0,
            stall: 0.0,
            truncate: 0.0,
            endless_body: 0.0,
            list_body_bps: 0,
            ec2_throttle: 0.0,
            close_idle_s: 0,
            corrupt: 0.0,
            empty_page: 0.0,
            short_page: 0.0,
            page_blocks: 0,
            scan_blocks: 0,
            nulls: 0.0,
            null_token: 0.0,
            lost_next: 0.0,
            lose_token_at: None,
            lose_list: 0.0,
            null_list: 0.0,
            empty_body: 0.0,
            empty_object: 0.0,
            no_content: 0.0,
            error_200: 0.0,
            cycle: 0.0,
            bare_last_page: 0.0,
            drop_page: 0.0,
            drop_at: None,
            double_page: 0.0,
            rotten_block: None,
            token_life_s: None,
            page_token_life_s: 3600,
            pending_ms: 0,
            shown_ms: 0,
            snapshot_error: String::new(),
            region: REGION.to_owned(),
            visible_ms: 0,
            complete_ms: 0,
            encryption_by_default: false,
            account_snapshots: 0,
            image_deregistered: false,
            deny: Vec::new(),
            expired_sessions: Vec::new(),
            session_life_s: 0,
        }
    }
}

impl Switches {
    /// Sets one switch from text: a number, `true`, or words with commas between them.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        use serde_json::Value;
        let failed = |error: serde_json::Error| format!("switch {name}={value}: {error}");
        let mut all = serde_json::to_value(&*self).map_err(failed)?;
        let Some(slot) = all.get_mut(name) else {
            return Err(format!("there is no switch {name:?}"));
        };
        *slot = match (&*slot, value) {
            (Value::Array(_), "") => Value::Array(Vec::new()),
            (Value::String(_), "") if name == "region" => Value::from(REGION),
            (Value::Array(_), words) => words.split(',').map(Value::from).collect(),
            (Value::String(_), text) => Value::from(text),
            (Value::Bool(_), "1") => Value::Bool(true),
            (Value::Bool(_), "0") => Value::Bool(false),
            (_, "") => Value::Null,
            (_, text) => serde_json::from_str(text).map_err(failed)?,
        };
        check(name, slot).map_err(|what| format!("switch {name}={value}: {what}"))?;
        *self = serde_json::from_value(all).map_err(failed)?;
        Ok(())
    }
}

/// A century in seconds: times of the emulator stay where every clock can show them.
pub(super) const CENTURY_S: u64 = 100 * 365 * 86_400;

/// The calls of the EBS direct APIs, as IAM names them.
const EBS_ACTIONS: [&str; 6] = [
    "ListSnapshotBlocks",
    "ListChangedBlocks",
    "GetSnapshotBlock",
    "StartSnapshot",
    "PutSnapshotBlock",
    "CompleteSnapshot",
];

/// Refuses values of the right type that would have no effect or exceed what clocks can show.
fn check(name: &str, value: &serde_json::Value) -> Result<(), String> {
    let number = value.as_u64().unwrap_or(0);
    if name.ends_with("_s") && number > CENTURY_S
        || name.ends_with("_ms") && number > CENTURY_S * 1000
    {
        return Err("more than a century".to_owned());
    }
    if name == "region" {
        // It is in XML, in ARNs and in the lines that a shell evaluates.
        let region = value.as_str().unwrap_or_default();
        let is_one = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if region.is_empty() || !region.bytes().all(is_one) {
            return Err("a Region is letters in lower case, digits and -".to_owned());
        }
    }
    if name == "deny" {
        for action in value.as_array().into_iter().flatten() {
            let action = action.as_str().unwrap_or_default();
            let known = match action.split_once(':') {
                Some(("ebs", call)) => EBS_ACTIONS.contains(&call),
                Some(("ec2", call)) => {
                    !call.is_empty() && call.bytes().all(|b| b.is_ascii_alphanumeric())
                }
                _ => false,
            };
            if !known {
                return Err(format!(
                    "{action:?} is no action of IAM that the emulator knows: write ebs:ListChangedBlocks or \
                     ec2:DescribeSnapshots"
                ));
            }
        }
    }
    Ok(())
}

/// Whether a fault of this probability happens now.
pub(super) fn happens(probability: f64) -> bool {
    probability > 0.0 && fastrand::f64() < probability
}

/// Token buckets that hold one second's worth, by name.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    levels: HashMap<String, (f64, Instant)>,
}

impl Buckets {
    /// Takes one request from a bucket that fills at `rate` a second; `false` when it is empty.
    pub(super) fn take(&mut self, name: &str, rate: u32) -> bool {
        let rate = f64::from(rate);
        let now = Instant::now();
        let (level, since) = self.levels.entry(name.to_owned()).or_insert((rate, now));
        let filled: Duration = now.duration_since(*since);
        *level = (*level + filled.as_secs_f64() * rate).min(rate);
        *since = now;
        if *level < 1.0 {
            return false;
        }
        *level -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_set_by_name_and_nonsense_is_refused() {
        let mut switches = Switches::default();
        switches.set("latency_ms", "15").unwrap();
        switches.set("reset", "0.02").unwrap();
        switches.set("silent", "1").unwrap();
        switches.set("rotten_block", "7").unwrap();
        switches
            .set("deny", "ebs:GetSnapshotBlock,ec2:DescribeSnapshots")
            .unwrap();
        assert_eq!((switches.latency_ms, switches.silent), (15, true));
        assert_eq!(switches.rotten_block, Some(7));
        assert_eq!(switches.deny.len(), 2);
        switches.set("deny", "").unwrap();
        switches.set("rotten_block", "").unwrap();
        assert!(switches.deny.is_empty() && switches.rotten_block.is_none());
        assert!(switches.set("no_such", "1").is_err());
        assert!(switches.set("latency_ms", "soon").is_err());
        assert!(switches.set("latency_ms", "").is_err());
        for wrong in [
            "ListChangedBlocks",
            "ebs:ListChangedBlock",
            "ec2:",
            "s3:GetObject",
        ] {
            assert!(switches.set("deny", wrong).is_err(), "{wrong}");
        }
        let for_ever = u64::MAX.to_string();
        for time in ["latency_ms", "token_life_s", "pending_ms", "visible_ms"] {
            assert!(switches.set(time, &for_ever).is_err(), "{time}");
        }
        switches.set("token_life_s", "60").unwrap();
        assert_eq!(switches.token_life_s, Some(60));
    }

    #[test]
    fn every_switch_is_in_the_reference() {
        let reference = include_str!("../../docs/emulator.md");
        let all = serde_json::to_value(Switches::default()).unwrap();
        for name in all.as_object().unwrap().keys() {
            assert!(reference.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_bucket_holds_a_second_and_fills_at_its_rate() {
        let mut buckets = Buckets::default();
        let taken = (0..500).filter(|_| buckets.take("a", 100)).count();
        assert!((100..110).contains(&taken), "{taken}");
        assert!(buckets.take("b", 100));
    }
}
