//! Hostile tables: a small corpus, and random changes of good ones. `EBSFS_FUZZ=1000000` tries so many.

use super::lvm::{group, physical_volume, segment};
use super::*;
use std::cell::Cell;

/// Reads of one look: partitions, their links, metadata and contents.
const MOST_READS: u32 = 1200;

/// Looks at a disk, and checks what no disk can make wrong.
fn check(disk: &[u8]) -> DiskLayout {
    let (reads, bytes) = (Cell::new(0), Cell::new(0));
    let read = |offset: u64, len: usize| {
        reads.set(reads.get() + 1);
        bytes.set(bytes.get() + len);
        reader(disk)(offset, len)
    };
    let size = disk.len() as u64;
    let layout = read_table(&read, size).unwrap();
    assert!(reads.get() < MOST_READS, "{} reads", reads.get());
    assert!(bytes.get() < 256 << 20, "{} bytes", bytes.get());
    let mut files = std::collections::HashSet::new();
    for view in layout.views() {
        for range in &view.ranges {
            assert!(
                range.start.checked_add(range.size).unwrap() <= size,
                "{view:?}"
            );
        }
        let file = view.file.as_bytes();
        assert!(file.len() <= 255 && !file.contains(&b'/') && !file.starts_with(b"."));
        assert!(files.insert(view.file.clone()), "{} twice", view.file);
        assert!(!view.file.chars().any(char::is_control));
    }
    let sentences = layout.damage.len() + layout.notes.len();
    assert!(sentences <= 2 * MOST_NOTES);
    let json: serde_json::Value = serde_json::from_str(&describe(&layout)).unwrap();
    assert_eq!(
        json["partitions"].as_array().unwrap().len(),
        layout.partitions.len()
    );
    // Each selection is found, or its error is one line.
    for wanted in [None, Some("1"), Some("part 0"), Some("vg-1/root")] {
        if let Err(error) = layout.select(wanted) {
            assert!(!error.chain().contains('\n'));
        }
    }
    layout
}

/// Seals the headers and entries of a GPT, so that what was changed in them is believed.
fn seal(disk: &mut [u8], sector: usize) {
    if disk.len() < 34 * sector {
        return;
    }
    let count = u32_at(disk, sector + 80) as usize * u32_at(disk, sector + 84) as usize;
    let entries = disk.get(2 * sector..2 * sector + count.min(1 << 20));
    let sum = !crc32(!0, entries.unwrap_or_default());
    put(disk, sector + 88, &sum.to_le_bytes());
    put(disk, sector + 16, &[0; 4]);
    let length = (u32_at(disk, sector + 12) as usize).min(512);
    let sum = !crc32(!0, &disk[sector..sector + length]);
    put(disk, sector + 16, &sum.to_le_bytes());
}

fn mbr_disk() -> Vec<u8> {
    let mut mbr = disk();
    put_mbr(&mut mbr, 0, 0, (0x83, 100, 50));
    put_mbr(&mut mbr, 0, 1, (0x05, 1000, 500));
    put_mbr(&mut mbr, 1000, 0, (0x83, 10, 20));
    put_mbr(&mut mbr, 1000, 1, (0x05, 100, 100));
    put_mbr(&mut mbr, 1100, 0, (0xef, 10, 30));
    mbr
}

fn lvm_text() -> String {
    let visible = "\"READ\", \"VISIBLE\"";
    let linear = segment(0, 4, "striped", "\"pv0\", 2");
    let second = segment(4, 4, "striped", "\"pv0\", 9");
    group(&[
        ("root", visible, &[&linear, &second]),
        ("home", visible, &[&linear]),
    ])
}

