//! Images of other formats as targets: what QEMU reads of them is the snapshot, whatever happened on the way.

use std::os::unix::fs::FileExt;

use super::*;
use crate::formats::{compare, qemu_json};

/// The ending of a name, and what QEMU calls the format.
const FORMATS: [(&str, &str); 3] = [("qcow2", "qcow2"), ("vhd", "vpc"), ("vmdk", "vmdk")];

/// Checks an image, and compares it with a raw one.
fn is_whole(image: &Path, format: &str, file: &Path) {
    if format != "vpc" {
        let checked = qemu_json("check", format, file);
        assert_eq!(checked["check-errors"], 0, "{checked}");
        for member in ["corruptions", "leaks"] {
            assert!(checked[member].as_u64().is_none_or(|n| n == 0), "{checked}");
        }
    }
    compare(image, format, file);
}

#[test]
fn a_snapshot_and_then_the_next_one_arrive_whole_in_each_format() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let targets = FORMATS.map(|(ending, _)| folder.path().join(format!("disk.{ending}")));
    let [qcow2, vhd, vmdk] = targets.each_ref().map(|path| text(path));
    let (first, last) = (&chain.snapshots[1], &chain.snapshots[4]);
    let all = |n: usize| {
        let id = &chain.snapshots[n];
        for (target, (_, format)) in targets.iter().zip(FORMATS) {
            is_whole(&chain.image(n), format, target);
            assert_eq!(
                status(&chain.emulator, text(target)),
                format!("holds {id}\n")
            );
            let verify = ["verify", text(target), "--progress", "none", "--state-dir"];
            let state = chain.emulator.folder.path().join("state");
            run(chain.emulator.ebsfs(&verify).arg(state));
        }
        let mount = chain.emulator.mount(&[id]);
        let shown = mount.disk(id).with_file_name("disk.vhd");
        run(Command::new("cmp").arg(shown).arg(vhd));
    };
    chain.emulator.reset();
    let said = run(&mut sync(
        &chain.emulator,
        &[first, qcow2, vhd, vmdk, "--verify", "--digest", "--json"],
    ));
    let digest = sha256(&chain.image(1));
    assert_eq!(said.matches(&digest).count(), 3, "{said}");
    let blocks = chain.emulator.gets();
    // Written blocks only, after the tables: 2.5 MiB of clusters.
    let len = fs::metadata(qcow2).unwrap().len();
    assert_eq!(len, (5 + blocks) * BLOCK);
    all(1);
    assert_eq!(left_beside(Path::new(qcow2)), KEPT);
    // Grown, shrunk: a delta where the format takes one, all blocks where it does not.
    for (base, head) in [(1, 4), (4, 0)] {
        let to = &chain.snapshots[head];
        let csv = chain.changes(base, head, "csv");
        let written = csv.lines().filter(|line| line.ends_with(",written"));
        let written: u64 = written
            .map(|line| line.split(',').nth(2).unwrap().parse::<u64>().unwrap() / BLOCK)
            .sum();
        chain.emulator.reset();
        let args = [to, vhd, vmdk, "--base", "auto", "--verify"];
        run(&mut sync(&chain.emulator, &args));
        assert_eq!(chain.emulator.gets(), written);
        run(&mut sync(&chain.emulator, &[to, qcow2, "--base", "auto"]));
        all(head);
    }
    let (code, said) = ends(&mut sync(
        &chain.emulator,
        &[last, qcow2, "--base", &chain.snapshots[0]],
    ));
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("takes all blocks"), "{said}");
}

