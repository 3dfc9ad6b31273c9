//! `snapshots/ID/partitions/`: partitions and LVM volumes as files, and what a look into the folder costs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::*;

/// The folder of a snapshot's partitions.
fn partitions(mount: &Mount, snapshot: &str) -> PathBuf {
    mount.disk(snapshot).with_file_name("partitions")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn described(folder: &Path) -> Value {
    let text = fs::read(folder.join("partitions.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Whether a file has the bytes of a range of a disk.
fn is_range(file: &Path, disk: &Path, start: u64, size: u64) -> bool {
    let whole = fs::read(file).unwrap();
    whole.len() as u64 == size && whole == read_at(disk, start, whole.len())
}

/// Runs lines of bash that find the disk as the loop device `$device`, with sectors of this size.
fn on_loop(disk: &Path, sector: u64, script: &str) -> String {
    sh(&format!(
        "device=$(losetup --find --show --sector-size {sector} {})\ntrap 'losetup --detach $device' EXIT\n{script}",
        disk.display()
    ))
}

/// Number, start and size in bytes of each partition, as sfdisk reads them.
fn sfdisk(disk: &Path, sector: u64) -> Vec<(u64, u64, u64)> {
    let table = on_loop(disk, sector, "sfdisk --json $device");
    let table: Value = serde_json::from_str(&table).unwrap();
    let listed = table["partitiontable"]["partitions"].as_array().unwrap();
    let mut found: Vec<_> = listed
        .iter()
        // An extended partition is no place for files.
        .filter(|one| one["type"] != "5")
        .map(|one| {
            let node = one["node"].as_str().unwrap();
            let number = node.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
            let bytes = |value: &Value| value.as_u64().unwrap() * sector;
            (
                number.parse().unwrap(),
                bytes(&one["start"]),
                bytes(&one["size"]),
            )
        })
        .collect();
    found.sort_unstable();
    found
}

/// Fills all that no table uses with bytes that tell their place.
const FILL: &str = "python3 -c \"
import sys
disk = open(sys.argv[1], 'r+b')
for block in range(1, int(sys.argv[2])):
    disk.seek(block * 524288 + 1000 * (block % 7)); disk.write(b'block %d ' % block * 500)
\"";

/// A disk of 16 MiB with a table of sfdisk.
fn disk_with(path: &Path, sector: u64, table: &str) {
    sh(&format!(
        "rm -f {0}; truncate -s 16M {0}; {FILL} {0} 31",
        path.display()
    ));
    on_loop(
        path,
        sector,
        &format!("printf '{table}' | sfdisk --quiet --no-reread --no-tell-kernel $device"),
    );
}

#[test]
fn each_partition_is_a_file_with_its_bytes_whatever_the_table() {
    let emulator = Emulator::start();
    let mbr = "label: dos\\nsize=2M,type=83\\nsize=1M,type=82\\ntype=5\\nsize=1M,type=8e\\nsize=3M,type=83\\n";
    let cases = [
        (
            512,
            mbr,
            ["1-linux.raw", "2-swap.raw", "5-lvm.raw", "6-linux.raw"].as_slice(),
        ),
        (
            512,
            "label: gpt\\nsize=2M,type=uefi\\nsize=1M,name=\"my /data\"\\nsize=3M\\n",
            &["1-EFI.raw", "2-my__data.raw", "3-linux.raw"],
        ),
        (
            4096,
            "label: gpt\\nsize=2M,name=root\\nsize=1M,name=swap\\n",
            &["1-root.raw", "2-swap.raw"],
        ),
    ];
    let mut snapshots = Vec::new();
    let copy = emulator.folder.path().join("good.raw");
    for (number, (sector, table, files)) in cases.iter().enumerate() {
        let volume = emulator.volume(&format!("vol-0{number}"));
        disk_with(&volume, *sector, table);
        snapshots.push((volume.clone(), sfdisk(&volume, *sector), *files, None));
        if number == 1 {
            // The primary header is damaged, its backup is good.
            fs::copy(&volume, &copy).unwrap();
            let damaged = emulator.volume("vol-0d");
            fs::copy(&volume, &damaged).unwrap();
            sh(&format!(
                "printf x | dd of={} bs=1 seek=530 conv=notrunc status=none",
                damaged.display()
            ));
            let note = Some("the primary GPT is damaged, its backup is good");
            snapshots.push((damaged, sfdisk(&copy, 512), *files, note));
        }
    }
    let ids: Vec<String> = snapshots
        .iter()
        .map(|(volume, ..)| emulator.snapshot(volume.file_stem().unwrap().to_str().unwrap()))
        .collect();
    let mount = emulator.mount(&[]);
    for (id, (volume, ranges, files, note)) in ids.iter().zip(&snapshots) {
        let folder = partitions(&mount, id);
        let mut expected = files.to_vec();
        expected.push("partitions.json");
        assert_eq!(names(&folder), expected);
        let text = described(&folder);
        assert_eq!(text["notes"].get(0).and_then(Value::as_str), *note);
        assert_eq!(ranges.len(), files.len());
        for (place, ((number, start, size), file)) in ranges.iter().zip(*files).enumerate() {
            let one = &text["partitions"][place];
            let found =
                ["number", "start_bytes", "size_bytes"].map(|key| one[key].as_u64().unwrap());
            assert_eq!(found, [*number, *start, *size]);
            assert_eq!(one["file"], *file);
            let path = folder.join(file);
            assert_eq!(fs::metadata(&path).unwrap().len(), *size);
            assert!(is_range(&path, volume, *start, *size), "{file}");
            let written = fs::OpenOptions::new().write(true).open(&path);
            assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EROFS));
        }
        assert!(!folder.join("9-none.raw").exists());
    }
}

#[test]
fn looking_for_files_fetches_no_block_and_a_look_at_partitions_a_few() {
    let emulator = Emulator::start();
    let volume = emulator.volume("vol-0a");
    disk_with(
        &volume,
        512,
        "label: gpt\\nsize=2M,type=uefi\\nsize=4M,name=root\\nsize=1M,type=swap\\n",
    );
    let ids: Vec<String> = (0..5).map(|_| emulator.snapshot("vol-0a")).collect();
    let mount = emulator.mount(&["-v"]);
    let at = mount.point.path().display();
    emulator.reset();
    let listed = sh(&format!("find {at}; ls -R {at}"));
    assert!(listed.contains("disk.raw") && !listed.contains("partitions"));
    assert_eq!((emulator.gets(), emulator.lists()), (0, 0));

    let folder = partitions(&mount, &ids[0]);
    assert!(folder.is_dir());
    assert_eq!(emulator.gets(), 0, "the folder itself costs nothing");
    assert_eq!(names(&folder).len(), 4);
    // The table, and the first block of each partition.
    assert_eq!(emulator.gets(), 4);
    fs::read(folder.join("partitions.json")).unwrap();
    sh(&format!("ls -l {}", folder.display()));
    assert_eq!(emulator.gets(), 4, "the table is kept");

    // A file shares the blocks of the disk: those that were read are not fetched again.
    let (_, start, size) = sfdisk(&volume, 512)[1];
    fs::read(mount.disk(&ids[0])).unwrap();
    let gets = emulator.gets();
    let root = folder.join("2-root.raw");
    assert!(is_range(&root, &volume, start, size));
    assert_eq!(emulator.gets(), gets);
    wait_for("the closing", || mount.log().contains("closed"));
    let log = mount.log();
    assert!(
        log.contains(&format!(
            "opened {}/partitions/2-root.raw (volume vol-0a",
            ids[0]
        )),
        "{log}"
    );
}

#[test]
fn an_absent_permission_is_the_error_of_a_look() {
    let emulator = Emulator::start();
    disk_with(&emulator.volume("vol-0a"), 512, "label: gpt\\nsize=2M\\n");
    let id = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&id]);
    emulator.set("deny=ebs:GetSnapshotBlock");
    let folder = partitions(&mount, &id);
    let failed = fs::read_dir(&folder).and_then(|mut names| names.next().transpose());
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EACCES));
    emulator.set("deny=");
    // The failure is remembered for a few seconds, and then the table is read again.
    wait_for("the table", || {
        fs::read_dir(&folder).is_ok_and(|mut names| names.next().is_some_and(|name| name.is_ok()))
    });
    assert_eq!(names(&folder), ["1-linux.raw", "partitions.json"]);
}

