use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::sysfs::tests::{Fake, LoopDevice};

fn run(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
fn lines_of_proc_are_read_with_their_blanks() {
    let mounts = mounts_in(
        b"36 35 98:1 /root /mnt/a\\040b\\134 rw shared:1 master:2 - ext3 /dev/ro\\040ot rw\n\
          37 35 0:44 / / rw - btrfs /dev/sdb rw\nnonsense\n\n40 1 x:y / /z rw - tmpfs none rw\n",
    );
    let expected = [
        (Some(makedev(98, 1)), "/mnt/a b\\", "/dev/ro ot"),
        (Some(makedev(0, 44)), "/", "/dev/sdb"),
        (None, "/z", "none"),
    ];
    let mount = |(dev, point, source): (Option<u64>, &str, &str)| Mount {
        dev,
        point: point.into(),
        source: source.into(),
    };
    assert_eq!(mounts, expected.map(mount));
    let swaps =
        swaps_in(b"Filename\tType\n/dev/sda2   partition\t1\t0\t-2\n/swap\\040file file 1 0 -3\n");
    assert_eq!(swaps, [Path::new("/dev/sda2"), Path::new("/swap file")]);
    assert!(mounts_in(b"").is_empty() && swaps_in(b"").is_empty());
    assert_eq!(unescaped(b"a\\04"), Path::new("a\\04"));
    assert_eq!(unescaped(b"a\\999"), Path::new("a\\999"));
}

#[test]
fn the_holder_of_a_disk_is_named() {
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let rows: &[Row<'_>] = &[
        (
            "dm-0",
            &[("dm/name", "my--vg-my--lv"), ("dm/uuid", "LVM-x")],
            "/dev/sda1 holds the LVM volume my-vg/my-lv (/dev/dm-0)",
        ),
        (
            "dm-1",
            &[("dm/name", "secret"), ("dm/uuid", "CRYPT-LUKS2-x")],
            "/dev/sda1 holds the encrypted volume secret (/dev/dm-1)",
        ),
        (
            "dm-2",
            &[("dm/name", "m"), ("dm/uuid", "mpath-x")],
            "/dev/sda1 is a path of the multipath device m (/dev/dm-2)",
        ),
        (
            "dm-3",
            &[("dm/name", "plain")],
            "/dev/sda1 holds the device-mapper volume plain (/dev/dm-3)",
        ),
        (
            "md0",
            &[],
            "/dev/sda1 is a member of the RAID array /dev/md0",
        ),
        ("bcache0", &[], "/dev/sda1 is held by /dev/bcache0"),
    ];
    for (name, files, expected) in rows {
        let mut fake = Fake::new();
        let disk = fake.disk("sda", &[]);
        let part = fake.partition(&disk, (1, 8, 8), &[]);
        let holder = fake.disk(name, files);
        fake.hold(&part, &holder);
        let holders = part.holders();
        assert_eq!(holders, std::slice::from_ref(&holder));
        assert_eq!(held_by("/dev/sda1", &holders[0]), *expected);
    }
}

#[test]
fn a_mounted_filesystem_is_named_by_disk_partition_and_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::partitioned(&image) else {
        return;
    };
    let (one, two) = (device.partition(1), device.partition(2));
    for path in [device.path(), &one] {
        assert_eq!(obstacles(path), <[String; 0]>::default());
    }
    let name = device.path().display();
    let attached = format!("{} is attached as {name}", image.display());
    assert_eq!(image_obstacles(&image), [attached]);
    run("mkfs.ext4", &[Path::new("-q"), &one]);
    let point = folder.path().join("a point");
    std::fs::create_dir(&point).unwrap();
    run("mount", &[&one, &point]);
    let mounted = format!("{} is mounted at {}", one.display(), point.display());
    let found = (obstacles(&one), obstacles(device.path()), obstacles(&two));
    run("umount", &[&point]);
    assert_eq!(found.0, std::slice::from_ref(&mounted));
    assert_eq!(found.1, [mounted]);
    assert_eq!(found.2, <[String; 0]>::default());
}

#[test]
fn btrfs_swap_and_read_only_devices_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (image, point) = (folder.path().join("image"), folder.path().join("point"));
    std::fs::create_dir(&point).unwrap();
    let Some(device) = LoopDevice::new(&image, 128 << 20, &[]) else {
        return;
    };
    let name = device.path().display().to_string();
    run("mkfs.btrfs", &[Path::new("-q"), device.path()]);
    run("mount", &[device.path(), &point]);
    let found = obstacles(device.path());
    run("umount", &[&point]);
    assert_eq!(found, [format!("{name} is mounted at {}", point.display())]);
    run("mkswap", &[device.path()]);
    run("swapon", &[device.path()]);
    let found = obstacles(device.path());
    run("swapoff", &[device.path()]);
    assert_eq!(found, [format!("{name} is in use as swap")]);
    let read_only = LoopDevice::new(&image, 0, &["--read-only"]).unwrap();
    let second = read_only.path().display();
    let file = image.display();
    assert_eq!(
        obstacles(device.path()),
        [format!("{file} is attached as {second}, read-only")]
    );
    assert_eq!(
        obstacles(read_only.path()),
        [
            format!("{second} is read-only"),
            format!("{file} is attached as {name}")
        ]
    );
}

#[test]
fn a_lock_of_qemu_is_seen_while_it_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let qemu = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(&image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    // Not on every machine.
    let Ok(mut qemu) = qemu else {
        return;
    };
    let mut found = Vec::new();
    for _ in 0..100 {
        found = image_obstacles(&image);
        if !found.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(qemu.stdin.take());
    assert!(qemu.wait().unwrap().success());
    assert_eq!(
        found,
        [format!("{} is locked as qemu does it", image.display())]
    );
    assert_eq!(image_obstacles(&image), <[String; 0]>::default());
}

#[test]
fn sectors_that_are_not_those_of_an_image_are_worth_a_warning() {
    assert_eq!(sector_warning("x", None), None);
    assert_eq!(sector_warning("x", Some(512)), None);
    assert!(
        sector_warning("x", Some(4096))
            .unwrap()
            .starts_with("x has sectors of 4096 bytes")
    );
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    if let Some(device) = LoopDevice::new(&image, 1 << 20, &["--sector-size", "4096"]) {
        assert_eq!(sector_size(device.path()), Some(4096));
        assert_eq!(sector_size(&image), None);
    }
}
