//! Repositories in folders of filesystems that lack what others have: hard links, renames to a free name, modes, fine times.

use std::time::Duration;

use super::care::three;
use super::healing::assert_whole;
use super::*;
use crate::sync::Loop;

/// A repository in a folder of a filesystem of its own.
struct OnFilesystem {
    objects: Objects,
    device: Option<Loop>,
    _image: TempDir,
}

impl OnFilesystem {
    fn tmpfs() -> Self {
        let objects = Objects::folder();
        sh(&format!(
            "mount -t tmpfs -o size=512m none {}",
            text(objects.folder.path())
        ));
        Self {
            objects,
            device: None,
            _image: tempfile::tempdir().unwrap(),
        }
    }

    /// By the kernel, or by FUSE where the kernel does not know it.
    fn exfat() -> Self {
        let (objects, image) = (Objects::folder(), tempfile::tempdir().unwrap());
        let file = image.path().join("exfat");
        sh(&format!(
            "truncate -s 512M {0} && mkfs.exfat {0}",
            text(&file)
        ));
        let device = Loop::over(&file);
        let at = text(objects.folder.path()).to_owned();
        sh(&format!(
            "mount -i -t exfat {0} {at} 2>/dev/null || mount.exfat-fuse {0} {at}",
            device.0
        ));
        Self {
            objects,
            device: Some(device),
            _image: image,
        }
    }
}

impl Drop for OnFilesystem {
    fn drop(&mut self) {
        let at = self.objects.folder.path();
        let _ = Command::new("umount").arg("--lazy").arg(at).status();
        // FUSE closes it a moment after the unmount.
        std::thread::sleep(Duration::from_millis(50));
        drop(self.device.take());
    }
}

/// Syncs, deltas, a killed writer's rest, removals, prunes, checks and restores; every byte is compared.
fn a_repository_lives_on(filesystem: &OnFilesystem, coarsest_time: Duration) {
    let objects = &filesystem.objects;
    let chain = three(objects);
    let (emulator, ids) = (&chain.emulator, &chain.snapshots);
    run(&mut objects.bring(
        emulator,
        &[&ids[3], "--base", "auto", "--dedup", "--verify"],
    ));
    assert_whole(objects, &chain, 0..2);
    // What a killed writer has left, half written beside its name.
    let rest = format!("{}#17", text(&objects.objects("packs")[0]));
    fs::write(&rest, "half").unwrap();
    sh(&format!("touch -d '1 hour ago' '{rest}'"));
    let shown = objects.look_json(emulator, &["prune", "--keep", "2"]);
    assert_eq!(shown["swept"], 0, "{shown}");
    std::thread::sleep(coarsest_time + Duration::from_millis(100));
    let shown = objects.look_json(emulator, &["prune", "--grace", "0s"]);
    assert_ne!(shown["swept"], 0, "{shown}");
    assert!(objects.objects("removed").is_empty());
    assert!(!Path::new(&rest).exists());
    let checked = objects.look_json(emulator, &["check", "--read-data"]);
    assert_eq!(checked["damages"], Value::Array(Vec::new()));
    let counts = ["snapshots", "unused", "runs"].map(|count| checked[count].as_u64());
    assert_eq!(counts, [Some(2), Some(0), Some(0)], "{checked}");
    assert_whole(objects, &chain, 2..4);
    run(&mut objects.bring(emulator, &[&ids[4], "--base", "auto"]));
    assert_whole(objects, &chain, 4..5);
}

#[test]
fn a_repository_on_exfat_is_written_pruned_and_restored_whole() {
    a_repository_lives_on(&OnFilesystem::exfat(), Duration::from_secs(2));
}

#[test]
fn a_repository_on_tmpfs_is_written_pruned_and_restored_whole() {
    a_repository_lives_on(&OnFilesystem::tmpfs(), Duration::from_millis(50));
}
