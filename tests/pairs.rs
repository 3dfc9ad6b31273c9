//! The folder of a pair of snapshots: what its files say, what can be done with them, what looking at them costs.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::unistd::{Whence, lseek};
use serde_json::Value;

use crate::changes::{Chain, PAIRS};
use crate::support::*;

const FORMATS: [&str; 4] = ["json", "csv", "bmap", "mapfile"];

/// The runs of a file that are not holes, by SEEK_DATA and SEEK_HOLE.
fn extents(path: &Path) -> Vec<(u64, u64)> {
    let file = open(path);
    let (mut at, mut found) = (0, Vec::new());
    while let Ok(data) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, data, Whence::SeekHole).unwrap();
        found.push((data.cast_unsigned(), at.cast_unsigned()));
    }
    found
}

/// Offset, length and state of each line of a CSV.
fn lines(csv: &str) -> Vec<(u64, u64, &str)> {
    let number = |text: &str| text.parse::<u64>().unwrap();
    csv.lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            (number(fields[1]), number(fields[2]), fields[3])
        })
        .collect()
}

/// Runs that touch and are alike as one.
fn merged(runs: impl IntoIterator<Item = (u64, u64, bool)>) -> Vec<(u64, u64, bool)> {
    let mut merged: Vec<(u64, u64, bool)> = Vec::new();
    for (start, end, is_data) in runs {
        match merged.last_mut() {
            Some((_, last, was_data)) if *last == start && *was_data == is_data => *last = end,
            _ => merged.push((start, end, is_data)),
        }
    }
    merged
}

/// A JSON map as runs; a field says which are data.
fn json_runs(json: &str, field: &str) -> Vec<(u64, u64, bool)> {
    let runs: Vec<Value> = serde_json::from_str(json).unwrap();
    merged(runs.iter().map(|run| {
        let (start, length) = (
            run["start"].as_u64().unwrap(),
            run["length"].as_u64().unwrap(),
        );
        (start, start + length, run[field].as_bool().unwrap())
    }))
}

#[test]
fn delta_raw_holds_exactly_the_changes_and_the_maps_list_them() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&[]);
    for (base, head) in PAIRS {
        let pair = mount.pair(&chain.snapshots[base], &chain.snapshots[head]);
        let delta = pair.join("delta.raw");
        for format in FORMATS {
            let file = fs::read_to_string(pair.join(format!("changes.{format}"))).unwrap();
            assert_eq!(
                file,
                chain.changes(base, head, format),
                "{base} to {head}: {format}"
            );
        }
        let svg = fs::read_to_string(pair.join("heatmap.svg")).unwrap();
        assert_eq!(svg, chain.changes(base, head, "svg"));

        let csv = chain.changes(base, head, "csv");
        let found = merged(extents(&delta).iter().map(|(a, b)| (*a, *b, true)));
        let shown = lines(&csv)
            .into_iter()
            .map(|(start, len, _)| (start, start + len, true));
        assert_eq!(found, merged(shown), "SEEK_DATA and SEEK_HOLE");
        let image = chain.image(head);
        assert_eq!(
            fs::metadata(&delta).unwrap().len(),
            fs::metadata(&image).unwrap().len()
        );
        let changed: u64 = lines(&csv).iter().map(|(_, len, _)| len).sum();
        assert_eq!(fs::metadata(&delta).unwrap().blocks(), changed / 512);
        for (start, len, state) in lines(&csv) {
            let bytes = read_at(&delta, start, len as usize);
            assert!(bytes == read_at(&image, start, len as usize), "{start}");
            if state == "zeroed" {
                assert!(bytes.iter().all(|byte| *byte == 0), "{start}");
            }
        }
        // Holes read as zeroes, whatever the head holds there.
        let mut holes = Vec::new();
        let mut at = 0;
        for (start, end) in extents(&delta) {
            holes.extend(
                [at, start.saturating_sub(4096)]
                    .into_iter()
                    .filter(|at| *at < start),
            );
            at = end;
        }
        for at in holes {
            if !found
                .iter()
                .any(|(start, end, _)| (*start..*end).contains(&at))
            {
                assert_eq!(read_at(&delta, at, 4096), [0; 4096], "{at}");
            }
        }

        let json = chain.changes(base, head, "json");
        let map = sh(&format!(
            "qemu-img map --output=json -f raw {}",
            delta.display()
        ));
        assert_eq!(json_runs(&map, "data"), json_runs(&json, "present"));
        let summary: Value =
            serde_json::from_slice(&fs::read(pair.join("summary.json")).unwrap()).unwrap();
        let of = |state: &str| -> u64 {
            let lines = lines(&csv).into_iter();
            lines
                .filter(|line| line.2 == state)
                .map(|(_, len, _)| len / BLOCK)
                .sum()
        };
        assert_eq!(summary["written"]["blocks"], of("written"));
        assert_eq!(summary["zeroed"]["blocks"], of("zeroed"));
        assert_eq!(summary["reading"]["GetSnapshotBlock"], of("written"));
        assert_eq!(summary["head"]["snapshot"], *chain.snapshots[head]);
        assert_eq!(
            summary["head"]["bytes"],
            fs::metadata(&image).unwrap().len()
        );
    }
}

