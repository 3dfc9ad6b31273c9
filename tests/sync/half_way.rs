//! Targets left between two snapshots, and which unfinished runs are resumed.

use super::*;

/// Starts a copy that is killed once something of it is kept.
pub fn killed_half_way(emulator: &Emulator, args: &[&str], target: &str) {
    emulator.set("latency_ms=100");
    let mut child = sync(emulator, &[args, &["--max-in-flight", "2"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The first blocks that there are are kept at once.
    wait_for("a checkpoint with blocks", || {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it was to be killed: {ended:?}");
        status(emulator, target)
            .lines()
            .any(|line| line.starts_with("unfinished") && !line.contains(", 0 of"))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    emulator.set("latency_ms=0");
}

#[test]
fn a_half_written_target_becomes_a_third_snapshot_when_the_second_was_deleted() {
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
    std::thread::sleep(Duration::from_secs(6));
    child.kill().unwrap();
    child.wait().unwrap();
    chain.emulator.set("latency_ms=0");
    let said = status(&chain.emulator, text(&image));
    assert!(
        said.starts_with(&format!("between {} and {}", ids[0], ids[1])),
        "{said}"
    );
    assert!(!said.contains(", 0 of"), "something was kept: {said}");
    // A permission that is missing can be granted: nothing else is advised.
    chain.emulator.set("deny=ebs:GetSnapshotBlock");
    let again = [
        ids[1].as_str(),
        text(&image),
        "--in-place",
        "--base",
        "auto",
    ];
    let (code, said) = decides(&mut sync(&chain.emulator, &again));
    assert_eq!(code, 4, "{said}");
    assert!(
        said.contains("the same command resumes") && !said.contains("--base auto"),
        "{said}"
    );
    // The second is not needed any more: a third is copied over it.
    chain.emulator.set("deny=");
    let wrong = [
        ids[4].as_str(),
        text(&image),
        "--in-place",
        "--base",
        ids[3].as_str(),
    ];
    let (code, said) = decides(&mut sync(&chain.emulator, &wrong));
    assert_eq!(code, 11, "{said}");
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
fn a_run_in_place_does_not_use_the_part_of_an_earlier_run() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    sh(&format!("head -c 1200M /dev/urandom > {}", image.display()));
    let args = ["snap-0a", text(&image), "--overwrite", text(&image)];
    killed_half_way(&emulator, &args, text(&image));
    assert!(left_beside(&image).contains(&".ebsfs-part".to_owned()));
    emulator.reset();
    run(&mut sync(&emulator, &[&args[..], &["--in-place"]].concat()));
    let gets = emulator.gets();
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_eq!(gets, held(&disk), "nothing of the part is counted on");
    assert_same(&image, &disk);
    assert_eq!(left_beside(&image), KEPT);
}

#[test]
fn an_image_changed_half_way_is_refused_or_copied_whole() {
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
    let before = sha256(&image);
    let (code, said) = ends(&mut sync(&emulator, &[&args[..], &["--yes"]].concat()));
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("--overwrite"), "{said}");
    assert_eq!(sha256(&image), before, "nothing was written");
    let named = [&args[..], &["--overwrite", text(&image)]].concat();
    run(&mut sync(&emulator, &named));
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
    let digests = folder.path().join("image.raw.ebsfs-digests-next");
    let kept = fs::read(&checkpoint).unwrap();
    let kept_digests = fs::read(&digests).unwrap();
    chain.emulator.set("latency_ms=0");
    assert!(child.wait().unwrap().success());
    for digests_of_the_run in [kept_digests.as_slice(), &[]] {
        fs::write(&checkpoint, &kept).unwrap();
        fs::write(&digests, digests_of_the_run).unwrap();
        private(&checkpoint);
        private(&digests);
        chain.emulator.reset();
        run(&mut sync(
            &chain.emulator,
            &[&args[..], &["--verify"]].concat(),
        ));
        assert_eq!(chain.emulator.gets(), 0, "it holds the snapshot already");
        assert_same(&image, &chain.image(1));
    }
}

#[test]
fn a_source_of_this_machine_that_was_written_between_two_runs_is_copied_from_the_start() {
    let emulator = Emulator::start();
    let folder = tempfile::tempdir().unwrap();
    let (source, image) = (
        folder.path().join("source.img"),
        folder.path().join("image.raw"),
    );
    sh(&format!("head -c 1G /dev/urandom > {}", source.display()));
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
        "head -c 300M /dev/urandom | dd of={} conv=notrunc bs=1M iflag=fullblock status=none",
        source.display()
    ));
    run(&mut sync(
        &emulator,
        &[text(&source), text(&image), "--verify"],
    ));
    assert_same(&source, &image);
}

#[test]
fn an_image_that_was_published_without_digests_and_not_recorded_is_no_foreign_write() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let [record, digests, checkpoint, old_record, old_digests] = [
        "image.raw.ebsfs.json",
        "image.raw.ebsfs-digests",
        "image.raw.ebsfs-checkpoint",
        "record",
        "digests",
    ]
    .map(|name| folder.path().join(name));
    let ids = &chain.snapshots;
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    // The delta has no digests of unchanged blocks, as where there was no room for them.
    fs::rename(&digests, &old_digests).unwrap();
    let args = [ids[1].as_str(), text(&image), "--base", "auto"];
    chain.emulator.set("latency_ms=1000");
    let child = sync(&chain.emulator, &args)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("a checkpoint", || checkpoint.exists());
    // The run ends between the rename of the image and the record, which cannot replace a folder.
    fs::rename(&record, &old_record).unwrap();
    fs::create_dir(&record).unwrap();
    chain.emulator.set("latency_ms=0");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert_same(&image, &chain.image(1));
    fs::remove_dir(&record).unwrap();
    fs::rename(&old_record, &record).unwrap();
    fs::rename(&old_digests, &digests).unwrap();
    let (code, said) = decides(&mut sync(&chain.emulator, &args));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("copying all blocks"), "{said}");
    assert_same(&image, &chain.image(1));
    assert_eq!(left_beside(&image), KEPT);
}
