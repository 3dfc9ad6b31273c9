//! The tables are made by hand here; `tests/drill.rs` has those that sfdisk makes.

mod broken;
mod lvm;

use super::*;

/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B as a GPT stores it.
const EFI_SYSTEM: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];
const PROTECTIVE: u8 = 0xee;
const SIZE: u64 = 8 << 20;

/// Reads an image; a read that begins beyond its end is a mistake of the reader.
fn reader(disk: &[u8]) -> impl Fn(u64, usize) -> io::Result<Vec<u8>> {
    move |offset: u64, len: usize| {
        assert!(len <= MOST_READ, "a read of {len} bytes");
        let start = usize::try_from(offset).unwrap().min(disk.len());
        Ok(disk[start..disk.len().min(start + len)].to_vec())
    }
}

/// No read of a table is longer.
const MOST_READ: usize = 4 << 20;

fn found(disk: &[u8]) -> DiskLayout {
    layout(&reader(disk), disk.len() as u64).unwrap()
}

/// The table and what is in the partitions.
fn all_found(disk: &[u8]) -> DiskLayout {
    read_table(&reader(disk), disk.len() as u64).unwrap()
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
    let sectors = u32::try_from(disk.len() / sector).unwrap();
    put_mbr(&mut disk, 0, 0, (PROTECTIVE, 1, sectors - 1));
    let mut entries = vec![0; 128 * 128];
    for (number, (first, last)) in partitions.iter().enumerate() {
        put(&mut entries, number * 128, &EFI_SYSTEM);
        put(
            &mut entries,
            number * 128 + 16,
            &[u8::try_from(number + 1).unwrap(); 16],
        );
        let name = format!("part {number}");
        for (place, unit) in name.encode_utf16().enumerate() {
            put(
                &mut entries,
                number * 128 + 56 + 2 * place,
                &unit.to_le_bytes(),
            );
        }
        put(&mut entries, number * 128 + 32, &first.to_le_bytes());
        put(&mut entries, number * 128 + 40, &last.to_le_bytes());
    }
    let last = disk.len() / sector - 1;
    for (header, table) in [(1, 2), (last, last - 16 * 1024 / sector)] {
        put(&mut disk, table * sector, &entries);
        let mut bytes = vec![0; 92];
        put(&mut bytes, 0, b"EFI PART\0\0\x01\0");
        put(&mut bytes, 12, &92_u32.to_le_bytes());
        put(&mut bytes, 24, &(header as u64).to_le_bytes());
        let other = last + 1 - header;
        put(&mut bytes, 32, &(other as u64).to_le_bytes());
        put(&mut bytes, 40, &34_u64.to_le_bytes());
        put(&mut bytes, 48, &(last as u64 - 33).to_le_bytes());
        put(&mut bytes, 56, &[9; 16]);
        put(&mut bytes, 72, &(table as u64).to_le_bytes());
        put(&mut bytes, 80, &128_u32.to_le_bytes());
        put(&mut bytes, 84, &128_u32.to_le_bytes());
        put(&mut bytes, 88, &(!crc32(!0, &entries)).to_le_bytes());
        let sum = !crc32(!0, &bytes);
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
    assert_eq!(!crc32(!0, b"123456789"), 0xcbf4_3926);
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
        assert!(whole.notes.is_empty() && whole.partitions[0].is_efi_system());
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
    assert!(layout.partitions[2].is_efi_system() && layout.damage.is_empty());
    // A chain that comes back to its start ends.
    put_mbr(&mut disk, 1100, 1, (0x05, 0, 100));
    put_mbr(&mut disk, 1000, 1, (0x05, 100, 100));
    let layout = found(&disk);
    assert!(layout.partitions.len() <= 3);
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
fn a_partition_has_its_name_kind_and_uuid_and_overlaps_are_notes() {
    let layout = found(&gpt_disk(512, &[(40, 79), (60, 100), (101, 110)]));
    let second = &layout.partitions[1];
    assert_eq!(second.name, "part 1");
    assert_eq!(second.kind.name, "efi-system");
    let uuid = "02020202-0202-0202-0202-020202020202";
    assert_eq!(second.uuid.as_deref(), Some(uuid));
    assert_eq!(
        layout.id.as_deref(),
        Some("09090909-0909-0909-0909-090909090909")
    );
    assert_eq!(layout.notes, ["partitions 1 and 2 overlap"]);
    assert!(layout.damage.is_empty());
}

#[test]
fn the_backup_of_a_volume_that_was_enlarged_is_found_where_the_volume_ended() {
    for sector in [512, 4096] {
        let mut disk = gpt_disk(sector, &[(40, 79)]);
        disk.resize(disk.len() + (4 << 20), 0);
        let good = found(&disk);
        assert_eq!((good.notes.len(), good.damage.len()), (0, 0));
        disk[sector + 20] ^= 1;
        let backup = found(&disk);
        assert_eq!(places(&backup), places(&good));
        assert_eq!((backup.notes.len(), backup.damage.len()), (1, 0));
        // Without the protective MBR too: the damaged header has the place.
        disk[450] = 0;
        assert_eq!(places(&found(&disk)), places(&good));
    }
}

#[test]
fn logical_partitions_are_numbered_as_linux_numbers_them() {
    let mut disk = disk();
    put_mbr(&mut disk, 0, 0, (0x05, 1000, 500));
    // The first logical partition was removed, its table stays.
    put_mbr(&mut disk, 1000, 1, (0x05, 200, 100));
    put_mbr(&mut disk, 1200, 0, (0x83, 10, 30));
    // The link leads back: a chain need not ascend.
    put_mbr(&mut disk, 1200, 1, (0x05, 100, 50));
    put_mbr(&mut disk, 1100, 0, (0x8e, 5, 9));
    let layout = found(&disk);
    let expected = [(5, 1210 * 512, 30 * 512), (6, 1105 * 512, 9 * 512)];
    assert_eq!(places(&layout), expected);
    assert_eq!(layout.partitions[1].kind.name, "lvm");
    assert!(layout.damage.is_empty(), "{layout:?}");
}
