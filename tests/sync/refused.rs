//! What is refused, and what is said of a target.

use super::*;

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
    refused(&[&ids[0], &small.0, "--yes"], "does not fit");
    refused(&[&ids[0], &small.0, "--dry-run"], "does not fit");
    refused(&[&ids[0], text(folder.path())], "is a folder");
    refused(&[&ids[0], text(&image), text(&image)], "named twice");
    refused(
        &[text(&image), text(&disk), "--base", &ids[0]],
        "is no snapshot",
    );
    // A device that is mounted.
    fs::File::create(&disk).unwrap().set_len(2 << 30).unwrap();
    drop(small);
    let large = Loop::over(&disk);
    refused(&[&ids[0], &large.0], "--yes");
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
    refused("https://bucket/prefix", "is no target");
    refused("snap-0123", "is no target");
    // A link to an image stays a link.
    let link = folder.path().join("link.raw");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    run(&mut sync(&emulator, &[&id, text(&link), "--yes"]));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_same(&image, &emulator.volume("vol-0a"));
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
