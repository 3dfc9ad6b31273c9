//! Filesystems and disks of a volume that are mounted on this machine under the same UUID. A copy that is attached here could
//! be mounted in their place, and XFS and btrfs cannot distinguish the two.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Mount, mounts_in};
use crate::block::{Block, Geometry};
use crate::source::{BlockSource, DiskSource};
use crate::sysfs::{BlockDevice, Sysfs};

/// Partitions that are looked at: each may cost a request.
const PARTITIONS: usize = 16;

/// Bytes at the beginning of a filesystem that name it: btrfs has its superblock at 64 KiB.
const HEAD: usize = 68 << 10;

/// What names a disk or a filesystem, and is copied with it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum VolumeName {
    /// The GUID of a disk in its partition table.
    Disk([u8; 16]),
    /// The UUID of a filesystem.
    Filesystem([u8; 16]),
}

/// Warns of mounted filesystems and disks with a UUID of this image or device. None where it cannot be read.
pub(crate) async fn mounted_twins(path: &Path) -> Vec<String> {
    match DiskSource::open(path) {
        Ok(source) => twins_of(&source, Some(path)).await,
        Err(_) => Vec::new(),
    }
}

/// The same of any volume: it reads its first block and the first one of each partition. `itself` is the file or device that
/// the volume is, which is no twin.
async fn twins_of(source: &dyn BlockSource, itself: Option<&Path>) -> Vec<String> {
    let names = names_of(source).await;
    if names.is_empty() {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    for (node, mount) in mounted(itself) {
        for (node, is_disk) in [(node.disk(), true), (node, false)] {
            let Ok(source) = DiskSource::open(&node.path()) else {
                continue;
            };
            let (node, point) = (node.path(), mount.point.display());
            let own = names_at_start(&source).await;
            for name in own.iter().filter(|name| names.contains(name)) {
                let warning = match name {
                    VolumeName::Disk(guid) if is_disk => format!(
                        "the source has the disk GUID {} of {}, which is in use at {point}",
                        guid_text(guid),
                        node.display()
                    ),
                    VolumeName::Filesystem(uuid) if !is_disk => format!(
                        "the source has the filesystem UUID {} of what is mounted at {point}",
                        uuid_text(uuid)
                    ),
                    _ => continue,
                };
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
    }
    warnings
}

/// Every device that is mounted, once, but for `itself`.
fn mounted(itself: Option<&Path>) -> Vec<(BlockDevice, Mount)> {
    let sysfs = Sysfs::system();
    let itself = itself.and_then(|path| std::fs::metadata(path).ok());
    let is_itself = |node: &BlockDevice| {
        let Some(itself) = &itself else {
            return false;
        };
        let same = |file: PathBuf| {
            let found = std::fs::metadata(file);
            found.is_ok_and(|found| (found.dev(), found.ino()) == (itself.dev(), itself.ino()))
        };
        let device = sysfs.node(itself.rdev());
        device.is_some_and(|device| device.overlaps(node)) || node.backing_file().is_some_and(same)
    };
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<(BlockDevice, Mount)> = Vec::new();
    for mount in mounts_in(&text) {
        let source = mount.source_device().map(|found| found.rdev());
        let node = source.or(mount.dev).and_then(|rdev| sysfs.node(rdev));
        if let Some(node) = node
            && !is_itself(&node)
            && !found.iter().any(|(other, _)| *other == node)
        {
            found.push((node, mount));
        }
    }
    found
}

/// What names a volume, its partition table and the filesystems of its partitions.
async fn names_of(source: &dyn BlockSource) -> Vec<VolumeName> {
    let head = read(source, 0, HEAD).await.unwrap_or_default();
    let mut names = names_in(&head);
    for start in partitions(&head).into_iter().take(PARTITIONS) {
        let head = read(source, start, HEAD).await.unwrap_or_default();
        names.extend(names_in(&head));
    }
    names
}

async fn names_at_start(source: &dyn BlockSource) -> Vec<VolumeName> {
    names_in(&read(source, 0, HEAD).await.unwrap_or_default())
}

/// Bytes of a volume, fewer at its end; none where they cannot be read.
async fn read(source: &dyn BlockSource, offset: u64, len: usize) -> Option<Vec<u8>> {
    let geometry: Geometry = source.geometry();
    let mut bytes = Vec::with_capacity(len);
    for part in geometry.split(offset, len) {
        match source.read_block(part.index).await.ok()? {
            Block::Zero => bytes.resize(bytes.len() + part.end - part.start, 0),
            Block::Data(block, _) => bytes.extend_from_slice(block.get(part.start..part.end)?),
        }
    }
    Some(bytes)
}

/// The names at the beginning of a disk or filesystem. Offsets: kernel.org, `filesystems/ext4/super.rst`; xfs_db(8), sb;
/// btrfs wiki, on-disk format; UEFI 2.10, 5.3.2.
fn names_in(head: &[u8]) -> Vec<VolumeName> {
    let named = |magic: &[u8], at: usize, uuid: usize| -> Option<[u8; 16]> {
        let is_it = head.get(at..at + magic.len())? == magic;
        let uuid: [u8; 16] = head.get(uuid..uuid + 16)?.try_into().ok()?;
        (is_it && uuid != [0; 16]).then_some(uuid)
    };
    let filesystems = [
        named(b"\x53\xef", 1024 + 56, 1024 + 104),
        named(b"XFSB", 0, 32),
        named(b"_BHRfS_M", 65536 + 64, 65536 + 32),
    ];
    let disks = [512, 4096].map(|sector| named(b"EFI PART", sector, sector + 56));
    let disks = disks.into_iter().flatten().map(VolumeName::Disk);
    let filesystems = filesystems
        .into_iter()
        .flatten()
        .map(VolumeName::Filesystem);
    disks.chain(filesystems).collect()
}

/// The bytes at which partitions begin, by a GPT in its usual place, or by an MBR.
fn partitions(head: &[u8]) -> Vec<u64> {
    let number = |at: usize, len: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(len)?)?;
        let digits = bytes.iter().rev();
        Some(digits.fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    for sector in [512, 4096] {
        if head.get(sector..sector + 8) != Some(b"EFI PART") {
            continue;
        }
        let entry = |index: usize| -> Option<u64> {
            let size = usize::try_from(number(sector + 84, 4)?).ok()?;
            let first = usize::try_from(number(sector + 72, 8)?).ok()?;
            let at = first
                .checked_mul(sector)?
                .checked_add(index.checked_mul(size)?)?;
            number(at.checked_add(32)?, 8)
        };
        // 128 entries at most lie in the bytes that were read.
        let starts = (0..128).filter_map(entry).filter(|start| *start > 0);
        return starts
            .filter_map(|start| start.checked_mul(sector as u64))
            .collect();
    }
    if head.get(510..512) != Some(b"\x55\xaa") {
        return Vec::new();
    }
    let starts = (0..4).filter_map(|entry| number(446 + 16 * entry + 8, 4));
    starts
        .filter(|start| *start > 0)
        .map(|start| start * 512)
        .collect()
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let text = crate::block::hexadecimal(uuid);
    let piece = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
    [
        piece(0..8),
        piece(8..12),
        piece(12..16),
        piece(16..20),
        piece(20..32),
    ]
    .join("-")
}

/// A GUID's first three fields are little-endian.
fn guid_text(guid: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *guid;
    let mut uuid = [0; 16];
    let fields = [d, c, b, a, f, e, h, g];
    for (to, from) in uuid.iter_mut().zip(fields.into_iter().chain(rest)) {
        *to = from;
    }
    uuid_text(&uuid).to_uppercase()
}

#[cfg(test)]
mod tests;
