//! What others have written to a target is seen, or all of it is copied.

use super::half_way::killed_half_way;
use super::*;

/// A loop device with one partition that begins at 1 MiB; dropped with its disk.
fn partitioned(file: &Path) -> (Loop, PathBuf) {
    fs::File::create(file).unwrap().set_len(3 << 30).unwrap();
    sh(&format!(
        "echo 'start=2048, size=4194304' | sfdisk --quiet --label dos {}",
        file.display()
    ));
    let disk = Loop::over(file);
    // A machine without udev makes no node of the partition.
    sh(&format!("partx --update {}", disk.0));
    let part = PathBuf::from(format!("{}p1", disk.0));
    if !part.exists() {
        let name = part.file_name().unwrap().to_str().unwrap().to_owned();
        let numbers = fs::read_to_string(format!("/sys/class/block/{name}/dev")).unwrap();
        sh(&format!(
            "mknod {} b {}",
            part.display(),
            numbers.trim().replace(':', " ")
        ));
    }
    (disk, part)
}

const DISCARD: &str = "--discard-foreign-writes";

/// A sync that finds what something else has written.
fn refused(emulator: &Emulator, args: &[&str]) {
    let (code, said) = decides(&mut sync(emulator, args));
    assert_eq!(code, 11, "{said}");
    assert!(
        said.contains("something else has written") && said.contains(DISCARD),
        "{said}"
    );
}

#[test]
fn an_unfinished_target_that_was_restored_from_a_copy_is_refused_and_copied_whole_when_asked_to() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let (image, disk) = (folder.path().join("image.raw"), folder.path().join("disk"));
    let old = folder.path().join("old.raw");
    emulator.set("latency_ms=0");
    fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();
    let device = Loop::over(&disk);
    run(&mut sync(
        &emulator,
        &["snap-0a", text(&image), &device.0, "--overwrite", &device.0],
    ));
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(&image)
        .arg(&old));
    for target in [text(&image), &device.0] {
        let in_place: &[&str] = if target == device.0 {
            &[]
        } else {
            &["--in-place"]
        };
        let args = [&["snap-0b", target, "--base", "auto"], in_place].concat();
        killed_half_way(&emulator, &args, target);
        // The same inode, the same device: only the bytes tell.
        sh(&format!(
            "dd if={} of={target} bs=1M conv=notrunc,fsync status=none",
            old.display()
        ));
        refused(&emulator, &[&args[..], &["--yes"]].concat());
        assert_same(Path::new(target), &old);
        run(&mut sync(&emulator, &[&args[..], &[DISCARD]].concat()));
        let (_mount, disk) = mounted(&emulator, "snap-0b");
        assert_same(Path::new(target), &disk);
        emulator.set("latency_ms=0");
    }
    // Taken over by another snapshot.
    run(&mut sync(
        &emulator,
        &["snap-0a", text(&image), "--in-place"],
    ));
    let args = ["snap-0b", text(&image), "--base", "auto", "--in-place"];
    killed_half_way(&emulator, &args, text(&image));
    sh(&format!(
        "head -c 1G /dev/zero | dd of={} bs=1M conv=notrunc status=none",
        image.display()
    ));
    let args = ["snap-0a", text(&image), "--base", "auto", "--in-place"];
    refused(&emulator, &args);
    sh(&format!("cmp {} <(head -c 1G /dev/zero)", image.display()));
    run(&mut sync(&emulator, &[&args[..], &[DISCARD]].concat()));
    assert_same(&image, &old);
}

#[test]
fn an_image_that_was_replaced_before_anything_was_kept_is_not_resumed() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    emulator.set("latency_ms=0");
    run(&mut sync(&emulator, &["snap-0a", text(&image)]));
    emulator.set("latency_ms=3000");
    let args = ["snap-0b", text(&image), "--in-place", "--base", "auto"];
    let mut child = sync(&emulator, &args)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the name", || {
        status(&emulator, text(&image)).starts_with("between")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&image).unwrap();
    fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
    emulator.set("latency_ms=0");
    let (code, said) = decides(&mut sync(&emulator, &[&args[..], &["--yes"]].concat()));
    assert_eq!(code, 11, "{said}");
    sh(&format!("cmp {} <(head -c 1G /dev/zero)", image.display()));
    // The new file may have the old one's inode or not.
    let anyhow = [DISCARD, "--overwrite", text(&image)];
    run(&mut sync(&emulator, &[&args[..], &anyhow].concat()));
    let (_mount, disk) = mounted(&emulator, "snap-0b");
    assert_same(&image, &disk);
}

