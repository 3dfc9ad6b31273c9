//! [`FatLayout`]: the boot sector.

use super::super::reader::{le16, le32};
use super::ENTRY;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FatWidth {
    Bits12,
    Bits16,
    Bits32,
}

/// What the boot sector says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FatLayout {
    pub(super) width: FatWidth,
    pub(super) cluster: u64,
    /// Bytes from the start of the partition: the FAT that is valid, the root folder of FAT12 and FAT16, the clusters.
    pub(super) fat: u64,
    pub(super) fat_size: u64,
    pub(super) root: u64,
    pub(super) root_entries: u64,
    pub(super) data: u64,
    pub(super) clusters: u64,
    pub(super) root_cluster: u64,
}

impl FatLayout {
    pub(super) fn of(boot: &[u8]) -> Option<Self> {
        let byte = |at: usize| u64::from(boot.get(at).copied().unwrap_or(0));
        let sector = u64::from(le16(boot, 11));
        let per_cluster = byte(13);
        let is_possible = sector.is_power_of_two()
            && (128..=4096).contains(&sector)
            && per_cluster.is_power_of_two();
        if !is_possible {
            return None;
        }
        let either = |small: u16, large: u32| match small {
            0 => u64::from(large),
            small => u64::from(small),
        };
        let fat_sectors = either(le16(boot, 22), le32(boot, 36));
        let sectors = either(le16(boot, 19), le32(boot, 32));
        let (reserved, copies) = (u64::from(le16(boot, 14)), byte(16));
        let root_entries = u64::from(le16(boot, 17));
        let root_sectors = (root_entries * ENTRY as u64).div_ceil(sector);
        let root = reserved + copies * fat_sectors;
        let data = root + root_sectors;
        let clusters = sectors.checked_sub(data)? / per_cluster;
        if reserved == 0 || copies == 0 || fat_sectors == 0 || clusters == 0 {
            return None;
        }
        // Without a root folder it is FAT32, which has no length of 16 bits.
        if root_entries == 0 && le16(boot, 22) != 0 {
            return None;
        }
        // As Linux: FAT32 has no length of 16 bits. It may have few clusters, as on a small EFI system partition of mkfs.fat -F 32.
        let width = match (le16(boot, 22), clusters) {
            (0, _) => FatWidth::Bits32,
            (_, 0..4085) => FatWidth::Bits12,
            _ => FatWidth::Bits16,
        };
        // FAT32 can say that only one copy is valid.
        let flags = u64::from(le16(boot, 40));
        let active = match width == FatWidth::Bits32 && flags & 0x80 != 0 {
            true => (flags & 0xf).min(copies - 1),
            false => 0,
        };
        Some(Self {
            width,
            cluster: sector * per_cluster,
            fat: (reserved + active * fat_sectors) * sector,
            fat_size: fat_sectors * sector,
            root: root * sector,
            root_entries,
            data: data * sector,
            clusters,
            root_cluster: le32(boot, 44).into(),
        })
    }

    /// Where a cluster is; none for a number that no cluster has.
    pub(super) fn cluster_at(&self, number: u64) -> Option<u64> {
        let index = number.checked_sub(2)?;
        (index < self.clusters).then(|| self.data + index * self.cluster)
    }

    /// Bytes of the filesystem.
    pub(super) fn size(&self) -> u64 {
        self.data + self.clusters * self.cluster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_is_that_of_linux() {
        // Sectors of 512 bytes, one a cluster, two copies: the length of 16 bits, the one of 32 bits, all sectors.
        for (small, large, sectors, width) in [
            (12, 0, 4000, Some(FatWidth::Bits12)),
            (80, 0, 20_000, Some(FatWidth::Bits16)),
            (0, 160, 20_000, Some(FatWidth::Bits32)),
            (0, 600, 70_000, Some(FatWidth::Bits32)),
            (0, 0, 70_000, None),
        ] {
            let mut boot = [0; 512];
            boot[11..13].copy_from_slice(&512_u16.to_le_bytes());
            (boot[13], boot[14], boot[16]) = (1, 1, 2);
            // Entries of the root folder; FAT32 has none.
            boot[17] = if small == 0 { 0 } else { 16 };
            boot[22..24].copy_from_slice(&u16::to_le_bytes(small));
            boot[32..36].copy_from_slice(&u32::to_le_bytes(sectors));
            boot[36..40].copy_from_slice(&u32::to_le_bytes(large));
            let found = FatLayout::of(&boot).map(|layout| layout.width);
            assert_eq!(found, width, "{small} {large} {sectors}");
        }
    }

    #[test]
    fn any_boot_sector_is_possible_or_refused() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..5_000 {
            let mut boot: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(512).collect();
            boot[11..13].copy_from_slice(&512_u16.to_le_bytes());
            boot[13] = 1 << random.u8(..8);
            if let Some(layout) = FatLayout::of(&boot) {
                assert!(layout.cluster > 0 && layout.clusters > 0);
                assert_eq!(layout.cluster_at(0), None);
                assert_eq!(layout.cluster_at(layout.clusters + 2), None);
                assert!(layout.cluster_at(layout.clusters + 1).is_some());
            }
        }
    }
}
