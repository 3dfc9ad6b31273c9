//! What a target is believed to hold: its mark, its digests, the tags of a snapshot, and what an unfinished run left.

use std::os::unix::fs::FileExt;
use std::os::unix::fs::symlink;

use super::*;

/// What tells whether a file was written: the kernel sets its time of change at each write.
pub(super) fn stamp(path: &Path) -> (i64, i64, u64, u64) {
    use std::os::unix::fs::MetadataExt;
    sh(&format!("sync {}", path.display()));
    let found = fs::metadata(path).unwrap();
    (found.ctime(), found.ctime_nsec(), found.ino(), found.len())
}

/// A command that a person must decide about, perhaps after a comparison of the whole target: that may take its time.
pub(super) fn undecided(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(11), "{said}");
    said
}

/// A loop device under a name of the test's own, which can move to another device as /dev/sdb does.
fn named(link: &Path, device: &Loop) {
    let _ = fs::remove_file(link);
    symlink(&device.0, link).unwrap();
}

pub(super) fn sparse(path: &Path, gib: u64) {
    fs::File::create(path).unwrap().set_len(gib << 30).unwrap();
}

/// A device as far as a volume goes.
fn assert_begins(device: &str, image: &Path) {
    let len = fs::metadata(image).unwrap().len().to_string();
    run(Command::new("cmp").args(["-n", &len, device]).arg(image));
}

