//! [`sniff`]: what a partition holds, by the signatures in its first 128 KiB. A pure function over bytes from a disk that can hold
//! anything.

use super::{u32_at, u64_at};

/// Bytes that [`sniff`] looks at.
pub(crate) const HEAD: usize = 128 << 10;
/// Where the superblock of ext2, ext3 and ext4 is, and that of btrfs.
pub(super) const EXT: usize = 1024;
pub(super) const BTRFS: usize = 64 << 10;

/// What a partition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskContent {
    /// ext2, ext3 or ext4.
    Ext {
        /// `ext2`, `ext3` or `ext4`.
        name: &'static str,
        /// Whether the journal has to be replayed.
        needs_replay: bool,
    },
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs {
        /// Devices of the filesystem.
        devices: u64,
        /// Whether it has a log tree, which only a mount replays.
        has_log: bool,
    },
    /// FAT12, FAT16 or FAT32.
    Vfat {
        /// The byte with the dirty bit (bit 0).
        dirty_at: u64,
        /// Whether that bit is set: it was mounted.
        is_dirty: bool,
    },
    /// Something that this program has no checker for.
    Other(&'static str),
    /// Zeroes.
    Empty,
    /// No known signature.
    Unknown,
}

impl DiskContent {
    /// What reports call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ext { name, .. } | Self::Other(name) => name,
            Self::Xfs => "xfs",
            Self::Btrfs { .. } => "btrfs",
            Self::Vfat { .. } => "vfat",
            Self::Empty => "empty",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is a filesystem with files in it.
    pub(crate) fn is_filesystem(&self) -> bool {
        match self {
            Self::Ext { .. } | Self::Xfs | Self::Btrfs { .. } | Self::Vfat { .. } => true,
            Self::Other(name) => [
                "ntfs", "exfat", "iso9660", "f2fs", "squashfs", "erofs", "refs",
            ]
            .contains(name),
            Self::Empty | Self::Unknown => false,
        }
    }

    /// Whether a mount would replay a journal or a log, or may have to: XFS does not say so in its first bytes.
    pub(crate) fn needs_replay(&self) -> Option<bool> {
        match self {
            Self::Ext { needs_replay, .. } => Some(*needs_replay),
            Self::Btrfs { has_log, .. } => Some(*has_log),
            _ => None,
        }
    }

    /// What a person can do about a content that no mount can show; none for any other.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Other("luks") => Some(
                "it is encrypted by LUKS: with its key, cryptsetup open --readonly shows the volume inside",
            ),
            Self::Other("bitlocker") => Some(
                "it is encrypted by BitLocker: with its key, cryptsetup open --type bitlk --readonly shows the volume inside",
            ),
            Self::Other("md raid") => Some(
                "it is one member of a Linux RAID: make loop devices of all members, then mdadm --assemble --readonly",
            ),
            Self::Other("lvm") => {
                Some("it is a physical volume of LVM: name one of its volumes as GROUP/VOLUME")
            }
            Self::Other("bcache") => Some("it is a device of bcache: its cache is on another disk"),
            Self::Other("swap") => Some("it is swap space"),
            Self::Btrfs { devices, .. } if *devices > 1 => Some(
                "it is a btrfs of several devices: make loop devices of all of them, then mount one",
            ),
            _ => None,
        }
    }

    /// Whether its signature is that of a boot sector: such a disk has no partition table, whatever its last bytes look like.
    pub(crate) fn is_in_first_sector(&self) -> bool {
        matches!(
            self,
            Self::Xfs
                | Self::Vfat { .. }
                | Self::Other("ntfs" | "exfat" | "luks" | "bitlocker" | "refs")
        )
    }
}

