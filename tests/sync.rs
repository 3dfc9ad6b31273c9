//! Replicas: every kind of target, from nothing and from what it held, killed at any moment, refused where it must be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::changes::Chain;
use crate::support::*;

/// A loop device over a file; detached when dropped.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        Self(
            sh(&format!("losetup --find --show {}", file.display()))
                .trim()
                .to_owned(),
        )
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// `ebsfs sync` with a state folder of the test's own.
fn sync(emulator: &Emulator, args: &[&str]) -> Command {
    let mut command = emulator.ebsfs(&["sync", "--progress", "none"]);
    command
        .arg("--state-dir")
        .arg(emulator.folder.path().join("state"));
    command.args(args);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn status(emulator: &Emulator, target: &str) -> String {
    run(&mut sync(emulator, &["--status", target]))
}

/// What is beside an image besides itself.
fn left_beside(image: &Path) -> Vec<String> {
    let name = image.file_name().unwrap().to_str().unwrap();
    let folder = fs::read_dir(image.parent().unwrap()).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<_> = names
        .filter(|other| other.starts_with(name) && other != name)
        .map(|other| other[name.len()..].to_owned())
        .collect();
    left.sort();
    left
}

#[test]
fn a_snapshot_and_then_its_changes_arrive_whole_in_images_and_on_dirty_devices() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    // Written, freed, grown, and all of it backwards.
    for (base, head) in [(0, 1), (1, 2), (3, 4), (4, 0)] {
        let (from, to) = (&chain.snapshots[base], &chain.snapshots[head]);
        let image = folder.path().join("image.raw");
        let in_place = folder.path().join("in-place.raw");
        let disk = folder.path().join("disk");
        let garbage = format!("head -c 2G /dev/urandom > {}", disk.display());
        if !disk.exists() {
            sh(&garbage);
        }
        let device = Loop::over(&disk);
        fs::write(&in_place, [7; 100_000]).unwrap();
        run(&mut sync(
            &chain.emulator,
            &[from, text(&image), &device.0, "--yes", "--verify"],
        ));
        run(&mut sync(
            &chain.emulator,
            &[from, text(&in_place), "--in-place", "--yes"],
        ));
        let targets = [image.as_path(), &in_place, Path::new(&device.0)];
        let same = |n: usize| {
            // The device is larger than some of the volumes.
            let len = fs::metadata(chain.image(n)).unwrap().len();
            for target in targets {
                run(Command::new("cmp")
                    .args(["-n", &len.to_string()])
                    .args([target, &chain.image(n)]));
            }
            for image in &targets[..2] {
                assert_eq!(fs::metadata(image).unwrap().len(), len);
            }
        };
        same(base);

        chain.emulator.reset();
        run(&mut sync(
            &chain.emulator,
            &[
                to,
                text(&image),
                &device.0,
                "--yes",
                "--base",
                "auto",
                "--verify",
            ],
        ));
        let csv = chain.changes(base, head, "csv");
        let written = csv.lines().filter(|line| line.ends_with(",written"));
        let written: u64 = written
            .map(|line| line.split(',').nth(2).unwrap().parse::<u64>().unwrap() / BLOCK)
            .sum();
        assert_eq!(chain.emulator.gets(), written, "one fetch for both targets");
        run(&mut sync(
            &chain.emulator,
            &[to, text(&in_place), "--in-place", "--base", from],
        ));
        same(head);
        for target in [text(&image), text(&in_place), &device.0] {
            assert_eq!(status(&chain.emulator, target), format!("holds {to}\n"));
        }
        assert_eq!(left_beside(&image), [".ebsfs.json"]);
        assert_eq!(left_beside(&in_place), [".ebsfs.json"]);
        for done in [image, in_place] {
            fs::remove_file(done).unwrap();
        }
    }
}

#[test]
fn an_image_of_this_machine_is_copied_with_its_holes_and_its_digest() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let image = emulator.make_volume("vol-0a", 100, [0, 3, 50, 99]);
    writable(&image).set_len(100 * BLOCK + 1234).unwrap();
    let (copy, report) = (
        folder.path().join("copy.raw"),
        folder.path().join("report.json"),
    );
    let said = run(&mut sync(
        &emulator,
        &[
            text(&image),
            text(&copy),
            "--verify",
            "--digest",
            "--report",
            text(&report),
        ],
    ));
    assert_same(&image, &copy);
    let sum = run(Command::new("sha256sum").arg(&image));
    assert_eq!(
        said.split_whitespace().next(),
        sum.split_whitespace().next()
    );
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(report[0]["blocks_written"], 4);
    assert_eq!(report[0]["verified"], true);
    assert_eq!(
        report[0]["image_sha256"].as_str(),
        sum.split_whitespace().next()
    );
}