/// Runs `ebsfs sync ARGS` until a few of its blocks are kept, and kills it there.
fn killed_early(emulator: &Emulator, args: &[&str], target: &str) {
    emulator.set("latency_ms=600");
    let mut child = sync(emulator, &[args, &["--max-in-flight", "2"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("kept blocks", || {
        assert!(child.try_wait().unwrap().is_none(), "it was to be killed");
        let said = status(emulator, target);
        let mut lines = said.lines();
        lines.any(|line| line.contains("unfinished: ") && !line.contains(", 0 of"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    emulator.set("latency_ms=0");
}

/// What another program writes into a target.
fn write_foreign(path: &str, block: u64) {
    let file = writable(Path::new(path));
    file.write_all_at(b"something else wrote here", block * BLOCK + 4096)
        .unwrap();
    file.sync_all().unwrap();
}

/// Ways to change an image whose time of modification is put back: `{}` is the image, block 20 of which is changed.
const FOREIGN_WRITES: [(&str, &str); 5] = [
    (
        "at once",
        "echo other | dd of={} bs=4096 seek=2561 conv=notrunc status=none",
    ),
    (
        "written, its time put back",
        "touch -r {} {}.time; echo other | dd of={} bs=4096 seek=2561 conv=notrunc status=none; touch -r {}.time {}",
    ),
    (
        "written through a map, its time put back",
        "touch -r {} {}.time; xfs_io -c 'mmap -rw 0 16m' -c 'mwrite -S 0x5a 10490000 16' {}; touch -r {}.time {}",
    ),
    (
        "copied over with its times kept",
        "cp -p --sparse=always {} {}.other; echo other | dd of={}.other bs=4096 seek=2561 conv=notrunc status=none; \
         touch -r {} {}.other; cp -p {}.other {}",
    ),
    (
        "replaced with its times kept",
        "cp -p --sparse=always {} {}.other; echo other | dd of={}.other bs=4096 seek=2561 conv=notrunc status=none; \
         touch -r {} {}.other; mv {}.other {}",
    ),
];

#[test]
fn a_foreign_write_to_an_image_is_detected_although_its_mtime_was_set_back() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let ids = &chain.snapshots;
    for (number, (what, line)) in FOREIGN_WRITES.iter().enumerate() {
        let image = folder.path().join(format!("{number}.raw"));
        run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
        sh(&line.replace("{}", text(&image)));
        let before = stamp(&image);
        chain.emulator.reset();
        for more in [&[][..], &["--verify"], &["--in-place"]] {
            let args = [&[ids[1].as_str(), text(&image), "--base", "auto"], more].concat();
            let said = undecided(&mut sync(&chain.emulator, &args));
            assert!(said.contains("written 1 of its blocks"), "{what}: {said}");
            assert!(said.contains("--discard-foreign-writes"), "{what}: {said}");
            assert_eq!(stamp(&image), before, "{what}: nothing is written");
        }
        assert_eq!(chain.emulator.gets(), 0, "{what}");
        let args = [
            ids[1].as_str(),
            text(&image),
            "--base",
            "auto",
            "--discard-foreign-writes",
        ];
        run(&mut sync(&chain.emulator, &args));
        assert_same(&image, &chain.image(1));
        assert_eq!(
            chain.emulator.gets(),
            25,
            "{what}: 24 changed and 1 foreign"
        );
    }
}

#[test]
fn a_touched_image_is_compared_and_gets_a_delta_without_confirmation() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    for more in [&[][..], &["--in-place"]] {
        let head = if more.is_empty() { 1 } else { 4 };
        sh(&format!("touch {0}; chmod 640 {0}", image.display()));
        chain.emulator.reset();
        let args = [&[ids[head].as_str(), text(&image), "--base", "auto"], more].concat();
        run(&mut sync(&chain.emulator, &args));
        let gets = chain.emulator.gets();
        assert!(gets <= 24, "{gets}: {head}");
        assert_same(&image, &chain.image(head));
    }
}

#[test]
fn a_replica_that_was_mounted_read_write_is_not_overwritten_by_the_next_nightly_run() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, []);
    sh(&format!("mkfs.ext4 -q -F {}", volume.display()));
    let first = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let (image, in_place) = (
        folder.path().join("image.raw"),
        folder.path().join("in-place.raw"),
    );
    let backing = folder.path().join("disk");
    sparse(&backing, 1);
    let device = Loop::over(&backing);
    run(&mut sync(&emulator, &[&first, text(&image)]));
    run(&mut sync(&emulator, &[&first, text(&in_place)]));
    let overwrite = ["--overwrite", device.0.as_str()];
    run(&mut sync(
        &emulator,
        &[&[first.as_str(), &device.0], &overwrite[..]].concat(),
    ));
    let point = folder.path().join("point");
    fs::create_dir(&point).unwrap();
    let drill = |what: &str| {
        let options = if what.starts_with("/dev/") {
            ""
        } else {
            "-o loop"
        };
        sh(&format!(
            "mount {options} {what} {0}; echo failed over > {0}/here; umount {0}",
            point.display()
        ));
    };
    write_foreign(text(&volume), 1000);
    let second = emulator.snapshot("vol-0a");
    for (target, more) in [
        (text(&image), None),
        (text(&in_place), Some("--in-place")),
        (device.0.as_str(), None),
    ] {
        drill(target);
        // Of a device the file behind it shows its writes.
        let file = match target == device.0 {
            true => &backing,
            false => Path::new(target),
        };
        let before = stamp(file);
        let mut nightly = vec![second.as_str(), target, "--base", "auto"];
        nightly.extend(more);
        undecided(&mut sync(&emulator, &nightly));
        undecided(&mut sync(&emulator, &nightly));
        assert_eq!(stamp(file), before, "nothing is written");
        nightly.push("--discard-foreign-writes");
        run(&mut sync(&emulator, &nightly));
        assert_same(Path::new(target), &volume);
        nightly.pop();
        run(&mut sync(&emulator, &nightly));
    }
}

#[test]
fn a_half_written_target_is_compared_as_a_whole_before_its_run_is_resumed() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let (image, backing) = (folder.path().join("image.raw"), folder.path().join("disk"));
    sparse(&backing, 2);
    let device = Loop::over(&backing);
    for (target, file, more) in [
        (text(&image), &image, &["--in-place"][..]),
        (&device.0, &backing, &["--overwrite", &device.0]),
    ] {
        // The image must be there to be written in place.
        if more == ["--in-place"] {
            run(&mut sync(&chain.emulator, &[&ids[0], target]));
        } else {
            let first = [&[ids[0].as_str(), target], more].concat();
            run(&mut sync(&chain.emulator, &first));
        }
        let in_place = &more[..usize::from(more.len() == 1)];
        let nightly = [&[ids[1].as_str(), target, "--base", "auto"], in_place].concat();
        // A block that the plan names and that is not done: it is written anyway.
        killed_early(&chain.emulator, &nightly, target);
        write_foreign(target, 2047);
        run(&mut sync(
            &chain.emulator,
            &[&nightly[..], &["--verify"]].concat(),
        ));
        assert_begins(target, &chain.image(1));
        // One that the plan leaves alone.
        let later = [&[ids[4].as_str(), target, "--base", "auto"], in_place].concat();
        refused_half_way(&chain, &later, target, file);
    }
}

/// Kills a run to the last snapshot, writes a block that its plan does not name: refused; then the whole target is made right.
fn refused_half_way(chain: &Chain, args: &[&str], target: &str, file: &Path) {
    killed_early(&chain.emulator, args, target);
    write_foreign(target, 20);
    let before = stamp(file);
    for more in [&[][..], &["--verify"]] {
        let said = undecided(&mut sync(&chain.emulator, &[args, more].concat()));
        assert!(said.contains("written 1 of its blocks"), "{said}");
    }
    assert_eq!(stamp(file), before, "nothing is written");
    let discard = [args, &["--discard-foreign-writes"]].concat();
    run(&mut sync(&chain.emulator, &discard));
    assert_begins(target, &chain.image(4));
}

#[test]
fn a_device_with_a_record_needs_no_word_and_one_without_is_named_once_as_the_refusal_says() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("disk");
    sparse(&backing, 1);
    let device = Loop::over(&backing);
    let before = fs::metadata(&backing).unwrap().modified().unwrap();
    for args in [
        &[ids[0].as_str(), &device.0][..],
        &[&ids[0], &device.0, "--yes"],
        &[&ids[0], &device.0, "--base", "auto", "--yes"],
        &[&ids[0], &device.0, "--overwrite", text(&backing)],
    ] {
        let said = undecided(&mut sync(&chain.emulator, args));
        let token = said.split("--overwrite ").nth(1);
        let token = token.and_then(|rest| rest.split(' ').next());
        assert_eq!(token, Some(device.0.as_str()), "{said}");
    }
    let written = fs::metadata(&backing).unwrap().modified().unwrap();
    assert_eq!(before, written, "nothing is written");
    let named = [ids[0].as_str(), &device.0, "--overwrite", &device.0];
    run(&mut sync(&chain.emulator, &named));
    for head in [1, 2, 3] {
        chain.emulator.reset();
        let nightly = [ids[head].as_str(), &device.0, "--base", "auto"];
        run(&mut sync(&chain.emulator, &nightly));
        assert!(chain.emulator.gets() <= 24, "a delta");
        assert_same(Path::new(&device.0), &chain.image(head));
    }
    // After a reboot it is another device over the same disk.
    drop(device);
    let device = Loop::over(&backing);
    chain.emulator.reset();
    let nightly = [ids[1].as_str(), &device.0, "--base", "auto"];
    run(&mut sync(&chain.emulator, &nightly));
    assert!(chain.emulator.gets() <= 24, "a delta");
    assert_same(Path::new(&device.0), &chain.image(1));
}

#[test]
fn devices_that_have_changed_places_are_never_overwritten() {
    let chain = Chain::new();
    let emulator = &chain.emulator;
    let ids = &chain.snapshots;
    emulator.make_volume("vol-0b", 2048, [3, 4, 5]);
    let other = emulator.snapshot("vol-0b");
    let folder = tempfile::tempdir().unwrap();
    let backing = |n: u8| folder.path().join(format!("disk{n}"));
    let link = |n: u8| folder.path().join(format!("sd{n}"));
    for n in 0..3 {
        sparse(&backing(n), 1);
    }
    let devices = [0, 1, 2].map(|n| Loop::over(&backing(n)));
    let [sda, sdb, sdc] = [0, 1, 2].map(link);
    for (link, device) in [&sda, &sdb, &sdc].into_iter().zip(&devices) {
        named(link, device);
    }
    // The third holds what ebsfs has never seen.
    write_foreign(&devices[2].0, 7);
    for (id, disk, device) in [(&ids[0], &sda, 0), (&other, &sdb, 1)] {
        let token: &str = &devices[device].0;
        run(&mut sync(emulator, &[id, text(disk), "--overwrite", token]));
    }
    let before = [0, 1, 2].map(|n| stamp(&backing(n)));
    // The first name leads to another replica, then to the unknown disk.
    for device in [1, 2] {
        named(&sda, &devices[device]);
        for more in [
            &[][..],
            &["--base", "auto"],
            &["--base", &ids[0]],
            &["--restart"],
        ] {
            let nightly = [&[ids[1].as_str(), text(&sda), "--yes"], more].concat();
            undecided(&mut sync(emulator, &nightly));
        }
    }
    // The same name and the same path of a disk, and another disk.
    let moved = folder.path().join("moved");
    fs::rename(backing(0), &moved).unwrap();
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(&moved)
        .arg(backing(0)));
    write_foreign(text(&backing(0)), 9);
    let copy = stamp(&backing(0));
    let another = Loop::over(&backing(0));
    named(&sda, &another);
    let nightly = [ids[1].as_str(), text(&sda), "--base", "auto", "--yes"];
    undecided(&mut sync(emulator, &nightly));
    assert_eq!(stamp(&backing(0)), copy);
    let after = [moved, backing(1), backing(2)].map(|path| stamp(&path));
    // Renaming the first has changed its time.
    assert_eq!(before[1..], after[1..], "nothing is written");
}

