//! Deltas: every pair of a chain, applied by tools that people have, gives the head byte for byte.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::support::*;

/// A volume with five snapshots: written, overwritten, freed, rewritten with the same bytes, grown; and an image of each.
pub struct Chain {
    pub emulator: Emulator,
    pub snapshots: Vec<String>,
    pub images: tempfile::TempDir,
}

impl Chain {
    pub fn new() -> Self {
        let emulator = Emulator::start();
        let mut chain = Self {
            emulator,
            snapshots: Vec::new(),
            images: tempfile::tempdir().unwrap(),
        };
        let volume = chain
            .emulator
            .make_volume("vol-0a", 2048, (0..40).chain(100..110));
        chain.keep(&volume);
        let write = |from: u64, blocks: u64, as_if: &str| {
            let file = writable(&volume);
            for index in from..from + blocks {
                file.write_all_at(&content(as_if, index), index * BLOCK)
                    .unwrap();
            }
        };
        // Overwritten, new, and a volume's last block.
        write(5, 3, "other");
        write(200, 20, "other");
        write(2047, 1, "other");
        chain.keep(&volume);
        // Freed as fstrim does, and written with zeroes.
        let file = writable(&volume);
        let free = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, free, (10 * BLOCK) as i64, (4 * BLOCK) as i64).unwrap();
        file.write_all_at(&vec![0; BLOCK as usize], 30 * BLOCK)
            .unwrap();
        chain.keep(&volume);
        // The same bytes once more.
        chain.emulator.post("volumes/vol-0a/touch?block=100");
        chain.keep(&volume);
        // Grown, and written in the new part.
        file.set_len(2 << 30).unwrap();
        write(3000, 5, "other");
        chain.keep(&volume);
        chain
    }

    fn keep(&mut self, volume: &Path) {
        self.snapshots.push(self.emulator.snapshot("vol-0a"));
        let image = self.image(self.snapshots.len() - 1);
        run(Command::new("cp")
            .arg("--sparse=always")
            .arg(volume)
            .arg(image));
    }

    pub fn image(&self, n: usize) -> PathBuf {
        self.images.path().join(format!("{n}.raw"))
    }

    pub fn changes(&self, base: usize, head: usize, format: &str) -> String {
        let (base, head) = (&self.snapshots[base], &self.snapshots[head]);
        run(&mut self
            .emulator
            .ebsfs(&["changes", base, head, "--format", format]))
    }

    /// A copy of the base as long as the head; what it has grown by is garbage, as on a device.
    pub fn target(&self, base: usize, head: usize) -> PathBuf {
        let target = self.images.path().join("target.raw");
        run(Command::new("cp")
            .arg("--sparse=always")
            .arg(self.image(base))
            .arg(&target));
        let len = std::fs::metadata(self.image(head)).unwrap().len();
        let file = writable(&target);
        let grown = std::fs::metadata(&target).unwrap().len()..len;
        file.set_len(len).unwrap();
        for at in grown.step_by(BLOCK as usize) {
            file.write_all_at(&[0xa5; BLOCK as usize], at).unwrap();
        }
        target
    }
}

/// Every pair of neighbours, the whole chain, and backwards.
pub const PAIRS: [(usize, usize); 7] = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (4, 0), (2, 1)];

#[test]
fn applying_the_csv_by_dd_gives_the_head_for_every_pair() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&[]);
    for (base, head) in PAIRS {
        let target = chain.target(base, head);
        let disk = mount.disk(&chain.snapshots[head]);
        for line in chain.changes(base, head, "csv").lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let source = match fields[3] {
                "written" => disk.display().to_string(),
                "zeroed" => "/dev/zero".to_owned(),
                other => panic!("{other}"),
            };
            let skip = if fields[3] == "written" {
                fields[1]
            } else {
                "0"
            };
            sh(&format!(
                "dd if={source} of={} bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc status=none \
                 skip={skip} seek={} count={}",
                target.display(),
                fields[1],
                fields[2]
            ));
        }
        assert_same(&target, &chain.image(head));
    }
}

