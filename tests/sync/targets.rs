//! Targets that are in use, the same, too small or thin; sources that are damaged; one bad target beside good ones.

use std::os::unix::fs::{FileExt, MetadataExt};

use super::evidence::{stamp, undecided};
use super::*;

/// A tmpfs, unmounted when dropped.
struct Room(PathBuf);

impl Room {
    fn of(point: PathBuf, size: &str) -> Self {
        fs::create_dir(&point).unwrap();
        sh(&format!(
            "mount -t tmpfs -o size={size} tmpfs {}",
            point.display()
        ));
        Self(point)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A loop device with two partitions of 1100 MiB; their nodes go when dropped.
struct Disk {
    device: Loop,
    parts: [String; 2],
}

impl Disk {
    fn over(file: &Path) -> Self {
        fs::File::create(file).unwrap().set_len(3 << 30).unwrap();
        sh(&format!(
            "printf 'label: gpt\\nsize=1100M\\nsize=1100M\\n' | sfdisk --quiet {}",
            file.display()
        ));
        let device = Loop::over(file);
        sh(&format!("partx --add {0} || partx --update {0}", device.0));
        let parts = [1, 2].map(|n| format!("{}p{n}", device.0));
        wait_for("partitions", || {
            parts.iter().all(|part| Path::new(part).exists())
        });
        Self { device, parts }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("partx")
            .args(["--delete", &self.device.0])
            .status();
    }
}

fn sparse(path: &Path, gib: u64) {
    fs::File::create(path).unwrap().set_len(gib << 30).unwrap();
}

fn assert_begins(device: &str, image: &Path) {
    let len = fs::metadata(image).unwrap().len().to_string();
    run(Command::new("cmp").args(["-n", &len, device]).arg(image));
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_bad_target_does_not_stop_the_good_ones_and_the_report_is_written() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let id = &chain.snapshots[0];
    let report = folder.path().join("report.json");
    fs::write(folder.path().join("file"), b"no folder").unwrap();
    let missing = folder.path().join("missing/image.raw");
    let no_store = format!("file://{}/file/replicas", folder.path().display());
    for (number, bad) in [
        text(&missing),
        text(folder.path()),
        "/dev/null",
        "/dev/not-there",
        &no_store,
        "ebs:No_Region",
    ]
    .into_iter()
    .enumerate()
    {
        let good = [0, 1].map(|n| folder.path().join(format!("good-{number}-{n}.raw")));
        let args = [
            id.as_str(),
            text(&good[0]),
            bad,
            text(&good[1]),
            "--report",
            text(&report),
        ];
        let (code, said) = ends(&mut sync(&chain.emulator, &args));
        assert!((1..=9).contains(&code), "{bad}: {code} {said}");
        assert!(said.contains(bad.trim_start_matches("file://")), "{said}");
        for good in &good {
            assert_same(good, &chain.image(0));
        }
        let shown: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        let targets = shown["targets"].as_array().unwrap();
        let ended = |status: &str| {
            let with = targets.iter().filter(|target| target["status"] == status);
            with.count()
        };
        assert_eq!((ended("done"), ended("failed")), (2, 1), "{bad}: {shown}");
        fs::remove_file(&report).unwrap();
    }
}

#[test]
fn a_run_whose_targets_all_fail_or_whose_source_is_missing_still_writes_its_report() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let image = folder.path().join("image.raw");
    fs::write(&image, b"mine").unwrap();
    for (source, target, code) in [
        (chain.snapshots[0].as_str(), "/dev/null", 2),
        (&chain.snapshots[0], text(&image), 11),
        ("snap-0123456789abcdef0", "new.raw", 3),
    ] {
        let args = [source, target, "--report", text(&report)];
        let mut command = sync(&chain.emulator, &args);
        let (ended, said) = ends(command.current_dir(folder.path()));
        assert_eq!(ended, code, "{said}");
        let shown: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        assert_eq!(shown["targets"][0]["status"], "failed", "{shown}");
        assert!(shown["program"].as_str().unwrap().starts_with("ebsfs "));
        assert!(
            shown["host"].is_string() && shown["user"].is_string(),
            "{shown}"
        );
        fs::remove_file(&report).unwrap();
    }
}

#[test]
fn whatever_holds_a_device_or_an_image_is_named_and_nothing_is_recorded() {
    let chain = Chain::new();
    let id = &chain.snapshots[0];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    sparse(&file, 1);
    let refused = |target: &str, more: &[&str], words: &[&str]| {
        let before = allocated(&file);
        let args = [&[id.as_str(), target, "--overwrite", target], more].concat();
        let (code, said) = ends(&mut sync(&chain.emulator, &args));
        assert_eq!(code, 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(allocated(&file), before);
        assert_eq!(status(&chain.emulator, target), "unknown\n");
    };
    // Read-only.
    let device = Loop::with(&format!("--read-only {}", file.display()));
    refused(&device.0, &[], &["read-only"]);
    // An image that is attached, even read-only.
    refused(text(&file), &["--in-place"], &[&device.0]);
    drop(device);
    let device = Loop::over(&file);
    refused(text(&file), &["--in-place"], &[&device.0]);
    // Swap.
    sh(&format!("mkswap -q {0} && swapon {0}", device.0));
    refused(&device.0, &[], &["swap"]);
    sh(&format!("swapoff {}", device.0));
    // Mounted.
    let point = folder.path().join("point");
    fs::create_dir(&point).unwrap();
    sh(&format!(
        "mkfs.ext4 -q -F {0} && mount -o ro {0} {1}",
        device.0,
        point.display()
    ));
    refused(&device.0, &[], &["mounted at", text(&point)]);
    sh(&format!("umount {}", point.display()));
    // Another loop device over the same file.
    let twin = Loop::over(&file);
    refused(&device.0, &[], &[&twin.0]);
    drop(twin);
    let args = [id.as_str(), &device.0, "--overwrite", &device.0];
    run(&mut sync(&chain.emulator, &args));
    assert_same(Path::new(&device.0), &chain.image(0));
}

#[test]
fn partitions_of_one_disk_are_each_brought_up_to_date_by_a_delta() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::over(&folder.path().join("disk"));
    for part in &disk.parts {
        run(&mut sync(
            &chain.emulator,
            &[&ids[0], part, "--overwrite", part],
        ));
    }
    for head in [1, 2] {
        for part in &disk.parts {
            chain.emulator.reset();
            run(&mut sync(
                &chain.emulator,
                &[&ids[head], part, "--base", "auto"],
            ));
            let gets = chain.emulator.gets();
            assert!(gets <= 24, "{part}: {gets}");
            assert_begins(part, &chain.image(head));
        }
    }
    // What is written past the partition, on the disk, is seen.
    let first = 1 << 20;
    let file = writable(Path::new(&disk.device.0));
    file.write_all_at(b"something else", first + 20 * BLOCK)
        .unwrap();
    file.sync_all().unwrap();
    let args = [ids[3].as_str(), &disk.parts[0], "--base", "auto"];
    undecided(&mut sync(&chain.emulator, &args));
    let args = [ids[3].as_str(), &disk.parts[1], "--base", "auto"];
    run(&mut sync(&chain.emulator, &args));
    assert_begins(&disk.parts[1], &chain.image(3));
}

#[test]
fn a_delta_whose_copy_of_the_old_image_cannot_fit_is_refused_before_anything_is_written() {
    let chain = Chain::new();
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    // The image takes 25 MiB there.
    let room = Room::of(folder.path().join("room"), "40M");
    let image = room.0.join("image.raw");
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    let left = left_beside(&image);
    chain.emulator.reset();
    let nightly = [ids[1].as_str(), text(&image), "--base", "auto"];
    let (code, said) = ends(&mut sync(&chain.emulator, &nightly));
    assert_eq!(code, 9, "{said}");
    assert!(said.contains("a copy of the old image takes"), "{said}");
    assert_eq!(chain.emulator.gets(), 0);
    assert_eq!(left_beside(&image), left);
    assert_same(&image, &chain.image(0));
    // In place it fits.
    run(&mut sync(
        &chain.emulator,
        &[&nightly[..], &["--in-place"]].concat(),
    ));
    assert_same(&image, &chain.image(1));
    // What is to stay free does.
    let other = folder.path().join("other.raw");
    let args = [ids[0].as_str(), text(&other), "--reserve", "1PiB"];
    let (code, said) = ends(&mut sync(&chain.emulator, &args));
    assert_eq!(code, 9, "{said}");
    assert!(!other.exists() && left_beside(&other).is_empty());
    run(&mut sync(
        &chain.emulator,
        &[&args[..2], &["--reserve", "1MiB"]].concat(),
    ));
    assert_same(&other, &chain.image(0));
}

#[test]
fn sparse_and_thin_targets_stay_thin() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let room = Room::of(folder.path().join("room"), "256M");
    for file in [folder.path().join("thin"), room.0.join("thin")] {
        sparse(&file, 1);
        let device = Loop::over(&file);
        let args = [
            chain.snapshots[0].as_str(),
            &device.0,
            "--overwrite",
            &device.0,
        ];
        run(&mut sync(
            &chain.emulator,
            &[&args[..], &["--verify"]].concat(),
        ));
        assert_same(Path::new(&device.0), &chain.image(0));
        assert!(allocated(&file) < 40 << 20, "{}", allocated(&file));
    }
    let image = room.0.join("image.raw");
    run(&mut sync(
        &chain.emulator,
        &[&chain.snapshots[0], text(&image)],
    ));
    assert_same(&image, &chain.image(0));
}