#[test]
fn a_base_that_the_target_does_not_hold_is_refused_and_what_it_holds_is_said() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    let refused = |args: &[&str], words: &str| {
        let (code, said) = ends(&mut sync(&chain.emulator, args));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(words), "{said}");
    };
    refused(
        &[&ids[1], text(&image), "--base", &ids[0]],
        "nobody knows what",
    );
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    refused(
        &[&ids[2], text(&image), "--base", &ids[1]],
        &format!("holds {}", ids[0]),
    );
    // Written by something else since: copied whole, and right.
    let file = writable(&image);
    std::os::unix::fs::FileExt::write_all_at(&file, b"else", 7).unwrap();
    drop(file);
    assert_eq!(status(&chain.emulator, text(&image)), "unknown\n");
    refused(
        &[&ids[1], text(&image), "--base", &ids[0]],
        "nobody knows what",
    );
    run(&mut sync(
        &chain.emulator,
        &[&ids[1], text(&image), "--base", "auto", "--yes"],
    ));
    assert_same(&image, &chain.image(1));

    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let small = Loop::over(&disk);
    refused(&[&ids[0], &small.0], "--yes");
    refused(&[&ids[0], &small.0, "--yes"], "does not fit");
    refused(&[&ids[0], text(folder.path())], "is a folder");
    refused(&[&ids[0], text(&image), text(&image)], "named twice");
    refused(
        &[text(&image), text(&disk), "--base", "auto"],
        "for snapshots",
    );
    // A device that is mounted.
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    drop(small);
    let large = Loop::over(&disk);
    let point = folder.path().join("point");
    fs::create_dir(&point).unwrap();
    sh(&format!(
        "mkfs.ext4 -q {0} && mount {0} {1}",
        large.0,
        point.display()
    ));
    let (code, said) = ends(&mut sync(&chain.emulator, &[&ids[0], &large.0, "--yes"]));
    sh(&format!("umount {}", point.display()));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("mounted or in use"), "{said}");
}

/// Kills runs of a command at random moments until one ends by itself; how often it was killed.
fn kill_until_done(
    mut command: impl FnMut() -> Command,
    most_ms: u64,
    mut look: impl FnMut(),
) -> u64 {
    let mut kills = 0;
    loop {
        let mut child = command()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(fastrand::u64(1..most_ms)));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return kills;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(kills < 1000, "it comes nowhere");
        look();
    }
}

/// Two snapshots of 4 GiB, 3,300 blocks and 1,500 changes.
fn large_pair() -> Emulator {
    Emulator::with(&[
        "--synthetic",
        "snap-0a:4:400000",
        "--synthetic-child",
        "snap-0b:snap-0a:200000",
        "--set",
        "latency_ms=20",
    ])
}

fn mounted(emulator: &Emulator, id: &str) -> (Mount, PathBuf) {
    emulator.set("latency_ms=0");
    let mount = emulator.mount(&[id]);
    let disk = mount.disk(id);
    (mount, disk)
}

#[test]
fn an_image_that_is_killed_at_any_moment_is_not_there_or_whole_and_little_is_fetched_twice() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let (mount, disk) = mounted(&emulator, "snap-0a");
    let held = fs::metadata(&disk).unwrap();
    let held = std::os::unix::fs::MetadataExt::blocks(&held) * 512 / BLOCK;
    let sum = |path: &Path| {
        run(Command::new("sha256sum").arg(path))
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    };
    let mut published = std::collections::BTreeSet::new();
    emulator.set("latency_ms=20");
    emulator.reset();
    let kills = kill_until_done(
        || sync(&emulator, &["snap-0a", text(&image)]),
        1500,
        || {
            // Killed between the rename and the record: it must be whole then.
            if image.exists() {
                published.insert(sum(&image));
            }
        },
    );
    println!("{kills} kills, {} Gets for {held} blocks", emulator.gets());
    assert!(
        emulator.gets() <= held + kills * 1024,
        "{}",
        emulator.gets()
    );
    emulator.set("latency_ms=0");
    assert_same(&image, &disk);
    assert!(published.iter().all(|early| *early == sum(&image)));
    drop(mount);

    // Its changes: the old image stays until the new one is whole.
    let (mount, disk) = mounted(&emulator, "snap-0b");
    let (old, new) = (sum(&image), sum(&disk));
    emulator.set("latency_ms=20");
    kill_until_done(
        || sync(&emulator, &["snap-0b", text(&image), "--base", "auto"]),
        800,
        || {
            let now = sum(&image);
            assert!(now == old || now == new, "neither the one nor the other");
        },
    );
    assert_eq!(sum(&image), new);
    assert_ne!(old, new);
    assert_eq!(left_beside(&image), [".ebsfs.json"]);
    drop(mount);
}

