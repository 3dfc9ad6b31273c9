//! A half-written image of one snapshot that becomes another one of the same volume.

use super::*;

#[test]
fn a_later_snapshot_takes_over_a_half_written_image_and_fetches_only_changes() {
    let emulator = large_pair();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    let mut child = sync(
        &emulator,
        &["snap-0a", text(&image), "--max-in-flight", "16"],
    )
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    wait_for("blocks", || emulator.gets() > 300);
    // It stops at a checkpoint: all that was fetched is kept.
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let done = emulator.gets();
    assert!(done > 300);
    // What something else writes into the part meanwhile does not survive.
    let part = folder.path().join("image.raw.ebsfs-part");
    let file = writable(&part);
    std::os::unix::fs::FileExt::write_all_at(&file, b"else", 900 * BLOCK + 7).unwrap();
    drop(file);
    let (mount, disk) = mounted(&emulator, "snap-0b");
    let whole = held(&disk);
    emulator.reset();
    run(&mut sync(
        &emulator,
        &["snap-0b", text(&image), "--dry-run"],
    ));
    assert_eq!(emulator.gets(), 0);
    run(&mut sync(
        &emulator,
        &["snap-0b", text(&image), "--base", "auto"],
    ));
    let gets = emulator.gets();
    assert_same(&image, &disk);
    drop(mount);
    // A quarter of the blocks changed between the two.
    assert!(
        gets + done / 3 < whole,
        "{gets} of {whole}, {done} were done"
    );
    assert_eq!(left_beside(&image), [".ebsfs-digests", ".ebsfs.json"]);
}