#[test]
fn discards_writes_past_a_partition_and_dirty_pages_are_detected() {
    let chain = Chain::new();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let folder = tempfile::tempdir().unwrap();
    let (disk, part) = partitioned(&folder.path().join("disk"));
    let target = text(&part);
    let again = |n: usize| {
        let args = [ids[n].as_str(), target, "--base", "auto", "--verify"];
        let anyhow: &[&str] = match n {
            0 => &["--overwrite", target],
            _ => {
                let last = status(emulator, target);
                assert_eq!(last, held_by_its_digests(&ids[n - 1]));
                let written = sha256(&part);
                refused(emulator, &[&args[..], &["--yes"]].concat());
                assert_eq!(sha256(&part), written, "nothing was written");
                &[DISCARD]
            }
        };
        run(&mut sync(emulator, &[&args[..], anyhow].concat()));
        let len = fs::metadata(chain.image(n)).unwrap().len();
        run(Command::new("cmp")
            .args(["-n", &len.to_string()])
            .args([&part, &chain.image(n)]));
        assert_eq!(status(emulator, target), format!("holds {}\n", ids[n]));
    };
    again(0);
    sh(&format!(
        "dd if=/dev/urandom of={} seek=3 bs=1M count=1 oflag=direct conv=notrunc status=none",
        disk.0
    ));
    again(1);
    sh(&format!("blkdiscard -o 0 -l 1M {target}"));
    again(2);
    // Still open, and only in the page cache.
    let writer = fs::OpenOptions::new().write(true).open(&part).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&writer, &[1; 4096], 7 * BLOCK).unwrap();
    drop(writer);
    again(3);
    let name = disk.0.trim_start_matches("/dev/");
    sh(&format!("echo 0 > /sys/block/{name}/queue/iostats"));
    let shown = status(emulator, target);
    sh(&format!("echo 1 > /sys/block/{name}/queue/iostats"));
    assert_eq!(shown, held_by_its_digests(&ids[3]));
    drop(disk);
    let _ = fs::remove_file(&part);
}

#[test]
fn a_damaged_record_is_ignored_and_a_half_written_image_is_no_source() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    emulator.set("latency_ms=0");
    run(&mut sync(&emulator, &["snap-0a", text(&image)]));
    fs::write(folder.path().join("image.raw.ebsfs.json"), "{").unwrap();
    assert_eq!(status(&emulator, text(&image)), "unknown\n");
    let auto = ["snap-0a", text(&image), "--base", "auto", "--yes"];
    let before = sha256(&image);
    let (code, said) = ends(&mut sync(&emulator, &auto));
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("content unknown (no record)"), "{said}");
    assert_eq!(sha256(&image), before, "nothing was written");
    run(&mut sync(
        &emulator,
        &[&auto[..], &["--overwrite", text(&image)]].concat(),
    ));
    let args = ["snap-0b", text(&image), "--in-place", "--base", "auto"];
    killed_half_way(&emulator, &args, text(&image));
    let copy = folder.path().join("copy.raw");
    let (code, said) = ends(&mut sync(&emulator, &[text(&image), text(&copy)]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("is not whole"), "{said}");
    assert!(!copy.exists());
    // The reader of the status may close its pipe.
    sh(&format!("{EBSFS} sync --status {} | true", image.display()));
}

#[test]
fn the_same_command_finishes_failed_disks_and_skips_restored_ones() {
    let chain = Chain::new();
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one.raw"), folder.path().join("two.raw"));
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let small = Loop::over(&disk);
    // One that is too small does not stop the others.
    let (code, said) = ends(&mut sync(
        emulator,
        &[&ids[0], &small.0, text(&one), text(&two)],
    ));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("does not fit"), "{said}");
    run(&mut sync(
        emulator,
        &[&ids[1], text(&one), "--base", &ids[0]],
    ));
    emulator.reset();
    let both = [ids[1].as_str(), text(&one), text(&two), "--base", &ids[0]];
    run(&mut sync(emulator, &both));
    let gets = emulator.gets();
    assert!(gets > 0);
    for image in [&one, &two] {
        assert_same(image, &chain.image(1));
    }
    let said = run(&mut sync(emulator, &[&both[..], &["--digest"]].concat()));
    assert_eq!(emulator.gets(), gets, "nothing is fetched again");
    assert!(said.starts_with(&sha256(&one)), "{said}");
}