/// A disk whose second partition is a physical volume, made by LVM itself without device-mapper: `root` in two pieces, `home` between
/// them, `wide` striped over this disk and another one. Prints what LVM says of each piece: name, first extent of the disk, extents.
pub fn lvm_disk(folder: &Path, disk: &Path) -> Vec<(String, u64, u64)> {
    let script = r#"
        cd "$1"
        exec 2> lvm.log
        truncate -s 64M "$2"; truncate -s 32M other.raw
        printf 'label: gpt\nsize=4M,type=uefi\nsize=48M,type=lvm\n' | sfdisk --quiet "$2"
        read -r start size < <(partx -rgbo START,SIZE --nr 2 "$2")
        one=$(losetup --find --show --offset $((start * 512)) --sizelimit $size "$2")
        two=$(losetup --find --show other.raw)
        trap 'losetup --detach $one; losetup --detach $two' EXIT
        lvm() { command lvm "$@" --driverloaded n --devices $one,$two --config 'devices { use_devicesfile = 0 } activation { udev_sync = 0 udev_rules = 0 } backup { backup = 0 archive = 0 }'; }
        lvm pvcreate -qq $one $two
        lvm vgcreate -qq -s 1M test-$3 $one $two
        make() { lvm lvcreate -qq -y -an -Zn -Wn "$@"; }
        make -l 4 -n root test-$3 $one
        make -l 3 -n home test-$3 $one
        lvm lvextend -qq -l +5 test-$3/root $one
        make -l 4 -i 2 -n wide test-$3 $one $two
        lvm lvs --noheadings --separator ' ' -o lv_name,seg_pe_ranges test-$3 | grep -v wide
    "#;
    let output = std::process::Command::new("timeout")
        .args(["60", "bash", "-euo", "pipefail", "-c", script, "bash"])
        .arg(folder)
        .arg(disk)
        .arg(std::process::id().to_string())
        .output()
        .unwrap();
    let log = fs::read_to_string(folder.join("lvm.log")).unwrap_or_default();
    assert!(output.status.success(), "{log}");
    // root /dev/loop0:0-3
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().filter_map(|line| line.trim().split_once(' '));
    lines
        .map(|(name, range)| {
            let (_, extents) = range.rsplit_once(':').unwrap();
            let (first, last) = extents.split_once('-').unwrap();
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.trim().parse().unwrap());
            (name.to_owned(), first, last + 1 - first)
        })
        .collect()
}