#[test]
fn a_snapshot_of_another_volume_does_not_replace_a_replica_unless_it_is_named() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let volume = chain.emulator.make_volume("vol-0b", 2048, [3, 4, 5]);
    let other = chain.emulator.snapshot("vol-0b");
    let folder = tempfile::tempdir().unwrap();
    let (image, backing) = (folder.path().join("image.raw"), folder.path().join("disk"));
    sparse(&backing, 1);
    let device = Loop::over(&backing);
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    let named = [ids[0].as_str(), &device.0, "--overwrite", &device.0];
    run(&mut sync(&chain.emulator, &named));
    for target in [text(&image), &device.0] {
        for more in [
            &[][..],
            &["--base", "auto"],
            &["--yes"],
            &["--restart"],
            &["--discard-foreign-writes"],
        ] {
            let args = [&[other.as_str(), target], more].concat();
            let said = undecided(&mut sync(&chain.emulator, &args));
            assert!(said.contains("vol-0a") && said.contains("vol-0b"), "{said}");
        }
        assert_same(Path::new(target), &chain.image(0));
        let args = [
            other.as_str(),
            target,
            "--base",
            "auto",
            "--overwrite",
            target,
        ];
        run(&mut sync(&chain.emulator, &args));
        assert_same(Path::new(target), &volume);
    }
}

