//! Second opinions: what gptman and mbrman make of the same good tables.

use std::io::Cursor;

use super::*;

#[test]
fn gptman_sees_the_same_partitions() {
    for sector in [512, 4096] {
        let disk = gpt_disk(sector, &[(40, 79), (80, 100), (200, 200)]);
        let ours = found(&disk);
        let theirs = gptman::GPT::read_from(&mut Cursor::new(&disk), sector as u64).unwrap();
        let theirs: Vec<_> = theirs
            .iter()
            .filter(|(_, partition)| partition.is_used())
            .map(|(number, partition)| {
                let bytes = partition.size().unwrap() * sector as u64;
                let name = partition.partition_name.as_str().to_owned();
                (number, partition.starting_lba * sector as u64, bytes, name)
            })
            .collect();
        let ours: Vec<_> = ours
            .partitions
            .iter()
            .map(|one| (one.number, one.start, one.size, one.name.clone()))
            .collect();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn mbrman_sees_the_same_partitions() {
    let mut disk = disk();
    put_mbr(&mut disk, 0, 0, (0x83, 100, 50));
    put_mbr(&mut disk, 0, 2, (0x0f, 1000, 500));
    put_mbr(&mut disk, 1000, 0, (0x83, 10, 20));
    put_mbr(&mut disk, 1000, 1, (0x05, 100, 100));
    put_mbr(&mut disk, 1100, 0, (0xef, 10, 30));
    let theirs = mbrman::MBR::read_from(&mut Cursor::new(&disk), 512).unwrap();
    let theirs: Vec<_> = theirs
        .iter()
        .filter(|(_, partition)| partition.is_used() && !partition.is_extended())
        .map(|(number, partition)| {
            let (start, sectors) = (partition.starting_lba, partition.sectors);
            (
                u32::try_from(number).unwrap(),
                u64::from(start) * 512,
                u64::from(sectors) * 512,
            )
        })
        .collect();
    assert_eq!(places(&found(&disk)), theirs);
}