#[test]
fn linear_volumes_of_lvm_are_files_and_a_striped_one_is_named() {
    let emulator = Emulator::start();
    let volume = emulator.volume("vol-0a");
    let folder = tempfile::tempdir().unwrap();
    let pieces = lvm_disk(folder.path(), &volume);
    let (_, pv, _) = sfdisk(&volume, 512)[1];
    // Bytes that tell their place, behind the metadata: the extents begin at 1 MiB.
    sh(&format!(
        "python3 -c \"
import sys
disk = open('{}', 'r+b')
for at in range({pv} + (1 << 20), {pv} + (40 << 20), 65536):
    disk.seek(at); disk.write(b'at %d ' % at * 100)
\"",
        volume.display()
    ));
    let id = emulator.snapshot("vol-0a");
    let mount = emulator.mount(&[&id]);
    let folder = partitions(&mount, &id);
    let group = format!("test-{}", std::process::id());
    let file = |name: &str| format!("2-test--{}-{name}.raw", std::process::id());
    let (home, root) = (file("home"), file("root"));
    let mut expected = ["1-EFI.raw", "2-lvm.raw", &home, &root, "partitions.json"];
    expected.sort_unstable();
    assert_eq!(names(&folder), expected);
    for name in ["root", "home"] {
        let own = pieces.iter().filter(|(piece, ..)| piece == name);
        let expected: Vec<u8> = own
            .flat_map(|(_, first, count)| {
                let start = pv + ((1 + first) << 20);
                read_at(&volume, start, (count << 20) as usize)
            })
            .collect();
        assert!(
            fs::read(folder.join(file(name))).unwrap() == expected,
            "{name}"
        );
    }
    assert_eq!(pieces.len(), 3, "root is in two pieces: {pieces:?}");
    let text = described(&folder);
    let volumes = text["lvm"].as_array().unwrap();
    let wide = volumes.iter().find(|one| one["volume"] == "wide").unwrap();
    assert_eq!(
        (&wide["group"], &wide["file"]),
        (&group.into(), &Value::Null)
    );
    assert!(wide["reason"].as_str().unwrap().contains("striped over 2"));
    assert_eq!(volumes.len(), 3);
}