#[test]
fn a_damaged_block_is_marked_on_request_and_retried_by_the_next_run() {
    let chain = Chain::new();
    let emulator = &chain.emulator;
    let ids = &chain.snapshots;
    let folder = tempfile::tempdir().unwrap();
    let (image, report) = (
        folder.path().join("image.raw"),
        folder.path().join("report.json"),
    );
    emulator.set("rotten_block=6");
    let args = [ids[0].as_str(), text(&image), "--report", text(&report)];
    let (code, said) = ends(&mut sync(emulator, &args));
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("--on-damage mark"), "{said}");
    assert!(!image.exists());
    let marking = [&args[..], &["--on-damage", "mark"]].concat();
    let (code, said) = ends(&mut sync(emulator, &marking));
    assert_eq!(code, 12, "{said}");
    let shown: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let target = &shown["targets"][0];
    assert_eq!(target["damaged"], serde_json::json!([[6, 7]]), "{shown}");
    let said = run(&mut sync(emulator, &["--status", text(&image), "--json"]));
    let known: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(known["status"]["damaged"], serde_json::json!([[6, 7]]));
    // Only that block differs, and it is zero.
    let wanted = |n: usize| {
        let copy = folder.path().join("wanted.raw");
        run(Command::new("cp")
            .arg("--sparse=always")
            .arg(chain.image(n))
            .arg(&copy));
        copy
    };
    let zeroed = wanted(0);
    let file = writable(&zeroed);
    file.write_all_at(&vec![0; BLOCK as usize], 6 * BLOCK)
        .unwrap();
    assert_same(&image, &zeroed);
    // A delta does not name the block, and brings it once it can be read.
    emulator.set("rotten_block=");
    run(&mut sync(
        emulator,
        &[&ids[2], text(&image), "--base", &ids[0]],
    ));
    assert_same(&image, &chain.image(2));
    let said = run(&mut sync(emulator, &["--status", text(&image), "--json"]));
    let known: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(known["status"]["damaged"], serde_json::json!([]));
}