#[test]
fn a_device_that_is_killed_at_any_moment_is_never_called_whole_and_comes_to_be_whole() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    fs::File::create(&file).unwrap().set_len(4 << 30).unwrap();
    let device = Loop::over(&file);
    emulator.set("latency_ms=0");
    run(&mut sync(&emulator, &["snap-0a", &device.0, "--yes"]));
    emulator.set("latency_ms=20");
    let mut seen = std::collections::BTreeSet::new();
    let kills = kill_until_done(
        || {
            sync(
                &emulator,
                &["snap-0b", &device.0, "--yes", "--base", "auto"],
            )
        },
        2500,
        || {
            let status = status(&emulator, &device.0);
            seen.insert(
                status
                    .lines()
                    .next()
                    .unwrap()
                    .split(';')
                    .next()
                    .unwrap()
                    .to_owned(),
            );
        },
    );
    println!("{kills} kills: {seen:?}");
    // Before the first write it still is what it was.
    for status in &seen {
        assert!(
            status == "holds snap-0a" || status == "between snap-0a and snap-0b: not usable",
            "{seen:?}"
        );
    }
    assert_eq!(status(&emulator, &device.0), "holds snap-0b\n");
    let (_mount, disk) = mounted(&emulator, "snap-0b");
    assert_same(Path::new(&device.0), &disk);
}

#[test]
fn a_target_left_half_way_is_brought_to_a_third_snapshot_when_the_second_is_gone() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    chain.emulator.set("latency_ms=1000");
    let mut child = sync(
        &chain.emulator,
        &[
            &ids[1],
            text(&image),
            "--in-place",
            "--base",
            "auto",
            "--max-in-flight",
            "2",
        ],
    )
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_secs(12));
    child.kill().unwrap();
    child.wait().unwrap();
    chain.emulator.set("latency_ms=0");
    let said = status(&chain.emulator, text(&image));
    assert!(
        said.starts_with(&format!("between {} and {}", ids[0], ids[1])),
        "{said}"
    );
    assert!(!said.contains(", 0 of"), "something was kept: {said}");
    // The second is deleted: what to do is said, and it works.
    chain.emulator.set("deny=ebs:GetSnapshotBlock");
    let again = [
        ids[1].as_str(),
        text(&image),
        "--in-place",
        "--base",
        "auto",
    ];
    let (code, said) = ends(&mut sync(&chain.emulator, &again));
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("--base auto"), "{said}");
    chain.emulator.set("deny=");
    let wrong = [
        ids[4].as_str(),
        text(&image),
        "--in-place",
        "--base",
        ids[3].as_str(),
    ];
    let (code, said) = ends(&mut sync(&chain.emulator, &wrong));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("between"), "{said}");
    run(&mut sync(
        &chain.emulator,
        &[
            &ids[4],
            text(&image),
            "--in-place",
            "--base",
            "auto",
            "--verify",
        ],
    ));
    assert_same(&image, &chain.image(4));
}

#[test]
fn a_target_that_fails_is_told_and_does_not_stop_the_others_and_can_be_gone_on_with() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, 0..400);
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    sh(&format!(
        "mount -t tmpfs -o size=50M tmpfs {}",
        small.display()
    ));
    let (full, good) = (small.join("full.raw"), folder.path().join("good.raw"));
    let (code, said) = ends(&mut sync(&emulator, &[&id, text(&full), text(&good)]));
    let there = full.exists();
    sh(&format!("mount -o remount,size=500M {}", small.display()));
    let again = ends(&mut sync(&emulator, &[&id, text(&full)]));
    let same = full.exists() && fs::read(&full).unwrap() == fs::read(&volume).unwrap();
    sh(&format!("umount {}", small.display()));
    assert_eq!(code, 9, "{said}");
    assert!(said.contains("full.raw"), "{said}");
    assert!(!there, "published half written");
    assert_same(&good, &volume);
    assert_eq!(again.0, 0, "{}", again.1);
    assert!(same);
}

