use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::sysfs::tests::{Fake, LoopDevice};

const SIZE: u64 = 1 << 30;

fn of(fake: &Fake, node: &BlockDevice) -> Identity {
    identity_in(&fake.sysfs(), Some(node), Path::new("/dev/x"), SIZE)
}

#[test]
fn a_disk_is_identified_by_the_best_of_its_names() {
    // Files of its folder, the middle of its id (none: its path), the token that is printed.
    type Row<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, &'a str);
    let rows: &[Row<'_>] = &[
        (
            &[
                ("device/wwid", "naa.5000c500a1b2c3d4"),
                ("device/serial", "S1"),
            ],
            Some("device/wwid=naa.5000c500a1b2c3d4"),
            "wwn-0x5000c500a1b2c3d4",
        ),
        (
            &[
                ("wwid", "nvme.1d0f-766f6c31-416d-00000001"),
                ("device/serial", "vol0123456789abcdef0"),
            ],
            Some("wwid=nvme.1d0f-766f6c31-416d-00000001"),
            "vol0123456789abcdef0",
        ),
        (
            &[("wwid", "eui.0025385b")],
            Some("wwid=eui.0025385b"),
            "eui.0025385b",
        ),
        (&[("serial", " disk 7 \n")], Some("serial=disk 7"), "disk 7"),
        (
            &[("dm/uuid", "LVM-abc")],
            Some("dm/uuid=LVM-abc"),
            "LVM-abc",
        ),
        (
            &[("md/uuid", "1:2:3:4")],
            Some("md/uuid=1:2:3:4"),
            "1:2:3:4",
        ),
        (&[], None, "/dev/x"),
        (&[("serial", " \n"), ("dm/uuid", "")], None, "/dev/x"),
        (
            &[("wwid", "naa.0000000000000000"), ("serial", "0000")],
            None,
            "/dev/x",
        ),
        (&[("serial", "\u{1b}[31mred")], None, "/dev/x"),
        (
            &[("loop/backing_file", "/no/such (deleted)")],
            None,
            "/dev/x",
        ),
    ];
    for (files, name, token) in rows {
        let mut fake = Fake::new();
        let disk = fake.disk("sda", files);
        let found = of(&fake, &disk);
        let expected = name.unwrap_or("path=/dev/x");
        assert_eq!(found.id, format!("device:{expected}:size={SIZE}"));
        assert_eq!(
            (found.is_stable, &*found.tokens[0]),
            (name.is_some(), *token)
        );
        let part = fake.partition(&disk, (2, 4096, 64), &[]);
        let found = of(&fake, &part);
        assert_eq!(
            found.id,
            format!("device:{expected}:partition=2:start=4096:size={SIZE}")
        );
        if name.is_some() {
            assert!(found.tokens.iter().all(|token| token.ends_with("-part2")));
        }
    }
    let none = identity_in(&Fake::new().sysfs(), None, Path::new("/dev/x"), 5);
    assert_eq!(
        (&*none.id, none.is_stable),
        ("device:path=/dev/x:size=5", false)
    );
}

#[test]
fn a_value_that_two_disks_share_identifies_neither() {
    let mut fake = Fake::new();
    let a = fake.disk("sda", &[("serial", "same")]);
    let b = fake.disk("sdb", &[("serial", "same")]);
    assert!(!of(&fake, &a).is_stable && !of(&fake, &b).is_stable);
    assert_eq!(of(&fake, &a).tokens, ["/dev/x"]);
    // Namespaces of one NVMe controller share its serial number.
    let c = fake.disk("nvme0n1", &[("wwid", "eui.1"), ("device/serial", "ctrl")]);
    fake.disk("nvme0n2", &[("wwid", "eui.2"), ("device/serial", "ctrl")]);
    assert!(of(&fake, &c).is_stable);
    assert_eq!(of(&fake, &c).tokens, ["eui.1", "nvme-eui.1"]);
    // A hidden path to a disk is that disk.
    let d = fake.disk("nvme1n1", &[("wwid", "eui.3")]);
    fake.disk("nvme1c0n1", &[("wwid", "eui.3"), ("hidden", "1")]);
    assert!(of(&fake, &d).is_stable);
}