#[test]
fn applying_the_mapfile_by_ddrescue_and_the_bmap_by_bmaptool_gives_the_head() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&[]);
    for (base, head) in PAIRS {
        let target = chain.target(base, head);
        let disk = mount.disk(&chain.snapshots[head]);
        let map = chain.images.path().join("map");
        std::fs::write(&map, chain.changes(base, head, "mapfile")).unwrap();
        sh(&format!(
            "ddrescue --quiet --force --domain-mapfile={} {} {}",
            map.display(),
            disk.display(),
            target.display()
        ));
        assert_same(&target, &chain.image(head));
        // Onto a block device: bmaptool truncates regular files.
        let target = chain.target(base, head);
        std::fs::write(&map, chain.changes(base, head, "bmap")).unwrap();
        sh(&format!(
            "device=$(losetup --find --show {}); \
             bmaptool --quiet copy --bmap {} {} \"$device\" || failed=1; \
             sync; losetup --detach \"$device\"; [ -z \"${{failed:-}}\" ]",
            target.display(),
            map.display(),
            disk.display()
        ));
        assert_same(&target, &chain.image(head));
    }
}

#[test]
fn changes_reports_totals_the_chain_and_the_blocks_of_one_snapshot() {
    let chain = Chain::new();
    let table = chain.changes(1, 2, "table");
    let line = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(
        (line("written").as_str(), line("zeroed").as_str()),
        ("1", "4"),
        "{table}"
    );
    // One page, and one request that proves its end.
    assert_eq!(line("listing"), "2");
    let table = run(&mut chain.emulator.ebsfs(&["changes", "--volume", "vol-0a"]));
    let written: Vec<_> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(2).unwrap().to_owned())
        .collect();
    assert_eq!(written, ["24", "1", "1", "5"], "{table}");
    let csv = chain.images.path().join("held.csv");
    run(&mut chain.emulator.ebsfs(&[
        "blocks",
        &chain.snapshots[0],
        "--format",
        "csv",
        "--output",
        csv.to_str().unwrap(),
    ]));
    let held = std::fs::read_to_string(&csv).unwrap();
    assert_eq!(
        held,
        format!(
            "block,offset,length,state\n0,0,{},held\n100,{},{},held\n",
            40 * BLOCK,
            100 * BLOCK,
            10 * BLOCK
        )
    );
}

#[test]
fn a_large_delta_is_listed_in_ranges_and_says_the_same_through_every_fault() {
    let pair = [
        "--synthetic",
        "snap-0a:1024:500000",
        "--synthetic-child",
        "snap-0b:snap-0a:50000",
    ];
    let emulator = Emulator::with(&pair);
    let csv = |switches: &str| {
        emulator.set(switches);
        emulator.reset();
        run(&mut emulator.ebsfs(&["changes", "snap-0a", "snap-0b", "--format", "csv"]))
    };
    let expected = csv("latency_ms=2");
    let changed: u64 = expected
        .lines()
        .skip(1)
        .map(|line| line.split(',').nth(2).unwrap().parse::<u64>().unwrap() / BLOCK)
        .sum();
    assert!((95_000..105_000).contains(&changed), "{changed}");
    assert!(expected.contains(",zeroed\n") && expected.contains(",written\n"));
    let lists = emulator.count("ListChangedBlocks");
    let pages = changed.div_ceil(10_000);
    assert!((pages..=pages + 8).contains(&lists), "{lists} listings");
    assert!(csv("nulls=1&empty_page=0.3&bare_last_page=1&error_5xx=0.05") == expected);
    assert!(csv("nulls=0&empty_page=0&bare_last_page=0&error_5xx=0&list_rps=5") == expected);
    for fault in ["drop_page=1", "double_page=1"] {
        emulator.set("list_rps=1000&drop_page=0&double_page=0");
        emulator.set(fault);
        let (code, said) = ends(&mut emulator.ebsfs(&["changes", "snap-0a", "snap-0b"]));
        assert_eq!(code, 8, "{fault}: {said}");
    }
}

