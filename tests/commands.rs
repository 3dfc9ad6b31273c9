//! The programs that people use on an image: every byte right.

use std::path::Path;
use std::process::Command;

use crate::support::*;

/// A mounted filesystem that goes away.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// Mounts a partition of a disk image by a loop device.
    fn partition(image: &Path, number: u32, options: &str) -> Self {
        let (start, size) = partition(image, number);
        let point = tempfile::tempdir().unwrap();
        run(Command::new("mount")
            .args([
                "-o",
                &format!("{options},loop,offset={start},sizelimit={size}"),
            ])
            .arg(image)
            .arg(point.path()));
        Self(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

/// Start and size of a partition, in bytes.
fn partition(image: &Path, number: u32) -> (u64, u64) {
    let line = run(Command::new("partx")
        .args(["--raw", "--noheadings", "--bytes", "--output", "START,SIZE"])
        .args(["--nr", &number.to_string()])
        .arg(image));
    let mut numbers = line
        .split_whitespace()
        .map(|word| word.parse::<u64>().unwrap());
    (numbers.next().unwrap() * 512, numbers.next().unwrap())
}

#[test]
fn dd_cp_cat_and_sha256sum_read_every_byte_and_cp_keeps_the_holes() {
    let emulator = Emulator::start();
    let volume = emulator.make_volume("vol-0a", 2048, (3..40).chain([100, 101, 2000]));
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let (disk, scratch) = (mount.disk(&snapshot), tempfile::tempdir().unwrap());
    let out = scratch.path().join("out.raw");
    let (d, o, v) = (disk.display(), out.display(), volume.display());

    let sum = |file: &dyn std::fmt::Display| sh(&format!("cat {file} | sha256sum"));
    assert_eq!(sum(&d), sum(&v));
    for copy in [
        format!("dd if={d} of={o} bs=1M conv=sparse,fsync status=none"),
        format!("dd if={d} of={o} bs=4k status=none"),
        format!("dd if={d} of={o} bs=1M iflag=direct status=none"),
        format!("cp --sparse=always {d} {o}"),
        format!("cp --sparse=auto {d} {o}"),
        format!("rsync --sparse --inplace {d} {o}"),
        format!("ddrescue --quiet --sparse {d} {o} {o}.map; rm {o}.map"),
    ] {
        sh(&format!("rm -f {o}; {copy}"));
        assert_same(&volume, &out);
        if copy.contains("cp ") {
            let blocks: u64 = sh(&format!("stat -c %b {o}")).trim().parse().unwrap();
            assert!(
                blocks <= 41 * BLOCK / 512,
                "{copy}: {blocks} blocks of 512 bytes"
            );
        }
    }
}

#[test]
fn qemu_img_converts_compares_and_shows_the_holes() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, (0..5).chain([7, 2046]));
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    let scratch = tempfile::tempdir().unwrap();
    let (disk, out) = (mount.disk(&snapshot), scratch.path().join("out.qcow2"));
    let (disk, out) = (disk.display(), out.display());
    sh(&format!("qemu-img convert -f raw -O qcow2 {disk} {out}"));
    sh(&format!("qemu-img compare -f raw -F qcow2 {disk} {out}"));
    let map: serde_json::Value =
        serde_json::from_str(&sh(&format!("qemu-img map -f raw --output=json {disk}"))).unwrap();
    let runs: Vec<(u64, u64, bool)> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|run| {
            let number = |name: &str| run[name].as_u64().unwrap() / BLOCK;
            (
                number("start"),
                number("length"),
                run["data"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        runs,
        [
            (0, 5, true),
            (5, 2, false),
            (7, 1, true),
            (8, 2038, false),
            (2046, 1, true),
            (2047, 1, false)
        ]
    );
    assert_eq!(emulator.gets(), 7);
}

#[test]
fn partitions_of_ext4_xfs_and_btrfs_are_mounted_read_only_and_hold_the_same_files() {
    let emulator = Emulator::start();
    let volume = emulator.volume("vol-0a");
    let file = std::fs::File::create(&volume).unwrap();
    file.set_len(2 << 30).unwrap();
    sh(&format!(
        "printf 'label: gpt\\nsize=600M\\nsize=600M\\nsize=600M\\n' | sfdisk --quiet {}",
        volume.display()
    ));
    let tree = |root: &Path| {
        sh(&format!(
            "cd {} && find . -path ./lost+found -prune -o -type f -print0 | sort -z | xargs -0 sha256sum",
            root.display()
        ))
    };
    let filesystems = [
        ("mkfs.ext4 -q -F", "ro,noload"),
        ("mkfs.xfs -q -f", "ro,norecovery,nouuid"),
        ("mkfs.btrfs -q -f", "ro,rescue=nologreplay"),
    ];
    let mut expected = Vec::new();
    for (number, (mkfs, _)) in (1..).zip(filesystems) {
        let (start, size) = partition(&volume, number);
        let at_partition = format!("--offset {start} --sizelimit {size}");
        sh(&format!(
            "device=$(losetup --find --show {at_partition} {}); {mkfs} $device; losetup --detach $device",
            volume.display()
        ));
        let mounted = Mounted::partition(&volume, number, "rw");
        let at = mounted.0.path().display();
        sh(&format!(
            "cp -r /etc/ssl /etc/default {at}/; dd if=/dev/urandom of={at}/big bs=1M count=40 status=none; sync"
        ));
        expected.push(tree(mounted.0.path()));
        sh(&format!("umount {at}"));
    }
    let snapshot = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&snapshot]);
    assert_same(&volume, &mount.disk(&snapshot));
    for ((number, (mkfs, options)), expected) in (1..).zip(filesystems).zip(expected) {
        let mounted = Mounted::partition(&mount.disk(&snapshot), number, options);
        assert_eq!(tree(mounted.0.path()), expected, "{mkfs}");
        sh(&format!("umount {}", mounted.0.path().display()));
    }
}

#[test]
fn ls_shows_a_table_and_json_and_umount_unmounts_only_its_own() {
    let emulator = Emulator::start();
    emulator.make_volume("vol-0a", 2048, [1]);
    let snapshot = emulator.snapshot("vol-0a");
    let table = run(&mut emulator.ebsfs(&["ls", "vol-0a"]));
    assert!(
        table.starts_with("SNAPSHOT") && table.contains(&snapshot),
        "{table}"
    );
    assert!(
        table.contains("512.0 KiB") && table.contains("1.0 GiB"),
        "{table}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&run(&mut emulator.ebsfs(&["ls", "--json"]))).unwrap();
    assert_eq!(json[0]["id"], snapshot.as_str());
    assert_eq!(json[0]["full_size"], BLOCK);

    let point = tempfile::tempdir().unwrap();
    let at = point.path().to_str().unwrap();
    run(&mut emulator.ebsfs(&["mount", "--background", at, &snapshot]));
    assert_eq!(
        read_at(
            &point
                .path()
                .join("snapshots")
                .join(&snapshot)
                .join("disk.raw"),
            BLOCK,
            8
        ),
        content("vol-0a", 1)[..8],
        "it answers when the command returns"
    );
    run(&mut emulator.ebsfs(&["umount", at]));
    assert_eq!(std::fs::read_dir(point.path()).unwrap().count(), 0);
    for not_ours in [at, "/proc", "/nonexistent"] {
        let (code, said) = ends(&mut emulator.ebsfs(&["umount", not_ours]));
        assert_eq!(code, 1, "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