#[test]
fn delta_raw_applied_to_a_dirty_loop_device_by_dd_bmaptool_and_ddrescue_gives_the_head() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&[]);
    for (base, head) in PAIRS {
        let pair = mount.pair(&chain.snapshots[base], &chain.snapshots[head]);
        let pair = pair.display();
        for apply in [
            "while IFS=, read -r _ offset length _; do
                 dd if=$pair/delta.raw of=$device bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc \
                     status=none skip=$offset seek=$offset count=$length
             done < <(tail -n +2 $pair/changes.csv)",
            "bmaptool --quiet copy --bmap $pair/changes.bmap $pair/delta.raw $device",
            "ddrescue --quiet --force --domain-mapfile=$pair/changes.mapfile $pair/delta.raw $device",
        ] {
            let target = chain.target(base, head);
            sh(&format!(
                "device=$(losetup --find --show {})
                 trap 'losetup --detach $device' EXIT
                 pair={pair}
                 {apply}
                 sync",
                target.display()
            ));
            assert_same(&target, &chain.image(head));
        }
    }
}

#[test]
fn ddrescue_continues_where_it_was_killed() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&["--memory", "16MiB"]);
    let pair = mount.pair(&chain.snapshots[0], &chain.snapshots[4]);
    let target = chain.target(0, 4);
    let done = chain.images.path().join("done.mapfile");
    fs::metadata(pair.join("changes.mapfile")).unwrap();
    let command = format!(
        "ddrescue --quiet --force --mapfile-interval=0 --domain-mapfile={0}/changes.mapfile {0}/delta.raw {1} {2}",
        pair.display(),
        target.display(),
        done.display()
    );
    chain.emulator.reset();
    chain.emulator.set("latency_ms=700");
    sh(&format!("timeout --signal=INT 3 {command} || true"));
    let before = chain.emulator.gets();
    assert!(
        (1..25).contains(&before),
        "{before} blocks when it was stopped"
    );
    chain.emulator.set("latency_ms=0");
    sh(&command);
    assert_same(&target, &chain.image(4));
}

#[test]
fn looking_costs_nothing_a_file_one_listing_and_reading_it_all_one_get_a_written_block() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&["vol-0a"]);
    let calls = || {
        let emulator = &chain.emulator;
        let changed = emulator.count("ListChangedBlocks");
        (emulator.lists(), changed, emulator.gets())
    };
    let names = |path: &Path| -> Vec<String> {
        let names = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = names
            .map(|n| n.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let ids = &chain.snapshots;
    let mut neighbours: Vec<String> = ids
        .windows(2)
        .map(|p| format!("{}..{}", p[0], p[1]))
        .collect();
    neighbours.sort();
    assert_eq!(names(&mount.point.path().join("changes")), neighbours);
    let pair = mount.pair(&ids[0], &ids[4]);
    assert_eq!(names(&pair).len(), 8);
    assert_eq!(calls(), (0, 0, 0), "listing folders");

    for name in names(&pair) {
        fs::metadata(pair.join(&name)).unwrap();
        if !["delta.raw", "overlay.qcow2"].contains(&&*name) {
            fs::read(pair.join(&name)).unwrap();
        }
    }
    // One page, and one request that proves its end.
    assert_eq!(calls(), (0, 2, 0), "all files without bytes of the volume");

    let csv = chain.changes(0, 4, "csv");
    chain.emulator.reset();
    let read = |path: &Path| {
        let file = open(path);
        for (start, len, _) in lines(&csv) {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, start).unwrap();
        }
    };
    let written: u64 = lines(&csv)
        .iter()
        .filter(|l| l.2 == "written")
        .map(|l| l.1 / BLOCK)
        .sum();
    assert!(
        written > 20 && lines(&csv).iter().any(|line| line.2 == "zeroed"),
        "{csv}"
    );
    read(&pair.join("delta.raw"));
    assert_eq!(calls(), (0, 0, written), "by the listing's own tokens");
    // The same blocks of the head are the same bytes: fetched once, whichever file they are read by.
    for (start, ..) in lines(&csv) {
        read_at(&mount.disk(&ids[4]), start, 4096);
    }
    assert_eq!(calls().2, written);

    // Any pair, backwards too, and one that is alike; but no name that is no pair.
    assert_eq!(names(&mount.pair(&ids[4], &ids[1])).len(), 8);
    let same = mount.pair(&ids[2], &ids[2]);
    assert_eq!(
        fs::read_to_string(same.join("changes.csv"))
            .unwrap()
            .lines()
            .count(),
        1
    );
    assert_eq!(extents(&same.join("delta.raw")), []);
    for wrong in ["snap-0", "..", "snap-0a..", "snap-123..snap-456"] {
        let path = mount.point.path().join("changes").join(wrong);
        assert!(wrong == ".." || !path.exists(), "{wrong}");
    }
}

