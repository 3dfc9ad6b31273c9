//! Names of a mount's tree, and the inode numbers that follow from them. Pure functions.
//!
//! # Inode numbers
//! An inode number is a hash of the path, so it is the same in every mount: restic and `tar -g` see unchanged files, and an NFS
//! handle finds its node after the kernel forgot it. The low [`FILE_BITS`] number the files of a folder, and the top four bits
//! stay clear (overlayfs uses them).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::maps::Format;
use crate::snapshot::{Snapshot, SnapshotId, SnapshotState};

/// The mountpoint.
pub(super) const ROOT: u64 = 1;
pub(super) const SNAPSHOTS: u64 = 2;
pub(super) const CHANGES: u64 = 3;
pub(super) const VOLUMES: u64 = 4;

/// The folder of a snapshot's partitions, which its folder does not list.
pub(super) const PARTITIONS: &str = "partitions";
/// The file in it that describes them.
pub(super) const DESCRIPTION: &str = "partitions.json";

/// Low bits of an inode number that are 0 for a folder and number its files.
const FILE_BITS: u32 = 4;
const FILE_MASK: u64 = (1 << FILE_BITS) - 1;

/// The link to the newest snapshot of a volume.
pub(super) const LATEST: &str = "latest";

/// Most bytes of a name that Linux takes (NAME_MAX).
pub(in crate::fs) const NAME_MAX: u32 = 255;

/// The volume id of snapshots that are copies or were made by the direct APIs: it is no volume.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Snapshot.html>
const NO_VOLUME: &str = "vol-ffffffff";

/// A file in the folder of a snapshot or of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum File {
    /// The bytes of the volume, or of the blocks that differ.
    Disk,
    /// The snapshot's description from EC2.
    Description,
    /// Which blocks are held, or differ.
    Map(Format),
    /// Totals of a delta.
    Summary,
    /// A picture of the map.
    Heatmap,
    /// A VMDK descriptor that names the image.
    Vmdk,
    /// The image as a fixed VHD.
    Vhd,
    /// The changed blocks over the base, as qcow2.
    Overlay,
}