#[test]
fn a_corpus_of_broken_tables_is_read_to_notes() {
    // Each entry of a GPT is the whole disk.
    let all = gpt_disk(512, &[(0, SIZE / 512 - 1); 128]);
    let layout = check(&all);
    assert_eq!(
        (layout.partitions.len(), layout.notes.len()),
        (128, MOST_NOTES)
    );

    // 2^32 entries, entries of no bytes and of 2^32 bytes, entries at the end of all numbers.
    for (at, value) in [
        (80, u32::MAX),
        (80, 0),
        (84, 0),
        (84, u32::MAX),
        (84, 129),
        (72, u32::MAX),
        (76, u32::MAX),
    ] {
        let mut disk = gpt_disk(512, &[(40, 79)]);
        put(&mut disk, 512 + at, &value.to_le_bytes());
        seal(&mut disk, 512);
        let layout = check(&disk);
        assert!(layout.partitions.len() <= 1, "{at} {value}");
    }

    // A chain of 128 logical partitions, all in one place, then one more.
    let mut chain = disk();
    put_mbr(&mut chain, 0, 0, (0x0f, 64, 16000));
    for (link, next) in (0..200).zip(1..) {
        put_mbr(&mut chain, 64 + link, 0, (0x83, 1000, 1));
        put_mbr(&mut chain, 64 + link, 1, (0x05, next, 1));
    }
    let layout = check(&chain);
    assert_eq!(layout.partitions.len(), 128);
    assert_eq!(
        layout.damage,
        ["the chain of logical partitions does not end"]
    );

    // An extended partition that links to the first sector, to itself, beyond the disk.
    for (first, next) in [(0, 0), (1000, 0), (1000, u32::MAX), (u32::MAX, 0)] {
        let mut disk = disk();
        put_mbr(&mut disk, 0, 0, (0x05, first, 500));
        put_mbr(&mut disk, 1000, 1, (0x05, next, 500));
        let layout = check(&disk);
        assert!(layout.partitions.len() <= 1);
    }

    // Names with everything that a path and a terminal could misread.
    let mut names = gpt_disk(512, &[(40, 79), (80, 99)]);
    for entry in 0..2 {
        let name = "../../\u{1b}[2Jetc/\u{202e}pass\nwd";
        for (place, unit) in name.encode_utf16().enumerate() {
            put(
                &mut names,
                1024 + entry * 128 + 56 + 2 * place,
                &unit.to_le_bytes(),
            );
        }
    }
    seal(&mut names, 512);
    let layout = check(&names);
    let files: Vec<_> = layout.views().into_iter().map(|view| view.file).collect();
    assert_eq!(
        files,
        [
            "1-.._..___2Jetc__pass_wd.raw",
            "2-.._..___2Jetc__pass_wd.raw"
        ]
    );

    // Nothing, less than a sector, less than a table.
    for len in [0, 1, 511, 512, 1024, 5000] {
        for whole in [
            gpt_disk(512, &[(40, 79)]),
            mbr_disk(),
            physical_volume(&lvm_text(), 512),
        ] {
            check(&whole[..len]);
        }
    }
}

#[test]
fn any_bytes_are_a_layout() {
    let seed = std::env::var("EBSFS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let cases = std::env::var("EBSFS_FUZZ")
        .ok()
        .and_then(|count| count.parse().ok());
    println!("EBSFS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // Small, so that many are tried: what matters is in their first and last sectors.
    let short = |mut disk: Vec<u8>| {
        disk.truncate(160 << 10);
        disk
    };
    let wholes = [
        (gpt_disk(512, &[(40, 79), (80, 100)]), 512),
        (short(gpt_disk(4096, &[(6, 9), (10, 11)])), 4096),
        (short(mbr_disk()), 0),
        (short(physical_volume(&lvm_text(), 512)), 0),
        (short(physical_volume(&lvm_text(), (128 << 10) - 300)), 0),
    ];
    let mut disks = wholes.clone();
    for case in 0..cases.unwrap_or(600) {
        let (whole, sector) = &wholes[case % wholes.len()];
        let (disk, _) = &mut disks[case % wholes.len()];
        let places = [
            0,
            446,
            512,
            1024,
            4096,
            4096 + 512,
            8192,
            512 * 1000,
            whole.len() - 512,
        ];
        for _ in 0..random.usize(1..12) {
            let base = places[random.usize(..places.len())];
            let at = base + random.usize(..512);
            if at < disk.len() {
                disk[at] = [0, 255, 1, 0x80, random.u8(..)][random.usize(..5)];
            }
        }
        if *sector > 0 && random.bool() {
            seal(disk, *sector);
        }
        let len = match random.u8(..4) {
            0 => random.usize(..=disk.len()),
            _ => disk.len(),
        };
        check(&disk[..len]);
        // The next case begins with the good table.
        for place in places {
            let window = place.min(whole.len())..(place + 512).min(whole.len());
            disk[window.clone()].copy_from_slice(&whole[window]);
        }
    }
}

#[test]
fn any_text_of_lvm_is_parsed_or_refused() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let cases = std::env::var("EBSFS_FUZZ")
        .ok()
        .and_then(|count| count.parse().ok());
    let whole = lvm_text();
    for _ in 0..cases.unwrap_or(600) {
        // The checksum is right: what is in the text is believed.
        let mut text: Vec<char> = whole.chars().collect();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..text.len());
            match random.u8(..3) {
                0 => {
                    let other = ['{', '}', '[', ']', '"', '=', '9', '\\', '#', ' '];
                    text[at] = *random.choice(&other).unwrap();
                }
                1 => drop(text.remove(at)),
                _ => text.insert(at, *random.choice(&['9', '0', '-', '"', '}']).unwrap()),
            }
        }
        let text: String = text.into_iter().collect();
        let mut disk = physical_volume(&text, 512);
        disk.truncate(2 << 20);
        check(&disk);
    }
}