#[test]
fn a_delta_is_read_through_expired_tokens_and_every_fault_alike() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&["--memory", "16MiB"]);
    let ids = &chain.snapshots;
    let pair = mount.pair(&ids[0], &ids[1]);
    let csv = fs::read_to_string(pair.join("changes.csv")).unwrap();
    let delta = open(&pair.join("delta.raw"));
    let image = chain.image(1);
    chain.emulator.reset();
    for (number, (start, len, _)) in lines(&csv).into_iter().enumerate() {
        if number == 1 {
            chain.emulator.post("expire-tokens");
        }
        if number == 2 {
            chain
                .emulator
                .set("error_5xx=0.1&reset=0.1&corrupt=0.1&nulls=0.5&empty_page=0.3&short_page=0.3");
            chain.emulator.post("expire-tokens");
        }
        let mut bytes = vec![0; len as usize];
        delta.read_exact_at(&mut bytes, start).unwrap();
        assert!(bytes == read_at(&image, start, len as usize), "{start}");
    }
    assert!(
        chain.emulator.count("ListChangedBlocks") >= 1,
        "listed again"
    );
    assert_eq!(chain.emulator.lists(), 0, "by the pair's own listing");
}

#[test]
fn a_page_of_one_block_is_continued() {
    let chain = Chain::new();
    let expected = chain.changes(0, 4, "csv");
    chain.emulator.set("short_page=0.7&empty_page=0.2");
    assert_eq!(chain.changes(0, 4, "csv"), expected);
    let mount = chain.emulator.mount(&[]);
    assert_same(&chain.image(4), &mount.disk(&chain.snapshots[4]));
}

#[test]
fn a_listing_slower_than_the_timeout_is_continued_by_the_next_reader() {
    let emulator = Emulator::with(&[
        "--synthetic",
        "snap-0a:1024:500000",
        "--synthetic-child",
        "snap-0b:snap-0a:50000",
    ]);
    let mount = emulator.mount(&["--timeout", "2s", "snap-0a", "snap-0b"]);
    emulator.set("latency_ms=1200");
    emulator.reset();
    let csv = mount.pair("snap-0a", "snap-0b").join("changes.csv");
    let mut refused = 0u64;
    while let Err(error) = fs::metadata(&csv) {
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
        refused += 1;
        assert!(refused < 20);
    }
    assert!(refused >= 1, "ten pages of 1.2 s each");
    assert!(
        mount.log().contains("still being listed"),
        "{}",
        mount.log()
    );
    let listed = emulator.count("ListChangedBlocks");
    assert!(
        listed <= 10 + 2 + 2 * refused,
        "{listed} listings, {refused} refused"
    );
    // Without a waiter nothing is listed.
    let other = mount.pair("snap-0b", "snap-0a").join("changes.csv");
    fs::metadata(&other).unwrap_err();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let before = emulator.count("ListChangedBlocks");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(emulator.count("ListChangedBlocks"), before);
}