#[test]
fn faults_while_syncing_change_nothing_and_a_lost_page_is_no_zeroes() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    chain.emulator.set(
        "error_5xx=0.02&reset=0.02&truncate=0.02&corrupt=0.02&empty_page=0.3&nulls=0.5&short_page=0.2&bare_last_page=1",
    );
    run(&mut sync(
        &chain.emulator,
        &[&ids[0], text(&image), "--verify"],
    ));
    assert_same(&image, &chain.image(0));
    run(&mut sync(
        &chain.emulator,
        &[&ids[4], text(&image), "--base", "auto", "--verify"],
    ));
    assert_same(&image, &chain.image(4));
    chain
        .emulator
        .set("error_5xx=0&reset=0&truncate=0&corrupt=0&empty_page=0&nulls=0&short_page=0");
    chain.emulator.set("lost_next=1");
    let other = folder.path().join("other.raw");
    let (code, said) = ends(&mut sync(&chain.emulator, &[&ids[0], text(&other)]));
    assert_eq!(code, 8, "{said}");
    assert!(!other.exists() && left_beside(&other).is_empty());
}

#[test]
fn a_signal_stops_at_a_checkpoint_and_the_same_command_goes_on() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let mut child = sync(&emulator, &["snap-0a", text(&image)])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 500);
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let before = emulator.gets();
    let said = self::status(&emulator, text(&image));
    let kept: u64 = said
        .lines()
        .find_map(|line| {
            line.strip_prefix("begun: snap-0a, ")?
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("{said}"));
    assert_eq!(kept, before, "all that was fetched is kept: {said}");
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    emulator.reset();
    run(&mut sync(&emulator, &["snap-0a", text(&image)]));
    let held = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&disk).unwrap()) * 512 / BLOCK;
    assert_eq!(emulator.gets(), held - before);
    assert_same(&image, &disk);
}

/// Starts a copy that is killed once something of it is kept.
fn killed_half_way(emulator: &Emulator, args: &[&str], target: &str) {
    emulator.set("latency_ms=100");
    for _ in 0..20 {
        let mut child = sync(emulator, args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it was to be killed: {ended:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        let said = run(&mut sync(emulator, &["--status", target]));
        if said
            .lines()
            .any(|line| line.starts_with("begun") && !line.contains(", 0 of"))
        {
            emulator.set("latency_ms=0");
            return;
        }
    }
    panic!("nothing is ever kept");
}

#[test]
fn what_one_way_has_done_is_not_gone_on_with_the_other_way() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    sh(&format!("head -c 4G /dev/urandom > {}", image.display()));
    killed_half_way(&emulator, &["snap-0a", text(&image), "--yes"], text(&image));
    let in_place = ["snap-0a", text(&image), "--in-place", "--yes"];
    let (code, said) = ends(&mut sync(&emulator, &in_place));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--restart"), "{said}");
    run(&mut sync(
        &emulator,
        &["snap-0a", text(&image), "--in-place", "--yes", "--restart"],
    ));
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(&image, &disk);
}

#[test]
fn a_second_run_at_one_target_is_refused_and_changes_nothing() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let mut first = sync(&emulator, &["snap-0a", text(&image), "--verify"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 300);
    for more in [&[][..], &["--restart"], &["--base", "auto"]] {
        let args: Vec<&str> = ["snap-0b", text(&image)]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let (code, said) = ends(&mut sync(&emulator, &args));
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("another run"), "{said}");
    }
    assert!(first.wait().unwrap().success());
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(&image, &disk);
    assert_eq!(left_beside(&image), [".ebsfs.json"]);
}

#[test]
fn an_image_that_is_another_than_it_was_half_way_is_copied_whole() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let old = folder.path().join("old.raw");
    emulator.set("latency_ms=0");
    run(&mut sync(&emulator, &["snap-0a", text(&image)]));
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(&image)
        .arg(&old));
    let args = ["snap-0b", text(&image), "--in-place", "--base", "auto"];
    killed_half_way(&emulator, &args, text(&image));
    // Restored from a copy: what was written is gone.
    fs::remove_file(&image).unwrap();
    fs::rename(&old, &image).unwrap();
    run(&mut sync(
        &emulator,
        &[
            "snap-0b",
            text(&image),
            "--in-place",
            "--base",
            "auto",
            "--yes",
        ],
    ));
    let (_mount, disk) = mounted(&emulator, "snap-0b");
    assert_same(&image, &disk);
}