#[test]
fn an_image_that_a_machine_wrote_is_found_by_its_tables_and_not_overwritten() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.qcow2");
    let (first, last) = (&chain.snapshots[0], &chain.snapshots[4]);
    let state = chain.emulator.folder.path().join("state");
    let verify = || {
        let args = ["verify", text(&target), "--progress", "none", "--state-dir"];
        let output = chain.emulator.ebsfs(&args).arg(&state).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    // In a block that was written, and in one that QEMU gives a new cluster and a new table.
    for place in [5 * BLOCK, 1500 * BLOCK + 4096] {
        run(&mut sync(
            &chain.emulator,
            &[first, text(&target), "--restart"],
        ));
        assert_eq!(verify().0, Some(0));
        run(Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &format!("write -P 7 {place} 4k")])
            .arg(&target));
        let (code, said) = verify();
        assert_eq!(code, Some(8), "{said}");
        let block = place - place % BLOCK;
        assert!(said.contains(&format!("offset {block}")), "{said}");
        for base in [&["--base", "auto"][..], &[]] {
            let args = [&[last, text(&target)], base].concat();
            let (code, said) = decides(&mut sync(&chain.emulator, &args));
            assert_eq!(code, 11, "{said}");
            assert!(said.contains("something else has written"), "{said}");
        }
        fs::remove_file(&target).unwrap();
    }
    // A feature that is not ours is named.
    run(&mut sync(&chain.emulator, &[first, text(&target)]));
    run(Command::new("qemu-img")
        .args(["snapshot", "-c", "mine"])
        .arg(&target));
    let (code, said) = verify();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("it has snapshots"), "{said}");
}

#[test]
fn a_descriptor_that_is_missing_or_wrong_is_written_again() {
    let chain = Chain::new();
    let id = &chain.snapshots[1];
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.vmdk");
    let copy = || {
        run(&mut sync(
            &chain.emulator,
            &[id, text(&target), "--base", "auto"],
        ))
    };
    copy();
    let whole = fs::read_to_string(&target).unwrap();
    let line = whole.lines().find(|line| line.starts_with("RW ")).unwrap();
    let other = whole.replace(line, "RW 2048 FLAT \"disk-flat.vmdk\" 0");
    assert_ne!(other, whole);
    for wrong in [None, Some(""), Some(&*other)] {
        match wrong {
            None => fs::remove_file(&target).unwrap(),
            Some(wrong) => fs::write(&target, wrong).unwrap(),
        }
        chain.emulator.reset();
        copy();
        assert_eq!(chain.emulator.gets(), 0);
        assert_eq!(fs::read_to_string(&target).unwrap(), whole);
        is_whole(&chain.image(1), "vmdk", &target);
    }
}

#[test]
fn names_are_no_protocols_and_files_of_others_stay() {
    let chain = Chain::new();
    let id = &chain.snapshots[1];
    let image = chain.image(1);
    let folder = tempfile::tempdir().unwrap();
    for (name, format) in [
        ("json:{\"a\"}, b='c'.qcow2", "qcow2"),
        ("nbd:x,y.vhd", "vpc"),
        ("a, b='c' $(d).vmdk", "vmdk"),
    ] {
        let target = folder.path().join(name);
        run(&mut sync(&chain.emulator, &[id, text(&target)]));
        is_whole(&image, format, &target);
    }
    let refused = |args: &[&str], expected: i32, why: &str| {
        let (code, said) = ends(&mut sync(&chain.emulator, args));
        assert_eq!(code, expected, "{args:?}: {said}");
        assert!(said.contains(why), "{args:?}: {said}");
    };
    let path = |name: &str| folder.path().join(name).display().to_string();
    let colon = path("json:{}.vmdk");
    refused(&[id, &colon], 2, "cannot name a file with ':'");
    // A VMDK of another kind, and its snapshot of a machine.
    let other = path("other.vmdk");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "vmdk", &other, "1M"]));
    let before = fs::read(&other).unwrap();
    let why = "is not the descriptor of other-flat.vmdk";
    refused(&[id, &other], 11, why);
    refused(&[id, &other, "--overwrite", &other], 11, why);
    assert_eq!(fs::read(&other).unwrap(), before);
    // The bytes of such a file are not those of a disk.
    let raw = path("copy.raw");
    for name in ["nbd:x,y.vhd", "a, b='c' $(d).vmdk"] {
        refused(&[&path(name), &raw], 2, "a source is a raw image");
    }
    assert!(!Path::new(&raw).exists());
    refused(
        &[id, &path("nbd:x,y.vhd"), "--in-place"],
        2,
        "only a raw image is written in place",
    );
}