/// Signatures of contents without a checker: name, offset, bytes.
const OTHERS: &[(&str, usize, &[u8])] = &[
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("bitlocker", 3, b"-FVE-FS-"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 4086, b"SWAP-SPACE"),
    ("md raid", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("md raid", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("iso9660", 0x8001, b"CD001"),
    ("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("refs", 3, b"ReFS\0"),
    (
        "bcache",
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
    ),
];

/// Recognises what begins with these bytes.
pub(crate) fn sniff(head: &[u8]) -> DiskContent {
    let at = |offset: usize, bytes: &[u8]| head.get(offset..offset + bytes.len()) == Some(bytes);
    let label = |sector: usize| at(sector * 512, b"LABELONE") && at(sector * 512 + 24, b"LVM2 001");
    if (0..4).any(label) {
        return DiskContent::Other("lvm");
    }
    if let Some((name, ..)) = OTHERS.iter().find(|(_, offset, bytes)| at(*offset, bytes)) {
        return DiskContent::Other(name);
    }
    if at(0, b"XFSB") {
        return DiskContent::Xfs;
    }
    if at(BTRFS + 0x40, b"_BHRfS_M") {
        return DiskContent::Btrfs {
            devices: u64_at(head, BTRFS + 0x88),
            has_log: u64_at(head, BTRFS + 0x60) != 0,
        };
    }
    if at(EXT + 0x38, &[0x53, 0xef]) {
        return ext(head);
    }
    if at(510, &[0x55, 0xaa]) {
        // FAT32 has its type and its dirty bit further behind than the others.
        if at(0x52, b"FAT32   ") {
            return vfat(head, 0x41);
        }
        if [&b"FAT12   "[..], b"FAT16   ", b"FAT     "]
            .iter()
            .any(|name| at(0x36, name))
        {
            return vfat(head, 0x25);
        }
    }
    match head.iter().all(|byte| *byte == 0) {
        true => DiskContent::Empty,
        false => DiskContent::Unknown,
    }
}

fn ext(head: &[u8]) -> DiskContent {
    let (compatible, incompatible) = (u32_at(head, EXT + 0x5c), u32_at(head, EXT + 0x60));
    let has_journal = compatible & 0x4 != 0;
    // Extents, 64 bits, flexible groups: what ext3 does not know.
    let name = match (has_journal, incompatible & 0x2c0 != 0) {
        (_, true) => "ext4",
        (true, false) => "ext3",
        (false, false) => "ext2",
    };
    DiskContent::Ext {
        name,
        needs_replay: incompatible & 0x4 != 0,
    }
}

fn vfat(head: &[u8], dirty_at: usize) -> DiskContent {
    let state = head.get(dirty_at).copied().unwrap_or_default();
    DiskContent::Vfat {
        dirty_at: dirty_at as u64,
        is_dirty: state & 1 == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn a_partition_is_recognised_by_its_signature() {
        let ext = |name, needs_replay| DiskContent::Ext { name, needs_replay };
        let magic = (1080, &[0x53, 0xef][..]);
        let boot = (510, &[0x55, 0xaa][..]);
        let table = [
            (with(&[]), DiskContent::Empty),
            (with(&[(7, b"x")]), DiskContent::Unknown),
            (with(&[magic]), ext("ext2", false)),
            (with(&[magic, (1024 + 0x5c, &[4])]), ext("ext3", false)),
            (
                with(&[magic, (1024 + 0x5c, &[4]), (1024 + 0x60, &[0x46])]),
                ext("ext4", true),
            ),
            (with(&[(0, b"XFSB")]), DiskContent::Xfs),
            (
                with(&[(0x10040, b"_BHRfS_M"), (0x10088, &[2]), (0x10060, &[0, 1])]),
                DiskContent::Btrfs {
                    devices: 2,
                    has_log: true,
                },
            ),
            (
                with(&[boot, (0x52, b"FAT32   "), (0x41, &[1])]),
                DiskContent::Vfat {
                    dirty_at: 0x41,
                    is_dirty: true,
                },
            ),
            (
                with(&[boot, (0x36, b"FAT16   ")]),
                DiskContent::Vfat {
                    dirty_at: 0x25,
                    is_dirty: false,
                },
            ),
            (with(&[(0x52, b"FAT32   ")]), DiskContent::Unknown),
            (with(&[(4086, b"SWAPSPACE2")]), DiskContent::Other("swap")),
            (
                with(&[(512, b"LABELONE"), (536, b"LVM2 001")]),
                DiskContent::Other("lvm"),
            ),
            // A volume of LVM whose old superblock was not wiped is LVM.
            (
                with(&[magic, (512, b"LABELONE"), (536, b"LVM2 001")]),
                DiskContent::Other("lvm"),
            ),
            (with(&[boot, (3, b"NTFS    ")]), DiskContent::Other("ntfs")),
            (with(&[(0, b"LUKS\xba\xbe")]), DiskContent::Other("luks")),
            (with(&[(3, b"-FVE-FS-")]), DiskContent::Other("bitlocker")),
            (with(&[(3, b"ReFS\0")]), DiskContent::Other("refs")),
            (
                with(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0])]),
                DiskContent::Other("erofs"),
            ),
        ];
        for (head, content) in table {
            assert_eq!(sniff(&head), content);
        }
    }

    #[test]
    fn any_bytes_of_any_length_are_recognised_or_unknown() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let whole = with(&[
            (510, &[0x55, 0xaa]),
            (0x10040, b"_BHRfS_M"),
            (1080, &[0x53, 0xef]),
        ]);
        for _ in 0..500 {
            let mut head = whole[..random.usize(..=whole.len())].to_vec();
            for _ in 0..random.usize(..20) {
                if let Some(byte) = random.choice(&mut head) {
                    *byte = 255;
                }
            }
            assert!(!sniff(&head).name().is_empty());
        }
    }
}
