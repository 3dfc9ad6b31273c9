//! Ownership and decisions as tables; runs against an account in memory, in paused time.

mod account;
mod decisions;
mod runs;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::*;
use crate::snapshot::{SELF_TAG, SnapshotId, SnapshotState, VolumeInfo};

const CYCLE: &str = "nightly/2026-06-30T12:00:00Z";

fn at(text: &str) -> SystemTime {
    humantime::parse_rfc3339(text).unwrap()
}

fn id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

/// A completed snapshot of vol-0a, a minute after the time of its cycle, with these tags.
fn snapshot(name: &str, tags: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::unknown(id(name));
    snapshot.volume_id = Some("vol-0a".into());
    snapshot.state = Some(SnapshotState::Completed);
    snapshot.start_time = Some(at("2026-06-30T12:01:00Z"));
    snapshot.tags = owned(tags);
    snapshot
}

fn owned(tags: &[(&str, &str)]) -> BTreeMap<String, String> {
    let tags = tags.iter();
    tags.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn volume(name: &str, instances: &[&str], tags: &[(&str, &str)]) -> VolumeInfo {
    VolumeInfo {
        id: name.to_owned(),
        instances: instances.iter().map(|id| (*id).to_owned()).collect(),
        tags: owned(tags),
    }
}

/// A job for these, of a cycle that it has named itself a moment ago.
fn job(select: &[VolumeSelector]) -> CaptureJob {
    CaptureJob {
        select: select.to_vec(),
        without_boot: false,
        without: Vec::new(),
        cycle: Cycle::new("nightly", SystemTime::now()).unwrap(),
        is_new_cycle: true,
        look_again: Duration::from_secs(120),
        description: None,
        tags: Vec::new(),
        commands: Commands {
            timeout: Duration::from_secs(60),
            ..Commands::default()
        },
        waits: true,
        timeout: Duration::from_secs(48 * 3600),
        may_be_empty: false,
    }
}

fn of_instance(id: &str) -> VolumeSelector {
    VolumeSelector::Instance(id.to_owned())
}

fn of_volume(id: &str) -> VolumeSelector {
    VolumeSelector::Volume(id.to_owned())
}

fn of_tag(key: &str, value: &str) -> VolumeSelector {
    VolumeSelector::Tag {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}