#[test]
fn an_image_of_each_format_killed_at_any_moment_is_whole_in_the_end() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    let raw = folder.path().join("whole.raw");
    run(Command::new("cp")
        .arg("--sparse=always")
        .args([&disk, &raw]));
    // Without EBSFS_KILLS each is killed twice.
    let all = std::env::var_os("EBSFS_KILLS").is_some();
    let (most_kills, most_ms) = if all { (u64::MAX, 1500) } else { (2, 600) };
    for (ending, format) in FORMATS {
        let target = folder.path().join(format!("disk.{ending}"));
        emulator.set("latency_ms=10");
        let (kills, code, said) = kill_some(
            most_kills,
            Duration::from_secs(300),
            || {
                let args = ["snap-0a", text(&target), "--max-in-flight", "16"];
                sync(&emulator, &args)
            },
            most_ms,
            || {
                // Killed between the rename and the record: it must be whole then. A descriptor comes after its flat file.
                if target.exists() {
                    is_whole(&raw, format, &target);
                }
            },
        );
        assert_eq!(code, Some(0), "{said}");
        assert!(kills > 0, "{ending}");
        println!("{ending}: {kills} kills");
        is_whole(&raw, format, &target);
        let with_blocks = match format {
            "vmdk" => folder.path().join("disk-flat.vmdk"),
            _ => target,
        };
        assert_eq!(left_beside(&with_blocks), KEPT);
    }
}

#[test]
fn a_compressed_qcow2_is_smaller_and_whole_also_after_kills() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..40);
    let disk = writable(&volume);
    for index in 20..60 {
        let text = format!("block {index} of a log that repeats itself\n").repeat(20_000);
        let bytes = &text.as_bytes()[..BLOCK as usize];
        disk.write_all_at(bytes, index * BLOCK).unwrap();
    }
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let [target, plain] = ["small.qcow2", "plain.qcow2"].map(|name| folder.path().join(name));
    run(&mut sync(&emulator, &[&id, text(&plain)]));
    emulator.set("latency_ms=30");
    let kills = kill_until_done(
        || {
            let args = [&id, text(&target), "--compress", "--max-in-flight", "4"];
            sync(&emulator, &args)
        },
        1000,
        || {
            if target.exists() {
                is_whole(&volume, "qcow2", &target);
            }
        },
    );
    println!("{kills} kills");
    emulator.set("latency_ms=0");
    is_whole(&volume, "qcow2", &target);
    let info = qemu_json("info", "qcow2", &target);
    let kind = &info["format-specific"]["data"]["compression-type"];
    assert_eq!(kind, "zstd", "{info:#}");
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    // Without kills: the tables, 20 blocks that do not shrink, and a cluster with all others.
    let fresh = folder.path().join("fresh.qcow2");
    run(&mut sync(&emulator, &[&id, text(&fresh), "--compress"]));
    is_whole(&volume, "qcow2", &fresh);
    assert_eq!(len(&plain), (5 + 60) * BLOCK);
    assert_eq!(len(&fresh), (5 + 20 + 1) * BLOCK);
    let state = emulator.folder.path().join("state");
    let verify = ["verify", text(&target), "--progress", "none", "--state-dir"];
    run(emulator.ebsfs(&verify).arg(state));
    let raw = text(&folder.path().join("a.raw")).to_owned();
    let (code, said) = ends(&mut sync(&emulator, &[&id, &raw, "--compress"]));
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("none of the targets is a .qcow2 file"),
        "{said}"
    );
}