/// Files of a folder, in the order of their inode numbers.
pub(super) type FileTable = [(&'static str, File)];

pub(super) const SNAPSHOT_FILES: &FileTable = &[
    ("disk.raw", File::Disk),
    ("snapshot.json", File::Description),
    ("blocks.json", File::Map(Format::Json)),
    ("blocks.csv", File::Map(Format::Csv)),
    ("blocks.bmap", File::Map(Format::Bmap)),
    ("blocks.mapfile", File::Map(Format::Mapfile)),
    ("heatmap.svg", File::Heatmap),
    ("disk.vmdk", File::Vmdk),
    ("disk.vhd", File::Vhd),
];

pub(super) const PAIR_FILES: &FileTable = &[
    ("delta.raw", File::Disk),
    ("summary.json", File::Summary),
    ("changes.json", File::Map(Format::Json)),
    ("changes.csv", File::Map(Format::Csv)),
    ("changes.bmap", File::Map(Format::Bmap)),
    ("changes.mapfile", File::Map(Format::Mapfile)),
    ("heatmap.svg", File::Heatmap),
    ("overlay.qcow2", File::Overlay),
];

/// The inode number of a folder or link by its path from the mountpoint.
fn hashed(path: &str) -> u64 {
    let digest = Sha256::digest(path);
    let first = digest.first_chunk::<8>().copied().unwrap_or_default();
    let number = (u64::from_be_bytes(first) >> FILE_BITS) & !FILE_MASK;
    // The fixed folders have the numbers below.
    number.max(1 << FILE_BITS)
}

/// The inode number of a snapshot's folder.
pub(super) fn snapshot_inode(id: &SnapshotId) -> u64 {
    hashed(&format!("snapshots/{id}"))
}

/// The inode number of a pair's folder.
pub(super) fn pair_inode(base: &SnapshotId, head: &SnapshotId) -> u64 {
    hashed(&format!("changes/{base}..{head}"))
}

/// The inode number of a volume's folder.
pub(super) fn volume_inode(volume: &str) -> u64 {
    hashed(&format!("volumes/{volume}"))
}

/// The inode number of the folder of a snapshot's partitions.
pub(super) fn partitions_inode(id: &SnapshotId) -> u64 {
    hashed(&format!("snapshots/{id}/{PARTITIONS}"))
}

/// The inode number of a file in that folder.
pub(super) fn partition_inode(id: &SnapshotId, file: &str) -> u64 {
    hashed(&format!("snapshots/{id}/{PARTITIONS}/{file}"))
}

/// The inode number of a link in a volume's folder.
fn link_inode(volume: &str, name: &str) -> u64 {
    hashed(&format!("volumes/{volume}/{name}"))
}

/// The inode number of the folder that a number belongs to: its own, or that of the file's folder.
pub(super) fn folder_inode(ino: u64) -> u64 {
    ino & !FILE_MASK
}

/// The position of a file in its folder's table; `None` for the folder.
pub(super) fn file_number(ino: u64) -> Option<usize> {
    usize::try_from(ino & FILE_MASK).ok()?.checked_sub(1)
}

/// The inode number of a file of a folder.
pub(super) fn file_inode(folder: u64, number: usize) -> u64 {
    folder | (number as u64 + 1)
}

/// Base and head of a name in `changes/`.
pub(super) fn pair_of(name: &str) -> Option<(SnapshotId, SnapshotId)> {
    let (base, head) = name.split_once("..")?;
    Some((base.parse().ok()?, head.parse().ok()?))
}

/// Pairs of completed snapshots of one volume that follow each other in time; the listing is oldest first.
pub(super) fn neighbours(listing: &[Arc<Snapshot>]) -> Vec<(&Arc<Snapshot>, &Arc<Snapshot>)> {
    let mut last: HashMap<&str, &Arc<Snapshot>> = HashMap::new();
    let mut found = Vec::new();
    for snapshot in listing {
        let volume = snapshot.volume_id.as_deref();
        let Some(volume) = volume.filter(|volume| *volume != NO_VOLUME) else {
            continue;
        };
        if snapshot.state == Some(SnapshotState::Completed)
            && let Some(before) = last.insert(volume, snapshot)
        {
            found.push((before, snapshot));
        }
    }
    found
}

/// Whether a directory can hold the name: a repository of images has volumes whose names are paths.
fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= NAME_MAX as usize
        && !name.contains(['/', '\0'])
}

/// The volumes of a listing whose names a directory can hold, sorted.
pub(super) fn volumes(listing: &[Arc<Snapshot>]) -> Vec<&str> {
    let named = listing.iter().filter_map(|of| of.volume_id.as_deref());
    let mut volumes: Vec<&str> = named.filter(|name| is_name(name)).collect();
    volumes.sort_unstable();
    volumes.dedup();
    volumes
}

/// A link of a volume's folder to one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumeLink {
    pub(super) ino: u64,
    /// The inode number of the volume's folder.
    pub(super) folder: u64,
    pub(super) name: String,
    pub(super) snapshot: SnapshotId,
    pub(super) time: SystemTime,
}

impl VolumeLink {
    /// The target, relative to the volume's folder.
    pub(super) fn target(&self) -> String {
        format!("../../snapshots/{}", self.snapshot)
    }
}