#[test]
fn a_partition_counts_its_disk_without_its_siblings() {
    let stat = |written: u64, discarded: u64| {
        format!("1 0 8 0 1 0 {written} 0 0 0 0 1 0 {discarded} 0 1 0")
    };
    let mut fake = Fake::new();
    let on = [("queue/iostats", "1"), ("queue/dax", "0")];
    let disk = fake.disk("sda", &on);
    let own = fake.partition(&disk, (1, 2048, 2048), &[("stat", &stat(10, 1))]);
    let sibling = fake.partition(&disk, (2, 4096, 2048), &[("stat", &stat(20, 2))]);
    assert_eq!(counters(&own), None);
    fake.set(&disk, "stat", &stat(100, 10));
    assert_eq!(counters(&own), Some((80, 8)));
    assert_eq!(counters(&disk), Some((100, 10)));
    // One that overlaps is no sibling: what is written there is written here.
    let around = fake.partition(&disk, (5, 3000, 500), &[("stat", &stat(3, 0))]);
    assert_eq!(counters(&own), Some((80, 8)));
    assert_eq!(counters(&around), Some((80, 8)));
    fake.set(&sibling, "stat", &stat(101, 2));
    assert_eq!(counters(&own), None);
    assert_eq!(counters(&disk), Some((100, 10)));
    for (file, text) in [
        ("queue/iostats", "0"),
        ("queue/dax", "1"),
        ("stat", "1 2 3"),
        ("stat", "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"),
    ] {
        let before = disk.read(file).unwrap();
        fake.set(&disk, file, text);
        assert_eq!(counters(&disk), None, "{file}");
        fake.set(&disk, file, &before);
    }
    assert_eq!(counters(&disk), Some((100, 10)));
}

#[test]
fn a_file_is_no_device_and_a_zero_device_neither() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, b"x").unwrap();
    for path in [&*path, Path::new("/dev/zero")] {
        assert_eq!(identity(path).unwrap_err().kind(), Kind::Invalid);
    }
    let none = identity(&folder.path().join("none")).unwrap_err();
    assert_eq!(none.kind(), Kind::NotFound);
}

#[test]
fn a_loop_device_is_its_backing_file_until_that_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::new(&image, 4 << 20, &[]) else {
        return;
    };
    let found = identity(device.path()).unwrap();
    let name = format!("device:loop={}:inode=", image.display());
    assert!(found.id.starts_with(&name), "{}", found.id);
    assert!(found.is_stable && found.id.ends_with(":offset=0:size=4194304"));
    assert_eq!(found.tokens, [device.path().display().to_string()]);
    let file = File::options().read(true).write(true).open(device.path());
    let file = file.unwrap();
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(device_mark(&file).unwrap(), device_mark(&file).unwrap());
    std::fs::remove_file(&image).unwrap();
    assert!(!identity(device.path()).unwrap().is_stable);
    assert_eq!(device_mark(&file), None);
}

#[test]
fn a_foreign_write_past_the_partition_changes_its_mark_and_a_siblings_write_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let Some(device) = LoopDevice::partitioned(&image) else {
        return;
    };
    let (one, two) = (device.partition(1), device.partition(2));
    let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
    let file = open(&one);
    let counters = |file: &File| {
        let mark = device_mark(file).unwrap();
        (mark.written, mark.discarded)
    };
    let before = counters(&file);
    let sibling = open(&two);
    sibling.write_all_at(&[1; 8192], 0).unwrap();
    assert_eq!(counters(&file), before);
    sibling.sync_all().unwrap();
    assert_eq!(counters(&file), before);
    // Past the table, and still in the disk's page cache when the mark is taken.
    let disk = open(device.path());
    disk.write_all_at(&[2; 4096], (1 << 20) + 4096).unwrap();
    let after = counters(&file);
    assert_eq!(after.0, before.0 + 8);
    file.write_all_at(&[3; 4096], 0).unwrap();
    assert_eq!(counters(&file).0, after.0 + 8);
    std::thread::sleep(Duration::from_millis(20));
    let whole = counters(&disk);
    sibling.write_all_at(&[4; 4096], 4096).unwrap();
    assert_eq!(counters(&disk).0, whole.0 + 8);
}
