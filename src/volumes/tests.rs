//! The tables are made by hand here; `tests/drill.rs` has those that sfdisk makes.

use super::*;

const SIZE: u64 = 8 << 20;

fn found(disk: &[u8]) -> DiskLayout {
    let read = |offset: u64, len: usize| {
        let start = usize::try_from(offset).unwrap().min(disk.len());
        Ok(disk[start..disk.len().min(start + len)].to_vec())
    };
    layout(&read, disk.len() as u64).unwrap()
}

fn disk() -> Vec<u8> {
    vec![0; usize::try_from(SIZE).unwrap()]
}

fn put(disk: &mut [u8], offset: usize, bytes: &[u8]) {
    disk[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Writes an entry of an MBR or of a logical partition's table.
fn put_mbr(disk: &mut [u8], sector: usize, index: usize, (kind, first, count): (u8, u32, u32)) {
    let at = sector * 512 + 446 + index * 16;
    put(disk, at + 4, &[kind]);
    put(disk, at + 8, &first.to_le_bytes());
    put(disk, at + 12, &count.to_le_bytes());
    put(disk, sector * 512 + 510, &[0x55, 0xaa]);
}

/// A GPT of these partitions (first and last sector) at both ends.
fn gpt_disk(sector: usize, partitions: &[(u64, u64)]) -> Vec<u8> {
    let mut disk = disk();
    put_mbr(&mut disk, 0, 0, (PROTECTIVE, 1, 1000));
    let mut entries = vec![0; 128 * 128];
    for (number, (first, last)) in partitions.iter().enumerate() {
        put(&mut entries, number * 128, &EFI_SYSTEM);
        put(&mut entries, number * 128 + 32, &first.to_le_bytes());
        put(&mut entries, number * 128 + 40, &last.to_le_bytes());
    }
    let last = disk.len() / sector - 1;
    for (header, table) in [(1, 2), (last, last - 16 * 1024 / sector)] {
        put(&mut disk, table * sector, &entries);
        let mut bytes = vec![0; 92];
        put(&mut bytes, 0, b"EFI PART\0\0\x01\0");
        put(&mut bytes, 12, &92_u32.to_le_bytes());
        put(&mut bytes, 72, &(table as u64).to_le_bytes());
        put(&mut bytes, 80, &128_u32.to_le_bytes());
        put(&mut bytes, 84, &128_u32.to_le_bytes());
        put(&mut bytes, 88, &crc32(&entries).to_le_bytes());
        let sum = crc32(&bytes);
        put(&mut bytes, 16, &sum.to_le_bytes());
        put(&mut disk, header * sector, &bytes);
    }
    disk
}

fn places(layout: &DiskLayout) -> Vec<(u32, u64, u64)> {
    let partitions = layout.partitions.iter();
    partitions
        .map(|one| (one.number, one.start, one.size))
        .collect()
}

#[test]
fn the_checksum_is_that_of_the_standard() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn a_gpt_is_read_by_sectors_of_512_and_4096_bytes_and_from_its_backup() {
    for sector in [512, 4096] {
        let mut disk = gpt_disk(sector, &[(40, 79), (80, 100)]);
        let bytes = sector as u64;
        let whole = found(&disk);
        assert_eq!(whole.table, TableKind::Gpt);
        let expected = [(1, 40 * bytes, 40 * bytes), (2, 80 * bytes, 21 * bytes)];
        assert_eq!(places(&whole), expected);
        assert!(whole.notes.is_empty() && whole.partitions[0].is_efi_system);
        disk[sector + 20] ^= 1;
        let backup = found(&disk);
        assert_eq!(places(&backup), expected);
        assert_eq!((backup.notes.len(), backup.damage.len()), (1, 0));
        let last = disk.len() - sector;
        disk[last + 20] ^= 1;
        let none = found(&disk);
        assert!(
            none.partitions.is_empty() && none.damage.len() == 1,
            "{none:?}"
        );
    }
}

#[test]
fn a_partition_beyond_the_end_is_damage() {
    for (first, last) in [
        (40, SIZE / 512),
        (80, 79),
        (u64::MAX, u64::MAX),
        (0, u64::MAX),
    ] {
        let layout = found(&gpt_disk(512, &[(40, 79), (first, last)]));
        assert_eq!((layout.partitions.len(), layout.damage.len()), (1, 1));
    }
    let mut disk = disk();
    put_mbr(&mut disk, 0, 0, (0x83, 100, u32::MAX));
    let layout = found(&disk);
    assert_eq!((layout.partitions.len(), layout.damage.len()), (0, 1));
}

#[test]
fn an_mbr_has_primary_and_logical_partitions() {
    let mut disk = disk();
    put_mbr(&mut disk, 0, 0, (0x83, 100, 50));
    put_mbr(&mut disk, 0, 2, (0x0f, 1000, 500));
    put_mbr(&mut disk, 1000, 0, (0x83, 10, 20));
    put_mbr(&mut disk, 1000, 1, (0x05, 100, 100));
    put_mbr(&mut disk, 1100, 0, (0xef, 10, 30));
    let layout = found(&disk);
    assert_eq!(layout.table, TableKind::Mbr);
    let sector = |number: u64| number * 512;
    let expected = [
        (1, sector(100), sector(50)),
        (5, sector(1010), sector(20)),
        (6, sector(1110), sector(30)),
    ];
    assert_eq!(places(&layout), expected);
    assert!(layout.partitions[2].is_efi_system && layout.damage.is_empty());
    // A chain that comes back to its start ends.
    put_mbr(&mut disk, 1100, 1, (0x05, 0, 100));
    put_mbr(&mut disk, 1000, 1, (0x05, 100, 100));
    let layout = found(&disk);
    assert!(layout.partitions.len() <= MOST_LOGICAL + 1);
    assert_eq!(
        layout.damage,
        ["the chain of logical partitions does not end"]
    );
}

#[test]
fn a_disk_without_a_table_is_one_filesystem() {
    let mut fat = disk();
    put(&mut fat, 0x36, b"FAT16   ");
    // A FAT whose program has a plausible table in it.
    put_mbr(&mut fat, 0, 0, (0x83, 100, 50));
    let mut text = disk();
    put(&mut text, 446, b"Non-system disk, press any key");
    put(&mut text, 510, &[0x55, 0xaa]);
    for disk in [disk(), fat, text, vec![7; 100], Vec::new()] {
        let layout = found(&disk);
        assert_eq!(layout.table, TableKind::Whole);
        assert_eq!(places(&layout), [(0, 0, disk.len() as u64)]);
    }
}

#[test]
fn any_bytes_are_a_layout() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut mbr = disk();
    put_mbr(&mut mbr, 0, 1, (0x05, 1000, 500));
    for whole in [gpt_disk(512, &[(40, 79), (80, 100)]), mbr] {
        for _ in 0..200 {
            let mut disk = whole.clone();
            for _ in 0..random.usize(1..20) {
                let at = random.usize(..2048);
                disk[at] = random.u8(..);
            }
            disk.truncate(random.usize(..=disk.len()));
            let size = disk.len() as u64;
            let layout = found(&disk);
            assert!(
                layout
                    .partitions
                    .iter()
                    .all(|one| one.start + one.size <= size)
            );
        }
    }
}
