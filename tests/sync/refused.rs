//! What is refused, and what is said of a target.

use super::*;

#[test]
fn a_refused_base_names_the_snapshot_that_the_target_holds() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let ids = &chain.snapshots;
    let refused = |code: i32, args: &[&str], words: &str| {
        let (found, said) = decides(&mut sync(&chain.emulator, args));
        assert_eq!(found, code, "{said}");
        assert!(said.contains(words), "{said}");
    };
    refused(
        11,
        &[&ids[1], text(&image), "--base", &ids[0]],
        "does not hold",
    );
    run(&mut sync(&chain.emulator, &[&ids[0], text(&image)]));
    refused(
        11,
        &[&ids[2], text(&image), "--base", &ids[1]],
        &format!("holds {}", ids[0]),
    );
    // Written by something else since: not overwritten unasked.
    let write = |bytes: &[u8]| {
        let file = writable(&image);
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 7).unwrap();
        sha256(&image)
    };
    let written = write(b"else");
    assert_eq!(
        status(&chain.emulator, text(&image)),
        held_by_its_digests(&ids[0])
    );
    for base in [ids[0].as_str(), "auto"] {
        let args = [ids[1].as_str(), text(&image), "--base", base, "--yes"];
        refused(
            11,
            &args,
            "something else has written 1 of its blocks since the last run (block 0 (512.0 KiB)): --discard-foreign-writes",
        );
        assert_eq!(sha256(&image), written, "nothing was written");
    }
    let auto = [ids[1].as_str(), text(&image), "--base", "auto"];
    run(&mut sync(
        &chain.emulator,
        &[&auto[..], &["--discard-foreign-writes"]].concat(),
    ));
    assert_same(&image, &chain.image(1));
    // Without digests there is nothing to compare with: copied whole, and right.
    let written = write(b"more");
    fs::remove_file(folder.path().join("image.raw.ebsfs-digests")).unwrap();
    refused(
        11,
        &[&ids[2], text(&image), "--base", &ids[1]],
        "no digests to compare it with",
    );
    assert_eq!(sha256(&image), written, "nothing was written");
    run(&mut sync(
        &chain.emulator,
        &[&ids[1], text(&image), "--base", "auto"],
    ));
    assert_same(&image, &chain.image(1));

    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let small = Loop::over(&disk);
    refused(
        2,
        &[&ids[0], &small.0, "--overwrite", &small.0],
        "does not fit",
    );
    refused(2, &[&ids[0], &small.0, "--dry-run"], "does not fit");
    refused(2, &[&ids[0], text(folder.path())], "is a folder");
    refused(2, &[&ids[0], text(&image), text(&image)], "named twice");
    refused(
        2,
        &[text(&image), text(&disk), "--base", &ids[0]],
        "is no snapshot",
    );
    // A device that is mounted.
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    drop(small);
    let large = Loop::over(&disk);
    let overwrite = format!("--overwrite {} overwrites it", large.0);
    refused(11, &[&ids[0], &large.0], &overwrite);
    refused(11, &[&ids[0], &large.0, "--yes"], &overwrite);
    let point = folder.path().join("point");
    fs::create_dir(&point).unwrap();
    sh(&format!(
        "mkfs.ext4 -q {0} && mount {0} {1}",
        large.0,
        point.display()
    ));
    let (code, said) = ends(&mut sync(
        &chain.emulator,
        &[&ids[0], &large.0, "--overwrite", &large.0],
    ));
    sh(&format!("umount {}", point.display()));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is mounted at"), "{said}");
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
        assert_eq!(code, 10, "{said}");
        let locked = format!("process {} has it locked", first.id());
        assert!(said.contains(&locked), "{said}");
    }
    assert!(first.wait().unwrap().success());
    let (_mount, disk) = mounted(&emulator, "snap-0a");
    assert_same(&image, &disk);
    assert_eq!(left_beside(&image), KEPT);
}

#[test]
fn unknown_content_is_not_overwritten_without_consent_and_a_mistyped_target_is_refused() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [0]);
    let id = emulator.snapshot("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("mine.raw");
    fs::write(&image, b"mine").unwrap();
    let refused = |code: i32, args: &[&str], words: &str| {
        let mut command = sync(&emulator, &[&[id.as_str()], args].concat());
        let (found, said) = ends(command.current_dir(folder.path()));
        assert_eq!(found, code, "{said}");
        assert!(said.contains(words), "{said}");
    };
    let overwrite = format!("--overwrite {} overwrites it", image.display());
    refused(11, &[text(&image)], &overwrite);
    refused(11, &[text(&image), "--yes"], &overwrite);
    refused(
        11,
        &[text(&image), "--overwrite", "/another.raw"],
        &overwrite,
    );
    assert_eq!(fs::read(&image).unwrap(), b"mine");
    refused(2, &["https://bucket/prefix"], "is no target");
    refused(2, &["snap-0123"], "is no target");
    // A link to an image stays a link.
    let link = folder.path().join("link.raw");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    run(&mut sync(
        &emulator,
        &[&id, text(&link), "--overwrite", text(&link)],
    ));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_same(&image, &emulator.volume("vol-0a"));
}

#[test]
fn devices_are_distinguished_and_a_foreign_write_is_not_overwritten_without_consent() {
    let chain = Chain::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let other = folder.path().join("other");
    for file in [&file, &other] {
        fs::File::create(file).unwrap().set_len(1 << 30).unwrap();
    }
    let (first, second) = (Loop::over(&file), Loop::over(&other));
    let id = &chain.snapshots[0];
    let named = [id.as_str(), &first.0, "--overwrite", &first.0];
    // Two devices over one file are one disk.
    let twin = Loop::over(&file);
    let (code, said) = ends(&mut sync(&chain.emulator, &named));
    assert_eq!(code, 1, "{said}");
    let attached = format!("{} is attached as {}", file.display(), twin.0);
    assert!(said.contains(&attached), "{said}");
    drop(twin);
    run(&mut sync(&chain.emulator, &named));
    assert_eq!(status(&chain.emulator, &first.0), format!("holds {id}\n"));
    assert_eq!(status(&chain.emulator, &second.0), "unknown\n");
    sh(&format!("mkfs.ext4 -q -F {}", first.0));
    assert_eq!(status(&chain.emulator, &first.0), held_by_its_digests(id));
    let written = sha256(Path::new(&first.0));
    let later = [
        chain.snapshots[1].as_str(),
        &first.0,
        "--base",
        "auto",
        "--verify",
        "--yes",
    ];
    let (code, said) = decides(&mut sync(&chain.emulator, &later));
    assert_eq!(code, 11, "{said}");
    assert!(said.contains("--discard-foreign-writes"), "{said}");
    assert_eq!(sha256(Path::new(&first.0)), written, "nothing was written");
    run(&mut sync(
        &chain.emulator,
        &[&later[..], &["--discard-foreign-writes"]].concat(),
    ));
    assert_same(Path::new(&first.0), &chain.image(1));
}
