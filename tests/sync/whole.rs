//! Whole copies and changes, byte for byte.

use super::*;

#[test]
fn a_snapshot_and_then_its_changes_arrive_whole_in_images_and_on_dirty_devices() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    // Freed, zeroed, grown; and all of it backwards.
    for (base, head) in [(1, 4), (4, 0)] {
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
            &[
                from,
                text(&image),
                &device.0,
                "--overwrite",
                &device.0,
                "--verify",
            ],
        ));
        run(&mut sync(
            &chain.emulator,
            &[
                from,
                text(&in_place),
                "--in-place",
                "--overwrite",
                text(&in_place),
            ],
        ));
        let targets = [image.as_path(), &in_place, Path::new(&device.0)];
        let same = |n: usize| {
            // The device is larger than some of the volumes.
            let len = fs::metadata(chain.image(n)).unwrap().len();
            run(Command::new("cmp")
                .args(["-n", &len.to_string()])
                .args([Path::new(&device.0), &chain.image(n)]));
            for image in &targets[..2] {
                assert_same(image, &chain.image(n));
            }
        };
        same(base);

        chain.emulator.reset();
        run(&mut sync(
            &chain.emulator,
            &[to, text(&image), &device.0, "--base", "auto", "--verify"],
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
        assert_eq!(left_beside(&image), KEPT);
        assert_eq!(left_beside(&in_place), KEPT);
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
    assert_eq!(report["targets"][0]["blocks_written"], 4);
    assert_eq!(report["targets"][0]["verified"], true);
    assert_eq!(
        report["targets"][0]["image_sha256"].as_str(),
        sum.split_whitespace().next()
    );
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
        &[
            text(&image),
            &device.0,
            "--overwrite",
            &device.0,
            "--verify",
            "--digest",
        ],
    ));
    let sum = run(Command::new("sha256sum").arg(&image));
    assert_eq!(
        said.split_whitespace().next(),
        sum.split_whitespace().next()
    );
}

/// Time of the last write, and the extended attributes by name and value.
fn about(path: &Path) -> String {
    let script = "import os, sys; p = sys.argv[1]; print(os.stat(p).st_mtime_ns, \
                  sorted((n, os.getxattr(p, n)) for n in os.listxattr(p) if n.startswith('user.ebs.')))";
    run(Command::new("python3").args(["-c", script, text(path)]))
}

#[test]
fn an_image_has_the_time_and_the_attributes_of_the_snapshot_as_a_mount_shows_them() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    let mount = chain.emulator.mount(&[]);
    let shown = |number: usize| about(&mount.disk(&ids[number]));
    let sync = |args: &[&str]| run(&mut sync(&chain.emulator, args));
    sync(&[&ids[0], text(&image)]);
    assert!(shown(0).contains("user.ebs.volume_id"), "{}", shown(0));
    assert_eq!(about(&image), shown(0));
    // The mark is taken after that: it still proves what the image holds.
    chain.emulator.reset();
    sync(&[&ids[0], text(&image)]);
    sync(&[&ids[1], text(&image), "--base", "auto"]);
    assert_eq!(about(&image), shown(1));
    sync(&[&ids[2], text(&image), "--base", "auto", "--in-place"]);
    assert_eq!(about(&image), shown(2));
    let status = run(&mut super::sync(
        &chain.emulator,
        &["--status", text(&image)],
    ));
    assert_eq!(status, format!("holds {}\n", ids[2]));
    assert_same(&image, &chain.image(2));
    // A copy of an image is of no snapshot.
    let copy = folder.path().join("copy.raw");
    sync(&[text(&image), text(&copy)]);
    assert!(about(&copy).ends_with(" []\n"), "{}", about(&copy));
    let args = [
        text(&copy),
        text(&image),
        "--in-place",
        "--overwrite",
        text(&image),
    ];
    sync(&args);
    assert!(about(&image).ends_with(" []\n"), "{}", about(&image));
}