#[test]
fn the_same_snapshot_again_repairs_a_block_that_was_marked_as_damaged() {
    let chain = Chain::new();
    let emulator = &chain.emulator;
    let id = &chain.snapshots[0];
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    emulator.set("rotten_block=6");
    let args = [
        id.as_str(),
        text(&image),
        "--base",
        "auto",
        "--on-damage",
        "mark",
    ];
    for _ in 0..2 {
        // Still damaged: still said.
        let (code, said) = ends(&mut sync(emulator, &args));
        assert_eq!(code, 12, "{said}");
    }
    emulator.set("rotten_block=");
    emulator.reset();
    run(&mut sync(emulator, &args));
    assert_same(&image, &chain.image(0));
    assert!(
        emulator.gets() <= 1,
        "that block alone: {}",
        emulator.gets()
    );
}

#[test]
fn names_of_one_target_are_one_target_also_for_two_runs() {
    let emulator = large_pair();
    emulator.set("latency_ms=0");
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("disk"), folder.path().join("link"));
    sparse(&file, 1);
    fs::hard_link(&file, &link).unwrap();
    let id = "snap-0a";
    let refused = |targets: &[&str], more: &[&str], codes: &[i32]| {
        let mut args = [&[id], targets, more].concat();
        for target in targets {
            args.extend(["--overwrite", target]);
        }
        let (code, said) = ends(&mut sync(&emulator, &args));
        assert!(codes.contains(&code), "{targets:?}: {code} {said}");
        assert_eq!(allocated(&file), 0, "{targets:?}: nothing is written");
    };
    // In one run: neither may be written by both, so nothing is ever a mixture of two.
    let both = [id, text(&file), text(&link), "--in-place"];
    let (code, said) = ends(&mut sync(&emulator, &both));
    assert!([2, 10, 11].contains(&code), "{said}");
    let devices = [Loop::over(&file), Loop::over(&file)];
    refused(&[&devices[0].0, &devices[1].0], &[], &[1, 2, 10]);
    drop(devices);
    // Two runs at once.
    emulator.set("latency_ms=50");
    let first = [
        id,
        text(&file),
        "--in-place",
        "--overwrite",
        text(&file),
        "--max-in-flight",
        "8",
    ];
    let mut child = sync(&emulator, &first)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("blocks", || emulator.gets() > 50);
    let second = [
        "snap-0b",
        text(&link),
        "--in-place",
        "--overwrite",
        text(&link),
    ];
    let (code, said) = ends(&mut sync(&emulator, &second));
    assert_eq!(code, 10, "{said}");
    assert!(said.contains(&format!("process {}", child.id())), "{said}");
    emulator.set("latency_ms=0");
    assert!(child.wait().unwrap().success());
    let (_mount, disk) = mounted(&emulator, id);
    assert_same(&file, &disk);
}

