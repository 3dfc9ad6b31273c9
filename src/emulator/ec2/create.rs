//! CreateSnapshot and CreateSnapshots: limits first, then all snapshots of a call at one instant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::super::Emulator;
use super::super::record::{SnapshotRecord, millis};
use super::super::reply::Refusal;
use super::super::store::{EmulatorStore, SnapshotRequest, is_volume_id};
use super::snapshots::snapshot_fields;
use super::volumes::attached_to;
use super::{MOST_TAGS, QueryForm};

/// Volumes that a call may leave out
/// (<https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceSpecification.html>).
const MOST_EXCLUDED: usize = 40;

impl Emulator {
    pub(in super::super) fn create_snapshot(
        &self,
        volume: &str,
        description: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<SnapshotRecord, Refusal> {
        if !is_volume_id(volume) {
            let message =
                format!("Value ({volume}) for parameter volumeId is invalid. Expected: 'vol-...'.");
            return Err(Refusal::new(400, "InvalidParameterValue", None, message));
        }
        let mut made = self.make(&[(volume.to_owned(), tags)], description)?;
        made.pop().ok_or_else(Refusal::internal)
    }

    pub(super) fn create_snapshots(&self, form: &QueryForm, here: bool) -> Result<String, Refusal> {
        let instance = form
            .get("InstanceSpecification.InstanceId")
            .unwrap_or_default();
        let invalid = |message: String| Refusal::new(400, "InvalidParameterValue", None, message);
        let volumes = self.volumes_here(here)?;
        let attached = attached_to(&volumes, instance);
        let Some((boot, data)) = attached.split_first() else {
            let message = format!("The instance ID '{instance}' does not exist");
            return Err(Refusal::new(
                400,
                "InvalidInstanceID.NotFound",
                None,
                message,
            ));
        };
        let no_boot = form.get("InstanceSpecification.ExcludeBootVolume") == Some("true");
        let excluded = form.list("InstanceSpecification.ExcludeDataVolumeId");
        if excluded.len() > MOST_EXCLUDED {
            let message = format!("At most {MOST_EXCLUDED} data volumes can be excluded");
            return Err(invalid(message));
        }
        if let Some(id) = excluded
            .iter()
            .find(|id| !data.iter().any(|volume| volume.id == **id))
        {
            return Err(invalid(format!(
                "The volume '{id}' is not a data volume of '{instance}'"
            )));
        }
        let boot = (!no_boot).then_some(boot);
        let data = data
            .iter()
            .filter(|volume| !excluded.contains(&volume.id.as_str()));
        let copies = form.get("CopyTagsFromSource") == Some("volume");
        let asked = form.tags();
        let chosen: Vec<_> = boot
            .into_iter()
            .chain(data)
            .map(|volume| {
                let mut tags = match copies {
                    true => volume.tags.clone(),
                    false => BTreeMap::new(),
                };
                tags.extend(asked.clone());
                (volume.id.clone(), tags)
            })
            .collect();
        if chosen.is_empty() {
            return Err(invalid("There are no volumes to snapshot".to_owned()));
        }
        let description = form.get("Description").unwrap_or_default();
        let now = millis(self.now());
        let mut text = String::from("<snapshotSet>");
        for record in self.make(&chosen, description)? {
            let fields = snapshot_fields(&record, None, now);
            let _ = write!(text, "<item>{fields}</item>");
        }
        text.push_str("</snapshotSet>");
        Ok(text)
    }

    /// Makes snapshots of all these volumes, or of none, with one start time.
    fn make(
        &self,
        volumes: &[(String, BTreeMap<String, String>)],
        description: &str,
    ) -> Result<Vec<SnapshotRecord>, Refusal> {
        let switches = self.switches();
        let now = self.now();
        let mut store = self.store.lock();
        let known = store.volumes().map_err(|_| Refusal::internal())?;
        for (volume, tags) in volumes {
            if !known.iter().any(|(id, _)| id == volume) {
                let message = format!("The volume '{volume}' does not exist.");
                return Err(Refusal::new(400, "InvalidVolume.NotFound", None, message));
            }
            if tags.len() > MOST_TAGS {
                let message = format!("More than {MOST_TAGS} tags on a snapshot of '{volume}'");
                return Err(Refusal::new(400, "TagLimitExceeded", None, message));
            }
        }
        let ids: Vec<&str> = volumes.iter().map(|(volume, _)| volume.as_str()).collect();
        let limits = CreationLimits {
            interval_ms: switches.volume_interval_ms,
            pending_of_volume: switches.max_pending_volume,
            pending: switches.max_pending_snapshots,
        };
        limits.check(&store, &ids, millis(now))?;
        let mut made = Vec::new();
        for (place, (volume, tags)) in (1..).zip(volumes) {
            let shown = Duration::from_millis(switches.shown_ms).saturating_mul(place);
            let making = SnapshotRequest {
                volume,
                description,
                tags: tags.clone(),
                now,
                settles: now + Duration::from_millis(switches.pending_ms),
                shown: now + shown,
                error: &switches.snapshot_error,
            };
            let record = store.create(making).map_err(|_| Refusal::internal())?;
            made.push(record);
        }
        Ok(made)
    }
}

/// Limits of snapshots that are made of volumes.
struct CreationLimits {
    interval_ms: u64,
    pending_of_volume: usize,
    pending: usize,
}

impl CreationLimits {
    fn check(&self, store: &EmulatorStore, volumes: &[&str], now: u64) -> Result<(), Refusal> {
        let of_volumes = || {
            let all = store.snapshots.values().map(|snapshot| &snapshot.record);
            // A synthetic snapshot of no volume is of its own lineage.
            let is_of_volume = |record: &&SnapshotRecord| {
                record.synthetic.is_none() || record.lineage == record.volume_id
            };
            all.filter(|record| record.volume_id != "vol-ffffffff")
                .filter(is_of_volume)
        };
        let is_pending = |record: &&SnapshotRecord| record.state_at(now).0 == "pending";
        if of_volumes().filter(is_pending).count() + volumes.len() > self.pending {
            let message = "The maximum number of pending snapshots has been reached";
            return Err(Refusal::new(
                400,
                "PendingSnapshotLimitExceeded",
                None,
                message,
            ));
        }
        for volume in volumes {
            let own = || of_volumes().filter(|record| record.volume_id == *volume);
            let is_recent =
                |record: &SnapshotRecord| now < record.start_ms.saturating_add(self.interval_ms);
            if own().any(is_recent) {
                let message = "The maximum per volume CreateSnapshot request rate has been exceeded. Use an increasing or \
                               variable sleep interval between requests.";
                return Err(Refusal::new(
                    400,
                    "SnapshotCreationPerVolumeRateExceeded",
                    None,
                    message,
                ));
            }
            if own().filter(is_pending).count() >= self.pending_of_volume {
                let message = "Maximum allowed in-progress snapshots for a single volume exceeded.";
                return Err(Refusal::new(
                    400,
                    "ConcurrentSnapshotLimitExceeded",
                    None,
                    message,
                ));
            }
        }
        Ok(())
    }
}