#[test]
fn exact_leaves_out_blocks_rewritten_with_the_same_bytes() {
    let chain = Chain::new();
    chain.emulator.reset();
    let exact = |base: usize, head: usize| {
        let (base, head) = (&chain.snapshots[base], &chain.snapshots[head]);
        run(&mut chain
            .emulator
            .ebsfs(&["changes", base, head, "--exact", "--format", "csv"]))
    };
    assert_eq!(exact(2, 3).lines().count(), 1, "one block, rewritten alike");
    assert_eq!(chain.emulator.gets(), 2, "read in both");
    assert_eq!(chain.emulator.count("ListChangedBlocks"), 4);
    assert_eq!(chain.emulator.lists(), 0, "by the tokens of the listings");
    for (base, head) in [(0, 1), (1, 2), (0, 4), (4, 0)] {
        let listed = chain
            .changes(base, head, "csv")
            .replace("\n100,52428800,524288,written", "");
        assert_eq!(exact(base, head), listed, "{base} to {head}");
    }
}

#[test]
fn volumes_without_a_common_history_are_compared_by_content() {
    let emulator = Emulator::start();
    let images = tempfile::tempdir().unwrap();
    let a = emulator.make_volume("vol-0a", 2048, (0..20).chain(50..60));
    // A rebuilt volume: the same bytes, but for some.
    let b = emulator.volume("vol-0b");
    run(Command::new("cp").arg("--sparse=always").arg(&a).arg(&b));
    let file = writable(&b);
    for index in [3, 55, 700] {
        file.write_all_at(&content("other", index), index * BLOCK)
            .unwrap();
    }
    let free = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, free, (10 * BLOCK) as i64, (2 * BLOCK) as i64).unwrap();
    file.set_len(2 << 30).unwrap();
    let (base, head) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0b"));
    emulator.reset();
    let map = images.path().join("map");
    run(&mut emulator.ebsfs(&[
        "changes",
        &base,
        &head,
        "--unrelated",
        "compare",
        "--format",
        "csv",
        "-o",
        map.to_str().unwrap(),
    ]));
    assert_eq!(
        std::fs::read_to_string(&map).unwrap(),
        "block,offset,length,state\n\
         3,1572864,524288,written\n\
         10,5242880,1048576,zeroed\n\
         55,28835840,524288,written\n\
         700,367001600,524288,written\n\
         2048,1073741824,1073741824,zeroed\n"
    );
    assert_eq!(emulator.gets(), 2 * 28, "what both hold, and only that");
}

#[test]
fn a_page_dropped_where_one_range_ends_and_the_next_begins_is_found_out() {
    // Every block changed, in pages of 1,058: three ranges, of which the second ends exactly with a page.
    let emulator = Emulator::with(&[
        "--synthetic",
        "snap-0a:64:1000000",
        "--synthetic-child",
        "snap-0b:snap-0a:1000000",
        "--set",
        "page_blocks=1058",
    ]);
    let table = run(&mut emulator.ebsfs(&["changes", "snap-0a", "snap-0b"]));
    assert!(table.contains("100.000 % of the volume"), "{table}");
    emulator.set("drop_at=87734");
    let (code, said) = ends(&mut emulator.ebsfs(&["changes", "snap-0a", "snap-0b"]));
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("contradicts itself"), "{said}");
}

#[test]
fn snapshots_without_a_common_history_are_refused_with_a_remedy() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    emulator.make_volume("vol-0b", 2048, [0]);
    let (a, b) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0b"));
    let (code, said) = ends(&mut emulator.ebsfs(&["changes", &a, &b]));
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("no history in common") && said.contains("--unrelated compare"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("no/such/folder");
    let (code, _) = ends(&mut emulator.ebsfs(&["changes", &a, &a, "-o", file.to_str().unwrap()]));
    assert_eq!(code, 1);
    assert_eq!(
        std::fs::read_dir(out.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}