#[test]
fn a_checkpoint_that_outlived_its_run_is_not_believed() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    chain.emulator.set("latency_ms=1000");
    let args = [
        ids[1].as_str(),
        text(&image),
        "--in-place",
        "--base",
        "auto",
        "--max-in-flight",
        "2",
    ];
    let mut child = sync(&chain.emulator, &args)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint = folder.path().join("image.raw.ebsfs-checkpoint");
    wait_for("a checkpoint", || checkpoint.exists());
    let kept = fs::read(&checkpoint).unwrap();
    chain.emulator.set("latency_ms=0");
    assert!(child.wait().unwrap().success());
    fs::write(&checkpoint, kept).unwrap();
    run(&mut sync(
        &chain.emulator,
        &[&args[..], &["--verify"]].concat(),
    ));
    assert_same(&image, &chain.image(1));
}

#[test]
fn a_source_of_this_machine_that_was_written_between_two_runs_is_copied_anew() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let (source, image) = (
        folder.path().join("source.img"),
        folder.path().join("image.raw"),
    );
    sh(&format!("head -c 3G /dev/urandom > {}", source.display()));
    let mut child = sync(&emulator, &[text(&source), text(&image)])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint = folder.path().join("image.raw.ebsfs-checkpoint");
    let first = |at: &Path| {
        fs::metadata(at)
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    wait_for("a checkpoint", || first(&checkpoint).is_some());
    let named = first(&checkpoint);
    wait_for("another", || first(&checkpoint) != named);
    child.kill().unwrap();
    child.wait().unwrap();
    sh(&format!(
        "head -c 1G /dev/urandom | dd of={} conv=notrunc bs=1M iflag=fullblock status=none",
        source.display()
    ));
    let (code, said) = ends(&mut sync(&emulator, &[text(&source), text(&image)]));
    assert_eq!(code, 2, "{said}");
    run(&mut sync(
        &emulator,
        &[text(&source), text(&image), "--restart", "--verify"],
    ));
    assert_same(&source, &image);
}

#[test]
fn devices_are_told_apart_and_one_that_was_written_since_holds_nobody_knows_what() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    fs::File::create(&file).unwrap().set_len(4 << 30).unwrap();
    let part = |offset: u64| {
        Loop(
            sh(&format!(
                "losetup --find --show --offset {offset} --sizelimit {} {}",
                1u64 << 30,
                file.display()
            ))
            .trim()
            .to_owned(),
        )
    };
    let (first, second) = (part(0), part(1 << 30));
    let id = &chain.snapshots[0];
    run(&mut sync(&chain.emulator, &[id, &first.0, "--yes"]));
    assert_eq!(status(&chain.emulator, &first.0), format!("holds {id}\n"));
    assert_eq!(status(&chain.emulator, &second.0), "unknown\n");
    sh(&format!("mkfs.ext4 -q -F {}", first.0));
    assert_eq!(status(&chain.emulator, &first.0), "unknown\n");
    let later = &chain.snapshots[1];
    run(&mut sync(
        &chain.emulator,
        &[later, &first.0, "--yes", "--base", "auto", "--verify"],
    ));
    assert_same(Path::new(&first.0), &chain.image(1));
}

#[test]
fn a_volume_smaller_than_its_target_is_verified_and_its_digest_is_its_own() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let image = emulator.make_volume("vol-0a", 100, [0, 3, 99]);
    writable(&image).set_len(100 * BLOCK + 1234 * 512).unwrap();
    let disk = folder.path().join("disk");
    sh(&format!("head -c 100M /dev/urandom > {}", disk.display()));
    let device = Loop::over(&disk);
    let said = run(&mut sync(
        &emulator,
        &[text(&image), &device.0, "--yes", "--verify", "--digest"],
    ));
    let sum = run(Command::new("sha256sum").arg(&image));
    assert_eq!(
        said.split_whitespace().next(),
        sum.split_whitespace().next()
    );
}

#[test]
fn what_ebsfs_has_not_written_is_not_overwritten_unasked_and_no_target_is_a_typing_error() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("mine.raw");
    fs::write(&image, b"mine").unwrap();
    let refused = |target: &str, words: &str| {
        let mut command = sync(&emulator, &[&id, target]);
        let (code, said) = ends(command.current_dir(folder.path()));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(words), "{said}");
    };
    refused(text(&image), "--yes");
    assert_eq!(fs::read(&image).unwrap(), b"mine");
    refused("ebs:us-east-1", "no target yet");
    refused("s3://bucket/prefix", "no target yet");
    refused("snap-0123", "no target yet");
    // A link to an image stays a link.
    let link = folder.path().join("link.raw");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    run(&mut sync(&emulator, &[&id, text(&link), "--yes"]));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_same(&image, &emulator.volume("vol-0a"));
}