/// Links to the snapshots of a volume: one by the start time of each, and `latest` to the newest completed one. Two of one
/// second get their ids after the time. A time has no colons: `qemu-img` takes text before a colon for a protocol, `rsync` for
/// a host.
pub(super) fn links(volume: &str, listing: &[Arc<Snapshot>]) -> Vec<VolumeLink> {
    let of_volume = || {
        let ours = |snapshot: &&Arc<Snapshot>| snapshot.volume_id.as_deref() == Some(volume);
        listing
            .iter()
            .filter(ours)
            .filter_map(|snapshot| Some((snapshot, snapshot.start_time?)))
    };
    let written = |time| crate::time::rfc3339_seconds(time).replace(':', "");
    let mut count: HashMap<String, usize> = HashMap::new();
    for (_, time) in of_volume() {
        *count.entry(written(time)).or_default() += 1;
    }
    let link = |name: String, (snapshot, time): (&Arc<Snapshot>, SystemTime)| VolumeLink {
        ino: link_inode(volume, &name),
        folder: volume_inode(volume),
        name,
        snapshot: snapshot.id.clone(),
        time,
    };
    let mut links: Vec<VolumeLink> = of_volume()
        .map(|(snapshot, time)| {
            let name = written(time);
            let name = match count.get(&name) {
                Some(1) => name,
                _ => format!("{name}.{}", snapshot.id),
            };
            link(name, (snapshot, time))
        })
        .collect();
    let mut readable = of_volume().filter(|(of, _)| of.state == Some(SnapshotState::Completed));
    if volume != NO_VOLUME
        && let Some(newest) = readable.next_back()
    {
        links.push(link(LATEST.to_owned(), newest));
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn snapshot(id: &str, volume: &str, seconds: u64) -> Arc<Snapshot> {
        let mut snapshot = Snapshot::unknown(id.parse().unwrap());
        snapshot.volume_id = Some(volume.to_owned());
        snapshot.state = Some(SnapshotState::Completed);
        snapshot.start_time =
            Some(SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 5));
        Arc::new(snapshot)
    }

    fn pending(id: &str, volume: &str, seconds: u64) -> Arc<Snapshot> {
        let mut pending = snapshot(id, volume, seconds);
        Arc::make_mut(&mut pending).state = Some(SnapshotState::Pending);
        pending
    }

    #[test]
    fn links_have_times_without_colons_and_latest_leads_to_the_newest_that_can_be_read() {
        let listing = [
            snapshot("snap-a", "vol-1", 7),
            snapshot("snap-b", "vol-1", 8),
            snapshot("snap-c", "vol-1", 8),
            snapshot("snap-d", "vol-2", 7),
            pending("snap-e", "vol-1", 9),
            snapshot("snap-f", NO_VOLUME, 9),
        ];
        let named = |volume| -> Vec<(String, String)> {
            let links = links(volume, &listing).into_iter();
            links
                .map(|link| (link.name, link.snapshot.to_string()))
                .collect()
        };
        let expected = [
            ("1970-01-01T000007Z", "snap-a"),
            ("1970-01-01T000008Z.snap-b", "snap-b"),
            ("1970-01-01T000008Z.snap-c", "snap-c"),
            ("1970-01-01T000009Z", "snap-e"),
            ("latest", "snap-c"),
        ];
        assert_eq!(named("vol-1"), expected.map(|(a, b)| (a.into(), b.into())));
        assert_eq!(named(NO_VOLUME).len(), 1, "copies have no common volume");
    }

    #[test]
    fn volumes_whose_names_no_directory_holds_are_left_out() {
        let long = "v".repeat(256);
        let names = [
            "vol-2", "vol-1", "/dev/sda", "", ".", "..", "a\0b", &long, "vol-1",
        ];
        let listing = names.map(|name| snapshot("snap-a", name, 7));
        assert_eq!(volumes(&listing), ["vol-1", "vol-2"]);
    }

    #[test]
    fn neighbours_are_of_one_volume_and_readable_and_copies_have_none() {
        let listing = [
            snapshot("snap-a", "vol-1", 7),
            snapshot("snap-b", "vol-2", 7),
            snapshot("snap-c", "vol-1", 8),
            pending("snap-d", "vol-1", 9),
            snapshot("snap-e", "vol-1", 10),
            snapshot("snap-f", NO_VOLUME, 11),
            snapshot("snap-9", NO_VOLUME, 12),
        ];
        let pairs: Vec<_> = neighbours(&listing)
            .into_iter()
            .map(|(a, b)| (a.id.as_str(), b.id.as_str()))
            .collect();
        assert_eq!(pairs, [("snap-a", "snap-c"), ("snap-c", "snap-e")]);
    }

    #[test]
    fn a_pair_is_two_ids() {
        let (base, head) = pair_of("snap-0a..snap-0b").unwrap();
        assert_eq!((base.as_str(), head.as_str()), ("snap-0a", "snap-0b"));
        for wrong in [
            "",
            "..",
            "snap-0a",
            "snap-0a..",
            "snap-0a...snap-0b",
            "snap-0a..x",
        ] {
            assert!(pair_of(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn inode_numbers_follow_from_the_path_and_never_change() {
        let id: SnapshotId = "snap-0123456789abcdef0".parse().unwrap();
        // These numbers are in the archives of backup programs: another hash would make every file new to them.
        assert_eq!(snapshot_inode(&id), 0x0779_5ed0_f1d6_4700);
        assert_eq!(pair_inode(&id, &id), 0x0249_8f9e_2328_f840);
        assert_eq!(volume_inode("vol-1"), 0x00b1_fc1a_8a4e_b0f0);
        assert_eq!(link_inode("vol-1", LATEST), 0x0c19_41cd_f106_62a0);
        let folder = snapshot_inode(&id);
        for number in 0..SNAPSHOT_FILES.len() {
            let ino = file_inode(folder, number);
            assert_eq!(
                (folder_inode(ino), file_number(ino)),
                (folder, Some(number))
            );
        }
        assert_eq!(file_number(folder), None);
        assert_eq!(folder >> 60, 0);
    }
}
