//! 64 TiB: few requests, little memory, wherever it is read.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;

use nix::unistd::{Whence, lseek};

use crate::support::*;

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

#[test]
fn sixty_four_tib_are_mounted_and_read_anywhere_with_few_requests_and_bounded_memory() {
    let emulator = Emulator::with(&[
        "--synthetic",
        "snap-0d:65536:1000000",
        "--synthetic",
        "snap-05:65536:10000",
    ]);
    let mount = emulator.mount(&["--memory", "64MiB", "snap-0d", "snap-05"]);
    let disk = mount.disk("snap-0d");
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), 64 * TIB);

    emulator.reset();
    let bytes = read_at(&disk, 63 * TIB, MIB as usize);
    assert!(emulator.lists() <= 2, "{} lists", emulator.lists());
    assert!(emulator.gets() <= 3, "{} gets", emulator.gets());
    // The tail of a synthetic block names its seed and index.
    for (half, block) in (0..2).map(|half| (half, 63 * TIB / BLOCK + half)) {
        let end = ((half + 1) * BLOCK) as usize;
        assert_eq!(bytes[end - 8..end], block.to_le_bytes());
        assert_eq!(bytes[end - 16..end - 8], 1u64.to_le_bytes());
    }

    // A run of 64 TiB: a seek, which cannot be interrupted, reports an earlier end, and the next one continues there.
    emulator.reset();
    let file = open(&disk);
    let from = i64::try_from(40 * TIB).unwrap();
    let hole = lseek(&file, from, Whence::SeekHole).unwrap();
    assert!(hole > from + (1 << 30), "{hole}");
    assert_eq!(lseek(&file, hole, Whence::SeekData).unwrap(), hole);
    assert!(emulator.lists() <= 6, "{} lists", emulator.lists());

    emulator.reset();
    let mut place = 88_172_645_463_325_252u64;
    let mut blocks = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        place ^= place << 13;
        place ^= place >> 7;
        place ^= place << 17;
        let block = place % (64 * TIB / BLOCK);
        blocks.insert(block);
        let mut tail = [0; 16];
        file.read_exact_at(&mut tail, (block + 1) * BLOCK - 16)
            .unwrap();
        assert_eq!(tail[8..], block.to_le_bytes());
    }
    // The kernel reads whole pages around what is asked for, so the start of a next block may come along.
    assert!(
        emulator.gets() <= 2 * blocks.len() as u64,
        "{}",
        emulator.gets()
    );
    assert!(emulator.lists() <= 1001, "{}", emulator.lists());

    // Sparse: seeking through it lists it, and the bitmap stays small.
    let sparse = mount.disk("snap-05");
    sh(&format!(
        "python3 - {} <<'P'\nimport os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\nat = 0\n\
         for _ in range(3000):\n    data = os.lseek(fd, at, os.SEEK_DATA)\n    at = os.lseek(fd, data, os.SEEK_HOLE)\n\
         \x20   assert data % 524288 == 0 and at > data\nP",
        sparse.display()
    ));
    let peak = mount.peak_memory();
    assert!(peak <= (64 + 160) * MIB, "{} MiB", peak / MIB);
    println!("peak {} MiB with --memory 64MiB", peak / MIB);
}

#[test]
fn a_pair_of_sixty_four_tib_is_listed_and_shown_whole_in_bounded_memory() {
    let emulator = Emulator::with(&[
        "--synthetic",
        "snap-0a:65536:1000000",
        "--synthetic-child",
        "snap-0b:snap-0a:10000",
    ]);
    let mount = emulator.mount(&["--memory", "64MiB", "snap-0a", "snap-0b"]);
    let pair = mount.pair("snap-0a", "snap-0b");
    emulator.reset();

    // Each line of the JSON is a run; together they are the volume.
    let json = BufReader::new(open(&pair.join("changes.json")));
    let (mut end, mut changed, mut written) = (0, 0, Vec::new());
    for line in json.lines() {
        let line = line.unwrap();
        let line = line.trim_start_matches('[').trim_end_matches([']', ',']);
        let run: serde_json::Value = serde_json::from_str(line).unwrap();
        let (start, length) = (
            run["start"].as_u64().unwrap(),
            run["length"].as_u64().unwrap(),
        );
        assert_eq!(start, end);
        end = start + length;
        if run["present"] == true {
            changed += length / BLOCK;
        }
        if run["data"] == true {
            written.push(start);
        }
    }
    assert_eq!(end, 64 * TIB);
    assert!((1_300_000..1_400_000).contains(&changed), "{changed}");
    let listings = emulator.count("ListChangedBlocks");
    let least = changed.div_ceil(10_000);
    // Ranges overlap by a page each, and the last one proves the end.
    assert!((least..=least + 9).contains(&listings), "{listings}");

    // From end to end, by the tokens of that listing or, where they were dropped, by it once more.
    emulator.reset();
    let delta = open(&pair.join("delta.raw"));
    let some: Vec<u64> = written.into_iter().step_by(1000).collect();
    for start in &some {
        let mut tail = [0; 8];
        delta.read_exact_at(&mut tail, start + BLOCK - 8).unwrap();
        assert_eq!(tail, (start / BLOCK).to_le_bytes());
    }
    assert_eq!(emulator.gets(), some.len() as u64);
    assert_eq!(emulator.lists(), 0);
    let again = emulator.count("ListChangedBlocks");
    assert!(again <= listings, "{again}");

    let peak = mount.peak_memory();
    assert!(peak <= (64 + 200) * MIB, "{} MiB", peak / MIB);
    println!(
        "{listings} listings, {again} again, peak {} MiB",
        peak / MIB
    );
}