#[test]
fn a_disk_and_its_partition_are_neither_two_targets_nor_source_and_target() {
    let chain = Chain::new();
    let id = &chain.snapshots[0];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let disk = Disk::over(&file);
    let (whole, part) = (&disk.device.0, &disk.parts[0]);
    let source = writable(Path::new(part));
    source.write_all_at(b"a source", 0).unwrap();
    source.sync_all().unwrap();
    drop(source);
    let before = stamp(&file);
    let refused = |args: &[&str]| {
        let (code, said) = ends(&mut sync(&chain.emulator, args));
        assert!([1, 2, 10].contains(&code), "{args:?}: {code} {said}");
        assert_eq!(stamp(&file), before, "{args:?}: nothing is written");
    };
    refused(&[part, whole, "--overwrite", whole]);
    refused(&[whole, part, "--overwrite", part]);
    refused(&[part, part, "--overwrite", part]);
    refused(&[text(&file), whole, "--overwrite", whole]);
    // A partition can be copied to elsewhere.
    let image = folder.path().join("image.raw");
    run(&mut sync(&chain.emulator, &[part, text(&image)]));
    assert_same(Path::new(part), &image);
    // In one run the first is written, and the other one refused: never a mixture.
    let both = ["--overwrite", whole, "--overwrite", part];
    for targets in [[part, whole], [whole, part]] {
        let args = [&[id.as_str(), targets[0], targets[1]], &both[..]].concat();
        let (code, said) = ends(&mut sync(&chain.emulator, &args));
        assert!([1, 2, 10].contains(&code), "{code} {said}");
        assert_begins(targets[0], &chain.image(0));
    }
}