#[test]
fn a_long_distance_to_the_next_change_is_continued_by_the_next_reader() {
    // One ListChangedBlocks looks at 1,000 blocks: 2,048 of them say nothing or next to nothing.
    let emulator = Emulator::with(&[
        "--synthetic",
        "snap-0a:1000:1000000",
        "--synthetic-child",
        "snap-0b:snap-0a:2",
        "--set",
        "scan_blocks=1000",
    ]);
    let expected = run(&mut emulator.ebsfs(&["changes", "snap-0a", "snap-0b", "--format", "csv"]));
    assert!((2..20).contains(&expected.lines().count()), "{expected}");
    let mount = emulator.mount(&["--timeout", "5s", "snap-0a", "snap-0b"]);
    let csv = mount.pair("snap-0a", "snap-0b").join("changes.csv");
    let mut refused = 0;
    let found = loop {
        match fs::read_to_string(&csv) {
            Ok(found) => break found,
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}"),
        }
        refused += 1;
        assert!(refused < 30, "it comes nowhere");
    };
    assert!(refused >= 2, "at most 49 a second");
    assert_eq!(found, expected);
}

#[test]
fn a_delta_and_the_head_that_contradict_each_other_are_an_error_and_no_zeroes() {
    let emulator = Emulator::with(&["--set", "deny=ec2:DescribeSnapshots"]);
    let volume = emulator.make_volume("vol-0a", 2048, 0..64);
    let base = emulator.snapshot("vol-0a");
    for index in 0..64 {
        writable(&volume)
            .write_all_at(&content("other", index), index * BLOCK)
            .unwrap();
    }
    let head = emulator.snapshot("vol-0a");
    // The head's own listing is empty, which only EC2's count would refute.
    emulator.set("null_list=1");
    let mount = emulator.mount(&[&base, &head]);
    emulator.set("null_list=0");
    let delta = open(&mount.pair(&base, &head).join("delta.raw"));
    let mut bytes = vec![0; BLOCK as usize];
    let error = delta.read_exact_at(&mut bytes, 60 * BLOCK).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    wait_for("the reason", || mount.log().contains("contradicts itself"));
}

#[test]
fn pictures_of_many_snapshots_do_not_pile_up() {
    let args: Vec<String> = (0..300)
        .flat_map(|n| ["--synthetic".to_owned(), format!("snap-{n:03x}:16:500000")])
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let emulator = Emulator::with(&args);
    let mount = emulator.mount(&["--memory", "16MiB"]);
    for n in 0..300 {
        let disk = mount.disk(&format!("snap-{n:03x}"));
        fs::metadata(disk.with_file_name("heatmap.svg")).unwrap();
    }
    let peak = mount.peak_memory() >> 20;
    assert!(peak <= 16 + 200, "{peak} MiB");
    println!("peak {peak} MiB after 300 pictures");
}

#[test]
fn unrelated_snapshots_have_a_folder_whose_files_say_why_not() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    emulator.make_volume("vol-0b", 2048, [0]);
    let (a, b) = (emulator.snapshot("vol-0a"), emulator.snapshot("vol-0b"));
    let mount = emulator.mount(&[]);
    assert_eq!(
        fs::read_dir(mount.point.path().join("changes"))
            .unwrap()
            .count(),
        0
    );
    let error = fs::metadata(mount.pair(&a, &b).join("delta.raw")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    wait_for("the reason", || {
        mount.log().contains("compare all blocks of both")
    });
}

#[test]
fn the_blocks_of_a_snapshot_are_listed_in_the_same_formats() {
    let chain = Chain::new();
    let mount = chain.emulator.mount(&[]);
    for id in &chain.snapshots {
        let folder = mount.disk(id).parent().unwrap().to_owned();
        chain.emulator.reset();
        for (name, format) in FORMATS
            .map(|format| (format!("blocks.{format}"), format))
            .into_iter()
            .chain([("heatmap.svg".to_owned(), "svg")])
        {
            let shown = run(&mut chain.emulator.ebsfs(&["blocks", id, "--format", format]));
            assert_eq!(
                fs::read_to_string(folder.join(&name)).unwrap(),
                shown,
                "{name}"
            );
        }
        let disk = mount.disk(id);
        let map = sh(&format!(
            "qemu-img map --output=json -f raw {}",
            disk.display()
        ));
        let json = fs::read_to_string(folder.join("blocks.json")).unwrap();
        assert_eq!(json_runs(&map, "data"), json_runs(&json, "data"));
    }
}
