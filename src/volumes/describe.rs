//! `partitions.json`: all that is known of the partitions of a disk.

use serde::Serialize;

use super::{DiskFilesystem, DiskLayout, WHOLE_DISK};

/// The version of the format of `partitions.json`.
const PARTITIONS_VERSION: u32 = 1;

#[derive(Serialize)]
struct DescribedLayout<'a> {
    version: u32,
    size_bytes: u64,
    table: &'a str,
    sector_bytes: u64,
    id: Option<&'a str>,
    partitions: Vec<DescribedPartition<'a>>,
    lvm: Vec<DescribedVolume<'a>>,
    damage: &'a [String],
    notes: &'a [String],
}

#[derive(Serialize)]
struct DescribedPartition<'a> {
    number: u32,
    name: &'a str,
    kind: &'a str,
    kind_id: &'a str,
    uuid: Option<&'a str>,
    start_bytes: u64,
    size_bytes: u64,
    /// Its file in this folder; for a disk without a table that of the whole disk, beside this folder.
    file: Option<String>,
    #[serde(flatten)]
    held: Option<DescribedContent<'a>>,
}

#[derive(Serialize)]
struct DescribedVolume<'a> {
    partition: u32,
    group: &'a str,
    volume: &'a str,
    uuid: Option<&'a str>,
    size_bytes: u64,
    /// Its file in this folder, if it is linear.
    file: Option<String>,
    /// Why it has no file.
    reason: Option<&'a str>,
    #[serde(flatten)]
    held: Option<DescribedContent<'a>>,
}

#[derive(Serialize)]
struct DescribedContent<'a> {
    content: &'static str,
    label: Option<&'a str>,
    content_uuid: Option<&'a str>,
    needs_replay: Option<bool>,
    advice: Option<&'static str>,
}

impl<'a> DescribedContent<'a> {
    fn of(held: &'a DiskFilesystem) -> Self {
        Self {
            content: held.content.name(),
            label: held.label.label.as_deref(),
            content_uuid: held.label.uuid.as_deref(),
            needs_replay: held.content.needs_replay(),
            advice: held.content.advice(),
        }
    }
}

/// The layout as one JSON object.
pub(crate) fn describe(layout: &DiskLayout) -> String {
    // Views are in the order of partitions, then of the volumes that can be shown.
    let mut files = layout
        .views()
        .into_iter()
        .map(|view| match view.file.as_str() {
            WHOLE_DISK => "../disk.raw".to_owned(),
            _ => view.file,
        });
    let partitions = layout
        .partitions
        .iter()
        .map(|partition| DescribedPartition {
            number: partition.number,
            name: &partition.name,
            kind: partition.kind.name,
            kind_id: &partition.kind.id,
            uuid: partition.uuid.as_deref(),
            start_bytes: partition.start,
            size_bytes: partition.size,
            file: files.next(),
            held: partition.filesystem.as_ref().map(DescribedContent::of),
        });
    let partitions = partitions.collect();
    let volumes = layout.volumes.iter().map(|volume| DescribedVolume {
        partition: volume.partition,
        group: &volume.group,
        volume: &volume.name,
        uuid: volume.uuid.as_deref(),
        size_bytes: volume.size,
        file: volume.ranges.as_ref().ok().and_then(|_| files.next()),
        reason: volume.ranges.as_ref().err().map(String::as_str),
        held: volume.filesystem.as_ref().map(DescribedContent::of),
    });
    let text = DescribedLayout {
        version: PARTITIONS_VERSION,
        size_bytes: layout.size,
        table: layout.table.name(),
        sector_bytes: layout.sector,
        id: layout.id.as_deref(),
        partitions,
        lvm: volumes.collect(),
        damage: &layout.damage,
        notes: &layout.notes,
    };
    // Nothing in it can fail to serialise.
    let mut json = serde_json::to_string_pretty(&text).unwrap_or_default();
    json.push('\n');
    json
}