#[test]
fn a_killed_copy_of_an_older_snapshot_does_not_hold_up_the_next_night() {
    let emulator = large_pair();
    emulator.set("latency_ms=0");
    let other = Emulator::beside(&emulator);
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let repository = format!("file://{}/replicas", folder.path().display());
    init_repository(&repository);
    let url = other.url();
    let mount = emulator.mount(&["snap-0b"]);
    let disk = mount.disk("snap-0b");
    for (target, more) in [
        (text(&image), vec![]),
        (&repository, vec![]),
        ("ebs:", vec!["--to-endpoint-url", url.as_str()]),
    ] {
        let tonight = |id| [&[id, target, "--base", "auto"], &more[..]].concat();
        killed_early(&emulator, &tonight("snap-0a"), target);
        let made = run(&mut sync(&emulator, &tonight("snap-0b")));
        let said = status(&emulator, target);
        assert!(!said.contains("unfinished:"), "{said}");
        match target {
            "ebs:" => {
                let copy = other.mount(&[made.trim()]);
                assert_same(&copy.disk(made.trim()), &disk);
            }
            _ if target == repository => {
                let restored = folder.path().join("restored.raw");
                run(&mut sync(
                    &emulator,
                    &[&format!("{repository}#snap-0b"), text(&restored)],
                ));
                assert_same(&restored, &disk);
                let said = run(&mut emulator.ebsfs(&["repository", "prune", &repository]));
                assert!(!said.contains("unfinished"), "{said}");
            }
            _ => {
                assert_same(&image, &disk);
                let left = left_beside(&image);
                assert!(!left.iter().any(|name| name.contains("part")), "{left:?}");
            }
        }
    }
}

#[test]
fn a_part_that_was_replaced_or_overwritten_before_its_run_is_resumed_is_never_published_wrong() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let mount = emulator.mount(&["snap-0a"]);
    let disk = mount.disk("snap-0a");
    for (number, line) in [
        // The same inode, very likely.
        "rm {}; truncate -s 1G {}; chmod 600 {}",
        "size=$(stat -c %s {}); truncate -s 0 {}; truncate -s $size {}",
        "touch -r {} {}.time; head -c 300M /dev/urandom | dd of={} bs=1M iflag=fullblock conv=notrunc status=none; \
         touch -r {}.time {}",
        "head -c 5000 /dev/urandom > {}",
    ]
    .into_iter()
    .enumerate()
    {
        let image = folder.path().join(format!("{number}.raw"));
        killed_early(&emulator, &["snap-0a", text(&image)], text(&image));
        let part = folder.path().join(format!("{number}.raw.ebsfs-part"));
        assert!(part.exists());
        sh(&line.replace("{}", text(&part)));
        run(&mut sync(&emulator, &["snap-0a", text(&image)]));
        assert_same(&image, &disk);
        fs::remove_file(&image).unwrap();
    }
}
